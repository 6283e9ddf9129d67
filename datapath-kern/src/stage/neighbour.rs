//! Answers for the gateway: ARP (RFC 826) and neighbour discovery (RFC 4861), made of the
//! question itself and sent back into the pod.

use zerocopy::network_endian::{U16, U32};

use crate::abi::addr::Addr;
use crate::abi::mac::MacWords;
use crate::env::Env;
use crate::packet::{ETHERNET_LEN, Headers, Kind, Packet};
use crate::stage::observe;
use crate::stage::origin::{self, Arrival};
use crate::verdict::{Action, DropReason, Forward, Verdict};
use crate::wire::arp::{self, Arp};
use crate::wire::checksum;
use crate::wire::ethernet::Macs;
use crate::wire::ip::{Ipv6, v6_bytes};
use crate::wire::transport::{Neighbour, icmpv6};
use crate::work::Work;

/// Answers a pod's ARP request for the gateway.
///
/// # Errors
///
/// [`DropReason::InvalidSourceMac`] and [`DropReason::InvalidSourceIp`] for a request in another's
/// name, [`DropReason::NeighbourNotGateway`] for anything but a request for the gateway.
#[inline(never)]
pub fn answer_arp<E: Env, P: Packet>(
    env: &E,
    pkt: &mut P,
    arrival: &Arrival,
) -> Result<Verdict, DropReason> {
    let question: Arp = pkt.read(ETHERNET_LEN)?;
    let (_, endpoint) = origin::endpoint(env, arrival)?;
    let mac = endpoint.mac_words();
    if arrival.mac != mac || MacWords::from(question.sender_mac) != mac {
        return Err(DropReason::InvalidSourceMac);
    }
    let sender = Addr::from_v4_bytes(question.sender);
    if sender != endpoint.ipv4 || sender.is_none() {
        return Err(DropReason::InvalidSourceIp);
    }
    if !question.is_ethernet_ipv4()
        || question.operation.get() != arp::REQUEST
        || Addr::from_v4_bytes(question.target) != env.gateway_v4()
    {
        return Err(DropReason::NeighbourNotGateway);
    }
    let answer = Arp {
        operation: U16::new(arp::REPLY),
        sender_mac: env.gateway_mac(),
        sender: question.target,
        target_mac: endpoint.mac,
        target: question.sender,
        ..question
    };
    pkt.write(ETHERNET_LEN, &answer)?;
    send_back(env, pkt, arrival)
}

/// Deals with ICMP from a pod that is no flow: answers a solicitation for the gateway.
///
/// # Errors
///
/// As [`answer_arp`]; [`DropReason::ForbiddenIcmpV6`] for what only routers send,
/// [`DropReason::IcmpUnrelated`] for the rest.
#[inline(never)]
pub fn control<E: Env, P: Packet>(
    env: &E,
    pkt: &mut P,
    work: &Work,
) -> Result<Verdict, DropReason> {
    let Work { hdr, arrival, .. } = work;
    match hdr.kind {
        Kind::NeighbourSolicitation => answer_solicitation(env, pkt, hdr, arrival),
        Kind::NeighbourAdvertisement => Err(DropReason::NeighbourNotGateway),
        Kind::RouterOnly => Err(DropReason::ForbiddenIcmpV6),
        Kind::IcmpOther | Kind::IcmpError | Kind::Flow => {
            if hdr.key.destination.is_multicast() {
                // Router solicitations and group reports of every pod that comes up.
                return Err(DropReason::Multicast);
            }
            Err(DropReason::IcmpUnrelated)
        }
    }
}

#[inline(always)]
fn answer_solicitation<E: Env, P: Packet>(
    env: &E,
    pkt: &mut P,
    hdr: &Headers,
    arrival: &Arrival,
) -> Result<Verdict, DropReason> {
    let (_, endpoint) = origin::endpoint(env, arrival)?;
    if arrival.mac != endpoint.mac_words() {
        return Err(DropReason::InvalidSourceMac);
    }
    let fixed: [u8; Neighbour::FIXED_LEN as usize] = pkt.read(hdr.l4)?;
    let ip: Ipv6 = pkt.read(hdr.l3)?;
    // With extension headers, over several hops, or cut short it is none (RFC 4861, section
    // 7.1.1).
    if hdr.l4 != hdr.l3 + 40 || hdr.ttl != 255 || ip.payload_len.get() < Neighbour::FIXED_LEN {
        return Err(DropReason::InvalidPacket);
    }
    let [_, _, _, _, _, _, _, _, target @ ..] = fixed;
    let target: [u8; 16] = target;
    let asked = Addr::from_words(zerocopy::transmute!(target));
    // A question without a source is a claim to the address (RFC 4862, section 5.4.2).
    if asked != env.gateway_v6() || hdr.key.source.is_none() {
        return Err(DropReason::NeighbourNotGateway);
    }
    if !endpoint.owns(&hdr.key.source) && !is_link_local(&hdr.key.source) {
        return Err(DropReason::InvalidSourceIp);
    }
    let with_option = ip.payload_len.get() >= 32;
    let length = if with_option {
        32
    } else {
        Neighbour::FIXED_LEN
    };
    let mut answer = Neighbour {
        kind: icmpv6::NEIGHBOUR_ADVERTISEMENT,
        code: 0,
        checksum: U16::ZERO,
        flags: U32::new(Neighbour::ROUTER_SOLICITED_OVERRIDE),
        target,
        option: if with_option { 2 } else { 0 },
        option_len: u8::from(with_option),
        mac: if with_option {
            env.gateway_mac()
        } else {
            [0; 6]
        },
    };
    let words: [u16; 16] = zerocopy::transmute!(answer);
    let pseudo = checksum::pseudo(
        &asked,
        &hdr.key.source,
        length,
        crate::wire::ip::protocol::ICMPV6,
    );
    answer.checksum = zerocopy::transmute!(checksum::over(&words, pseudo));
    let reply = Ipv6 {
        payload_len: U16::new(length),
        hop_limit: 255,
        source: target,
        destination: v6_bytes(&hdr.key.source),
        ..ip
    };
    pkt.write(hdr.l3, &reply)?;
    if with_option {
        pkt.write(hdr.l4, &answer)?;
    } else {
        let bytes: [u8; 32] = zerocopy::transmute!(answer);
        let (fixed, _) = bytes
            .split_first_chunk::<{ Neighbour::FIXED_LEN as usize }>()
            .ok_or(DropReason::InvalidPacket)?;
        pkt.write(hdr.l4, fixed)?;
    }
    send_back(env, pkt, arrival)
}

/// Whether the address is of `fe80::/10`.
#[inline(always)]
const fn is_link_local(address: &Addr) -> bool {
    let [first, ..] = address.words();
    let [high, next, ..] = first.to_ne_bytes();
    high == 0xfe && next & 0xc0 == 0x80
}

/// Turns the frame around.
#[inline(always)]
fn send_back<E: Env, P: Packet>(
    env: &E,
    pkt: &mut P,
    arrival: &Arrival,
) -> Result<Verdict, DropReason> {
    pkt.write(
        0,
        &Macs {
            destination: arrival.mac.into(),
            source: env.gateway_mac(),
        },
    )?;
    observe::forwarded(env, arrival.direction, Forward::Answered, pkt.len());
    Ok(Verdict::new(Action::IntoPod, arrival.interface))
}
