//! ICMP errors, built and taken apart by RFC 792 and RFC 4443.

use std::net::IpAddr;

use datapath_kern::abi::Mac;
use datapath_kern::packet::Family::{self, V4, V6};
use etherparse::checksum::Sum16BitWords;
use etherparse::{
    Ethernet2Header, IpNumber, Ipv4Header, Ipv6Header, PacketBuilder, PacketHeaders,
    TransportHeader,
};

use super::frame::{self, Tuple};

/// An error and what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IcmpError {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) kind: u8,
    pub(crate) code: u8,
    /// Second word: the MTU, where that is what it is about.
    pub(crate) value: u32,
    /// The packet it is about, from its IP header on, or the beginning of it.
    pub(crate) quote: Vec<u8>,
}

/// An error as it was on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parsed {
    pub(crate) from: Mac,
    pub(crate) to: Mac,
    pub(crate) ttl: u8,
    pub(crate) error: IcmpError,
}

/// Types and codes that errors about flows have: unreachable, too big, time exceeded and so on.
pub(crate) fn kinds(family: Family) -> &'static [(u8, u8)] {
    match family {
        V4 => &[(3, 0), (3, 1), (3, 3), (3, 4), (11, 0), (11, 1), (12, 0)],
        V6 => &[(1, 0), (1, 4), (2, 0), (3, 0), (3, 1), (4, 0)],
    }
}

/// Port unreachable: what an end says that has no such port.
pub(crate) const fn port_unreachable(family: Family) -> (u8, u8) {
    match family {
        V4 => (3, 3),
        V6 => (1, 4),
    }
}

/// Fragmentation needed, or packet too big.
pub(crate) const fn too_big(family: Family) -> (u8, u8) {
    match family {
        V4 => (3, 4),
        V6 => (2, 0),
    }
}

/// Time exceeded, on the way.
pub(crate) const fn expired(family: Family) -> (u8, u8) {
    match family {
        V4 => (11, 0),
        V6 => (3, 0),
    }
}

/// A packet of `tuple` from its IP header on, cut off `l4_bytes` behind that.
pub(crate) fn quote(tuple: &Tuple, ttl: u8, payload: &[u8], l4_bytes: usize) -> Vec<u8> {
    let mut packet = frame::build([2; 6], [4; 6], tuple, ttl, payload).split_off(14);
    let l3 = if tuple.source.is_ipv4() { 20 } else { 40 };
    packet.truncate(l4_bytes.saturating_add(l3));
    packet
}

impl IcmpError {
    /// What `source` tells the sender of a packet of `tuple`.
    pub(crate) fn about(
        tuple: &Tuple,
        source: IpAddr,
        (kind, code): (u8, u8),
        quote: Vec<u8>,
    ) -> Self {
        let v4 = source.is_ipv4();
        let about_mtu = (v4, kind, code) == (true, 3, 4) || (v4, kind) == (false, 2);
        Self {
            source,
            destination: tuple.source,
            kind,
            code,
            value: if about_mtu { 1300 } else { 0 },
            quote,
        }
    }

    /// The frame.
    pub(crate) fn frame(&self, from: Mac, to: Mac, ttl: u8) -> Vec<u8> {
        let link = PacketBuilder::ethernet2(from, to);
        let value = self.value.to_be_bytes();
        let mut bytes = Vec::new();
        let written = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => link
                .ipv4(source.octets(), destination.octets(), ttl)
                .icmpv4_raw(self.kind, self.code, value)
                .write_to_vec(&mut bytes, &self.quote),
            (IpAddr::V6(source), IpAddr::V6(destination)) => link
                .ipv6(source.octets(), destination.octets(), ttl)
                .icmpv6_raw(self.kind, self.code, value)
                .write_to_vec(&mut bytes, &self.quote),
            mixed => panic!("{mixed:?}"),
        };
        written.unwrap();
        bytes
    }
}

/// Takes an error apart.
///
/// # Panics
///
/// Where it is none, a checksum or a length is wrong, outside or in what is quoted.
pub(crate) fn parse(bytes: &[u8]) -> Parsed {
    let (link, rest) = Ethernet2Header::from_slice(bytes).unwrap();
    let (source, destination, ttl, message, pseudo) = if link.ether_type.0 == 0x0800 {
        let (ip, message) = Ipv4Header::from_slice(rest).unwrap();
        assert_eq!(ip.header_checksum, ip.calc_header_checksum());
        assert_eq!(usize::from(ip.total_len), rest.len());
        assert_eq!((ip.header_len(), ip.protocol), (20, IpNumber::ICMP));
        let ends = (ip.source.into(), ip.destination.into());
        let none = Sum16BitWords::new();
        (ends.0, ends.1, ip.time_to_live, message, none)
    } else {
        let (ip, message) = Ipv6Header::from_slice(rest).unwrap();
        assert_eq!(usize::from(ip.payload_length), message.len());
        assert_eq!(ip.next_header, IpNumber::IPV6_ICMP);
        let pseudo = Sum16BitWords::new()
            .add_16bytes(ip.source)
            .add_16bytes(ip.destination)
            .add_4bytes(u32::from(ip.payload_length).to_be_bytes())
            .add_2bytes([0, 58]);
        let ends = (IpAddr::from(ip.source), IpAddr::from(ip.destination));
        (ends.0, ends.1, ip.hop_limit, message, pseudo)
    };
    let sum = pseudo.add_slice(message).ones_complement();
    assert_eq!(sum, 0, "checksum of the error");
    let error = IcmpError {
        source,
        destination,
        kind: message[0],
        code: message[1],
        value: u32::from_be_bytes(message[4..8].try_into().unwrap()),
        quote: message[8..].to_vec(),
    };
    assert!(
        source.is_ipv6() || matches!(error.kind, 3 | 11 | 12),
        "no error"
    );
    assert!(source.is_ipv4() || error.kind < 128, "no error");
    verify_quote(&error.quote);
    Parsed {
        from: link.source,
        to: link.destination,
        ttl,
        error,
    }
}

/// Verifies the checksums of a quoted packet: of the IPv4 header, and of what that carries if all
/// of it is there.
fn verify_quote(quote: &[u8]) {
    let whole = if quote[0] >> 4 == 4 {
        let (ip, _) = Ipv4Header::from_slice(quote).unwrap();
        assert_eq!(
            ip.header_checksum,
            ip.calc_header_checksum(),
            "quoted header"
        );
        usize::from(ip.total_len) == quote.len()
    } else {
        let (ip, rest) = Ipv6Header::from_slice(quote).unwrap();
        usize::from(ip.payload_length) == rest.len()
    };
    if !whole {
        return;
    }
    let packet = PacketHeaders::from_ip_slice(quote).unwrap();
    let found = packet.transport.unwrap();
    let mut right = found.clone();
    let payload = packet.payload.slice();
    let net = packet.net.unwrap();
    match (net.ipv4_ref(), net.ipv6_ref()) {
        (Some((ip, _)), _) => right.update_checksum_ipv4(ip, payload).unwrap(),
        (_, Some((ip, _))) => right.update_checksum_ipv6(ip, payload).unwrap(),
        _ => panic!("{net:?}"),
    }
    let none = matches!(&found, TransportHeader::Udp(udp) if udp.checksum == 0);
    assert!(none || found == right, "quoted {found:?}, not {right:?}");
}
