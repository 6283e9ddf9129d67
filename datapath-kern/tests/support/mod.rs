//! Frames by etherparse, which knows nothing of the code under test, and hooks run with their
//! counters watched.

#![allow(dead_code, reason = "every test binary uses its own part")]

pub(crate) mod fragments;
pub(crate) mod frame;
pub(crate) mod icmp;
pub(crate) mod invariants;
pub(crate) mod policy;
pub(crate) mod sent;
pub(crate) mod talk;
pub(crate) mod tunnel;
pub(crate) mod ways;

use datapath_kern::abi::addr::Addr;
use datapath_kern::abi::event::{Event, FRAME_BYTES, Head, Window, kind};
use datapath_kern::abi::flow::{Flow, FlowKey, scope};
use datapath_kern::abi::metric::{Direction, FORWARDS, RULINGS};
use datapath_kern::env::Table;
use datapath_kern::host::{Buffer, Hook, Host, plan};
use datapath_kern::packet::Family;
use datapath_kern::verdict::{Action, DropReason, Forward, Ruling, Verdict};

use self::frame::{L4, Tuple};

/// What became of a frame.
#[derive(Clone, Debug)]
pub(crate) struct Out {
    pub(crate) verdict: Verdict,
    pub(crate) reason: Option<DropReason>,
    pub(crate) bytes: Vec<u8>,
    pub(crate) mark: u32,
    /// Copies that were sent, with the interfaces that they left by.
    pub(crate) copies: Vec<(u32, Buffer)>,
    /// The neighbour that the kernel is to resolve, if any.
    pub(crate) gateway: Addr,
    /// The one counter that moved: "egress to-overlay", or nothing.
    pub(crate) counted: String,
    /// What was told of it, where it was dropped.
    pub(crate) event: Option<Event>,
    /// What was told of what policy said of its flow.
    pub(crate) verdicts: Vec<Event>,
    /// What was counted of that.
    pub(crate) rulings: Vec<(Direction, Ruling)>,
}

/// Runs a frame through a hook.
pub(crate) fn run(host: &Host, hook: Hook, interface: u32, bytes: &[u8]) -> Out {
    run_marked(host, hook, interface, bytes, 0)
}

/// Runs a frame with a mark through a hook, and checks what holds for every frame: a drop has a
/// reason, is counted once under it and told in one event; nothing else is counted as a drop, told
/// or counted more than once.
pub(crate) fn run_marked(host: &Host, hook: Hook, interface: u32, bytes: &[u8], mark: u32) -> Out {
    let packet = Buffer {
        mark,
        ..Buffer::new(interface, bytes.to_vec())
    };
    run_packet(host, hook, packet)
}

/// As [`run_marked`], a frame with all that goes with it.
pub(crate) fn run_packet(host: &Host, hook: Hook, mut packet: Buffer) -> Out {
    drop(host.take_counters());
    drop(host.take_events());
    drop(host.take_accesses());
    forget_events(host);
    let run = host.run(hook, &mut packet);
    let counters = host.take_counters();
    assert!(
        !packet.strayed.get(),
        "{hook:?}: an offset that wraps around in the kernel"
    );
    let dropped = run.verdict.action == Action::Drop;
    assert!(!dropped || run.reason.is_some(), "{hook:?}: {run:?}");
    let (drops, forwards): (Vec<_>, Vec<_>) = counters
        .into_iter()
        .partition(|(_, outcome, _)| *outcome < FORWARDS);
    let (rulings, forwards): (Vec<_>, Vec<_>) = forwards
        .into_iter()
        .partition(|(_, outcome, _)| *outcome >= RULINGS);
    let rulings: Vec<_> = rulings
        .into_iter()
        .map(|(direction, code, by)| {
            assert_eq!(by.packets, 1, "{hook:?}: judged more than once");
            (direction, Ruling::from_code(code).unwrap())
        })
        .collect();
    let reasons: Vec<_> = drops
        .iter()
        .map(|(_, code, _)| DropReason::from_code(*code))
        .collect();
    assert_eq!(reasons, Vec::from_iter(run.reason.map(Some)), "{hook:?}");
    // What is refused and answered counts twice: the packet and the answer.
    assert!(forwards.len() <= usize::from(!dropped), "{forwards:?}");
    let mut counted = String::new();
    for (direction, outcome, by) in drops.into_iter().chain(forwards) {
        assert_eq!(by.packets, 1, "{hook:?}: counted more than once");
        let label = match DropReason::from_code(outcome) {
            Some(reason) => reason.label(),
            None => Forward::from_code(outcome).unwrap().label(),
        };
        counted = format!("{} {label}", direction.name());
    }
    if !dropped && run.reason.is_some() {
        assert!(counted.ends_with(Forward::Answered.label()), "{counted}");
    }
    let (verdicts, events): (Vec<_>, Vec<_>) = host
        .take_events()
        .into_iter()
        .partition(|event| event.head.kind == kind::VERDICT);
    let refused = usize::from(run.reason.is_some());
    assert_eq!(events.len(), refused, "{hook:?}: {events:?}");
    // The packet becomes the answer where there is one.
    for event in events.iter().filter(|_| dropped) {
        check_event(host, hook, &packet, run.reason, event);
    }
    let Buffer {
        bytes,
        mark,
        copies,
        ..
    } = packet;
    Out {
        copies,
        event: events.first().copied(),
        verdicts,
        rulings,
        verdict: run.verdict,
        reason: run.reason,
        bytes,
        mark,
        gateway: run.gateway,
        counted,
    }
}

/// Has every reason begin a new second: no event is suppressed.
fn forget_events(host: &Host) {
    for reason in DropReason::ALL {
        host.event_windows
            .update(&reason.code(), |window| *window = Window::default());
    }
}

/// What every event of a drop says, whatever the reason.
fn check_event(host: &Host, hook: Hook, packet: &Buffer, reason: Option<DropReason>, told: &Event) {
    let Head {
        time_ns,
        kind,
        outcome,
        interface,
        length,
        captured,
        ..
    } = told.head;
    let seconds = u64::from(host.clock_s.get());
    assert_eq!((time_ns, kind), (seconds * 1_000_000_000, kind::DROP));
    assert_eq!(reason.map(DropReason::code), Some(outcome.into()));
    assert_eq!(Hook::from_number(told.head.hook), Some(hook));
    assert_eq!(interface, packet.interface);
    assert_eq!(length as usize, packet.bytes.len());
    let frame = &packet.bytes[..packet.bytes.len().min(FRAME_BYTES)];
    assert_eq!(&told.frame[..usize::from(captured)], frame);
    assert!(told.frame[frame.len()..].iter().all(|byte| *byte == 0));
}

impl Out {
    /// Asserts where the frame went and how it was counted.
    #[track_caller]
    pub(crate) fn went(&self, action: Action, interface: u32, counted: &str) -> &Self {
        let found = (self.reason, self.verdict, self.counted.as_str());
        assert_eq!(found, (None, Verdict::new(action, interface), counted));
        self
    }

    /// Asserts why the frame was dropped.
    #[track_caller]
    pub(crate) fn dropped(&self, direction: Direction, reason: DropReason) {
        assert_eq!(
            self.reason,
            Some(reason),
            "{:?} {}",
            self.verdict,
            self.counted
        );
        assert_eq!(
            self.counted,
            format!("{} {}", direction.name(), reason.label())
        );
    }
}

/// Node `number` of two, with four pods; the other one is its peer over `underlay`.
pub(crate) fn node(number: u8, underlay: Family) -> Host {
    let host = Host::node(number).unwrap();
    for pod in 1..=4 {
        host.add_pod(number, pod).unwrap();
    }
    host.add_peer(number, 3 - number, underlay, 4).unwrap();
    host
}

/// A frame as a pod of a node sends it, through `from_pod`.
pub(crate) fn from_pod(host: &Host, node: u8, pod: u8, tuple: &Tuple) -> Out {
    let bytes = frame::of_pod(node, pod, tuple);
    run(host, Hook::FromPod, plan::pod_interface(pod), &bytes)
}

/// A frame as the router forwards it to a node, through `from_uplink`.
pub(crate) fn from_router(host: &Host, node: u8, tuple: &Tuple) -> Out {
    let bytes = frame::build(
        plan::node_mac(plan::ROUTER),
        plan::node_mac(node),
        tuple,
        60,
        b"hi",
    );
    run(host, Hook::FromUplink, plan::UPLINK, &bytes)
}

/// Key of a packet's flow.
pub(crate) fn key(tuple: &Tuple) -> FlowKey {
    let (protocol, source_port, destination_port) = match tuple.l4 {
        L4::Tcp(from, to, _) => (6, from, to),
        L4::Udp(from, to) => (17, from, to),
        L4::EchoRequest(id) => (tuple.icmp(), id, 0),
        L4::EchoReply(id) => (tuple.icmp(), 0, id),
    };
    FlowKey {
        source: tuple.source.into(),
        destination: tuple.destination.into(),
        source_port: source_port.into(),
        destination_port: destination_port.into(),
        protocol,
        scope: scope::PATH,
        reserved: [0; 2],
    }
}

/// The entry under a key, in whichever table.
pub(crate) fn entry(host: &Host, key: &FlowKey) -> Option<Flow> {
    host.flows.get(key).or_else(|| host.pending.get(key))
}
