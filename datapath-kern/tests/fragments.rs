//! Fragments follow the first of them, wherever it goes and whatever becomes of it.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "it is all tests"
)]

mod support;

use datapath_kern::abi::flow::flags;
use datapath_kern::abi::mark;
use datapath_kern::abi::metric::Direction::{Egress, Ingress};
use datapath_kern::host::{Hook, Host, plan};
use datapath_kern::packet::Family::{self, V4, V6};
use datapath_kern::verdict::{Action, DropReason};
use rstest::rstest;
use support::fragments::{cut, join};
use support::frame::{self, L4, SYN, Tuple};
use support::sent::{from_uplink, kind_wrap};
use support::{Out, entry, key, node, run, run_marked, tunnel};

const UDP: L4 = L4::Udp(5000, 53);

fn payload() -> Vec<u8> {
    (0..=255).cycle().take(2000).collect()
}

/// A datagram of 2000 bytes that pod 1 of node 1 sends, in three pieces.
fn of_pod(to: std::net::IpAddr, family: Family, id: u16) -> Vec<Vec<u8>> {
    let tuple = Tuple::new(plan::pod(1, 1, family), to, UDP);
    let macs = (plan::pod_mac(1, 1), plan::gateway_mac(1));
    cut(
        &frame::build(macs.0, macs.1, &tuple, 64, &payload()),
        800,
        id,
    )
}

fn through(host: &Host, hook: Hook, interface: u32, frames: &[Vec<u8>]) -> Vec<Out> {
    let run = |bytes: &Vec<u8>| run(host, hook, interface, bytes);
    frames.iter().map(run).collect()
}

fn sent_by_pod(host: &Host, frames: &[Vec<u8>]) -> Vec<Out> {
    through(host, Hook::FromPod, plan::pod_interface(1), frames)
}

/// The whole packet that came out in pieces, every checksum of it right.
fn joined(out: &[Out]) -> frame::Parsed {
    let pieces: Vec<_> = out.iter().map(|out| out.bytes.clone()).collect();
    let parsed = frame::parse(&join(&pieces));
    assert_eq!(parsed.payload, payload());
    parsed
}

#[rstest]
fn to_a_neighbour(#[values(V4, V6)] family: Family) {
    let host = node(1, V4);
    let out = sent_by_pod(&host, &of_pod(plan::pod(1, 2, family), family, 7));
    assert_eq!(out.len(), 3);
    for out in &out {
        out.went(
            Action::IntoPod,
            plan::pod_interface(2),
            "egress to-endpoint",
        );
    }
    assert_eq!(joined(&out).ttl, 63);
}

#[rstest]
fn masqueraded_and_back(#[values(V4, V6)] family: Family) {
    let host = node(1, V4);
    // Another pod has the port already, so that this one's changes.
    let other = Tuple::new(plan::pod(1, 2, family), plan::outside(family), UDP);
    support::from_pod(&host, 1, 2, &other);
    let out = sent_by_pod(&host, &of_pod(plan::outside(family), family, 8));
    let sent = joined(&out);
    assert_eq!(sent.tuple.source, plan::node(1, family));
    let L4::Udp(port, 53) = sent.tuple.l4 else {
        panic!("{sent:?}");
    };
    assert_ne!(port, 5000);

    let macs = (plan::node_mac(plan::ROUTER), plan::node_mac(1));
    let answer = frame::build(macs.0, macs.1, &sent.tuple.answer(0), 60, &payload());
    let back = through(
        &host,
        Hook::FromUplink,
        plan::UPLINK,
        &cut(&answer, 1200, 9),
    );
    let received = joined(&back);
    for out in &back {
        out.went(
            Action::IntoPod,
            plan::pod_interface(1),
            "ingress to-endpoint",
        );
    }
    assert_eq!(received.tuple.destination, plan::pod(1, 1, family));
    assert_eq!(received.tuple.l4, L4::Udp(53, 5000));
}

#[rstest]
fn through_the_tunnel(#[values(V4, V6)] family: Family, #[values(V4, V6)] underlay: Family) {
    let host = node(1, underlay);
    let out = sent_by_pod(&host, &of_pod(plan::pod(2, 1, family), family, 7));
    let before = if underlay == V4 { 50 } else { 70 };
    let pieces: Vec<_> = out.iter().map(|out| out.bytes[before..].to_vec()).collect();
    assert_eq!(frame::parse(&join(&pieces)).payload, payload());

    let tuple = Tuple::new(plan::pod(2, 1, family), plan::pod(1, 1, family), UDP);
    let macs = (plan::gateway_mac(2), plan::gateway_mac(1));
    let inner = cut(
        &frame::build(macs.0, macs.1, &tuple, 63, &payload()),
        800,
        3,
    );
    let wrapped: Vec<_> = inner
        .iter()
        .map(|inner| kind_wrap(underlay).around(inner))
        .collect();
    let back = through(&host, Hook::FromUplink, plan::UPLINK, &wrapped);
    assert_eq!(joined(&back).tuple, tuple);
}

#[rstest]
fn nothing_follows_what_was_not_seen(#[values(V4, V6)] family: Family) {
    let host = node(1, V4);
    let mut pieces = of_pod(plan::pod(1, 2, family), family, 7);
    let first = pieces.remove(0);
    for out in sent_by_pod(&host, &pieces) {
        out.dropped(Egress, DropReason::FragmentWithoutFirst);
    }
    // A packet of another number, of another protocol, or too long ago is another packet.
    sent_by_pod(&host, &[first]);
    let others = of_pod(plan::pod(1, 2, family), family, 8);
    for out in sent_by_pod(&host, &others[1..]) {
        out.dropped(Egress, DropReason::FragmentWithoutFirst);
    }
    host.advance(30);
    for out in sent_by_pod(&host, &pieces) {
        out.dropped(Egress, DropReason::FragmentWithoutFirst);
    }
}

#[rstest]
fn what_follows_a_packet_that_was_refused_is_refused(#[values(V4, V6)] family: Family) {
    let host = node(1, V4);
    let inner = Tuple::new(
        plan::pod(1, 1, family),
        plan::gateway(1, family),
        L4::Udp(1, 6081),
    );
    let macs = (plan::pod_mac(1, 1), plan::gateway_mac(1));
    let pieces = cut(
        &frame::build(macs.0, macs.1, &inner, 64, &payload()),
        800,
        7,
    );
    let reasons: Vec<_> = sent_by_pod(&host, &pieces)
        .iter()
        .map(|out| out.reason)
        .collect();
    let prohibited = Some(DropReason::EncapsulationProhibited);
    let without = Some(DropReason::FragmentWithoutFirst);
    assert_eq!(reasons, [prohibited, without, without]);
}

#[rstest]
fn from_outside_the_host_has_what_is_not_ours(#[values(V4, V6)] family: Family) {
    let host = node(1, V4);
    let tuple = Tuple::new(plan::outside(family), plan::node(1, family), UDP);
    for bytes in cut(
        &frame::build([2; 6], [4; 6], &tuple, 60, &payload()),
        800,
        1,
    ) {
        let out = from_uplink(&host, &bytes);
        out.went(Action::Pass, 0, "");
        assert_eq!(out.bytes, bytes);
    }
}

/// Over the header of the first one (RFC 3128), and what must come whole.
#[rstest]
fn fragments_that_no_one_sends(#[values(V4, V6)] family: Family) {
    let host = node(1, V4);
    let to = plan::pod(1, 2, family);
    let macs = (plan::pod_mac(1, 1), plan::gateway_mac(1));
    let tcp = Tuple::new(plan::pod(1, 1, family), to, L4::Tcp(1000, 80, SYN));
    let tiny = cut(&frame::build(macs.0, macs.1, &tcp, 64, &payload()), 16, 5);
    let reasons: Vec<_> = sent_by_pod(&host, &tiny[..2])
        .iter()
        .map(|out| out.reason)
        .collect();
    assert_eq!(reasons, [Some(DropReason::FragmentTooSmall); 2]);

    let echo = Tuple::new(tcp.source, to, L4::EchoRequest(1));
    let mut error = frame::build(macs.0, macs.1, &echo, 64, &payload());
    let (at, unreachable) = if family == V4 { (34, 3) } else { (54, 1) };
    error[at] = unreachable;
    for out in sent_by_pod(&host, &cut(&error, 800, 5)[..1]) {
        out.dropped(Egress, DropReason::Fragment);
    }
}

/// Identification and the rest of a fragment header mean nothing on a whole packet (RFC 6946).
#[test]
fn a_whole_packet_may_say_that_it_is_a_fragment() {
    let host = node(1, V4);
    let tuple = Tuple::new(plan::pod(1, 1, V6), plan::pod(1, 2, V6), UDP);
    let macs = (plan::pod_mac(1, 1), plan::gateway_mac(1));
    let whole = frame::build(macs.0, macs.1, &tuple, 64, &payload());
    let atomic = cut(&whole, 4096, 5);
    let out = sent_by_pod(&host, &atomic);
    assert_eq!(joined(&out).tuple, tuple);
    let wrapped = kind_wrap(V4).around(&tunnel::inner(
        1,
        &Tuple::new(plan::pod(2, 1, V6), plan::pod(1, 1, V6), UDP),
    ));
    let out = through(&host, Hook::FromUplink, plan::UPLINK, &cut(&wrapped, 64, 2));
    for out in out {
        // A tunnel packet in pieces is the host's.
        assert_eq!((out.verdict.action, out.reason), (Action::Pass, None));
    }
}

/// The fragments of a packet that lie over others condemn it; those that are there already do not.
#[rstest]
fn fragments_over_others(#[values(V4, V6)] family: Family) {
    let host = node(1, V4);
    let to = plan::pod(1, 2, family);
    let overlapping = DropReason::FragmentOverlap;
    let pieces = of_pod(to, family, 7);
    let twice: Vec<_> = [0, 0, 1, 1, 0, 2]
        .map(|at: usize| pieces[at].clone())
        .into();
    let out = sent_by_pod(&host, &twice);
    let (again, went_on): (Vec<_>, Vec<_>) = out.into_iter().partition(|out| out.reason.is_some());
    assert_eq!(joined(&went_on).payload, payload());
    assert_eq!(again.len(), 3);
    for out in again {
        out.dropped(Egress, overlapping);
    }

    // The second one begins where the first one is not at its end.
    let pieces = of_pod(to, family, 8);
    let others = cut_at(to, family, 8, 792);
    let mixed = [&pieces[0], &others[1], &pieces[1], &pieces[2]].map(Clone::clone);
    let out = sent_by_pod(&host, &mixed);
    assert_eq!(out[0].reason, None);
    for out in &out[1..] {
        out.dropped(Egress, overlapping);
    }
}

fn cut_at(to: std::net::IpAddr, family: Family, id: u16, piece: usize) -> Vec<Vec<u8>> {
    let tuple = Tuple::new(plan::pod(1, 1, family), to, UDP);
    let macs = (plan::pod_mac(1, 1), plan::gateway_mac(1));
    let whole = frame::build(macs.0, macs.1, &tuple, 64, &payload());
    cut(&whole, piece, id)
}

/// So many parts with gaps between them are kept apart, and no more.
#[rstest]
fn too_many_gaps(#[values(V4, V6)] family: Family) {
    let host = node(1, V4);
    let pieces = cut_at(plan::pod(1, 2, family), family, 7, 64);
    let every_other: Vec<_> = (0..7).map(|at| pieces[2 * at].clone()).collect();
    let out = sent_by_pod(&host, &every_other);
    assert!(out[..6].iter().all(|out| out.reason.is_none()));
    out[6].dropped(Egress, DropReason::TooManyFragments);
    // Room is where a gap is filled.
    let filled = [pieces[1].clone(), pieces[12].clone()];
    let out = sent_by_pod(&host, &filled);
    assert!(out.iter().all(|out| out.reason.is_none()));
}

/// One pod has so many unfinished packets at most, and another one its own.
#[rstest]
fn unfinished_packets_of_one_pod(#[values(V4, V6)] family: Family) {
    let mut host = node(1, V4);
    host.config.fragments_per_end = 4;
    let to = plan::pod(1, 2, family);
    // What is complete is not counted.
    for id in 0..20 {
        let out = sent_by_pod(&host, &of_pod(to, family, id));
        assert!(out.iter().all(|out| out.reason.is_none()), "{out:?}");
    }
    for id in 20..24 {
        let out = sent_by_pod(&host, &of_pod(to, family, id)[..1]);
        assert_eq!(out[0].reason, None);
    }
    let one_more = of_pod(to, family, 24);
    sent_by_pod(&host, &one_more[..1])[0].dropped(Egress, DropReason::TooManyFragments);
    let tuple = Tuple::new(plan::pod(1, 3, family), to, UDP);
    let macs = (plan::pod_mac(1, 3), plan::gateway_mac(1));
    let other = cut(
        &frame::build(macs.0, macs.1, &tuple, 64, &payload()),
        800,
        1,
    );
    let out = through(&host, Hook::FromPod, plan::pod_interface(3), &other);
    assert_eq!(joined(&out).tuple, tuple);
    // It heals by itself.
    host.advance(30);
    let out = sent_by_pod(&host, &one_more);
    assert_eq!(joined(&out).payload, payload());
}

/// Two pods and the node send at once, under one identification, to one destination.
#[rstest]
fn identifications_behind_one_address(#[values(V4, V6)] family: Family) {
    let host = node(1, V4);
    let outside = plan::outside(family);
    let mut ids = std::collections::HashSet::new();
    let senders = [
        (
            plan::pod(1, 1, family),
            plan::pod_mac(1, 1),
            Hook::FromPod,
            plan::pod_interface(1),
        ),
        (
            plan::pod(1, 2, family),
            plan::pod_mac(1, 2),
            Hook::FromPod,
            plan::pod_interface(2),
        ),
        (
            plan::node(1, family),
            plan::node_mac(1),
            Hook::ToUplink,
            plan::UPLINK,
        ),
    ];
    let mut sent = vec![Vec::new(); senders.len()];
    for piece in 0..3 {
        for (at, (source, mac, hook, interface)) in senders.into_iter().enumerate() {
            let tuple = Tuple::new(source, outside, UDP);
            let whole = frame::build(mac, plan::gateway_mac(1), &tuple, 64, &payload());
            let out = run(&host, hook, interface, &cut(&whole, 800, 7)[piece]);
            assert_eq!(out.reason, None);
            sent[at].push(out);
        }
    }
    for out in &sent {
        assert_eq!(joined(out).tuple.source, plan::node(1, family));
        let at = if family == V4 { 18..20 } else { 58..62 };
        let of_one: std::collections::HashSet<_> = out
            .iter()
            .map(|out| out.bytes[at.clone()].to_vec())
            .collect();
        assert_eq!(of_one.len(), 1);
        ids.extend(of_one);
    }
    assert_eq!(ids.len(), senders.len());
}

/// What came by an uplink ahead of its first one is the stack's with all its packet, and judged
/// when the stack has put it in order: as what came by the uplink.
#[rstest]
fn put_in_order_by_the_stack(#[values(V4, V6)] family: Family) {
    let mut host = node(1, V4);
    let tuple = Tuple::new(plan::outside(family), plan::pod(1, 1, family), UDP);
    let macs = (plan::node_mac(plan::ROUTER), plan::node_mac(1));
    let whole = frame::build(macs.0, macs.1, &tuple, 60, &payload());
    let mut pieces = cut(&whole, 800, 7);
    pieces.reverse();
    from_uplink(&host, &pieces[0]).dropped(Ingress, DropReason::FragmentWithoutFirst);

    host.config.fragments_to_stack = 1;
    for piece in &pieces {
        let out = from_uplink(&host, piece);
        out.went(Action::Pass, 0, "");
        assert_eq!((out.mark, out.bytes), (mark::REORDERED, piece.clone()));
    }
    pieces.reverse();
    let stack = |piece: &Vec<u8>| {
        let far = plan::GATEWAY_FAR;
        run_marked(&host, Hook::FromHost, far, piece, mark::REORDERED)
    };
    let out: Vec<_> = pieces.iter().map(stack).collect();
    assert_eq!(joined(&out).tuple, tuple);
    let flow = entry(&host, &key(&tuple)).unwrap();
    assert_eq!(flow.arrival(), flags::ARRIVAL_UPLINK);
    // The next one, in order, goes its way.
    for piece in cut(&whole, 800, 8) {
        let pod = plan::pod_interface(1);
        from_uplink(&host, &piece).went(Action::IntoPod, pod, "ingress to-endpoint");
    }
}
