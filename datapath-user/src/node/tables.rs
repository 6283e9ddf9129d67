//! How full the flow tables are, and were.

use super::Node;
use crate::error::Error;
use crate::flows::{self, Census, Counted, SweepSlice, Sweeper, Which, capacity, memory_bytes};
use crate::quota::Recount;
use crate::status::TableUse;

/// Most entries that were seen in each table.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HighWater {
    flows: usize,
    pending: usize,
}

impl HighWater {
    fn of(&mut self, which: Which) -> &mut usize {
        match which {
            Which::Flows | Which::FormerFlows => &mut self.flows,
            Which::Pending | Which::FormerPending => &mut self.pending,
        }
    }
}

impl Node {
    /// Sweeps a slice, and has what it removed and counted written where packets and people find it.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub(crate) fn sweep_slice(&mut self, sweeper: &mut Sweeper) -> Result<SweepSlice, Error> {
        if sweeper.is_at_start() {
            sweeper.count_for(Recount::begin(&self.maps)?);
        }
        let slice = sweeper.slice(&mut self.maps.tables);
        // Also what was removed before an error: it would be taken for evicted.
        sweeper.take_swept().record(&mut self.maps)?;
        if let Some(Counted { census, recount }) = sweeper.take_counted() {
            self.take_census(&census);
            if let Some(recount) = recount {
                recount.finish(&mut self.maps)?;
            }
        }
        slice
    }

    /// Takes what a pass over the flow tables found in each.
    fn take_census(&mut self, census: &Census) {
        for (which, former) in [
            (Which::Flows, Which::FormerFlows),
            (Which::Pending, Which::FormerPending),
        ] {
            let found = census.entries(which) + census.entries(former);
            let seen = self.high_water.of(which);
            *seen = found.max(*seen);
        }
    }

    /// How full a table is, with the one that it is filled from.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub(crate) fn table_use(&mut self, which: Which, former: Which) -> Result<TableUse, Error> {
        let moving = flows::count(&self.maps.tables, former)?;
        let used = flows::count(&self.maps.tables, which)? + moving;
        let seen = self.high_water.of(which);
        *seen = used.max(*seen);
        let high_water = narrow(*seen);
        let tables = [which, former];
        let tables = tables
            .into_iter()
            .filter_map(|which| self.maps.tables.get(which));
        let memory_bytes = tables.filter_map(memory_bytes).sum();
        let max = match self.maps.tables.get(which) {
            Some(table) => capacity(table).map_err(Error::map("look at", which.map()))?,
            None => 0,
        };
        Ok(TableUse {
            used: narrow(used),
            max,
            high_water,
            memory_bytes,
            moving: narrow(moving),
        })
    }
}

fn narrow(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
