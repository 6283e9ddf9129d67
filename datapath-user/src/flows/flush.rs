//! Flows removed by filter.

use serde::{Deserialize, Serialize};

use super::filter::FlowFilter;
use super::join::Joined;
use super::list::Scan;
use super::names::Names;
use super::removal::{Removal, remove_due};
use super::table::{find, now_s};
use crate::error::Error;
use crate::maps::Maps;

/// What a flush did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlushReport {
    /// Entries looked at.
    pub examined: usize,
    /// Flows that fit.
    pub flows: usize,
    /// Entries removed: both halves of those, where they had not gone by themselves.
    pub removed: usize,
}

/// Removes the flows that fit, both halves; or only counts them, where `dry`.
///
/// # Errors
///
/// [`Error::NoSuchEnd`], [`Error::Map`]; what was removed until then is.
pub(crate) fn flush(
    maps: Maps,
    names: &Names,
    filter: &FlowFilter,
    dry: bool,
) -> Result<FlushReport, Error> {
    filter.check(names)?;
    let mut report = FlushReport::default();
    let now_s = now_s();
    let mut scan = Scan::new(maps);
    let mut due = Vec::<Joined>::new();
    let mut more = true;
    while more {
        more = scan.read(
            &mut |joined| filter.takes_ends(&joined.view(names, now_s)),
            &mut |joined| {
                if filter.takes_condition(&joined.view(names, now_s)) {
                    due.push(*joined);
                }
            },
        )?;
        report.flows += due.len();
        for joined in due.drain(..) {
            if !dry {
                report.removed += remove(&mut scan.maps, &joined)?.removed;
            }
        }
    }
    report.examined = scan.examined;
    Ok(report)
}

/// Removes what is there of a flow.
fn remove(maps: &mut Maps, joined: &Joined) -> Result<Removal, Error> {
    for key in joined.keys() {
        if let Some((_, half)) = find(maps, &key, joined.id.pair) {
            return remove_due(maps, &key, &half, |_| true);
        }
    }
    Ok(Removal::default())
}
