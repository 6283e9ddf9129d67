//! What happens to the entries of the flow tables, counted by reason.

use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::{MapError, PerCpuValues};
use datapath_kern::abi::tally::Tally;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::flows::{self, Which};
use crate::maps::Maps;

/// What has happened to flows since the datapath was built. All are counts that only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tallies {
    /// Entries of the table of established flows, two per flow.
    pub established: TableTally,
    /// Entries of the table of flows not proven yet, two per flow.
    pub pending: TableTally,
    /// Flows not begun: their endpoint had its share of the established table.
    pub quota_established: u64,
    /// Flows not begun: their endpoint had begun its share of unproven ones in that second.
    pub quota_pending: u64,
    /// Promotions put off, once per packet: the endpoint had its share of the established table.
    pub quota_promotion: u64,
    /// Halves that packets found without their partner, which the table had let go of, and removed.
    pub lone_halves: u64,
    /// Flows whose life was cut short, for both sides closed them.
    pub closed: u64,
    /// Flows whose life was cut short, for one side reset them, as it seemed.
    pub reset: u64,
    /// Flows that had their full life again after that, for the side went on: forged resets.
    pub reset_revoked: u64,
    /// Flows that made room for a new one between the same ports before their time was up.
    pub port_reused: u64,
    /// TCP flows that were picked up in the middle.
    pub picked_up: u64,
}

/// What has happened to the entries of one table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TableTally {
    /// Entries made.
    pub inserted: u64,
    /// Entries that packets took out: promoted, closed, replaced.
    pub removed: u64,
    /// Entries that this process or an earlier one took out: their time was up, or an end was gone.
    pub swept: u64,
    /// Entries that the kernel let go of to make room for others; always zero for established ones.
    /// Worked out from the others and from what is there now, so it may be off by what comes and
    /// goes meanwhile.
    pub evicted: u64,
    /// Entries refused: the table was full (`E2BIG`, `ENOSPC`).
    pub refused_full: u64,
    /// Entries refused: no memory, or none that the table could let go of (`ENOMEM`).
    pub refused_no_memory: u64,
    /// Entries refused: their bucket was being changed (`EBUSY`).
    pub refused_busy: u64,
    /// Entries refused: anything else.
    pub refused_other: u64,
}

impl TableTally {
    /// Entries refused, for each reason with the word for it in every output.
    #[must_use]
    pub const fn refused(&self) -> [(&'static str, u64); 4] {
        [
            ("full", self.refused_full),
            ("no-memory", self.refused_no_memory),
            ("busy", self.refused_busy),
            ("other", self.refused_other),
        ]
    }
}

/// Reads all tallies, and counts what the pending table has. `evicted` is the most evictions that
/// were worked out yet: a count does not go back.
///
/// # Errors
///
/// [`Error::Map`].
pub(crate) fn read(maps: &Maps, evicted: &AtomicU64) -> Result<Tallies, Error> {
    let count = |tally| sum(maps, tally);
    let established = TableTally {
        inserted: count(Tally::EstablishedInserted)?,
        removed: count(Tally::EstablishedRemoved)?,
        swept: count(Tally::EstablishedSwept)?,
        evicted: 0,
        refused_full: count(Tally::EstablishedFull)?,
        refused_no_memory: count(Tally::EstablishedNoMemory)?,
        refused_busy: count(Tally::EstablishedBusy)?,
        refused_other: count(Tally::EstablishedOther)?,
    };
    let mut present = 0;
    for which in [Which::Pending, Which::FormerPending] {
        present += flows::count(&maps.tables, which)?;
    }
    let inserted = count(Tally::PendingInserted)?;
    let removed = count(Tally::PendingRemoved)?;
    let swept = count(Tally::PendingSwept)?;
    let present = u64::try_from(present).unwrap_or(u64::MAX);
    let gone = inserted.saturating_sub(removed + swept + present);
    let pending = TableTally {
        inserted,
        removed,
        swept,
        evicted: gone.max(evicted.fetch_max(gone, Ordering::Relaxed)),
        refused_full: count(Tally::PendingFull)?,
        refused_no_memory: count(Tally::PendingNoMemory)?,
        refused_busy: count(Tally::PendingBusy)?,
        refused_other: count(Tally::PendingOther)?,
    };
    Ok(Tallies {
        established,
        pending,
        quota_established: count(Tally::QuotaEstablished)?,
        quota_pending: count(Tally::QuotaPending)?,
        quota_promotion: count(Tally::QuotaPromotion)?,
        lone_halves: count(Tally::LoneHalves)?,
        closed: count(Tally::Closed)?,
        reset: count(Tally::Reset)?,
        reset_revoked: count(Tally::ResetRevoked)?,
        port_reused: count(Tally::PortReused)?,
        picked_up: count(Tally::PickedUp)?,
    })
}

/// Entries that user space took out of the tables.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Swept {
    established: usize,
    pending: usize,
}

impl Swept {
    /// Counts entries of one of the tables; of a flow that was being promoted, all with the table
    /// that it was found in.
    pub(crate) const fn add(&mut self, which: Which, entries: usize) {
        if matches!(which.successor(), Which::Pending) {
            self.pending += entries;
        } else {
            self.established += entries;
        }
    }

    /// How many entries they are.
    pub(crate) const fn entries(&self) -> usize {
        self.established + self.pending
    }

    /// Adds them to the tallies that only user space writes. To be called by whoever removes
    /// entries, once it is done: what is missing here is taken for evicted.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub(crate) fn record(self, maps: &mut Maps) -> Result<(), Error> {
        for (tally, count) in [
            (Tally::EstablishedSwept, self.established),
            (Tally::PendingSwept, self.pending),
        ] {
            if count != 0 {
                add(maps, tally, count).map_err(Error::map("write to", "tally"))?;
            }
        }
        Ok(())
    }
}

/// Adds to a tally of user space's own: the packet path does not write it.
fn add(maps: &mut Maps, tally: Tally, count: usize) -> Result<(), MapError> {
    let mut cells: Vec<u64> = maps.tally.get(&tally.index(), 0)?.to_vec();
    if let Some(cell) = cells.first_mut() {
        *cell += u64::try_from(count).unwrap_or(u64::MAX);
    }
    let cells = PerCpuValues::try_from(cells).map_err(MapError::IoError)?;
    maps.tally.set(tally.index(), cells, 0)
}

/// The tally of all CPUs.
fn sum(maps: &Maps, tally: Tally) -> Result<u64, Error> {
    let cells = maps.tally.get(&tally.index(), 0);
    Ok(cells.map_err(Error::map("read", "tally"))?.iter().sum())
}
