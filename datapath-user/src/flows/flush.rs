//! Flows removed by filter.

use serde::{Deserialize, Serialize};

use super::filter::FlowFilter;
use super::join::Joined;
use super::list::Scan;
use super::names::Names;
use super::removal::remove_due;
use super::table::{Tables, find, now_s};
use crate::error::Error;
use crate::maps::Maps;
use crate::tallies::Swept;

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

/// What was removed is told here a slice at a time, to be recorded.
pub(crate) type Record<'a> = &'a mut dyn FnMut(Swept) -> Result<(), Error>;

/// Removes the flows that fit, both halves; only counts them without `record`.
///
/// # Errors
///
/// [`Error::NoSuchEnd`], [`Error::Map`]; what was removed until then is.
pub(crate) fn flush(
    maps: Maps,
    names: &Names,
    filter: &FlowFilter,
    mut record: Option<Record<'_>>,
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
        if let Some(record) = &mut record {
            let mut swept = Swept::default();
            let outcome = due
                .iter()
                .try_for_each(|joined| remove(&mut scan.maps.tables, joined, &mut swept));
            report.removed += swept.entries();
            record(swept)?;
            outcome?;
        }
        due.clear();
    }
    report.examined = scan.examined;
    Ok(report)
}

/// Removes what is there of a flow.
fn remove(tables: &mut Tables, joined: &Joined, swept: &mut Swept) -> Result<(), Error> {
    for key in joined.keys() {
        if let Some((which, half)) = find(tables, &key, joined.id.pair) {
            let removal = remove_due(tables, &key, &half, |_| true)?;
            swept.add(which, removal.gone());
            break;
        }
    }
    Ok(())
}
