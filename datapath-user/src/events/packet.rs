//! What the first bytes of a frame say, as far as they go.

use std::fmt::Write as _;
use std::net::IpAddr;

use datapath_kern::packet::ETHERNET_LEN;
use datapath_kern::wire::ip::protocol;
use datapath_tunnel::geneve;
use etherparse::{EtherType, LaxNetSlice, LaxSlicedPacket};

use super::view::TunnelView;
use crate::flows;

/// What there is to say of a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) source: Option<IpAddr>,
    pub(super) destination: Option<IpAddr>,
    pub(super) source_port: Option<u16>,
    pub(super) destination_port: Option<u16>,
    pub(super) protocol: String,
    pub(super) tcp_flags: String,
    pub(super) ip_version: Option<u8>,
    /// Type and code.
    pub(super) icmp: Option<(u8, u8)>,
    /// In Hubble's words: `TCP Flags: SYN`, `ICMPv4 EchoRequest`.
    pub(super) summary: String,
}

/// Reads a frame whose IP header is at `l3`; zero where that is not known.
pub(super) fn parse(frame: &[u8], l3: u16) -> Packet {
    let ethernet = usize::from(ETHERNET_LEN);
    let ether_type = match frame.get(12..ethernet) {
        Some(&[high, low]) => EtherType(u16::from_be_bytes([high, low])),
        _ => return unknown("Ethernet, cut short".to_owned()),
    };
    let within = usize::from(l3) > ethernet;
    let start = usize::from(l3).max(ethernet);
    let ip = matches!(ether_type, EtherType::IPV4 | EtherType::IPV6);
    if !ip && !within {
        return link(frame.get(start..).unwrap_or_default(), ether_type);
    }
    let Some(net) = frame
        .get(start..)
        .and_then(|bytes| LaxSlicedPacket::from_ip(bytes).ok())
        .and_then(|packet| packet.net)
    else {
        return unknown("IP, malformed".to_owned());
    };
    of_ip(&net).unwrap_or_else(|| unknown("IP, malformed".to_owned()))
}

/// The tunnel's own header of a frame whose inner IP header is at `l3`.
pub(super) fn tunnel(frame: &[u8], l3: u16) -> Option<TunnelView> {
    let outer = usize::from(ETHERNET_LEN);
    // Two Ethernet headers, an IP, a UDP and a GENEVE header.
    if usize::from(l3) < 2 * outer + 20 + 8 + 8 {
        return None;
    }
    let net = LaxSlicedPacket::from_ethernet(frame).ok()?.net?;
    let (source, destination, _, payload, _) = ends(&net)?;
    let header = geneve::Packet::new_unchecked(payload.get(8..16)?).header();
    Some(TunnelView {
        source,
        destination,
        vni: header.vni().get(),
    })
}

fn unknown(summary: String) -> Packet {
    Packet {
        summary,
        ..Packet::default()
    }
}

/// Addresses, protocol, payload, and whether that begins with a transport header.
fn ends<'a>(net: &LaxNetSlice<'a>) -> Option<(IpAddr, IpAddr, u8, &'a [u8], bool)> {
    match net {
        LaxNetSlice::Ipv4(ip) => {
            let header = ip.header();
            Some((
                header.source_addr().into(),
                header.destination_addr().into(),
                ip.payload().ip_number.0,
                ip.payload().payload,
                header.fragments_offset().value() == 0,
            ))
        }
        LaxNetSlice::Ipv6(ip) => {
            let header = ip.header();
            Some((
                header.source_addr().into(),
                header.destination_addr().into(),
                ip.payload().ip_number.0,
                ip.payload().payload,
                !ip.payload().fragmented,
            ))
        }
        LaxNetSlice::Arp(_) => None,
    }
}

fn of_ip(net: &LaxNetSlice<'_>) -> Option<Packet> {
    let (source, destination, number, payload, whole) = ends(net)?;
    let payload = if whole { payload } else { &[] };
    let mut packet = Packet {
        source: Some(source),
        destination: Some(destination),
        protocol: flows::protocol(number),
        ip_version: Some(if source.is_ipv4() { 4 } else { 6 }),
        ..Packet::default()
    };
    if let (protocol::ICMP | protocol::ICMPV6, &[kind, code, ..]) = (number, payload) {
        packet.icmp = Some((kind, code));
    }
    packet.summary = match number {
        protocol::TCP => {
            (packet.source_port, packet.destination_port) = ports(payload);
            packet.tcp_flags = payload.get(13).copied().map_or_else(String::new, tcp_flags);
            if packet.tcp_flags.is_empty() {
                "TCP".to_owned()
            } else {
                format!("TCP Flags: {}", packet.tcp_flags)
            }
        }
        protocol::UDP => {
            (packet.source_port, packet.destination_port) = ports(payload);
            "UDP".to_owned()
        }
        protocol::SCTP => {
            (packet.source_port, packet.destination_port) = ports(payload);
            "SCTP".to_owned()
        }
        protocol::ICMP => icmp("ICMPv4", payload, icmp_v4),
        protocol::ICMPV6 => icmp("ICMPv6", payload, icmp_v6),
        other => format!("IP protocol {other}"),
    };
    if !whole {
        packet.summary.push_str(", fragment");
    }
    Some(packet)
}

fn ports(transport: &[u8]) -> (Option<u16>, Option<u16>) {
    match transport {
        &[a, b, c, d, ..] => (
            Some(u16::from_be_bytes([a, b])),
            Some(u16::from_be_bytes([c, d])),
        ),
        _ => (None, None),
    }
}

/// Names the flags that are set, in Hubble's order.
fn tcp_flags(bits: u8) -> String {
    const NAMES: [(u8, &str); 8] = [
        (0x02, "SYN"),
        (0x10, "ACK"),
        (0x01, "FIN"),
        (0x04, "RST"),
        (0x08, "PSH"),
        (0x20, "URG"),
        (0x40, "ECE"),
        (0x80, "CWR"),
    ];
    let set = NAMES.iter().filter(|(bit, _)| bits & bit != 0);
    set.map(|(_, name)| *name).collect::<Vec<_>>().join(", ")
}

fn icmp(version: &str, message: &[u8], name: fn(u8) -> Option<&'static str>) -> String {
    match message {
        &[kind, code, ..] => match name(kind) {
            Some(name) => format!("{version} {name}"),
            None => format!("{version} type {kind} code {code}"),
        },
        _ => version.to_owned(),
    }
}

/// RFC 792.
fn icmp_v4(kind: u8) -> Option<&'static str> {
    Some(match kind {
        0 => "EchoReply",
        3 => "DestinationUnreachable",
        5 => "Redirect",
        8 => "EchoRequest",
        11 => "TimeExceeded",
        12 => "ParameterProblem",
        _ => return None,
    })
}

/// RFC 4443, RFC 4861, RFC 2710 and RFC 3810.
fn icmp_v6(kind: u8) -> Option<&'static str> {
    Some(match kind {
        1 => "DestinationUnreachable",
        2 => "PacketTooBig",
        3 => "TimeExceeded",
        4 => "ParameterProblem",
        128 => "EchoRequest",
        129 => "EchoReply",
        130 => "MulticastListenerQuery",
        131 | 143 => "MulticastListenerReport",
        132 => "MulticastListenerDone",
        133 => "RouterSolicitation",
        134 => "RouterAdvertisement",
        135 => "NeighborSolicitation",
        136 => "NeighborAdvertisement",
        137 => "Redirect",
        _ => return None,
    })
}

/// A frame that is not IP.
fn link(payload: &[u8], ether_type: EtherType) -> Packet {
    if ether_type != EtherType::ARP {
        let number = ether_type.0;
        let protocol = format!("{number:#06x}");
        return Packet {
            summary: format!("EtherType {protocol}"),
            protocol,
            ..Packet::default()
        };
    }
    let mut packet = Packet {
        protocol: "arp".to_owned(),
        summary: "ARP".to_owned(),
        ..Packet::default()
    };
    // RFC 826, for IPv4 over Ethernet.
    let address = |at| -> Option<IpAddr> {
        let bytes = payload.get(at..at + 4)?;
        <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from)
    };
    packet.source = address(14);
    packet.destination = address(24);
    match payload.get(6..8) {
        Some([0, 1]) => packet.summary.push_str(" Request"),
        Some([0, 2]) => packet.summary.push_str(" Reply"),
        Some([high, low]) => {
            let operation = u16::from_be_bytes([*high, *low]);
            // Writing to a string does not fail.
            let _ = write!(packet.summary, " operation {operation}");
        }
        _ => {}
    }
    packet
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    const SOURCE: [u8; 4] = [10, 244, 1, 5];
    const DESTINATION: [u8; 4] = [198, 51, 100, 10];

    fn frame(build: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut bytes = Vec::new();
        build(&mut bytes);
        bytes
    }

    fn tcp(payload: usize) -> Vec<u8> {
        frame(|bytes| {
            PacketBuilder::ethernet2([2; 6], [4; 6])
                .ipv4(SOURCE, DESTINATION, 64)
                .tcp(40_000, 80, 1, 1000)
                .syn()
                .ack(2)
                .write(bytes, &vec![0; payload])
                .unwrap();
        })
    }

    #[test]
    fn tcp_is_read_however_much_of_it_is_there() {
        for payload in [0, 1000] {
            let bytes = tcp(payload);
            let packet = parse(&bytes[..bytes.len().min(128)], 14);
            assert_eq!(packet.summary, "TCP Flags: SYN, ACK");
            assert_eq!(
                (packet.source, packet.source_port),
                (Some(SOURCE.into()), Some(40_000))
            );
            assert_eq!(packet.destination_port, Some(80));
        }
        let bytes = tcp(0);
        for length in 0..bytes.len() {
            let packet = parse(&bytes[..length], 14);
            assert!(!packet.summary.is_empty());
            assert_eq!(packet.destination_port.is_some(), length >= 14 + 20 + 4);
        }
    }

    #[test]
    fn messages_have_names() {
        let echo = frame(|bytes| {
            PacketBuilder::ethernet2([2; 6], [4; 6])
                .ipv6([1; 16], [2; 16], 64)
                .icmpv6_echo_request(7, 1)
                .write(bytes, b"hi")
                .unwrap();
        });
        assert_eq!(parse(&echo, 0).summary, "ICMPv6 EchoRequest");
        let odd = icmp("ICMPv4", &[40, 2, 0, 0], icmp_v4);
        assert_eq!(odd, "ICMPv4 type 40 code 2");
    }

    #[test]
    fn what_is_no_ip_is_named_by_its_ethertype() {
        let mut bytes = vec![0; 60];
        bytes[12..14].copy_from_slice(&[0x88, 0xcc]);
        assert_eq!(parse(&bytes, 14).summary, "EtherType 0x88cc");
        bytes[12..14].copy_from_slice(&[0x08, 0x06]);
        bytes[20..22].copy_from_slice(&[0, 1]);
        bytes[28..32].copy_from_slice(&SOURCE);
        bytes[38..42].copy_from_slice(&DESTINATION);
        let arp = parse(&bytes, 14);
        assert_eq!(arp.summary, "ARP Request");
        assert_eq!(arp.source, Some(SOURCE.into()));
        assert_eq!(arp.destination, Some(DESTINATION.into()));
        assert_eq!(parse(&[0; 9], 0).summary, "Ethernet, cut short");
    }

    #[test]
    fn a_tunnel_packet_is_read_inside_and_outside() {
        let inner = tcp(0);
        let header = geneve::Header::new(geneve::Vni::new(1001).unwrap(), 0x6558);
        let mut geneve = vec![0; 8];
        geneve::Packet::new_unchecked(&mut geneve[..])
            .set_header(header)
            .unwrap();
        geneve.extend(&inner);
        let bytes = frame(|bytes| {
            PacketBuilder::ethernet2([2; 6], [4; 6])
                .ipv4([192, 0, 2, 1], [192, 0, 2, 2], 64)
                .udp(50_000, 6081)
                .write(bytes, &geneve)
                .unwrap();
        });
        assert_eq!(parse(&bytes, 64).source, Some(SOURCE.into()));
        let tunnel = tunnel(&bytes, 64).unwrap();
        let [source, destination] = [[192, 0, 2, 1], [192, 0, 2, 2]].map(IpAddr::from);
        assert_eq!((tunnel.source, tunnel.destination), (source, destination));
        assert_eq!(tunnel.vni, 1001);
        assert_eq!(super::tunnel(&bytes, 14), None);
    }
}
