//! GENEVE packets, by RFC 8926 and not by the tunnel crate.

use std::net::IpAddr;

use datapath_kern::abi::Mac;
use datapath_kern::host::plan;
use datapath_kern::packet::Family;
use etherparse::{NetHeaders, PacketHeaders, TransportHeader};

use super::frame::{self, L4, Parsed, Tuple};

/// A tunnel packet taken apart.
#[derive(Clone, Debug)]
pub(crate) struct Tunnelled {
    pub(crate) from: Mac,
    pub(crate) to: Mac,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) source_port: u16,
    pub(crate) vni: u32,
    pub(crate) inner: Parsed,
}

/// Takes a tunnel packet apart: no options, UDP checksum zero, not to be fragmented.
pub(crate) fn parse(bytes: &[u8]) -> Tunnelled {
    let packet = PacketHeaders::from_ethernet_slice(bytes).unwrap();
    let link = packet.link.unwrap().ethernet2().unwrap();
    let (source, destination) = match packet.net.unwrap() {
        NetHeaders::Ipv4(ip, _) => {
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            assert_eq!(usize::from(ip.total_len), bytes.len() - 14);
            assert!(ip.dont_fragment && !ip.more_fragments && ip.time_to_live == 64);
            (IpAddr::from(ip.source), IpAddr::from(ip.destination))
        }
        NetHeaders::Ipv6(ip, _) => {
            assert_eq!(usize::from(ip.payload_length), bytes.len() - 54);
            assert_eq!(ip.hop_limit, 64);
            (ip.source.into(), ip.destination.into())
        }
        other @ NetHeaders::Arp(_) => panic!("{other:?}"),
    };
    let Some(TransportHeader::Udp(udp)) = packet.transport else {
        panic!("not UDP")
    };
    assert_eq!((udp.destination_port, udp.checksum), (6081, 0));
    let payload = packet.payload.slice();
    assert_eq!(usize::from(udp.length), 8 + payload.len());
    let (geneve, inner) = payload.split_at(8);
    // Version 0, no options, neither flag, Ethernet within, reserved byte zero.
    assert_eq!((&geneve[..4], geneve[7]), (&[0, 0, 0x65, 0x58][..], 0));
    Tunnelled {
        from: link.source,
        to: link.destination,
        source,
        destination,
        source_port: udp.source_port,
        vni: u32::from_be_bytes([0, geneve[4], geneve[5], geneve[6]]),
        inner: frame::parse(inner),
    }
}

/// A tunnel packet to be made: what a kind node would send, each part open to unkindness.
#[derive(Clone, Debug)]
pub(crate) struct Wrap {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// First two bytes of the header: version and length of options, flags.
    pub(crate) first: [u8; 2],
    pub(crate) protocol: u16,
    pub(crate) vni: u32,
    pub(crate) options: Vec<u8>,
}

impl Wrap {
    /// From one node to another.
    pub(crate) fn new(from: u8, to: u8, underlay: Family, vni: u32) -> Self {
        Self {
            source: plan::node(from, underlay),
            destination: plan::node(to, underlay),
            first: [0, 0],
            protocol: 0x6558,
            vni,
            options: Vec::new(),
        }
    }

    /// With these options, the length field to match.
    pub(crate) fn with_options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self.first[0] = u8::try_from(options.len() / 4).unwrap();
        self
    }

    /// The tunnel packet around an inner frame.
    pub(crate) fn around(&self, inner: &[u8]) -> Vec<u8> {
        let mut payload = self.first.to_vec();
        payload.extend(self.protocol.to_be_bytes());
        payload.extend((self.vni << 8).to_be_bytes());
        payload.extend(&self.options);
        payload.extend(inner);
        let tuple = Tuple::new(self.source, self.destination, L4::Udp(50_000, 6081));
        frame::build([2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 8], &tuple, 64, &payload)
    }
}

/// A frame over IPv6 with destination options put behind its IP header, `units` of eight bytes;
/// over IPv4 as it is.
pub(crate) fn with_extension(mut frame: Vec<u8>, units: u8) -> Vec<u8> {
    if frame[12..14] != [0x86, 0xdd] {
        return frame;
    }
    let mut extension = vec![0; usize::from(units) * 8];
    extension[0] = std::mem::replace(&mut frame[20], 60);
    extension[1] = units - 1;
    let length = u16::from_be_bytes([frame[18], frame[19]]) + u16::from(units) * 8;
    frame[18..20].copy_from_slice(&length.to_be_bytes());
    frame.splice(54..54, extension);
    frame
}

/// An inner frame of a peer's pod for a node.
pub(crate) fn inner(node: u8, tuple: &Tuple) -> Vec<u8> {
    frame::build(
        plan::gateway_mac(3 - node),
        plan::gateway_mac(node),
        tuple,
        63,
        b"hi",
    )
}
