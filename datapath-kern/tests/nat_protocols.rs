//! Masquerade of what is neither TCP, UDP nor echo: byte for byte as etherparse would have written
//! the packet with the other address.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod support;

use std::net::IpAddr;

use datapath_kern::abi::Mac;
use datapath_kern::abi::metric::Direction;
use datapath_kern::abi::search::PORTS_PER_WORD;
use datapath_kern::env::Table;
use datapath_kern::host::{Hook, Host, plan};
use datapath_kern::packet::Family::{self, V4, V6};
use datapath_kern::verdict::{Action, DropReason};
use etherparse::{IpNumber, PacketBuilder};
use rstest::rstest;
use support::{Out, node, run};

const DCCP: u8 = 33;
const GRE: u8 = 47;
const SCTP: u8 = 132;
const UDP_LITE: u8 = 136;

/// Who sends it to whom, and what.
#[derive(Clone, Copy, Debug)]
struct Sent {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    /// Source and destination port, of protocols that have them.
    ports: (u16, u16),
}

impl Sent {
    /// By a pod to the outside.
    fn by(pod: u8, family: Family, protocol: u8, ports: (u16, u16)) -> Self {
        Self {
            source: plan::pod(1, pod, family),
            destination: plan::outside(family),
            protocol,
            ports,
        }
    }

    /// As it is seen outside, from a port of the node.
    fn behind(self, port: u16) -> Self {
        let family = if self.source.is_ipv4() { V4 } else { V6 };
        Self {
            source: plan::node(1, family),
            ports: (port, self.ports.1),
            ..self
        }
    }

    fn answer(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            ports: (self.ports.1, self.ports.0),
            ..self
        }
    }

    fn frame(&self, from: Mac, to: Mac, ttl: u8) -> Vec<u8> {
        let link = PacketBuilder::ethernet2(from, to);
        let builder = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                link.ipv4(source.octets(), destination.octets(), ttl)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                link.ipv6(source.octets(), destination.octets(), ttl)
            }
            mixed => panic!("{mixed:?}"),
        };
        let mut bytes = Vec::new();
        builder
            .write(&mut bytes, IpNumber(self.protocol), &self.payload())
            .unwrap();
        bytes
    }

    /// Header and data; what depends on nothing is made up.
    fn payload(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = (1..=32).collect();
        if matches!(self.protocol, SCTP | DCCP | UDP_LITE) {
            bytes[0..2].copy_from_slice(&self.ports.0.to_be_bytes());
            bytes[2..4].copy_from_slice(&self.ports.1.to_be_bytes());
        }
        // What the checksums of UDP-Lite and DCCP cover: a header, and all of it.
        let covered = match self.protocol {
            UDP_LITE => 8,
            DCCP => bytes.len(),
            _ => return bytes,
        };
        if self.protocol == UDP_LITE {
            bytes[4..6].copy_from_slice(&8_u16.to_be_bytes());
        }
        bytes[6..8].fill(0);
        let mut words = octets(self.source);
        words.extend(octets(self.destination));
        words.extend([0, self.protocol, 0, u8::try_from(bytes.len()).unwrap()]);
        words.extend(&bytes[..covered]);
        let mut sum: u32 = words
            .chunks(2)
            .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
            .sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        let checksum = !u16::try_from(sum).unwrap();
        bytes[6..8].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn from_pod(host: &Host, pod: u8, sent: &Sent) -> Out {
    let bytes = sent.frame(plan::pod_mac(1, pod), plan::gateway_mac(1), 64);
    run(host, Hook::FromPod, plan::pod_interface(pod), &bytes)
}

fn from_outside(host: &Host, sent: &Sent) -> Out {
    let bytes = sent.frame(plan::node_mac(plan::ROUTER), plan::node_mac(1), 60);
    run(host, Hook::FromUplink, plan::UPLINK, &bytes)
}

fn from_node(host: &Host, sent: &Sent) -> (Vec<u8>, Out) {
    let bytes = sent.frame(plan::node_mac(1), plan::node_mac(plan::ROUTER), 64);
    let out = run(host, Hook::ToUplink, plan::UPLINK, &bytes);
    (bytes, out)
}

/// Asserts that it left as `seen`, whole.
#[track_caller]
fn left_as(out: &Out, seen: &Sent) {
    assert_eq!(out.counted, "egress to-network", "{:?}", out.reason);
    let (router, own) = (plan::node_mac(plan::ROUTER), plan::node_mac(1));
    let by_address = out.verdict.action == Action::Out;
    let mut found = out.bytes.clone();
    if !by_address {
        // The kernel writes the Ethernet addresses.
        found[..12].copy_from_slice(&[router, own].concat());
    }
    assert_eq!(found, seen.frame(own, router, 63));
}

/// Asserts that the answer to what was `seen` reaches the pod as the answer to what it sent.
#[track_caller]
fn comes_back(host: &Host, pod: u8, sent: &Sent, seen: &Sent) {
    let back = from_outside(host, &seen.answer());
    back.went(
        Action::IntoPod,
        plan::pod_interface(pod),
        "ingress to-endpoint",
    );
    let expected = sent
        .answer()
        .frame(plan::gateway_mac(1), plan::pod_mac(1, pod), 59);
    assert_eq!(back.bytes, expected);
}

/// The port of a frame that left.
fn port(out: &Out, family: Family) -> u16 {
    let at = if family == V4 { 34 } else { 54 };
    u16::from_be_bytes([out.bytes[at], out.bytes[at + 1]])
}

#[rstest]
fn a_protocol_without_ports_is_one_flow_to_each_remote(
    #[values(V4, V6)] family: Family,
    #[values(4, 47, 50, 97, 115, 253)] protocol: u8,
) {
    let host = node(1, V4);
    let first = Sent::by(1, family, protocol, (0, 0));
    let seen = first.behind(0);
    for _ in 0..3 {
        left_as(&from_pod(&host, 1, &first), &seen);
        comes_back(&host, 1, &first, &seen);
    }
    assert_eq!((host.flows.len(), host.pending.len()), (2, 0), "proven");
    // Nobody could tell the answers apart.
    let second = Sent::by(2, family, protocol, (0, 0));
    from_pod(&host, 2, &second).dropped(Direction::Egress, DropReason::NatExhausted);
    // Another remote, another protocol.
    let elsewhere = Sent {
        destination: plan::node(plan::ROUTER, family),
        ..second
    };
    left_as(&from_pod(&host, 2, &elsewhere), &elsewhere.behind(0));
    let other = Sent {
        protocol: 254,
        ..second
    };
    left_as(&from_pod(&host, 2, &other), &other.behind(0));
    // Once the first is silent for long enough, the second has its turn.
    host.advance(host.config.other_established_s);
    left_as(&from_pod(&host, 2, &second), &seen);
    comes_back(&host, 2, &second, &seen);
}

#[rstest]
fn a_protocol_whose_checksum_covers_the_addresses_does_not_leave(
    #[values(V4, V6)] family: Family,
    #[values(51, 89, 103, 112, 135, 139)] protocol: u8,
) {
    let host = node(1, V4);
    let sent = Sent::by(1, family, protocol, (0, 0));
    from_pod(&host, 1, &sent).dropped(Direction::Egress, DropReason::NatUnsupported);
    assert!(host.pending.is_empty());
    // The node's own is none of our business.
    let (bytes, out) = from_node(&host, &sent.behind(0));
    assert_eq!((out.reason, out.bytes), (None, bytes));
}

#[rstest]
fn sctp_keeps_its_port_and_its_chunks(#[values(V4, V6)] family: Family) {
    let host = node(1, V4);
    let first = Sent::by(1, family, SCTP, (36_412, 36_412));
    let seen = first.behind(36_412);
    for _ in 0..3 {
        left_as(&from_pod(&host, 1, &first), &seen);
        comes_back(&host, 1, &first, &seen);
    }
    // By another port there is room for another.
    let second = Sent::by(2, family, SCTP, (36_413, 36_412));
    left_as(&from_pod(&host, 2, &second), &second.behind(36_413));
    comes_back(&host, 2, &second, &second.behind(36_413));
    let third = Sent::by(3, family, SCTP, (36_412, 36_412));
    from_pod(&host, 3, &third).dropped(Direction::Egress, DropReason::NatExhausted);
    // Ports that masquerade does not give out: there is no other that it could.
    host.excluded_ports
        .update(&(9999 / PORTS_PER_WORD), |word| {
            *word = 1 << (9999 % PORTS_PER_WORD);
        });
    for port in [80, 9999] {
        let sent = Sent::by(3, family, SCTP, (port, 36_412));
        from_pod(&host, 3, &sent).dropped(Direction::Egress, DropReason::NatUnsupported);
    }
}

#[rstest]
fn udp_lite_and_dccp_change_their_port_where_they_must(
    #[values(V4, V6)] family: Family,
    #[values(UDP_LITE, DCCP)] protocol: u8,
) {
    let host = node(1, V4);
    let first = Sent::by(1, family, protocol, (40_000, 5001));
    left_as(&from_pod(&host, 1, &first), &first.behind(40_000));
    comes_back(&host, 1, &first, &first.behind(40_000));
    let second = Sent::by(2, family, protocol, (40_000, 5001));
    let out = from_pod(&host, 2, &second);
    let given = port(&out, family);
    assert_ne!(given, 40_000);
    left_as(&out, &second.behind(given));
    comes_back(&host, 2, &second, &second.behind(given));
}

#[rstest]
fn a_header_cut_short_is_invalid(#[values(SCTP, DCCP, UDP_LITE)] protocol: u8) {
    let host = node(1, V4);
    let whole = Sent::by(1, V4, protocol, (40_000, 5001)).frame(
        plan::pod_mac(1, 1),
        plan::gateway_mac(1),
        64,
    );
    let least = if protocol == UDP_LITE { 8 } else { 12 };
    for length in 0..least {
        let mut bytes = whole[..34 + length].to_vec();
        bytes[16..18].copy_from_slice(&u16::try_from(20 + length).unwrap().to_be_bytes());
        run(&host, Hook::FromPod, plan::pod_interface(1), &bytes)
            .dropped(Direction::Egress, DropReason::InvalidPacket);
    }
}

/// The node speaks to its peers by such protocols: what a pod began first does not get the answers.
#[rstest]
fn the_node_goes_before_its_pods_where_ports_cannot_change(
    #[values(V4, V6)] family: Family,
    #[values(GRE, SCTP)] protocol: u8,
) {
    let host = node(1, V4);
    let ports = if protocol == SCTP {
        (5000, 6000)
    } else {
        (0, 0)
    };
    let of_pod = Sent::by(1, family, protocol, ports);
    let seen = of_pod.behind(ports.0);
    left_as(&from_pod(&host, 1, &of_pod), &seen);
    comes_back(&host, 1, &of_pod, &seen);
    let (bytes, out) = from_node(&host, &seen);
    out.went(Action::Pass, 0, "");
    assert_eq!(out.bytes, bytes);
    // From now on, and as long as the node does.
    for _ in 0..2 {
        let back = from_outside(&host, &seen.answer());
        back.went(Action::Pass, 0, "ingress to-host");
        from_pod(&host, 1, &of_pod).dropped(Direction::Egress, DropReason::NatExhausted);
        assert_eq!(from_node(&host, &seen).1.reason, None);
    }
}

/// Of the packet's header and the eight bytes behind it, as routers quote.
#[rstest]
fn errors_about_them_reach_their_pod(#[values(GRE, SCTP, UDP_LITE)] protocol: u8) {
    let host = node(1, V4);
    let first = Sent::by(1, V4, protocol, (40_000, 5001));
    from_pod(&host, 1, &first);
    let (pod, sent) = if protocol == UDP_LITE {
        (2, Sent::by(2, V4, protocol, (40_000, 5001)))
    } else {
        (1, first)
    };
    let out = from_pod(&host, pod, &sent);
    let seen = sent.behind(if protocol == GRE { 0 } else { port(&out, V4) });
    let error = |sent: &Sent, from: Mac, to: Mac, ttl| {
        let (IpAddr::V4(router), IpAddr::V4(source)) = (plan::node(plan::ROUTER, V4), sent.source)
        else {
            panic!("{sent:?}")
        };
        let quoted = &sent.frame([0; 6], [0; 6], 61)[14..42];
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2(from, to)
            .ipv4(router.octets(), source.octets(), ttl)
            .icmpv4_raw(3, 2, [0; 4])
            .write(&mut bytes, quoted)
            .unwrap();
        bytes
    };
    let bytes = error(&seen, plan::node_mac(plan::ROUTER), plan::node_mac(1), 60);
    let back = run(&host, Hook::FromUplink, plan::UPLINK, &bytes);
    back.went(
        Action::IntoPod,
        plan::pod_interface(pod),
        "ingress to-endpoint",
    );
    let expected = error(&sent, plan::gateway_mac(1), plan::pod_mac(1, pod), 59);
    assert_eq!(back.bytes, expected);
}
