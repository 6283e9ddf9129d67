//! What is told of verdicts: of which of them, with what, and how much.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod support;

use datapath_kern::abi::config::verdicts;
use datapath_kern::abi::event::{Event, FRAME_BYTES, VERDICTS, flags, kind};
use datapath_kern::abi::flow::{End, verdict};
use datapath_kern::abi::metric::Direction::{self, Egress, Ingress};
use datapath_kern::abi::policy::{matched, word};
use datapath_kern::env::Table;
use datapath_kern::host::{Buffer, Hook, Host, plan};
use datapath_kern::packet::Family::{self, V4, V6};
use datapath_kern::verdict::{DropReason, Ruling};
use rstest::rstest;
use support::frame::{self, ACK, L4, SYN, Tuple};
use support::policy::{self, allow, direction_of, switch};
use support::sent::{TCP, between, from_uplink, kind_wrap};
use support::ways::{OUTSIDE, Path};
use support::{from_pod, tunnel};

fn told(events: &[Event]) -> Vec<(Direction, u8, u32, u8)> {
    let head = |event: &Event| {
        let head = event.head;
        (
            direction_of(event),
            head.outcome,
            head.rule_id,
            head.matched,
        )
    };
    events.iter().map(head).collect()
}

fn pods(host: &Host, words: [u32; 2]) -> Tuple {
    let tuple = Path::PodToPod.tuple(V4);
    allow(
        host,
        5,
        Egress,
        plan::pod_identity(1, 2),
        (policy::TCP, 80),
        51,
    );
    allow(
        host,
        6,
        Ingress,
        plan::pod_identity(1, 1),
        (policy::TCP, 80),
        61,
    );
    switch(host, 1, words[0]);
    switch(host, 2, words[1]);
    tuple
}

/// Whichever ends policy was asked of are told, and with the setting also those of which it was not.
#[rstest]
#[case(verdicts::NONE, &[], &[])]
#[case(
    verdicts::JUDGED,
    &[],
    &[(Ingress, verdict::ALLOW, 61, matched::L3_L4)]
)]
#[case(
    verdicts::ALL,
    &[
        (Egress, verdict::ALLOW, 0, matched::NONE),
        (Ingress, verdict::ALLOW, 0, matched::NONE),
    ],
    &[
        (Egress, verdict::ALLOW, 0, matched::NONE),
        (Ingress, verdict::ALLOW, 61, matched::L3_L4),
    ]
)]
fn what_is_asked_for_is_told(
    #[case] setting: u32,
    #[case] unjudged: &[(Direction, u8, u32, u8)],
    #[case] judged: &[(Direction, u8, u32, u8)],
) {
    let mut host = Path::PodToPod.host();
    host.config.verdicts = setting;
    let tuple = pods(&host, [0, 0]);
    let out = from_pod(&host, 1, 1, &tuple);
    assert_eq!(
        (told(&out.verdicts).as_slice(), out.rulings),
        (unjudged, vec![])
    );
    let mut host = Path::PodToPod.host();
    host.config.verdicts = setting;
    let tuple = pods(&host, [0, word::INGRESS | 6]);
    let out = from_pod(&host, 1, 1, &tuple);
    assert_eq!(told(&out.verdicts), judged);
    assert_eq!(out.rulings, [(Ingress, Ruling::Allowed)], "counted anyway");
    for flags in [SYN | ACK, ACK] {
        let out = from_pod(&host, 1, 2, &tuple.answer(flags));
        assert_eq!(out.verdicts, [], "the first packet alone");
    }
}

/// Who was not asked, because another denied it, is not told of either.
#[test]
fn nobody_is_asked_after_a_denial() {
    let mut host = Path::PodToPod.host();
    host.config.verdicts = verdicts::ALL;
    let tuple = pods(&host, [word::EGRESS, word::INGRESS | 6]);
    let out = from_pod(&host, 1, 1, &tuple);
    out.dropped(Egress, DropReason::PolicyDenied);
    let denied = (Egress, verdict::DENY, 0, matched::NONE);
    assert_eq!(told(&out.verdicts), [denied]);
}

/// Both ends are named, as the packet has them, and the packet is told as it came.
#[rstest]
fn both_ends_are_named(#[values(V4, V6)] family: Family) {
    let host = Path::PeerToPod.host();
    let identities = (plan::pod_identity(2, 1), plan::pod_identity(1, 1));
    allow(&host, 5, Ingress, identities.0, (policy::TCP, 80), 51);
    switch(&host, 1, word::INGRESS | 5);
    let bytes = kind_wrap(V4).around(&tunnel::inner(1, &between(family)));
    let out = from_uplink(&host, &bytes);
    let [event] = out.verdicts.as_slice() else {
        panic!("{:?}", out.verdicts)
    };
    let head = event.head;
    assert_eq!((head.kind, head.l3), (kind::VERDICT, 14 + 50));
    assert_eq!(Hook::from_number(head.hook), Some(Hook::FromUplink));
    assert_eq!(head.time_ns, u64::from(host.clock_s.get()) * 1_000_000_000);
    assert_eq!(
        (head.interface, head.length as usize),
        (plan::UPLINK, bytes.len())
    );
    let captured = usize::from(head.captured);
    assert_eq!(captured, bytes.len().min(FRAME_BYTES));
    assert_eq!(event.frame[..captured], bytes[..captured]);
    assert_eq!(head.flags, flags::SOURCE | flags::DESTINATION);
    assert_eq!(
        (head.source_identity, head.destination_identity),
        identities
    );
    let ends = [head.source, head.destination].map(End::from_raw);
    assert_eq!(ends, [End::peer(2), End::endpoint(1)]);
}

/// A flow that is masqueraded is told under the pod's own address.
#[test]
fn what_is_translated_is_told_as_it_came() {
    let host = Path::PodToWorld.host();
    allow(&host, 5, Egress, OUTSIDE, (policy::TCP, 80), 51);
    switch(&host, 1, word::EGRESS | 5);
    let tuple = Path::PodToWorld.tuple(V4);
    let out = from_pod(&host, 1, 1, &tuple);
    let bytes = frame::of_pod(1, 1, &tuple);
    assert_ne!(out.bytes, bytes);
    assert_eq!(out.verdicts[0].frame[..bytes.len()], bytes);
}

/// A packet that policy denies is told twice: what policy said, and that it was dropped.
#[test]
fn a_denied_packet_is_told_twice() {
    let host = Path::PodToPod.host();
    let tuple = pods(&host, [word::EGRESS | 5, word::INGRESS | 6]);
    policy::port(&host, 61, policy::TCP, 80, verdict::DENY, 62);
    let out = from_pod(&host, 1, 1, &tuple);
    out.dropped(Egress, DropReason::PolicyDeniedByRule);
    assert_eq!(
        told(&out.verdicts),
        [
            (Egress, verdict::ALLOW, 51, matched::L3_L4),
            (Ingress, verdict::DENY, 62, matched::L3_L4),
        ]
    );
    let head = out.event.unwrap().head;
    assert_eq!((head.rule_id, head.matched), (62, matched::L3_L4));
    let ruled = [(Ingress, Ruling::Denied), (Egress, Ruling::Allowed)];
    assert_eq!(out.rulings, ruled);
    // The next packet that is dropped for something else names no rule.
    let strange = Tuple::new(plan::outside(V4), plan::pod(1, 4, V4), TCP);
    let out = from_pod(&host, 1, 1, &strange);
    out.dropped(Egress, DropReason::InvalidSourceIp);
    let head = out.event.unwrap().head;
    assert_eq!((head.rule_id, head.matched), (0, matched::NONE));
}

/// Begins flows of their own, `times` times; how many verdicts were told.
fn begin(host: &Host, times: u16, from: u16) -> usize {
    for port in from..from + times {
        let tuple = Tuple {
            l4: L4::Tcp(port, 80, SYN),
            ..Path::PodToPod.tuple(V4)
        };
        let bytes = frame::of_pod(1, 1, &tuple);
        let mut packet = Buffer::new(plan::pod_interface(1), bytes);
        assert_eq!(host.run(Hook::FromPod, &mut packet).reason, None);
    }
    host.take_events().len()
}

/// Verdicts have a rate of their own, and what is not told is counted.
#[test]
fn so_many_are_told_in_a_second() {
    let mut host = Path::PodToPod.host();
    host.config.verdicts_per_s = 10;
    host.config.events_per_s = 1;
    pods(&host, [0, word::INGRESS | 6]);
    let untold = || {
        let window = host.event_windows.get(&VERDICTS).unwrap();
        (window.suppressed, window.lost)
    };
    assert_eq!((begin(&host, 25, 1), untold()), (10, (15, 0)));
    host.advance(1);
    assert_eq!((begin(&host, 5, 100), untold()), (5, (15, 0)));
    host.advance(1);
    host.event_room.set(2);
    assert_eq!((begin(&host, 5, 200), untold()), (2, (15, 3)));
    let mut counted = host.take_counters();
    counted.retain(|(_, outcome, _)| *outcome == Ruling::Allowed.code());
    let [(Ingress, _, by)] = counted.as_slice() else {
        panic!("{counted:?}")
    };
    assert_eq!(by.packets, 35);
}
