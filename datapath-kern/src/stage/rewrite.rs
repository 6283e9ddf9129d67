//! Changing a packet on its way: translation, and one hop less to live.
//!
//! Direct stores, but for a transport checksum that may be left to hardware: see
//! [`Packet::fix_checksum`].

use zerocopy::network_endian::U16;

use crate::abi::flow::{Flow, flags};
use crate::packet::{ChecksumChange, Family, Headers, Kind, Packet, Part};
use crate::stage::fragment::identification;
use crate::stage::quoted;
use crate::verdict::DropReason;
use crate::wire::checksum;
use crate::wire::ip::{Ipv4Half, protocol, v6_bytes};
use crate::wire::transport::{checksum_is_optional, checksum_offset, port_offset};
use crate::work::Work;

/// Translates the packet as [`Work::flow`] says and, where it is `routed`, takes one off its TTL.
///
/// # Errors
///
/// [`DropReason::TtlExceeded`] where nothing is left of it, or what the packet says.
#[inline(always)]
pub fn apply<P: Packet>(pkt: &mut P, work: &Work, routed: bool) -> Result<(), DropReason> {
    let Work { hdr, flow, .. } = work;
    let translated = flow.flags & (flags::SNAT | flags::DNAT) != 0;
    let ttl = hdr.ttl.saturating_sub(u8::from(routed));
    if routed && ttl == 0 {
        return Err(DropReason::TtlExceeded);
    }
    if routed || translated {
        let replaced = translated && hdr.part != Part::Whole && flow.has(flags::SNAT);
        let id_delta = if replaced {
            identification::write(pkt, work)?
        } else {
            0
        };
        match hdr.family {
            Family::V4 => ipv4(pkt, work, ttl, translated, id_delta)?,
            Family::V6 => ipv6(pkt, work, ttl, translated)?,
        }
    }
    match (hdr.kind, hdr.part) {
        _ if !translated => {}
        (Kind::IcmpError, _) => quoted::translate(pkt, work)?,
        (_, Part::Later) => {}
        _ => transport(pkt, hdr, flow)?,
    }
    Ok(())
}

/// Stores what is new in an IPv4 header, all at once; `id_delta` is what a new identification adds to
/// its sum.
#[inline(always)]
fn ipv4<P: Packet>(
    pkt: &mut P,
    work: &Work,
    ttl: u8,
    translated: bool,
    id_delta: u16,
) -> Result<(), DropReason> {
    let Work { hdr, flow, .. } = work;
    let at = hdr.l3 + 8;
    let mut half: Ipv4Half = pkt.read(at)?;
    let mut delta = u32::from(id_delta);
    if ttl != half.ttl {
        let (old, new) = (u16::from(half.ttl) << 8, u16::from(ttl) << 8);
        delta += u32::from(checksum::port_delta(old, new));
        half.ttl = ttl;
    }
    if translated {
        let address = flow.nat_address.v4_word().to_ne_bytes();
        if flow.has(flags::DNAT) {
            half.destination = address;
        } else {
            half.source = address;
        }
        delta += u32::from(flow.address_delta);
    }
    half.checksum = checksum::adjust(half.checksum, checksum::fold(delta));
    pkt.write(at, &half)
}

/// Stores what is new in an IPv6 header.
#[inline(always)]
fn ipv6<P: Packet>(pkt: &mut P, work: &Work, ttl: u8, translated: bool) -> Result<(), DropReason> {
    let Work { hdr, flow, .. } = work;
    // Two bytes: of one, the compiler compares addresses in a way that the verifier does not follow.
    let [next_header, _]: [u8; 2] = pkt.read(hdr.l3 + 6)?;
    pkt.write(hdr.l3 + 6, &[next_header, ttl])?;
    if translated {
        let offset = hdr.l3 + if flow.has(flags::DNAT) { 24 } else { 8 };
        pkt.write(offset, &v6_bytes(&flow.nat_address))?;
    }
    Ok(())
}

/// Stores the new port and has the checksum fixed.
///
/// The addresses count by themselves: with the checksum left to hardware the field holds the sum of
/// the pseudo header, which the port is no part of. ICMP has no pseudo header.
///
/// What the field would hold then is only known without options and extension headers, which may
/// name another destination.
#[inline(always)]
fn transport<P: Packet>(pkt: &mut P, hdr: &Headers, flow: &Flow) -> Result<(), DropReason> {
    let Some(offset) = checksum_offset(hdr.key.protocol) else {
        return Ok(());
    };
    let mut change = ChecksumChange {
        addresses: 0,
        rest: 0,
        seed: None,
        optional: checksum_is_optional(hdr.key.protocol),
        v6: hdr.family == Family::V6,
    };
    if hdr.key.protocol != protocol::ICMP {
        change.addresses = flow.address_delta;
    }
    if flow.port_delta_matters() {
        let port: U16 = flow.nat_port;
        let destination = flow.has(flags::DNAT);
        pkt.write(hdr.l4 + port_offset(hdr.key.protocol, destination), &port)?;
        change.rest = flow.port_delta;
    }
    let plain = match hdr.family {
        Family::V4 => 20,
        Family::V6 => 40,
    };
    if hdr.part == Part::Whole && hdr.l4 == hdr.l3 + plain {
        change.seed = hdr.checksum_seed();
    }
    pkt.fix_checksum(hdr.l4 + offset, change)
}
