//! ICMP errors of our own: what cannot go on is answered, from the gateway's address.
//!
//! Made of the packet itself (RFC 792, RFC 1812, section 4.3; RFC 4443), and sent back the way it
//! came. Each end of the network gets so many a second.

use zerocopy::network_endian::{U16, U32};

use crate::abi::flow::{End, flags};
use crate::abi::mark;
use crate::abi::nexthop::PEERS_BASE;
use crate::env::{Env, Table};
use crate::packet::{ETHERNET_LEN, Family, Headers, Kind, Packet, Part};
use crate::stage::{flow, forward, nexthop, observe};
use crate::verdict::{Action, DropReason, Forward, Verdict};
use crate::wire::checksum;
use crate::wire::ethernet::{Ethernet, Macs};
use crate::wire::ip::{Ipv4, Ipv6, protocol, v6_bytes};
use crate::wire::transport::{checksum_offset, icmp, icmpv6};
use crate::work::Work;

/// Hop limit of the answers.
const TTL: u8 = 64;

/// Longest IPv4 error, bytes (RFC 1812, section 4.3.2.3).
const MAX_V4: u16 = 576;
/// Longest IPv6 error, bytes (RFC 4443, section 2.4).
const MAX_V6: u16 = 1280;

/// IPv4 header and the eight bytes before the quotation.
const HEADERS_V4: u16 = 28;
/// IPv6 header and the eight bytes before the quotation.
const HEADERS_V6: u16 = 48;

/// What is said in an error.
#[derive(Clone, Copy, Default)]
struct Complaint {
    kind: u8,
    code: u8,
    /// Second word of the header: the MTU, where that is what it is about.
    value: u32,
}

/// Answers a packet that was refused for `reason`, where that is something to be told of, and
/// counts it as dropped. Called before anything of the packet was changed but the tunnel around it.
///
/// # Errors
///
/// `reason`, where there is no answer: to what is an error itself, to what this node sent, beyond
/// the budget.
#[inline(never)]
pub fn refusal<E: Env, P: Packet>(
    env: &E,
    pkt: &mut P,
    work: &mut Work,
    reason: DropReason,
) -> Result<Verdict, DropReason> {
    let complaint = complaint(work, reason)?;
    // What follows the first fragment has nothing in it that a sender would know (RFC 1122, section
    // 3.2.2).
    let told = work.hdr.kind == Kind::Flow && work.hdr.part != Part::Later;
    if !told || work.arrival.by == flags::ARRIVAL_HOST || !afford(env, work) {
        return Err(reason);
    }
    speaker(env, work).ok_or(reason)?;
    way_back(env, work).ok_or(reason)?;
    let (direction, bytes) = (work.arrival.direction, work.hdr.length);
    observe::dropped(env, pkt, work, direction, bytes, reason);
    // What stops the answer is nothing to count: the packet has ended, once.
    let answered = write(pkt, work, complaint).and_then(|()| send_back(env, pkt, work));
    Ok(answered.unwrap_or(Verdict::DROP))
}

/// What to say for a reason.
#[inline(always)]
fn complaint(work: &Work, reason: DropReason) -> Result<Complaint, DropReason> {
    let (kind, code, value) = match (reason, work.hdr.family) {
        (DropReason::TtlExceeded, Family::V4) => (icmp::TIME_EXCEEDED, 0, 0),
        (DropReason::TtlExceeded, Family::V6) => (icmpv6::TIME_EXCEEDED, 0, 0),
        (DropReason::FragmentationNeeded, Family::V4) => (
            icmp::UNREACHABLE,
            icmp::FRAGMENTATION_NEEDED,
            u32::from(forward::room(work)),
        ),
        (DropReason::FragmentationNeeded, Family::V6) => {
            (icmpv6::TOO_BIG, 0, u32::from(forward::room(work)))
        }
        _ => return Err(reason),
    };
    Ok(Complaint { kind, code, value })
}

/// Whether the sender may have another answer in this second.
#[inline(always)]
fn afford<E: Env>(env: &E, work: &Work) -> bool {
    let end = End::from_raw(work.flow.from);
    let slot = end.slot() + if end.is_remote() { PEERS_BASE } else { 0 };
    let (now_s, limit) = (work.arrival.now_s, env.answers_per_s());
    let afforded = env.budgets().update(&slot, |budget| {
        if budget.second_s != now_s {
            budget.second_s = now_s;
            budget.spent = 0;
        }
        if budget.spent >= limit {
            return false;
        }
        budget.spent += 1;
        true
    });
    afforded == Some(true)
}

/// Who answers, into [`Work::destination`]: the gateway, or the address that a translated packet
/// was sent to, as nobody outside knows the gateway's.
#[inline(always)]
fn speaker<E: Env>(env: &E, work: &mut Work) -> Option<()> {
    let translated = work.flow.has(flags::DNAT);
    work.destination = match work.hdr.family {
        _ if translated => work.hdr.key.destination,
        Family::V4 => env.gateway_v4(),
        Family::V6 => env.gateway_v6(),
    };
    (!work.destination.is_none()).then_some(())
}

/// Puts the other half of a flow that came through the tunnel into [`Work::reply`]: what answers go
/// along, and under whose identity.
#[inline(never)]
fn way_back<E: Env>(env: &E, work: &mut Work) -> Option<()> {
    let Work {
        hdr,
        arrival,
        flow,
        reply,
        reply_key: key,
        ..
    } = work;
    if arrival.by != flags::ARRIVAL_TUNNEL {
        return Some(());
    }
    *key = flow.partner_key(&hdr.key);
    flow::peek(env, key, |half| *reply = *half)
}

/// IPv4 and ICMP header of an answer.
#[derive(Clone, Copy, zerocopy::IntoBytes, zerocopy::Immutable)]
#[repr(C)]
struct AnswerV4 {
    ip: Ipv4,
    kind: u8,
    code: u8,
    checksum: U16,
    value: U32,
}

/// IPv6 and ICMPv6 header of an answer.
#[derive(Clone, Copy, zerocopy::IntoBytes, zerocopy::Immutable)]
#[repr(C)]
struct AnswerV6 {
    ip: Ipv6,
    kind: u8,
    code: u8,
    checksum: U16,
    value: U32,
}

/// Makes the error of the packet: cut to what may be quoted, headers put before it.
#[inline(never)]
fn write<P: Packet>(pkt: &mut P, work: &mut Work, said: Complaint) -> Result<(), DropReason> {
    let Work {
        hdr, destination, ..
    } = work;
    let (headers, longest) = match hdr.family {
        Family::V4 => (HEADERS_V4, MAX_V4),
        Family::V6 => (HEADERS_V6, MAX_V6),
    };
    let quoted = if hdr.ip_len < longest - headers {
        hdr.ip_len
    } else {
        longest - headers
    };
    let seed = seed(pkt, hdr);
    let left = pkt.truncate(u32::from(ETHERNET_LEN + quoted))?;
    pkt.make_room(headers)?;
    let start = ETHERNET_LEN + headers;
    let sum = match seed {
        // From the transport header on, hardware makes the sum zero less the seed.
        Some(seed) if left => {
            let sum = pkt.sum(start, hdr.l4 - hdr.l3)?;
            checksum::fold(u32::from(sum) + u32::from(!seed))
        }
        _ => pkt.sum(start, quoted)?,
    };
    let first = u16::from_ne_bytes([said.kind, said.code]);
    let [a, b, c, d] = said.value.to_be_bytes();
    let value = [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])];
    let message = [first, value[0], value[1], sum];
    let length = headers + quoted;
    match hdr.family {
        Family::V4 => {
            let mut ip = Ipv4 {
                version_ihl: 0x45,
                // Internetwork control (RFC 1812, section 4.3.2.5).
                tos: 0xc0,
                total_len: U16::new(length),
                id: U16::ZERO,
                fragment: U16::new(Ipv4::DONT_FRAGMENT),
                ttl: TTL,
                protocol: protocol::ICMP,
                checksum: U16::ZERO,
                source: destination.v4_word().to_ne_bytes(),
                destination: hdr.key.source.v4_word().to_ne_bytes(),
            };
            let words: [u16; 10] = zerocopy::transmute!(ip);
            ip.checksum = zerocopy::transmute!(checksum::over(&words, 0));
            let checksum = checksum::over(&message, 0);
            pkt.write(
                ETHERNET_LEN,
                &AnswerV4 {
                    ip,
                    kind: said.kind,
                    code: said.code,
                    checksum: zerocopy::transmute!(checksum),
                    value: U32::new(said.value),
                },
            )?;
        }
        Family::V6 => {
            let payload_len = length - 40;
            let pseudo =
                checksum::pseudo(destination, &hdr.key.source, payload_len, protocol::ICMPV6);
            let checksum = checksum::over(&message, pseudo);
            pkt.write(
                ETHERNET_LEN,
                &AnswerV6 {
                    ip: Ipv6 {
                        version_class_label: U32::new(6 << 28),
                        payload_len: U16::new(payload_len),
                        next_header: protocol::ICMPV6,
                        hop_limit: TTL,
                        source: v6_bytes(destination),
                        destination: v6_bytes(&hdr.key.source),
                    },
                    kind: said.kind,
                    code: said.code,
                    checksum: zerocopy::transmute!(checksum),
                    value: U32::new(said.value),
                },
            )?;
        }
    }
    hdr.length = u32::from(ETHERNET_LEN + length);
    Ok(())
}

/// What stands in the place of a transport checksum that is left to hardware: the sum of the pseudo
/// header. None where the checksum is complete.
///
/// Hardware that the answer goes out by will complete it, within the quotation; where the answer
/// stays on machines that pass such packets to each other, nobody looks at checksums.
#[inline(always)]
fn seed<P: Packet>(pkt: &P, hdr: &Headers) -> Option<u16> {
    let seed = hdr.checksum_seed()?;
    let field: u16 = pkt.read(hdr.l4 + checksum_offset(hdr.key.protocol)?).ok()?;
    checksum::are_same(seed, field).then_some(seed)
}

/// Sends the answer where the packet came from.
#[inline(always)]
fn send_back<E: Env, P: Packet>(
    env: &E,
    pkt: &mut P,
    work: &mut Work,
) -> Result<Verdict, DropReason> {
    let verdict = match work.arrival.by {
        flags::ARRIVAL_POD => {
            pkt.write(
                0,
                &Macs {
                    destination: work.arrival.mac.into(),
                    source: env.gateway_mac(),
                },
            )?;
            Verdict::new(Action::IntoPod, work.arrival.interface)
        }
        flags::ARRIVAL_TUNNEL => {
            work.flow = work.reply;
            work.hdr.key = work.reply_key;
            let resolve = nexthop::of(env, work)?;
            forward::into_tunnel(env, pkt, work, resolve)?
        }
        _ => {
            let came: Ethernet = pkt.read(0)?;
            pkt.write(
                0,
                &Macs {
                    destination: came.source,
                    source: came.destination,
                },
            )?;
            pkt.set_mark(mark::with(pkt.mark(), mark::FORWARDED));
            Verdict::new(Action::Out, work.arrival.interface)
        }
    };
    let (direction, bytes) = (work.arrival.direction, work.hdr.length);
    observe::forwarded(env, direction, Forward::Answered, bytes);
    Ok(verdict)
}
