//! Bytes to [`Headers`].

use zerocopy::network_endian::U16;

use crate::abi::addr::Addr;
use crate::abi::flow::{FlowKey, scope};
use crate::packet::{ETHERNET_LEN, Family, Frame, Headers, Kind, MAX_L4_OFFSET, Packet, Part};
use crate::verdict::DropReason;
use crate::wire::ethernet::{self, Ethernet};
use crate::wire::ip::{Extension, FragmentHeader, Ipv4, Ipv6, protocol};
use crate::wire::transport::{Icmp, Ports, Tcp, Udp, icmp, icmpv6};

/// IPv6 extension headers that are walked before a packet is given up on.
const MAX_EXTENSIONS: usize = 6;

/// Parses the frame. One of a VLAN belongs to the VLAN's own interface, and is none of ours here; one
/// under a priority alone is what it would be without.
///
/// # Errors
///
/// [`DropReason::InvalidPacket`] for headers cut short or contradicting themselves,
/// [`DropReason::UnknownL4`] for ICMP of the other family, [`DropReason::UnsupportedL2`] for what is
/// not looked at under a priority: another tag, which the stack would take off, too.
#[inline(always)]
pub fn frame<P: Packet>(pkt: &P, hdr: &mut Headers) -> Result<Frame, DropReason> {
    let tagged = pkt.is_tagged();
    if tagged && !pkt.is_priority_tagged() {
        return Ok(Frame::Other);
    }
    match at(pkt, 0, hdr)? {
        Frame::Other if tagged => Err(DropReason::UnsupportedL2),
        frame => Ok(frame),
    }
}

/// Parses the frame that begins at `start`: inside a tunnel packet, that is.
///
/// # Errors
///
/// As [`frame`].
#[inline(always)]
pub fn at<P: Packet>(pkt: &P, start: u16, hdr: &mut Headers) -> Result<Frame, DropReason> {
    let header: Ethernet = pkt.read(start)?;
    hdr.length = pkt.len();
    hdr.l3 = start + ETHERNET_LEN;
    hdr.source_mac = header.source.into();
    match header.ether_type.get() {
        ethernet::IPV4 => ipv4(pkt, hdr)?,
        ethernet::IPV6 => ipv6(pkt, hdr)?,
        ethernet::ARP => return Ok(Frame::Arp),
        _ => return Ok(Frame::Other),
    }
    Ok(Frame::Ip)
}

#[inline(always)]
fn ipv4<P: Packet>(pkt: &P, hdr: &mut Headers) -> Result<(), DropReason> {
    let ip: Ipv4 = pkt.read(hdr.l3)?;
    // Also of what cannot be understood it is known who it says that it is from.
    hdr.key.source = Addr::from_v4_bytes(ip.source);
    hdr.key.destination = Addr::from_v4_bytes(ip.destination);
    let total_len = ip.total_len.get();
    if ip.version_ihl >> 4 != 4
        || ip.header_len() < 20
        || total_len < ip.header_len()
        || u32::from(hdr.l3) + u32::from(total_len) > hdr.length
    {
        return Err(DropReason::InvalidPacket);
    }
    hdr.part = part(ip.fragment_offset(), ip.more_fragments());
    hdr.key.set_protocol(ip.protocol, scope::PATH);
    hdr.ip_len = total_len;
    hdr.l4 = hdr.l3 + ip.header_len();
    hdr.family = Family::V4;
    hdr.ttl = ip.ttl;
    let length = total_len - ip.header_len();
    if hdr.part != Part::Whole {
        let [high, low] = ip.id.to_bytes();
        hdr.fragment_id = [high, low, 0, 0];
        piece(
            hdr,
            length,
            ip.fragment_offset(),
            ip.more_fragments(),
            ip.header_len(),
        )?;
    }
    transport(pkt, hdr, length)
}

/// Smallest first fragment, bytes of what is cut: what the smallest link leaves behind a header
/// without options, 68 bytes (RFC 791, section 3.2). A fragment that follows may be smaller though
/// others follow it, where it was cut once more on its way.
const MIN_FIRST_LEN: u16 = 48;

/// Longest transport header that is looked at, bytes: TCP without options.
const MIN_HEADER_LEN: u16 = 20;

/// Enters which part of a packet a fragment is: `length` bytes at `offset`, in units of eight,
/// behind headers of `before` bytes that count into the length of the whole.
#[inline(always)]
fn piece(
    hdr: &mut Headers,
    length: u16,
    offset: u16,
    more: bool,
    before: u16,
) -> Result<(), DropReason> {
    hdr.piece_at = offset;
    hdr.piece_len = length;
    hdr.more = more;
    let end = u32::from(before) + u32::from(offset) * 8 + u32::from(length);
    if length == 0 || more && length & 7 != 0 || end > 0xffff {
        return Err(DropReason::InvalidPacket);
    }
    // What would be put over the header of the first one is an attack (RFC 3128).
    let in_header = offset != 0 && offset < 3 && hdr.key.protocol == protocol::TCP;
    if in_header || offset == 0 && length < MIN_FIRST_LEN {
        return Err(DropReason::FragmentTooSmall);
    }
    Ok(())
}

/// The part of a packet that lies at `offset`.
#[inline(always)]
const fn part(offset: u16, more: bool) -> Part {
    match (offset, more) {
        (0, false) => Part::Whole,
        (0, true) => Part::First,
        _ => Part::Later,
    }
}

#[inline(always)]
fn ipv6<P: Packet>(pkt: &P, hdr: &mut Headers) -> Result<(), DropReason> {
    let ip: Ipv6 = pkt.read(hdr.l3)?;
    hdr.key.source = Addr::from_words(zerocopy::transmute!(ip.source));
    hdr.key.destination = Addr::from_words(zerocopy::transmute!(ip.destination));
    let mut remaining = ip.payload_len.get();
    if ip.version() != 6 || u32::from(hdr.l3) + 40 + u32::from(remaining) > hdr.length {
        return Err(DropReason::InvalidPacket);
    }
    let mut l4 = hdr.l3 + 40;
    let mut next = ip.next_header;
    let mut field = 0;
    let mut cut = 0;
    hdr.part = Part::Whole;
    for _ in 0..MAX_EXTENSIONS {
        if l4 > MAX_L4_OFFSET {
            return Err(DropReason::InvalidPacket);
        }
        match next {
            protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION => {
                let extension: Extension = pkt.read(l4)?;
                let length = (u16::from(extension.length) + 1) * 8;
                remaining = remaining
                    .checked_sub(length)
                    .ok_or(DropReason::InvalidPacket)?;
                l4 += length;
                next = extension.next_header;
            }
            // There is one at most, and what it says of a whole packet is nothing (RFC 6946).
            protocol::FRAGMENT if hdr.part == Part::Whole => {
                let header: FragmentHeader = pkt.read(l4)?;
                hdr.fragment_at = l4;
                remaining = remaining.checked_sub(8).ok_or(DropReason::InvalidPacket)?;
                l4 += 8;
                next = header.next_header;
                field = header.offset.get();
                hdr.part = part(field >> 3, field & 1 != 0);
                hdr.fragment_id = header.id;
                cut = remaining;
                if hdr.part == Part::Later {
                    break;
                }
            }
            _ => break,
        }
    }
    // Its receiver may walk on where we gave up. Whoever is allowed all protocols would have what a
    // rule denies at a port let through as one without ports.
    if hdr.part != Part::Later && is_extension(next) {
        return Err(DropReason::InvalidPacket);
    }
    // A mapped address on the wire would be taken for IPv4 everywhere else.
    if hdr.key.source.is_v4() || hdr.key.destination.is_v4() {
        return Err(DropReason::Martian);
    }
    hdr.key.set_protocol(next, scope::PATH);
    hdr.ip_len = ip.payload_len.get().saturating_add(40);
    hdr.l4 = l4;
    hdr.family = Family::V6;
    hdr.ttl = ip.hop_limit;
    if hdr.part != Part::Whole {
        let before = hdr.fragment_at - hdr.l3 - 40;
        piece(hdr, cut, field >> 3, field & 1 != 0, before)?;
        // All headers are in the first one (RFC 7112).
        if hdr.part == Part::First && remaining < MIN_HEADER_LEN {
            return Err(DropReason::FragmentTooSmall);
        }
    }
    transport(pkt, hdr, remaining)
}

/// Whether a header of this number is one that is walked over.
#[inline(always)]
const fn is_extension(number: u8) -> bool {
    matches!(
        number,
        protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION | protocol::FRAGMENT
    )
}

/// Fills in what the transport header says; `length` bytes of it and its data are in the frame.
#[inline(always)]
fn transport<P: Packet>(pkt: &P, hdr: &mut Headers, length: u16) -> Result<(), DropReason> {
    if hdr.l4 > MAX_L4_OFFSET {
        return Err(DropReason::InvalidPacket);
    }
    hdr.key.set_ports(U16::ZERO, U16::ZERO);
    hdr.tcp_flags = 0;
    hdr.l4_len = 0;
    hdr.kind = Kind::Flow;
    hdr.answers = false;
    if hdr.part == Part::Later {
        return Ok(());
    }
    match (hdr.key.protocol, hdr.family) {
        (protocol::TCP, _) => {
            let tcp: Tcp = pkt.read(hdr.l4)?;
            if length < 20 || tcp.data_offset >> 4 < 5 {
                return Err(DropReason::InvalidPacket);
            }
            hdr.key.set_ports(tcp.ports.source, tcp.ports.destination);
            hdr.tcp_flags = tcp.flags;
            hdr.l4_len = (tcp.data_offset >> 4) * 4;
        }
        (protocol::UDP, _) => {
            let udp: Udp = pkt.read(hdr.l4)?;
            if length < 8 || udp.length.get() < 8 {
                return Err(DropReason::InvalidPacket);
            }
            hdr.key.set_ports(udp.ports.source, udp.ports.destination);
            hdr.l4_len = 8;
        }
        (protocol::SCTP | protocol::DCCP | protocol::UDP_LITE, _) => {
            let ports: Ports = pkt.read(hdr.l4)?;
            if length < least(hdr.key.protocol) {
                return Err(DropReason::InvalidPacket);
            }
            hdr.key.set_ports(ports.source, ports.destination);
        }
        (protocol::ICMP, Family::V4) | (protocol::ICMPV6, Family::V6) => {
            let message: Icmp = pkt.read(hdr.l4)?;
            if length < 8 {
                return Err(DropReason::InvalidPacket);
            }
            hdr.kind = icmp(&mut hdr.key, hdr.family, &message);
            hdr.answers = matches!(
                (hdr.family, message.kind),
                (Family::V4, icmp::ECHO_REPLY) | (Family::V6, icmpv6::ECHO_REPLY)
            );
        }
        (protocol::ICMP | protocol::ICMPV6, _) => return Err(DropReason::UnknownL4),
        _ => {}
    }
    Ok(())
}

/// Length of the shortest header of UDP-Lite (RFC 3828, section 3.1), SCTP (RFC 9260, section 3.1)
/// and DCCP (RFC 4340, section 5.1), bytes.
#[inline(always)]
const fn least(protocol: u8) -> u16 {
    if protocol == protocol::UDP_LITE {
        8
    } else {
        12
    }
}

/// Tells echo, which is a flow, from the rest of ICMP, which is not, and enters its identifier.
#[inline(always)]
pub(super) fn icmp(key: &mut FlowKey, family: Family, message: &Icmp) -> Kind {
    match (family, message.kind) {
        (Family::V4, icmp::ECHO_REQUEST) | (Family::V6, icmpv6::ECHO_REQUEST) => {
            key.set_ports(message.id, U16::ZERO);
            Kind::Flow
        }
        (Family::V4, icmp::ECHO_REPLY) | (Family::V6, icmpv6::ECHO_REPLY) => {
            key.set_ports(U16::ZERO, message.id);
            Kind::Flow
        }
        (Family::V4, icmp::UNREACHABLE | icmp::TIME_EXCEEDED | icmp::PARAMETER_PROBLEM)
        | (Family::V6, icmpv6::UNREACHABLE..=icmpv6::PARAMETER_PROBLEM) => Kind::IcmpError,
        (Family::V6, icmpv6::NEIGHBOUR_SOLICITATION) => Kind::NeighbourSolicitation,
        (Family::V6, icmpv6::NEIGHBOUR_ADVERTISEMENT) => Kind::NeighbourAdvertisement,
        (Family::V6, icmpv6::ROUTER_ADVERTISEMENT | icmpv6::REDIRECT) => Kind::RouterOnly,
        _ => Kind::IcmpOther,
    }
}
