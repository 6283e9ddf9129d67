//! Frames out of their descriptions, and out of frames.

use std::net::IpAddr;

use datapath_kern::abi::mark;
use datapath_kern::host::{Hook, plan};
use datapath_kern::packet::Family;
use etherparse::checksum::Sum16BitWords;

use super::input::{By, Cut, Harm, Kind, Made, Mark, Payload, Place, To, Ttl};
use crate::support::frame::{self, L4, Tuple};
use crate::support::tunnel::{self, Wrap};
use crate::support::{fragments, icmp};

/// The node's number, and its peer's.
pub(crate) const NODE: u8 = 1;
pub(crate) const PEER: u8 = 2;
/// Pods of either.
pub(crate) const PODS: u8 = 4;

const ETHERNET: usize = 14;
const TUNNEL_PORT: u16 = 6081;

/// One of the pods, by any number.
pub(crate) fn pod(number: u8) -> u8 {
    number % PODS + 1
}

/// A frame and where it belongs.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub(crate) place: Place,
    pub(crate) bytes: Vec<u8>,
}

impl Place {
    pub(crate) fn hook(self) -> (Hook, u32) {
        match self {
            Self::FromPod(number) => (Hook::FromPod, plan::pod_interface(pod(number))),
            Self::ToPod(number) => (Hook::ToPod, plan::pod_interface(pod(number))),
            Self::FromUplink => (Hook::FromUplink, plan::UPLINK),
            Self::ToUplink => (Hook::ToUplink, plan::UPLINK),
            Self::FromHost => (Hook::FromHost, plan::GATEWAY_FAR),
            Self::ToHost => (Hook::ToHost, plan::GATEWAY),
        }
    }
}

impl Mark {
    pub(crate) fn bits(self) -> u32 {
        match self {
            Self::None => 0,
            Self::ToHost => mark::TO_HOST,
            Self::Forwarded => mark::FORWARDED,
            Self::Piece => mark::PIECE,
            Self::Any(bits) => bits,
        }
    }
}

impl Made {
    fn family(&self) -> Family {
        if self.v6 { Family::V6 } else { Family::V4 }
    }

    fn source(&self) -> IpAddr {
        let family = self.family();
        match self.by {
            By::Pod(number)
            | By::StackOut {
                pod: Some(number), ..
            } => plan::pod(NODE, pod(number), family),
            By::Peer { pod: number } => plan::pod(PEER, pod(number), family),
            By::Router => plan::outside(family),
            By::Stack | By::StackTo(_) => plan::gateway(NODE, family),
            By::StackOut { pod: None } => plan::node(NODE, family),
        }
    }

    fn destination(&self) -> IpAddr {
        let family = self.family();
        match self.to {
            To::Pod(number) => plan::pod(NODE, pod(number), family),
            To::PeerPod(number) => plan::pod(PEER, pod(number), family),
            To::Outside(number) => other(plan::outside(family), number % 2),
            To::Gateway => plan::gateway(NODE, family),
            To::Node => plan::node(NODE, family),
            To::PeerNode => plan::node(PEER, family),
            To::Router => plan::node(plan::ROUTER, family),
            To::Vacant => plan::pod(NODE, 99, family),
            To::Multicast if self.v6 => IpAddr::from([0xff02, 0, 0, 0, 0, 0, 0, 0xfb]),
            To::Multicast => IpAddr::from([224, 0, 0, 251]),
            To::Martian if self.v6 => IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
            To::Martian => IpAddr::from([127, 0, 0, 1]),
        }
    }

    /// The frame, and where it arrives.
    pub(crate) fn arrival(&self, underlay: Family) -> Arrival {
        let port = 40_000 + u16::from(self.port % 4);
        let l4 = match self.l4 {
            Kind::Tcp(flags) => L4::Tcp(port, 80, flags.bits()),
            Kind::Udp | Kind::Other(_) => L4::Udp(port, 53),
            Kind::Tunnel => L4::Udp(port, TUNNEL_PORT),
            Kind::EchoRequest => L4::EchoRequest(port),
            Kind::EchoReply => L4::EchoReply(port),
        };
        let tuple = Tuple::new(self.source(), self.destination(), l4);
        let ttl = match self.ttl {
            Ttl::Usual => 64,
            Ttl::Last(hops) => hops % 4,
        };
        let length = match self.payload {
            Payload::Little => 5,
            Payload::Bytes(count) => count.into(),
            Payload::Much(count) => usize::from(count % 2200),
        };
        let payload: Vec<u8> = (0..=0xff).cycle().take(length).collect();
        let gateway = plan::gateway_mac(NODE);
        let make = |from, to| {
            let mut bytes = frame::build(from, to, &tuple, ttl, &payload);
            if let Kind::Other(number) = self.l4 {
                set_protocol(&mut bytes, number);
            }
            bytes
        };
        let (router, node) = (plan::node_mac(plan::ROUTER), plan::node_mac(NODE));
        let (place, bytes) = match self.by {
            By::Pod(number) => {
                let mac = plan::pod_mac(NODE, pod(number));
                (Place::FromPod(number), make(mac, gateway))
            }
            By::Peer { pod: number } => {
                let identity = plan::pod_identity(PEER, pod(number));
                let wrap = Wrap::new(PEER, NODE, underlay, identity);
                let inner = make(plan::gateway_mac(PEER), gateway);
                (Place::FromUplink, wrap.around(&inner))
            }
            By::Router => (Place::FromUplink, make(router, node)),
            By::Stack => (Place::FromHost, make(gateway, [2; 6])),
            By::StackOut { .. } => (Place::ToUplink, make(node, router)),
            By::StackTo(number) => {
                let mac = plan::pod_mac(NODE, pod(number));
                (Place::ToPod(number), make(gateway, mac))
            }
        };
        Arrival { place, bytes }
    }
}

/// The address that is so many behind.
fn other(address: IpAddr, behind: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            IpAddr::from([a, b, c, d.wrapping_add(behind)])
        }
        IpAddr::V6(v6) => {
            let mut octets = v6.octets();
            octets[15] = octets[15].wrapping_add(behind);
            IpAddr::from(octets)
        }
    }
}

fn set_protocol(bytes: &mut [u8], number: u8) {
    if bytes[12..14] == [8, 0] {
        bytes[23] = number;
        seal_v4(bytes);
    } else {
        bytes[20] = number;
    }
}

/// Whether it is IPv4, without options, or IPv6, and has at least the header.
pub(crate) fn is_ip(bytes: &[u8]) -> bool {
    let header = bytes.get(12..15);
    header.is_some_and(|header| match header {
        [0x08, 0x00, 0x45] => bytes.len() >= ETHERNET + 20,
        [0x86, 0xdd, first] => first >> 4 == 6 && bytes.len() >= ETHERNET + 40,
        _ => false,
    })
}

/// Where the transport header begins, and its protocol, in a frame that [`is_ip`]; none in a later
/// fragment.
pub(crate) fn transport(bytes: &[u8]) -> Option<(usize, u8)> {
    if !is_ip(bytes) {
        return None;
    }
    if bytes[12] == 8 {
        let whole = matches!(bytes[20..22], [0 | 0x40, 0]);
        whole.then_some((ETHERNET + 20, bytes[23]))
    } else {
        (bytes[20] != 44).then_some((ETHERNET + 40, bytes[20]))
    }
}

/// Whether it is a tunnel packet.
pub(crate) fn is_tunnelled(bytes: &[u8]) -> bool {
    let port = |at: usize| bytes.get(at + 2..at + 4) == Some(&TUNNEL_PORT.to_be_bytes()[..]);
    matches!(transport(bytes), Some((at, 17)) if port(at) && bytes.len() > at + 16 + ETHERNET)
}

/// Where the inner frame of a tunnel packet without options begins.
pub(crate) fn inside(bytes: &[u8]) -> usize {
    transport(bytes).map_or(0, |(at, _)| at + 16)
}

/// The source and destination of a frame that [`is_ip`].
pub(crate) fn ends(bytes: &[u8]) -> (IpAddr, IpAddr) {
    let v4 = |at: usize| IpAddr::from([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let v6 = |at: usize| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&bytes[at..at + 16]);
        IpAddr::from(octets)
    };
    if bytes[12] == 8 {
        (v4(26), v4(30))
    } else {
        (v6(22), v6(38))
    }
}

/// The frame that answers: addresses, ports and kinds of echo the other way round, a TCP segment
/// with `flags`; of a tunnel packet, both frames. `identity` is the sender's, for the VNI.
pub(crate) fn answer(
    bytes: &[u8],
    flags: u8,
    identity: &impl Fn(IpAddr) -> u32,
) -> Option<Vec<u8>> {
    let (at, protocol) = transport(bytes)?;
    let mut answer = bytes.to_vec();
    let tunnelled = is_tunnelled(bytes);
    swap(&mut answer, 0, 6);
    let addresses = if bytes[12] == 8 { (26, 4) } else { (22, 16) };
    swap(&mut answer, addresses.0, addresses.1);
    if tunnelled {
        let inner = inside(bytes);
        let (_, to) = is_ip(&bytes[inner..]).then(|| ends(&bytes[inner..]))?;
        let within = self::answer(&bytes[inner..], flags, identity)?;
        answer[inner..].copy_from_slice(&within);
        answer[inner - 4..inner - 1].copy_from_slice(&identity(to).to_be_bytes()[1..]);
        return Some(answer);
    }
    match protocol {
        6 if bytes.len() >= at + 20 => {
            swap(&mut answer, at, 2);
            answer[at + 13] = flags;
        }
        17 if bytes.len() >= at + 8 => swap(&mut answer, at, 2),
        1 | 58 if bytes.len() >= at + 8 => {
            answer[at] = match bytes[at] {
                8 => 0,
                0 => 8,
                128 => 129,
                129 => 128,
                other => other,
            };
        }
        _ => {}
    }
    seal(&mut answer);
    Some(answer)
}

/// Exchanges `length` bytes at `at` with those behind them.
fn swap(bytes: &mut [u8], at: usize, length: usize) {
    let (front, back) = bytes[at..at + 2 * length].split_at_mut(length);
    front.swap_with_slice(back);
}

/// Writes the checksums of a frame that is not in pieces.
fn seal(bytes: &mut [u8]) {
    seal_v4(bytes);
    let Some((at, field)) = checksum_field(bytes) else {
        return;
    };
    let none = bytes[at..at + 2] == [0, 0] && field.1 == 17;
    if none {
        return;
    }
    bytes[at..at + 2].fill(0);
    let sum = transport_sum(bytes, field.0, field.1);
    let sum = if field.1 == 17 && sum == 0 { !0 } else { sum };
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

fn seal_v4(bytes: &mut [u8]) {
    if bytes[12] == 8 {
        bytes[24..26].fill(0);
        let sum = Sum16BitWords::new().add_slice(&bytes[14..34]);
        let sum = sum.ones_complement().to_be();
        bytes[24..26].copy_from_slice(&sum.to_be_bytes());
    }
}

/// Where the transport checksum is; with the beginning of the header and its protocol.
fn checksum_field(bytes: &[u8]) -> Option<(usize, (usize, u8))> {
    let (at, protocol) = transport(bytes)?;
    let (field, header) = match protocol {
        6 => (16, 20),
        17 => (6, 8),
        1 | 58 => (2, 8),
        _ => return None,
    };
    (bytes.len() >= at + header).then_some((at + field, (at, protocol)))
}

/// The transport checksum over what is there.
fn transport_sum(bytes: &[u8], at: usize, protocol: u8) -> u16 {
    let mut sum = Sum16BitWords::new();
    if protocol != 1 {
        let length = u16::try_from(bytes.len() - at).unwrap_or(u16::MAX);
        let addresses = if bytes[12] == 8 { 26..34 } else { 22..54 };
        sum = sum
            .add_slice(&bytes[addresses])
            .add_2bytes([0, protocol])
            .add_2bytes(length.to_be_bytes());
    }
    sum.add_slice(&bytes[at..]).ones_complement().to_be()
}

/// What is wrong with the checksums of a frame that is not in pieces; of a tunnel packet, of the
/// frame within too.
pub(crate) fn wrong_checksum(bytes: &[u8]) -> Option<&'static str> {
    if !is_ip(bytes) {
        return None;
    }
    let header = Sum16BitWords::new().add_slice(bytes.get(14..34)?);
    if bytes[12] == 8 && header.ones_complement() != 0 {
        return Some("checksum of the IPv4 header");
    }
    if is_tunnelled(bytes) {
        return wrong_checksum(&bytes[inside(bytes)..]);
    }
    let (field, (at, protocol)) = checksum_field(bytes)?;
    let none = protocol == 17 && bytes[field..field + 2] == [0, 0];
    let right = none || transport_sum(bytes, at, protocol) == 0;
    (!right).then_some("checksum of the transport header")
}

/// What a frame with its sums in order quotes in an ICMP error, from the IP header on.
pub(crate) fn quotation(bytes: &[u8], l4_bytes: u8) -> Option<Vec<u8>> {
    let (at, _) = transport(bytes)?;
    let end = bytes.len().min(at + usize::from(l4_bytes));
    Some(bytes[ETHERNET..end].to_vec())
}

/// Kind and code of an error about flows, by any number.
pub(crate) fn complaint(kind: u8, family: Family) -> (u8, u8) {
    let kinds = icmp::kinds(family);
    kinds[usize::from(kind) % kinds.len()]
}

impl Harm {
    /// Does it.
    pub(crate) fn apply(&self, bytes: &mut Vec<u8>) {
        let length = bytes.len();
        if length == 0 {
            return;
        }
        let place = |at: u8| usize::from(at) % length;
        match self {
            Self::Set(at, to) => bytes[place(*at)] = *to,
            Self::Flip(at, bit) => bytes[place(*at)] ^= 1 << (bit % 8),
            Self::Cut(at) => bytes.truncate(place(*at)),
            Self::Insert(at, new) => {
                let at = place(*at);
                bytes.splice(at..at, new.0.iter().copied());
            }
            Self::Append(count) => bytes.extend(std::iter::repeat_n(0x77, (*count).into())),
            Self::Extension(units) => {
                if bytes.len() >= 54 && bytes[12..14] == [0x86, 0xdd] {
                    let payload = u16::from_be_bytes([bytes[18], bytes[19]]);
                    if payload < u16::MAX - 4096 {
                        *bytes = tunnel::with_extension(std::mem::take(bytes), *units % 64 + 1);
                    }
                }
            }
        }
    }
}

impl Cut {
    /// The frame in pieces; whole where it cannot be cut.
    pub(crate) fn apply(self, bytes: Vec<u8>) -> Vec<Vec<u8>> {
        let Some((at, _)) = transport(&bytes) else {
            return vec![bytes];
        };
        if bytes.len() == at || bytes.len() > 4000 {
            return vec![bytes];
        }
        let piece = (usize::from(self.units) + 1) * 8;
        let mut pieces = fragments::cut(&bytes, piece, self.id.into());
        let mut number = 0_u32;
        pieces.retain(|_| {
            number += 1;
            self.lost & 1_u8.checked_shl(number - 1).unwrap_or(0) == 0
        });
        if self.backwards {
            pieces.reverse();
        }
        pieces
    }
}
