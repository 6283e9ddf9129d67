//! The path MTU to a peer: from whom it is learned, what it changes, and for how long.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod support;

use datapath_kern::abi::nexthop::{NextHop, PEERS_BASE};
use datapath_kern::env::Table;
use datapath_kern::host::{Hook, Host, plan};
use datapath_kern::packet::Family::{self, V4, V6};
use datapath_kern::verdict::{Action, DropReason};
use rstest::rstest;
use support::frame::{self, L4, Tuple};
use support::icmp::{self, IcmpError, quote, too_big};
use support::{node, run};

/// The peer's slot among the next hops.
const PEER: u32 = PEERS_BASE + 2;

/// A tunnel packet of this node to its peer, as far as a router quotes it.
fn tunnel_packet(underlay: Family, source_port: u16, ip_bytes: usize) -> (Tuple, Vec<u8>) {
    let tuple = Tuple::new(
        plan::node(1, underlay),
        plan::node(2, underlay),
        L4::Udp(source_port, 6081),
    );
    let headers = if underlay == V4 { 28 } else { 48 };
    let packet = quote(&tuple, 63, &vec![0; ip_bytes - headers], usize::MAX);
    (tuple, packet)
}

/// What the router says of a tunnel packet of 1500 bytes.
fn claim(underlay: Family, mtu_bytes: u32) -> IcmpError {
    let (tuple, packet) = tunnel_packet(underlay, 0xc123, 1500);
    let router = plan::node(plan::ROUTER, underlay);
    let error = IcmpError::about(&tuple, router, too_big(underlay), packet);
    IcmpError {
        value: mtu_bytes,
        ..error
    }
}

/// Has the node hear it. It is the host's in any case, and not changed.
fn hear_on(host: &Host, interface: u32, error: &IcmpError) {
    let bytes = error.frame(plan::node_mac(plan::ROUTER), plan::node_mac(1), 60);
    let out = run(host, Hook::FromUplink, interface, &bytes);
    out.went(Action::Pass, 0, "");
    assert_eq!(out.bytes, bytes);
}

fn hear(host: &Host, error: &IcmpError) {
    hear_on(host, plan::UPLINK, error);
}

fn hop(host: &Host) -> NextHop {
    host.next_hops.get(&PEER).unwrap()
}

/// What a pod is told that sends something large to a peer's pod; nothing if it went through.
fn told(host: &Host, family: Family, ip_bytes: usize) -> Option<u32> {
    let tuple = Tuple::new(
        plan::pod(1, 1, family),
        plan::pod(2, 1, family),
        L4::Udp(5, 6),
    );
    let headers = if family == V4 { 28 } else { 48 };
    let (from, to) = (plan::pod_mac(1, 1), plan::gateway_mac(1));
    let bytes = frame::build(from, to, &tuple, 64, &vec![0; ip_bytes - headers]);
    let out = run(host, Hook::FromPod, plan::pod_interface(1), &bytes);
    assert_eq!(out.reason?, DropReason::FragmentationNeeded);
    let error = icmp::parse(&out.bytes).error;
    assert_eq!((error.kind, error.code), too_big(family));
    Some(error.value)
}

#[rstest]
fn what_a_router_takes_is_learned_and_kept_for_ten_minutes(
    #[values(V4, V6)] family: Family,
    #[values(V4, V6)] underlay: Family,
) {
    let host = node(1, underlay);
    let overhead = if underlay == V4 { 50 } else { 70 };
    let interface_room = 1500 - overhead;
    assert_eq!(told(&host, family, 1500 - 70), None);
    hear(&host, &claim(underlay, 1400));
    assert_eq!(told(&host, family, 1500), Some(1400 - overhead));
    let fits = usize::try_from(1400 - overhead).unwrap();
    assert_eq!(told(&host, family, fits), None);
    assert_eq!(told(&host, family, fits + 1), Some(1400 - overhead));

    // Believed also when the next hop is looked up again, which it is every second.
    host.advance(599);
    assert_eq!(told(&host, family, 1500), Some(1400 - overhead));
    host.advance(1);
    assert_eq!(told(&host, family, 1500), Some(interface_room));
    assert_eq!(told(&host, family, fits + 1), None);
}

#[rstest]
fn the_smaller_claim_wins(#[values(V4, V6)] underlay: Family) {
    let host = node(1, underlay);
    hear(&host, &claim(underlay, 1400));
    let until = hop(&host).path_mtu_until_s;
    host.advance(100);
    // About packets that were on the way: larger ones prove nothing (RFC 8201, section 4).
    hear(&host, &claim(underlay, 1450));
    assert_eq!(
        (hop(&host).path_mtu_bytes, hop(&host).path_mtu_until_s),
        (1400, until)
    );
    hear(&host, &claim(underlay, 1300));
    assert_eq!(
        (hop(&host).path_mtu_bytes, hop(&host).path_mtu_until_s),
        (1300, until + 100)
    );
    // The same again is believed for longer.
    host.advance(50);
    hear(&host, &claim(underlay, 1300));
    assert_eq!(hop(&host).path_mtu_until_s, until + 150);
    // What was forgotten holds nothing down.
    host.advance(600);
    hear(&host, &claim(underlay, 1450));
    assert_eq!(hop(&host).path_mtu_bytes, 1450);
}

#[rstest]
#[case(V4, 0, 576)]
#[case(V4, 68, 576)]
#[case(V4, 575, 576)]
#[case(V4, 577, 577)]
#[case(V6, 0, 1280)]
#[case(V6, 1279, 1280)]
#[case(V6, 1281, 1281)]
fn no_path_is_believed_to_take_less_than_it_must(
    #[case] underlay: Family,
    #[case] said: u32,
    #[case] believed: u16,
) {
    let host = node(1, underlay);
    hear(&host, &claim(underlay, said));
    assert_eq!(hop(&host).path_mtu_bytes, believed);
    assert_eq!(hop(&host).path_mtu_until_s, host.clock_s.get() + 600);
}

/// The interface itself takes less: that counts.
#[test]
fn a_claim_above_the_interfaces_mtu_changes_nothing() {
    let host = node(1, V4);
    host.routing.borrow_mut().mtu(plan::UPLINK, 1300);
    hear(&host, &claim(V4, 1400));
    assert_eq!(told(&host, V4, 1500), Some(1250));
}

#[rstest]
fn what_this_node_cannot_have_sent_teaches_nothing(#[values(V4, V6)] underlay: Family) {
    let host = node(1, underlay);
    let kind = claim(underlay, 1400);
    let about = |tuple: &Tuple| IcmpError {
        destination: plan::node(1, underlay),
        quote: quote(tuple, 63, &[0; 1440], usize::MAX),
        ..kind.clone()
    };
    let (tuple, _) = tunnel_packet(underlay, 0xc123, 1500);
    let port = |l4| Tuple { l4, ..tuple };
    let forged = [
        (
            "a source port of sockets",
            about(&port(L4::Udp(0xbfff, 6081))),
        ),
        (
            "another port of the peer",
            about(&port(L4::Udp(0xc123, 6082))),
        ),
        ("not UDP", about(&port(L4::Tcp(0xc123, 6081, 0)))),
        (
            "nobody's peer",
            about(&Tuple {
                destination: plan::node(9, underlay),
                ..tuple
            }),
        ),
        (
            "not from here",
            about(&Tuple {
                source: plan::node(9, underlay),
                ..tuple
            }),
        ),
        (
            "told to another",
            IcmpError {
                destination: plan::node(9, underlay),
                ..kind.clone()
            },
        ),
        ("it would have fitted", claim(underlay, 1500)),
        ("more than was sent", claim(underlay, 65_535)),
        (
            "another error",
            IcmpError {
                kind: 4,
                code: 0,
                ..kind.clone()
            },
        ),
        (
            "another code",
            IcmpError {
                kind: if underlay == V4 { 3 } else { 1 },
                code: 3,
                ..kind.clone()
            },
        ),
    ];
    for (what, error) in &forged {
        if underlay == V4 || *what != "another error" {
            hear(&host, error);
        }
        assert_eq!(hop(&host).path_mtu_until_s, 0, "{what}");
    }
    // On an uplink that the peer is not behind.
    hear_on(&host, 77, &kind);
    assert_eq!(hop(&host).path_mtu_until_s, 0);
    // Enough to know it by is the IP header and both ports.
    for length in 0..if underlay == V4 { 24 } else { 44 } {
        let mut cut = kind.clone();
        cut.quote.truncate(length);
        hear(&host, &cut);
        assert_eq!(hop(&host).path_mtu_until_s, 0, "quoted {length} bytes");
    }
    // All that was wanting.
    hear(&host, &kind);
    assert_eq!(hop(&host).path_mtu_bytes, 1400);
    // Nobody else's path is touched.
    let others = (0..PEERS_BASE + 200).filter(|slot| *slot != PEER);
    for slot in others {
        assert_eq!(host.next_hops.get(&slot).unwrap().path_mtu_until_s, 0);
    }
}

/// As much as RFC 792 asks of routers, IP header and eight bytes, is enough.
#[test]
fn eight_bytes_of_the_packet_suffice() {
    let host = node(1, V4);
    let mut error = claim(V4, 1400);
    error.quote.truncate(28);
    hear(&host, &error);
    assert_eq!(hop(&host).path_mtu_bytes, 1400);
}
