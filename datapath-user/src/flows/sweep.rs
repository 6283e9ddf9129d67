//! Removing flows, both halves at once.

use datapath_kern::abi::flow::{Flow, FlowKey};
use serde::{Deserialize, Serialize};

use super::table::{entries, find, now_s, table_of};
use crate::error::Error;
use crate::maps::{Maps, gone};

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweepReport {
    /// Entries looked at.
    pub examined: usize,
    /// Entries removed: both halves of flows whose time was up.
    pub removed: usize,
}

/// Removes flows both halves of which are `due`, given the second that it is.
///
/// # Errors
///
/// [`Error::Map`].
pub(crate) fn sweep(
    maps: &mut Maps,
    due: impl Fn(&Flow, u32) -> bool,
) -> Result<SweepReport, Error> {
    let mut report = SweepReport::default();
    let now_s = now_s();
    for of_pending in [false, true] {
        let (table, name) = table_of(maps, of_pending);
        for (key, flow) in entries(table, name)? {
            report.examined += 1;
            if !due(&flow, now_s) {
                continue;
            }
            // Looked at again just before: the packets that came meanwhile count.
            let Some((_, half)) = find(maps, &key, flow.pair) else {
                continue;
            };
            let partner_key = flow.partner_key(&key);
            let partner = find(maps, &partner_key, flow.pair);
            if !due(&half, now_s) || partner.is_some_and(|(_, partner)| !due(&partner, now_s)) {
                continue;
            }
            let partner = partner.map(|(of_pending, _)| (of_pending, partner_key));
            report.removed += remove_halves(maps, [Some((of_pending, key)), partner])?;
        }
    }
    Ok(report)
}

/// Removes flows one half of which is `due`; returns how many entries that were.
///
/// # Errors
///
/// [`Error::Map`].
pub(crate) fn remove(
    maps: &mut Maps,
    due: impl Fn(&FlowKey, &Flow) -> bool,
) -> Result<usize, Error> {
    let mut removed = 0;
    for of_pending in [false, true] {
        let (table, name) = table_of(maps, of_pending);
        for (key, flow) in entries(table, name)? {
            if due(&key, &flow) {
                let partner_key = flow.partner_key(&key);
                let halves = [key, partner_key].map(|key| {
                    let (of_pending, _) = find(maps, &key, flow.pair)?;
                    Some((of_pending, key))
                });
                removed += remove_halves(maps, halves)?;
            }
        }
    }
    Ok(removed)
}

/// Removes the halves of a flow that are there, each given by its table (true: pending) and key.
fn remove_halves(maps: &mut Maps, halves: [Option<(bool, FlowKey)>; 2]) -> Result<usize, Error> {
    let mut removed = 0;
    for (of_pending, key) in halves.into_iter().flatten() {
        let (table, name) = table_of(maps, of_pending);
        gone(table.remove(&key)).map_err(Error::map("remove from", name))?;
        removed += 1;
    }
    Ok(removed)
}
