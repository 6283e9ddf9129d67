//! Taking a flow out of the tables while packets go on.
//!
//! Between the last look at an entry and its removal a packet may bring it to life, or begin another
//! flow under its key. So an entry is seen as it is taken out (`BPF_MAP_LOOKUP_AND_DELETE_ELEM`),
//! and put back where it is not the one that was meant.

use std::ops::AddAssign;

use datapath_kern::abi::flow::{Flow, FlowKey};

use super::table::{find, table_of};
use crate::batch::{Taken, take};
use crate::error::Error;
use crate::maps::{FlowTable, Maps, gone};

/// `BPF_NOEXIST` (`include/uapi/linux/bpf.h`).
pub(super) const NO_EXIST: u64 = 1;

/// What removing flows came to, entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Removal {
    /// Removed.
    pub(super) removed: usize,
    /// Taken out, found alive and put back.
    pub(super) put_back: usize,
    /// Taken out, found alive, and in the way of a still younger flow by then: removed.
    pub(super) displaced: usize,
}

impl AddAssign for Removal {
    fn add_assign(&mut self, other: Self) {
        self.removed += other.removed;
        self.put_back += other.put_back;
        self.displaced += other.displaced;
    }
}

/// Removes both halves of an incarnation of a flow, given one of them as it was read some time ago,
/// if they are still there and `due`. Where one is not, both stay.
///
/// # Errors
///
/// [`Error::Map`].
pub(super) fn remove_due(
    maps: &mut Maps,
    key: &FlowKey,
    flow: &Flow,
    due: impl Fn(&Flow) -> bool,
) -> Result<Removal, Error> {
    let mut removal = Removal::default();
    let is_due = |half: &Flow| half.pair == flow.pair && due(half);
    // Mostly it is seen here what has come to life, and nothing is taken out.
    let Some((of_pending, half)) = find(maps, key, flow.pair) else {
        return Ok(removal);
    };
    let partner_key = flow.partner_key(key);
    let partner = find(maps, &partner_key, flow.pair);
    if !is_due(&half) || partner.is_some_and(|(_, partner)| !is_due(&partner)) {
        return Ok(removal);
    }
    let half = match take_one(maps, of_pending, key)? {
        Some(taken) if is_due(&taken) => taken,
        Some(taken) => {
            put_back(maps, of_pending, key, &taken, &mut removal)?;
            return Ok(removal);
        }
        None => return Ok(removal),
    };
    removal.removed += 1;
    let Some((partner_pending, _)) = partner else {
        return Ok(removal);
    };
    match take_one(maps, partner_pending, &partner_key)? {
        Some(taken) if is_due(&taken) => removal.removed += 1,
        Some(taken) => {
            put_back(maps, partner_pending, &partner_key, &taken, &mut removal)?;
            if taken.pair == flow.pair {
                // A packet of the other direction: the flow lives.
                removal.removed -= 1;
                put_back(maps, of_pending, key, &half, &mut removal)?;
            }
        }
        None => {}
    }
    Ok(removal)
}

/// Removes the halves of a flow that are there, each given by its table (true: pending) and key.
///
/// # Errors
///
/// [`Error::Map`].
pub(super) fn remove_halves(
    maps: &mut Maps,
    halves: [Option<(bool, FlowKey)>; 2],
) -> Result<usize, Error> {
    let mut removed = 0;
    for (of_pending, key) in halves.into_iter().flatten() {
        let (table, name) = table_of(maps, of_pending);
        gone(table.remove(&key)).map_err(Error::map("remove from", name))?;
        removed += 1;
    }
    Ok(removed)
}

/// Takes an entry out, and returns it as it was then.
fn take_one(maps: &mut Maps, of_pending: bool, key: &FlowKey) -> Result<Option<Flow>, Error> {
    let (table, name) = table_of(maps, of_pending);
    match take(table, key).map_err(Error::map("take from", name))? {
        Taken::Entry(flow) => Ok(Some(flow)),
        Taken::Missing => Ok(None),
        Taken::Unsupported => look_and_remove(table, name, key),
    }
}

/// The same in two steps, for a kernel that has no single one.
fn look_and_remove(
    table: &mut FlowTable,
    name: &'static str,
    key: &FlowKey,
) -> Result<Option<Flow>, Error> {
    let Ok(flow) = table.get(key, 0) else {
        return Ok(None);
    };
    gone(table.remove(key)).map_err(Error::map("remove from", name))?;
    Ok(Some(flow))
}

/// Puts an entry back that was taken out and is alive. Where its key has another one by now, or its
/// place is taken, its other half goes too: none lives on alone.
fn put_back(
    maps: &mut Maps,
    of_pending: bool,
    key: &FlowKey,
    flow: &Flow,
    removal: &mut Removal,
) -> Result<(), Error> {
    let (table, _) = table_of(maps, of_pending);
    if table.insert(key, flow, NO_EXIST).is_ok() {
        removal.put_back += 1;
        return Ok(());
    }
    removal.displaced += 1;
    let partner_key = flow.partner_key(key);
    let partner = find(maps, &partner_key, flow.pair);
    let partner = partner.map(|(of_pending, _)| (of_pending, partner_key));
    removal.displaced += remove_halves(maps, [partner, None])?;
    Ok(())
}
