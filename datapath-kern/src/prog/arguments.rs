//! Structs that helpers are called with, kept off the stack.
//!
//! The verifier wants every access to the stack aligned, while the compiler, told that the packet
//! may be accessed at any address, takes that for all memory. Values of maps may be accessed so.

use aya_ebpf::bindings::bpf_redir_neigh;
use aya_ebpf::maps::lpm_trie::Key;
use datapath_kern::abi::Mac;
use datapath_kern::abi::addr::Addr;
use datapath_kern::abi::policy::PortKey;
use datapath_kern::packet::MAX_SUM_LEN;

use super::maps;

/// This CPU's arguments.
#[repr(C)]
pub(super) struct Arguments {
    /// Question and answer of `bpf_fib_lookup`.
    pub(super) fib: FibLookup,
    /// Key of the ipcache.
    pub(super) address: Key<Addr>,
    /// Neighbour for `bpf_redirect_neigh`.
    pub(super) neighbour: bpf_redir_neigh,
    /// Key of what classes say of ports.
    pub(super) port: Key<PortKey>,
    /// Tuple that a socket is looked up by.
    pub(super) tuple: [u32; 9],
    /// Bytes of the packet to sum up, a word more than there may be.
    pub(super) scratch: [u32; MAX_SUM_LEN as usize / 4 + 1],
}

/// `struct bpf_fib_lookup` of `include/uapi/linux/bpf.h`, its unions resolved to what a lookup by
/// addresses uses.
#[repr(C)]
pub(super) struct FibLookup {
    pub(super) family: u8,
    pub(super) protocol: u8,
    pub(super) source_port: u16,
    pub(super) destination_port: u16,
    pub(super) total_len: u16,
    pub(super) interface: u32,
    pub(super) flow_info: u32,
    pub(super) source: [u32; 4],
    pub(super) destination: [u32; 4],
    pub(super) vlan: u32,
    pub(super) source_mac: Mac,
    pub(super) destination_mac: Mac,
}

const _: () = assert!(size_of::<FibLookup>() == 64);

/// This CPU's arguments; there is always an element.
#[inline(always)]
pub(super) fn mine() -> Option<&'static mut Arguments> {
    // SAFETY: programs of this object do not run inside each other on one CPU, and no two
    // references are held at a time.
    maps::ARGUMENTS
        .get_ptr_mut(0)
        .map(|arguments| unsafe { &mut *arguments })
}
