//! What is known of the packet at hand.

use crate::abi::addr::Addr;
use crate::abi::event::{Head, Hook};
use crate::abi::flow::{Flow, FlowKey};
use crate::abi::fragment::{Fragment, FragmentKey};
use crate::abi::metric::Direction;
use crate::abi::nexthop::NextHop;
use crate::env::{Env, FibQuery};
use crate::packet::{Headers, Packet};
use crate::stage::decap::Wrapping;
use crate::stage::origin::{Arrival, Origin};
use crate::stage::policy::Judgement;
use crate::stage::ports::Search;
use crate::stage::quoted::Quoted;
use crate::stage::route::Route;
use crate::verdict::DropReason;
use crate::wire::underlay::Underlay;

/// One packet's state on its way through a hook.
///
/// Lives outside the kernel's stack, which has 512 bytes for the whole call chain: in the kernel
/// it is this CPU's element of an array, under test a local variable. What it holds from an
/// earlier packet means nothing, but for the time.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Work {
    /// The packet's headers; of the inner packet once it is out of the tunnel.
    pub hdr: Headers,
    /// How it came in.
    pub arrival: Arrival,
    /// What time it is, of all packets.
    pub clock: Clock,
    /// The tunnel packet that it was in, where it came through the tunnel.
    pub wrapping: Wrapping,
    /// Its flow: found, or made for it.
    pub flow: Flow,
    /// The other half of a flow in the making.
    pub reply: Flow,
    /// Key of that other half.
    pub reply_key: FlowKey,
    /// Key of a flow in the way of the one in the making.
    pub held_key: FlowKey,
    /// The search for a port.
    pub search: Search,
    /// Who sent it, where there was no current flow to tell.
    pub origin: Origin,
    /// Where it goes, likewise: the address, after translation,
    pub destination: Addr,
    /// and the way there.
    pub route: Route,
    /// What the routing table is asked,
    pub query: FibQuery,
    /// and the next hop: as it answered, or as it was remembered.
    pub hop: NextHop,
    /// Why the packet was dropped, once it was.
    pub reason: Option<DropReason>,
    /// The packet that an ICMP error is about.
    pub quoted: Quoted,
    /// The packet that a fragment is of,
    pub fragment_key: FragmentKey,
    /// what is known of it,
    pub fragment: Fragment,
    /// and the identification that it is to leave with.
    pub identification: FragmentKey,
    /// Whether what a piece was cut from was a fragment already.
    pub of_fragment: bool,
    /// Headers for the tunnel.
    pub underlay: Underlay,
    /// The hook that the packet is at.
    pub hook: Hook,
    /// Whether [`Work::flow`] is the packet's, and holds.
    pub judged: bool,
    /// What is told of the packet.
    pub event: Head,
    /// What policy says of its flow, where that was judged for it.
    pub judgement: Judgement,
}

impl Work {
    /// Begins with a packet at `hook`: nothing is known of its headers, flow, sender and way, and
    /// what tells so says so.
    #[inline(always)]
    pub fn begin(&mut self, hook: Hook) {
        self.hook = hook;
        self.hdr.l3 = 0;
        self.judged = false;
        self.origin.flags = 0;
        self.route.target = 0;
    }

    /// Notes how the packet came in: at a hook of this node, now. Who sent it is left open.
    ///
    /// In place: another [`Arrival`] would be put together on the stack and copied.
    #[inline(always)]
    pub fn arrive<E: Env, P: Packet>(&mut self, env: &E, pkt: &P, by: u16, direction: Direction) {
        self.arrival.by = by;
        self.arrival.direction = direction;
        self.arrival.interface = pkt.interface();
        self.arrival.now_s = self.clock.now_s(env);
    }
}

/// The time as it was last asked for: once a tick, as it does not change in between.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    /// [`Env::tick`] of then; zero where nobody asked yet.
    tick: u64,
    now_s: u32,
}

impl Clock {
    /// Seconds on `CLOCK_MONOTONIC`.
    #[inline(always)]
    fn now_s<E: Env>(&mut self, env: &E) -> u32 {
        let tick = env.tick();
        if tick != self.tick {
            self.tick = tick;
            self.now_s = env.now_s();
        }
        self.now_s
    }
}
