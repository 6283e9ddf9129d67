//! Counters of forwarded and dropped packets, and of what policy said.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One cell of the metrics array, per CPU.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Counter {
    /// Frames; of rulings, flows judged, each by a frame.
    pub packets: u64,
    /// Bytes of those frames, link header included.
    pub bytes: u64,
}
crate::abi!(Counter, size = 16, align = 8);

/// Outcomes per direction in the metrics array: drops below [`FORWARDS`], forwards from it on,
/// rulings of policy from [`RULINGS`] on.
pub const OUTCOMES: u32 = 128;

/// First outcome that is a ruling of policy. What is counted there is a packet that is counted as
/// forwarded or dropped besides, or as nothing where it goes on by itself.
pub const RULINGS: u32 = 112;

/// First outcome that is a forward rather than a drop.
pub const FORWARDS: u32 = 96;

/// Cells of the metrics array.
pub const MAX_METRICS: u32 = 2 * OUTCOMES;

/// Seen from the pods of this node: which way a packet went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Direction {
    /// Into a pod, or towards this node.
    #[default]
    Ingress = 0,
    /// Out of a pod, or off this node.
    Egress = 1,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    /// The word for it in every output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// Cell of the metrics array for an outcome in a direction.
#[inline(always)]
#[must_use]
pub const fn index(direction: Direction, outcome: u32) -> u32 {
    direction as u32 * OUTCOMES + outcome
}
