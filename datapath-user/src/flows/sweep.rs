//! Removing flows, both halves at once.

use datapath_kern::abi::flow::{Flow, FlowKey};
use serde::{Deserialize, Serialize};

use super::removal::{Removal, remove_due, remove_halves};
use super::table::{entries, find, now_s, table_of};
use crate::error::Error;
use crate::maps::Maps;
use crate::quota::Recount;
use crate::tallies::Swept;

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweepReport {
    /// Entries looked at.
    pub examined: usize,
    /// Entries removed: both halves of flows whose time was up.
    pub removed: usize,
    /// Entries that came to life while they were taken out, and were put back.
    #[serde(default)]
    pub put_back: usize,
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
    let mut removal = Removal::default();
    let mut swept = Swept::default();
    let mut recount = Recount::begin(maps)?;
    let now_s = now_s();
    for of_pending in [false, true] {
        let (table, name) = table_of(maps, of_pending);
        for (key, flow) in entries(table, name)? {
            report.examined += 1;
            let mut stays = true;
            if due(&flow, now_s) {
                let done = remove_due(maps, &key, &flow, |half| due(half, now_s))?;
                swept.add(of_pending, done.removed + done.displaced);
                stays = done.removed == 0 && find(maps, &key, flow.pair).is_some();
                removal += done;
            }
            if stays && !of_pending {
                recount.count(&flow);
            }
        }
    }
    swept.record(maps)?;
    recount.finish(maps)?;
    report.removed = removal.removed;
    report.put_back = removal.put_back;
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
    let mut swept = Swept::default();
    for of_pending in [false, true] {
        let (table, name) = table_of(maps, of_pending);
        for (key, flow) in entries(table, name)? {
            if due(&key, &flow) {
                let partner_key = flow.partner_key(&key);
                let halves = [key, partner_key].map(|key| {
                    let (of_pending, _) = find(maps, &key, flow.pair)?;
                    Some((of_pending, key))
                });
                let halves = remove_halves(maps, halves)?;
                swept.add(of_pending, halves);
                removed += halves;
            }
        }
    }
    swept.record(maps)?;
    Ok(removed)
}
