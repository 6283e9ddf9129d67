//! Who is behind an address: longest-prefix match over both families.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What the longest matching prefix of an address says.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct IpEntry {
    /// Security identity of the address.
    pub identity: u32,
    /// Endpoint slot ([`kind::ENDPOINT`]) or peer index ([`kind::PEER_POD`], [`kind::PEER_NODE`]).
    pub index: u16,
    /// One of [`kind`].
    pub kind: u8,
    /// Bits of [`flags`].
    pub flags: u8,
}
crate::abi!(IpEntry, size = 8, align = 4);

/// Values of [`IpEntry::kind`].
pub mod kind {
    /// Outside the cluster; what a missing entry means too.
    pub const WORLD: u8 = 0;
    /// A pod of this node.
    pub const ENDPOINT: u8 = 1;
    /// This node: any of its own addresses.
    pub const HOST: u8 = 2;
    /// A pod of a peer, or the peer's gateway address: reached through the tunnel.
    pub const PEER_POD: u8 = 3;
    /// A peer's own address: reached as any host of the underlay.
    pub const PEER_NODE: u8 = 4;
    /// This node's pod range, where no pod has the address.
    pub const VACANT: u8 = 5;
}

/// Bits of [`IpEntry::flags`].
pub mod flags {
    /// Packets to this prefix keep the pod's source address.
    pub const NO_MASQUERADE: u8 = 0x01;
    /// One of a peer's ranges of pods. For user space, which finds a peer's ranges again by it.
    pub const RANGE: u8 = 0x02;
    /// A pod of a peer by its own identity. For user space, likewise.
    pub const POD: u8 = 0x04;
}
