//! Changing a packet on its way: translation, and one hop less to live.
//!
//! Direct stores, but for the transport checksum: see [`Packet::fix_checksum`].

use zerocopy::network_endian::U16;

use crate::abi::flow::{Flow, flags};
use crate::packet::{ChecksumCovers, Family, Headers, Kind, Packet, Part};
use crate::stage::fragment::identification;
use crate::stage::quoted;
use crate::verdict::DropReason;
use crate::wire::checksum;
use crate::wire::ip::{protocol, v6_bytes};
use crate::wire::transport::{checksum_is_optional, checksum_offset, port_offset};
use crate::work::Work;

/// Translates the packet as [`Work::flow`] says and, where it is `routed`, takes one off its TTL.
///
/// # Errors
///
/// [`DropReason::TtlExceeded`] where nothing is left of it, or what the packet says.
#[inline(never)]
pub fn apply<P: Packet>(pkt: &mut P, work: &Work, routed: bool) -> Result<(), DropReason> {
    let Work { hdr, flow, .. } = work;
    let translated = flow.flags & (flags::SNAT | flags::DNAT) != 0;
    let mut header_delta = 0;
    if routed {
        if hdr.ttl <= 1 {
            return Err(DropReason::TtlExceeded);
        }
        let ttl = hdr.ttl - 1;
        match hdr.family {
            Family::V4 => {
                let [_, protocol]: [u8; 2] = pkt.read(hdr.l3 + 8)?;
                pkt.write(hdr.l3 + 8, &[ttl, protocol])?;
                header_delta = checksum::port_delta(u16::from(hdr.ttl) << 8, u16::from(ttl) << 8);
            }
            Family::V6 => {
                let [next_header, _]: [u8; 2] = pkt.read(hdr.l3 + 6)?;
                pkt.write(hdr.l3 + 6, &[next_header, ttl])?;
            }
        }
    }
    if translated {
        address(pkt, hdr, flow)?;
        header_delta = checksum::fold(u32::from(header_delta) + u32::from(flow.address_delta));
        if hdr.part != Part::Whole && flow.has(flags::SNAT) {
            let delta = identification::write(pkt, work)?;
            header_delta = checksum::fold(u32::from(header_delta) + u32::from(delta));
        }
    }
    if hdr.family == Family::V4 && (routed || translated) {
        let old: [u8; 2] = pkt.read(hdr.l3 + 10)?;
        let new = checksum::adjust(u16::from_ne_bytes(old), header_delta).to_ne_bytes();
        pkt.write(hdr.l3 + 10, &new)?;
    }
    match (hdr.kind, hdr.part) {
        _ if !translated => {}
        (Kind::IcmpError, _) => quoted::translate(pkt, work)?,
        (_, Part::Later) => {}
        _ => transport(pkt, hdr, flow)?,
    }
    Ok(())
}

/// Stores the new address.
#[inline(always)]
fn address<P: Packet>(pkt: &mut P, hdr: &Headers, flow: &Flow) -> Result<(), DropReason> {
    let destination = flow.has(flags::DNAT);
    match hdr.family {
        Family::V4 => {
            let offset = hdr.l3 + if destination { 16 } else { 12 };
            pkt.write(offset, &flow.nat_address.v4_word().to_ne_bytes())
        }
        Family::V6 => {
            let offset = hdr.l3 + if destination { 24 } else { 8 };
            pkt.write(offset, &v6_bytes(&flow.nat_address))
        }
    }
}

/// Stores the new port and has the checksum fixed.
///
/// One call for the addresses, which the pseudo header of all but ICMP covers, and one more where
/// the port changed: with the checksum left to hardware the field holds the sum of the pseudo
/// header, which the port is no part of, so the two differences cannot go in one.
#[inline(always)]
fn transport<P: Packet>(pkt: &mut P, hdr: &Headers, flow: &Flow) -> Result<(), DropReason> {
    let Some(offset) = checksum_offset(hdr.key.protocol) else {
        return Ok(());
    };
    let at = hdr.l4 + offset;
    let optional = checksum_is_optional(hdr.key.protocol);
    let v6 = hdr.family == Family::V6;
    if flow.port_delta_matters() {
        let port: U16 = flow.nat_port;
        let destination = flow.has(flags::DNAT);
        pkt.write(hdr.l4 + port_offset(hdr.key.protocol, destination), &port)?;
    }
    if hdr.key.protocol != protocol::ICMP {
        let covers = ChecksumCovers {
            addresses: true,
            optional,
            v6,
        };
        pkt.fix_checksum(at, flow.address_delta, covers)?;
    }
    if flow.port_delta_matters() {
        let covers = ChecksumCovers {
            addresses: false,
            optional,
            v6,
        };
        pkt.fix_checksum(at, flow.port_delta, covers)?;
    }
    Ok(())
}
