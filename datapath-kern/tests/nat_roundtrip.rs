//! Masquerade there and back: what leaves is the node's, what comes back is the right pod's, and
//! no two flows look alike outside.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod support;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use datapath_kern::abi::flow::FlowKey;
use datapath_kern::abi::metric::Direction;
use datapath_kern::abi::tunnel::Uplink;
use datapath_kern::env::Table;
use datapath_kern::host::{Buffer, Hook, Host, Prefix, Way, plan};
use datapath_kern::packet::Family;
use datapath_kern::verdict::{Action, DropReason};
use proptest::prelude::*;
use rstest::rstest;
use support::frame::{self, ACK, L4, RST, SYN, Tuple};
use support::{Out, entry, from_pod, from_router, key, node, run};

const TUNNEL_PORT: u16 = 6081;

fn family(v6: bool) -> Family {
    if v6 { Family::V6 } else { Family::V4 }
}

/// A node whose masquerade has the ports from `low` to `high`.
fn node_with_ports(low: u32, high: u32) -> Host {
    let mut host = node(1, Family::V4);
    host.config.nat_port_min = low;
    host.config.nat_port_max = high;
    host
}

/// Asserts that a frame left for the router as the node's, and returns it as it was seen outside.
#[track_caller]
fn masqueraded(out: &Out, original: &Tuple) -> Tuple {
    assert_eq!(out.counted, "egress to-network", "{:?}", out.reason);
    assert!(matches!(
        out.verdict.action,
        Action::Out | Action::OutToNeighbour
    ));
    assert_eq!(out.verdict.interface, plan::UPLINK);
    let seen = frame::parse(&out.bytes);
    let family = family(original.source.is_ipv6());
    assert_eq!(seen.tuple.source, plan::node(1, family));
    assert_eq!(seen.tuple.destination, original.destination);
    assert_eq!((seen.ttl, seen.payload.as_slice()), (63, &b"hi"[..]));
    match (seen.tuple.l4, original.l4) {
        (L4::Tcp(_, to, flags), L4::Tcp(_, was, were)) => assert_eq!((to, flags), (was, were)),
        (L4::Udp(_, to), L4::Udp(_, was)) => assert_eq!(to, was),
        (L4::EchoRequest(_), L4::EchoRequest(_)) => {}
        other => panic!("{other:?}"),
    }
    seen.tuple
}

/// The port, or the identifier, that a flow was seen with.
fn port(seen: &Tuple) -> u16 {
    match seen.l4 {
        L4::Tcp(port, ..) | L4::Udp(port, _) | L4::EchoRequest(port) | L4::EchoReply(port) => port,
    }
}

/// Asserts that the answer to what was `seen` outside reaches `pod` as the answer to `original`.
#[track_caller]
fn answered(host: &Host, pod: u8, original: &Tuple, seen: &Tuple) {
    let back = from_router(host, 1, &seen.answer(ACK));
    back.went(
        Action::IntoPod,
        plan::pod_interface(pod),
        "ingress to-endpoint",
    );
    let parsed = frame::parse(&back.bytes);
    assert_eq!(parsed.tuple, original.answer(ACK));
    assert_eq!(
        (parsed.from, parsed.to),
        (plan::gateway_mac(1), plan::pod_mac(1, pod))
    );
    assert_eq!((parsed.ttl, parsed.payload.as_slice()), (59, &b"hi"[..]));
}

#[derive(Clone, Copy, Debug)]
struct Flow {
    pod: u8,
    tuple: Tuple,
}

/// Flows of four pods that get in each other's way: few ports, few destinations.
fn flow() -> impl Strategy<Value = Flow> {
    (
        1..=4_u8,
        any::<bool>(),
        0..3_u8,
        0..2_u8,
        prop_oneof![Just(5000), Just(TUNNEL_PORT), 5000..5004_u16],
    )
        .prop_map(|(pod, v6, protocol, to, port)| {
            let family = family(v6);
            let l4 = match protocol {
                0 => L4::Tcp(port, 443, SYN),
                1 => L4::Udp(port, 53),
                _ => L4::EchoRequest(port),
            };
            let destination = match (to, plan::outside(family)) {
                (0, address) => address,
                (_, IpAddr::V4(v4)) => IpAddr::V4((u32::from(v4) + 1).into()),
                (_, IpAddr::V6(v6)) => IpAddr::V6((u128::from(v6) + 1).into()),
            };
            Flow {
                pod,
                tuple: Tuple::new(plan::pod(1, pod, family), destination, l4),
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn flows_come_back_to_whom_they_left(flows in proptest::collection::vec(flow(), 1..60)) {
        // Room for all of them, but not much more.
        let host = node_with_ports(5000, 5060);
        let mut outside: HashMap<FlowKey, (u8, Tuple)> = HashMap::new();
        let mut seen_as = HashMap::new();
        for Flow { pod, tuple } in &flows {
            let seen = masqueraded(&from_pod(&host, 1, *pod, tuple), tuple);
            // An open flow keeps the tuple that it was given; a new one gets its own.
            let before = seen_as.insert(*tuple, seen);
            prop_assert!(before.is_none_or(|before| before == seen));
            let holder = outside.insert(key(&seen), (*pod, *tuple));
            prop_assert!(holder.is_none_or(|holder| holder == (*pod, *tuple)), "two flows as {seen:?}");
            prop_assert!((5000..=5060).contains(&port(&seen)));
        }
        for (pod, tuple) in outside.values() {
            answered(&host, *pod, tuple, &seen_as[tuple]);
        }
        // Once more, proven now.
        for (pod, tuple) in outside.values() {
            let again = from_pod(&host, 1, *pod, &tuple.with_flags(ACK));
            let seen = masqueraded(&again, &tuple.with_flags(ACK));
            answered(&host, *pod, tuple, &seen);
        }
        prop_assert_eq!(host.flows.len(), 2 * outside.len());
        prop_assert!(host.pending.is_empty());
    }

    #[test]
    fn a_checksum_left_to_hardware_keeps_its_seed(v6 in any::<bool>(), udp in any::<bool>(), number in any::<u16>()) {
        let family = family(v6);
        let host = node_with_ports(40_000, 40_000);
        let l4 = if udp { L4::Udp(number, 53) } else { L4::Tcp(number, 443, SYN) };
        let tuple = Tuple::new(plan::pod(1, 1, family), plan::outside(family), l4);
        let mut bytes = frame::of_pod(1, 1, &tuple);
        let at = if v6 { 54 } else { 34 } + if udp { 6 } else { 16 };
        let seed = pseudo_header(&bytes);
        bytes[at..at + 2].copy_from_slice(&seed.to_be_bytes());
        let mut packet = Buffer { partial: true, ..Buffer::new(plan::pod_interface(1), bytes) };
        let result = host.run(Hook::FromPod, &mut packet);
        prop_assert_eq!(result.reason, None);
        let found = u16::from_be_bytes([packet.bytes[at], packet.bytes[at + 1]]);
        // All ones and all zeros are the same sum.
        prop_assert_eq!(u32::from(found) % 0xffff, u32::from(pseudo_header(&packet.bytes)) % 0xffff);
    }

    #[test]
    fn a_search_sees_every_port_once(
        ports in (1024..65_000_u32, 1..=32_u32),
        sources in proptest::collection::vec(1..60_000_u16, 40),
    ) {
        // As many flows as there are ports get one each, and no more, whatever they begin with:
        // a search that saw one port twice within the range would miss another.
        let (low, size) = ports;
        let host = node_with_ports(low, low + size - 1);
        let mut held = HashSet::new();
        let mut used = HashSet::new();
        for (index, source) in sources.iter().enumerate() {
            let pod = u8::try_from(index % 4).unwrap() + 1;
            let to = plan::outside(Family::V4);
            let tuple = Tuple::new(plan::pod(1, pod, Family::V4), to, L4::Tcp(*source, 443, SYN));
            if !used.insert(tuple) {
                continue;
            }
            let out = from_pod(&host, 1, pod, &tuple);
            if held.len() == size as usize {
                out.dropped(Direction::Egress, DropReason::NatExhausted);
            } else {
                let port = u32::from(port(&masqueraded(&out, &tuple)));
                prop_assert!((low..low + size).contains(&port) && held.insert(port));
            }
        }
    }
}

/// Folded sum of the pseudo header (RFC 9293, section 3.1), in network order, by hand.
fn pseudo_header(frame: &[u8]) -> u16 {
    let mut words: Vec<u8>;
    if frame[12..14] == [0x08, 0] {
        words = frame[26..34].to_vec();
        let length = u16::from_be_bytes([frame[16], frame[17]]) - 20;
        words.extend([0, frame[23]]);
        words.extend(length.to_be_bytes());
    } else {
        words = frame[22..54].to_vec();
        words.extend([frame[18], frame[19], 0, frame[20]]);
    }
    let mut sum: u32 = words
        .chunks(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

fn tcp(pod: u8, source_port: u16) -> Tuple {
    let l4 = L4::Tcp(source_port, 443, SYN);
    Tuple::new(plan::pod(1, pod, Family::V4), plan::outside(Family::V4), l4)
}

#[test]
fn the_own_port_is_kept_where_it_is_free() {
    let host = node(1, Family::V4);
    let first = masqueraded(&from_pod(&host, 1, 1, &tcp(1, 40_000)), &tcp(1, 40_000));
    assert_eq!(port(&first), 40_000);
    let second = masqueraded(&from_pod(&host, 1, 2, &tcp(2, 40_000)), &tcp(2, 40_000));
    assert_ne!(port(&second), 40_000);
    // A port below the range is not kept.
    let low = masqueraded(&from_pod(&host, 1, 1, &tcp(1, 80)), &tcp(1, 80));
    assert!(port(&low) >= 1024);
}

#[test]
fn a_full_range_refuses_and_a_dead_flow_gives_its_port_back() {
    let host = node_with_ports(40_000, 40_000);
    masqueraded(&from_pod(&host, 1, 1, &tcp(1, 40_000)), &tcp(1, 40_000));
    from_pod(&host, 1, 2, &tcp(2, 40_000)).dropped(Direction::Egress, DropReason::NatExhausted);
    assert_eq!(host.pending.len(), 2, "nothing is left of what was refused");
    host.advance(59);
    from_pod(&host, 1, 2, &tcp(2, 40_000)).dropped(Direction::Egress, DropReason::NatExhausted);
    host.advance(1);
    masqueraded(&from_pod(&host, 1, 2, &tcp(2, 40_000)), &tcp(2, 40_000));
    assert!(
        entry(&host, &key(&tcp(1, 40_000))).is_none(),
        "the dead flow went whole"
    );
}

#[test]
fn the_tunnels_port_is_given_to_no_udp_flow() {
    let host = node_with_ports(6080, 6082);
    let udp = |pod| {
        let l4 = L4::Udp(TUNNEL_PORT, 53);
        Tuple::new(plan::pod(1, pod, Family::V4), plan::outside(Family::V4), l4)
    };
    let mut ports = Vec::new();
    for pod in [1, 2] {
        ports.push(port(&masqueraded(
            &from_pod(&host, 1, pod, &udp(pod)),
            &udp(pod),
        )));
    }
    ports.sort_unstable();
    assert_eq!(ports, [6080, 6082]);
    from_pod(&host, 1, 3, &udp(3)).dropped(Direction::Egress, DropReason::NatExhausted);
    // TCP may have it.
    let seen = masqueraded(
        &from_pod(&host, 1, 1, &tcp(1, TUNNEL_PORT)),
        &tcp(1, TUNNEL_PORT),
    );
    assert_eq!(port(&seen), TUNNEL_PORT);
}

/// A frame of the node's own socket, through `to_uplink`.
fn from_node(host: &Host, l4: L4) -> (Tuple, Out) {
    let tuple = Tuple::new(plan::node(1, Family::V4), plan::outside(Family::V4), l4);
    let bytes = frame::build(
        plan::node_mac(1),
        plan::node_mac(plan::ROUTER),
        &tuple,
        64,
        b"hi",
    );
    (tuple, run(host, Hook::ToUplink, plan::UPLINK, &bytes))
}

#[test]
fn the_nodes_own_flows_hold_their_ports_too() {
    let host = node(1, Family::V4);
    let (tuple, out) = from_node(&host, L4::Tcp(40_000, 443, SYN));
    out.went(Action::Pass, 0, "");
    assert_eq!(frame::parse(&out.bytes).tuple, tuple);
    let pods = masqueraded(&from_pod(&host, 1, 1, &tcp(1, 40_000)), &tcp(1, 40_000));
    assert_ne!(port(&pods), 40_000);
    // The answer is the node's, as it is.
    let back = from_router(&host, 1, &tuple.answer(ACK));
    back.went(Action::Pass, 0, "ingress to-host");
    assert_eq!(frame::parse(&back.bytes).tuple, tuple.answer(ACK));
}

#[rstest]
#[case::tcp(L4::Tcp(40_000, 443, SYN), L4::Tcp(40_000, 443, SYN))]
#[case::udp(L4::Udp(6081, 53), L4::Udp(40_000, 53))]
fn a_flow_of_the_node_that_collides_with_a_pods_is_translated(#[case] own: L4, #[case] of_pod: L4) {
    let host = node_with_ports(6080, 6081);
    let pods = Tuple::new(
        plan::pod(1, 1, Family::V4),
        plan::outside(Family::V4),
        of_pod,
    );
    // The pod gets whichever of the two ports; the node then wants that one.
    let taken = masqueraded(&from_pod(&host, 1, 1, &pods), &pods);
    let wanted = match own {
        L4::Tcp(_, to, flags) => L4::Tcp(port(&taken), to, flags),
        L4::Udp(_, to) => L4::Udp(port(&taken), to),
        other => other,
    };
    let (tuple, out) = from_node(&host, wanted);
    if matches!(own, L4::Udp(..)) {
        // 6080 was the only one to be had: answers to 6081 would be taken for tunnel packets.
        assert_eq!(port(&taken), 6080);
        out.dropped(Direction::Egress, DropReason::NatExhausted);
        return;
    }
    out.went(Action::Pass, 0, "");
    let seen = frame::parse(&out.bytes).tuple;
    assert_eq!(
        (seen.source, port(&seen)),
        (tuple.source, 6080 + 6081 - port(&taken))
    );
    let back = from_router(&host, 1, &seen.answer(ACK));
    back.went(Action::Pass, 0, "ingress to-host");
    assert_eq!(frame::parse(&back.bytes).tuple, tuple.answer(ACK));
    answered(&host, 1, &pods, &taken);
}

#[rstest]
fn what_the_node_answers_goes_out_as_it_is(
    #[values(
    L4::EchoReply(7),
    L4::Tcp(22, 50_000, SYN | ACK),
    L4::Udp(123, 50_000)
)]
    l4: L4,
) {
    let host = node(1, Family::V4);
    let (tuple, out) = from_node(&host, l4);
    out.went(Action::Pass, 0, "");
    assert_eq!(frame::parse(&out.bytes).tuple, tuple);
}

/// A pod's packet to the outside, the routing table having handed it to the stack.
#[test]
fn what_the_stack_forwards_for_a_pod_is_masqueraded_and_goes_back_by_the_stack() {
    let host = node(1, Family::V4);
    let everything = Prefix::new("0.0.0.0".parse().unwrap(), 0);
    host.routing.borrow_mut().remove_route(everything);
    let tuple = tcp(1, 40_000);
    let handed = from_pod(&host, 1, 1, &tuple);
    handed.went(Action::ToHost, plan::GATEWAY, "egress to-host");
    let mut ttl = frame::parse(&handed.bytes);
    assert_eq!(
        (ttl.tuple, ttl.ttl, ttl.to),
        (tuple, 64, plan::gateway_mac(1))
    );
    // The stack routes it.
    ttl.ttl -= 1;
    let bytes = frame::build(
        plan::node_mac(1),
        plan::node_mac(plan::ROUTER),
        &tuple,
        ttl.ttl,
        b"hi",
    );
    let out = run(&host, Hook::ToUplink, plan::UPLINK, &bytes);
    out.went(Action::Pass, 0, "");
    let seen = frame::parse(&out.bytes).tuple;
    assert_eq!(seen.source, plan::node(1, Family::V4));
    // Back: out of the translation, and to the stack, which sends it to the pod.
    let back = from_router(&host, 1, &seen.answer(SYN | ACK));
    back.went(Action::Pass, 0, "ingress to-stack");
    let parsed = frame::parse(&back.bytes);
    assert_eq!(parsed.tuple, tuple.answer(SYN | ACK));
    let bytes = frame::build(
        plan::node_mac(1),
        plan::pod_mac(1, 1),
        &parsed.tuple,
        58,
        b"hi",
    );
    let out = run(&host, Hook::FromHost, plan::GATEWAY_FAR, &bytes);
    out.went(
        Action::IntoPod,
        plan::pod_interface(1),
        "egress to-endpoint",
    );
    assert_eq!(frame::parse(&out.bytes).tuple, tuple.answer(SYN | ACK));
}

#[test]
fn a_udp_checksum_is_never_zero_by_chance() {
    // One payload in 65 536 has the checksum come out as zero after translation, which must be
    // sent as all ones: zero says that there is none, and over IPv6 has the packet discarded.
    for family in [Family::V4, Family::V6] {
        let host = node(1, Family::V4);
        let l4 = L4::Udp(40_000, 53);
        let tuple = Tuple::new(plan::pod(1, 1, family), plan::outside(family), l4);
        let seen = Tuple::new(plan::node(1, family), plan::outside(family), l4);
        let at = if family == Family::V4 { 40 } else { 60 };
        let macs = (plan::pod_mac(1, 1), plan::gateway_mac(1));
        // The checksum of the translated packet with nothing in it is what has to go in.
        let plain = frame::build(macs.0, macs.1, &seen, 64, &[0, 0]);
        let rest = &plain[at..at + 2];
        let bytes = frame::build(macs.0, macs.1, &tuple, 64, rest);
        let out = run(&host, Hook::FromPod, plan::pod_interface(1), &bytes);
        assert_eq!(out.reason, None);
        assert_eq!(out.bytes[at..at + 2], [0xff, 0xff], "{family:?}");
        frame::parse(&out.bytes);
    }
}

#[test]
fn a_udp_packet_without_checksum_gets_none() {
    let host = node(1, Family::V4);
    let l4 = L4::Udp(40_000, 53);
    let tuple = Tuple::new(plan::pod(1, 1, Family::V4), plan::outside(Family::V4), l4);
    let mut bytes = frame::of_pod(1, 1, &tuple);
    bytes[40..42].fill(0);
    let out = run(&host, Hook::FromPod, plan::pod_interface(1), &bytes);
    masqueraded(&out, &tuple);
    assert_eq!(out.bytes[40..42], [0, 0]);
}

#[test]
fn an_answer_to_an_echo_begins_no_masqueraded_flow() {
    let host = node(1, Family::V4);
    let answer = Tuple {
        l4: L4::EchoReply(9),
        ..tcp(1, 1)
    };
    from_pod(&host, 1, 1, &answer).dropped(Direction::Egress, DropReason::IcmpUnrelated);
    assert!(host.pending.is_empty());
}

/// Neither does a pod leave under its own address, nor do its flows end: the address may come back.
#[rstest]
fn without_an_address_to_masquerade_behind_nothing_leaves(
    #[values(Family::V4, Family::V6)] family: Family,
) {
    let host = node(1, Family::V4);
    let from_port = |port| {
        let l4 = L4::Tcp(port, 443, SYN);
        Tuple::new(plan::pod(1, 1, family), plan::outside(family), l4)
    };
    let begun = from_port(40_000);
    let first = masqueraded(&from_pod(&host, 1, 1, &begun), &begun);
    let uplink = host.uplinks.get(&plan::UPLINK).unwrap();
    let without = Uplink {
        masquerade_v4: Uplink::NO_ADDRESS,
        masquerade_v6: Uplink::NO_ADDRESS,
    };
    host.uplinks.set(plan::UPLINK, without).unwrap();
    host.peers.update(&0, |world| world.generation += 1);
    let entries = host.pending.len();
    for tuple in [begun, from_port(40_001)] {
        from_pod(&host, 1, 1, &tuple).dropped(Direction::Egress, DropReason::NoRoute);
    }
    // The stack is no way round it.
    let bytes = frame::build(
        plan::node_mac(1),
        plan::node_mac(plan::ROUTER),
        &begun,
        63,
        b"hi",
    );
    run(&host, Hook::ToUplink, plan::UPLINK, &bytes)
        .dropped(Direction::Egress, DropReason::NoRoute);
    assert_eq!(host.pending.len(), entries);
    host.uplinks.set(plan::UPLINK, uplink).unwrap();
    let again = masqueraded(&from_pod(&host, 1, 1, &begun), &begun);
    assert_eq!(again, first);
}

/// Only the node sends tunnel packets; to their port anybody may send, outside.
#[test]
fn a_pod_is_masqueraded_by_the_stack_on_the_way_to_the_tunnels_port_too() {
    let host = node(1, Family::V4);
    let l4 = L4::Udp(40_000, 6081);
    let send = |source| {
        let tuple = Tuple::new(source, plan::outside(Family::V4), l4);
        let macs = (plan::node_mac(1), plan::node_mac(plan::ROUTER));
        let bytes = frame::build(macs.0, macs.1, &tuple, 63, b"hi");
        run(&host, Hook::ToUplink, plan::UPLINK, &bytes)
    };
    let node = plan::node(1, Family::V4);
    let out = send(plan::pod(1, 1, Family::V4));
    assert_eq!(frame::parse(&out.bytes).tuple.source, node);
    let entries = host.pending.len();
    send(node).went(Action::Pass, 0, "");
    assert_eq!(host.pending.len(), entries, "the tunnel's are no flows");
}

#[test]
fn a_flow_keeps_its_port_when_it_is_judged_again() {
    let host = node(1, Family::V4);
    masqueraded(&from_pod(&host, 1, 1, &tcp(1, 40_000)), &tcp(1, 40_000));
    let first = masqueraded(&from_pod(&host, 1, 2, &tcp(2, 40_000)), &tcp(2, 40_000));
    answered(&host, 2, &tcp(2, 40_000), &first);
    host.peers.update(&0, |world| world.generation += 1);
    let ack = tcp(2, 40_000).with_flags(ACK);
    let again = masqueraded(&from_pod(&host, 1, 2, &ack), &ack);
    assert_eq!(port(&again), port(&first));
    host.peers.update(&0, |world| world.generation += 1);
    answered(&host, 2, &tcp(2, 40_000), &first);
}

/// The other end knows a flow by one source address, whatever new flows leave behind.
#[rstest]
fn a_flow_leaves_as_it_began(#[values(Family::V4, Family::V6)] family: Family) {
    let host = node(1, Family::V4);
    let of = |pod, port| {
        let l4 = L4::Tcp(port, 443, SYN);
        Tuple::new(plan::pod(1, pod, family), plan::outside(family), l4)
    };
    let sent = |tuple: &Tuple| {
        host.peers.update(&0, |world| world.generation += 1);
        let out = from_pod(&host, 1, 1, tuple);
        assert_eq!(out.counted, "egress to-network", "{:?}", out.reason);
        frame::parse(&out.bytes).tuple
    };
    let uplink = host.uplinks.get(&plan::UPLINK).unwrap();
    let begun = masqueraded(&from_pod(&host, 1, 1, &of(1, 40_000)), &of(1, 40_000));
    answered(&host, 1, &of(1, 40_000), &begun);

    // Behind another address.
    let other = plan::node(3, family).into();
    let elsewhere = Uplink {
        masquerade_v4: other,
        masquerade_v6: other,
    };
    host.uplinks.set(plan::UPLINK, elsewhere).unwrap();
    let ack = of(1, 40_000).with_flags(ACK);
    assert_eq!(sent(&ack), begun.with_flags(ACK));
    answered(&host, 1, &of(1, 40_000), &begun);
    assert_eq!(sent(&of(1, 40_001)).source, other.to_ip());

    // Behind none; and what began so goes on so, too.
    host.uplinks.set(plan::UPLINK, Uplink::default()).unwrap();
    assert_eq!(sent(&ack), begun.with_flags(ACK));
    let (own, own_ack) = (of(1, 40_002), of(1, 40_002).with_flags(ACK));
    assert_eq!(sent(&own), own);
    host.uplinks.set(plan::UPLINK, uplink).unwrap();
    assert_eq!(sent(&own_ack), own_ack);

    // By another way out the address may be nobody's.
    let everything = match family {
        Family::V4 => "0.0.0.0".parse().unwrap(),
        Family::V6 => "::".parse().unwrap(),
    };
    let way = Way::Out {
        interface: plan::UPLINK,
        gateway: Some(plan::node(2, family)),
    };
    let mut routing = host.routing.borrow_mut();
    routing.neighbour(plan::node(2, family), Some(plan::node_mac(2)));
    routing.route(Prefix::new(everything, 0), way);
    drop(routing);
    assert_eq!(sent(&own_ack).source, plan::node(1, family));
}

/// The pending table let go of the answers' half, and another flow has the port now.
#[rstest]
fn a_flow_that_lost_its_port_finds_another(
    #[values(SYN, ACK, RST)] flags: u8,
    #[values(false, true)] judged_again: bool,
) {
    let host = node(1, Family::V4);
    let (first, second) = (tcp(1, 40_000), tcp(2, 40_000));
    let seen = masqueraded(&from_pod(&host, 1, 1, &first), &first);
    host.pending.remove(&key(&seen.answer(0)));
    assert_eq!(masqueraded(&from_pod(&host, 1, 2, &second), &second), seen);

    if judged_again {
        host.endpoints.update(&1, |pod| pod.generation += 1);
    }
    let next = first.with_flags(flags);
    let out = from_pod(&host, 1, 1, &next);
    if flags == RST {
        out.dropped(Direction::Egress, DropReason::TcpWithoutFlow);
    } else {
        assert_ne!(port(&masqueraded(&out, &next)), port(&seen));
    }
    // The other flow noticed nothing.
    assert_eq!(entry(&host, &key(&seen.answer(0))).unwrap().state, 0);
    answered(&host, 2, &second, &seen);
}
