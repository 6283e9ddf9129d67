//! What cannot go on is answered: TTL or hop limit used up, too big for the way. Exact bytes, read
//! by etherparse, and who is answered, and how often.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod support;

use std::net::IpAddr;

use datapath_kern::abi::mark;
use datapath_kern::abi::metric::Direction::{Egress, Ingress};
use datapath_kern::env::Table;
use datapath_kern::host::{Buffer, Hook, Host, plan};
use datapath_kern::packet::Family::{self, V4, V6};
use datapath_kern::verdict::{Action, DropReason, Verdict};
use etherparse::checksum::Sum16BitWords;
use rstest::rstest;
use support::frame::{self, ACK, L4, SYN, Tuple};
use support::icmp::{self, IcmpError, expired, port_unreachable, quote, too_big};
use support::sent::{from_uplink, left};
use support::tunnel::Wrap;
use support::{Out, from_pod, node, run};

const FLOWS: [L4; 3] = [
    L4::Tcp(40_000, 443, SYN),
    L4::Udp(40_000, 53),
    L4::EchoRequest(40_000),
];

/// Bytes that the tunnel adds.
fn overhead(underlay: Family) -> usize {
    if underlay == V4 { 50 } else { 70 }
}

/// Length of the headers of a packet.
fn headers(tuple: &Tuple) -> usize {
    let l4 = if matches!(tuple.l4, L4::Tcp(..)) {
        20
    } else {
        8
    };
    if tuple.source.is_ipv4() {
        20 + l4
    } else {
        40 + l4
    }
}

/// Payload that makes a packet this long.
fn filling(tuple: &Tuple, ip_bytes: usize) -> Vec<u8> {
    (0..=250).cycle().take(ip_bytes - headers(tuple)).collect()
}

/// A frame that a pod of node 1 sends.
fn sends(host: &Host, pod: u8, tuple: &Tuple, ttl: u8, payload: &[u8]) -> Out {
    let macs = (plan::pod_mac(1, pod), plan::gateway_mac(1));
    let bytes = frame::build(macs.0, macs.1, tuple, ttl, payload);
    run(host, Hook::FromPod, plan::pod_interface(pod), &bytes)
}

/// What `source` says of a packet; the quotation as long as fits (RFC 1812, section 4.3.2.3;
/// RFC 4443, section 2.4).
fn complaint(tuple: &Tuple, source: IpAddr, kind: (u8, u8), packet: Vec<u8>) -> IcmpError {
    let most = if tuple.source.is_ipv4() {
        576 - 28
    } else {
        1280 - 48
    };
    let mut quote = packet;
    quote.truncate(most);
    let error = IcmpError::about(tuple, source, kind, quote);
    IcmpError { value: 0, ..error }
}

/// Asserts that the frame is this error and nothing else, sent by whoever routes.
#[track_caller]
fn says(bytes: &[u8], expected: &IcmpError) {
    let parsed = icmp::parse(bytes);
    assert_eq!((&parsed.error, parsed.ttl), (expected, 64));
    let head = &bytes[14..22];
    if expected.source.is_ipv4() {
        // No options, internetwork control, identification zero and not to be fragmented.
        let length = u16::try_from(bytes.len() - 14).unwrap().to_be_bytes();
        assert_eq!(head, [0x45, 0xc0, length[0], length[1], 0, 0, 0x40, 0]);
        assert!(bytes.len() <= 14 + 576);
    } else {
        assert_eq!(head[..4], [0x60, 0, 0, 0]);
        assert!(bytes.len() <= 14 + 1280);
    }
}

/// Asserts that a pod was answered by its gateway.
#[track_caller]
fn into_pod(out: &Out, pod: u8, reason: DropReason, expected: &IcmpError) {
    assert_eq!(out.reason, Some(reason));
    let verdict = Verdict::new(Action::IntoPod, plan::pod_interface(pod));
    assert_eq!(
        (out.verdict, out.counted.as_str()),
        (verdict, "egress answered")
    );
    says(&out.bytes, expected);
    let parsed = icmp::parse(&out.bytes);
    let macs = (plan::gateway_mac(1), plan::pod_mac(1, pod));
    assert_eq!((parsed.from, parsed.to), macs);
}

/// Wherever it goes: to a pod here, to one elsewhere, outside.
#[rstest]
fn an_expired_packet_of_a_pod_is_answered_by_its_gateway(
    #[values(V4, V6)] family: Family,
    #[values(0, 1)] ttl: u8,
    #[values(0, 1, 90, 513, 1225, 1300)] payload: usize,
) {
    let to = [
        plan::pod(1, 2, family),
        plan::pod(2, 1, family),
        plan::outside(family),
    ];
    for to in to {
        for l4 in FLOWS {
            let host = node(1, V4);
            let tuple = Tuple::new(plan::pod(1, 1, family), to, l4);
            let payload = vec![0xa5; payload];
            let out = sends(&host, 1, &tuple, ttl, &payload);
            let packet = quote(&tuple, ttl, &payload, usize::MAX);
            let gateway = plan::gateway(1, family);
            let expected = complaint(&tuple, gateway, expired(family), packet);
            into_pod(&out, 1, DropReason::TtlExceeded, &expected);
            // One hop more, and it goes on.
            assert_eq!(sends(&host, 1, &tuple, 2, &payload).reason, None);
        }
    }
}

/// It is where it wanted to go: no hop is taken off.
#[rstest]
fn nothing_expires_at_the_node_that_it_is_for(#[values(V4, V6)] family: Family) {
    let host = node(1, V4);
    let tuple = Tuple::new(
        plan::pod(1, 1, family),
        plan::gateway(1, family),
        L4::Udp(1, 2),
    );
    let out = sends(&host, 1, &tuple, 1, b"hi");
    out.went(Action::ToHost, plan::GATEWAY, "egress to-host");
}

/// What expires at the second node is answered by that node's gateway, through the tunnel, into
/// the pod that sent it.
#[rstest]
fn what_expires_behind_the_tunnel_is_answered_through_it(
    #[values(V4, V6)] family: Family,
    #[values(V4, V6)] underlay: Family,
) {
    for l4 in FLOWS {
        let (a, b) = (node(1, underlay), node(2, underlay));
        let tuple = Tuple::new(plan::pod(1, 1, family), plan::pod(2, 3, family), l4);
        // The first asks for the neighbour, the other one of that second knows it.
        for action in [Action::OutToNeighbour, Action::Out] {
            let there = sends(&a, 1, &tuple, 2, &[7; 100]);
            let out = from_uplink(&b, &there.bytes);
            assert_eq!(out.reason, Some(DropReason::TtlExceeded));
            assert_eq!(out.verdict, Verdict::new(action, plan::UPLINK));
            assert_eq!(out.counted, "ingress answered");
            let macs = (plan::node_mac(2), plan::node_mac(1));
            let found = (
                out.bytes[6..12].try_into().unwrap(),
                out.bytes[..6].try_into().unwrap(),
            );
            left(&b, &out, macs, plan::node(1, underlay), found);
            let gateway = plan::gateway(2, family);
            let packet = quote(&tuple, 1, &[7; 100], usize::MAX);
            let expected = complaint(&tuple, gateway, expired(family), packet);
            says(&out.bytes[overhead(underlay)..], &expected);

            let back = from_uplink(&a, &out.bytes);
            let verdict = Verdict::new(Action::IntoPod, plan::pod_interface(1));
            assert_eq!((back.reason, back.verdict), (None, verdict));
            let parsed = icmp::parse(&back.bytes);
            assert_eq!((parsed.error, parsed.ttl), (expected, 63));
        }
    }
}

/// Answers to a masqueraded flow that expire here: who sent them knows the node's address alone.
#[rstest]
fn what_expires_on_the_way_in_is_answered_by_the_node(#[values(V4, V6)] family: Family) {
    for l4 in FLOWS {
        let host = node(1, V4);
        let tuple = Tuple::new(plan::pod(1, 1, family), plan::outside(family), l4);
        let seen = frame::parse(&from_pod(&host, 1, 1, &tuple).bytes).tuple;
        let answer = seen.answer(SYN | ACK);
        let to_pod = Tuple::new(
            plan::outside(family),
            plan::pod(1, 2, family),
            L4::Udp(9, 9),
        );
        for (tuple, speaker) in [(answer, seen.source), (to_pod, plan::gateway(1, family))] {
            let (router, own) = (plan::node_mac(plan::ROUTER), plan::node_mac(1));
            let out = from_uplink(&host, &frame::build(router, own, &tuple, 1, b"hi"));
            assert_eq!(out.reason, Some(DropReason::TtlExceeded));
            assert_eq!(out.verdict, Verdict::new(Action::Out, plan::UPLINK));
            assert_eq!(out.counted, "ingress answered");
            assert!(mark::is(out.mark, mark::FORWARDED));
            let packet = quote(&tuple, 1, b"hi", usize::MAX);
            says(
                &out.bytes,
                &complaint(&tuple, speaker, expired(family), packet),
            );
            let parsed = icmp::parse(&out.bytes);
            assert_eq!((parsed.from, parsed.to), (own, router));
        }
    }
}

/// As long as the way takes, and a byte more; the MTU told is what fits inside the tunnel.
#[rstest]
fn what_is_too_big_is_answered_with_what_fits(
    #[values(V4, V6)] family: Family,
    #[values(V4, V6)] underlay: Family,
    #[values(1500, 1400, 9000)] mtu: u16,
) {
    let inside = mtu - u16::try_from(overhead(underlay)).unwrap();
    let ways = [
        (plan::pod(2, 1, family), inside),
        (plan::outside(family), mtu),
    ];
    for (to, fits) in ways {
        for l4 in FLOWS {
            let host = node(1, underlay);
            host.routing.borrow_mut().mtu(plan::UPLINK, mtu);
            let tuple = Tuple::new(plan::pod(1, 1, family), to, l4);
            let largest = filling(&tuple, fits.into());
            let out = sends(&host, 1, &tuple, 64, &largest);
            assert_eq!(out.reason, None, "{:?}", out.counted);
            let longer = filling(&tuple, usize::from(fits) + 1);
            let out = sends(&host, 1, &tuple, 64, &longer);
            let packet = quote(&tuple, 64, &longer, usize::MAX);
            let gateway = plan::gateway(1, family);
            let expected = IcmpError {
                value: fits.into(),
                ..complaint(&tuple, gateway, too_big(family), packet)
            };
            into_pod(&out, 1, DropReason::FragmentationNeeded, &expected);
        }
    }
}

/// A pod's interface may take more or less than the way to it: told whoever sends to it.
#[rstest]
fn what_does_not_fit_a_pods_interface_is_answered(#[values(V4, V6)] family: Family) {
    let host = node(1, V4);
    host.next_hops.update(&2, |hop| hop.mtu_bytes = 1300);
    let tuple = Tuple::new(
        plan::pod(1, 1, family),
        plan::pod(1, 2, family),
        L4::Udp(1, 2),
    );
    assert_eq!(
        sends(&host, 1, &tuple, 64, &filling(&tuple, 1300)).reason,
        None
    );
    let longer = filling(&tuple, 1301);
    let out = sends(&host, 1, &tuple, 64, &longer);
    let packet = quote(&tuple, 64, &longer, usize::MAX);
    let expected = IcmpError {
        value: 1300,
        ..complaint(&tuple, plan::gateway(1, family), too_big(family), packet)
    };
    into_pod(&out, 1, DropReason::FragmentationNeeded, &expected);
}

/// A frame that is several segments yet to be cut goes by the length of one.
#[rstest]
fn a_frame_of_segments_fits_if_a_segment_does(
    #[values(V4, V6)] family: Family,
    #[values(V4, V6)] underlay: Family,
    #[values(L4::Tcp(40_000, 443, SYN), L4::Udp(40_000, 53))] l4: L4,
) {
    let host = node(1, underlay);
    let tuple = Tuple::new(plan::pod(1, 1, family), plan::pod(2, 1, family), l4);
    let room = 1500 - overhead(underlay);
    let payload = [3; 9000];
    let send = |segment: usize| {
        let macs = (plan::pod_mac(1, 1), plan::gateway_mac(1));
        let bytes = frame::build(macs.0, macs.1, &tuple, 64, &payload);
        let mut packet = Buffer {
            segment_bytes: u32::try_from(segment).unwrap(),
            ..Buffer::new(plan::pod_interface(1), bytes)
        };
        let run = host.run(Hook::FromPod, &mut packet);
        drop(host.take_counters());
        (run, packet)
    };
    let largest = room - headers(&tuple);
    for segment in [1, 536, largest] {
        assert_eq!(send(segment).0.reason, None);
    }
    let (run, packet) = send(largest + 1);
    assert_eq!(run.reason, Some(DropReason::FragmentationNeeded));
    assert_eq!(packet.segment_bytes, 0, "the answer is one packet");
    let packet_of_many = quote(&tuple, 64, &payload, usize::MAX);
    let expected = IcmpError {
        value: u32::try_from(room).unwrap(),
        ..complaint(
            &tuple,
            plan::gateway(1, family),
            too_big(family),
            packet_of_many,
        )
    };
    says(&packet.bytes, &expected);
}

/// The transport checksum left to hardware: where that completes it, within the quotation, the
/// answer is right.
#[rstest]
fn a_checksum_left_to_hardware_is_reckoned_with(
    #[values(V4, V6)] family: Family,
    #[values(0, 1, 513, 1300)] payload: usize,
    #[values(L4::Tcp(40_000, 443, SYN), L4::Udp(40_000, 53))] l4: L4,
) {
    let host = node(1, V4);
    let tuple = Tuple::new(plan::pod(1, 1, family), plan::pod(2, 1, family), l4);
    let payload = vec![0xc3; payload];
    let l3 = if family == V4 { 20 } else { 40 };
    let (protocol, field) = if matches!(l4, L4::Tcp(..)) {
        (6, 16)
    } else {
        (17, 6)
    };
    let mut bytes = frame::build(
        plan::pod_mac(1, 1),
        plan::gateway_mac(1),
        &tuple,
        1,
        &payload,
    );
    let length = u16::try_from(bytes.len() - 14 - l3).unwrap();
    let pseudo = Sum16BitWords::new()
        .add_slice(&bytes[14 + l3 - if family == V4 { 8 } else { 32 }..14 + l3])
        .add_2bytes([0, protocol])
        .add_2bytes(length.to_be_bytes());
    let at = 14 + l3 + field;
    bytes[at..at + 2].copy_from_slice(&(!pseudo.ones_complement()).to_ne_bytes());
    let mut packet = Buffer {
        partial: true,
        ..Buffer::new(plan::pod_interface(1), bytes)
    };
    assert_eq!(
        host.run(Hook::FromPod, &mut packet).reason,
        Some(DropReason::TtlExceeded)
    );
    // Hardware: from the transport header to the end of the frame.
    let l4_at = 14 + l3 + 8 + l3;
    let sum = Sum16BitWords::new()
        .add_slice(&packet.bytes[l4_at..])
        .ones_complement();
    let at = l4_at + field;
    packet.bytes[at..at + 2].copy_from_slice(&sum.to_ne_bytes());
    let error = icmp::parse(&packet.bytes).error;
    let gateway = plan::gateway(1, family);
    let whole = quote(&tuple, 1, &payload, usize::MAX);
    let expected = complaint(&tuple, gateway, expired(family), whole);
    if error.quote.len() == l3 + usize::from(length) {
        assert_eq!(error, expected);
    } else {
        assert_eq!(error.quote.len(), expected.quote.len());
    }
}

/// RFC 1122, section 3.2.2; RFC 4443, section 2.4 (e).
#[rstest]
fn an_error_is_never_answered(#[values(V4, V6)] family: Family) {
    let host = node(1, V4);
    let tuple = Tuple::new(
        plan::pod(2, 1, family),
        plan::pod(1, 1, family),
        L4::Udp(1, 2),
    );
    let wrap = Wrap::new(2, 1, V4, plan::pod_identity(2, 1));
    let inner = support::tunnel::inner(1, &tuple);
    assert_eq!(from_uplink(&host, &wrap.around(&inner)).reason, None);
    let error = |payload: &[u8]| {
        let quoted = quote(&tuple, 62, payload, usize::MAX);
        IcmpError::about(&tuple, tuple.destination, port_unreachable(family), quoted)
    };
    for (ttl, payload, reason) in [
        (1, 10, DropReason::TtlExceeded),
        (64, 1440, DropReason::FragmentationNeeded),
    ] {
        let error = error(&vec![0; payload]);
        let bytes = error.frame(plan::pod_mac(1, 1), plan::gateway_mac(1), ttl);
        let out = run(&host, Hook::FromPod, plan::pod_interface(1), &bytes);
        out.dropped(Egress, reason);
    }
    // The same on the way in.
    let tuple = Tuple::new(
        plan::pod(1, 1, family),
        plan::outside(family),
        L4::Udp(1, 2),
    );
    let seen = frame::parse(&from_pod(&host, 1, 1, &tuple).bytes).tuple;
    let quoted = quote(&seen, 60, b"hi", usize::MAX);
    let error = IcmpError::about(
        &seen,
        plan::outside(family),
        port_unreachable(family),
        quoted,
    );
    let bytes = error.frame(plan::node_mac(plan::ROUTER), plan::node_mac(1), 1);
    from_uplink(&host, &bytes).dropped(Ingress, DropReason::TtlExceeded);
}

/// The stack knows the route's MTU, and takes hops off itself.
#[rstest]
fn what_this_node_sends_is_not_answered(#[values(V4, V6)] family: Family) {
    let host = node(1, V4);
    let tuple = Tuple::new(
        plan::gateway(1, family),
        plan::pod(2, 1, family),
        L4::Udp(1, 2),
    );
    let send = |ttl: u8, payload: &[u8]| {
        let bytes = frame::build([2; 6], [4; 6], &tuple, ttl, payload);
        run(&host, Hook::FromHost, plan::GATEWAY_FAR, &bytes)
    };
    assert_eq!(send(1, b"hi").counted, "egress to-overlay");
    send(64, &filling(&tuple, 1451)).dropped(Egress, DropReason::FragmentationNeeded);
}

/// What was never a flow is not answered either.
#[rstest]
fn what_was_refused_is_not_answered(#[values(V4, V6)] family: Family) {
    let host = node(1, V4);
    let forged = Tuple::new(
        plan::pod(1, 2, family),
        plan::outside(family),
        L4::Udp(1, 2),
    );
    sends(&host, 1, &forged, 1, b"hi").dropped(Egress, DropReason::InvalidSourceIp);
    let vacant = Tuple::new(
        plan::pod(1, 1, family),
        plan::pod(1, 150, family),
        L4::Udp(1, 2),
    );
    sends(&host, 1, &vacant, 1, b"hi").dropped(Egress, DropReason::Vacant);
}

/// As many in a second as the settings say, for each end; what another one sends does not matter.
#[rstest]
fn every_end_has_a_budget_of_its_own(#[values(V4, V6)] family: Family) {
    let host = node(1, V4);
    let limit = host.config.answers_per_s;
    assert_eq!(limit, 100);
    let to = plan::outside(family);
    let tuple = |pod| Tuple::new(plan::pod(1, pod, family), to, L4::Udp(40_000, 53));
    let answered = |pod| sends(&host, pod, &tuple(pod), 1, b"hi").counted == "egress answered";
    let from_peer = || {
        let there = Tuple::new(
            plan::pod(2, 1, family),
            plan::pod(1, 1, family),
            L4::Udp(1, 2),
        );
        let inner = frame::build(plan::gateway_mac(2), plan::gateway_mac(1), &there, 1, b"hi");
        let bytes = Wrap::new(2, 1, V4, plan::pod_identity(2, 1)).around(&inner);
        from_uplink(&host, &bytes).counted == "ingress answered"
    };
    for second in 0..3 {
        for count in 0..2 * limit {
            assert_eq!(answered(1), count < limit, "{second}: {count}");
        }
        sends(&host, 1, &tuple(1), 1, b"hi").dropped(Egress, DropReason::TtlExceeded);
        // Whatever it is about: one budget.
        sends(&host, 1, &tuple(1), 64, &[0; 2000]).dropped(Egress, DropReason::FragmentationNeeded);
        assert!(answered(2) && from_peer());
        host.advance(1);
    }
    for count in 0..2 * limit {
        assert_eq!(from_peer(), count < limit);
    }
    assert!(answered(1));
}

/// Nobody to answer for, as the node has no address of the family.
#[test]
fn without_a_gateway_nothing_is_answered() {
    let mut host = node(1, V4);
    host.config.gateway_v6 = datapath_kern::abi::addr::Addr::NONE;
    let tuple = Tuple::new(plan::pod(1, 1, V6), plan::outside(V6), L4::Udp(1, 2));
    sends(&host, 1, &tuple, 1, b"hi").dropped(Egress, DropReason::TtlExceeded);
}

/// The answer goes along the other half of the flow: without that there is no way back.
#[rstest]
fn an_answer_without_a_way_back_is_one_drop(#[values(V4, V6)] family: Family) {
    let host = node(1, V4);
    let there = Tuple::new(
        plan::pod(2, 1, family),
        plan::pod(1, 1, family),
        L4::Udp(1, 2),
    );
    let wrap = Wrap::new(2, 1, V4, plan::pod_identity(2, 1));
    let frame = |ttl| {
        let inner = frame::build(
            plan::gateway_mac(2),
            plan::gateway_mac(1),
            &there,
            ttl,
            b"hi",
        );
        wrap.around(&inner)
    };
    // Proven, and then one half of it gone.
    for _ in 0..2 {
        assert_eq!(from_uplink(&host, &frame(64)).reason, None);
        assert_eq!(from_pod(&host, 1, 1, &there.answer(ACK)).reason, None);
    }
    assert!(host.flows.remove(&support::key(&there.answer(ACK))));
    from_uplink(&host, &frame(1)).dropped(Ingress, DropReason::TtlExceeded);
}
