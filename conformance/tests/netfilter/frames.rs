//! Packets as frames, and what of a frame two translators must agree on.

use std::net::IpAddr;

use datapath_conformance::frame::{Frame, verify_checksums};
use datapath_kern::abi::Mac;
use etherparse::{Ipv4HeaderSlice, PacketBuilder, TcpHeader};

use crate::traffic::{ACK, About, Conversation, FIN, Kind, PSH, Protocol, RST, SYN};

const ETHERNET: usize = 14;

/// Addresses of a packet of a conversation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    pub(crate) macs: (Mac, Mac),
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// Ports; of echo, the first that is not zero is the identifier.
    pub(crate) ports: (u16, u16),
}

/// A frame; an echo is an answer where it says so.
pub(crate) fn build(ends: &Ends, kind: Kind, answer: bool, quote: &[u8]) -> Vec<u8> {
    let link = PacketBuilder::ethernet2(ends.macs.0, ends.macs.1);
    let v4 = ends.source.is_ipv4();
    let ip = match (ends.source, ends.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            link.ipv4(source.octets(), destination.octets(), 64)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            link.ipv6(source.octets(), destination.octets(), 64)
        }
        mixed => panic!("{mixed:?}"),
    };
    let mut bytes = Vec::new();
    let (from, to) = ends.ports;
    let written = match kind {
        Kind::Tcp(flags, seq, ack, length) => {
            let mut tcp = TcpHeader::new(from, to, seq, 0x7fff);
            tcp.acknowledgment_number = ack;
            tcp.fin = flags & FIN != 0;
            tcp.syn = flags & SYN != 0;
            tcp.rst = flags & RST != 0;
            tcp.psh = flags & PSH != 0;
            tcp.ack = flags & ACK != 0;
            ip.tcp_header(tcp).write(&mut bytes, &vec![0x61; length])
        }
        Kind::Udp(length) => ip.udp(from, to).write(&mut bytes, &vec![0x62; length]),
        Kind::Echo { .. } => {
            let id = if from == 0 { to } else { from };
            match (v4, answer) {
                (true, false) => ip.icmpv4_echo_request(id, 1).write(&mut bytes, b"echo"),
                (true, true) => ip.icmpv4_echo_reply(id, 1).write(&mut bytes, b"echo"),
                (false, false) => ip.icmpv6_echo_request(id, 1).write(&mut bytes, b"echo"),
                (false, true) => ip.icmpv6_echo_reply(id, 1).write(&mut bytes, b"echo"),
            }
        }
        // Port unreachable.
        Kind::Error(_) if v4 => ip.icmpv4_raw(3, 3, [0; 4]).write(&mut bytes, quote),
        Kind::Error(_) => ip.icmpv6_raw(1, 4, [0; 4]).write(&mut bytes, quote),
    };
    written.unwrap();
    bytes
}

/// What an error quotes of a frame.
pub(crate) fn quote(frame: &[u8], protocol: Protocol, about: About) -> Vec<u8> {
    let mut packet = frame[ETHERNET..].to_vec();
    let l4 = l4_at(&packet);
    match about {
        About::Live(bytes) => packet.truncate(l4.saturating_add(bytes)),
        About::Nobody => {
            // Of the sender's end: there the receiver of the error is found.
            let at = l4 + if protocol == Protocol::Echo { 4 } else { 0 };
            packet[at] ^= 0x15;
            packet.truncate(l4 + 8);
        }
        About::SomebodyElse => {
            let last = if packet[0] >> 4 == 4 { 19 } else { 39 };
            packet[last] ^= 0x0f;
            packet.truncate(l4 + 8);
            seal(&mut packet);
        }
    }
    packet
}

/// The packet without what may differ: identification, checksums, and of a translated port all but
/// whether it was kept. `port_is_of` the sender, or of the receiver of the packet within an error.
pub(crate) fn canonical(
    frame: &[u8],
    flow: &Conversation,
    kind: Kind,
    to_outside: bool,
) -> Vec<u8> {
    let mut packet = frame[ETHERNET..].to_vec();
    let l4 = l4_at(&packet);
    clear_header(&mut packet);
    if let Kind::Error(_) = kind {
        packet[l4 + 2..l4 + 4].fill(0);
        let inner = &mut packet[l4 + 8..];
        let inner_l4 = l4_at(inner);
        clear_header(inner);
        clear_checksum(&mut inner[inner_l4..], flow.protocol);
        if to_outside {
            // The quoted packet was for the inside.
            let at = if flow.protocol == Protocol::Echo {
                4
            } else {
                2
            };
            keep_or_not(&mut inner[inner_l4 + at..], flow.port);
        }
    } else {
        clear_checksum(&mut packet[l4..], flow.protocol);
        if to_outside {
            let at = if flow.protocol == Protocol::Echo {
                4
            } else {
                0
            };
            keep_or_not(&mut packet[l4 + at..], flow.port);
        }
    }
    packet
}

/// The port that the inside has outside, of a packet that left.
pub(crate) fn outside_port(frame: &[u8], protocol: Protocol) -> u16 {
    let l4 = ETHERNET + l4_at(&frame[ETHERNET..]);
    let at = l4 + if protocol == Protocol::Echo { 4 } else { 0 };
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

/// The port that a packet for the inside is for.
pub(crate) fn inside_port(frame: &[u8], protocol: Protocol) -> u16 {
    let l4 = ETHERNET + l4_at(&frame[ETHERNET..]);
    let at = l4 + if protocol == Protocol::Echo { 4 } else { 2 };
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

/// Source and destination.
pub(crate) fn addresses(frame: &[u8]) -> (IpAddr, IpAddr) {
    let packet = &frame[ETHERNET..];
    if packet[0] >> 4 == 4 {
        let ip = Ipv4HeaderSlice::from_slice(packet).unwrap();
        (ip.source_addr().into(), ip.destination_addr().into())
    } else {
        let octets = |at: usize| <[u8; 16]>::try_from(&packet[at..at + 16]).unwrap();
        (octets(8).into(), octets(24).into())
    }
}

/// Asserts that every checksum is right.
pub(crate) fn verify(frame: &[u8]) {
    let layers = verify_checksums(&Frame::new(frame.to_vec()));
    layers.unwrap_or_else(|error| panic!("{error}: {frame:02x?}"));
}

/// Whether it is a packet of ours and not of the kernel's own.
pub(crate) fn is_ip(frame: &[u8]) -> bool {
    frame.len() > ETHERNET + 20
        && matches!(frame[12..14], [0x08, 0x00] | [0x86, 0xdd])
        && frame[0] & 1 == 0
}

fn l4_at(packet: &[u8]) -> usize {
    if packet[0] >> 4 == 4 { 20 } else { 40 }
}

fn clear_header(packet: &mut [u8]) {
    if packet[0] >> 4 == 4 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
}

fn clear_checksum(l4: &mut [u8], protocol: Protocol) {
    let at = match protocol {
        Protocol::Tcp => 16,
        Protocol::Udp => 6,
        Protocol::Echo => 2,
    };
    if let Some(field) = l4.get_mut(at..at + 2) {
        field.fill(0);
    }
}

fn keep_or_not(field: &mut [u8], port: u16) {
    let kept = field[..2] == port.to_be_bytes();
    field[..2].copy_from_slice(&[0, u8::from(kept)]);
}

fn seal(packet: &mut [u8]) {
    if packet[0] >> 4 == 4 {
        let ip = Ipv4HeaderSlice::from_slice(packet).unwrap().to_header();
        packet[10..12].copy_from_slice(&ip.calc_header_checksum().to_be_bytes());
    }
}
