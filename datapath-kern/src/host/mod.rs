//! The world around the packet path, out of ordinary collections: for tests, and for the
//! comparison of this library with the programs in the kernel.
//!
//! [`Host`] is an [`Env`] whose tables, clock, routing table and randomness the caller sets, and
//! which writes down every access ([`Host::take_accesses`]). [`Buffer`] is a frame that is changed
//! as the kernel's helpers change an skb. [`plan`] is a small cluster to try things in.

mod access;
mod buffer;
mod hook;
pub mod plan;
mod ports;
mod prefix;
mod routing;
mod table;
mod turn;

use core::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use crate::abi::Mac;
use crate::abi::addr::Addr;
use crate::abi::budget::{Budget, MAX_BUDGETS};
use crate::abi::config::{Config, settings_of_field};
use crate::abi::endpoint::{Endpoint, MAX_ENDPOINTS};
use crate::abi::event::{Event, FRAME_BYTES, Head, WINDOWS, Window};
use crate::abi::flow::{Flow, FlowKey};
use crate::abi::fragment::{Fragment, FragmentKey, MAX_FRAGMENTS};
use crate::abi::ipcache::IpEntry;
use crate::abi::metric::{Counter, Direction, MAX_METRICS, OUTCOMES, index};
use crate::abi::nexthop::{CLAIMED, Claim, MAX_NEXT_HOPS, NextHop};
use crate::abi::policy::{MAX_PEER_CLASSES, PeerKey, PortKey, PortVerdict};
use crate::abi::quota::Quota;
use crate::abi::search::{EXCLUDED_WORDS, MAX_REFUSALS, MAX_SEARCHES, PortSearch, Refusal};
use crate::abi::tally::{MAX_TALLIES, Tally};
use crate::abi::tunnel::{MAX_PEERS, Peer, Uplink};
use crate::env::{Env, Fib, FibQuery, Table};
use crate::packet::Packet;
use crate::stage::flow::scramble;
use crate::work::Work;

pub use self::access::{Access, Op};
pub use self::buffer::Buffer;
pub use self::hook::Run;
pub use self::ports::Ports;
pub use self::prefix::{Prefix, Prefixes};
pub use self::routing::{Routing, Way};
pub use self::table::{Array, Hash};
pub use crate::abi::event::Hook;

use self::access::{Log, Logged};
use self::turn::Turn;

/// A node's maps, clock, routing table and counters.
///
/// The tables are open to the caller, whose accesses by their [`Table`] methods are not logged;
/// those of the packet path are.
#[derive(Clone, Debug)]
pub struct Host {
    /// Settings of the load.
    pub config: Config,
    /// The clock, seconds.
    pub clock_s: Cell<u32>,
    /// Established flows.
    pub flows: Hash<FlowKey, Flow>,
    /// Flows not yet proven.
    pub pending: Hash<FlowKey, Flow>,
    /// Local endpoints.
    pub endpoints: Array<Endpoint>,
    /// Slots of the endpoints by interface.
    pub endpoint_slots: Hash<u32, u32>,
    /// Peers.
    pub peers: Array<Peer>,
    /// Indices of the peers by underlay address.
    pub peer_indices: Hash<Addr, u32>,
    /// Next hops.
    pub next_hops: Array<NextHop>,
    /// Holders of claimed next hops.
    pub claims: Hash<u32, Claim>,
    /// Packets that come in fragments.
    pub fragments: Hash<FragmentKey, Fragment>,
    /// Identifications that masqueraded packets in fragments left with.
    pub fragment_ids: Hash<FragmentKey, u32>,
    /// What ends used up of what they may have.
    pub budgets: Array<Budget>,
    /// What endpoints have of the flow tables.
    pub quotas: Array<Quota>,
    /// What happened to flows, by [`Tally`].
    pub tallies: Array<u64>,
    /// Searches for a port that found none.
    pub port_searches: Hash<FlowKey, PortSearch>,
    /// Remotes that new flows are not even routed to.
    pub refusals: Array<Refusal>,
    /// Ports that masquerade does not hand out.
    pub excluded_ports: Array<u64>,
    /// Sockets of the node: protocol and port, on all its addresses.
    pub sockets: RefCell<BTreeSet<(u8, u16)>>,
    /// Uplinks by interface.
    pub uplinks: Hash<u32, Uplink>,
    /// Who is behind an address.
    pub ipcache: RefCell<Prefixes<IpEntry>>,
    /// Classes of peers, by rule set and direction.
    pub policy_peers: Hash<PeerKey, u32>,
    /// What classes say of ports.
    pub policy_ports: RefCell<Ports>,
    /// The routing table.
    pub routing: RefCell<Routing>,
    /// Events told and not told, by code of the reason.
    pub event_windows: Array<Window>,
    /// Room for so many events until they are taken.
    pub event_room: Cell<usize>,
    events: RefCell<Vec<Event>>,
    counters: RefCell<BTreeMap<u32, Counter>>,
    randomness: Cell<u32>,
    work: RefCell<Work>,
    log: Log,
    turn: Turn,
}

impl Host {
    /// A node with nothing in its tables, which are as large as the object's.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self::with_capacities(config, 131_072, 32_768)
    }

    /// As [`Host::new`], with room for so many entries of flows, two to a flow.
    #[must_use]
    pub fn with_capacities(config: Config, flows: usize, pending: usize) -> Self {
        Self {
            config,
            clock_s: Cell::new(1000),
            flows: Hash::new(flows),
            pending: Hash::evicting(pending),
            endpoints: Array::new(MAX_ENDPOINTS),
            endpoint_slots: Hash::new(MAX_ENDPOINTS as usize),
            peers: Array::new(MAX_PEERS),
            peer_indices: Hash::new(MAX_PEERS as usize),
            next_hops: Array::new(MAX_NEXT_HOPS),
            claims: Hash::new(CLAIMED as usize),
            fragments: Hash::evicting(MAX_FRAGMENTS as usize),
            fragment_ids: Hash::evicting(MAX_FRAGMENTS as usize),
            budgets: Array::new(MAX_BUDGETS),
            quotas: Array::new(MAX_ENDPOINTS),
            tallies: Array::new(MAX_TALLIES),
            port_searches: Hash::evicting(MAX_SEARCHES as usize),
            refusals: Array::new(MAX_REFUSALS),
            excluded_ports: Array::new(EXCLUDED_WORDS),
            sockets: RefCell::default(),
            uplinks: Hash::new(64),
            ipcache: RefCell::default(),
            policy_peers: Hash::new(MAX_PEER_CLASSES as usize),
            policy_ports: RefCell::default(),
            routing: RefCell::default(),
            event_windows: Array::new(WINDOWS),
            event_room: Cell::new(usize::MAX),
            events: RefCell::default(),
            counters: RefCell::default(),
            randomness: Cell::new(0),
            work: RefCell::default(),
            log: Log::default(),
            turn: Turn::default(),
        }
    }

    /// Lets so many seconds pass.
    pub fn advance(&self, seconds: u32) {
        self.clock_s.set(self.clock_s.get().wrapping_add(seconds));
    }

    /// What the packet path asked for since the last call, in order.
    #[must_use]
    pub fn take_accesses(&self) -> Vec<Access> {
        self.log.take()
    }

    /// The events told since the last call, in order.
    #[must_use]
    pub fn take_events(&self) -> Vec<Event> {
        self.events.take()
    }

    /// How often something happened to a flow.
    #[must_use]
    pub fn tallied(&self, what: Tally) -> u64 {
        self.tallies.get(&what.index()).unwrap_or_default()
    }

    /// The counters that moved since the last call, and by how much: direction and code of the
    /// outcome, a `DropReason`'s, a `Forward`'s or a `Ruling`'s.
    #[must_use]
    pub fn take_counters(&self) -> Vec<(Direction, u32, Counter)> {
        let counters = self.counters.take();
        let direction = |cell: u32| {
            if cell < OUTCOMES {
                Direction::Ingress
            } else {
                Direction::Egress
            }
        };
        counters
            .into_iter()
            .map(|(cell, by)| (direction(cell), cell % OUTCOMES, by))
            .collect()
    }
}

settings_of_field!(Host, config);

impl Host {
    fn logged<'a, M>(&'a self, name: &'static str, table: &'a M) -> Logged<'a, M> {
        if !self.log.is_inside() {
            self.yield_turn();
        }
        Logged {
            name,
            table,
            log: &self.log,
        }
    }
}

impl Env for Host {
    fn now_s(&self) -> u32 {
        self.log.write(Access::Now);
        self.clock_s.get()
    }

    fn tick(&self) -> u64 {
        u64::from(self.clock_s.get()) + 1
    }

    fn random(&self) -> u32 {
        self.log.write(Access::Random);
        let next = self.randomness.get().wrapping_add(1);
        self.randomness.set(next);
        scramble(next)
    }

    fn flows(&self) -> impl Table<FlowKey, Flow> {
        self.logged("flows", &self.flows)
    }

    fn pending(&self) -> impl Table<FlowKey, Flow> {
        self.logged("pending", &self.pending)
    }

    fn endpoints(&self) -> impl Table<u32, Endpoint> {
        self.logged("endpoints", &self.endpoints)
    }

    fn endpoint_slots(&self) -> impl Table<u32, u32> {
        self.logged("endpoint_slots", &self.endpoint_slots)
    }

    fn peers(&self) -> impl Table<u32, Peer> {
        self.logged("peers", &self.peers)
    }

    fn peer_indices(&self) -> impl Table<Addr, u32> {
        self.logged("peer_indices", &self.peer_indices)
    }

    fn next_hops(&self) -> impl Table<u32, NextHop> {
        self.logged("next_hops", &self.next_hops)
    }

    fn claims(&self) -> impl Table<u32, Claim> {
        self.logged("claims", &self.claims)
    }

    fn fragments(&self) -> impl Table<FragmentKey, Fragment> {
        self.logged("fragments", &self.fragments)
    }

    fn fragment_ids(&self) -> impl Table<FragmentKey, u32> {
        self.logged("fragment_ids", &self.fragment_ids)
    }

    fn budgets(&self) -> impl Table<u32, Budget> {
        self.logged("budgets", &self.budgets)
    }

    fn quotas(&self) -> impl Table<u32, Quota> {
        self.logged("quotas", &self.quotas)
    }

    fn tally(&self, what: Tally, count: u64) {
        self.logged("tally", &self.tallies)
            .update(&what.index(), |cell| *cell += count);
    }

    fn port_searches(&self) -> impl Table<FlowKey, PortSearch> {
        self.logged("port_searches", &self.port_searches)
    }

    fn refusals(&self) -> impl Table<u32, Refusal> {
        self.logged("refusals", &self.refusals)
    }

    fn excluded_ports(&self) -> impl Table<u32, u64> {
        self.logged("excluded_ports", &self.excluded_ports)
    }

    fn is_of_socket(&self, key: &FlowKey) -> bool {
        self.log.write(Access::Socket);
        let place = (key.protocol, key.destination_port.get());
        self.sockets.borrow().contains(&place)
    }

    fn uplinks(&self) -> impl Table<u32, Uplink> {
        self.logged("uplinks", &self.uplinks)
    }

    fn ipcache(&self, address: &Addr) -> Option<IpEntry> {
        self.log.write(Access::Ipcache);
        self.ipcache.borrow().find(address).copied()
    }

    fn policy_peers(&self) -> impl Table<PeerKey, u32> {
        self.logged("policy_peers", &self.policy_peers)
    }

    fn policy_port(&self, key: &PortKey) -> Option<PortVerdict> {
        self.log.write(Access::PolicyPort);
        self.policy_ports.borrow().find(key).copied()
    }

    fn fib(&self, query: &FibQuery, hop: &mut NextHop) -> Fib {
        self.log.write(Access::Fib);
        self.routing
            .borrow()
            .look_up(query, self.config.host_interface, hop)
    }

    fn count(&self, direction: Direction, outcome: u32, bytes: u32) {
        self.log.write(Access::Count);
        let cell = index(direction, outcome);
        if cell < MAX_METRICS {
            let mut counters = self.counters.borrow_mut();
            let counter = counters.entry(cell).or_default();
            counter.packets += 1;
            counter.bytes += u64::from(bytes);
        }
    }

    fn now_ns(&self) -> u64 {
        self.log.write(Access::Now);
        u64::from(self.clock_s.get()) * 1_000_000_000
    }

    fn event_windows(&self) -> impl Table<u32, Window> {
        self.logged("event_windows", &self.event_windows)
    }

    fn emit<P: Packet>(&self, pkt: &P, head: &Head) -> bool {
        self.log.write(Access::Emit);
        let mut events = self.events.borrow_mut();
        if events.len() >= self.event_room.get() {
            return false;
        }
        let mut event = Event {
            head: *head,
            frame: [0; FRAME_BYTES],
        };
        for (byte, offset) in event.frame.iter_mut().zip(0..) {
            match pkt.read(offset) {
                Ok(value) => *byte = value,
                Err(_) => break,
            }
            event.head.captured += 1;
        }
        events.push(event);
        true
    }
}
