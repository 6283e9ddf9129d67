//! What a packet of an established flow costs: the lookups of every path, written down. One in the
//! table of flows, whatever the path; beside it arrays only. The clock is asked once a tick, by a
//! packet before.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod support;

use datapath_kern::abi::mark;
use datapath_kern::abi::metric::Direction::{Egress, Ingress};
use datapath_kern::abi::policy::{PeerKey, word};
use datapath_kern::host::{Access, Hook, Host, plan};
use datapath_kern::packet::Family::V4;
use support::frame::{self, ACK, L4, SYN, Tuple};
use support::policy::{self, allow, switch};
use support::{from_pod, from_router, node, run, run_marked};

const TCP: L4 = L4::Tcp(40_000, 80, SYN);

/// Has `there` and `back` establish a flow and its next hops, and returns what one more packet of
/// `measured` asks for.
fn established(
    host: &Host,
    there: &dyn Fn(u8),
    back: &dyn Fn(u8),
    measured: &dyn Fn(u8),
) -> String {
    there(SYN);
    back(SYN | ACK);
    for _ in 0..3 {
        there(ACK);
        back(ACK);
    }
    assert_eq!(host.flows.len(), 2, "established");
    drop(host.take_accesses());
    measured(ACK);
    let accesses = host.take_accesses();
    let to_flows = accesses
        .iter()
        .filter(|access| access.is_to("flows"))
        .count();
    assert_eq!(to_flows, 1, "{accesses:?}");
    for access in &accesses {
        let slow = [
            "pending",
            "claims",
            "endpoint_slots",
            "peer_indices",
            "uplinks",
            "policy_peers",
        ];
        assert!(
            !slow.iter().any(|table| access.is_to(table)),
            "{accesses:?}"
        );
        assert!(
            !matches!(
                access,
                Access::Ipcache | Access::Fib | Access::Random | Access::PolicyPort
            ),
            "{accesses:?}"
        );
    }
    list(&accesses)
}

fn list(accesses: &[Access]) -> String {
    let lines: Vec<_> = accesses.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

fn to(destination: std::net::IpAddr) -> Tuple {
    Tuple::new(plan::pod(1, 1, V4), destination, TCP)
}

#[test]
fn pod_to_pod_on_one_node() {
    let host = node(1, V4);
    let tuple = to(plan::pod(1, 2, V4));
    let there = |flags| drop(from_pod(&host, 1, 1, &tuple.with_flags(flags)));
    let back = |flags| drop(from_pod(&host, 1, 2, &tuple.answer(flags)));
    insta::assert_snapshot!(established(&host, &there, &back, &there), @"
    flows update
    endpoints get
    endpoints get
    next_hops update
    count
    ");
    insta::assert_snapshot!(established(&host, &there, &back, &back), @"
    flows update
    endpoints get
    endpoints get
    next_hops update
    count
    ");
}

#[test]
fn pod_to_pod_of_another_node() {
    let (a, b) = (node(1, V4), node(2, V4));
    let tuple = to(plan::pod(2, 1, V4));
    let there = |flags| {
        let out = from_pod(&a, 1, 1, &tuple.with_flags(flags));
        run(&b, Hook::FromUplink, plan::UPLINK, &out.bytes);
    };
    let back = |flags| {
        let out = from_pod(&b, 2, 1, &tuple.answer(flags));
        run(&a, Hook::FromUplink, plan::UPLINK, &out.bytes);
    };
    insta::assert_snapshot!(established(&a, &there, &back, &there), @"
    flows update
    endpoints get
    peers get
    next_hops update
    peers get
    count
    ");
    insta::assert_snapshot!(established(&b, &there, &back, &there), @"
    flows update
    peers get
    endpoints get
    next_hops update
    count
    ");
}

#[test]
fn pod_to_the_outside_and_back() {
    let host = node(1, V4);
    let tuple = to(plan::outside(V4));
    let outside = Tuple {
        source: plan::node(1, V4),
        ..tuple
    };
    let there = |flags| drop(from_pod(&host, 1, 1, &tuple.with_flags(flags)));
    let back = |flags| drop(from_router(&host, 1, &outside.answer(flags)));
    insta::assert_snapshot!(established(&host, &there, &back, &there), @"
    flows update
    endpoints get
    peers get
    next_hops update
    count
    ");
    insta::assert_snapshot!(established(&host, &there, &back, &back), @"
    flows update
    peers get
    endpoints get
    next_hops update
    count
    ");
}

#[test]
fn pod_to_its_node_and_back() {
    let host = node(1, V4);
    let tuple = to(plan::gateway(1, V4));
    let there = |flags| drop(from_pod(&host, 1, 1, &tuple.with_flags(flags)));
    let back = |flags| {
        let bytes = frame::build([2; 6], [4; 6], &tuple.answer(flags), 64, b"hi");
        run(&host, Hook::FromHost, plan::GATEWAY_FAR, &bytes);
    };
    insta::assert_snapshot!(established(&host, &there, &back, &there), @"
    flows update
    endpoints get
    endpoints get
    count
    ");
    insta::assert_snapshot!(established(&host, &there, &back, &back), @"
    flows update
    endpoints get
    endpoints get
    next_hops update
    count
    ");
}

#[test]
fn by_the_stack_into_a_pod() {
    let host = node(1, V4);
    let tuple = Tuple::new(plan::outside(V4), plan::pod(1, 1, V4), TCP);
    let there = |flags| {
        let bytes = frame::build([2; 6], [4; 6], &tuple.with_flags(flags), 63, b"hi");
        run(&host, Hook::ToPod, plan::pod_interface(1), &bytes);
    };
    let back = |flags| drop(from_pod(&host, 1, 1, &tuple.answer(flags)));
    insta::assert_snapshot!(established(&host, &there, &back, &there), @"
    flows update
    peers get
    endpoints get
    ");
}

/// The node's own packets are the exception: whose they are is asked first.
#[test]
fn the_nodes_own_packets() {
    let host = node(1, V4);
    let tuple = Tuple::new(plan::node(1, V4), plan::outside(V4), TCP);
    let there = |flags| {
        let bytes = frame::build([2; 6], [4; 6], &tuple.with_flags(flags), 64, b"hi");
        run(&host, Hook::ToUplink, plan::UPLINK, &bytes);
    };
    let back = |flags| drop(from_router(&host, 1, &tuple.answer(flags)));
    insta::assert_snapshot!(established(&host, &there, &back, &back), @"
    flows update
    peers get
    endpoints get
    count
    ");
    drop(host.take_accesses());
    there(ACK);
    insta::assert_snapshot!(list(&host.take_accesses()), @"
    ipcache
    flows update
    endpoints get
    peers get
    ");
}

/// What was judged already costs nothing more.
#[test]
fn packets_that_were_forwarded_and_handed_over() {
    let host = node(1, V4);
    let bytes = frame::of_pod(1, 1, &to(plan::outside(V4)));
    run_marked(&host, Hook::ToUplink, plan::UPLINK, &bytes, mark::FORWARDED);
    run_marked(&host, Hook::ToHost, plan::GATEWAY, &bytes, mark::TO_HOST);
    assert_eq!(host.take_accesses(), []);
}

/// What policy says is asked for the first packet alone: for each direction two looks for the peer
/// at most, and one for the port.
#[test]
fn pod_to_pod_with_rules_for_both() {
    let host = node(1, V4);
    let tuple = to(plan::pod(1, 2, V4));
    let everyone = PeerKey::ANY;
    allow(&host, 5, Egress, everyone, (policy::TCP, 80), 51);
    allow(
        &host,
        6,
        Ingress,
        plan::pod_identity(1, 1),
        (policy::TCP, 80),
        61,
    );
    switch(&host, 1, word::EGRESS | 5);
    switch(&host, 2, word::INGRESS | 6);
    let there = |flags| drop(from_pod(&host, 1, 1, &tuple.with_flags(flags)));
    let back = |flags| drop(from_pod(&host, 1, 2, &tuple.answer(flags)));
    there(SYN);
    let first = host.take_accesses();
    let policy: Vec<_> = first
        .iter()
        .map(ToString::to_string)
        .filter(|access| access.starts_with("policy"))
        .collect();
    let one = |looks: usize| {
        let peers = std::iter::repeat_n("policy_peers get", looks);
        peers.chain(["policy_port"]).collect::<Vec<_>>()
    };
    assert_eq!(policy, [one(2), one(1)].concat());
    for direction in [&there as &dyn Fn(u8), &back] {
        insta::allow_duplicates! {
            insta::assert_snapshot!(established(&host, &there, &back, direction), @"
    flows update
    endpoints get
    endpoints get
    next_hops update
    count
    ");
        }
    }
}

/// For the record: what beginning a masqueraded flow asks for.
#[test]
fn the_first_packet_to_the_outside() {
    let host = node(1, V4);
    from_pod(&host, 1, 1, &to(plan::outside(V4)));
    insta::assert_snapshot!(list(&host.take_accesses()), @"
    now
    flows update
    pending update
    endpoint_slots get
    endpoints get
    refusals update
    ipcache
    peers get
    fib
    uplinks get
    claims get
    claims insert
    next_hops update
    next_hops get
    endpoints get
    random
    quotas get
    next_hops get
    excluded_ports get
    pending update
    pending insert
    flows update
    socket
    pending insert
    flows update
    pending update
    tally update
    next_hops update
    fib
    uplinks get
    next_hops update
    count
    ");
}

/// Another pod's claim to the port is the same again, and a probe of the search.
#[test]
fn the_first_packet_of_a_flow_whose_port_is_taken() {
    let host = node(1, V4);
    from_pod(&host, 1, 1, &to(plan::outside(V4)));
    drop(host.take_accesses());
    let second = Tuple {
        source: plan::pod(1, 2, V4),
        ..to(plan::outside(V4))
    };
    from_pod(&host, 1, 2, &second);
    let accesses = host.take_accesses();
    let inserts = accesses
        .iter()
        .filter(|access| access.to_string() == "pending insert")
        .count();
    assert_eq!(
        inserts, 2,
        "the reply at the first probe, and the flow: {accesses:?}"
    );
}
