//! What is alive in the flow tables, counted while they are swept.

use super::table::{Tables, Which, capacity};

/// Entries of each table that a pass found alive.
///
/// The tables change while they are counted: a flow that came or went meanwhile may be counted or
/// not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Census([usize; Which::ALL.len()]);

impl Census {
    /// Counts an entry that is alive.
    pub(super) fn count(&mut self, which: Which) {
        if let Some(entries) = self.0.get_mut(which as usize) {
            *entries += 1;
        }
    }

    /// Entries of a table.
    pub(crate) fn entries(&self, which: Which) -> usize {
        self.0.get(which as usize).copied().unwrap_or(0)
    }

    /// How full the fullest table is.
    pub(super) fn fullest_percent(&self, tables: &Tables) -> usize {
        [Which::Flows, Which::Pending]
            .into_iter()
            .filter_map(|which| {
                let max = capacity(tables.get(which)?).ok()? as usize;
                (self.entries(which) * 100).checked_div(max)
            })
            .max()
            .unwrap_or(0)
    }
}
