//! ICMP errors: each goes along the flow of the packet that it quotes, translated as that flow's
//! packets are, outside and within; one that quotes no flow is nobody's. Frames built and taken
//! apart by etherparse, every checksum verified, that of the quoted packet too.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod support;

use std::net::IpAddr;

use datapath_kern::abi::flow::{Flow, FlowKey, flags};
use datapath_kern::abi::metric::Direction::{Egress, Ingress};
use datapath_kern::host::{Buffer, Hook, Host, Prefix, plan};
use datapath_kern::packet::Family::{self, V4, V6};
use datapath_kern::stage::{parse as frame_parse, quoted, rewrite};
use datapath_kern::verdict::{Action, DropReason};
use datapath_kern::wire::checksum;
use datapath_kern::work::Work;
use proptest::prelude::*;
use rstest::rstest;
use support::frame::{self, ACK, L4, SYN, Tuple};
use support::icmp::{self, IcmpError, kinds, port_unreachable, quote};
use support::sent::{from_host, from_uplink};
use support::tunnel::Wrap;
use support::{Out, from_pod, from_router, node, run};

const PAYLOAD: [u8; 90] = [0x5a; 90];
/// How much of the packet behind its IP header is quoted: as RFC 792 says, more, everything.
const QUOTED: [usize; 3] = [8, 64, usize::MAX];
const FLOWS: [L4; 3] = [
    L4::Tcp(40_000, 443, SYN),
    L4::Udp(40_000, 53),
    L4::EchoRequest(40_000),
];

/// Bytes before the inner frame of a tunnel packet.
fn overhead(underlay: Family) -> usize {
    if underlay == V4 { 50 } else { 70 }
}

/// An error as the router delivers it to node 1.
fn by_router(host: &Host, error: &IcmpError) -> (Vec<u8>, Out) {
    let bytes = error.frame(plan::node_mac(plan::ROUTER), plan::node_mac(1), 60);
    let out = from_uplink(host, &bytes);
    (bytes, out)
}

/// An error as a pod sends it.
fn by_pod(host: &Host, node: u8, pod: u8, error: &IcmpError) -> (Vec<u8>, Out) {
    let bytes = error.frame(plan::pod_mac(node, pod), plan::gateway_mac(node), 64);
    let out = run(host, Hook::FromPod, plan::pod_interface(pod), &bytes);
    (bytes, out)
}

/// An error as the stack of a node sends it to pods.
fn by_stack(host: &Host, error: &IcmpError) -> Out {
    let bytes = error.frame([2; 6], [4; 6], 64);
    run(host, Hook::FromHost, plan::GATEWAY_FAR, &bytes)
}

#[track_caller]
fn into_pod(out: &Out, node: u8, pod: u8, counted: &str, expected: &IcmpError, ttl: u8) {
    out.went(Action::IntoPod, plan::pod_interface(pod), counted);
    let parsed = icmp::parse(&out.bytes);
    assert_eq!((&parsed.error, parsed.ttl), (expected, ttl));
    let macs = (plan::gateway_mac(node), plan::pod_mac(node, pod));
    assert_eq!((parsed.from, parsed.to), macs);
}

/// A flow of pod 1 to the outside, and how that looks outside: with a port of its own if another
/// pod has the pod's.
fn masqueraded(host: &Host, family: Family, l4: L4, own_port: bool) -> (Tuple, Tuple) {
    if !own_port {
        let first = Tuple::new(plan::pod(1, 2, family), plan::outside(family), l4);
        assert_eq!(from_pod(host, 1, 2, &first).reason, None);
    }
    let tuple = Tuple::new(plan::pod(1, 1, family), plan::outside(family), l4);
    let out = from_pod(host, 1, 1, &tuple);
    let seen = frame::parse(&out.bytes).tuple;
    assert_eq!(seen.source, plan::node(1, family));
    assert_eq!(seen.l4 == l4, own_port);
    (tuple, seen)
}

#[rstest]
fn an_error_about_a_masqueraded_flow_reaches_its_pod(
    #[values(V4, V6)] family: Family,
    #[values(true, false)] own_port: bool,
    #[values(true, false)] by_destination: bool,
) {
    for l4 in FLOWS {
        let host = node(1, V4);
        let (tuple, seen) = masqueraded(&host, family, l4, own_port);
        let source = if by_destination {
            plan::outside(family)
        } else {
            plan::node(plan::ROUTER, family)
        };
        for &kind in kinds(family) {
            for l4_bytes in QUOTED {
                let about = |tuple: &Tuple| {
                    let quote = quote(tuple, 61, &PAYLOAD, l4_bytes);
                    IcmpError::about(tuple, source, kind, quote)
                };
                let (_, out) = by_router(&host, &about(&seen));
                into_pod(&out, 1, 1, "ingress to-endpoint", &about(&tuple), 59);
            }
        }
    }
}

/// Its own error about an answer leaves translated, as its packets do.
#[rstest]
fn a_pods_error_leaves_under_the_nodes_address(
    #[values(V4, V6)] family: Family,
    #[values(true, false)] own_port: bool,
) {
    for l4 in FLOWS {
        let host = node(1, V4);
        let (tuple, seen) = masqueraded(&host, family, l4, own_port);
        for l4_bytes in QUOTED {
            let about = |answer: &Tuple| {
                let quote = quote(answer, 59, &PAYLOAD, l4_bytes);
                IcmpError::about(answer, answer.destination, port_unreachable(family), quote)
            };
            let (_, out) = by_pod(&host, 1, 1, &about(&tuple.answer(ACK)));
            assert_eq!(
                (out.reason, out.counted.as_str()),
                (None, "egress to-network")
            );
            let parsed = icmp::parse(&out.bytes);
            assert_eq!((parsed.error, parsed.ttl), (about(&seen.answer(ACK)), 63));
        }
        // In another's name, the node's among them, it does not.
        for source in [
            plan::pod(1, 3, family),
            plan::node(1, family),
            plan::gateway(1, family),
        ] {
            let answer = tuple.answer(ACK);
            let forged = IcmpError::about(
                &answer,
                source,
                port_unreachable(family),
                quote(&answer, 59, &PAYLOAD, 8),
            );
            let (bytes, out) = by_pod(&host, 1, 1, &forged);
            out.dropped(Egress, DropReason::InvalidSourceIp);
            assert_eq!(out.bytes, bytes);
        }
    }
}

#[rstest]
fn what_a_pod_says_of_others_flows_is_refused(#[values(V4, V6)] family: Family) {
    let host = node(1, V4);
    let tuple = Tuple::new(
        plan::pod(1, 1, family),
        plan::pod(1, 2, family),
        L4::Udp(5000, 53),
    );
    assert_eq!(from_pod(&host, 1, 1, &tuple).reason, None);
    let error = |source, tuple: &Tuple| {
        IcmpError::about(
            tuple,
            source,
            port_unreachable(family),
            quote(tuple, 63, &PAYLOAD, 8),
        )
    };
    let unknown = Tuple {
        l4: L4::Udp(5001, 53),
        ..tuple
    };
    let elsewhere = IcmpError {
        destination: plan::pod(1, 3, family),
        ..error(tuple.destination, &tuple)
    };
    let refused = [
        // By whom, what, why.
        (
            3,
            error(plan::pod(1, 3, family), &tuple),
            DropReason::IcmpUnrelated,
        ),
        (
            3,
            error(plan::pod(1, 2, family), &tuple),
            DropReason::IcmpUnrelated,
        ),
        (
            1,
            error(plan::pod(1, 2, family), &tuple),
            DropReason::IcmpUnrelated,
        ),
        (
            2,
            error(plan::pod(1, 3, family), &tuple),
            DropReason::InvalidSourceIp,
        ),
        (
            2,
            error(plan::pod(1, 2, family), &unknown),
            DropReason::IcmpUnrelated,
        ),
        // About what it sent itself, and past the one who sent it.
        (
            2,
            error(plan::pod(1, 2, family), &tuple.answer(0)),
            DropReason::IcmpUnrelated,
        ),
        (2, elsewhere, DropReason::IcmpUnrelated),
    ];
    for (pod, error, reason) in refused {
        let (bytes, out) = by_pod(&host, 1, pod, &error);
        out.dropped(Egress, reason);
        assert_eq!(out.bytes, bytes, "{error:?}");
    }
    let (_, out) = by_pod(&host, 1, 2, &error(plan::pod(1, 2, family), &tuple));
    let expected = error(plan::pod(1, 2, family), &tuple);
    into_pod(&out, 1, 1, "egress to-endpoint", &expected, 63);
}

/// From the underlay, what quotes no flow of ours may still be the host's.
#[rstest]
fn forged_errors_from_outside_change_nothing(#[values(V4, V6)] family: Family) {
    let host = node(1, V4);
    let router = plan::node(plan::ROUTER, family);
    let (tuple, seen) = masqueraded(&host, family, L4::Udp(40_000, 53), true);
    let remote = Tuple::new(tuple.source, plan::pod(2, 1, family), L4::Udp(40_000, 53));
    let local = Tuple::new(tuple.source, plan::pod(1, 2, family), L4::Udp(40_000, 53));
    for other in [&remote, &local] {
        assert_eq!(from_pod(&host, 1, 1, other).reason, None);
    }
    let error = |tuple: &Tuple| {
        IcmpError::about(
            tuple,
            router,
            port_unreachable(family),
            quote(tuple, 61, &PAYLOAD, 8),
        )
    };
    let passed = |what: &str, error: &IcmpError| {
        let (bytes, out) = by_router(&host, error);
        out.went(Action::Pass, 0, "");
        assert_eq!(out.bytes, bytes, "{what}");
    };
    passed(
        "unknown flow",
        &error(&Tuple {
            l4: L4::Udp(40_001, 53),
            ..seen
        }),
    );
    passed(
        "other protocol",
        &error(&Tuple {
            l4: L4::Tcp(40_000, 53, SYN),
            ..seen
        }),
    );
    passed("the pod's own tuple", &error(&tuple));
    passed("a flow through the tunnel", &error(&remote));
    passed("a flow within the node", &error(&local));
    passed(
        "past the sender",
        &IcmpError {
            destination: plan::node(7, family),
            ..error(&seen)
        },
    );
    passed(
        "no sender at all",
        &IcmpError {
            destination: tuple.source,
            ..error(&seen)
        },
    );
    for length in [0, 19, 20, 23, 39, 40, 43] {
        let mut cut = error(&seen);
        cut.quote.truncate(length);
        if length < if family == V4 { 24 } else { 44 } {
            passed("cut short", &cut);
        }
    }
    let mut version = error(&seen);
    version.quote[0] ^= 0xf0;
    passed("neither version", &version);
    if family == V4 {
        let mut fragment = error(&seen);
        fragment.quote[7] = 1;
        passed("not the first fragment", &fragment);
    }
    // All that was wanting: now it gets there; and no more once the flow is dead.
    assert_eq!(
        by_router(&host, &error(&seen)).1.counted,
        "ingress to-endpoint"
    );
    let expires_s = host
        .pending
        .entries()
        .iter()
        .map(|(_, flow)| flow.expires_s)
        .max();
    host.clock_s.set(expires_s.unwrap());
    passed("a flow whose time is up", &error(&seen));
}

/// An error that a pod, or a router of the other node, sends back through the tunnel.
#[rstest]
fn errors_come_through_the_tunnel_from_the_flows_peer_alone(
    #[values(V4, V6)] family: Family,
    #[values(V4, V6)] underlay: Family,
) {
    for l4 in FLOWS {
        let (a, b) = (node(1, underlay), node(2, underlay));
        let tuple = Tuple::new(plan::pod(1, 1, family), plan::pod(2, 1, family), l4);
        let there = from_pod(&a, 1, 1, &tuple);
        assert_eq!(from_uplink(&b, &there.bytes).counted, "ingress to-endpoint");

        for l4_bytes in QUOTED {
            let error = IcmpError::about(
                &tuple,
                plan::pod(2, 1, family),
                port_unreachable(family),
                quote(&tuple, 62, &PAYLOAD, l4_bytes),
            );
            let (_, out) = by_pod(&b, 2, 1, &error);
            assert_eq!(
                (out.reason, out.counted.as_str()),
                (None, "egress to-overlay")
            );
            let inner = icmp::parse(&out.bytes[overhead(underlay)..]);
            assert_eq!((&inner.error, inner.ttl), (&error, 63));
            let back = from_uplink(&a, &out.bytes);
            into_pod(&back, 1, 1, "ingress to-endpoint", &error, 62);
        }

        // Routers behind the peer speak for themselves.
        let by_gateway = IcmpError::about(
            &tuple,
            plan::gateway(2, family),
            icmp::expired(family),
            quote(&tuple, 1, &PAYLOAD, 8),
        );
        let inner = by_gateway.frame(plan::gateway_mac(2), plan::gateway_mac(1), 64);
        let kind = Wrap::new(2, 1, underlay, plan::pod_identity(2, 1));
        let out = from_uplink(&a, &kind.around(&inner));
        into_pod(&out, 1, 1, "ingress to-endpoint", &by_gateway, 63);

        a.add_peer(1, 3, underlay, 4).unwrap();
        let forged = [
            Wrap {
                vni: plan::pod_identity(2, 2),
                ..kind.clone()
            },
            Wrap {
                source: plan::node(3, underlay),
                ..kind.clone()
            },
            Wrap {
                source: plan::node(9, underlay),
                ..kind.clone()
            },
            Wrap {
                destination: plan::node(9, underlay),
                ..kind.clone()
            },
        ];
        for wrap in forged {
            let bytes = wrap.around(&inner);
            let out = from_uplink(&a, &bytes);
            out.dropped(Ingress, DropReason::IcmpUnrelated);
            assert_eq!(out.bytes, bytes, "{wrap:?}");
        }
        let unknown = IcmpError {
            quote: quote(&tuple.answer(ACK), 1, &PAYLOAD, 8),
            ..by_gateway
        };
        let inner = unknown.frame(plan::gateway_mac(2), plan::gateway_mac(1), 64);
        from_uplink(&a, &kind.around(&inner)).dropped(Ingress, DropReason::IcmpUnrelated);
    }
}

#[rstest]
fn errors_between_the_node_and_its_pods(#[values(V4, V6)] family: Family) {
    let host = node(1, V4);
    let (pod, gateway) = (plan::pod(1, 1, family), plan::gateway(1, family));
    let error = |tuple: &Tuple, source: IpAddr| {
        IcmpError::about(
            tuple,
            source,
            port_unreachable(family),
            quote(tuple, 64, &PAYLOAD, 64),
        )
    };
    // The stack's, to a pod: its own, and of whoever it speaks for.
    let to_node = Tuple::new(pod, gateway, L4::Udp(5000, 53));
    assert_eq!(from_pod(&host, 1, 1, &to_node).counted, "egress to-host");
    for source in [gateway, plan::node(1, family), plan::outside(family)] {
        let error = error(&to_node, source);
        into_pod(
            &by_stack(&host, &error),
            1,
            1,
            "egress to-endpoint",
            &error,
            64,
        );
    }
    let unknown = error(
        &Tuple {
            l4: L4::Udp(5001, 53),
            ..to_node
        },
        gateway,
    );
    by_stack(&host, &unknown).dropped(Egress, DropReason::IcmpUnrelated);

    // A pod's, to the node.
    let to_pod = Tuple::new(gateway, pod, L4::Udp(5002, 53));
    assert_eq!(from_host(&host, &to_pod).counted, "egress to-endpoint");
    let error = error(&to_pod, pod);
    let (_, out) = by_pod(&host, 1, 1, &error);
    out.went(Action::ToHost, plan::GATEWAY, "egress to-host");
    let parsed = icmp::parse(&out.bytes);
    assert_eq!(
        (parsed.error, parsed.ttl, parsed.to),
        (error, 64, plan::gateway_mac(1))
    );
}

/// The routing table leads through the stack, which forwards for the pod: translated on the
/// uplink, both ways.
#[rstest]
fn errors_about_what_the_stack_forwards_for_a_pod(#[values(V4, V6)] family: Family) {
    for l4 in FLOWS {
        let host = node(1, V4);
        let everything: IpAddr = if family == V4 { "0.0.0.0" } else { "::" }.parse().unwrap();
        host.routing
            .borrow_mut()
            .remove_route(Prefix::new(everything, 0));
        let (pod, router) = (plan::pod(1, 1, family), plan::node(plan::ROUTER, family));
        let tuple = Tuple::new(pod, plan::outside(family), l4);
        assert_eq!(from_pod(&host, 1, 1, &tuple).counted, "egress to-host");
        // The node's own flow has the port already.
        let own = Tuple {
            source: plan::node(1, family),
            ..tuple
        };
        let out_by_stack = |tuple: &Tuple| {
            let macs = (plan::node_mac(1), plan::node_mac(plan::ROUTER));
            let bytes = frame::build(macs.0, macs.1, tuple, 63, b"hi");
            let out = run(&host, Hook::ToUplink, plan::UPLINK, &bytes);
            out.went(Action::Pass, 0, "");
            frame::parse(&out.bytes).tuple
        };
        assert_eq!(out_by_stack(&own), own);
        let seen = out_by_stack(&tuple);
        assert_ne!(seen.l4, tuple.l4);

        let about = |tuple: &Tuple, source| {
            let quote = quote(tuple, 61, &PAYLOAD, 64);
            IcmpError::about(tuple, source, port_unreachable(family), quote)
        };
        let (_, out) = by_router(&host, &about(&seen, router));
        out.went(Action::Pass, 0, "ingress to-stack");
        let expected = about(&tuple, router);
        assert_eq!(icmp::parse(&out.bytes).error, expected);
        into_pod(
            &by_stack(&host, &expected),
            1,
            1,
            "egress to-endpoint",
            &expected,
            64,
        );
        // The node's own stays as it is.
        let (bytes, out) = by_router(&host, &about(&own, router));
        out.went(Action::Pass, 0, "ingress to-host");
        assert_eq!(out.bytes, bytes);

        // What the stack sends: the pod's, the node's, and in the pod's name about nothing.
        let to_uplink = |error: &IcmpError| {
            let bytes = error.frame(plan::node_mac(1), plan::node_mac(plan::ROUTER), 63);
            run(&host, Hook::ToUplink, plan::UPLINK, &bytes)
        };
        let of_pod = to_uplink(&about(&tuple.answer(ACK), pod));
        of_pod.went(Action::Pass, 0, "");
        let expected = about(&seen.answer(ACK), seen.source);
        assert_eq!(icmp::parse(&of_pod.bytes).error, expected);
        let of_node = about(&own.answer(ACK), own.source);
        let out = to_uplink(&of_node);
        out.went(Action::Pass, 0, "");
        assert_eq!(icmp::parse(&out.bytes).error, of_node);
        let other = Tuple {
            l4: L4::Udp(1, 2),
            ..tuple
        };
        to_uplink(&about(&other.answer(ACK), pod)).dropped(Egress, DropReason::IcmpUnrelated);
        let other = Tuple {
            l4: L4::Udp(1, 2),
            ..own
        };
        to_uplink(&about(&other.answer(ACK), own.source)).went(Action::Pass, 0, "");
    }
}

/// A flow of the node's that a pod's stands in the way of.
#[rstest]
fn errors_about_a_flow_of_the_node_that_was_translated(#[values(V4, V6)] family: Family) {
    for l4 in FLOWS {
        let host = node(1, V4);
        let (_, taken) = masqueraded(&host, family, l4, true);
        let own = taken;
        let bytes = frame::build(
            plan::node_mac(1),
            plan::node_mac(plan::ROUTER),
            &own,
            64,
            b"hi",
        );
        let out = run(&host, Hook::ToUplink, plan::UPLINK, &bytes);
        let seen = frame::parse(&out.bytes).tuple;
        assert_ne!(seen.l4, own.l4);
        let about = |tuple: &Tuple| {
            let router = plan::node(plan::ROUTER, family);
            let quote = quote(tuple, 61, &PAYLOAD, 64);
            IcmpError::about(tuple, router, port_unreachable(family), quote)
        };
        let (_, out) = by_router(&host, &about(&seen));
        out.went(Action::Pass, 0, "ingress to-host");
        assert_eq!(icmp::parse(&out.bytes).error, about(&own));
    }
}

/// What arrives for a pod from outside as it is, and what the pod says about it.
#[rstest]
fn errors_about_a_flow_that_nobody_translates(#[values(V4, V6)] family: Family) {
    let host = node(1, V4);
    let pod = plan::pod(1, 1, family);
    let tuple = Tuple::new(plan::outside(family), pod, L4::Udp(5000, 53));
    assert_eq!(from_router(&host, 1, &tuple).counted, "ingress to-endpoint");
    let quoted = quote(&tuple, 59, &PAYLOAD, usize::MAX);
    let error = IcmpError::about(&tuple, pod, port_unreachable(family), quoted);
    let (_, out) = by_pod(&host, 1, 1, &error);
    assert_eq!(
        (out.reason, out.counted.as_str()),
        (None, "egress to-network")
    );
    assert_eq!(icmp::parse(&out.bytes).error, error);
}

/// An error lets no flow live longer, and counts for none.
#[test]
fn an_error_leaves_the_flow_as_it_is() {
    let host = node(1, V4);
    let (_, seen) = masqueraded(&host, V4, L4::Udp(40_000, 53), true);
    host.advance(5);
    let before = host.pending.entries();
    let quoted = quote(&seen, 61, &PAYLOAD, 8);
    let error = IcmpError::about(&seen, plan::outside(V4), (3, 3), quoted);
    assert_eq!(by_router(&host, &error).1.counted, "ingress to-endpoint");
    assert_eq!(host.pending.entries(), before);
    assert!(host.flows.is_empty());
}

/// A flow that sends packets to `address` and `port`, or from there, instead of `old`.
fn rewriting(flag: u16, old: (IpAddr, u16), new: (IpAddr, u16)) -> Flow {
    Flow {
        flags: flag,
        nat_address: new.0.into(),
        nat_port: new.1.into(),
        address_delta: checksum::address_delta(&old.0.into(), &new.0.into()),
        port_delta: checksum::port_delta(old.1, new.1),
        ..Flow::default()
    }
}

proptest! {
    /// By chance, as by etherparse: the pod gets what it would have got without translation.
    #[test]
    fn a_translated_error_is_the_one_about_the_pods_packet(
        v6 in any::<bool>(),
        l4 in 0..3_u8,
        ports in any::<(u16, u16)>(),
        own_port in any::<bool>(),
        kind in any::<prop::sample::Index>(),
        payload in proptest::collection::vec(any::<u8>(), 0..1200),
        l4_bytes in prop_oneof![8..64_usize, 8..1300_usize],
    ) {
        let family = if v6 { V6 } else { V4 };
        let host = node(1, V4);
        let (from, to) = (ports.0.max(1024), ports.1);
        prop_assume!(from != 6081 && to != 6081);
        // Of the reserve: no flow keeps those.
        prop_assume!(!(25_216..33_280).contains(&from));
        // Half a checksum is left as it is: nobody can verify it.
        let l4_bytes = if l4_bytes == 17 { 16 } else { l4_bytes };
        let l4 = match l4 {
            0 => L4::Tcp(from, to, SYN),
            1 => L4::Udp(from, to),
            _ => L4::EchoRequest(from),
        };
        let (tuple, seen) = masqueraded(&host, family, l4, own_port);
        let kind = *kind.get(kinds(family));
        let about = |tuple: &Tuple| {
            let quote = quote(tuple, 61, &payload, l4_bytes);
            IcmpError::about(tuple, plan::outside(family), kind, quote)
        };
        let (_, out) = by_router(&host, &about(&seen));
        prop_assert_eq!(icmp::parse(&out.bytes).error, about(&tuple));
    }

    /// There and back: the same bytes, but for sums of zero, which have two forms.
    #[test]
    fn translating_there_and_back_changes_nothing(
        v6 in any::<bool>(),
        udp in any::<bool>(),
        own in any::<(u8, u16)>(),
        other in any::<(u8, u16)>(),
        payload in proptest::collection::vec(any::<u8>(), 0..600),
        l4_bytes in 8..700_usize,
        towards_sender in any::<bool>(),
    ) {
        let family = if v6 { V6 } else { V4 };
        let l4 = |port| if udp { L4::Udp(port, 53) } else { L4::Tcp(port, 53, ACK) };
        let own = (plan::pod(1, own.0.min(200), family), own.1);
        let other = (plan::node(other.0, family), other.1);
        let outside = plan::outside(family);
        // About a packet of the translated end, or about one for it.
        let sent = Tuple::new(own.0, outside, l4(own.1));
        let about = if towards_sender { sent } else { sent.answer(ACK) };
        let speaker = if towards_sender { outside } else { own.0 };
        let quoted = quote(&about, 60, &payload, l4_bytes);
        let error = IcmpError::about(&about, speaker, port_unreachable(family), quoted);
        let before = error.frame([2; 6], [4; 6], 64);
        let mut packet = Buffer::new(1, before.clone());
        let flag = if towards_sender { flags::DNAT } else { flags::SNAT };
        for (old, new) in [(own, other), (other, own)] {
            let mut work = Work::default();
            frame_parse::frame(&packet, &mut work.hdr).unwrap();
            quoted::read(&packet, &mut work).unwrap();
            work.flow = rewriting(flag, old, new);
            rewrite::apply(&mut packet, &work, false).unwrap();
            // Every checksum is right on the way, too.
            icmp::parse(&packet.bytes);
        }
        let plain = |bytes: &[u8]| -> Vec<u8> {
            let mut bytes = bytes.to_vec();
            for at in checksums(family, udp) {
                if bytes.get(at..at + 2) == Some(&[0xff, 0xff]) {
                    bytes[at..at + 2].fill(0);
                }
            }
            bytes
        };
        prop_assert_eq!(plain(&packet.bytes), plain(&before));
    }
}

/// Where the checksums of an error are: of its own headers, and of what it quotes.
fn checksums(family: Family, udp: bool) -> Vec<usize> {
    let l4 = if udp { 6 } else { 16 };
    match family {
        V4 => vec![24, 36, 52, 62 + l4],
        V6 => vec![56, 102 + l4],
    }
}

/// The key that an error is looked up by has the scope of the hook.
#[test]
fn a_quoted_packet_is_read_as_its_own_headers_say() {
    let tuple = Tuple::new(plan::pod(1, 1, V4), plan::outside(V4), L4::EchoRequest(7));
    let error = IcmpError::about(&tuple, plan::outside(V4), (11, 0), quote(&tuple, 1, b"", 8));
    let packet = Buffer::new(1, error.frame([2; 6], [4; 6], 64));
    let mut work = Work::default();
    frame_parse::frame(&packet, &mut work.hdr).unwrap();
    quoted::read(&packet, &mut work).unwrap();
    let expected: FlowKey = support::key(&tuple);
    assert_eq!(work.quoted.key, expected);
    assert_eq!(
        (work.quoted.length, work.quoted.l3, work.quoted.l4),
        (28, 42, 62)
    );
}
