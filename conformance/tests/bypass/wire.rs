//! Packets by hand, with right checksums.

use std::net::IpAddr;

use etherparse::checksum::Sum16BitWords;

pub(crate) type Mac = [u8; 6];

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const SCTP: u8 = 132;

/// Flags of TCP (RFC 9293, section 3.1).
pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const URG: u8 = 0x20;

/// Where a packet is from and where it goes, by Ethernet and by IP.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    pub(crate) macs: (Mac, Mac),
    pub(crate) addresses: (IpAddr, IpAddr),
}

impl Ends {
    /// Number of the family's ICMP.
    pub(crate) fn icmp(&self) -> u8 {
        if self.addresses.0.is_ipv4() { 1 } else { 58 }
    }

    /// A frame that carries `body` as it is.
    pub(crate) fn frame(&self, protocol: u8, body: &[u8]) -> Vec<u8> {
        self.link(&self.ip(&[], protocol, body))
    }

    /// A frame with options in its IPv4 header, a multiple of four bytes.
    pub(crate) fn with_options(&self, options: &[u8], protocol: u8, body: &[u8]) -> Vec<u8> {
        self.link(&self.ip(options, protocol, body))
    }

    /// A frame with IPv6 extension headers: the number of each and the bytes behind its first one,
    /// which says what follows.
    pub(crate) fn with_extensions(
        &self,
        extensions: &[(u8, &[u8])],
        protocol: u8,
        body: &[u8],
    ) -> Vec<u8> {
        let first = extensions.first().map_or(protocol, |(number, _)| *number);
        let mut chain = Vec::new();
        for (index, (_, rest)) in extensions.iter().enumerate() {
            let next = extensions.get(index + 1).map_or(protocol, |next| next.0);
            chain.push(next);
            chain.extend_from_slice(rest);
        }
        chain.extend_from_slice(body);
        self.frame(first, &chain)
    }

    fn link(&self, packet: &[u8]) -> Vec<u8> {
        let kind: [u8; 2] = if self.addresses.0.is_ipv4() {
            [0x08, 0x00]
        } else {
            [0x86, 0xdd]
        };
        [&self.macs.1[..], &self.macs.0, &kind, packet].concat()
    }

    /// The packet alone: what an ICMP error quotes.
    pub(crate) fn ip(&self, options: &[u8], protocol: u8, body: &[u8]) -> Vec<u8> {
        match self.addresses {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let words = u8::try_from(5 + options.len() / 4).unwrap();
                let length = u16::try_from(20 + options.len() + body.len()).unwrap();
                let [l0, l1] = length.to_be_bytes();
                let fixed = [0x40 | words, 0, l0, l1, 0, 0, 0, 0, 64, protocol, 0, 0];
                let mut header =
                    [&fixed[..], &source.octets(), &destination.octets(), options].concat();
                let sum = Sum16BitWords::new().add_slice(&header).ones_complement();
                header[10..12].copy_from_slice(&sum.to_ne_bytes());
                [header, body.to_vec()].concat()
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let [l0, l1] = u16::try_from(body.len()).unwrap().to_be_bytes();
                let fixed = [0x60, 0, 0, 0, l0, l1, protocol, 64];
                [&fixed[..], &source.octets(), &destination.octets(), body].concat()
            }
            (source, destination) => panic!("{source} and {destination} differ in family"),
        }
    }

    /// Writes the checksum of a transport header, `at` bytes into it, over a pseudo-header.
    fn sealed(&self, protocol: u8, at: usize, mut body: Vec<u8>) -> Vec<u8> {
        body[at..at + 2].fill(0);
        let length = u16::try_from(body.len()).unwrap();
        let sum = match self.addresses {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Sum16BitWords::new()
                .add_slice(&source.octets())
                .add_slice(&destination.octets()),
            (IpAddr::V6(source), IpAddr::V6(destination)) => Sum16BitWords::new()
                .add_slice(&source.octets())
                .add_slice(&destination.octets()),
            (source, destination) => panic!("{source} and {destination} differ in family"),
        };
        let sum = sum
            .add_2bytes([0, protocol])
            .add_2bytes(length.to_be_bytes())
            .add_slice(&body)
            .ones_complement();
        body[at..at + 2].copy_from_slice(&sum.to_ne_bytes());
        body
    }

    /// A segment of TCP.
    pub(crate) fn tcp(&self, ports: (u16, u16), flags: u8, payload: &[u8]) -> Vec<u8> {
        let acknowledged = if flags & ACK == 0 { 0 } else { 2001_u32 };
        let body = [
            &ports.0.to_be_bytes()[..],
            &ports.1.to_be_bytes(),
            &1001_u32.to_be_bytes(),
            &acknowledged.to_be_bytes(),
            &[0x50, flags, 0xfa, 0xf0, 0, 0, 0, 0],
            payload,
        ]
        .concat();
        self.sealed(TCP, 16, body)
    }

    /// A datagram of UDP.
    pub(crate) fn udp(&self, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(8 + payload.len()).unwrap();
        let body = [
            &ports.0.to_be_bytes()[..],
            &ports.1.to_be_bytes(),
            &length.to_be_bytes(),
            &[0, 0],
            payload,
        ]
        .concat();
        self.sealed(UDP, 6, body)
    }

    /// A message of the family's ICMP; `rest` is what follows the checksum.
    pub(crate) fn message(&self, kind: u8, code: u8, rest: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let body = [&[kind, code, 0, 0][..], &rest, payload].concat();
        if self.addresses.0.is_ipv6() {
            return self.sealed(58, 2, body);
        }
        let mut body = body;
        let sum = Sum16BitWords::new().add_slice(&body).ones_complement();
        body[2..4].copy_from_slice(&sum.to_ne_bytes());
        body
    }
}

/// Whether bytes have a marker in them; none has an empty one.
pub(crate) fn contains(bytes: &[u8], marker: &[u8]) -> bool {
    !marker.is_empty() && bytes.windows(marker.len()).any(|window| window == marker)
}
