//! ARP and neighbour discovery: answered for the gateway, in nobody else's name.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod support;

use std::net::{IpAddr, Ipv6Addr};

use datapath_kern::abi::metric::Direction::Egress;
use datapath_kern::host::{Hook, Host, plan};
use datapath_kern::packet::Family::{V4, V6};
use datapath_kern::verdict::{Action, DropReason};
use etherparse::{Icmpv6Slice, NetHeaders, NetSlice, PacketHeaders, SlicedPacket, TransportSlice};
use rstest::rstest;
use support::{Out, frame, node, run};

fn send(host: &Host, bytes: &[u8]) -> Out {
    run(host, Hook::FromPod, plan::pod_interface(1), bytes)
}

#[test]
fn the_gateways_arp_is_answered() {
    let host = node(1, V4);
    let gateway = plan::gateway(1, V4);
    let out = send(&host, &frame::arp_request(1, 1, gateway));
    out.went(Action::IntoPod, plan::pod_interface(1), "egress answered");
    let packet = PacketHeaders::from_ethernet_slice(&out.bytes).unwrap();
    let link = packet.link.unwrap().ethernet2().unwrap();
    assert_eq!(
        (link.source, link.destination),
        (plan::gateway_mac(1), plan::pod_mac(1, 1))
    );
    let Some(NetHeaders::Arp(arp)) = packet.net else {
        panic!("not ARP")
    };
    let arp = arp.try_eth_ipv4().unwrap();
    assert_eq!(arp.operation.0, 2);
    assert_eq!(
        (arp.sender_mac, arp.target_mac),
        (plan::gateway_mac(1), plan::pod_mac(1, 1))
    );
    assert_eq!(IpAddr::from(arp.sender_ipv4), gateway);
    assert_eq!(IpAddr::from(arp.target_ipv4), plan::pod(1, 1, V4));
    assert!(host.pending.is_empty());
}

#[test]
fn arp_that_is_not_answered() {
    let host = node(1, V4);
    let (mac, own) = (plan::pod_mac(1, 1), plan::pod(1, 1, V4));
    let (others, gateway) = (plan::pod_mac(1, 2), plan::gateway(1, V4));
    let cases = [
        (
            "another pod",
            frame::arp(mac, 1, mac, own, plan::pod(1, 2, V4)),
            DropReason::NeighbourNotGateway,
        ),
        (
            "announcement",
            frame::arp(mac, 1, mac, own, own),
            DropReason::NeighbourNotGateway,
        ),
        (
            "an answer",
            frame::arp(mac, 2, mac, own, gateway),
            DropReason::NeighbourNotGateway,
        ),
        (
            "frame of another",
            frame::arp(others, 1, mac, own, gateway),
            DropReason::InvalidSourceMac,
        ),
        (
            "packet of another",
            frame::arp(mac, 1, others, own, gateway),
            DropReason::InvalidSourceMac,
        ),
        (
            "address of another",
            frame::arp(mac, 1, mac, plan::pod(1, 2, V4), gateway),
            DropReason::InvalidSourceIp,
        ),
        (
            "claim to the gateway",
            frame::arp(mac, 1, mac, gateway, gateway),
            DropReason::InvalidSourceIp,
        ),
        (
            "cut short",
            frame::arp(mac, 1, mac, own, gateway)[..41].to_vec(),
            DropReason::InvalidPacket,
        ),
    ];
    for (what, bytes, reason) in cases {
        let out = send(&host, &bytes);
        assert_eq!(out.reason, Some(reason), "{what}");
        out.dropped(Egress, reason);
    }
    run(&host, Hook::FromPod, 77, &frame::arp_request(1, 1, gateway))
        .dropped(Egress, DropReason::UnknownEndpoint);
}

fn link_local() -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 5))
}

#[rstest]
fn the_gateways_neighbour_discovery_is_answered(
    #[values(plan::pod(1, 1, V6), link_local())] source: IpAddr,
    #[values(true, false)] with_option: bool,
) {
    let host = node(1, V4);
    let gateway = plan::gateway(1, V6);
    let mac = plan::pod_mac(1, 1);
    let mut body = octets(gateway).to_vec();
    if with_option {
        body.extend([1, 1]);
        body.extend(mac);
    }
    let group = "ff02::1:ff00:1".parse().unwrap();
    let out = send(&host, &frame::icmpv6(mac, source, group, 255, 135, &body));
    out.went(Action::IntoPod, plan::pod_interface(1), "egress answered");
    let packet = SlicedPacket::from_ethernet(&out.bytes).unwrap();
    let link = packet
        .link
        .as_ref()
        .unwrap()
        .to_header()
        .unwrap()
        .ethernet2()
        .unwrap();
    assert_eq!((link.source, link.destination), (plan::gateway_mac(1), mac));
    let Some(NetSlice::Ipv6(ip)) = &packet.net else {
        panic!("not IPv6")
    };
    let ip = ip.header();
    assert_eq!(
        (ip.source(), ip.destination()),
        (octets(gateway), octets(source))
    );
    assert_eq!(
        (ip.hop_limit(), usize::from(ip.payload_length())),
        (255, out.bytes.len() - 54)
    );
    let Some(TransportSlice::Icmpv6(icmp)) = &packet.transport else {
        panic!("not ICMPv6")
    };
    assert!(icmp.is_checksum_valid(ip.source(), ip.destination()));
    advertisement(icmp, gateway, with_option);
}

/// RFC 4861, section 4.4.
fn advertisement(icmp: &Icmpv6Slice<'_>, target: IpAddr, with_option: bool) {
    let bytes = icmp.slice();
    assert_eq!(bytes[..2], [136, 0]);
    assert_eq!(bytes[4..8], [0xe0, 0, 0, 0], "router, solicited, override");
    assert_eq!(bytes[8..24], octets(target));
    if with_option {
        assert_eq!(
            (&bytes[24..26], &bytes[26..]),
            (&[2, 1][..], &plan::gateway_mac(1)[..])
        );
    } else {
        assert_eq!(bytes.len(), 24);
    }
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V6(v6) => v6.octets(),
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
    }
}

#[test]
fn neighbour_discovery_that_is_not_answered() {
    let host = node(1, V4);
    let (mac, own) = (plan::pod_mac(1, 1), plan::pod(1, 1, V6));
    let (gateway, other) = (plan::gateway(1, V6), plan::pod(1, 2, V6));
    let group = "ff02::1".parse().unwrap();
    let nobody = Ipv6Addr::UNSPECIFIED.into();
    let asking = |target| [&octets(target)[..], &[1, 1], &mac].concat();
    let ask = |from, source, hop_limit, kind, body: &[u8]| {
        frame::icmpv6(from, source, group, hop_limit, kind, body)
    };
    let router = |kind| ask(mac, own, 255, kind, &[0; 8]);
    let cases = [
        (
            "another pod",
            ask(mac, own, 255, 135, &asking(other)),
            DropReason::NeighbourNotGateway,
        ),
        (
            "duplicate address detection",
            ask(mac, nobody, 255, 135, &asking(own)),
            DropReason::NeighbourNotGateway,
        ),
        (
            "claim to the gateway",
            ask(mac, nobody, 255, 135, &asking(gateway)),
            DropReason::NeighbourNotGateway,
        ),
        (
            "advertisement",
            ask(mac, own, 255, 136, &asking(gateway)),
            DropReason::NeighbourNotGateway,
        ),
        (
            "frame of another",
            ask(plan::pod_mac(1, 2), own, 255, 135, &asking(gateway)),
            DropReason::InvalidSourceMac,
        ),
        (
            "address of another",
            ask(mac, other, 255, 135, &asking(gateway)),
            DropReason::InvalidSourceIp,
        ),
        (
            "from afar",
            ask(mac, own, 254, 135, &asking(gateway)),
            DropReason::InvalidPacket,
        ),
        (
            "without a target",
            ask(mac, own, 255, 135, &[0; 15]),
            DropReason::InvalidPacket,
        ),
        (
            "router advertisement",
            router(134),
            DropReason::ForbiddenIcmpV6,
        ),
        ("redirect", router(137), DropReason::ForbiddenIcmpV6),
        ("router solicitation", router(133), DropReason::Multicast),
        ("group report", router(143), DropReason::Multicast),
        (
            "an error to nobody's flow",
            frame::icmpv6(mac, own, other, 64, 1, &[0; 8]),
            DropReason::IcmpUnrelated,
        ),
    ];
    for (what, bytes, reason) in cases {
        let out = send(&host, &bytes);
        assert_eq!(out.reason, Some(reason), "{what}");
        out.dropped(Egress, reason);
    }
    assert!(host.pending.is_empty());
}
