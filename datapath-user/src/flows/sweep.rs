//! Going through all flows at once, to remove some of them.

use datapath_kern::abi::flow::{Flow, FlowKey};

use super::removal::{Removal, remove_due, remove_halves};
use super::table::{Which, entries, find};
use crate::error::Error;
use crate::maps::Maps;
use crate::quota::Recount;
use crate::tallies::Swept;

/// Removes flows both halves of which are `due`.
///
/// # Errors
///
/// [`Error::Map`].
pub(crate) fn sweep(maps: &mut Maps, due: impl Fn(&Flow) -> bool) -> Result<(), Error> {
    let mut removal = Removal::default();
    let mut swept = Swept::default();
    let mut recount = Recount::begin(maps)?;
    for which in Which::ALL {
        for (key, flow) in entries(&maps.tables, which)? {
            let mut stays = true;
            if due(&flow) {
                let done = remove_due(&mut maps.tables, &key, &flow, &due)?;
                swept.add(which, done.gone());
                stays = done.removed == 0 && find(&maps.tables, &key, flow.pair).is_some();
                removal += done;
            }
            if stays && which.successor() == Which::Flows {
                recount.count(&flow);
            }
        }
    }
    swept.record(maps)?;
    recount.finish(maps)?;
    tracing::debug!(?removal, "flows removed");
    Ok(())
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
    for which in Which::ALL {
        for (key, flow) in entries(&maps.tables, which)? {
            if due(&key, &flow) {
                let partner_key = flow.partner_key(&key);
                let halves = [key, partner_key].map(|key| {
                    let (which, _) = find(&maps.tables, &key, flow.pair)?;
                    Some((which, key))
                });
                let halves = remove_halves(&mut maps.tables, halves)?;
                swept.add(which, halves);
                removed += halves;
            }
        }
    }
    swept.record(maps)?;
    Ok(removed)
}
