//! What is remembered of port searches that found nothing.

use zerocopy::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::addr::Addr;

/// Remotes whose searches are remembered; the least recently used is forgotten.
pub const MAX_SEARCHES: u32 = 4096;

/// Ports that one word of the excluded ports stands for.
pub const PORTS_PER_WORD: u32 = 64;

/// Words of the excluded ports: bit `port % 64` of word `port / 64`.
pub const EXCLUDED_WORDS: u32 = 0x1_0000 / PORTS_PER_WORD;

/// Where the search for a port to one remote goes on, and what it has seen in a row.
///
/// Kept under the tuple that answers come with, its destination port zero: one for each protocol,
/// remote and masquerade address. Two CPUs that search at once may lose what one of them has seen.
///
/// ```text
///  0 open_at 4 | 4 reserve_at 4 | 8 open_tried 4 | 12 reserve_tried 4 | 16 began_s 4
/// ```
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct PortSearch {
    /// Next port to try of the open part, from its beginning.
    pub open_at: u32,
    /// Next port to try of the reserve, likewise.
    pub reserve_at: u32,
    /// Ports of the open part that were tried in a row and not free.
    pub open_tried: u32,
    /// Ports of the reserve likewise.
    pub reserve_tried: u32,
    /// When these were first counted; seconds on `CLOCK_MONOTONIC`.
    pub began_s: u32,
}
crate::abi!(PortSearch, size = 20, align = 4);

/// Slots of the refusals: each remote has one, by a hash, and the last one has the slot.
pub const MAX_REFUSALS: u32 = 1024;

/// A remote to which new flows are refused before they are routed.
///
/// ```text
///  0 remote 16 | 16 until_s 4 | 20 turns 4 | 24 end 2 | 26 port 2 | 28 protocol 1 | 29 reason 1
/// 30 zero 2
/// ```
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Refusal {
    /// Address.
    pub remote: Addr,
    /// Of no use once `now >= until_s`; seconds on `CLOCK_MONOTONIC`.
    pub until_s: u32,
    /// Packets that came since.
    pub turns: u32,
    /// The endpoint whose flows are refused, as [`End`](super::flow::End); zero: everybody's.
    pub end: u16,
    /// Port, network order.
    pub port: U16,
    /// IP protocol number.
    pub protocol: u8,
    /// Code of the `DropReason`.
    pub reason: u8,
    /// Zero.
    pub reserved: [u8; 2],
}
crate::abi!(Refusal, size = 32, align = 8);
