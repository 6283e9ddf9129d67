//! What is told of a dropped packet: who sent it to whom, as far as that is known and no further,
//! and how much is told at all.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod support;

use datapath_kern::abi::event::{Event, Head, flags};
use datapath_kern::abi::flow::{End, verdict};
use datapath_kern::abi::metric::Direction::{Egress, Ingress};
use datapath_kern::env::Table;
use datapath_kern::host::{Buffer, Hook, Host, plan};
use datapath_kern::packet::Family::{self, V4, V6};
use datapath_kern::verdict::DropReason;
use rstest::rstest;
use support::frame::{self, ACK, SYN, Tuple};
use support::sent::{TCP, between, from_uplink, kind_wrap};
use support::tunnel::{self, Wrap};
use support::{Out, from_pod, key, node, run};

/// An end and its identity, where they are known.
type Known = Option<(End, u32)>;

/// Sender and receiver as an event tells them.
fn ends(out: &Out) -> (Known, Known) {
    let head = out.event.unwrap().head;
    let known = |flag, raw, identity| {
        let known = head.flags & flag != 0;
        assert!(known || (raw, identity) == (0, 0), "{head:?}");
        known.then_some((End::from_raw(raw), identity))
    };
    (
        known(flags::SOURCE, head.source, head.source_identity),
        known(
            flags::DESTINATION,
            head.destination,
            head.destination_identity,
        ),
    )
}

fn pod(number: u8) -> (End, u32) {
    (End::endpoint(number.into()), plan::pod_identity(1, number))
}

/// A TCP packet of pod 1 of node 1.
fn to(destination: std::net::IpAddr) -> Tuple {
    let own = if destination.is_ipv4() { V4 } else { V6 };
    Tuple::new(plan::pod(1, 1, own), destination, TCP)
}

/// Leaves a packet behind of which everything is known.
fn accept_one(host: &Host) {
    let out = from_pod(
        host,
        1,
        3,
        &Tuple::new(plan::pod(1, 3, V4), plan::pod(1, 4, V4), TCP),
    );
    assert_eq!((out.reason, out.event), (None, None));
}

#[rstest]
fn both_ends_of_a_flow_that_is_denied(#[values(V4, V6)] family: Family) {
    let host = node(1, V4);
    let tuple = to(plan::pod(1, 2, family));
    from_pod(&host, 1, 1, &tuple);
    from_pod(&host, 1, 2, &tuple.answer(SYN | ACK));
    from_pod(&host, 1, 1, &tuple.with_flags(ACK));
    host.flows
        .update(&key(&tuple), |flow| flow.verdict = verdict::DENY)
        .unwrap();
    accept_one(&host);
    let out = from_pod(&host, 1, 1, &tuple.with_flags(ACK));
    out.dropped(Egress, DropReason::PolicyDenied);
    let (from, to) = ends(&out);
    assert_eq!(from, Some(pod(1)));
    assert_eq!(to.map(|(end, _)| end), Some(pod(2).0));
    assert_eq!(out.event.unwrap().head.l3, 14);
}

#[test]
fn a_sender_that_is_not_proven_is_not_named() {
    let host = node(1, V4);
    // Of a flow that another has established, and of none.
    let theirs = Tuple::new(plan::pod(1, 2, V4), plan::pod(1, 4, V4), TCP);
    from_pod(&host, 1, 2, &theirs);
    accept_one(&host);
    let out = from_pod(&host, 1, 1, &theirs);
    out.dropped(Egress, DropReason::InvalidSourceIp);
    assert_eq!(ends(&out), (None, None));
    accept_one(&host);
    let strange = Tuple::new(plan::outside(V4), plan::pod(1, 4, V4), TCP);
    let out = from_pod(&host, 1, 1, &strange);
    out.dropped(Egress, DropReason::InvalidSourceIp);
    assert_eq!(ends(&out), (None, None));
}

/// A refused packet that is answered is dropped all the same; it is told as it came, and not as the
/// answer that it becomes.
#[rstest]
fn what_is_refused_with_an_answer_is_told_as_it_came(#[values(V4, V6)] family: Family) {
    let host = node(1, V4);
    let tuple = to(plan::pod(1, 2, family));
    let mut bytes = frame::of_pod(1, 1, &tuple);
    match family {
        V4 => {
            bytes[22] = 1;
            // The header checksum covers it: less by 63 in the high byte.
            let sum = u16::from_be_bytes([bytes[24], bytes[25]]);
            let sum = u32::from(sum) + 63 * 256;
            let folded = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
            bytes[24..26].copy_from_slice(&folded.to_be_bytes());
        }
        V6 => bytes[21] = 1,
    }
    accept_one(&host);
    let out = run(&host, Hook::FromPod, plan::pod_interface(1), &bytes);
    assert_eq!(out.reason, Some(DropReason::TtlExceeded));
    assert_ne!(out.bytes, bytes, "answered");
    assert_eq!(ends(&out), (Some(pod(1)), Some(pod(2))));
    let event = out.event.unwrap();
    assert_eq!(event.frame[..usize::from(event.head.captured)], bytes);
}

#[test]
fn a_sender_without_a_way_is_named_alone() {
    let host = node(1, V4);
    accept_one(&host);
    let out = from_pod(&host, 1, 1, &to(plan::pod(1, 99, V4)));
    out.dropped(Egress, DropReason::Vacant);
    assert_eq!(ends(&out), (Some(pod(1)), None));
}

#[rstest]
fn a_tunnel_packet_is_told_with_the_headers_within(
    #[values(V4, V6)] underlay: Family,
    #[values(V4, V6)] family: Family,
) {
    let host = node(1, underlay);
    let wrap = Wrap {
        vni: 1,
        ..kind_wrap(underlay)
    };
    accept_one(&host);
    let out = from_uplink(&host, &wrap.around(&tunnel::inner(1, &between(family))));
    out.dropped(Ingress, DropReason::InvalidIdentity);
    assert_eq!(ends(&out), (None, None));
    let outer = if underlay == V4 { 50 } else { 70 };
    assert_eq!(out.event.unwrap().head.l3, 14 + outer);
}

#[test]
fn what_has_no_headers_says_so() {
    let host = node(1, V4);
    for (bytes, reason) in [
        (vec![0; 9], DropReason::InvalidPacket),
        (vec![0; 60], DropReason::UnsupportedL2),
    ] {
        accept_one(&host);
        let out = run(&host, Hook::FromPod, plan::pod_interface(1), &bytes);
        assert_eq!(out.reason, Some(reason));
        assert_eq!(ends(&out), (None, None));
        let reached = if bytes.len() < 14 { 0 } else { 14 };
        assert_eq!(out.event.unwrap().head.l3, reached);
    }
}

#[test]
fn a_tag_that_the_bytes_do_not_show_is_told() {
    let host = node(1, V4);
    let bytes = frame::of_pod(1, 1, &to(plan::pod(1, 2, V4)));
    for vlan in [None, Some(7)] {
        let mut packet = Buffer {
            vlan,
            ..Buffer::new(plan::pod_interface(1), bytes.clone())
        };
        let _forwarded_or_not = host.run(Hook::FromPod, &mut packet);
    }
    let told = host.take_events();
    let [Event { head, .. }] = told.as_slice() else {
        panic!("{told:?}")
    };
    assert_eq!(u32::from(head.outcome), DropReason::UnsupportedL2.code());
    assert_eq!(head.flags, flags::TAGGED);
}

/// Drops a packet for want of a source address of its own, `times` times.
fn flood(host: &Host, times: usize) -> Vec<Head> {
    let strange = Tuple::new(plan::outside(V4), plan::pod(1, 4, V4), TCP);
    let bytes = frame::of_pod(1, 1, &strange);
    for _ in 0..times {
        let run = host.run(
            Hook::FromPod,
            &mut Buffer::new(plan::pod_interface(1), bytes.clone()),
        );
        assert_eq!(run.reason, Some(DropReason::InvalidSourceIp));
    }
    host.take_events().iter().map(|event| event.head).collect()
}

/// Events of that flood that were suppressed and lost so far.
fn untold(host: &Host) -> (u64, u64) {
    let code = DropReason::InvalidSourceIp.code();
    let window = host.event_windows.get(&code).unwrap();
    (window.suppressed, window.lost)
}

#[test]
fn so_many_of_a_reason_are_told_in_a_second() {
    let mut host = node(1, V4);
    host.config.events_per_s = 10;
    assert_eq!(flood(&host, 25).len(), 10);
    assert_eq!(untold(&host), (15, 0));
    // Others are told as before.
    let vacant = frame::of_pod(1, 1, &to(plan::pod(1, 99, V4)));
    let mut packet = Buffer::new(plan::pod_interface(1), vacant);
    let _dropped = host.run(Hook::FromPod, &mut packet);
    assert_eq!(host.take_events().len(), 1);
    host.advance(1);
    let told = flood(&host, 3);
    assert_eq!(told.len(), 3);
    assert!(told.iter().all(|head| head.time_ns == 1001 * 1_000_000_000));
    assert_eq!(untold(&host), (15, 0));
    // All of them are counted as drops.
    let dropped: u64 = host.take_counters().iter().map(|(.., by)| by.packets).sum();
    assert_eq!(dropped, 25 + 1 + 3);
}

#[test]
fn none_is_told_where_none_is_wanted() {
    let mut host = node(1, V4);
    host.config.events_per_s = 0;
    assert_eq!(flood(&host, 5), []);
    assert_eq!(untold(&host), (0, 0), "not even looked at");
}

#[test]
fn what_finds_no_room_is_counted() {
    let host = node(1, V4);
    host.event_room.set(4);
    assert_eq!(flood(&host, 7).len(), 4);
    assert_eq!(untold(&host), (0, 3));
}
