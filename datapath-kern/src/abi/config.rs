//! Settings fixed at load: read-only data of the object, known to the verifier, which removes the
//! branches that they rule out.

#![allow(
    unnameable_types,
    reason = "of a derive inside a macro: one helper type per field"
)]

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Mac;
use super::addr::Addr;

macro_rules! settings {
    ($($(#[$doc:meta])* $field:ident: $ty:ty,)*) => {
        /// Settings of one load, in the layout of the object's read-only data.
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout,
        )]
        #[repr(C)]
        pub struct Config {
            $($(#[$doc])* pub $field: $ty,)*
        }

        /// Read access to [`Config`], a field at a time: the kernel must load each one for
        /// itself, or the compiler would take the values of compile time for granted.
        pub trait Settings {
            $($(#[$doc])* fn $field(&self) -> $ty;)*
        }

        impl Settings for Config {
            $(#[inline(always)] fn $field(&self) -> $ty { self.$field })*
        }

        /// Implements [`Settings`] for what has a `Config` in a field.
        #[cfg(feature = "host")]
        macro_rules! settings_of_field {
            ($name:ty, $config:ident) => {
                impl $crate::abi::config::Settings for $name {
                    $(fn $field(&self) -> $ty { self.$config.$field })*
                }
            };
        }
        #[cfg(feature = "host")]
        pub(crate) use settings_of_field;

        /// Implements [`Settings`] by loading from the `Config` at a raw pointer.
        #[macro_export]
        macro_rules! settings_by_volatile_load {
            ($name:ty, $place:expr) => {
                impl $crate::abi::config::Settings for $name {
                    $(#[inline(always)]
                    fn $field(&self) -> $ty {
                        // SAFETY: the static is initialised, never written after load, and the
                        // pointer is to a field of it.
                        unsafe { core::ptr::read_volatile(&raw const (*$place).$field) }
                    })*
                }
            };
        }
    };
}

settings! {
    /// [`MAGIC`](crate::abi::MAGIC).
    magic: u32,
    /// [`VERSION`](crate::abi::VERSION).
    abi_version: u32,
    /// Index of `dp_host`, the node's side of the gateway pair.
    host_interface: u32,
    /// [`tunnel`]: how pods of other nodes are reached.
    tunnel: u32,
    /// UDP port of the tunnel, host order.
    tunnel_port: u32,
    /// One: the VNI is the source identity, as all nodes agreed on numbers. Zero: the identity
    /// comes from the ipcache by inner source address and the VNI must match it.
    identity_from_vni: u32,
    /// One: a TCP flow may be picked up in the middle, by a segment with ACK and without SYN and
    /// RST.
    tcp_loose: u32,
    /// Lowest source port that masquerade hands out.
    nat_port_min: u32,
    /// Highest source port that masquerade hands out.
    nat_port_max: u32,
    /// Life of a TCP flow between two packets, proven and open; seconds, as all that follow.
    tcp_established_s: u32,
    /// Life of a TCP flow that is not proven yet.
    tcp_pending_s: u32,
    /// Life of a TCP flow that both sides closed.
    tcp_closed_s: u32,
    /// Life of any other flow, proven.
    other_established_s: u32,
    /// Life of any other flow, not proven yet.
    other_pending_s: u32,
    /// Flags of `bpf_l4_csum_replace` for a checksum that covers IPv6 addresses, beyond the ones
    /// every kernel knows.
    checksum_v6_flags: u16,
    /// One: the kernel is told the family of the packet that comes out of a tunnel packet, by
    /// `BPF_F_ADJ_ROOM_DECAP_L3_*` of `bpf_skb_adjust_room`. Zero: it does not know those flags.
    decap_flags: u16,
    /// Secret that port search and tunnel entropy are permuted with.
    seed: u32,
    /// Events told in a second at most, of each drop reason on each CPU; zero: none.
    events_per_s: u32,
    /// One: there may be pods on netkit pairs, whose frames `from_pod` sees before they are
    /// received: `bpf_redirect_peer` does not work there. Zero: all pods are on veth pairs.
    netkit_pods: u32,
    /// This node's IPv4 gateway address, or none.
    gateway_v4: Addr,
    /// This node's IPv6 gateway address, or none.
    gateway_v6: Addr,
    /// ICMP errors that each end of the network gets at most, a second.
    answers_per_s: u32,
    /// Index of `dp_net`, the far side of the gateway pair.
    net_interface: u32,
    /// Ethernet address of the gateway.
    gateway_mac: Mac,
    /// One: every uplink passes frames of several segments on uncut, as a veth does.
    uplinks_pass_gso: u16,
    /// Established flows that one endpoint may have at most; zero: as many as there is room for.
    endpoint_established: u32,
    /// Flows that one endpoint may begin in a second without proving them, and as many again that
    /// others may begin to it; zero: any number.
    endpoint_begun_per_s: u32,
    /// One: a fragment that comes from an uplink ahead of its first one, for a pod's own address,
    /// is handed to this node's stack, which may put its packet together. Zero: it is dropped.
    fragments_to_stack: u32,
    /// Packets in fragments that each pod and each peer may begin and not complete in half a
    /// minute.
    fragments_per_end: u32,
    /// One: an established flow that policy denies when it is judged again goes on, under the
    /// verdict and the rule that it has, until it ends. Zero: it ends there and then.
    revoke_drains: u32,
    /// [`verdicts`]: of which judgements there are events.
    verdicts: u32,
    /// Events of judgements in a second at most, on each CPU.
    verdicts_per_s: u32,
    /// Zero.
    reserved: u32,
}
crate::abi!(Config, size = 152, align = 8);

/// Values of [`Config::verdicts`].
pub mod verdicts {
    /// There are no events of verdicts.
    pub const NONE: u32 = 0;
    /// There is one for each direction in which policy judged a flow.
    pub const JUDGED: u32 = 1;
    /// There is one also for each direction of a local endpoint that needs no rule.
    pub const ALL: u32 = 2;
}

/// Values of [`Config::tunnel`].
pub mod tunnel {
    /// No tunnel: pods of other nodes are routed by the underlay.
    pub const NATIVE: u32 = 0;
    /// GENEVE written and removed by the datapath itself.
    pub const DIRECT: u32 = 1;
}

impl Config {
    /// What a load has unless told otherwise; the interface, the gateway and the seed still to be
    /// filled in.
    ///
    /// Lifetimes: TCP as Cilium's defaults (RFC 5382, REQ-5 asks for at least 2 h 4 min of an
    /// established connection), UDP no shorter than RFC 4787, REQ-5 wants (two minutes).
    pub const DEFAULT: Self = Self {
        magic: super::MAGIC,
        abi_version: super::VERSION,
        host_interface: 0,
        tunnel: tunnel::DIRECT,
        tunnel_port: datapath_tunnel::geneve::UDP_PORT as u32,
        identity_from_vni: 1,
        tcp_loose: 1,
        nat_port_min: 1024,
        nat_port_max: 65535,
        tcp_established_s: 8000,
        tcp_pending_s: 60,
        tcp_closed_s: 10,
        other_established_s: 180,
        other_pending_s: 120,
        checksum_v6_flags: 0,
        decap_flags: 1,
        seed: 0,
        events_per_s: 100,
        netkit_pods: 0,
        gateway_v4: Addr::NONE,
        gateway_v6: Addr::NONE,
        answers_per_s: 100,
        net_interface: 0,
        gateway_mac: [0; 6],
        uplinks_pass_gso: 0,
        endpoint_established: 0,
        endpoint_begun_per_s: 0,
        fragments_to_stack: 0,
        fragments_per_end: 1024,
        revoke_drains: 0,
        verdicts: verdicts::JUDGED,
        verdicts_per_s: 1000,
        reserved: 0,
    };
}
