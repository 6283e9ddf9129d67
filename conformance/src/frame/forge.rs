//! Frames made from scratch, honest or forged, with right checksums.
//!
//! Whatever is to be wrong is made wrong afterwards, in the bytes. For headers that are not
//! here, use `etherparse::PacketBuilder` directly.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    IpHeaders, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, PacketBuilder, PacketBuilderStep,
    err::packet::BuildWriteError,
};

use crate::error::{Error, Result};

/// The TTL or hop limit of every packet that is made here.
const HOP_LIMIT: u8 = 64;

/// One end of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// Its IP address and port; both ends have the same family. ICMP has no use for the port.
    pub address: SocketAddr,
}

/// Makes a UDP packet.
///
/// # Errors
///
/// [`Error::FrameTooLong`] above what the length fields can say, [`Error::Invalid`] when the
/// ends differ in family.
pub fn udp(from: Place, to: Place, payload: &[u8]) -> Result<Vec<u8>> {
    let step = ip(from, to)?.udp(from.address.port(), to.address.port());
    write(payload, |frame| step.write(frame, payload))
}

/// Makes a TCP packet that opens a connection, with a payload if there is one.
///
/// # Errors
///
/// As [`udp`].
pub fn tcp_syn(from: Place, to: Place, payload: &[u8]) -> Result<Vec<u8>> {
    const SEQUENCE: u32 = 0x1000_0000;
    const WINDOW: u16 = 64_240;

    let step = ip(from, to)?
        .tcp(from.address.port(), to.address.port(), SEQUENCE, WINDOW)
        .syn();
    write(payload, |frame| step.write(frame, payload))
}

/// Makes an echo request (ping) with this identifier and sequence number 1.
///
/// # Errors
///
/// As [`udp`].
pub fn echo_request(from: Place, to: Place, identifier: u16, payload: &[u8]) -> Result<Vec<u8>> {
    let step = ip(from, to)?;
    if from.address.is_ipv4() {
        let step = step.icmpv4_echo_request(identifier, 1);
        write(payload, |frame| step.write(frame, payload))
    } else {
        let step = step.icmpv6_echo_request(identifier, 1);
        write(payload, |frame| step.write(frame, payload))
    }
}

/// Makes the payload of a UDP packet to port 6081: a GENEVE header (RFC 8926 section 3.4), its
/// options, and an Ethernet frame.
///
/// `vni` has 24 bits, the rest is cut off; the length of `options` is rounded down to whole
/// words of four bytes, at most 63.
///
/// ```text
/// ver 2 | options 6 | O C rsvd 6 | protocol 16 | VNI 24 | reserved 8 | options | inner frame
/// ```
#[must_use]
pub fn geneve(vni: u32, options: &[u8], inner: &[u8]) -> Vec<u8> {
    let words = u8::try_from(options.len() / 4).unwrap_or(u8::MAX).min(63);
    let options = options.get(..usize::from(words) * 4).unwrap_or_default();
    let [_, v0, v1, v2] = vni.to_be_bytes();
    let header = [words, 0, 0x65, 0x58, v0, v1, v2, 0];
    [&header, options, inner].concat()
}

fn ip(from: Place, to: Place) -> Result<PacketBuilderStep<IpHeaders>> {
    // The builder fills in lengths, protocol and checksum.
    let headers = match (from.address.ip(), to.address.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let header = Ipv4Header {
                source: source.octets(),
                destination: destination.octets(),
                time_to_live: HOP_LIMIT,
                ..Ipv4Header::default()
            };
            IpHeaders::Ipv4(header, etherparse::Ipv4Extensions::default())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let header = Ipv6Header {
                traffic_class: 0,
                flow_label: Ipv6FlowLabel::ZERO,
                payload_length: 0,
                next_header: IpNumber::UDP,
                hop_limit: HOP_LIMIT,
                source: source.octets(),
                destination: destination.octets(),
            };
            IpHeaders::Ipv6(header, etherparse::Ipv6Extensions::default())
        }
        (source, destination) => {
            return Err(Error::Invalid {
                what: "addresses of a packet",
                value: format!("{source} to {destination}"),
                rule: "both ends have the same family",
            });
        }
    };
    Ok(PacketBuilder::ethernet2(from.mac, to.mac).ip(headers))
}

fn write(
    payload: &[u8],
    step: impl FnOnce(&mut Vec<u8>) -> Result<(), BuildWriteError>,
) -> Result<Vec<u8>> {
    let mut frame = Vec::with_capacity(payload.len() + 128);
    match step(&mut frame) {
        Ok(()) => Ok(frame),
        // Writing into memory does not fail: what is left is a payload beyond a length field.
        Err(_) => Err(Error::FrameTooLong {
            bytes: payload.len(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_different_families_and_long_payloads_are_refused() {
        let v4 = Place {
            mac: [2; 6],
            address: "192.0.2.1:1".parse().unwrap(),
        };
        let v6 = Place {
            address: "[2001:db8::1]:1".parse().unwrap(),
            ..v4
        };
        assert!(matches!(udp(v4, v6, b""), Err(Error::Invalid { .. })));
        let long = vec![0; 70_000];
        for place in [v4, v6] {
            let made = udp(place, place, &long);
            assert!(matches!(made, Err(Error::FrameTooLong { bytes: 70_000 })));
        }
    }

    #[test]
    fn geneve_keeps_its_fields_apart() {
        let bytes = geneve(0xff12_3456, &[1, 2, 3, 4, 5], &[9, 9]);
        assert_eq!(
            bytes,
            [1, 0, 0x65, 0x58, 0x12, 0x34, 0x56, 0, 1, 2, 3, 4, 9, 9]
        );
    }
}
