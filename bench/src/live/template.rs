//! The frames of many flows, which differ in their source port and the end of their destination.

use std::net::{IpAddr, SocketAddr};

use datapath_conformance::frame::forge::{self, Place};
use etherparse::{IpHeaders, Ipv4Header, Ipv6FlowLabel, Ipv6Header, PacketBuilder};

use crate::error::{Error, Result};

/// Bytes of UDP payload. No probe of the lab is as long, so that a sink can tell frames by their
/// length.
const PAYLOAD_BYTES: usize = 42;
/// The same of the shortest frame of Ethernet, without the four bytes of its checksum.
const SHORT_PAYLOAD_BYTES: usize = 18;
/// Bytes of an Ethernet header.
const ETHERNET_BYTES: usize = 14;
/// Bytes of a UDP header.
const UDP_BYTES: usize = 8;
/// Where the checksum is in it.
const UDP_CHECKSUM: usize = 6;
/// Port of GENEVE (RFC 8926 section 3.3).
const GENEVE_PORT: u16 = 6081;
/// The TTL or hop limit of every packet.
const HOP_LIMIT: u8 = 64;

/// What the frames of a [`Template`] are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// UDP in the shortest frame that Ethernet has: 64 bytes with its checksum, over IPv4.
    ShortUdp,
    /// UDP with 42 bytes of payload.
    Udp,
    /// TCP that opens a connection, without payload.
    TcpSyn,
}

/// A frame that stands for several flows: flow `n` has the destination `n % destinations` further
/// than the first, and the source port `n / destinations` further.
///
/// What makes up for the difference, so that one checksum is right for all of them, is in the first
/// four bytes of a datagram's payload, or in the sequence number of TCP: the complements of the port
/// and of the last 16 bits of the destination. The identification of an IPv4 header makes up for the
/// destination in the header's own checksum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    pub(super) bytes: Vec<u8>,
    /// Where the source port is.
    pub(super) port_at: usize,
    /// Where the complements are, first that of the port.
    pub(super) balance_at: usize,
    /// Where the last 16 bits of the destination are.
    pub(super) address_at: usize,
    /// Where another complement of these is, in an IPv4 header.
    pub(super) identification_at: Option<usize>,
    pub(super) first_port: u16,
    pub(super) first_address: u16,
    pub(super) flows: u32,
    pub(super) destinations: u16,
}

impl Template {
    /// Makes a UDP frame for flows to one destination. `from` has the first of the flows' source
    /// ports; there are `flows` of them, at least one, up to 65535.
    ///
    /// # Errors
    ///
    /// As [`Template::new`].
    pub fn udp(from: Place, to: Place, flows: u16) -> Result<Self> {
        let flows = flows.clamp(1, u16::MAX - from.address.port());
        Self::new(Content::Udp, from, to, flows.into(), 1)
    }

    /// Makes a segment that asks for a connection, SYN without options; `flows` as of
    /// [`Template::udp`].
    ///
    /// # Errors
    ///
    /// As [`Template::new`].
    pub fn tcp_syn(from: Place, to: Place, flows: u16) -> Result<Self> {
        let flows = flows.clamp(1, u16::MAX - from.address.port());
        Self::new(Content::TcpSyn, from, to, flows.into(), 1)
    }

    /// Makes the frame of the first of `flows` flows, which go to `destinations` in turn. `from` has
    /// the first port, `to` the first destination.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] where the ends differ in family, or where ports or destinations would run
    /// over the last that there is: 65535, and that whose last 16 bits are ones.
    pub fn new(
        content: Content,
        from: Place,
        to: Place,
        flows: u32,
        destinations: u16,
    ) -> Result<Self> {
        let first_port = from.address.port();
        let first_address = last_bits(to.address.ip());
        let last = flows.saturating_sub(1).checked_div(destinations.into());
        let last_port = last.and_then(|last| last.checked_add(first_port.into()));
        if first_address.checked_add(destinations).is_none()
            || last_port.is_none_or(|last| last > u16::MAX.into())
        {
            return Err(Error::Invalid {
                what: "flows of a template",
                value: format!(
                    "{flows} from {} to {destinations} from {} on",
                    from.address, to.address
                ),
                rule: "ports end at 65535, and destinations where their last 16 bits do",
            });
        }
        let bytes = frame(content, from, to)?;
        let v4 = to.address.is_ipv4();
        let port_at = ETHERNET_BYTES + if v4 { 20 } else { 40 };
        Ok(Self {
            port_at,
            balance_at: port_at
                + if content == Content::TcpSyn {
                    4
                } else {
                    UDP_BYTES
                },
            address_at: port_at - 2,
            identification_at: v4.then_some(ETHERNET_BYTES + 4),
            first_port,
            first_address,
            flows: flows.max(1),
            destinations,
            bytes,
        })
    }

    /// Puts it into a tunnel packet from one node's address to another's, without a checksum of
    /// its own, as the datapath sends them.
    ///
    /// # Errors
    ///
    /// As [`Template::udp`].
    pub fn in_tunnel(
        self,
        vni: u32,
        from: ([u8; 6], IpAddr),
        to: ([u8; 6], IpAddr),
    ) -> Result<Self> {
        let end = |(mac, address), port| Place {
            mac,
            address: SocketAddr::new(address, port),
        };
        let payload = forge::geneve(vni, &[], &self.bytes);
        let mut bytes = forge::udp(end(from, 50_000), end(to, GENEVE_PORT), &payload)?;
        let before = bytes.len().saturating_sub(self.bytes.len());
        let checksum_at = bytes
            .len()
            .saturating_sub(payload.len() + UDP_BYTES - UDP_CHECKSUM);
        if let Some(checksum) = bytes.get_mut(checksum_at..checksum_at + 2) {
            checksum.fill(0);
        }
        Ok(Self {
            port_at: self.port_at + before,
            balance_at: self.balance_at + before,
            address_at: self.address_at + before,
            identification_at: self.identification_at.map(|at| at + before),
            bytes,
            ..self
        })
    }

    /// Length of the frame, with its Ethernet header.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a frame is never empty")]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The source ports of its flows.
    pub fn ports(&self) -> impl Iterator<Item = u16> + use<> {
        let ports = self.flows.div_ceil(self.destinations.into());
        let ports = u16::try_from(ports).unwrap_or(u16::MAX);
        self.first_port..self.first_port.saturating_add(ports)
    }

    pub(super) fn is_v4(&self) -> bool {
        self.identification_at.is_some()
    }

    /// How many flows it stands for.
    #[must_use]
    pub fn flows(&self) -> u32 {
        self.flows
    }
}

/// Makes the frame of the first flow.
fn frame(content: Content, from: Place, to: Place) -> Result<Vec<u8>> {
    let balances =
        [from.address.port(), last_bits(to.address.ip())].map(|half| (!half).to_be_bytes());
    let [[b0, b1], [b2, b3]] = balances;
    let protocol = etherparse::IpNumber::UDP;
    let headers = match (from.address.ip(), to.address.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let header = Ipv4Header {
                source: source.octets(),
                destination: destination.octets(),
                time_to_live: HOP_LIMIT,
                identification: u16::from_be_bytes([b2, b3]),
                protocol,
                ..Ipv4Header::default()
            };
            IpHeaders::Ipv4(header, etherparse::Ipv4Extensions::default())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let header = Ipv6Header {
                traffic_class: 0,
                flow_label: Ipv6FlowLabel::ZERO,
                payload_length: 0,
                next_header: protocol,
                hop_limit: HOP_LIMIT,
                source: source.octets(),
                destination: destination.octets(),
            };
            IpHeaders::Ipv6(header, etherparse::Ipv6Extensions::default())
        }
        _ => {
            return Err(Error::Invalid {
                what: "ends of a frame",
                value: format!("{} and {}", from.address, to.address),
                rule: "both have the same family",
            });
        }
    };
    let step = PacketBuilder::ethernet2(from.mac, to.mac).ip(headers);
    let (source, destination) = (from.address.port(), to.address.port());
    let mut payload = match content {
        Content::ShortUdp => vec![0x5a; SHORT_PAYLOAD_BYTES],
        Content::Udp => vec![0x5a; PAYLOAD_BYTES],
        Content::TcpSyn => Vec::new(),
    };
    for (byte, balance) in payload.iter_mut().zip([b0, b1, b2, b3]) {
        *byte = balance;
    }
    let mut bytes = Vec::new();
    let written = match content {
        Content::ShortUdp | Content::Udp => {
            step.udp(source, destination).write(&mut bytes, &payload)
        }
        Content::TcpSyn => {
            let sequence = u32::from_be_bytes([b0, b1, b2, b3]);
            let step = step.tcp(source, destination, sequence, 64_240).syn();
            step.write(&mut bytes, &payload)
        }
    };
    written.map_err(|source| Error::Frame {
        source: Box::new(source),
    })?;
    Ok(bytes)
}

fn last_bits(address: IpAddr) -> u16 {
    let (high, low) = match address {
        IpAddr::V4(address) => {
            let [.., high, low] = address.octets();
            (high, low)
        }
        IpAddr::V6(address) => {
            let [.., high, low] = address.octets();
            (high, low)
        }
    };
    u16::from_be_bytes([high, low])
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;

    fn ends(v6: bool) -> (Place, Place) {
        let (from, to) = if v6 {
            ("[fd00::1]:20000", "[fd00::2]:7")
        } else {
            ("10.0.0.1:20000", "10.0.0.2:7")
        };
        let place = |text: &str, mac| Place {
            mac: [mac; 6],
            address: text.parse().unwrap(),
        };
        (place(from, 2), place(to, 4))
    }

    /// Whether the checksums of the transport header, and of an IPv4 header, are right.
    fn checksums_are_right(bytes: &[u8]) -> bool {
        let packet = SlicedPacket::from_ethernet(bytes).unwrap();
        let sums = |v4: Option<&Ipv4Header>, v6: Option<&Ipv6Header>| match &packet.transport {
            Some(TransportSlice::Udp(udp)) => {
                let (header, payload) = (udp.to_header(), udp.payload());
                let sum = v4.map(|ip| header.calc_checksum_ipv4(ip, payload));
                let sum = sum.or_else(|| v6.map(|ip| header.calc_checksum_ipv6(ip, payload)));
                sum.unwrap().unwrap() == header.checksum
            }
            Some(TransportSlice::Tcp(tcp)) => {
                let (header, payload) = (tcp.to_header(), tcp.payload());
                let sum = v4.map(|ip| header.calc_checksum_ipv4(ip, payload));
                let sum = sum.or_else(|| v6.map(|ip| header.calc_checksum_ipv6(ip, payload)));
                sum.unwrap().unwrap() == header.checksum
            }
            _ => panic!("neither UDP nor TCP in {bytes:?}"),
        };
        match &packet.net {
            Some(NetSlice::Ipv4(ip)) => {
                let header = ip.header().to_header();
                header.header_checksum == header.calc_header_checksum() && sums(Some(&header), None)
            }
            Some(NetSlice::Ipv6(ip)) => sums(None, Some(&ip.header().to_header())),
            _ => panic!("no IP in {bytes:?}"),
        }
    }

    #[test]
    fn one_checksum_is_right_for_every_flow() {
        for (v6, content) in [false, true].into_iter().flat_map(|v6| {
            [Content::ShortUdp, Content::Udp, Content::TcpSyn].map(|content| (v6, content))
        }) {
            let (from, to) = ends(v6);
            let template = Template::new(content, from, to, 300, 100).unwrap();
            assert_eq!(
                template.ports().collect::<Vec<_>>(),
                [20_000, 20_001, 20_002]
            );
            assert!(
                checksums_are_right(&template.bytes),
                "{content:?}, IPv6 {v6}"
            );
            for (port, address) in [
                (20_000, 2),
                (20_001, 2),
                (65_535, 101),
                (255, 0),
                (256, 999),
            ] {
                let mut bytes = template.bytes.clone();
                let mut put = |at: usize, value: u16| {
                    bytes[at..][..2].copy_from_slice(&value.to_be_bytes());
                };
                put(template.port_at, port);
                put(template.balance_at, !port);
                put(template.address_at, address);
                put(template.balance_at + 2, !address);
                if let Some(at) = template.identification_at {
                    put(at, !address);
                }
                assert!(
                    checksums_are_right(&bytes),
                    "port {port}, {content:?}, IPv6 {v6}"
                );
            }
        }
    }

    #[test]
    fn a_short_frame_is_as_short_as_ethernet_has_them() {
        let (from, to) = ends(false);
        let template = Template::new(Content::ShortUdp, from, to, 1, 1).unwrap();
        assert_eq!(template.len(), 60);
    }

    #[test]
    fn flows_that_would_run_over_the_end_are_refused() {
        let (from, to) = ends(false);
        let make = |flows, destinations| Template::new(Content::Udp, from, to, flows, destinations);
        make(1_048_576, 64).unwrap();
        for (flows, destinations) in [(45_537, 1), (1, 65_535), (10, 0)] {
            let error = make(flows, destinations).unwrap_err().to_string();
            assert!(error.contains("flows of a template"), "{error}");
        }
        let (from_v6, _) = ends(true);
        assert!(Template::new(Content::Udp, from_v6, to, 1, 1).is_err());
    }

    #[test]
    fn a_tunnel_packet_holds_the_frame_as_it_was() {
        for v6 in [false, true] {
            let (from, to) = ends(false);
            let inner = Template::udp(from, to, 3).unwrap();
            let (near, far) = ends(v6);
            let outer = inner
                .clone()
                .in_tunnel(
                    77,
                    (near.mac, near.address.ip()),
                    (far.mac, far.address.ip()),
                )
                .unwrap();
            assert_eq!(outer.len() - inner.len(), if v6 { 70 } else { 50 });
            assert!(outer.bytes.ends_with(&inner.bytes));
            assert_eq!(outer.bytes[outer.port_at..][..2], 20_000_u16.to_be_bytes());
            let packet = SlicedPacket::from_ethernet(&outer.bytes).unwrap();
            let Some(TransportSlice::Udp(udp)) = packet.transport else {
                panic!("no UDP");
            };
            assert_eq!((udp.destination_port(), udp.checksum()), (6081, 0));
        }
    }
}
