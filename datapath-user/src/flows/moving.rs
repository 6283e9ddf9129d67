//! Moving flows into a table of another size while packets go on.
//!
//! Programs look into the new table first and then into the former one. So an entry is written into
//! the new one, and from then on packets find it there; what they did to the old copy meanwhile is
//! seen as that is taken out, and carried over. At no moment is an entry in neither table, or its
//! tuple free for another flow. The two halves of a flow move one after the other: programs find
//! each wherever it is.

use datapath_kern::abi::flow::{Flow, FlowKey};

use super::removal::{NO_EXIST, remove_halves, take_one};
use super::table::{Tables, Which, find};
use crate::error::Error;

/// `BPF_EXIST` (`include/uapi/linux/bpf.h`).
const EXIST: u64 = 2;

/// Moves an entry, as it was read from a table of the former size, into the one that is filled from
/// it. Where there is no room it stays, and programs go on to find it there. Returns how many entries
/// went on the way: they had lost their place to a younger flow.
///
/// # Errors
///
/// [`Error::Map`].
pub(super) fn move_entry(
    tables: &mut Tables,
    from: Which,
    key: &FlowKey,
    copied: &Flow,
) -> Result<usize, Error> {
    let to = from.successor();
    if !enter(tables, to, key, copied) {
        return match look(tables, to, key) {
            // An earlier process got this far.
            Some(there) if there.pair == copied.pair => {
                take_over(tables, from, key, copied).map(|()| 0)
            }
            // A younger flow has its key; programs find that one, and nobody this one.
            Some(_) => {
                let partner_key = copied.partner_key(key);
                let partner = find(tables, &partner_key, copied.pair);
                let partner = partner.map(|(which, _)| (which, partner_key));
                remove_halves(tables, [Some((from, *key)), partner])
            }
            // No room.
            None => Ok(0),
        };
    }
    take_over(tables, from, key, copied).map(|()| 0)
}

/// Takes out the old copy of an entry that is in the new table, and carries over what was done to it
/// since it was `copied`.
fn take_over(tables: &mut Tables, from: Which, key: &FlowKey, copied: &Flow) -> Result<(), Error> {
    let to = from.successor();
    match take_one(tables, from, key)? {
        Some(taken) if taken == *copied => {}
        Some(taken) => {
            if let Some(there) = look(tables, to, key).filter(|there| there.pair == taken.pair) {
                replace(tables, to, key, &merged(copied, &taken, &there));
            }
        }
        // A packet ended the flow in between, and could not know of the new copy.
        None => {
            let there = look(tables, to, key).filter(|there| there.pair == copied.pair);
            remove_halves(tables, [there.map(|_| (to, *key)), None])?;
        }
    }
    Ok(())
}

/// An entry with what was done to its old copy, from `copied` to `taken`, and to its new one, from
/// `copied` to `there`.
fn merged(copied: &Flow, taken: &Flow, there: &Flow) -> Flow {
    let newer = if there.generation == copied.generation {
        taken
    } else {
        there
    };
    let sum = |taken: u64, there: u64, copied: u64| taken.wrapping_add(there.wrapping_sub(copied));
    Flow {
        packets: sum(taken.packets, there.packets, copied.packets),
        bytes: sum(taken.bytes, there.bytes, copied.bytes),
        // What ended a flow makes its life shorter; a packet makes it longer.
        expires_s: if there.expires_s == copied.expires_s {
            taken.expires_s
        } else {
            there.expires_s
        },
        state: taken.state | there.state,
        ..*newer
    }
}

fn enter(tables: &mut Tables, to: Which, key: &FlowKey, flow: &Flow) -> bool {
    let table = tables.get_mut(to);
    table.is_some_and(|table| table.insert(key, flow, NO_EXIST).is_ok())
}

fn look(tables: &Tables, which: Which, key: &FlowKey) -> Option<Flow> {
    tables.get(which)?.get(key, 0).ok()
}

/// Writes an entry that is there; one that went meanwhile stays away.
fn replace(tables: &mut Tables, to: Which, key: &FlowKey, flow: &Flow) {
    if let Some(table) = tables.get_mut(to) {
        let replaced = table.insert(key, flow, EXIST);
        tracing::trace!(?replaced, "carried over");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use datapath_kern::abi::flow::state;

    use super::*;
    use crate::flows::entries;
    use crate::flows::sweeper::Sweeper;

    fn flow(pair: u32) -> Flow {
        Flow {
            pair,
            packets: 10,
            bytes: 1000,
            expires_s: u32::MAX - 100,
            state: state::REPLIED | state::ESTABLISHED,
            ..Flow::default()
        }
    }

    fn key(number: u16) -> FlowKey {
        FlowKey {
            source_port: number.into(),
            protocol: 6,
            ..FlowKey::default()
        }
    }

    /// Tables of 8 entries each, with former ones of 64.
    fn tables(former: &[(FlowKey, Flow)]) -> Tables {
        let mut tables = Tables::create(8, 8).unwrap().filled_from(64).unwrap();
        for (key, flow) in former {
            let table = tables.get_mut(Which::FormerFlows).unwrap();
            table.insert(key, flow, 0).unwrap();
        }
        tables
    }

    fn of(tables: &Tables, which: Which) -> BTreeMap<u16, u32> {
        let entries = entries(tables, which).unwrap();
        let named = entries
            .iter()
            .map(|(key, flow)| (key.source_port.get(), flow.pair));
        named.collect()
    }

    #[test]
    fn what_fits_moves_and_the_others_stay_and_follow() {
        let all: Vec<_> = (1..=20).map(|n| (key(n), flow(n.into()))).collect();
        let mut tables = tables(&all);
        let pass = |tables: &mut Tables| {
            let mut sweeper = Sweeper::default();
            while sweeper.slice(tables).unwrap().pass.is_none() {}
        };
        let everything = |tables: &Tables| {
            let mut found = of(tables, Which::Flows);
            found.extend(of(tables, Which::FormerFlows));
            found
        };
        let wanted: BTreeMap<_, _> = (1..=20).map(|n: u16| (n, u32::from(n))).collect();
        for _ in 0..3 {
            pass(&mut tables);
            // The kernel keeps a few more than it was asked for, one for each processor.
            assert!(of(&tables, Which::Flows).len() >= 8);
            assert!(!of(&tables, Which::FormerFlows).is_empty());
            assert_eq!(everything(&tables), wanted, "none is lost, none is twice");
        }
        // Room is made as flows end.
        for (number, _) in of(&tables, Which::Flows) {
            let table = tables.get_mut(Which::Flows).unwrap();
            table.remove(&key(number)).unwrap();
        }
        let left = everything(&tables);
        pass(&mut tables);
        assert_eq!(everything(&tables), left);
        assert!(of(&tables, Which::Flows).len() >= 8.min(left.len()));
    }

    #[test]
    fn what_packets_do_meanwhile_is_carried_over() {
        let copied = flow(1);
        // The old copy and the new one each saw packets, and the old one a FIN.
        let old = Flow {
            packets: 13,
            bytes: 1300,
            state: copied.state | state::CLOSED_ORIGINAL,
            expires_s: 5000,
            ..copied
        };
        let mut tables = tables(&[(key(1), old)]);
        let new = Flow {
            packets: 11,
            bytes: 1060,
            ..copied
        };
        assert!(enter(&mut tables, Which::Flows, &key(1), &new));
        move_entry(&mut tables, Which::FormerFlows, &key(1), &copied).unwrap();
        assert_eq!(look(&tables, Which::FormerFlows, &key(1)), None);
        let wanted = Flow {
            packets: 14,
            bytes: 1360,
            ..old
        };
        assert_eq!(look(&tables, Which::Flows, &key(1)), Some(wanted));
        // A packet that both copies saw later than that keeps the later life.
        let there = Flow {
            expires_s: 9000,
            ..copied
        };
        assert_eq!(merged(&copied, &old, &there).expires_s, 9000);
    }

    #[test]
    fn a_flow_that_ended_meanwhile_stays_ended() {
        let mut tables = tables(&[]);
        move_entry(&mut tables, Which::FormerFlows, &key(1), &flow(1)).unwrap();
        assert_eq!(look(&tables, Which::Flows, &key(1)), None);
    }

    #[test]
    fn a_younger_flow_with_its_key_stays() {
        let old = flow(1);
        let partner_key = old.partner_key(&key(1));
        let mut tables = tables(&[(key(1), old), (partner_key, old)]);
        assert!(enter(&mut tables, Which::Flows, &key(1), &flow(2)));
        move_entry(&mut tables, Which::FormerFlows, &key(1), &old).unwrap();
        assert_eq!(of(&tables, Which::Flows), BTreeMap::from([(1, 2)]));
        assert!(
            of(&tables, Which::FormerFlows).is_empty(),
            "with its other half"
        );
    }
}
