//! Frames that [`forge`](crate::frame::forge) does not make: neighbour protocols, tags, and frames
//! that are wrong on purpose.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::PacketBuilder;

use crate::{
    error::{Error, Result},
    frame::Frame,
};

pub(super) type Mac = [u8; 6];

/// Everyone on the link.
pub(super) const BROADCAST: Mac = [0xff; 6];

/// EtherType of ARP.
const ARP: [u8; 2] = [0x08, 0x06];
/// Hop limit without which no neighbour discovery is believed (RFC 4861 section 7.1).
const HOP_LIMIT: u8 = 255;
/// Type of an option that is set aside for experiments (RFC 4727 section 5.1.3).
const EXPERIMENTAL_OPTION: u8 = 253;

/// An ARP packet (RFC 826) to everyone, with bytes behind it that nobody reads.
pub(super) fn arp(
    operation: u16,
    frame_source: Mac,
    sender: (Mac, Ipv4Addr),
    target: Ipv4Addr,
    trailer: &[u8],
) -> Vec<u8> {
    let [o0, o1] = operation.to_be_bytes();
    [
        &BROADCAST[..],
        &frame_source,
        &ARP,
        &[0, 1, 8, 0, 6, 4, o0, o1],
        &sender.0,
        &sender.1.octets(),
        &[0; 6],
        &target.octets(),
        trailer,
    ]
    .concat()
}

/// Reads the answer to "who has `address`": who does.
pub(super) fn arp_answer(frame: &Frame, address: Ipv4Addr) -> Option<Mac> {
    let body = frame.bytes.get(12..)?.strip_prefix(&ARP)?;
    let body = body.strip_prefix(&[0, 1, 8, 0, 6, 4, 0, 2])?;
    let (mac, rest) = body.split_first_chunk::<6>()?;
    rest.starts_with(&address.octets()).then_some(*mac)
}

/// An `ICMPv6` message of a kind that only neighbour discovery uses; `body` is what follows the
/// checksum.
pub(super) fn neighbour_discovery(
    link: (Mac, Mac),
    source: Ipv6Addr,
    destination: Ipv6Addr,
    kind: u8,
    body: &[u8],
) -> Result<Vec<u8>> {
    let (fixed, rest) = body.split_first_chunk::<4>().unwrap_or((&[0; 4], &[]));
    let step = PacketBuilder::ethernet2(link.0, link.1)
        .ipv6(source.octets(), destination.octets(), HOP_LIMIT)
        .icmpv6_raw(kind, 0, *fixed);
    let mut frame = Vec::new();
    step.write(&mut frame, rest)
        .map_err(|_| Error::FrameTooLong { bytes: body.len() })?;
    Ok(frame)
}

/// A question for the Ethernet address of `target` (RFC 4861 section 4.3).
pub(super) fn solicitation(
    source: (Mac, Ipv6Addr),
    target: Ipv6Addr,
    trailer: &[u8],
) -> Result<Vec<u8>> {
    let body = [&[0; 4][..], &target.octets(), &[1, 1], &source.0, trailer].concat();
    let [.., t13, t14, t15] = target.octets();
    // Its solicited-node group (RFC 4291 section 2.7.1), and that group's Ethernet address.
    let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, t13, t14, t15]);
    let group_mac = [0x33, 0x33, 0xff, t13, t14, t15];
    neighbour_discovery((source.0, group_mac), source.1, group, 135, &body)
}

/// Reads the answer to a solicitation for `target`: the Ethernet address in its option.
pub(super) fn advertisement(frame: &Frame, target: Ipv6Addr) -> Option<Mac> {
    const TYPE_AT: usize = 14 + 40;
    let bytes = &frame.bytes;
    let is_ipv6_icmp = bytes.get(12..14) == Some(&[0x86, 0xdd]) && bytes.get(20) == Some(&58);
    let message = bytes.get(TYPE_AT..)?;
    if !is_ipv6_icmp || message.first() != Some(&136) {
        return None;
    }
    let (_, rest) = message.split_at_checked(8)?;
    let option = rest.strip_prefix(&target.octets())?;
    option.strip_prefix(&[2, 1])?.first_chunk().copied()
}

/// A neighbour discovery option that says nothing and holds `marker`, of up to 30 bytes.
pub(super) fn marked_option(marker: &[u8]) -> Vec<u8> {
    let mut option = vec![EXPERIMENTAL_OPTION, 4];
    option.extend_from_slice(marker);
    option.resize(32, 0);
    option
}

/// Puts a tag with VLAN 5 into a frame (IEEE 802.1Q); `ether_type` is the tag's own.
pub(super) fn tagged(frame: &[u8], ether_type: u16) -> Vec<u8> {
    let (macs, rest) = frame.split_at_checked(12).unwrap_or((frame, &[]));
    [macs, &ether_type.to_be_bytes(), &[0, 5], rest].concat()
}

/// The address, which must be of IPv4.
pub(super) fn v4(address: IpAddr) -> Result<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(_) => Err(wrong_family(address, "only IPv4 has ARP")),
    }
}

/// The address, which must be of IPv6.
pub(super) fn v6(address: IpAddr) -> Result<Ipv6Addr> {
    match address {
        IpAddr::V6(address) => Ok(address),
        IpAddr::V4(_) => Err(wrong_family(address, "only IPv6 has neighbour discovery")),
    }
}

fn wrong_family(address: IpAddr, rule: &'static str) -> Error {
    Error::Invalid {
        what: "address for a frame",
        value: address.to_string(),
        rule,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Transport, verify_checksums};

    const MAC: Mac = [2, 0, 0, 0, 0, 1];

    #[test]
    fn neighbour_discovery_has_right_checksums() {
        let from = (MAC, "fd00::2".parse().unwrap());
        let target = "fd00::1".parse().unwrap();
        let frame = Frame::new(solicitation(from, target, &marked_option(b"x")).unwrap());
        let layers = verify_checksums(&frame).unwrap();
        assert_eq!(layers[0].transport, Transport::Verified);
        assert_eq!(frame.bytes.len(), 14 + 40 + 32 + 32);
        assert_eq!(advertisement(&frame, target), None);
    }

    #[test]
    fn answers_are_told_from_questions() {
        let (gateway, pod) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let question = Frame::new(arp(1, MAC, (MAC, pod), gateway, b""));
        assert_eq!(arp_answer(&question, gateway), None);
        let answer = Frame::new(arp(2, MAC, (MAC, gateway), pod, b""));
        assert_eq!(arp_answer(&answer, gateway), Some(MAC));
        assert_eq!(arp_answer(&answer, pod), None);

        let target: Ipv6Addr = "fd00::1".parse().unwrap();
        let body = [&[0x60, 0, 0, 0][..], &target.octets(), &[2, 1], &MAC].concat();
        let made = neighbour_discovery((MAC, MAC), target, target, 136, &body).unwrap();
        assert_eq!(advertisement(&Frame::new(made), target), Some(MAC));
    }

    #[test]
    fn tags_go_between_addresses_and_type() {
        let frame = [&[1; 12][..], &[8, 0], &[9; 40]].concat();
        let tagged = tagged(&frame, 0x8100);
        assert_eq!(tagged[12..18], [0x81, 0, 0, 5, 8, 0]);
        assert_eq!(tagged.len(), frame.len() + 4);
    }
}
