//! Taking a flow out of the tables while packets go on.
//!
//! Between the last look at an entry and its removal a packet may bring it to life, or begin another
//! flow under its key. So an entry is seen as it is taken out (`BPF_MAP_LOOKUP_AND_DELETE_ELEM`),
//! and put back where it is not the one that was meant.

use std::ops::AddAssign;

use datapath_kern::abi::flow::{Flow, FlowKey};

use super::table::{FlowTable, Tables, Which, find};
use crate::batch::{Taken, take};
use crate::error::Error;
use crate::maps::gone;

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

impl Removal {
    /// Entries that are in the tables no more.
    pub(super) const fn gone(self) -> usize {
        self.removed + self.displaced
    }
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
    tables: &mut Tables,
    key: &FlowKey,
    flow: &Flow,
    due: impl Fn(&Flow) -> bool,
) -> Result<Removal, Error> {
    let mut removal = Removal::default();
    let is_due = |half: &Flow| half.pair == flow.pair && due(half);
    // Mostly it is seen here what has come to life, and nothing is taken out.
    let Some((which, half)) = find(tables, key, flow.pair) else {
        return Ok(removal);
    };
    let partner_key = flow.partner_key(key);
    let partner = find(tables, &partner_key, flow.pair);
    if !is_due(&half) || partner.is_some_and(|(_, partner)| !is_due(&partner)) {
        return Ok(removal);
    }
    let half = match take_one(tables, which, key)? {
        Some(taken) if is_due(&taken) => taken,
        Some(taken) => {
            put_back(tables, which, key, &taken, &mut removal)?;
            return Ok(removal);
        }
        None => return Ok(removal),
    };
    removal.removed += 1;
    let Some((partner_which, _)) = partner else {
        return Ok(removal);
    };
    match take_one(tables, partner_which, &partner_key)? {
        Some(taken) if is_due(&taken) => removal.removed += 1,
        Some(taken) => {
            put_back(tables, partner_which, &partner_key, &taken, &mut removal)?;
            if taken.pair == flow.pair {
                // A packet of the other direction: the flow lives.
                removal.removed -= 1;
                put_back(tables, which, key, &half, &mut removal)?;
            }
        }
        None => {}
    }
    Ok(removal)
}

/// Removes the halves of a flow that are there, each given by its table and key.
///
/// # Errors
///
/// [`Error::Map`].
pub(super) fn remove_halves(
    tables: &mut Tables,
    halves: [Option<(Which, FlowKey)>; 2],
) -> Result<usize, Error> {
    let mut removed = 0;
    for (which, key) in halves.into_iter().flatten() {
        if let Some(table) = tables.get_mut(which) {
            gone(table.remove(&key)).map_err(Error::map("remove from", which.map()))?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Takes an entry out, and returns it as it was then.
///
/// # Errors
///
/// [`Error::Map`].
pub(super) fn take_one(
    tables: &mut Tables,
    which: Which,
    key: &FlowKey,
) -> Result<Option<Flow>, Error> {
    let Some(table) = tables.get_mut(which) else {
        return Ok(None);
    };
    match take(table, key).map_err(Error::map("take from", which.map()))? {
        Taken::Entry(flow) => Ok(Some(flow)),
        Taken::Missing => Ok(None),
        Taken::Unsupported => look_and_remove(table, which, key),
    }
}

/// The same in two steps, for a kernel that has no single one.
fn look_and_remove(
    table: &mut FlowTable,
    which: Which,
    key: &FlowKey,
) -> Result<Option<Flow>, Error> {
    let Ok(flow) = table.get(key, 0) else {
        return Ok(None);
    };
    gone(table.remove(key)).map_err(Error::map("remove from", which.map()))?;
    Ok(Some(flow))
}

/// Puts an entry back that was taken out and is alive. Where its key has another one by now, or its
/// place is taken, its other half goes too: none lives on alone.
fn put_back(
    tables: &mut Tables,
    which: Which,
    key: &FlowKey,
    flow: &Flow,
    removal: &mut Removal,
) -> Result<(), Error> {
    let table = tables.get_mut(which);
    if table.is_some_and(|table| table.insert(key, flow, NO_EXIST).is_ok()) {
        removal.put_back += 1;
        return Ok(());
    }
    if find(tables, key, flow.pair).is_some() {
        // The same flow has it: it was promoted.
        return Ok(());
    }
    removal.displaced += 1;
    let partner_key = flow.partner_key(key);
    let partner = find(tables, &partner_key, flow.pair);
    let partner = partner.map(|(which, _)| (which, partner_key));
    removal.displaced += remove_halves(tables, [partner, None])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::thread;
    use std::time::{Duration, Instant};

    use datapath_kern::abi::flow::flags;

    use super::super::sweeper::Sweeper;
    use super::super::table::now_s;
    use super::*;

    const DEAD: u32 = 1;
    const LIVE: u32 = u32::MAX;

    /// Both halves of a flow, with their keys.
    fn halves(number: u16, pair: u32, expires_s: u32) -> [(FlowKey, Flow); 2] {
        let key = FlowKey {
            source_port: number.into(),
            destination_port: 80.into(),
            protocol: 17,
            ..FlowKey::default()
        };
        let flow = Flow {
            pair,
            expires_s,
            ..Flow::default()
        };
        let reply = Flow {
            flags: flags::REPLY,
            ..flow
        };
        [(key, flow), (flow.partner_key(&key), reply)]
    }

    fn enter(tables: &mut Tables, halves: [(FlowKey, Flow); 2]) {
        let table = tables.get_mut(Which::Flows).unwrap();
        for (key, flow) in halves {
            table.insert(key, flow, 0).unwrap();
        }
    }

    /// Removes a dead flow, while `meanwhile` happens before its n-th half is asked for.
    fn remove_while(
        tables: &mut Tables,
        meanwhile: impl Fn(u32, &mut Tables),
    ) -> (Removal, [Option<Flow>; 2]) {
        let dead = halves(7, 1, DEAD);
        let [(key, flow), (partner_key, _)] = dead;
        enter(tables, dead);
        let others = RefCell::new(tables.again().unwrap());
        let asked = Cell::new(0);
        let due = |half: &Flow| {
            let due = half.expires_s <= now_s();
            asked.set(asked.get() + 1);
            meanwhile(asked.get(), &mut others.borrow_mut());
            due
        };
        let removal = remove_due(tables, &key, &flow, due).unwrap();
        let left = [key, partner_key].map(|key| Some(find_any(tables, &key)?.1));
        (removal, left)
    }

    fn find_any(tables: &Tables, key: &FlowKey) -> Option<(Which, Flow)> {
        let half = tables.get(Which::Flows)?.get(key, 0).ok()?;
        Some((Which::Flows, half))
    }

    #[test]
    fn a_dead_flow_goes_with_both_halves() {
        let mut tables = Tables::create(64, 64).unwrap();
        let (removal, left) = remove_while(&mut tables, |_, _| {});
        assert_eq!(left, [None, None]);
        let wanted = Removal {
            removed: 2,
            ..Removal::default()
        };
        assert_eq!(removal, wanted);
    }

    #[test]
    fn a_flow_that_comes_to_life_after_the_last_look_is_put_back() {
        let live = halves(7, 1, LIVE);
        // After both looks: before the first half is taken, and before the second one is.
        for (at, half, put_back) in [(2, 0, 1), (2, 1, 2), (3, 1, 2)] {
            let mut tables = Tables::create(64, 64).unwrap();
            let (removal, left) = remove_while(&mut tables, |asked, tables| {
                if asked == at {
                    let (key, flow) = live[half];
                    let table = tables.get_mut(Which::Flows).unwrap();
                    table.insert(key, flow, 0).unwrap();
                }
            });
            let expires_s = left.map(|half| half.unwrap().expires_s);
            assert_eq!(expires_s[half], LIVE, "half {half} at {at}");
            let wanted = Removal {
                put_back,
                ..Removal::default()
            };
            assert_eq!(removal, wanted, "half {half} at {at}");
        }
    }

    #[test]
    fn another_flow_under_the_same_key_is_put_back() {
        let mut tables = Tables::create(64, 64).unwrap();
        let (removal, left) = remove_while(&mut tables, |asked, tables| {
            if asked == 2 {
                enter(tables, halves(7, 2, LIVE));
            }
        });
        assert_eq!(left.map(|half| half.unwrap().pair), [2, 2]);
        assert_eq!((removal.removed, removal.put_back), (0, 1));
    }

    #[test]
    fn what_cannot_be_put_back_does_not_leave_half_a_flow() {
        let mut tables = Tables::create(64, 64).unwrap();
        let (removal, left) = remove_while(&mut tables, |asked, tables| match asked {
            // It came to life,
            2 => enter(tables, halves(7, 1, LIVE)),
            // and while it is out another flow begins with its first half's key.
            3 => {
                let [(key, flow), _] = halves(7, 3, LIVE);
                let table = tables.get_mut(Which::Flows).unwrap();
                table.insert(key, flow, NO_EXIST).unwrap();
            }
            _ => {}
        });
        let pairs = left.map(|half| half.map(|half| half.pair));
        assert_eq!(pairs, [Some(3), None]);
        assert_eq!((removal.removed, removal.displaced), (0, 2));
    }

    /// Flows end and begin anew under the same keys, as fast as they can, while they are swept: each
    /// one that lives must be there.
    #[test]
    fn no_live_flow_is_ever_lost() {
        const FLOWS: u16 = 2;
        const ROUNDS: u32 = 40_000;
        // Small: the sweeper is back at the same flow in no time.
        let mut tables = Tables::create(8, 2).unwrap();
        let mut packets = tables.again().unwrap();
        let mut removed = 0;
        thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for round in 1..=ROUNDS {
                    let number = u16::try_from(round % u32::from(FLOWS)).unwrap();
                    for expires_s in [DEAD, LIVE] {
                        enter(&mut packets, halves(number, round, expires_s));
                    }
                    // Out for a moment is not gone.
                    let patience = Instant::now() + Duration::from_secs(30);
                    for (key, flow) in halves(number, round, LIVE) {
                        while find_any(&packets, &key).map(|(_, found)| found) != Some(flow) {
                            assert!(Instant::now() < patience, "round {round}: gone");
                        }
                    }
                    // Dead, and a new one on its heels.
                    enter(&mut packets, halves(number, round, DEAD));
                }
            });
            let mut sweeper = Sweeper::default();
            while !writer.is_finished() {
                if let Some(pass) = sweeper.slice(&mut tables).unwrap().pass {
                    removed += pass.report.removed;
                }
            }
        });
        assert!(removed > 0, "the sweeper came to nothing");
    }
}
