//! What happens to the entries of the flow tables, counted.

macro_rules! tallies {
    ($($(#[$doc:meta])* $variant:ident = $code:literal,)*) => {
        /// A cell of the tally array, per CPU: a count that only grows.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum Tally {
            $($(#[$doc])* $variant = $code,)*
        }

        impl Tally {
            /// All of them, in order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
        }
    };
}

tallies! {
    /// Entries made in the pending table.
    PendingInserted = 0,
    /// Entries that packets took out of it: promoted, closed, replaced.
    PendingRemoved = 1,
    /// Entries that user space took out of it. Written by user space only.
    PendingSwept = 2,
    /// Entries made in the established table.
    EstablishedInserted = 3,
    /// Entries that packets took out of it.
    EstablishedRemoved = 4,
    /// Entries that user space took out of it. Written by user space only.
    EstablishedSwept = 5,
    /// Entries that the pending table refused: it was full (`E2BIG`, `ENOSPC`).
    PendingFull = 6,
    /// There was no memory for them, or no entry that it could let go of (`ENOMEM`).
    PendingNoMemory = 7,
    /// The bucket was being changed (`EBUSY`).
    PendingBusy = 8,
    /// Anything else.
    PendingOther = 9,
    /// Entries that the established table refused, each of them a promotion: it was full.
    EstablishedFull = 10,
    /// There was no memory for them.
    EstablishedNoMemory = 11,
    /// The bucket was being changed.
    EstablishedBusy = 12,
    /// Anything else.
    EstablishedOther = 13,
    /// Flows not begun: their endpoint had its share of the established table.
    QuotaEstablished = 14,
    /// Flows not begun: their endpoint had begun its share of unproven ones in this second.
    QuotaPending = 15,
    /// Promotions put off: the endpoint had its share of the established table.
    QuotaPromotion = 16,
    /// Halves found without their partner, which the table had let go of, and removed.
    LoneHalves = 17,
    /// Flows whose life was cut short: both sides closed them.
    Closed = 18,
    /// Flows whose life was cut short: one side reset them, as it seemed.
    Reset = 19,
    /// Flows that were alive again after that: the side went on.
    ResetRevoked = 20,
    /// Flows that made room for a new one between the same ports before their time was up.
    PortReused = 21,
    /// TCP flows that were picked up in the middle.
    PickedUp = 22,
}

/// Cells of the tally array.
pub const MAX_TALLIES: u32 = 32;

impl Tally {
    /// Its cell.
    #[inline(always)]
    #[must_use]
    pub const fn index(self) -> u32 {
        self as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tally_has_a_cell_of_its_own() {
        let cells: std::vec::Vec<_> = Tally::ALL.iter().map(|tally| tally.index()).collect();
        assert!(cells.is_sorted_by(|a, b| a < b));
        assert!(cells.iter().all(|&cell| cell < MAX_TALLIES));
    }
}
