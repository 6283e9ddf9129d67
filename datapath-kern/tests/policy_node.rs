//! The node's own policy: what comes to it and what it begins, as of any endpoint; and that a node
//! without one goes on as if there were none.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod support;

use datapath_kern::abi::endpoint::identity;
use datapath_kern::abi::flow::flags;
use datapath_kern::abi::metric::Direction::{Egress, Ingress};
use datapath_kern::abi::policy::word;
use datapath_kern::env::Table;
use datapath_kern::host::{Access, Hook, Host, plan};
use datapath_kern::packet::Family::{self, V4, V6};
use datapath_kern::verdict::{Action, DropReason};
use rstest::rstest;
use support::frame::{self, ACK, L4, SYN, Tuple};
use support::policy::{self, allow, switch};
use support::sent::{between, from_uplink, kind_wrap};
use support::tunnel::{self, Wrap};
use support::ways::{OUTSIDE, Path};
use support::{Out, entry, from_router, key, run};

const SET: u32 = 7;

/// A node that needs a rule for both directions, and has one for port 80 of what comes to it.
fn guarded() -> Host {
    let host = Path::WorldToHost.host();
    allow(&host, SET, Ingress, OUTSIDE, (policy::TCP, 80), 70);
    switch(&host, 0, word::INGRESS | word::EGRESS | SET);
    host
}

/// Has the node's stack send a packet out of the uplink.
fn sends(host: &Host, tuple: &Tuple) -> Out {
    let bytes = frame::build([2; 6], [4; 6], tuple, 64, b"hi");
    run(host, Hook::ToUplink, plan::UPLINK, &bytes)
}

#[rstest]
fn what_comes_to_a_guarded_node_stays_where_it_is(#[values(V4, V6)] family: Family) {
    let host = guarded();
    let tuple = Path::WorldToHost.tuple(family);
    let out = from_router(&host, 1, &tuple);
    out.went(Action::Pass, 0, "ingress to-host");
    let flow = entry(&host, &key(&tuple)).unwrap();
    assert_eq!((flow.target(), flow.rule_id), (flags::TARGET_HOST, 70));
    // Its answers are no flow of the node's, which would need a rule.
    sends(&host, &tuple.answer(SYN | ACK)).went(Action::Pass, 0, "");
    let out = from_router(&host, 1, &tuple.with_flags(ACK));
    out.went(Action::Pass, 0, "ingress to-host");
    assert_eq!(host.flows.len(), 2);
    for l4 in [
        L4::Tcp(40_000, 22, SYN),
        L4::Udp(40_000, 80),
        L4::EchoRequest(1),
    ] {
        let other = Tuple { l4, ..tuple };
        from_router(&host, 1, &other).dropped(Ingress, DropReason::PolicyDenied);
        let begun = Tuple {
            source: tuple.destination,
            destination: tuple.source,
            l4,
        };
        sends(&host, &begun).dropped(Egress, DropReason::PolicyDenied);
    }
    assert_eq!((host.flows.len(), host.pending.len()), (2, 0));
}

/// Where only what the node begins needs a rule, what comes to it is known by its flow as well: or
/// its answers would be taken for something begun.
#[rstest]
#[case(word::INGRESS)]
#[case(word::EGRESS)]
fn one_direction_alone(#[case] direction: u32, #[values(V4, V6)] family: Family) {
    let host = Path::WorldToHost.host();
    switch(&host, 0, direction);
    let tuple = Path::WorldToHost.tuple(family);
    let begun = Path::HostToWorld.tuple(family);
    let (came, went) = (from_router(&host, 1, &tuple), sends(&host, &begun));
    let denied = Some(DropReason::PolicyDenied);
    if direction == word::INGRESS {
        assert_eq!((came.reason, went.reason), (denied, None));
        let back = begun.answer(SYN | ACK);
        from_router(&host, 1, &back).went(Action::Pass, 0, "ingress to-host");
    } else {
        assert_eq!((came.reason, went.reason), (None, denied));
        sends(&host, &tuple.answer(SYN | ACK)).went(Action::Pass, 0, "");
    }
}

/// Tunnel packets between peers are the tunnel's business, whole or cut.
#[rstest]
fn tunnel_packets_of_peers_are_not_asked_about(#[values(V4, V6)] family: Family) {
    let host = guarded();
    let frame = kind_wrap(V4).around(&tunnel::inner(1, &between(family)));
    assert_eq!(from_uplink(&host, &frame).verdict.action, Action::IntoPod);
    let by_tunnel = |from, to| Tuple::new(from, to, L4::Udp(50_000, 6081));
    let (own, peer) = (plan::node(1, V4), plan::node(2, V4));
    sends(&host, &by_tunnel(own, peer)).went(Action::Pass, 0, "");
    // To and from anybody else they are packets like all others.
    let stranger = plan::node(9, V4);
    sends(&host, &by_tunnel(own, stranger)).dropped(Egress, DropReason::PolicyDenied);
    let strange = Wrap {
        source: stranger,
        ..kind_wrap(V4)
    };
    let frame = strange.around(&tunnel::inner(1, &between(family)));
    from_uplink(&host, &frame).dropped(Ingress, DropReason::TunnelUnknownPeer);
}

#[test]
fn tunnel_packets_that_were_cut_on_the_way() {
    let host = guarded();
    for (source, denied) in [(2, false), (9, true)] {
        let l4 = L4::Udp(50_000, 6081);
        let tuple = Tuple::new(plan::node(source, V4), plan::node(1, V4), l4);
        let macs = (plan::node_mac(source), plan::node_mac(1));
        let payload = [7; 256];
        let whole = frame::build(macs.0, macs.1, &tuple, 64, &payload);
        for piece in support::fragments::cut(&whole, 128, 7) {
            let out = run(&host, Hook::FromUplink, plan::UPLINK, &piece);
            let dropped = out.verdict.action == Action::Drop;
            assert_eq!(dropped, denied, "{:?}", out.reason);
        }
    }
}

/// What cannot be judged does not pass a guarded node: headers cut apart, and a first fragment in the
/// place of another, of which what follows would be put together.
#[rstest]
fn what_cannot_be_judged_is_not_let_in(#[values(V4, V6)] family: Family) {
    let to = |port| Tuple {
        l4: L4::Udp(40_000, port),
        ..Path::WorldToHost.tuple(family)
    };
    let pieces = |port, length| {
        let macs = (plan::node_mac(plan::ROUTER), plan::node_mac(1));
        let whole = frame::build(macs.0, macs.1, &to(port), 60, &[port.to_le_bytes()[0]; 256]);
        support::fragments::cut(&whole, length, 7)
    };
    let arrives = |host: &Host, frame: &[u8]| run(host, Hook::FromUplink, plan::UPLINK, frame);
    let (guarded, unguarded) = (guarded(), Path::WorldToHost.host());
    let small = &pieces(22, 16)[0];
    arrives(&guarded, small).dropped(Ingress, DropReason::FragmentTooSmall);
    arrives(&unguarded, small).went(Action::Pass, 0, "");
    let [first, other] = [22, 23].map(|port| pieces(port, 128));
    arrives(&guarded, &first[0]).dropped(Ingress, DropReason::PolicyDenied);
    arrives(&guarded, &other[0]).dropped(Ingress, DropReason::FragmentOverlap);
    let cut = &frame::of_pod(1, 1, &to(80))[..40];
    arrives(&guarded, cut).dropped(Ingress, DropReason::InvalidPacket);
    arrives(&unguarded, cut).went(Action::Pass, 0, "");
    // Neither are others' protocols than IP an offence.
    let mut strange = frame::of_pod(1, 1, &to(80));
    strange[12..14].copy_from_slice(&[0x88, 0xcc]);
    arrives(&guarded, &strange).went(Action::Pass, 0, "");
}

/// Policy that comes later does not cut what the node was doing, whichever side began it; what
/// begins then is asked about.
#[rstest]
fn what_the_node_was_doing_goes_on(
    #[values(V4, V6)] family: Family,
    #[values(false, true)] begun_by_node: bool,
    #[values(false, true)] node_first: bool,
    #[values(L4::Tcp(40_000, 22, SYN), L4::Udp(40_000, 22))] l4: L4,
) {
    let host = Path::WorldToHost.host();
    let (own, outside) = (plan::node(1, family), plan::outside(family));
    let (there, back) = if begun_by_node {
        let tuple = Tuple::new(own, outside, l4);
        (tuple, tuple.answer(ACK))
    } else {
        let tuple = Tuple::new(outside, own, l4);
        (tuple.answer(ACK), tuple.with_flags(ACK))
    };
    let first = if begun_by_node { SYN } else { SYN | ACK };
    // What comes to the node is seen when it answers.
    sends(&host, &there.with_flags(first)).went(Action::Pass, 0, "");
    for _ in 0..3 {
        from_router(&host, 1, &back).went(Action::Pass, 0, "ingress to-host");
        sends(&host, &there.with_flags(ACK)).went(Action::Pass, 0, "");
    }
    let pair = entry(&host, &key(&there)).unwrap().pair;
    for _ in 0..2 {
        switch(&host, 0, word::INGRESS | word::EGRESS);
        if node_first {
            sends(&host, &there.with_flags(ACK)).went(Action::Pass, 0, "");
        }
        from_router(&host, 1, &back).went(Action::Pass, 0, "ingress to-host");
        sends(&host, &there.with_flags(ACK)).went(Action::Pass, 0, "");
    }
    assert_eq!(entry(&host, &key(&there)).unwrap().pair, pair);
    let other = |tuple: Tuple| Tuple {
        l4: L4::Tcp(41_000, 22, SYN),
        ..tuple
    };
    let denied = Some(DropReason::PolicyDenied);
    assert_eq!(sends(&host, &other(there)).reason, denied);
    assert_eq!(from_router(&host, 1, &other(back)).reason, denied);
}

/// What the tables have no room for, or the shares, is not kept from the node.
#[rstest]
fn no_room_keeps_nothing_from_the_node(#[values(V4, V6)] family: Family) {
    let tuple = Path::WorldToHost.tuple(family);
    let host = guarded();
    host.pending.refuse(1);
    from_router(&host, 1, &tuple).went(Action::Pass, 0, "");
    let mut host = guarded();
    host.config.endpoint_begun_per_s = 1;
    for (port, counted) in [(1, "ingress to-host"), (2, ""), (3, "")] {
        let l4 = L4::Tcp(port, 80, SYN);
        from_router(&host, 1, &Tuple { l4, ..tuple }).went(Action::Pass, 0, counted);
    }
}

/// Addresses that nobody outside has do not come from there.
#[rstest]
fn who_is_not_outside_is_not_believed(#[values(V4, V6)] family: Family) {
    let host = guarded();
    for source in [plan::pod(1, 1, family), plan::pod(2, 1, family)] {
        let tuple = Tuple {
            source,
            ..Path::WorldToHost.tuple(family)
        };
        from_router(&host, 1, &tuple).dropped(Ingress, DropReason::InvalidSourceIp);
    }
}

/// Another node is known as one, and what is for neither pod nor node is nobody's here.
#[rstest]
fn other_nodes_and_other_destinations(#[values(V4, V6)] family: Family) {
    let host = guarded();
    let tuple = Tuple::new(
        plan::node(2, family),
        plan::node(1, family),
        L4::Tcp(40_000, 10_250, SYN),
    );
    from_router(&host, 1, &tuple).dropped(Ingress, DropReason::PolicyDenied);
    let set = SET + 1;
    allow(
        &host,
        set,
        Ingress,
        identity::REMOTE_NODE,
        (policy::TCP, 10_250),
        71,
    );
    switch(&host, 0, word::INGRESS | set);
    from_router(&host, 1, &tuple).went(Action::Pass, 0, "ingress to-host");
    let transit = Tuple {
        destination: plan::node(7, family),
        ..tuple
    };
    from_router(&host, 1, &transit).went(Action::Pass, 0, "");
}

/// Without a policy of its own the node has what comes to it for one look at its word, and one at who
/// it is from.
#[rstest]
fn an_unguarded_node_is_asked_nothing(#[values(V4, V6)] family: Family) {
    let host = Path::WorldToHost.host();
    let tuple = Path::WorldToHost.tuple(family);
    from_router(&host, 1, &tuple).went(Action::Pass, 0, "");
    let accesses = host.take_accesses();
    let names: Vec<_> = accesses.iter().map(Access::to_string).collect();
    let expected = [
        "now",
        "flows update",
        "pending update",
        "ipcache",
        "endpoints get",
        "ipcache",
    ];
    assert_eq!(names, expected);
    assert_eq!((host.flows.len(), host.pending.len()), (0, 0));
    assert!(host.endpoints.get(&0).unwrap().policy == 0);
}
