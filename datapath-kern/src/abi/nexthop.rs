//! Next hops: interface and Ethernet addresses that flows point into, so that one store repairs
//! every flow.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Mac;
use super::addr::Addr;
use super::endpoint::MAX_ENDPOINTS;
use super::tunnel::MAX_PEERS;

/// First slot of the peers' next hops; below it every endpoint has the slot of its own number.
pub const PEERS_BASE: u32 = MAX_ENDPOINTS;
/// First slot that the datapath claims by itself, for gateways and neighbours of the underlay.
pub const CLAIMED_BASE: u32 = PEERS_BASE + MAX_PEERS;
/// Number of those; a power of two.
pub const CLAIMED: u32 = 8192;
/// Slots altogether.
pub const MAX_NEXT_HOPS: u32 = CLAIMED_BASE + CLAIMED;

/// Where a frame leaves, and with which Ethernet addresses.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct NextHop {
    /// The neighbour: gateway, or destination on the link.
    pub gateway: Addr,
    /// Interface to leave by; for a pod the host's side of its pair.
    pub interface: u32,
    /// When the kernel was last asked; seconds on `CLOCK_MONOTONIC`.
    pub refreshed_s: u32,
    /// Changes whenever flows that point here must look for another hop.
    pub tag: u16,
    /// One of [`kind`].
    pub kind: u8,
    /// Zero.
    pub reserved: u8,
    /// Destination of the frame.
    pub destination_mac: Mac,
    /// Source of the frame.
    pub source_mac: Mac,
    /// Longest packet that the way takes, bytes, as the routing table says, or the interface while
    /// the neighbour is not known; zero: not known.
    pub mtu_bytes: u16,
    /// Longest packet that gets to the peer, bytes, as a router on the way said.
    pub path_mtu_bytes: u16,
    /// Until when that is believed; seconds on `CLOCK_MONOTONIC`.
    pub path_mtu_until_s: u32,
}
crate::abi!(NextHop, size = 48, align = 8);

/// Values of [`NextHop::kind`].
pub mod kind {
    /// A free slot.
    pub const NONE: u8 = 0;
    /// A local pod; user space wrote all of it.
    pub const POD: u8 = 1;
    /// A neighbour of an uplink, its Ethernet address known.
    pub const RESOLVED: u8 = 2;
    /// A neighbour of an uplink that the kernel has yet to resolve.
    pub const UNRESOLVED: u8 = 3;
}

/// Who claimed one of the slots from [`CLAIMED_BASE`] on: makes the claim atomic.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Claim {
    /// The neighbour.
    pub gateway: Addr,
    /// The interface it is behind.
    pub interface: u32,
    /// Zero.
    pub reserved: u32,
}
crate::abi!(Claim, size = 24, align = 8);
