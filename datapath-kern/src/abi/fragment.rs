//! What is remembered of a packet that came in fragments.

use zerocopy::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::addr::Addr;

/// Names a packet that was cut, as whoever puts it together again does: RFC 791, section 3.2; RFC
/// 8200, section 4.5.
///
/// In the table of identifications it names one of a packet that leaves masqueraded: the source is
/// the address that it leaves under, hook and interface are zero.
///
/// ```text
///  0 source 16 | 16 destination 16 | 32 id 4 | 36 interface 4 | 40 protocol 1 | 41 hook 1 | 42 zero 6
/// ```
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct FragmentKey {
    /// Source address.
    pub source: Addr,
    /// Destination address.
    pub destination: Addr,
    /// Identification, as it is on the wire; of IPv4 in the first two bytes.
    pub id: [u8; 4],
    /// Interface of the pod that sent it, zero where that is no pod: what a pod sends under
    /// another's address is another packet.
    pub interface: u32,
    /// IP protocol number; zero for IPv6, which puts fragments together whatever they say of it.
    pub protocol: u8,
    /// Number of the hook: the stack may bring the same fragments by another one.
    pub hook: u8,
    /// Zero.
    pub reserved: [u8; 6],
}
crate::abi!(FragmentKey, size = 48, align = 8);

/// Packets in fragments that are remembered unless told otherwise, and identifications of
/// masqueraded ones.
pub const MAX_FRAGMENTS: u32 = 8192;

/// Pieces without gaps that are kept apart: one where fragments come in order, one more for each
/// gap.
pub const RANGES: usize = 6;

/// What is known of a packet that comes in fragments. Two CPUs that have fragments of one packet at
/// once may miss each other's.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Fragment {
    /// Source port or echo identifier.
    pub source_port: U16,
    /// Destination port or echo identifier.
    pub destination_port: U16,
    /// Of no use once `now >= expires_s`; seconds on `CLOCK_MONOTONIC`.
    pub expires_s: u32,
    /// Identification that it leaves with where it is masqueraded; the packet's own until then.
    pub id: [u8; 4],
    /// Length of what is cut, bytes, once the last fragment told; zero until then.
    pub length_bytes: u16,
    /// IP protocol number that the first fragment says.
    pub protocol: u8,
    /// One of [`state`].
    pub state: u8,
    /// What was there already, in no order; those that touch are one.
    pub ranges: [Range; RANGES],
}
crate::abi!(Fragment, size = 40, align = 4);

/// A part of a packet, in units of eight bytes; empty where both are zero.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Range {
    /// Where it begins.
    pub start: u16,
    /// Where what follows it begins.
    pub end: u16,
}
crate::abi!(Range, size = 4, align = 2);

/// Values of [`Fragment::state`].
pub mod state {
    /// Fragments are expected.
    pub const OPEN: u8 = 0;
    /// All were there: the identification is free for another packet.
    pub const COMPLETE: u8 = 1;
    /// Fragments overlapped: no more of them goes on.
    pub const CONDEMNED: u8 = 2;
    /// Came without its first one: this node's stack has it.
    pub const OF_STACK: u8 = 3;
}
