//! Frames built and taken apart by etherparse.

use std::net::IpAddr;

use datapath_kern::abi::Mac;
use datapath_kern::host::plan;
use datapath_kern::packet::Family;
use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, NetHeaders, PacketBuilder, PacketHeaders,
    TcpHeader, TransportHeader,
};

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 16;

/// Addresses, ports and what goes with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tuple {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) l4: L4,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum L4 {
    /// Source port, destination port, flags.
    Tcp(u16, u16, u8),
    /// Source port, destination port.
    Udp(u16, u16),
    /// Identifier.
    EchoRequest(u16),
    /// Identifier.
    EchoReply(u16),
}

impl Tuple {
    pub(crate) fn new(source: IpAddr, destination: IpAddr, l4: L4) -> Self {
        Self {
            source,
            destination,
            l4,
        }
    }

    /// The packet that answers this one; a TCP segment with `flags`.
    pub(crate) fn answer(&self, flags: u8) -> Self {
        let l4 = match self.l4 {
            L4::Tcp(from, to, _) => L4::Tcp(to, from, flags),
            L4::Udp(from, to) => L4::Udp(to, from),
            L4::EchoRequest(id) => L4::EchoReply(id),
            L4::EchoReply(id) => L4::EchoRequest(id),
        };
        Self {
            source: self.destination,
            destination: self.source,
            l4,
        }
    }

    /// The same, a TCP segment with `flags`.
    pub(crate) fn with_flags(mut self, flags: u8) -> Self {
        if let L4::Tcp(.., old) = &mut self.l4 {
            *old = flags;
        }
        self
    }

    /// Protocol number of echo in the family of the addresses.
    pub(crate) fn icmp(&self) -> u8 {
        if self.source.is_ipv4() { 1 } else { 58 }
    }
}

/// A frame of `tuple`.
pub(crate) fn build(from: Mac, to: Mac, tuple: &Tuple, ttl: u8, payload: &[u8]) -> Vec<u8> {
    let link = PacketBuilder::ethernet2(from, to);
    let ip = match (tuple.source, tuple.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            link.ipv4(source.octets(), destination.octets(), ttl)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            link.ipv6(source.octets(), destination.octets(), ttl)
        }
        mixed => panic!("{mixed:?}"),
    };
    let mut bytes = Vec::new();
    let v4 = tuple.source.is_ipv4();
    match tuple.l4 {
        L4::Tcp(source, destination, flags) => {
            let mut tcp = TcpHeader::new(source, destination, 7, 0xffff);
            tcp.fin = flags & FIN != 0;
            tcp.syn = flags & SYN != 0;
            tcp.rst = flags & RST != 0;
            tcp.ack = flags & ACK != 0;
            ip.tcp_header(tcp)
                .write_to_vec(&mut bytes, payload)
                .unwrap();
        }
        L4::Udp(source, destination) => {
            ip.udp(source, destination)
                .write_to_vec(&mut bytes, payload)
                .unwrap();
        }
        L4::EchoRequest(id) if v4 => {
            ip.icmpv4_echo_request(id, 1)
                .write_to_vec(&mut bytes, payload)
                .unwrap();
        }
        L4::EchoReply(id) if v4 => {
            ip.icmpv4_echo_reply(id, 1)
                .write_to_vec(&mut bytes, payload)
                .unwrap();
        }
        L4::EchoRequest(id) => {
            ip.icmpv6_echo_request(id, 1)
                .write_to_vec(&mut bytes, payload)
                .unwrap();
        }
        L4::EchoReply(id) => {
            ip.icmpv6_echo_reply(id, 1)
                .write_to_vec(&mut bytes, payload)
                .unwrap();
        }
    }
    bytes
}

/// A frame that a pod sends to its gateway.
pub(crate) fn of_pod(node: u8, pod: u8, tuple: &Tuple) -> Vec<u8> {
    build(
        plan::pod_mac(node, pod),
        plan::gateway_mac(node),
        tuple,
        64,
        b"hi",
    )
}

/// A frame taken apart; every checksum in it was right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parsed {
    pub(crate) from: Mac,
    pub(crate) to: Mac,
    pub(crate) tuple: Tuple,
    pub(crate) ttl: u8,
    pub(crate) payload: Vec<u8>,
}

/// Takes a frame apart.
///
/// # Panics
///
/// Where a header or a checksum is wrong, or bytes are left over.
pub(crate) fn parse(bytes: &[u8]) -> Parsed {
    let packet = PacketHeaders::from_ethernet_slice(bytes).unwrap();
    let link = packet.link.unwrap().ethernet2().unwrap();
    let payload = packet.payload.slice();
    let found = packet.transport.unwrap();
    let mut right = found.clone();
    let (source, destination, ttl, l3) = match packet.net.unwrap() {
        NetHeaders::Ipv4(ip, _) => {
            assert_eq!(
                ip.header_checksum,
                ip.calc_header_checksum(),
                "IPv4 header checksum"
            );
            assert_eq!(
                usize::from(ip.total_len),
                bytes.len() - 14,
                "IPv4 total length"
            );
            right.update_checksum_ipv4(&ip, payload).unwrap();
            let source = IpAddr::from(ip.source);
            (
                source,
                ip.destination.into(),
                ip.time_to_live,
                ip.header_len(),
            )
        }
        NetHeaders::Ipv6(ip, _) => {
            assert_eq!(
                usize::from(ip.payload_length),
                bytes.len() - 54,
                "IPv6 payload length"
            );
            right.update_checksum_ipv6(&ip, payload).unwrap();
            (
                ip.source.into(),
                IpAddr::from(ip.destination),
                ip.hop_limit,
                40,
            )
        }
        other @ NetHeaders::Arp(_) => panic!("{other:?}"),
    };
    let none = matches!(&found, TransportHeader::Udp(udp) if udp.checksum == 0) && l3 == 20;
    assert!(
        none || found == right,
        "transport checksum: {found:?}, not {right:?}"
    );
    let (l4, l4_len) = l4(bytes, 14 + l3, &found);
    assert_eq!(bytes.len(), 14 + l3 + l4_len + payload.len());
    let tuple = Tuple {
        source,
        destination,
        l4,
    };
    Parsed {
        from: link.source,
        to: link.destination,
        tuple,
        ttl,
        payload: payload.to_vec(),
    }
}

fn l4(bytes: &[u8], at: usize, header: &TransportHeader) -> (L4, usize) {
    let id = u16::from_be_bytes([bytes[at + 4], bytes[at + 5]]);
    match header {
        TransportHeader::Tcp(tcp) => {
            let bit = |on: bool, bit: u8| if on { bit } else { 0 };
            let flags =
                bit(tcp.fin, FIN) | bit(tcp.syn, SYN) | bit(tcp.rst, RST) | bit(tcp.ack, ACK);
            (
                L4::Tcp(tcp.source_port, tcp.destination_port, flags),
                tcp.header_len(),
            )
        }
        TransportHeader::Udp(udp) => (L4::Udp(udp.source_port, udp.destination_port), 8),
        TransportHeader::Icmpv4(_) if bytes[at] == 8 => (L4::EchoRequest(id), 8),
        TransportHeader::Icmpv4(_) if bytes[at] == 0 => (L4::EchoReply(id), 8),
        TransportHeader::Icmpv6(_) if bytes[at] == 128 => (L4::EchoRequest(id), 8),
        TransportHeader::Icmpv6(_) if bytes[at] == 129 => (L4::EchoReply(id), 8),
        other => panic!("{other:?}"),
    }
}

/// A pod's ARP request.
pub(crate) fn arp_request(node: u8, pod: u8, target: IpAddr) -> Vec<u8> {
    let mac = plan::pod_mac(node, pod);
    arp(mac, 1, mac, plan::pod(node, pod, Family::V4), target)
}

/// An ARP packet.
pub(crate) fn arp(from: Mac, operation: u16, mac: Mac, sender: IpAddr, target: IpAddr) -> Vec<u8> {
    let (IpAddr::V4(sender), IpAddr::V4(target)) = (sender, target) else {
        panic!("ARP is for IPv4")
    };
    let packet = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        ArpOperation(operation),
        &mac,
        &sender.octets(),
        &[0; 6],
        &target.octets(),
    );
    let mut bytes = Vec::new();
    let link = PacketBuilder::ethernet2(from, [0xff; 6]);
    link.arp(packet.unwrap()).write_to_vec(&mut bytes).unwrap();
    bytes
}

/// A pod's neighbour solicitation, with its Ethernet address.
pub(crate) fn solicitation(node: u8, pod: u8, target: IpAddr) -> Vec<u8> {
    let mac = plan::pod_mac(node, pod);
    let mut body = octets(target).to_vec();
    body.extend([1, 1]);
    body.extend(mac);
    icmpv6(
        mac,
        plan::pod(node, pod, Family::V6),
        target,
        255,
        135,
        &body,
    )
}

/// An ICMPv6 message of `kind`, four zero bytes behind its checksum.
pub(crate) fn icmpv6(
    from: Mac,
    source: IpAddr,
    destination: IpAddr,
    hop_limit: u8,
    kind: u8,
    body: &[u8],
) -> Vec<u8> {
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(from, [0x33, 0x33, 0xff, 0, 0, 1])
        .ipv6(octets(source), octets(destination), hop_limit)
        .icmpv6_raw(kind, 0, [0; 4])
        .write_to_vec(&mut bytes, body)
        .unwrap();
    bytes
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V6(v6) => v6.octets(),
        IpAddr::V4(v4) => panic!("{v4} is no IPv6 address"),
    }
}
