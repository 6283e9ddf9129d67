//! Sending frames, and where they must have gone.

use std::net::IpAddr;

use datapath_kern::abi::mark;
use datapath_kern::host::{Hook, Host, plan};
use datapath_kern::packet::Family;
use datapath_kern::verdict::Action;

use super::frame::{self, L4, Parsed, SYN, Tuple};
use super::tunnel::{self, Wrap};
use super::{Out, run, run_marked};

pub(crate) const TCP: L4 = L4::Tcp(40_000, 80, SYN);

pub(crate) fn from_uplink(host: &Host, bytes: &[u8]) -> Out {
    run(host, Hook::FromUplink, plan::UPLINK, bytes)
}

/// A frame of the node's stack for a pod, through `from_host`.
pub(crate) fn from_host(host: &Host, tuple: &Tuple) -> Out {
    let bytes = frame::build([2; 6], [4; 6], tuple, 64, b"hi");
    run(host, Hook::FromHost, plan::GATEWAY_FAR, &bytes)
}

#[track_caller]
pub(crate) fn is(parsed: &Parsed, tuple: &Tuple, ttl: u8) {
    assert_eq!(
        (parsed.tuple, parsed.ttl, parsed.payload.as_slice()),
        (*tuple, ttl, &b"hi"[..])
    );
}

/// Asserts that a frame went into a pod, from its gateway.
#[track_caller]
pub(crate) fn into_pod(out: &Out, node: u8, pod: u8, counted: &str, tuple: &Tuple, ttl: u8) {
    out.went(Action::IntoPod, plan::pod_interface(pod), counted);
    let parsed = frame::parse(&out.bytes);
    is(&parsed, tuple, ttl);
    assert_eq!(
        (parsed.from, parsed.to),
        (plan::gateway_mac(node), plan::pod_mac(node, pod))
    );
}

/// Asserts that a frame was handed to the node, and lets it in there.
#[track_caller]
pub(crate) fn into_host(host: &Host, node: u8, out: &Out, counted: &str, tuple: &Tuple, ttl: u8) {
    out.went(Action::ToHost, plan::GATEWAY, counted);
    assert!(mark::is(out.mark, mark::TO_HOST));
    let parsed = frame::parse(&out.bytes);
    is(&parsed, tuple, ttl);
    assert_eq!(parsed.to, plan::gateway_mac(node));
    let there = run_marked(
        host,
        Hook::ToHost,
        plan::GATEWAY,
        &out.bytes,
        out.mark | 0x8000_0001,
    );
    there.went(Action::Pass, 0, "");
    assert_eq!(
        (there.mark, &there.bytes),
        (0x8000_0001, &out.bytes),
        "others' bits survive"
    );
}

/// Asserts that a frame went into the tunnel to the other node, from a sender with that identity,
/// and past `to_uplink`. The frame as it is on the underlay.
#[track_caller]
pub(crate) fn into_tunnel(
    host: &Host,
    node: u8,
    out: &Out,
    underlay: Family,
    vni: u32,
) -> tunnel::Tunnelled {
    assert_eq!(
        (out.reason, out.counted.as_str()),
        (None, "egress to-overlay")
    );
    assert_eq!(out.verdict.interface, plan::UPLINK);
    let packet = tunnel::parse(&out.bytes);
    let (from, to) = (plan::node(node, underlay), plan::node(3 - node, underlay));
    assert_eq!(
        (packet.source, packet.destination, packet.vni),
        (from, to, vni)
    );
    assert!(packet.source_port >= 0xc000);
    let inner = (packet.inner.from, packet.inner.to);
    assert_eq!(
        inner,
        (plan::gateway_mac(node), plan::gateway_mac(3 - node))
    );
    left(
        host,
        out,
        (plan::node_mac(node), plan::node_mac(3 - node)),
        to,
        (packet.from, packet.to),
    );
    packet
}

/// Asserts that a frame leaves to a neighbour: with Ethernet addresses or by the kernel's table.
#[track_caller]
pub(crate) fn left(
    host: &Host,
    out: &Out,
    macs: ([u8; 6], [u8; 6]),
    gateway: IpAddr,
    found: ([u8; 6], [u8; 6]),
) {
    match out.verdict.action {
        Action::OutToNeighbour => assert_eq!(out.gateway, gateway.into()),
        Action::Out => assert_eq!(found, macs),
        other => panic!("{other:?}"),
    }
    assert!(mark::is(out.mark, mark::FORWARDED));
    let past = run_marked(host, Hook::ToUplink, plan::UPLINK, &out.bytes, out.mark);
    past.went(Action::Pass, 0, "");
    assert_eq!(past.bytes, out.bytes);
}

/// A packet of pod 1 of node 2 for pod 1 of node 1.
pub(crate) fn between(family: Family) -> Tuple {
    Tuple::new(plan::pod(2, 1, family), plan::pod(1, 1, family), TCP)
}

pub(crate) fn kind_wrap(underlay: Family) -> Wrap {
    Wrap::new(2, 1, underlay, plan::pod_identity(2, 1))
}
