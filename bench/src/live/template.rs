//! The frames of many flows, which differ in their source port only.

use std::net::{IpAddr, SocketAddr};

use datapath_conformance::frame::forge::{self, Place};
use datapath_kern::wire::checksum;

use crate::error::Result;

/// Bytes of UDP payload. No probe of the lab is as long, so that a sink can tell frames by their
/// length.
const PAYLOAD_BYTES: usize = 42;
/// Bytes of a UDP header.
const UDP_BYTES: usize = 8;
/// Where the checksum is in it.
const UDP_CHECKSUM: usize = 6;
/// Port of GENEVE (RFC 8926 section 3.3).
const GENEVE_PORT: u16 = 6081;

/// Bytes of a TCP header without options.
const TCP_BYTES: usize = 20;
/// Where the lower half of the sequence number is in it.
const TCP_SEQUENCE_LOW: usize = 6;
/// Where the checksum is in it.
const TCP_CHECKSUM: usize = 16;

/// A frame that stands for several flows: those from the source ports that follow its own.
///
/// Somewhere behind the source port there is its complement, so that one checksum is right for all
/// of them: the first two bytes of a datagram's payload, the lower half of a SYN's sequence number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    pub(super) bytes: Vec<u8>,
    /// Where the source port is.
    pub(super) port_at: usize,
    /// Where its complement is.
    pub(super) balance_at: usize,
    pub(super) first_port: u16,
    pub(super) flows: u16,
}

impl Template {
    /// Makes the frame. `from` has the first of the flows' source ports; there are `flows` of them,
    /// at least one, up to 65535.
    ///
    /// # Errors
    ///
    /// [`Error::Lab`](crate::Error::Lab) when the ends differ in family.
    pub fn udp(from: Place, to: Place, flows: u16) -> Result<Self> {
        let first_port = from.address.port();
        let mut payload = [0x5a; PAYLOAD_BYTES];
        let (balance, _) = payload.split_at_mut(2);
        balance.copy_from_slice(&(!first_port).to_be_bytes());
        let bytes = forge::udp(from, to, &payload)?;
        let balance_at = bytes.len().saturating_sub(PAYLOAD_BYTES);
        Ok(Self {
            port_at: balance_at.saturating_sub(UDP_BYTES),
            balance_at,
            first_port,
            flows: flows.clamp(1, u16::MAX - first_port),
            bytes,
        })
    }

    /// Makes a segment that asks for a connection, SYN without options; `flows` as of
    /// [`Template::udp`].
    ///
    /// # Errors
    ///
    /// As [`Template::udp`].
    pub fn tcp_syn(from: Place, to: Place, flows: u16) -> Result<Self> {
        let first_port = from.address.port();
        let mut bytes = forge::tcp_syn(from, to, &[])?;
        let port_at = bytes.len().saturating_sub(TCP_BYTES);
        let balance_at = port_at + TCP_SEQUENCE_LOW;
        // What is there is zero, so that the checksum has to take in all of the complement.
        let balance = (!first_port).to_be_bytes();
        let checksum_at = port_at + TCP_CHECKSUM;
        if let Some(field) = bytes.get_mut(balance_at..balance_at + 2) {
            field.copy_from_slice(&balance);
        }
        if let Some(field) = bytes.get_mut(checksum_at..checksum_at + 2)
            && let Ok(old) = <[u8; 2]>::try_from(&*field)
        {
            let new = checksum::adjust(u16::from_ne_bytes(old), u16::from_ne_bytes(balance));
            field.copy_from_slice(&new.to_ne_bytes());
        }
        Ok(Self {
            port_at,
            balance_at,
            first_port,
            flows: flows.clamp(1, u16::MAX - first_port),
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
        self.first_port..self.first_port + self.flows
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TcpSlice, TransportSlice};

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

    fn checksum_is_right(bytes: &[u8]) -> bool {
        let packet = SlicedPacket::from_ethernet(bytes).unwrap();
        let udp = match packet.transport {
            Some(TransportSlice::Udp(udp)) => udp,
            Some(TransportSlice::Tcp(tcp)) => return tcp_checksum_is_right(packet.net, &tcp),
            _ => panic!("no UDP and no TCP in {bytes:?}"),
        };
        let header = udp.to_header();
        let sum = match packet.net {
            Some(NetSlice::Ipv4(ip)) => {
                header.calc_checksum_ipv4(&ip.header().to_header(), udp.payload())
            }
            Some(NetSlice::Ipv6(ip)) => {
                header.calc_checksum_ipv6(&ip.header().to_header(), udp.payload())
            }
            _ => panic!("no IP in {bytes:?}"),
        };
        sum.unwrap() == header.checksum
    }

    fn tcp_checksum_is_right(net: Option<NetSlice<'_>>, tcp: &TcpSlice<'_>) -> bool {
        let header = tcp.to_header();
        assert!(header.syn && !header.ack);
        let sum = match net {
            Some(NetSlice::Ipv4(ip)) => {
                header.calc_checksum_ipv4(&ip.header().to_header(), tcp.payload())
            }
            Some(NetSlice::Ipv6(ip)) => {
                header.calc_checksum_ipv6(&ip.header().to_header(), tcp.payload())
            }
            _ => panic!("no IP"),
        };
        sum.unwrap() == header.checksum
    }

    #[test]
    fn one_checksum_is_right_for_every_flow() {
        for (v6, syn) in [(false, false), (true, false), (false, true), (true, true)] {
            let (from, to) = ends(v6);
            let make = if syn {
                Template::tcp_syn
            } else {
                Template::udp
            };
            let template = make(from, to, 3).unwrap();
            assert_eq!(
                template.ports().collect::<Vec<_>>(),
                [20_000, 20_001, 20_002]
            );
            for port in [20_000, 20_001, 20_002, 65_535, 255, 256] {
                let mut bytes = template.bytes.clone();
                bytes[template.port_at..][..2].copy_from_slice(&u16::to_be_bytes(port));
                bytes[template.balance_at..][..2].copy_from_slice(&u16::to_be_bytes(!port));
                assert!(
                    checksum_is_right(&bytes),
                    "port {port}, IPv6 {v6}, SYN {syn}"
                );
            }
        }
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
