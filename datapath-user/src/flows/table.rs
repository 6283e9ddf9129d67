//! The two flow tables: all entries of one, and one half of a flow wherever it is.

use datapath_kern::abi::flow::{Flow, FlowKey};
use nix::time::{ClockId, clock_gettime};

use crate::batch::Cursor;
use crate::error::Error;
use crate::maps::{FlowTable, Maps};

/// Seconds on the clock that entries expire by.
pub(crate) fn now_s() -> u32 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| time.tv_sec());
    u32::try_from(now).unwrap_or(u32::MAX)
}

/// All entries of a table. One that is entered or removed meanwhile may be missed.
pub(crate) fn entries(
    table: &FlowTable,
    name: &'static str,
) -> Result<Vec<(FlowKey, Flow)>, Error> {
    let (mut cursor, mut entries) = (Cursor::new(), Vec::new());
    while cursor
        .read(table, &mut entries)
        .map_err(Error::map("read", name))?
    {}
    Ok(entries)
}

/// One of the tables, with its name.
pub(super) fn table_of(maps: &mut Maps, pending: bool) -> (&mut FlowTable, &'static str) {
    if pending {
        (&mut maps.pending, "pending")
    } else {
        (&mut maps.flows, "flows")
    }
}

/// One half of an incarnation of a flow, and whether it is a pending one: while a flow is being
/// promoted its halves are in different tables.
pub(super) fn find(maps: &Maps, key: &FlowKey, pair: u32) -> Option<(bool, Flow)> {
    [(&maps.flows, false), (&maps.pending, true)]
        .into_iter()
        .find_map(|(table, pending)| {
            let half = table.get(key, 0).ok()?;
            (half.pair == pair).then_some((pending, half))
        })
}
