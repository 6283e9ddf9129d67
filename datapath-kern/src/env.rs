//! What the packet logic needs of the world around it: maps, clock, routing table, counters.
//!
//! The kernel implements this over BPF maps and helpers, `host` over ordinary collections.

use crate::abi::addr::Addr;
use crate::abi::budget::Budget;
use crate::abi::config::Settings;
use crate::abi::endpoint::Endpoint;
use crate::abi::event;
use crate::abi::flow::{Flow, FlowKey};
use crate::abi::fragment::{Fragment, FragmentKey};
use crate::abi::ipcache::IpEntry;
use crate::abi::metric::Direction;
use crate::abi::nexthop::{Claim, NextHop};
use crate::abi::policy::{PeerKey, PortKey, PortVerdict};
use crate::abi::quota::Quota;
use crate::abi::search::{PortSearch, Refusal};
use crate::abi::tally::Tally;
use crate::abi::tunnel::{Peer, Uplink};
use crate::packet::Packet;
use crate::stage::apart::Apart;
use crate::verdict::DropReason;
use crate::work::Work;

/// A map from `K` to `V`.
///
/// `get` copies the value as it was at that moment. Inside `update` another CPU may write the
/// same value: each field is one aligned word, and every update tolerates that the other one wins
/// or that an increment is lost. What must not be lost is decided by `insert`, which is atomic.
pub trait Table<K, V: Copy> {
    /// The value under `key`.
    fn get(&self, key: &K) -> Option<V>;

    /// Changes the value under `key` in place.
    fn update<R>(&self, key: &K, change: impl FnOnce(&mut V) -> R) -> Option<R>;

    /// As [`Table::update`], with what is done put in place for certain.
    #[inline(always)]
    fn visit<T: Visit<V>>(&self, key: &K, visit: T) -> Option<T::Outcome> {
        self.update(key, |value| visit.visit(value))
    }

    /// Enters a value under a key that has none.
    ///
    /// # Errors
    ///
    /// [`InsertError::Exists`] where the key has one, the others where there is no room.
    fn insert(&self, key: &K, value: &V) -> Result<(), InsertError>;

    /// Takes a key out. Whether it was there.
    fn remove(&self, key: &K) -> bool;
}

/// What is done with a value where it lies. Of a closure that several programs have the compiler
/// makes a function, whose call every packet would pay for; what is written as this is put in place.
pub trait Visit<V> {
    /// What comes of it.
    type Outcome;

    /// Does it.
    fn visit(self, value: &mut V) -> Self::Outcome;
}

/// Why [`Table::insert`] did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// The key is there already.
    Exists,
    /// No room: `E2BIG`, `ENOSPC`.
    Full,
    /// No memory for another one, or none that the table could let go of: `ENOMEM`.
    NoMemory,
    /// The bucket was being changed, by this CPU or (before Linux 6.15) by another: `EBUSY`.
    Busy,
    /// Anything else that the kernel says.
    Other,
}

/// Maps, clock, routing table and counters.
pub trait Env: Settings {
    /// Seconds on `CLOCK_MONOTONIC`, coarse.
    fn now_s(&self) -> u32;

    /// A number that changes whenever the coarse clock does, and is never zero: cheaper to look at.
    fn tick(&self) -> u64;

    /// A number that tells incarnations of a flow apart.
    fn random(&self) -> u32;

    /// Established flows: never evicted, refuses when full.
    fn flows(&self) -> impl Table<FlowKey, Flow>;

    /// Flows not yet proven: the least recently used goes when full.
    fn pending(&self) -> impl Table<FlowKey, Flow>;

    /// Local endpoints by slot.
    fn endpoints(&self) -> impl Table<u32, Endpoint>;

    /// Slot of an endpoint by the interface of its host's side.
    fn endpoint_slots(&self) -> impl Table<u32, u32>;

    /// Peers by index.
    fn peers(&self) -> impl Table<u32, Peer>;

    /// Index of a peer by its underlay address.
    fn peer_indices(&self) -> impl Table<Addr, u32>;

    /// Next hops by slot.
    fn next_hops(&self) -> impl Table<u32, NextHop>;

    /// Who holds the slots that the datapath claims by itself.
    fn claims(&self) -> impl Table<u32, Claim>;

    /// Packets that come in fragments: the least recently used goes when full.
    fn fragments(&self) -> impl Table<FragmentKey, Fragment>;

    /// Identifications that masqueraded packets in fragments left with, and until when they are
    /// taken, seconds on `CLOCK_MONOTONIC`: the least recently used goes when full.
    fn fragment_ids(&self) -> impl Table<FragmentKey, u32>;

    /// What ends of the network have used up of what they may have, by the slots of their next
    /// hops.
    fn budgets(&self) -> impl Table<u32, Budget>;

    /// What endpoints have of the flow tables, by slot.
    fn quotas(&self) -> impl Table<u32, Quota>;

    /// Counts what happened to so many flows, or entries of flows.
    fn tally(&self, what: Tally, count: u64);

    /// Searches for a port that found none: the least recently used goes when full.
    fn port_searches(&self) -> impl Table<FlowKey, PortSearch>;

    /// Remotes that new flows are not even routed to, by a hash.
    fn refusals(&self) -> impl Table<u32, Refusal>;

    /// Ports that masquerade does not hand out,
    /// [`PORTS_PER_WORD`](crate::abi::search::PORTS_PER_WORD) bits to a word.
    fn excluded_ports(&self) -> impl Table<u32, u64>;

    /// Whether a socket of this node would receive packets of this tuple, as they arrive; TCP and
    /// UDP only.
    fn is_of_socket(&self, key: &FlowKey) -> bool;

    /// Uplinks by interface.
    fn uplinks(&self) -> impl Table<u32, Uplink>;

    /// Longest prefix of the ipcache that covers `address`.
    fn ipcache(&self, address: &Addr) -> Option<IpEntry>;

    /// Classes of peers by rule set and direction.
    fn policy_peers(&self) -> impl Table<PeerKey, u32>;

    /// Longest prefix of what the classes say of ports that covers `key`.
    fn policy_port(&self, key: &PortKey) -> Option<PortVerdict>;

    /// Asks the routing table the way to a destination, and writes what it found into `hop`:
    /// neighbour, interface and, as [`NextHop::kind`] tells, Ethernet addresses.
    fn fib(&self, query: &FibQuery, hop: &mut NextHop) -> Fib;

    /// Counts a packet under `outcome`, a code of `DropReason`, `Forward` or `Ruling`.
    fn count(&self, direction: Direction, outcome: u32, bytes: u32);

    /// Nanoseconds on `CLOCK_MONOTONIC`.
    fn now_ns(&self) -> u64;

    /// This CPU's counts of events told and not told, by code of the `DropReason`;
    /// [`event::VERDICTS`] for verdicts.
    fn event_windows(&self) -> impl Table<u32, event::Window>;

    /// Calls a stage; where it matters how, in a way that the verifier looks at it by itself.
    ///
    /// # Errors
    ///
    /// What the stage says.
    #[inline(always)]
    fn apart(&self, stage: Apart, work: &mut Work) -> Result<(), DropReason>
    where
        Self: Sized,
    {
        stage.run(self, work)
    }

    /// Tells user space of an event: the head, [`event::Head::captured`] filled in, and the first
    /// bytes of the packet. Whether there was room for it.
    fn emit<P: Packet>(&self, pkt: &P, head: &event::Head) -> bool;
}

/// A question to the routing table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FibQuery {
    /// Source address, for rules that look at it.
    pub source: Addr,
    /// Where the packet goes.
    pub destination: Addr,
}

/// The routing table's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fib {
    /// Out of an interface to a neighbour.
    Found,
    /// The kernel's own stack has to do it.
    Stack,
    /// No way.
    Unreachable,
}
