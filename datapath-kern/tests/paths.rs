//! Every way through the datapath, between two nodes: what leaves one is what arrives at the
//! other. Bytes as etherparse reads them, one counter per packet.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod support;

use datapath_kern::abi::config::tunnel as mode;
use datapath_kern::abi::endpoint::identity;
use datapath_kern::abi::ipcache::{IpEntry, flags, kind};
use datapath_kern::abi::mark;
use datapath_kern::abi::metric::Direction::Ingress;
use datapath_kern::abi::tunnel::Uplink;
use datapath_kern::env::Table;
use datapath_kern::host::{Hook, Prefix, Way, plan};
use datapath_kern::packet::Family::{self, V4, V6};
use datapath_kern::verdict::{Action, DropReason};
use rstest::rstest;
use support::frame::{self, ACK, L4, SYN, Tuple};
use support::sent::{
    TCP, between, from_host, from_uplink, into_host, into_pod, into_tunnel, is, kind_wrap, left,
};
use support::{from_pod, from_router, node, run, run_marked, tunnel};

#[rstest]
fn pod_to_pod_on_one_node(
    #[values(V4, V6)] family: Family,
    #[values(TCP, L4::Udp(5000, 53), L4::EchoRequest(9))] l4: L4,
) {
    let host = node(1, V4);
    let there = Tuple::new(plan::pod(1, 1, family), plan::pod(1, 2, family), l4);
    for _ in 0..3 {
        let out = from_pod(&host, 1, 1, &there);
        into_pod(&out, 1, 2, "egress to-endpoint", &there, 63);
        let back = there.answer(ACK);
        into_pod(
            &from_pod(&host, 1, 2, &back),
            1,
            1,
            "egress to-endpoint",
            &back,
            63,
        );
    }
    assert_eq!(host.flows.len() + host.pending.len(), 2);
}

#[rstest]
fn pod_to_pod_of_another_node(
    #[values(V4, V6)] family: Family,
    #[values(V4, V6)] underlay: Family,
    #[values(TCP, L4::Udp(5000, 53), L4::EchoRequest(9))] l4: L4,
) {
    let (a, b) = (node(1, underlay), node(2, underlay));
    let there = Tuple::new(plan::pod(1, 1, family), plan::pod(2, 3, family), l4);
    let back = there.answer(ACK);
    let mut entropy = None;
    for round in 0..3 {
        let flags = if round == 0 { SYN } else { ACK };
        let there = there.with_flags(flags);
        let out = from_pod(&a, 1, 1, &there);
        let packet = into_tunnel(&a, 1, &out, underlay, plan::pod_identity(1, 1));
        is(&packet.inner, &there, 63);
        assert_eq!(
            *entropy.get_or_insert(packet.source_port),
            packet.source_port
        );
        // The first asks for the neighbour, the others of that second know it.
        let expected = if round == 0 {
            Action::OutToNeighbour
        } else {
            Action::Out
        };
        assert_eq!(out.verdict.action, expected);
        into_pod(
            &from_uplink(&b, &out.bytes),
            2,
            3,
            "ingress to-endpoint",
            &there,
            62,
        );

        let out = from_pod(&b, 2, 3, &back);
        let packet = into_tunnel(&b, 2, &out, underlay, plan::pod_identity(2, 3));
        is(&packet.inner, &back, 63);
        into_pod(
            &from_uplink(&a, &out.bytes),
            1,
            1,
            "ingress to-endpoint",
            &back,
            62,
        );
    }
    assert_eq!((a.flows.len(), b.flows.len()), (2, 2));
}

#[rstest]
fn pod_to_the_outside_and_back(#[values(V4, V6)] family: Family) {
    let host = node(1, V4);
    let there = Tuple::new(plan::pod(1, 1, family), plan::outside(family), TCP);
    let outside = Tuple {
        source: plan::node(1, family),
        ..there
    };
    for round in 0..3 {
        let out = from_pod(
            &host,
            1,
            1,
            &there.with_flags(if round == 0 { SYN } else { ACK }),
        );
        assert_eq!(out.counted, "egress to-network");
        let seen = frame::parse(&out.bytes);
        is(
            &seen,
            &outside.with_flags(if round == 0 { SYN } else { ACK }),
            63,
        );
        let router = plan::node(plan::ROUTER, family);
        let macs = (plan::node_mac(1), plan::node_mac(plan::ROUTER));
        left(&host, &out, macs, router, (seen.from, seen.to));
        let back = from_router(&host, 1, &outside.answer(ACK));
        into_pod(&back, 1, 1, "ingress to-endpoint", &there.answer(ACK), 59);
    }
}

#[rstest]
fn node_to_its_pod_and_back(
    #[values(V4, V6)] family: Family,
    #[values(TCP, L4::Udp(5000, 53), L4::EchoRequest(9))] l4: L4,
) {
    let host = node(1, V4);
    let there = Tuple::new(plan::gateway(1, family), plan::pod(1, 2, family), l4);
    for _ in 0..3 {
        into_pod(
            &from_host(&host, &there),
            1,
            2,
            "egress to-endpoint",
            &there,
            64,
        );
        let back = there.answer(ACK);
        into_host(
            &host,
            1,
            &from_pod(&host, 1, 2, &back),
            "egress to-host",
            &back,
            64,
        );
    }
}

#[rstest]
fn pod_to_its_node_and_back(
    #[values(V4, V6)] family: Family,
    #[values(true, false)] gateway: bool,
) {
    let host = node(1, V4);
    let own = if gateway {
        plan::gateway(1, family)
    } else {
        plan::node(1, family)
    };
    let there = Tuple::new(plan::pod(1, 1, family), own, TCP);
    for _ in 0..3 {
        into_host(
            &host,
            1,
            &from_pod(&host, 1, 1, &there),
            "egress to-host",
            &there,
            64,
        );
        let back = there.answer(ACK);
        into_pod(
            &from_host(&host, &back),
            1,
            1,
            "egress to-endpoint",
            &back,
            64,
        );
    }
}

#[rstest]
fn node_to_a_pod_of_another_node_and_back(
    #[values(V4, V6)] family: Family,
    #[values(V4, V6)] underlay: Family,
) {
    let (a, b) = (node(1, underlay), node(2, underlay));
    let there = Tuple::new(plan::gateway(1, family), plan::pod(2, 1, family), TCP);
    let back = there.answer(ACK);
    for _ in 0..3 {
        let out = from_host(&a, &there);
        // The stack sent it: one hop less is the other node's to count.
        is(
            &into_tunnel(&a, 1, &out, underlay, identity::REMOTE_NODE).inner,
            &there,
            64,
        );
        into_pod(
            &from_uplink(&b, &out.bytes),
            2,
            1,
            "ingress to-endpoint",
            &there,
            63,
        );
        let out = from_pod(&b, 2, 1, &back);
        is(
            &into_tunnel(&b, 2, &out, underlay, plan::pod_identity(2, 1)).inner,
            &back,
            63,
        );
        into_host(
            &a,
            1,
            &from_uplink(&a, &out.bytes),
            "ingress to-host",
            &back,
            63,
        );
    }
}

#[rstest]
fn what_came_by_the_stack_enters_a_pod_by_to_pod(#[values(V4, V6)] family: Family) {
    let host = node(1, V4);
    let there = Tuple::new(plan::outside(family), plan::pod(1, 1, family), TCP);
    let bytes = frame::build([2; 6], plan::pod_mac(1, 1), &there, 63, b"hi");
    let out = run(&host, Hook::ToPod, plan::pod_interface(1), &bytes);
    out.went(Action::Pass, 0, "");
    assert_eq!(out.bytes, bytes);
    // The stack may have translated it: its answers go back there.
    let back = there.answer(SYN | ACK);
    into_host(
        &host,
        1,
        &from_pod(&host, 1, 1, &back),
        "egress to-stack",
        &back,
        64,
    );
}

#[rstest]
fn what_a_pod_on_netkit_sent_was_judged_before_to_pod(
    #[values(V4, V6)] family: Family,
    #[values(0, 1)] netkit_pods: u32,
) {
    let mut host = node(1, V4);
    host.config.netkit_pods = netkit_pods;
    // Judged again, this would begin a flow that the stack has answers to.
    let there = Tuple::new(plan::outside(family), plan::pod(1, 1, family), TCP);
    let bytes = frame::build([2; 6], plan::pod_mac(1, 1), &there, 63, b"hi");
    let interface = plan::pod_interface(1);
    let out = run_marked(&host, Hook::ToPod, interface, &bytes, mark::FORWARDED);
    out.went(Action::Pass, 0, "");
    assert_eq!(out.bytes, bytes);
    assert_eq!(host.pending.is_empty(), netkit_pods == 1);
    // Nobody else's mark will do.
    run_marked(&host, Hook::ToPod, interface, &bytes, !mark::MASK);
    assert!(!host.pending.is_empty());
}

#[rstest]
fn the_underlay_to_the_node_and_to_pods(#[values(V4, V6)] family: Family) {
    let host = node(1, V4);
    let to_node = Tuple::new(plan::outside(family), plan::node(1, family), TCP);
    from_router(&host, 1, &to_node).went(Action::Pass, 0, "");
    let transit = Tuple::new(plan::outside(family), plan::node(7, family), TCP);
    from_router(&host, 1, &transit).went(Action::Pass, 0, "");
    assert!(host.pending.is_empty());

    let to_pod = Tuple::new(plan::outside(family), plan::pod(1, 1, family), TCP);
    into_pod(
        &from_router(&host, 1, &to_pod),
        1,
        1,
        "ingress to-endpoint",
        &to_pod,
        59,
    );
    let back = to_pod.answer(SYN | ACK);
    let out = from_pod(&host, 1, 1, &back);
    assert_eq!(out.counted, "egress to-network");
    is(&frame::parse(&out.bytes), &back, 63);

    // Also when it is judged again: an answer keeps the source that was asked.
    host.peers.update(&0, |world| world.generation += 1);
    is(
        &frame::parse(&from_pod(&host, 1, 1, &back).bytes),
        &back,
        63,
    );

    let vacant = Tuple::new(plan::outside(family), plan::pod(1, 150, family), TCP);
    from_router(&host, 1, &vacant).dropped(Ingress, DropReason::Vacant);
    for source in [
        plan::pod(1, 2, family),
        plan::node(1, family),
        plan::pod(2, 1, family),
    ] {
        let forged = Tuple::new(source, plan::pod(1, 1, family), TCP);
        from_router(&host, 1, &forged).dropped(Ingress, DropReason::InvalidSourceIp);
    }
}

#[rstest]
fn without_a_tunnel_pods_of_other_nodes_are_routed(#[values(V4, V6)] family: Family) {
    let (mut a, mut b) = (node(1, V4), node(2, V4));
    for host in [&mut a, &mut b] {
        host.config.tunnel = mode::NATIVE;
    }
    let there = Tuple::new(plan::pod(1, 1, family), plan::pod(2, 1, family), TCP);
    let out = from_pod(&a, 1, 1, &there);
    assert_eq!(out.counted, "egress to-network");
    is(&frame::parse(&out.bytes), &there, 63);
    into_pod(
        &from_uplink(&b, &out.bytes),
        2,
        1,
        "ingress to-endpoint",
        &there,
        62,
    );
    let back = there.answer(ACK);
    let out = from_pod(&b, 2, 1, &back);
    is(&frame::parse(&out.bytes), &back, 63);
    into_pod(
        &from_uplink(&a, &out.bytes),
        1,
        1,
        "ingress to-endpoint",
        &back,
        62,
    );
    // A tunnel packet is a packet for the node like any other.
    let wrapped = kind_wrap(V4).around(&tunnel::inner(1, &between(V4)));
    from_uplink(&a, &wrapped).went(Action::Pass, 0, "");
}

#[rstest]
fn some_destinations_see_the_pods_own_address(#[values(V4, V6)] family: Family) {
    let host = node(1, V4);
    let tuple = Tuple::new(plan::pod(1, 1, family), plan::outside(family), TCP);
    let entry = IpEntry {
        kind: kind::WORLD,
        flags: flags::NO_MASQUERADE,
        ..IpEntry::default()
    };
    host.ipcache
        .borrow_mut()
        .set(Prefix::host(tuple.destination), entry);
    let out = from_pod(&host, 1, 1, &tuple);
    assert_eq!(out.counted, "egress to-network");
    is(&frame::parse(&out.bytes), &tuple, 63);
    // To a peer it is masqueraded, as any host of the underlay.
    let to_peer = Tuple::new(plan::pod(1, 1, family), plan::node(2, family), TCP);
    let out = from_pod(&host, 1, 1, &to_peer);
    is(
        &frame::parse(&out.bytes),
        &Tuple {
            source: plan::node(1, family),
            ..to_peer
        },
        63,
    );
    // Without masquerade nobody is.
    host.uplinks.set(plan::UPLINK, Uplink::default()).unwrap();
    let other = Tuple {
        l4: L4::Tcp(40_001, 80, SYN),
        ..tuple
    };
    is(
        &frame::parse(&from_pod(&host, 1, 1, &other).bytes),
        &other,
        63,
    );
}

#[rstest]
fn without_masquerade_a_peer_is_spoken_to_through_the_tunnel(#[values(V4, V6)] family: Family) {
    let (a, b) = (node(1, V4), node(2, V4));
    a.uplinks.set(plan::UPLINK, Uplink::default()).unwrap();
    let there = Tuple::new(plan::pod(1, 1, family), plan::node(2, family), TCP);
    let back = there.answer(ACK);
    for _ in 0..3 {
        let out = from_pod(&a, 1, 1, &there);
        into_tunnel(&a, 1, &out, V4, plan::pod_identity(1, 1));
        let out = from_uplink(&b, &out.bytes);
        into_host(&b, 2, &out, "ingress to-host", &there, 63);
        let out = from_host(&b, &back);
        into_tunnel(&b, 2, &out, V4, identity::REMOTE_NODE);
        into_pod(
            &from_uplink(&a, &out.bytes),
            1,
            1,
            "ingress to-endpoint",
            &back,
            63,
        );
    }
}

#[rstest]
fn the_way_is_followed_where_it_leads(#[values(V4, V6)] family: Family) {
    let host = node(1, V4);
    let tuple = |port| {
        Tuple::new(
            plan::pod(1, 1, family),
            plan::outside(family),
            L4::Udp(port, 53),
        )
    };
    let send = |port, gateway: u8| {
        let out = from_pod(&host, 1, 1, &tuple(port));
        let seen = frame::parse(&out.bytes);
        let macs = (plan::node_mac(1), plan::node_mac(gateway));
        left(
            &host,
            &out,
            macs,
            plan::node(gateway, family),
            (seen.from, seen.to),
        );
        out.verdict.action
    };
    assert_eq!(send(1, plan::ROUTER), Action::OutToNeighbour);
    assert_eq!(send(1, plan::ROUTER), Action::Out);
    assert_eq!(send(2, plan::ROUTER), Action::Out, "the hop is shared");
    host.advance(1);
    assert_eq!(
        send(2, plan::ROUTER),
        Action::OutToNeighbour,
        "asked once a second"
    );
    assert_eq!(send(1, plan::ROUTER), Action::Out);

    // Another gateway: seen within a second, by one flow after the other.
    let everything = match family {
        V4 => Prefix::new("0.0.0.0".parse().unwrap(), 0),
        V6 => Prefix::new("::".parse().unwrap(), 0),
    };
    let other = plan::node(9, family);
    let way = Way::Out {
        interface: plan::UPLINK,
        gateway: Some(other),
    };
    host.routing.borrow_mut().route(everything, way);
    host.routing
        .borrow_mut()
        .neighbour(other, Some(plan::node_mac(9)));
    host.advance(1);
    for port in [1, 2] {
        assert_eq!(send(port, 9), Action::OutToNeighbour);
    }
    for port in [1, 2] {
        // It finds the change, leaves the old hop, and is the one of its second to ask.
        for _ in 0..2 {
            send(port, 9);
        }
        assert_eq!(send(port, 9), Action::Out);
    }

    // A neighbour that nobody answers for is the kernel's to resolve, every time.
    host.routing.borrow_mut().neighbour(other, None);
    host.advance(1);
    for port in [1, 2, 1, 2] {
        assert_eq!(send(port, 9), Action::OutToNeighbour);
    }
}
