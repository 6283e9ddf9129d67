//! What each end of the network may still have of what there is little of.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::nexthop::CLAIMED_BASE;

/// Slots of the budgets: endpoints by slot, then peers by index, as the next hops have them.
pub const MAX_BUDGETS: u32 = CLAIMED_BASE;

/// What one end has used up: of its answers in a second, of its packets in fragments in a window.
/// Two CPUs that count at once may lose one.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Budget {
    /// The second; on `CLOCK_MONOTONIC`.
    pub second_s: u32,
    /// Answers given in it.
    pub spent: u32,
    /// The window: half minutes on `CLOCK_MONOTONIC`.
    pub window: u32,
    /// Packets of which a first fragment came in it and not yet all.
    pub open: u32,
}
crate::abi!(Budget, size = 16, align = 4);
