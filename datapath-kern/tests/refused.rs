//! What goes no further, and why.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod support;

use std::net::IpAddr;

use datapath_kern::abi::flow::verdict;
use datapath_kern::abi::mark;
use datapath_kern::abi::metric::Direction::{Egress, Ingress};
use datapath_kern::env::Table;
use datapath_kern::host::{Buffer, Hook, Prefix, Way, plan};
use datapath_kern::packet::Family::{self, V4, V6};
use datapath_kern::verdict::{Action, DropReason, Verdict};
use rstest::rstest;
use support::frame::{self, ACK, L4, SYN, Tuple};
use support::sent::{TCP, from_host, from_uplink, into_pod};
use support::{fragments, from_pod, from_router, key, node, run, run_marked, tunnel};

#[rstest]
fn nothing_enters_the_node_that_was_not_judged(#[values(0, mark::FORWARDED, 0x600)] mark: u32) {
    let host = node(1, V4);
    let tuple = Tuple::new(plan::pod(1, 1, V4), plan::gateway(1, V4), TCP);
    run_marked(
        &host,
        Hook::ToHost,
        plan::GATEWAY,
        &frame::of_pod(1, 1, &tuple),
        mark,
    )
    .dropped(Ingress, DropReason::NotForwarded);
}

#[rstest]
fn a_pod_sends_from_its_own_addresses_only(#[values(V4, V6)] family: Family) {
    let host = node(1, V4);
    let own = plan::pod(1, 1, family);
    let to = plan::pod(1, 2, family);
    // By another's Ethernet address, by another's IP address, by the node's, from anywhere.
    let bytes = frame::of_pod(1, 2, &Tuple::new(own, to, TCP));
    run(&host, Hook::FromPod, plan::pod_interface(1), &bytes)
        .dropped(Egress, DropReason::InvalidSourceMac);
    let others = [
        to,
        plan::gateway(1, family),
        plan::node(1, family),
        plan::outside(family),
    ];
    for source in others {
        let tuple = Tuple::new(source, plan::pod(1, 3, family), TCP);
        from_pod(&host, 1, 1, &tuple).dropped(Egress, DropReason::InvalidSourceIp);
    }
    run(
        &host,
        Hook::FromPod,
        77,
        &frame::of_pod(1, 1, &Tuple::new(own, to, TCP)),
    )
    .dropped(Egress, DropReason::UnknownEndpoint);
    assert!(host.pending.is_empty());
}

/// Also on a flow that another pod has established.
#[rstest]
fn an_established_flow_is_its_pods_alone(#[values(V4, V6)] family: Family) {
    let host = node(1, V4);
    let there = Tuple::new(plan::pod(1, 1, family), plan::pod(1, 2, family), TCP);
    for flags in [SYN, ACK] {
        from_pod(&host, 1, 1, &there.with_flags(flags));
        from_pod(&host, 1, 2, &there.answer(SYN | ACK));
    }
    assert_eq!(host.flows.len(), 2);
    let ack = there.with_flags(ACK);
    from_pod(&host, 1, 3, &ack).dropped(Egress, DropReason::InvalidSourceIp);
    let bytes = frame::of_pod(1, 1, &ack);
    run(&host, Hook::FromPod, plan::pod_interface(3), &bytes)
        .dropped(Egress, DropReason::InvalidSourceMac);
    let forged = frame::of_pod(1, 2, &ack);
    run(&host, Hook::FromPod, plan::pod_interface(1), &forged)
        .dropped(Egress, DropReason::InvalidSourceMac);
    // Nor does it come in from anywhere else.
    from_router(&host, 1, &ack).dropped(Ingress, DropReason::InvalidSourceIp);
    from_host(&host, &ack).dropped(Egress, DropReason::UnexpectedArrival);
    into_pod(
        &from_pod(&host, 1, 1, &ack),
        1,
        2,
        "egress to-endpoint",
        &ack,
        63,
    );
}

/// Its receiver might: it would have the ports that nobody looked for.
#[rstest]
fn more_extension_headers_than_are_walked_are_none(#[values(1, 2)] units: u8) {
    let host = node(1, V4);
    let tuple = Tuple::new(plan::pod(1, 1, V6), plan::pod(1, 2, V6), TCP);
    let send = |count: usize| {
        let plain = frame::of_pod(1, 1, &tuple);
        let bytes = (0..count).fold(plain, |frame, _| tunnel::with_extension(frame, units));
        run(&host, Hook::FromPod, plan::pod_interface(1), &bytes)
    };
    for count in 7..10 {
        send(count).dropped(Egress, DropReason::InvalidPacket);
    }
    assert!(host.pending.is_empty());
    for count in 0..7 {
        assert_eq!(send(count).reason, None, "{count}");
        assert_eq!(host.pending.len(), 2);
    }
}

/// The node may lead it to a pod, which takes it for what its source says: whole, in pieces, or as
/// what nobody understands.
#[rstest]
fn nothing_comes_to_the_node_in_the_name_of_pods(#[values(V4, V6)] family: Family) {
    let host = node(1, V4);
    let sources = [
        (plan::pod(1, 1, family), true),
        (plan::pod(2, 1, family), true),
        (plan::gateway(1, family), true),
        (plan::node(1, family), true),
        (plan::node(2, family), false),
        (plan::outside(family), false),
    ];
    for (source, forged) in sources {
        let tuple = Tuple::new(source, plan::node(1, family), L4::Udp(40_000, 5300));
        let (router, own) = (plan::node_mac(plan::ROUTER), plan::node_mac(1));
        let whole = frame::build(router, own, &tuple, 60, &[7; 64]);
        let short = whole[..whole.len() - 1].to_vec();
        for bytes in [
            vec![whole.clone()],
            fragments::cut(&whole, 8, 1),
            vec![short],
        ]
        .concat()
        {
            let out = run(&host, Hook::FromUplink, plan::UPLINK, &bytes);
            if forged {
                out.dropped(Ingress, DropReason::InvalidSourceIp);
            } else {
                out.went(Action::Pass, 0, "");
            }
        }
    }
}

#[rstest]
fn no_tunnel_packets_from_pods(#[values(V4, V6)] family: Family) {
    let host = node(1, V4);
    let l4 = L4::Udp(50_000, 6081);
    let own = plan::pod(1, 1, family);
    for to in [
        plan::node(2, family),
        plan::node(1, family),
        plan::gateway(1, family),
        plan::gateway(2, family),
    ] {
        from_pod(&host, 1, 1, &Tuple::new(own, to, l4))
            .dropped(Egress, DropReason::EncapsulationProhibited);
    }
    // To a pod it is a packet like any other.
    let to_pod = Tuple::new(own, plan::pod(1, 2, family), l4);
    into_pod(
        &from_pod(&host, 1, 1, &to_pod),
        1,
        2,
        "egress to-endpoint",
        &to_pod,
        63,
    );
}

#[rstest]
fn one_receiver_and_a_real_one(#[values(V4, V6)] family: Family) {
    let host = node(1, V4);
    let (many, never): (&[&str], &[&str]) = match family {
        V4 => (
            &["224.0.0.251", "255.255.255.255"],
            &["127.0.0.1", "0.0.0.0"],
        ),
        V6 => (&["ff02::fb", "ff0e::1"], &["::1", "fe80::1", "::"]),
    };
    let own = plan::pod(1, 1, family);
    for (addresses, reason) in [(many, DropReason::Multicast), (never, DropReason::Martian)] {
        for address in addresses {
            let tuple = Tuple::new(own, address.parse().unwrap(), L4::Udp(5353, 5353));
            from_pod(&host, 1, 1, &tuple).dropped(Egress, reason);
        }
    }
    let tuple = Tuple::new(
        plan::gateway(1, family),
        many[0].parse().unwrap(),
        L4::Udp(1, 2),
    );
    from_host(&host, &tuple).dropped(Egress, DropReason::Multicast);
}

#[test]
fn a_mapped_address_on_the_wire_is_no_ipv4_address() {
    let host = node(1, V4);
    let mapped = |pod| match plan::pod(1, pod, V4) {
        IpAddr::V4(v4) => IpAddr::V6(v4.to_ipv6_mapped()),
        v6 @ IpAddr::V6(_) => v6,
    };
    let tuple = Tuple::new(mapped(1), mapped(2), TCP);
    from_pod(&host, 1, 1, &tuple).dropped(Egress, DropReason::Martian);
}

#[rstest]
fn the_last_hop(#[values(V4, V6)] family: Family, #[values(0, 1)] ttl: u8) {
    let host = node(1, V4);
    let own = plan::pod(1, 1, family);
    let send = |to| {
        let macs = (plan::pod_mac(1, 1), plan::gateway_mac(1));
        let bytes = frame::build(macs.0, macs.1, &Tuple::new(own, to, TCP), ttl, b"hi");
        run(&host, Hook::FromPod, plan::pod_interface(1), &bytes)
    };
    for to in [
        plan::pod(1, 2, family),
        plan::pod(2, 1, family),
        plan::outside(family),
    ] {
        let out = send(to);
        assert_eq!(out.reason, Some(DropReason::TtlExceeded));
        // What is in the answer: `icmp_errors.rs`.
        assert_eq!(out.counted, "egress answered");
    }
    // The node is no hop.
    send(plan::gateway(1, family)).went(Action::ToHost, plan::GATEWAY, "egress to-host");
}

#[test]
fn frames_of_other_kinds() {
    let host = node(1, V4);
    let tuple = Tuple::new(plan::pod(1, 1, V4), plan::pod(1, 2, V4), TCP);
    let mut tagged = frame::of_pod(1, 1, &tuple);
    tagged.splice(12..12, [0x81, 0, 0, 5]);
    let mut spanning_tree = frame::of_pod(1, 1, &tuple);
    spanning_tree[12..14].copy_from_slice(&[0, 38]);
    for bytes in [tagged, spanning_tree] {
        run(&host, Hook::FromPod, plan::pod_interface(1), &bytes)
            .dropped(Egress, DropReason::UnsupportedL2);
        run(&host, Hook::FromHost, plan::GATEWAY_FAR, &bytes)
            .dropped(Egress, DropReason::UnsupportedL2);
        from_uplink(&host, &bytes).went(Action::Pass, 0, "");
        run(&host, Hook::ToUplink, plan::UPLINK, &bytes).went(Action::Pass, 0, "");
    }
    run(&host, Hook::FromPod, plan::pod_interface(1), &[0; 13])
        .dropped(Egress, DropReason::InvalidPacket);
}

#[rstest]
fn where_there_is_no_way(#[values(V4, V6)] family: Family) {
    let host = node(1, V4);
    let own = plan::pod(1, 1, family);
    let vacant = Tuple::new(own, plan::pod(1, 150, family), TCP);
    from_pod(&host, 1, 1, &vacant).dropped(Egress, DropReason::Vacant);
    let outside = plan::outside(family);
    host.routing
        .borrow_mut()
        .route(Prefix::host(outside), Way::Nowhere);
    let tuple = Tuple::new(own, outside, TCP);
    from_pod(&host, 1, 1, &tuple).dropped(Egress, DropReason::NoRoute);
    from_host(&host, &Tuple::new(plan::gateway(1, family), outside, TCP))
        .dropped(Egress, DropReason::NoRoute);
    // By an interface that is none of ours the stack takes it.
    let way = Way::Out {
        interface: 55,
        gateway: None,
    };
    host.routing.borrow_mut().route(Prefix::host(outside), way);
    from_pod(&host, 1, 1, &tuple).went(Action::ToHost, plan::GATEWAY, "egress to-host");
}

#[rstest]
fn a_denied_flow(#[values(V4, V6)] family: Family) {
    let host = node(1, V4);
    let tuple = Tuple::new(plan::pod(1, 1, family), plan::pod(1, 2, family), TCP);
    from_pod(&host, 1, 1, &tuple);
    host.pending
        .update(&key(&tuple), |flow| flow.verdict = verdict::DENY)
        .unwrap();
    from_pod(&host, 1, 1, &tuple).dropped(Egress, DropReason::PolicyDenied);
}

/// The kernel takes the tag off and keeps it beside the frame.
#[test]
fn a_tag_that_the_bytes_do_not_show() {
    let host = node(1, V4);
    let tuple = Tuple::new(plan::pod(1, 1, V4), plan::pod(1, 2, V4), TCP);
    let mut packet = Buffer {
        vlan: Some(7),
        ..Buffer::new(plan::pod_interface(1), frame::of_pod(1, 1, &tuple))
    };
    let reason = host.run(Hook::FromPod, &mut packet).reason;
    assert_eq!(reason, Some(DropReason::UnsupportedL2));
    packet.interface = plan::UPLINK;
    assert_eq!(
        host.run(Hook::FromUplink, &mut packet).verdict,
        Verdict::PASS
    );
}

/// The stack takes a tag off that says a priority alone, and goes on with what is under it.
#[rstest]
fn what_is_under_a_priority_is_looked_at(#[values(V4, V6)] family: Family) {
    let host = node(1, V4);
    let tuple = Tuple::new(plan::pod(2, 1, family), plan::pod(1, 1, family), TCP);
    let run = |bytes| {
        let mut packet = Buffer {
            vlan: Some(0),
            ..Buffer::new(plan::UPLINK, bytes)
        };
        host.run(Hook::FromUplink, &mut packet).reason
    };
    let bare = frame::of_pod(2, 1, &tuple);
    assert_eq!(run(bare.clone()), Some(DropReason::InvalidSourceIp));
    let mut nested = bare;
    nested.splice(12..12, [0x81, 0, 0, 0]);
    assert_eq!(run(nested), Some(DropReason::UnsupportedL2));
}
