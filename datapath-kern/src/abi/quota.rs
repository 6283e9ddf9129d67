//! How much of the flow tables each endpoint has.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What one endpoint has of the flow tables, by its slot; [`Flow::charge`](super::flow::Flow::charge)
/// says which flows are its own.
///
/// Two CPUs that count at once may lose one, in either direction. The counts of a second are gone
/// with it; user space puts `established` right whenever it has been through the table.
///
/// ```text
///  0 established 4 | 4 promoted 4 | 8 second_s 4 | 12 begun 4 | 16 received 4
/// ```
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Quota {
    /// Flows in the established table, two entries each.
    pub established: u32,
    /// Flows that were ever entered there; wraps around. Tells user space how many came while it
    /// was counting.
    pub promoted: u32,
    /// The second that the following are of; on `CLOCK_MONOTONIC`.
    pub second_s: u32,
    /// Flows that the endpoint began in it, less those of them that were proven in it.
    pub begun: u32,
    /// Likewise those that others began to it.
    pub received: u32,
}
crate::abi!(Quota, size = 20, align = 4);

impl Quota {
    /// The unproven flows of the second `now_s`: those that others began to the endpoint, or its
    /// own.
    #[inline(always)]
    pub fn unproven(&mut self, now_s: u32, received: bool) -> &mut u32 {
        if self.second_s != now_s {
            self.second_s = now_s;
            self.begun = 0;
            self.received = 0;
        }
        if received {
            &mut self.received
        } else {
            &mut self.begun
        }
    }
}
