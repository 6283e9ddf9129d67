//! Out of the tunnel: validate first, then find the flow of the packet within, then unwrap.

use datapath_tunnel::geneve;
use zerocopy::network_endian::U16;

use crate::abi::flow::flags;
use crate::packet::{ETHERNET_LEN, Family, Frame, Headers, Kind, MAX_L4_OFFSET, Packet};
use crate::stage::parse;
use crate::verdict::DropReason;
use crate::wire::ethernet;
use crate::work::Work;

/// Options walked at most: as many as fit when each is four bytes long.
const MAX_OPTIONS: usize = geneve::MAX_OPTIONS_LEN / 4;

/// Bytes that Ethernet pads frames to, less the check sequence (IEEE 802.3, 3.2.8). What is in a
/// tunnel is longer, and padding behind a header that was cut short would be read for its rest.
const PADDED_LEN: u32 = 60;

/// What a tunnel packet says of itself, and what [`unwrap`] removes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wrapping {
    /// Offset of the inner frame.
    start: u16,
    /// IP version of the outer packet.
    family: Family,
}

/// Looks into a tunnel packet: from here on [`Work::hdr`] and [`Work::arrival`] speak of the packet
/// within.
///
/// # Errors
///
/// [`DropReason::TunnelMalformed`], [`DropReason::TunnelCriticalOption`], and what the inner
/// headers say.
#[inline(always)]
pub fn look_inside<P: Packet>(pkt: &P, work: &mut Work) -> Result<(), DropReason> {
    let (vni, start) = header(pkt, &work.hdr)?;
    work.wrapping = Wrapping {
        start,
        family: work.hdr.family,
    };
    work.arrival.by = flags::ARRIVAL_TUNNEL;
    work.arrival.peer = work.hdr.key.source;
    work.arrival.local = work.hdr.key.destination;
    work.arrival.vni = vni;
    if parse::at(pkt, start, &mut work.hdr)? != Frame::Ip {
        return Err(DropReason::TunnelMalformed);
    }
    work.hdr.length -= u32::from(start);
    match work.hdr.kind {
        Kind::Flow | Kind::IcmpError => Ok(()),
        _ => Err(DropReason::IcmpUnrelated),
    }
}

/// Takes the packet out of the tunnel packet.
///
/// # Errors
///
/// [`DropReason::RewriteFailed`] where the kernel refuses.
#[inline(always)]
pub fn unwrap<P: Packet>(pkt: &mut P, work: &mut Work) -> Result<(), DropReason> {
    let Work {
        hdr,
        quoted,
        wrapping,
        ..
    } = work;
    pkt.decapsulate(wrapping.start, hdr.family)?;
    hdr.l3 = ETHERNET_LEN;
    hdr.l4 -= wrapping.start;
    quoted.l3 = quoted.l3.wrapping_sub(wrapping.start);
    quoted.l4 = quoted.l4.wrapping_sub(wrapping.start);
    if wrapping.family == hdr.family {
        return Ok(());
    }
    let ether_type = match hdr.family {
        Family::V4 => ethernet::IPV4,
        Family::V6 => ethernet::IPV6,
    };
    pkt.write(ETHERNET_LEN - 2, &U16::new(ether_type))
}

/// Validates the GENEVE header: the VNI, and the offset at which the inner frame begins.
#[inline(always)]
fn header<P: Packet>(pkt: &P, outer: &Headers) -> Result<(u32, u16), DropReason> {
    let at = outer.l4 + 8;
    if pkt.len() <= PADDED_LEN {
        return Err(DropReason::TunnelMalformed);
    }
    let header: geneve::Header = pkt.read(at).map_err(|_| DropReason::TunnelMalformed)?;
    if header.check_version().is_err()
        || header.is_control()
        || header.protocol() != geneve::ETHERTYPE_TEB
    {
        return Err(DropReason::TunnelMalformed);
    }
    if header.has_critical_options() {
        return Err(DropReason::TunnelCriticalOption);
    }
    #[allow(clippy::cast_possible_truncation, reason = "at most MAX_OPTIONS_LEN")]
    let options_len = header.options_len() as u16;
    let start = at + 8 + options_len;
    // No frame is read that far; in the kernel the offsets would wrap around.
    if start > MAX_L4_OFFSET {
        return Err(DropReason::TunnelMalformed);
    }
    if options_len != 0 {
        options(pkt, at + 8, options_len)?;
    }
    Ok((header.vni().get(), start))
}

/// Walks the options: none of them is known, so none may be critical.
#[inline(never)]
fn options<P: Packet>(pkt: &P, start: u16, length: u16) -> Result<(), DropReason> {
    let end = start + length;
    let mut at = start;
    for _ in 0..MAX_OPTIONS {
        if at >= end {
            break;
        }
        let [_, _, kind, words]: [u8; 4] = pkt.read(at).map_err(|_| DropReason::TunnelMalformed)?;
        if kind & 0x80 != 0 {
            return Err(DropReason::TunnelCriticalOption);
        }
        at += 4 + u16::from(words & 0x1f) * 4;
    }
    if at == end {
        Ok(())
    } else {
        Err(DropReason::TunnelMalformed)
    }
}
