//! Each endpoint's share of the flow tables.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod support;

use datapath_kern::abi::metric::Direction;
use datapath_kern::abi::quota::Quota;
use datapath_kern::abi::tally::Tally;
use datapath_kern::env::Table;
use datapath_kern::host::{Hash, Hook, Host, plan};
use datapath_kern::packet::Family;
use datapath_kern::verdict::DropReason;
use proptest::prelude::*;
use support::frame::{ACK, FIN, L4, RST, SYN, Tuple};
use support::{Out, entry, from_pod, key, node, run};

/// A node on which endpoints have these shares.
fn limited(established: u32, begun_per_s: u32) -> Host {
    let mut host = node(1, Family::V4);
    host.config.endpoint_established = established;
    host.config.endpoint_begun_per_s = begun_per_s;
    host
}

/// A connection from a pod to another, told by its port.
fn between(from: u8, to: u8, port: u16) -> Tuple {
    Tuple::new(
        plan::pod(1, from, Family::V4),
        plan::pod(1, to, Family::V4),
        L4::Tcp(port, 80, 0),
    )
}

fn begin(host: &Host, from: u8, to: u8, port: u16) -> Out {
    from_pod(host, 1, from, &between(from, to, port).with_flags(SYN))
}

/// The rest of a handshake that was begun.
fn prove(host: &Host, from: u8, to: u8, port: u16) {
    let tuple = between(from, to, port);
    from_pod(host, 1, to, &tuple.answer(SYN | ACK));
    from_pod(host, 1, from, &tuple.with_flags(ACK));
}

#[track_caller]
fn refused(out: &Out) {
    out.dropped(Direction::Egress, DropReason::EndpointQuota);
}

fn quota(host: &Host, slot: u32) -> Quota {
    host.quotas.get(&slot).unwrap()
}

#[test]
fn who_begins_too_many_unproven_flows_waits_for_the_next_second() {
    let host = limited(0, 3);
    for port in 1..=3 {
        begin(&host, 1, 2, port);
        assert!(entry(&host, &key(&between(1, 2, port))).is_some());
    }
    refused(&begin(&host, 1, 2, 4));
    assert!(entry(&host, &key(&between(1, 2, 4))).is_none());
    assert_eq!(host.tallied(Tally::QuotaPending), 1);
    // Those that are there go on, other pods begin theirs, also to this one.
    assert_eq!(begin(&host, 1, 2, 3).reason, None);
    assert_eq!(begin(&host, 2, 1, 9).reason, None);
    assert_eq!(begin(&host, 3, 1, 9).reason, None);
    host.advance(1);
    assert_eq!(begin(&host, 1, 2, 4).reason, None);
}

#[test]
fn what_is_proven_does_not_count_as_begun() {
    let host = limited(0, 3);
    for port in 1..=50 {
        assert_eq!(begin(&host, 1, 2, port).reason, None);
        prove(&host, 1, 2, port);
    }
    assert_eq!(quota(&host, 1).begun, 0);
    assert_eq!((quota(&host, 1).established, host.flows.len()), (50, 100));
}

#[test]
fn what_others_begin_to_a_pod_counts_against_it_and_not_with_its_own() {
    let host = limited(0, 3);
    let pod = plan::pod(1, 1, Family::V4);
    let inward = |port| {
        let tuple = Tuple::new(plan::outside(Family::V4), pod, L4::Tcp(port, 80, SYN));
        let bytes = support::frame::build([2; 6], [4; 6], &tuple, 60, b"hi");
        run(&host, Hook::ToPod, plan::pod_interface(1), &bytes)
    };
    for port in 1..=3 {
        assert_eq!(inward(port).reason, None);
    }
    inward(4).dropped(Direction::Ingress, DropReason::EndpointQuota);
    assert_eq!((quota(&host, 1).received, quota(&host, 1).begun), (3, 0));
    assert_eq!(begin(&host, 1, 2, 1).reason, None);
}

#[test]
fn a_pod_with_its_share_of_the_established_table_begins_no_more_and_keeps_what_it_has() {
    let host = limited(2, 0);
    for port in 1..=3 {
        begin(&host, 1, 2, port);
    }
    for port in 1..=3 {
        prove(&host, 1, 2, port);
    }
    // The third was begun before, and stays unproven.
    assert_eq!((host.flows.len(), host.pending.len()), (4, 2));
    assert_eq!(host.tallied(Tally::QuotaPromotion), 1);
    refused(&begin(&host, 1, 2, 4));
    assert_eq!(host.tallied(Tally::QuotaEstablished), 1);
    for port in 1..=3 {
        let tuple = between(1, 2, port);
        assert_eq!(from_pod(&host, 1, 1, &tuple.with_flags(ACK)).reason, None);
        assert_eq!(from_pod(&host, 1, 2, &tuple.answer(ACK)).reason, None);
    }
    assert_eq!(begin(&host, 2, 3, 1).reason, None, "another pod");
    // One of them ends, and its ports are used again.
    from_pod(&host, 1, 1, &between(1, 2, 1).with_flags(RST));
    assert_eq!(begin(&host, 1, 2, 1).reason, None);
    assert_eq!(quota(&host, 1).established, 1, "the old one is gone");
}

#[test]
fn the_node_has_no_limit_of_established_flows() {
    let host = limited(1, 0);
    let pod = plan::pod(1, 1, Family::V4);
    for port in 1..=5 {
        let tuple = Tuple::new(plan::gateway(1, Family::V4), pod, L4::Tcp(port, 80, 0));
        let send = |flags| {
            let bytes = support::frame::build([2; 6], [4; 6], &tuple.with_flags(flags), 64, b"hi");
            run(&host, Hook::FromHost, plan::GATEWAY_FAR, &bytes)
        };
        assert_eq!(send(SYN).reason, None);
        assert_eq!(from_pod(&host, 1, 1, &tuple.answer(SYN | ACK)).reason, None);
        assert_eq!(send(ACK).reason, None);
    }
    assert_eq!((host.flows.len(), quota(&host, 0).established), (10, 5));
}

#[test]
fn a_quota_counts_none_where_the_flow_is_refused_for_another_reason() {
    let mut host = limited(0, 3);
    host.pending = Hash::new(0);
    for port in 1..=5 {
        begin(&host, 1, 2, port).dropped(Direction::Egress, DropReason::FlowInsertFailed);
    }
    assert_eq!(quota(&host, 1).begun, 0);
    assert_eq!(host.tallied(Tally::PendingFull), 5);
    assert_eq!(host.tallied(Tally::PendingInserted), 0);
}

proptest! {
    /// Whatever happens: no pod goes beyond its share, what is counted is what is there, and what
    /// was made is there, was removed or was evicted.
    #[test]
    fn counts_are_what_is_there(
        capacity in 4..40_usize,
        steps in proptest::collection::vec(
            (1..4_u8, 1..6_u16, any::<bool>(), prop_oneof![
                Just(SYN), Just(SYN | ACK), Just(ACK), Just(ACK), Just(FIN | ACK), Just(RST)
            ], 0..4_u32),
            1..200,
        ),
    ) {
        const SHARE: u32 = 3;
        let mut host = limited(SHARE, 4);
        host.pending = Hash::evicting_any(capacity);
        let mut most_gone = 0;
        for (pod, port, by_client, flags, wait_s) in steps {
            let to = pod % 3 + 1;
            let tuple = between(pod, to, port);
            if by_client {
                from_pod(&host, 1, pod, &tuple.with_flags(flags));
            } else {
                from_pod(&host, 1, to, &tuple.answer(flags));
            }
            host.advance(u32::from(wait_s == 3));
            let entries = host.flows.entries();
            for slot in 1..4 {
                let own = entries.iter().filter(|(_, flow)| flow.charge().slot == slot).count();
                prop_assert_eq!(own, 2 * quota(&host, slot).established as usize);
                prop_assert!(quota(&host, slot).established <= SHARE);
                prop_assert!(quota(&host, slot).begun <= 4);
            }
            let made = host.tallied(Tally::EstablishedInserted);
            let gone = host.tallied(Tally::EstablishedRemoved);
            prop_assert_eq!(made - gone, host.flows.len() as u64);
            let made = host.tallied(Tally::PendingInserted);
            let gone = host.tallied(Tally::PendingRemoved) + host.pending.len() as u64;
            // The difference is what the table let go of: it does not come back.
            prop_assert!(made >= gone, "{} made, {} accounted for", made, gone);
            prop_assert!(made - gone >= most_gone);
            most_gone = made - gone;
        }
    }
}
