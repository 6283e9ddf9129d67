//! Flows followed: what has changed from one look at the tables to the next.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::mem;
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::filter::FlowFilter;
use super::join::{FlowId, Joined};
use super::list::Scan;
use super::names::Names;
use super::pair::FlowPair;
use super::table::now_s;
use super::words::words;
use crate::datapath::locked;
use crate::error::Error;
use crate::maps::Maps;
use crate::node::Node;

words! {
    /// What became of a flow.
    FlowTurn("turn", "must be new, update or end") {
        /// It was not there at the last look.
        New = "new",
        /// Its state, verdict or table is another one.
        Update = "update",
        /// It is not there any more; the rest is as it was at the last look.
        End = "end",
    }
}

/// A change of a flow. In JSON it is
/// `{"turn":"new","time":"2026-11-21T06:30:00.123Z","flow":{...}}`, with a [`FlowPair`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowChange<'a> {
    /// What became of it.
    pub turn: FlowTurn,
    /// When that was seen.
    pub time: Timestamp,
    /// The flow.
    #[serde(borrow)]
    pub flow: FlowPair<'a>,
}

/// Looks at the flow tables again and again, and tells what has changed.
///
/// A flow that begins and ends between two looks is not seen. It remembers every flow whose ends fit
/// the filter, some 150 bytes each.
pub struct FlowFollower {
    node: Arc<Mutex<Option<Node>>>,
    filter: FlowFilter,
    names: Names,
    known: HashMap<FlowId, Known>,
    /// Number of the look; none was before the first.
    look: u32,
}

struct Known {
    joined: Joined,
    /// The last look that it was there at.
    look: u32,
}

impl fmt::Debug for FlowFollower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowFollower")
            .field("filter", &self.filter)
            .finish_non_exhaustive()
    }
}

impl FlowFollower {
    /// Takes the first look: what is there now is no change.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchEnd`], [`Error::Map`].
    pub(crate) fn new(node: Arc<Mutex<Option<Node>>>, filter: FlowFilter) -> Result<Self, Error> {
        let mut follower = Self {
            node,
            filter,
            names: Names::default(),
            known: HashMap::new(),
            look: 0,
        };
        let (maps, names) = follower.open()?;
        follower.filter.check(&names)?;
        follower.compare(maps, names, &mut |_| ())?;
        Ok(follower)
    }

    /// Looks again, and gives `each` what has changed since.
    ///
    /// # Errors
    ///
    /// [`Error::Map`], [`Error::NotFound`] once the datapath is closed.
    pub fn look(&mut self, each: &mut dyn FnMut(&FlowChange<'_>)) -> Result<(), Error> {
        let (maps, names) = self.open()?;
        self.compare(maps, names, each)
    }

    /// The tables as they are pinned now, and the names of now.
    fn open(&self) -> Result<(Maps, Names), Error> {
        let (directory, names) = locked(&self.node, |node| Ok((node.map_pins(), Names::of(node))))?;
        Ok((Maps::open(&directory)?, names))
    }

    fn compare(
        &mut self,
        maps: Maps,
        names: Names,
        each: &mut dyn FnMut(&FlowChange<'_>),
    ) -> Result<(), Error> {
        // An end that went with its flow has its name in the earlier ones.
        let former = mem::replace(&mut self.names, names);
        let (names, filter, known) = (&self.names, &self.filter, &mut self.known);
        let (now_s, time) = (now_s(), Timestamp::now());
        self.look = self.look.wrapping_add(1);
        let look = self.look;
        let mut tell = |turn, flow: FlowPair<'_>| {
            if filter.takes_condition(&flow) {
                each(&FlowChange { turn, time, flow });
            }
        };
        let mut scan = Scan::new(maps);
        let mut wants = |joined: &Joined| filter.takes_ends(&joined.view(names, now_s));
        while scan.read(&mut wants, &mut |joined| {
            let view = joined.view(names, now_s);
            let now = Known {
                joined: *joined,
                look,
            };
            match known.entry(joined.id) {
                Entry::Vacant(place) => {
                    place.insert(now);
                    tell(FlowTurn::New, view);
                }
                Entry::Occupied(mut place) => {
                    let before = place.insert(now).joined.view(names, now_s);
                    let of = |flow: &FlowPair<'_>| (flow.state, flow.verdict, flow.table);
                    if of(&before) != of(&view) {
                        tell(FlowTurn::Update, view);
                    }
                }
            }
        })? {}
        known.retain(|_, known| {
            let stays = known.look == look;
            if !stays {
                tell(FlowTurn::End, known.joined.view(&former, now_s));
            }
            stays
        });
        Ok(())
    }
}
