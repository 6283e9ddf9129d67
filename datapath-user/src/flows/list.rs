//! Flows listed, a slice at a time.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::{mem, vec};

use datapath_kern::abi::flow::{Flow, FlowKey};
use serde::{Deserialize, Serialize};

use super::filter::FlowFilter;
use super::join::{FlowId, Joined};
use super::names::Names;
use super::pair::{FlowPair, FlowTableName};
use super::table::{Tables, Which, find, now_s, read};
use super::words::words;
use crate::batch::Cursor;
use crate::error::Error;
use crate::maps::Maps;

/// How many flows are given at a time when none has to be read any more.
const SLICE: usize = 4096;

words! {
    /// What flows are ordered by.
    FlowSort("order", "must be packets, bytes, expires, source or destination") {
        /// Frames of both directions, most first.
        Packets = "packets",
        /// Bytes of both directions, most first.
        Bytes = "bytes",
        /// How long it still lives, shortest first.
        Expires = "expires",
        /// Source address and port, before translation.
        Source = "source",
        /// Destination address and port, before translation.
        Destination = "destination",
    }
}

/// In which order flows are listed, and how many. Flat, as [`FlowFilter`] is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FlowOrder {
    /// By what; without, in the order of the tables, which is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sort: Option<FlowSort>,
    /// The other way round.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub reverse: bool,
    /// So many at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// A listing of flows, to be read a slice at a time.
///
/// It has its own handles of the tables and the names of one moment: while it is read, and between,
/// the datapath does whatever else it is asked for. A flow that is there all the time is listed
/// exactly once; one that begins or ends meanwhile may be or not. It needs memory for the flows that
/// only one half was read of so far, half of all at most, some 150 bytes each; for all that are
/// asked for, where it sorts them; with a limit, for two times that many.
pub struct FlowList {
    scan: Scan,
    names: Names,
    filter: FlowFilter,
    order: FlowOrder,
    now_s: u32,
    /// Those to be sorted.
    collected: Vec<Joined>,
    sorted: Option<vec::IntoIter<Joined>>,
    given: usize,
}

impl std::fmt::Debug for FlowList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FlowList")
            .field("filter", &self.filter)
            .field("order", &self.order)
            .finish_non_exhaustive()
    }
}

impl FlowList {
    /// # Errors
    ///
    /// [`Error::NoSuchEnd`], [`Error::Invalid`] for an order that is none.
    pub(crate) fn new(
        maps: Maps,
        names: Names,
        filter: FlowFilter,
        order: FlowOrder,
    ) -> Result<Self, Error> {
        filter.check(&names)?;
        if order.reverse && order.sort.is_none() {
            return Err(Error::Invalid {
                what: "order",
                value: "reverse".to_owned(),
                rule: "must say by what: packets, bytes, expires, source or destination",
            });
        }
        Ok(Self {
            scan: Scan::new(maps),
            names,
            filter,
            order,
            now_s: now_s(),
            collected: Vec::new(),
            sorted: None,
            given: 0,
        })
    }

    /// Reads on, a few thousand entries at most, and gives `each` the flows that they complete;
    /// false when that was the last. Nothing may be given for a long time where the flows are sorted.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub fn read(&mut self, each: &mut dyn FnMut(&FlowPair<'_>)) -> Result<bool, Error> {
        let limit = self.order.limit.unwrap_or(usize::MAX);
        if let Some(sorted) = &mut self.sorted {
            for joined in sorted.by_ref().take(SLICE) {
                each(&joined.view(&self.names, self.now_s));
            }
            return Ok(!sorted.as_slice().is_empty());
        }
        let (names, filter, now_s) = (&self.names, &self.filter, self.now_s);
        let (collected, given, sort) = (&mut self.collected, &mut self.given, self.order.sort);
        let all = filter.is_empty();
        let more = self.scan.read(
            &mut |joined| all || filter.takes_ends(&joined.view(names, now_s)),
            &mut |joined| {
                let view = joined.view(names, now_s);
                if !filter.takes_condition(&view) {
                    return;
                }
                if sort.is_some() {
                    collected.push(*joined);
                } else if *given < limit {
                    *given += 1;
                    each(&view);
                }
            },
        )?;
        let Some(sort) = sort else {
            return Ok(more && self.given < limit);
        };
        let compare = |a: &Joined, b: &Joined| {
            let ordering = compare(sort, a, b);
            if self.order.reverse {
                ordering.reverse()
            } else {
                ordering
            }
        };
        let collected = &mut self.collected;
        // What cannot be among the first any more goes now and then.
        if collected.len() > limit.saturating_mul(2).saturating_add(SLICE) || !more {
            if limit < collected.len() {
                collected.select_nth_unstable_by(limit, compare);
                collected.truncate(limit);
            }
            if !more {
                collected.sort_unstable_by(compare);
                self.sorted = Some(mem::take(collected).into_iter());
            }
        }
        Ok(true)
    }

    /// Reads it to the end.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub fn rest(mut self) -> Result<Vec<FlowPair<'static>>, Error> {
        let mut flows = Vec::new();
        while self.read(&mut |flow| flows.push(flow.clone().into_owned()))? {}
        Ok(flows)
    }

    /// Reads it to the end, and returns how many there were.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub fn count(mut self) -> Result<usize, Error> {
        let mut count = 0;
        while self.read(&mut |_| count += 1)? {}
        Ok(count)
    }
}

/// A pass over both tables.
pub(super) struct Scan {
    pub(super) maps: Maps,
    phase: Phase,
    join: Join,
    entries: Vec<(FlowKey, Flow)>,
    /// Entries read so far.
    pub(super) examined: usize,
}

/// The tables in the order that they are read in. Pending ones come first: a flow that is promoted
/// meanwhile is then found in both, and would be in neither the other way round. For the same reason
/// a table of a former size comes before the one that is filled from it.
const ORDER: [Which; 4] = [
    Which::FormerPending,
    Which::Pending,
    Which::FormerFlows,
    Which::Flows,
];

enum Phase {
    /// Those of [`ORDER`] that are still to be read, the first from where it was read up to.
    Tables(&'static [Which], Cursor<FlowKey, Flow>),
    /// What is left when all are read.
    Rest(vec::IntoIter<Joined>),
}

impl Scan {
    pub(super) fn new(maps: Maps) -> Self {
        Self {
            maps,
            phase: Phase::Tables(&ORDER, Cursor::new()),
            join: Join::default(),
            entries: Vec::new(),
            examined: 0,
        }
    }

    /// Reads on, and gives `each` the flows that are whole by then, of those that `wants` wants,
    /// given the first half seen of each; false when that was the last.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub(super) fn read(
        &mut self,
        wants: &mut dyn FnMut(&Joined) -> bool,
        each: &mut dyn FnMut(&Joined),
    ) -> Result<bool, Error> {
        self.entries.clear();
        match &mut self.phase {
            Phase::Tables([which, rest @ ..], cursor) => {
                let tables = &self.maps.tables;
                let more = match tables.get(*which) {
                    Some(table) => read(cursor, table, *which, &mut self.entries)?,
                    None => false,
                };
                // One that is being moved may be read again: then all wait for the end.
                let last = *which == Which::Flows && !tables.are_filled();
                for (key, half) in &self.entries {
                    let table = table_name(*which);
                    if let Some(whole) = self.join.add(table, key, half, last, wants) {
                        each(&whole);
                    }
                }
                if !more {
                    self.phase = Phase::Tables(rest, Cursor::new());
                }
            }
            Phase::Tables([], _) => self.phase = Phase::Rest(self.join.rest()),
            Phase::Rest(rest) => {
                for joined in rest.by_ref().take(SLICE) {
                    let found = if joined.is_whole() {
                        Some(joined)
                    } else {
                        look_again(&self.maps.tables, &joined)
                    };
                    if let Some(joined) = found {
                        each(&joined);
                    }
                }
                return Ok(!rest.as_slice().is_empty());
            }
        }
        self.examined += self.entries.len();
        Ok(true)
    }
}

/// The flow that one half was read of as it is now; none where it is gone. Its other half was
/// entered, or moved to the other table, while they were read.
fn look_again(tables: &Tables, joined: &Joined) -> Option<Joined> {
    let mut again = None::<Joined>;
    for key in joined.keys() {
        if let Some((which, half)) = find(tables, &key, joined.id.pair) {
            let table = table_name(which);
            match &mut again {
                Some(again) => again.add(table, &half),
                None => again = Some(Joined::new(joined.id, table, &key, &half)),
            }
        }
    }
    again
}

fn table_name(which: Which) -> FlowTableName {
    match which.successor() {
        Which::Pending => FlowTableName::Pending,
        _ => FlowTableName::Established,
    }
}

/// Halves that wait for the other one.
#[derive(Default)]
struct Join(HashSet<Joined>);

impl Join {
    /// Adds an entry; returns the flow that it completes in the `last` table. Others stay: what is in
    /// this table now may be in a later one when that is read.
    fn add(
        &mut self,
        table: FlowTableName,
        key: &FlowKey,
        half: &Flow,
        last: bool,
        wants: &mut dyn FnMut(&Joined) -> bool,
    ) -> Option<Joined> {
        let id = FlowId::of(key, half);
        let waiting = self.0.take(&id);
        let first = waiting.is_none();
        let mut joined = waiting.unwrap_or_else(|| Joined::new(id, table, key, half));
        if !first {
            joined.add(table, half);
        } else if !wants(&joined) {
            return None;
        }
        if last && joined.is_whole_in(FlowTableName::Established) {
            return Some(joined);
        }
        self.0.insert(joined);
        None
    }

    fn rest(&mut self) -> vec::IntoIter<Joined> {
        let rest: Vec<_> = mem::take(&mut self.0).into_iter().collect();
        rest.into_iter()
    }
}

fn compare(sort: FlowSort, a: &Joined, b: &Joined) -> Ordering {
    let (left, right) = (&a.id.original, &b.id.original);
    let source = |key: &FlowKey| (key.source.to_ip(), key.source_port.get());
    let destination = |key: &FlowKey| (key.destination.to_ip(), key.destination_port.get());
    let ordering = match sort {
        FlowSort::Packets => b.all_packets().cmp(&a.all_packets()),
        FlowSort::Bytes => b.all_bytes().cmp(&a.all_bytes()),
        FlowSort::Expires => a.expires_s().cmp(&b.expires_s()),
        FlowSort::Source => source(left).cmp(&source(right)),
        FlowSort::Destination => destination(left).cmp(&destination(right)),
    };
    // The same order each time for those that are alike.
    ordering
        .then_with(|| source(left).cmp(&source(right)))
        .then_with(|| destination(left).cmp(&destination(right)))
        .then_with(|| a.id.pair.cmp(&b.id.pair))
}

#[cfg(test)]
mod tests {
    use super::super::join::tests::{masqueraded, names};
    use super::*;

    const PENDING: FlowTableName = FlowTableName::Pending;
    const ESTABLISHED: FlowTableName = FlowTableName::Established;

    fn add(join: &mut Join, table: FlowTableName, (key, half): &(FlowKey, Flow)) -> Option<Joined> {
        join.add(table, key, half, true, &mut |_| true)
    }

    #[test]
    fn halves_of_one_number_and_another_tuple_are_not_of_one_flow() {
        let mut join = Join::default();
        let [first, first_reply] = masqueraded(40_000, 9);
        let [other, other_reply] = masqueraded(40_002, 9);
        for half in [&first, &other] {
            assert!(add(&mut join, ESTABLISHED, half).is_none());
        }
        for (half, of) in [(first_reply, first.0), (other_reply, other.0)] {
            let whole = add(&mut join, ESTABLISHED, &half).unwrap();
            assert_eq!(whole.id.original, of);
        }
        assert_eq!(join.rest().len(), 0);
    }

    #[test]
    fn a_flow_that_is_promoted_meanwhile_is_listed_once() {
        let mut join = Join::default();
        let [first, second] = masqueraded(40_000, 9);
        for half in [&first, &second] {
            assert!(add(&mut join, PENDING, half).is_none());
        }
        assert!(add(&mut join, ESTABLISHED, &first).is_none());
        let whole = add(&mut join, ESTABLISHED, &second).unwrap();
        assert_eq!(whole.view(&names(), 0).table, ESTABLISHED);
        assert_eq!(join.rest().len(), 0);

        // Half way.
        for (table, half) in [(PENDING, &first), (PENDING, &second), (ESTABLISHED, &first)] {
            assert!(add(&mut join, table, half).is_none());
        }
        let rest: Vec<_> = join.rest().collect();
        assert!(rest.len() == 1 && rest[0].is_whole());
    }

    #[test]
    fn what_is_not_wanted_does_not_wait() {
        let mut join = Join::default();
        for (key, half) in masqueraded(40_000, 9) {
            let whole = join.add(ESTABLISHED, &key, &half, true, &mut |_| false);
            assert!(whole.is_none());
        }
        assert_eq!(join.rest().len(), 0);
    }

    #[test]
    fn orders_are_what_they_are_called() {
        let whole = |port, pair, packets| {
            let [(key, mut half), second] = masqueraded(port, pair);
            half.packets = packets;
            let id = FlowId::of(&key, &half);
            let mut joined = Joined::new(id, ESTABLISHED, &key, &half);
            joined.add(ESTABLISHED, &second.1);
            joined
        };
        let mut flows = [whole(3, 1, 5), whole(1, 2, 7), whole(2, 3, 6)];
        let ports = |flows: &[Joined]| -> Vec<u16> {
            let ports = flows.iter().map(|flow| flow.id.original.source_port.get());
            ports.collect()
        };
        flows.sort_unstable_by(|a, b| compare(FlowSort::Packets, a, b));
        assert_eq!(ports(&flows), [1, 2, 3]);
        flows.sort_unstable_by(|a, b| compare(FlowSort::Bytes, a, b));
        assert_eq!(ports(&flows), [1, 2, 3], "alike: by source");
        flows.reverse();
        flows.sort_unstable_by(|a, b| compare(FlowSort::Source, a, b));
        assert_eq!(ports(&flows), [1, 2, 3]);
    }
}
