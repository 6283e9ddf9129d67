//! Peers and uplinks: the other nodes, and this node's ways to them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Mac;
use super::addr::Addr;

/// Slots of the peer array, index 0 (the world's generation) included.
pub const MAX_PEERS: u32 = 4096;

/// Another node, as the tunnel sees it. Index 0 only carries the generation of the world.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Peer {
    /// Underlay address of the peer.
    pub address: Addr,
    /// Our own underlay address towards it.
    pub local: Addr,
    /// Changes with anything that flows to or from this peer were judged under; never repeats.
    pub generation: u32,
    /// Uplink that the peer's packets must arrive on.
    pub interface: u32,
    /// Ethernet destination of the inner frame.
    pub mac: Mac,
    /// Zero.
    pub reserved: [u8; 2],
}
crate::abi!(Peer, size = 48, align = 8);

/// An interface of this node that leads off the node, keyed by its index.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Uplink {
    /// IPv4 address that pods are masqueraded behind; none: they are not;
    /// [`Uplink::NO_ADDRESS`]: they should be.
    pub masquerade_v4: Addr,
    /// IPv6 address that pods are masqueraded behind, likewise.
    pub masquerade_v6: Addr,
}
crate::abi!(Uplink, size = 32, align = 8);

impl Uplink {
    /// In the place of an address: pods are to be masqueraded, but for now the uplink has none of
    /// the family. Their packets do not leave under their own addresses instead.
    pub const NO_ADDRESS: Addr = Addr::from_v4_bytes([0; 4]);

    /// What pods are masqueraded behind when they send to a destination of the family.
    #[inline(always)]
    #[must_use]
    pub const fn masquerade(&self, v4: bool) -> Addr {
        if v4 {
            self.masquerade_v4
        } else {
            self.masquerade_v6
        }
    }
}
