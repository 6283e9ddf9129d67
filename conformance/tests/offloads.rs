//! Checksums are right where packets arrive, whatever pods and uplinks leave to the interface:
//! translated, tunnelled, or neither, and also where a source port had to give way.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "it is all tests"
)]

mod running;
mod util;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use datapath_conformance::{
    Result,
    family::Family,
    frame::{Checksum, Direction, Frame, FrameSocket, Layer, Transport, forge, verify_checksums},
    netns::Namespace,
    offload::{self, Offload},
    paths::pod_address,
    probe::{self, RawPort, TcpSession, UdpSession},
    topology::plan::UPLINK,
};
use datapath_kern::{
    abi::addr::Addr,
    wire::{checksum, ip::protocol::UDP},
};
use datapath_user::Datapath;
use etherparse::{Icmpv4Type, Icmpv6Type, SlicedPacket, TransportSlice};
use running::{Lab, To};
use util::{OrPanic, at, both_families, patient, way_out};

/// What a sender may leave to its interface. Cutting UDP is not among it: with a tunnel of its own
/// the datapath sees to it that the sender's stack does that.
const SWITCHES: [Offload; 2] = [Offload::TxChecksum, Offload::Tso];
const BULK_BYTES: usize = 300_000;

#[test]
fn receivers_find_right_checksums_with_a_tunnel_over_ipv4() {
    every_combination(Family::Ipv4);
}

#[test]
fn receivers_find_right_checksums_with_a_tunnel_over_ipv6() {
    every_combination(Family::Ipv6);
}

/// What of the pods' and the uplinks' senders is left to the interface.
#[derive(Clone, Copy, Debug)]
struct Offloads {
    pods: bool,
    uplinks: bool,
}

fn every_combination(tunnel: Family) {
    let lab = Lab::start("offloads", tunnel);
    udp_is_cut_by_the_stack(&lab);
    for pods in [true, false] {
        for uplinks in [true, false] {
            let offloads = Offloads { pods, uplinks };
            eprintln!("{offloads:?}");
            set(lab.pods(), pods);
            set(lab.uplinks(), uplinks);
            both_families(|family| {
                for to in To::ALL {
                    plain_flows(&lab, to, family, offloads)?;
                }
                changed_ports(&lab, family, offloads)?;
                right_by_chance(&lab, family)?;
                changed_identifiers(&lab, family)
            });
        }
    }
    lab.datapaths.stop().or_panic();
}

/// As an interface would leave it to the tunnel, where it is lost.
fn udp_is_cut_by_the_stack(lab: &Lab) {
    let pods = lab.pods().map(|pod| (pod, UPLINK));
    let nodes = lab.fabric.nodes().iter();
    for (host, interface) in pods.chain(nodes.map(|node| (node.namespace(), "dp_host"))) {
        let left = offload::get(host, interface, Offload::TxUdpSegmentation).or_panic();
        assert_eq!(left, Some(false), "{} {interface}", host.name());
    }
    let status = lab.datapaths.inside(0, Datapath::status).or_panic();
    assert_eq!(status.udp_segmentation, "stack");
}

fn set<'a>(hosts: impl Iterator<Item = &'a Namespace>, on: bool) {
    for host in hosts {
        offload::set(host, UPLINK, &SWITCHES.map(|switch| (switch, on))).or_panic();
    }
}

/// TCP, UDP and ICMP from a pod, as it comes.
fn plain_flows(lab: &Lab, to: To, family: Family, offloads: Offloads) -> Result<()> {
    let client = lab.pod(1, 1);
    let mut ears = Ears::open(lab, &[client], to)?;
    let server = to.server(family);
    probe::tcp_echo(client, server, BULK_BYTES, &patient())?;
    let mut udp = UdpSession::open(client, server, &patient())?;
    for size in [0, 1, 17, 1200] {
        udp.echo(size)?;
    }
    udp.echo_segmented(1000, 20)?;
    probe::icmp_echo(client, server.ip(), 3, 333, &patient())?;
    let heard = ears.verified();
    for kind in ["TCP", "UDP", "ICMP"] {
        assert!(heard.count(kind) >= 6, "{to:?} {family}: {heard:?}");
    }
    // Or this would prove nothing: a sum left open by a sender stays open to the end of the path
    // unless an uplink on the way completes it. The outside host is one of the senders.
    let open = match to {
        To::Neighbour => offloads.pods,
        To::Remote => offloads.pods && offloads.uplinks,
        To::Outside => offloads.uplinks,
    };
    assert_eq!(
        heard.open > 0,
        open,
        "{to:?} {family} {offloads:?}: {heard:?}"
    );
    assert_eq!(
        heard.joined > 0,
        open,
        "{to:?} {family} {offloads:?}: {heard:?}"
    );
    assert_eq!(
        heard.tunnelled > 0,
        to == To::Remote,
        "{to:?} {family}: {heard:?}"
    );
    Ok(())
}

/// Two pods with one source port to one server, by TCP and UDP: one of them gets another port.
fn changed_ports(lab: &Lab, family: Family, offloads: Offloads) -> Result<()> {
    // Not one of those that are kept for others (`Config::nat_ports`).
    let port = 40_000 + 2 * u16::from(offloads.pods) + u16::from(offloads.uplinks);
    let pods = [lab.pod(1, 1), lab.pod(1, 2)];
    let server = To::Outside.server(family);
    let mut ears = Ears::open(lab, &pods, To::Outside)?;
    let sources = [1, 2].map(|pod| at(pod_address(1, pod, family), port));
    let options = sources.map(|source| patient().with_source(source));

    let first = TcpSession::connect(pods[0], server, &options[0])?;
    let second = TcpSession::connect(pods[1], server, &options[1])?;
    let mut tcp = [first, second];
    for session in &mut tcp {
        session.echo(BULK_BYTES)?;
    }
    one_kept_its_port(tcp.each_ref().map(TcpSession::seen_source), port);

    let first = UdpSession::open(pods[0], server, &options[0])?;
    let second = UdpSession::open(pods[1], server, &options[1])?;
    let mut udp = [first, second];
    for _ in 0..2 {
        for session in &mut udp {
            session.echo(0)?;
            session.echo(1200)?;
            session.echo_segmented(1000, 20)?;
        }
    }
    let [first, second] = &mut udp;
    one_kept_its_port([first.seen_source()?, second.seen_source()?], port);
    let heard = ears.verified();
    assert!(
        heard.count("TCP") > 20 && heard.count("UDP") > 20,
        "{heard:?}"
    );
    Ok(())
}

fn one_kept_its_port(seen: [SocketAddr; 2], port: u16) {
    let [first, second] = seen;
    assert_eq!(first.ip(), second.ip());
    assert_eq!(first.port(), port);
    assert_ne!(second.port(), port);
}

/// Two pods with one source port send what has a complete checksum that happens to be what stands
/// there where it is left to the interface. It follows the address, and of one the port, too.
fn right_by_chance(lab: &Lab, family: Family) -> Result<()> {
    const PORT: u16 = 41_000;
    const LENGTH: u16 = 8 + 2;

    let outside = at(To::Outside.address(family), 9);
    let mut ear = FrameSocket::open(lab.fabric.outside(), None)?;
    let mut sources = Vec::new();
    for (number, pod) in [(1, lab.pod(1, 1)), (2, lab.pod(1, 2))] {
        let mut port = RawPort::open(pod, UPLINK)?;
        let source = at(pod_address(1, number, family), PORT);
        let [from, to] = way_out(pod, &port, source, outside);
        let addresses = [from, to].map(|place| Addr::from(place.address.ip()));
        let [by, whom] = &addresses;
        let pseudo = checksum::fold(checksum::pseudo(by, whom, LENGTH, UDP));
        let field = |frame: &[u8]| {
            let at = frame.len() - usize::from(LENGTH) + 6;
            u16::from_ne_bytes([frame[at], frame[at + 1]])
        };
        let without = field(&forge::udp(from, to, &[0; 2])?);
        let payload = checksum::fold(u32::from(without) + u32::from(!pseudo));
        let frame = forge::udp(from, to, &payload.to_ne_bytes())?;
        assert_eq!(field(&frame), pseudo);
        port.send(&frame)?;
        let deadline = Instant::now() + Duration::from_secs(5);
        let frame = loop {
            let frame = ear.next(deadline).unwrap().expect("it did not arrive");
            if frame.direction == Direction::In && frame.bytes.ends_with(&payload.to_ne_bytes()) {
                break frame;
            }
        };
        assert_eq!(frame.checksum, Checksum::Complete);
        verify(&frame);
        let udp = SlicedPacket::from_ethernet(&frame.bytes).unwrap().transport;
        let Some(TransportSlice::Udp(udp)) = udp else {
            panic!("{frame:?}");
        };
        sources.push(udp.source_port());
    }
    assert_eq!(sources[0], PORT);
    assert_ne!(sources[1], PORT);
    Ok(())
}

/// Two pods ping one host under one identifier: one of them gets another.
fn changed_identifiers(lab: &Lab, family: Family) -> Result<()> {
    const IDENTIFIER: u16 = 0x1dea;
    let outside = at(To::Outside.address(family), 0);
    let mut ear = FrameSocket::open(lab.fabric.outside(), None)?;
    let mut asked = Vec::new();
    for (number, pod) in [(1, lab.pod(1, 1)), (2, lab.pod(1, 2))] {
        let mut port = RawPort::open(pod, UPLINK)?;
        let source = at(pod_address(1, number, family), 0);
        let [from, to] = way_out(pod, &port, source, outside);
        let payload = format!("from the pod number {number}");
        port.send(&forge::echo_request(
            from,
            to,
            IDENTIFIER,
            payload.as_bytes(),
        )?)?;
        let answer = port.receive(Duration::from_secs(5), |frame| {
            frame.direction == Direction::In && frame.bytes.ends_with(payload.as_bytes())
        })?;
        let answer = answer.expect("the echo is not answered");
        assert_eq!(identifier(&answer), Some((false, IDENTIFIER)));
        verify(&answer);
        while let Some(frame) = ear.next(Instant::now()).unwrap() {
            if let (Direction::In, Some((true, seen))) = (frame.direction, identifier(&frame)) {
                verify(&frame);
                asked.push(seen);
            }
        }
    }
    let [first, second] = asked[..] else {
        panic!("{asked:?}");
    };
    assert_ne!(first, second, "both have one identifier");
    Ok(())
}

/// Identifier of an echo request (true) or reply.
fn identifier(frame: &Frame) -> Option<(bool, u16)> {
    match SlicedPacket::from_ethernet(&frame.bytes).ok()?.transport? {
        TransportSlice::Icmpv4(icmp) => match icmp.icmp_type() {
            Icmpv4Type::EchoRequest(echo) => Some((true, echo.id)),
            Icmpv4Type::EchoReply(echo) => Some((false, echo.id)),
            _ => None,
        },
        TransportSlice::Icmpv6(icmp) => match icmp.icmp_type() {
            Icmpv6Type::EchoRequest(echo) => Some((true, echo.id)),
            Icmpv6Type::EchoReply(echo) => Some((false, echo.id)),
            _ => None,
        },
        _ => None,
    }
}

/// Ears at both ends of a path, and at the fabric's side of every uplink between.
struct Ears(Vec<FrameSocket>);

impl Ears {
    fn open(lab: &Lab, clients: &[&Namespace], to: To) -> Result<Self> {
        let ends = clients.iter().copied().chain([lab.host(to)]);
        let ears = ends.map(|host| FrameSocket::open(host, Some(host.link(UPLINK)?.index)));
        let router = lab.fabric.router();
        let ports = ["n1", "n2", "ext"];
        let between = ports.map(|port| FrameSocket::open(router, Some(router.link(port)?.index)));
        ears.chain(between).collect::<Result<_>>().map(Self)
    }

    /// Verifies everything that arrived at an ear.
    fn verified(&mut self) -> Heard {
        let mut heard = Heard::default();
        for ear in &mut self.0 {
            while let Some(frame) = ear.next(Instant::now()).unwrap() {
                // What leaves is looked at where it arrives: the interface has not done its part.
                if frame.direction == Direction::In {
                    heard.add(&frame);
                }
            }
            assert_eq!(ear.lost(), 0, "frames were lost");
        }
        heard
    }
}

/// What arrived, all with right checksums.
#[derive(Debug, Default)]
struct Heard {
    by_kind: BTreeMap<&'static str, usize>,
    /// With a checksum still to be completed.
    open: usize,
    /// Of several segments.
    joined: usize,
    tunnelled: usize,
}

impl Heard {
    fn add(&mut self, frame: &Frame) {
        let kind = match SlicedPacket::from_ethernet(&frame.bytes).unwrap().transport {
            Some(TransportSlice::Tcp(_)) => "TCP",
            Some(TransportSlice::Udp(_)) => "UDP",
            Some(TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_)) => "ICMP",
            _ => return,
        };
        let layers = verify(frame);
        *self.by_kind.entry(kind).or_default() += 1;
        self.open += usize::from(frame.checksum != Checksum::Complete);
        self.joined += usize::from(frame.segment_bytes.is_some());
        self.tunnelled += usize::from(layers.len() > 1);
    }

    fn count(&self, kind: &str) -> usize {
        self.by_kind.get(kind).copied().unwrap_or(0)
    }
}

/// Fails unless every checksum of the frame is right, and none is missing but the tunnel's own.
fn verify(frame: &Frame) -> Vec<Layer> {
    let layers = verify_checksums(frame).unwrap_or_else(|error| {
        panic!(
            "{error} in a frame of {} bytes: {frame:?}",
            frame.bytes.len()
        )
    });
    for (index, layer) in layers.iter().enumerate() {
        let outer = index + 1 < layers.len();
        let wanted = if outer {
            Transport::Absent
        } else {
            Transport::Verified
        };
        assert_eq!(layer.transport, wanted, "layer {index} of {layers:?}");
    }
    layers
}
