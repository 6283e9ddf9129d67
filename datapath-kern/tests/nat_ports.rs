//! Which ports masquerade gives out: how often a search fails, what a refusal costs, and who is
//! refused.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test may panic"
)]

mod support;

use datapath_kern::abi::flow::{End, Flow, FlowKey};
use datapath_kern::abi::metric::Direction;
use datapath_kern::abi::search::PORTS_PER_WORD;
use datapath_kern::env::Table;
use datapath_kern::host::{Access, Hook, Host, Op, plan};
use datapath_kern::packet::Family;
use datapath_kern::stage::flow::scramble;
use datapath_kern::verdict::DropReason;
use rstest::rstest;
use support::frame::{self, L4, SYN, Tuple};
use support::{Out, from_pod, key, node};

/// Where the range begins.
const LOW: u16 = 20_000;
/// Source ports outside of it, none of which can be kept, begin here.
const OTHER: u16 = 40_000;

/// A node whose masquerade has so many ports.
fn node_with(ports: u16) -> Host {
    let mut host = node(1, Family::V4);
    host.config.nat_port_min = LOW.into();
    host.config.nat_port_max = u32::from(LOW) + u32::from(ports) - 1;
    host
}

/// The first packet of a pod's flow to the one remote.
fn begin(pod: u8, source_port: u16) -> Tuple {
    let l4 = L4::Tcp(source_port, 443, SYN);
    Tuple::new(plan::pod(1, pod, Family::V4), plan::outside(Family::V4), l4)
}

fn send(host: &Host, pod: u8, source_port: u16) -> Out {
    let out = from_pod(host, 1, pod, &begin(pod, source_port));
    drop(host.take_accesses());
    out
}

/// The port that a flow left with.
fn port(out: &Out) -> u16 {
    assert_eq!(out.reason, None);
    match frame::parse(&out.bytes).tuple.l4 {
        L4::Tcp(port, ..) => port,
        other => panic!("{other:?}"),
    }
}

/// Key of the answers to a port.
fn answers_to(port: u16) -> FlowKey {
    let seen = Tuple {
        source: plan::node(1, Family::V4),
        ..begin(1, port)
    };
    key(&seen).reversed()
}

/// Has a proven flow of a pod hold a port.
fn occupy(host: &Host, pod: u16, port: u16) {
    let flow = Flow {
        pair: 1,
        expires_s: u32::MAX,
        to: End::endpoint(pod).raw(),
        ..Flow::default()
    };
    host.flows.insert(&answers_to(port), &flow).unwrap();
}

/// Ends the flow of a first packet that left.
fn end(host: &Host, pod: u8, source_port: u16, out: &Out) {
    assert!(host.pending.remove(&answers_to(port(out))));
    assert!(host.pending.remove(&key(&begin(pod, source_port))));
}

/// Numbers without pattern, the same every time.
struct Chance(u32);

impl Chance {
    fn below(&mut self, bound: u16) -> u16 {
        self.0 += 1;
        u16::try_from(scramble(self.0) % u32::from(bound)).unwrap()
    }
}

#[rstest]
fn a_search_fails_no_more_often_than_chance_would(
    #[values(50, 80, 90, 95, 99)] percent: u16,
    #[values(64, 1024)] ports: u16,
) {
    const LAYOUTS: u32 = 20;
    const EACH: u16 = 150;
    let mut chance = Chance(u32::from(percent) << 16);
    let mut refused = 0_u32;
    for layout in 0..LAYOUTS {
        let mut host = node_with(ports);
        host.config.seed = layout;
        let occupied = (u32::from(ports) * u32::from(percent)).div_ceil(100);
        let mut left = occupied;
        while left > 0 {
            let port = LOW + chance.below(ports);
            if host.flows.get(&answers_to(port)).is_none() {
                occupy(&host, 2 + port % 3, port);
                left -= 1;
            }
        }
        for number in 0..EACH {
            let out = send(&host, 1, OTHER + number);
            match out.reason {
                None => end(&host, 1, OTHER + number, &out),
                Some(DropReason::NatExhausted) => refused += 1,
                other => panic!("{other:?}"),
            }
        }
    }
    let occupancy = f64::from((u32::from(ports) * u32::from(percent)).div_ceil(100));
    let expected = (occupancy / f64::from(ports)).powi(32);
    let tries = f64::from(LAYOUTS) * f64::from(EACH);
    // Five times the deviation, and one for the rate that is none.
    let slack = 5.0 * (expected * (1.0 - expected) / tries).sqrt() + 1.0 / tries;
    let rate = f64::from(refused) / tries;
    println!("{percent} % of {ports}: {rate:.4} of searches failed, at most {expected:.4}");
    assert!(rate <= expected + slack, "{rate} above {expected}");
}

/// Looks at the tables of flows that a packet costs.
fn looks(host: &Host, pod: u8, source_port: u16) -> (Option<DropReason>, usize) {
    let out = from_pod(host, 1, pod, &begin(pod, source_port));
    let accesses = host.take_accesses();
    let of_flows = |access: &&Access| access.is_to("flows") || access.is_to("pending");
    (out.reason, accesses.iter().filter(of_flows).count())
}

#[test]
fn a_refusal_is_cheap_once_the_ports_are_known_to_be_taken() {
    const PORTS: u16 = 1024;
    let host = node_with(PORTS);
    for port in LOW..LOW + PORTS {
        occupy(&host, 2 + port % 3, port);
    }
    let mut costs = Vec::new();
    for number in 0..200 {
        let (reason, cost) = looks(&host, 1, OTHER + number);
        assert_eq!(reason, Some(DropReason::NatExhausted));
        costs.push(cost);
    }
    assert!(costs[0] > 30, "all the probes at first: {costs:?}");
    // 28 ports of 896 and 4 of 128 at a time, from the second on.
    let known = &costs[34..];
    let at_once = known.iter().filter(|cost| **cost == 2).count();
    assert!(at_once * 16 >= known.len() * 14, "{known:?}");
    assert!(known.iter().all(|cost| *cost <= 14), "{known:?}");
    // Seen anew from time to time.
    host.advance(2);
    assert!(looks(&host, 1, OTHER + 900).1 > 30);
}

/// The searches' own traces do not make the next ones fail: taken ports lie as chance has them.
#[rstest]
fn a_range_that_searches_filled_is_no_worse(#[values(90, 95, 98)] percent: u32) {
    const PORTS: u16 = 8192;
    let host = node_with(PORTS);
    let tries = u32::from(PORTS) * percent / 100;
    let (mut begun, mut expected) = (0_u32, 0.0);
    for number in 0..tries {
        let pod = 1 + u8::try_from(number % 4).unwrap();
        let source_port = OTHER + u16::try_from(number / 4).unwrap();
        expected += (f64::from(begun) / f64::from(PORTS)).powi(32);
        begun += u32::from(send(&host, pod, source_port).reason.is_none());
    }
    let refused = f64::from(tries - begun);
    println!("{percent} % of {PORTS}: {refused} refused, at most {expected:.0}");
    assert!(refused <= expected + 5.0 * expected.sqrt() + 1.0);
}

#[rstest]
fn a_port_that_becomes_free_is_found(#[values(0, 300, 400, 1023)] free: u16) {
    const PORTS: u16 = 1024;
    let host = node_with(PORTS);
    for port in LOW..LOW + PORTS {
        occupy(&host, 2 + port % 3, port);
    }
    for number in 0..100 {
        send(&host, 1, OTHER + number).dropped(Direction::Egress, DropReason::NatExhausted);
    }
    host.flows.remove(&answers_to(LOW + free));
    // One flow in sixteen tries eight ports of the open part and one of the reserve.
    let found = (0..3 * PORTS).find_map(|number| {
        let out = send(&host, 1, OTHER + 1000 + number);
        (out.reason.is_none()).then(|| port(&out))
    });
    assert_eq!(found, Some(LOW + free));
}

/// However many flows one pod opens, the others get theirs.
#[test]
fn no_pod_takes_the_ports_of_the_others() {
    const PORTS: u16 = 2048;
    let host = node_with(PORTS);
    let mut given = 0;
    let mut refused = 0;
    // Its own ports in the range, all of them, and others; and again, as one would who wants more.
    for source_port in (LOW - 3000..LOW + 9000).chain(LOW - 3000..LOW + 9000) {
        match send(&host, 1, source_port).reason {
            None => given += 1,
            Some(DropReason::NatShare) => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    println!("{given} flows, {refused} refused");
    let own = host.pending.entries();
    let held = own
        .iter()
        .filter(|(key, _)| key.source == plan::outside(Family::V4).into());
    assert_eq!(held.count(), usize::from(PORTS - PORTS / 8));
    // The others get along with what is left to them.
    let mut others = 0;
    for number in 0..100 {
        let pod = 2 + u8::try_from(number % 3).unwrap();
        others += u32::from(send(&host, pod, OTHER + number).reason.is_none());
    }
    assert!(others >= 95, "{others} of 100");
    // Still nothing more for the one, and it is told why.
    let out = send(&host, 1, OTHER + 20_000);
    out.dropped(Direction::Egress, DropReason::NatShare);
    let event = out.event.unwrap();
    assert_eq!(event.head.source, End::endpoint(1).raw());
    assert_eq!(
        frame::parse(&event.frame[..event.head.captured.into()]).tuple,
        begin(1, OTHER + 20_000)
    );
}

/// Two pods that share a range evenly are none too many for each other.
#[test]
fn a_range_is_used_to_the_end_by_several() {
    const PORTS: u16 = 512;
    let host = node_with(PORTS);
    let mut ports = std::collections::BTreeSet::new();
    for number in 0..4000 {
        let pod = 1 + u8::try_from(number % 4).unwrap();
        let out = send(&host, pod, OTHER + number);
        match out.reason {
            None => assert!(ports.insert(port(&out)), "given twice"),
            Some(DropReason::NatExhausted) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(ports, (LOW..LOW + PORTS).collect());
}

fn exclude(host: &Host, port: u16) {
    let word = u32::from(port) / PORTS_PER_WORD;
    let bit = 1 << (u32::from(port) % PORTS_PER_WORD);
    host.excluded_ports.update(&word, |bits| *bits |= bit);
}

#[test]
fn excluded_ports_and_those_of_sockets_are_not_given_out() {
    const PORTS: u16 = 32;
    let host = node_with(PORTS);
    let (excluded, of_socket) = (LOW + 5, LOW + 30);
    exclude(&host, excluded);
    host.sockets.borrow_mut().insert((6, of_socket));
    // Neither to those who come with them.
    let mut ports: Vec<_> = [(1, excluded), (2, of_socket)]
        .map(|(pod, own)| port(&send(&host, pod, own)))
        .to_vec();
    for number in 0..60 {
        let out = send(&host, 1 + u8::try_from(number % 4).unwrap(), OTHER + number);
        if out.reason.is_none() {
            ports.push(port(&out));
        } else {
            out.dropped(Direction::Egress, DropReason::NatExhausted);
        }
    }
    ports.sort_unstable();
    let expected: Vec<_> = (LOW..LOW + PORTS)
        .filter(|port| ![excluded, of_socket].contains(port))
        .collect();
    assert_eq!(ports, expected);
    // A UDP flow may have the TCP socket's.
    let l4 = L4::Udp(of_socket, 53);
    let udp = Tuple {
        l4,
        ..begin(1, of_socket)
    };
    let out = from_pod(&host, 1, 1, &udp);
    assert_eq!(frame::parse(&out.bytes).tuple.l4, l4);
}

/// Whose socket it is does not matter to the node itself: it is the socket's own flow.
#[test]
fn a_socket_of_the_node_keeps_its_own_port() {
    let host = node_with(64);
    host.sockets.borrow_mut().insert((6, LOW));
    exclude(&host, LOW);
    let tuple = Tuple {
        source: plan::node(1, Family::V4),
        ..begin(1, LOW)
    };
    let bytes = frame::build(
        plan::node_mac(1),
        plan::node_mac(plan::ROUTER),
        &tuple,
        64,
        b"hi",
    );
    let out = support::run(&host, Hook::ToUplink, plan::UPLINK, &bytes);
    assert_eq!((out.reason, out.bytes), (None, bytes));
}

/// Other remotes and protocols have searches of their own.
#[test]
fn what_is_remembered_is_of_one_remote() {
    let host = node_with(16);
    for port in LOW..LOW + 16 {
        occupy(&host, 2 + port % 3, port);
    }
    for number in 0..10 {
        send(&host, 1, OTHER + number).dropped(Direction::Egress, DropReason::NatExhausted);
    }
    assert_eq!(host.port_searches.len(), 1);
    let elsewhere = Tuple {
        l4: L4::Tcp(OTHER, 80, SYN),
        ..begin(1, OTHER)
    };
    assert_eq!(from_pod(&host, 1, 1, &elsewhere).reason, None);
    // One that goes by without searching asks for nothing that is remembered.
    drop(host.take_accesses());
    let kept = Tuple {
        l4: L4::Tcp(LOW + 1, 8080, SYN),
        ..begin(1, OTHER)
    };
    assert_eq!(from_pod(&host, 1, 1, &kept).reason, None);
    let accesses = host.take_accesses();
    assert!(!accesses.contains(&Access::Table("port_searches", Op::Update)));
}
