//! Fragments follow the first of them, wherever it goes and whatever becomes of it.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "it is all tests"
)]

mod support;

use datapath_kern::abi::metric::Direction::Egress;
use datapath_kern::host::{Hook, Host, plan};
use datapath_kern::packet::Family::{self, V4, V6};
use datapath_kern::verdict::{Action, DropReason};
use rstest::rstest;
use support::fragments::{cut, join};
use support::frame::{self, L4, SYN, Tuple};
use support::sent::{from_uplink, kind_wrap};
use support::{Out, node, run, tunnel};

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
    assert_eq!(reasons, [Some(DropReason::InvalidPacket); 2]);

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
