//! Verifies the checksums of a frame, outer and inner, without trusting whoever made it.

use std::net::IpAddr;

use etherparse::{
    NetSlice, SlicedPacket, TransportSlice, checksum::Sum16BitWords, err::packet::SliceError,
    ip_number,
};

use super::{Checksum, Frame};
use crate::family::Family;

/// UDP port of GENEVE (RFC 8926 section 3.3).
const GENEVE_PORT: u16 = 6081;
/// The inner protocol "Ethernet" of GENEVE.
const ETHERNET_INSIDE: [u8; 2] = [0x65, 0x58];

/// Verifies the checksums of the IPv4 header and of TCP, UDP, ICMP and `ICMPv6`; then, if it is
/// GENEVE, those of the frame inside.
///
/// A checksum that was left to the interface is completed first, as the interface would: it is
/// right exactly if the sum of the pseudo-header that the field holds is right. Returns what was
/// verified, the outermost packet first; nothing for a frame that holds no IP.
///
/// # Errors
///
/// The first checksum that is wrong, or [`ChecksumError::Malformed`] when the frame's lengths do
/// not fit.
pub fn verify_checksums(frame: &Frame) -> Result<Vec<Layer>, ChecksumError> {
    let mut bytes = frame.bytes.clone();
    let mut deferred = None;
    if let Checksum::Partial { start, offset } = frame.checksum {
        complete(&mut bytes, start, offset)?;
        deferred = Some(start);
    }
    let mut layers = Vec::new();
    let mut at = 0;
    while let Some(inner) = bytes.get(at..).filter(|inner| !inner.is_empty()) {
        // The checksum of a GSO frame's outer UDP header is the interface's affair too: the
        // field then holds the sum of the pseudo-header (`udp_set_csum`, net/ipv4/udp.c).
        let segmented_inside = frame.segment_bytes.is_some();
        let (layer, next) = verify_one(inner, |transport_at| {
            segmented_inside && deferred.is_some_and(|start| start > at + transport_at)
        })?;
        layers.extend(layer);
        match next {
            Some(next) => at += next,
            None => break,
        }
    }
    Ok(layers)
}

/// A packet whose checksums were verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Its family. An IPv4 header's checksum was right.
    pub family: Family,
    /// What could be said of its payload.
    pub transport: Transport,
}

/// What could be said of a packet's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Its checksum is right.
    Verified,
    /// UDP without a checksum, where that is allowed: IPv4, and tunnels on IPv6 (RFC 6936).
    Absent,
    /// A fragment: its checksum spans packets that are not here.
    Fragment,
    /// A protocol that is not looked into.
    Other,
}

/// Why a frame's checksums cannot stand.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChecksumError {
    /// The frame cannot be taken apart.
    #[error("the frame cannot be taken apart")]
    Malformed {
        /// What does not fit.
        #[source]
        source: SliceError,
    },
    /// Where to complete a checksum lies outside the frame.
    #[error(
        "the checksum to complete at {start}+{offset} lies outside the frame of {length} bytes"
    )]
    Outside {
        /// Where the sum starts, in bytes.
        start: usize,
        /// Where the field is, in bytes from there.
        offset: usize,
        /// Length of the frame in bytes.
        length: usize,
    },
    /// A checksum is wrong.
    #[error(
        "{protocol} checksum from {source_address} to {destination_address} is {found:#06x}: off by {off:#06x}"
    )]
    Wrong {
        /// Whose checksum: "IPv4 header", "TCP", ...
        protocol: &'static str,
        /// The packet's source address.
        source_address: IpAddr,
        /// The packet's destination address.
        destination_address: IpAddr,
        /// What the field holds.
        found: u16,
        /// The one's complement of the sum over everything; 0 would be right.
        off: u16,
    },
    /// UDP without a checksum on IPv6, outside a tunnel (RFC 8200 section 8.1).
    #[error(
        "UDP from {source_address} to {destination_address} has no checksum, which IPv6 does not allow"
    )]
    Missing {
        /// The packet's source address.
        source_address: IpAddr,
        /// The packet's destination address.
        destination_address: IpAddr,
    },
}

/// Sums up what the interface would, and stores it.
fn complete(bytes: &mut [u8], start: usize, offset: usize) -> Result<(), ChecksumError> {
    let outside = ChecksumError::Outside {
        start,
        offset,
        length: bytes.len(),
    };
    let Some(covered) = bytes.get_mut(start..) else {
        return Err(outside);
    };
    let sum = Sum16BitWords::new().add_slice(covered);
    // etherparse sums up words as they lie in memory, and so goes the result back.
    let value = sum.to_ones_complement_with_no_zero().to_ne_bytes();
    let field = covered
        .get_mut(offset..)
        .and_then(|rest| rest.first_chunk_mut());
    *field.ok_or(outside)? = value;
    Ok(())
}

/// Verifies the outermost packet of a frame; returns where the frame inside starts, if any.
fn verify_one(
    bytes: &[u8],
    pseudo_only: impl Fn(usize) -> bool,
) -> Result<(Option<Layer>, Option<usize>), ChecksumError> {
    let packet =
        SlicedPacket::from_ethernet(bytes).map_err(|source| ChecksumError::Malformed { source })?;
    let Some(ends) = packet.net.as_ref().and_then(Ends::of) else {
        return Ok((None, None));
    };
    if let Some(NetSlice::Ipv4(ipv4)) = &packet.net {
        let header = ipv4.header();
        let sum = Sum16BitWords::new().add_slice(header.slice());
        ends.judge("IPv4 header", header.header_checksum(), &sum)?;
    }
    let mut inside = None;
    let transport = match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let sum = ends
                .pseudo(ip_number::TCP.0, tcp.slice())
                .add_slice(tcp.slice());
            ends.judge("TCP", tcp.checksum(), &sum)?
        }
        Some(TransportSlice::Udp(udp)) => {
            let tunnel = udp.destination_port() == GENEVE_PORT;
            if tunnel {
                inside = inner_frame(udp.payload()).map(|inner| distance(bytes, inner));
            }
            match (udp.checksum(), ends.family()) {
                (0, Family::Ipv6) if !tunnel => {
                    return Err(ChecksumError::Missing {
                        source_address: ends.source,
                        destination_address: ends.destination,
                    });
                }
                (0, _) => Transport::Absent,
                (found, _) => {
                    let pseudo = ends.pseudo(ip_number::UDP.0, udp.slice());
                    let sum = if pseudo_only(distance(bytes, udp.slice())) {
                        // Adding the complement of what should be stored gives zero as well.
                        pseudo.add_2bytes((!found).to_be_bytes())
                    } else {
                        pseudo.add_slice(udp.slice())
                    };
                    ends.judge("UDP", found, &sum)?
                }
            }
        }
        Some(TransportSlice::Icmpv4(icmp)) => {
            let sum = Sum16BitWords::new().add_slice(icmp.slice());
            ends.judge("ICMP", icmp.checksum(), &sum)?
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            let pseudo = ends.pseudo(ip_number::IPV6_ICMP.0, icmp.slice());
            ends.judge("ICMPv6", icmp.checksum(), &pseudo.add_slice(icmp.slice()))?
        }
        _ if packet.is_ip_payload_fragmented() => Transport::Fragment,
        _ => Transport::Other,
    };
    let layer = Layer {
        family: ends.family(),
        transport,
    };
    Ok((Some(layer), inside))
}

/// A packet's addresses.
struct Ends {
    source: IpAddr,
    destination: IpAddr,
}

impl Ends {
    fn of(net: &NetSlice<'_>) -> Option<Self> {
        match net {
            NetSlice::Ipv4(ipv4) => Some(Self {
                source: ipv4.header().source_addr().into(),
                destination: ipv4.header().destination_addr().into(),
            }),
            NetSlice::Ipv6(ipv6) => Some(Self {
                source: ipv6.header().source_addr().into(),
                destination: ipv6.header().destination_addr().into(),
            }),
            NetSlice::Arp(_) => None,
        }
    }

    fn family(&self) -> Family {
        Family::of(self.source)
    }

    /// Sums up the pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1).
    fn pseudo(&self, protocol: u8, segment: &[u8]) -> Sum16BitWords {
        let mut sum = Sum16BitWords::new();
        for address in [self.source, self.destination] {
            sum = match address {
                IpAddr::V4(address) => sum.add_4bytes(address.octets()),
                IpAddr::V6(address) => sum.add_16bytes(address.octets()),
            };
        }
        // The sum is the same for IPv4's 16-bit length: the upper half is zero.
        let length = u32::try_from(segment.len()).unwrap_or(u32::MAX);
        sum.add_4bytes(length.to_be_bytes())
            .add_2bytes([0, protocol])
    }

    fn judge(
        &self,
        protocol: &'static str,
        found: u16,
        sum: &Sum16BitWords,
    ) -> Result<Transport, ChecksumError> {
        match sum.ones_complement() {
            0 => Ok(Transport::Verified),
            off => Err(ChecksumError::Wrong {
                protocol,
                source_address: self.source,
                destination_address: self.destination,
                found,
                off: u16::from_be(off),
            }),
        }
    }
}

/// Finds the Ethernet frame in a GENEVE packet (RFC 8926 section 3.4).
fn inner_frame(geneve: &[u8]) -> Option<&[u8]> {
    let (header, rest) = geneve.split_first_chunk::<8>()?;
    let [first, _, p0, p1, ..] = *header;
    let (version, options) = (first >> 6, usize::from(first & 0x3f) * 4);
    let ours = version == 0 && [p0, p1] == ETHERNET_INSIDE;
    ours.then(|| rest.get(options..)).flatten()
}

/// Returns where a part of a slice starts in it.
fn distance(whole: &[u8], part: &[u8]) -> usize {
    part.as_ptr().addr().saturating_sub(whole.as_ptr().addr())
}

#[cfg(test)]
mod tests;
