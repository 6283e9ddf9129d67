//! Two CPUs at one flow: whatever the other one does between any two accesses of a packet, the
//! halves of a pair stay together, and no flow is lost that nobody removed.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod support;

use datapath_kern::abi::flow::{Flow, FlowKey};
use datapath_kern::env::Table;
use datapath_kern::host::{Hash, Host, plan};
use datapath_kern::packet::Family;
use support::frame::{ACK, FIN, L4, RST, SYN, Tuple};
use support::{from_pod, from_router, key, node};

/// How far the flow is when the two CPUs come to it.
const BEFORE: [&[(bool, u8)]; 6] = [
    &[],
    &[(true, SYN)],
    &[(true, SYN), (false, SYN | ACK)],
    &[(true, SYN), (false, SYN | ACK), (true, ACK)],
    &[
        (true, SYN),
        (false, SYN | ACK),
        (true, ACK),
        (true, FIN | ACK),
        (false, FIN | ACK),
    ],
    &[(true, SYN), (false, SYN | ACK), (true, ACK), (true, RST)],
];

/// What one of the CPUs has: the side that sends, and its flags.
const PACKETS: [(bool, u8); 8] = [
    (true, SYN),
    (true, ACK),
    (true, FIN | ACK),
    (true, RST),
    (false, SYN | ACK),
    (false, ACK),
    (false, SYN),
    (false, RST),
];

/// From a pod to another of its node, or to the outside behind the node's address.
fn connection(outside: bool) -> Tuple {
    let to = if outside {
        plan::outside(Family::V4)
    } else {
        plan::pod(1, 2, Family::V4)
    };
    Tuple::new(plan::pod(1, 1, Family::V4), to, L4::Tcp(40_000, 80, 0))
}

fn send(host: &Host, outside: bool, (by_client, flags): (bool, u8)) {
    let tuple = connection(outside);
    let behind = Tuple {
        source: plan::node(1, Family::V4),
        ..tuple
    };
    let bytes = |tuple: &Tuple, pod| support::frame::of_pod(1, pod, tuple);
    let (hook, interface, frame) = if by_client {
        let frame = bytes(&tuple.with_flags(flags), 1);
        (
            datapath_kern::host::Hook::FromPod,
            plan::pod_interface(1),
            frame,
        )
    } else if outside {
        let frame = support::frame::build(
            plan::node_mac(plan::ROUTER),
            plan::node_mac(1),
            &behind.answer(flags),
            60,
            b"hi",
        );
        (datapath_kern::host::Hook::FromUplink, plan::UPLINK, frame)
    } else {
        let frame = bytes(&tuple.answer(flags), 2);
        (
            datapath_kern::host::Hook::FromPod,
            plan::pod_interface(2),
            frame,
        )
    };
    let mut packet = datapath_kern::host::Buffer::new(interface, frame);
    host.run(hook, &mut packet);
}

/// All halves, with whether they are established ones.
fn halves(host: &Host) -> Vec<(bool, FlowKey, Flow)> {
    let of = |table: &Hash<FlowKey, Flow>, established| {
        let entries = table.entries().into_iter();
        entries
            .map(|(key, flow)| (established, key, flow))
            .collect::<Vec<_>>()
    };
    [of(&host.flows, true), of(&host.pending, false)].concat()
}

/// Every half has its partner in the same table, and no tuple is in both.
#[track_caller]
fn check(host: &Host, what: &str) {
    for (established, key, flow) in halves(host) {
        let table = if established {
            &host.flows
        } else {
            &host.pending
        };
        let partner = table.get(&flow.partner_key(&key));
        assert_eq!(
            partner.map(|partner| partner.pair),
            Some(flow.pair),
            "{what}: alone, established {established}: {key:?} {flow:?}"
        );
        let twice = host.flows.get(&key).is_some() && host.pending.get(&key).is_some();
        assert!(!twice, "{what}: in both tables: {key:?}");
    }
}

/// Runs a packet with something else in between, at every place there is.
fn at_every_place(
    what: &str,
    outside: bool,
    before: &[(bool, u8)],
    first: (bool, u8),
    other: impl Fn(&Host) + Clone + 'static,
    check: impl Fn(&Host, &str),
) {
    for place in 0.. {
        let host = node(1, Family::V4);
        for &packet in before {
            send(&host, outside, packet);
        }
        host.interrupt(place, other.clone());
        send(&host, outside, first);
        if host.call_off() {
            assert!(place > 0, "the packet path has accesses");
            return;
        }
        check(&host, &format!("{what}, place {place}"));
    }
}

#[test]
fn no_two_packets_leave_half_a_flow() {
    for outside in [false, true] {
        for (number, before) in BEFORE.iter().enumerate() {
            for first in PACKETS {
                for second in PACKETS {
                    let what = format!("outside {outside}, {number}: {first:?} and {second:?}");
                    let other = move |host: &Host| send(host, outside, second);
                    at_every_place(&what, outside, before, first, other, check);
                }
            }
        }
    }
}

#[test]
fn a_flow_that_is_proven_twice_at_once_is_proven() {
    for outside in [false, true] {
        let other = move |host: &Host| send(host, outside, (true, ACK));
        at_every_place("", outside, BEFORE[2], (true, ACK), other, |host, what| {
            check(host, what);
            assert_eq!((host.flows.len(), host.pending.len()), (2, 0), "{what}");
        });
    }
}

#[test]
fn both_sides_go_on_while_the_flow_is_promoted() {
    for outside in [false, true] {
        let other = move |host: &Host| send(host, outside, (false, ACK));
        at_every_place("", outside, BEFORE[2], (true, ACK), other, |host, what| {
            check(host, what);
            let forward = host.flows.get(&key(&connection(outside)));
            assert!(forward.is_some(), "{what}: lost");
        });
    }
}

#[test]
fn what_user_space_removes_meanwhile_is_gone_whole_or_there_whole() {
    for outside in [false, true] {
        for before in BEFORE {
            for first in PACKETS {
                let sweep = |host: &Host| {
                    for (_, key, _) in halves(host) {
                        host.flows.remove(&key);
                        host.pending.remove(&key);
                    }
                };
                let what = format!("outside {outside}: {first:?}");
                at_every_place(&what, outside, before, first, sweep, |host, what| {
                    // What a packet finds alone it removes.
                    for again in [(true, ACK), (false, ACK)] {
                        send(host, outside, again);
                    }
                    for (established, key, flow) in halves(host) {
                        let partner = flow.partner_key(&key);
                        let found = if established {
                            host.flows.get(&partner)
                        } else {
                            host.pending.get(&partner)
                        };
                        assert_eq!(
                            found.map(|half| half.pair),
                            Some(flow.pair),
                            "{what}: established {established}"
                        );
                    }
                });
            }
        }
    }
}

#[test]
fn one_tuple_outside_is_never_two_flows() {
    // Two pods by the same port to the same server, behind one address.
    let second = Tuple {
        source: plan::pod(1, 2, Family::V4),
        ..connection(true)
    };
    let other = move |host: &Host| {
        let frame = support::frame::of_pod(1, 2, &second.with_flags(SYN));
        let mut packet = datapath_kern::host::Buffer::new(plan::pod_interface(2), frame);
        host.run(datapath_kern::host::Hook::FromPod, &mut packet);
    };
    at_every_place("", true, BEFORE[0], (true, SYN), other, |host, what| {
        check(host, what);
        assert_eq!(host.pending.len(), 4, "{what}: two flows");
    });
    // And in one go, for the helpers that take frames from elsewhere.
    let host = node(1, Family::V4);
    from_pod(&host, 1, 1, &connection(true).with_flags(SYN));
    from_router(&host, 1, &connection(true).answer(SYN | ACK));
    check(&host, "one flow");
}
