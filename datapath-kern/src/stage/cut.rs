//! Cutting an IPv4 packet that the tunnel is too narrow for, where its sender allows that.
//!
//! A program cannot make two packets of one, but it can send copies round the gateway pair: each
//! copy comes back to [`pipeline::to_host`](crate::pipeline::to_host) with a ticket that says which
//! piece to make of it, and goes on from there as a fragment (RFC 791, section 3.2). On the way the
//! kernel completes the transport checksum, which the far side of the pair does not offload.

use zerocopy::network_endian::U16;

use crate::abi::flow::flags;
use crate::abi::ipcache::kind;
use crate::abi::mark;
use crate::abi::metric::Direction;
use crate::env::{Env, Table};
use crate::packet::{ETHERNET_LEN, Family, Frame, Packet, Part};
use crate::stage::{forward, parse};
use crate::verdict::{Action, DropReason, Verdict};
use crate::wire::checksum;
use crate::wire::ip::Ipv4;
use crate::work::Work;

/// Pieces that a packet is cut into at most: 9000 bytes for a path of 576.
const MAX_PIECES: u32 = 18;

/// Bit of the offset in a ticket, which is a multiple of eight: what is cut is a fragment.
const OF_FRAGMENT: u16 = 1;

/// Length of an IPv4 header without options, bytes.
const HEADER_LEN: u16 = 20;

/// Sends copies of the packet round, one for each piece that [`forward::room`] wants.
///
/// # Errors
///
/// [`DropReason::FragmentationNeeded`] where it must not be cut, or cannot be.
#[inline(never)]
pub fn send_round<E: Env, P: Packet>(
    env: &E,
    pkt: &mut P,
    work: &Work,
) -> Result<Verdict, DropReason> {
    let too_big = DropReason::FragmentationNeeded;
    let hdr = &work.hdr;
    // Segments are cut by whoever makes them; what was round once is not cut again.
    if hdr.family == Family::V6
        || hdr.l3 != ETHERNET_LEN
        || work.flow.target() != flags::TARGET_TUNNEL
        || pkt.segment_bytes() != 0
        || mark::is(pkt.mark(), mark::PIECE)
    {
        return Err(too_big);
    }
    let ip: Ipv4 = pkt.read(ETHERNET_LEN)?;
    let size = u32::from(forward::room(work).saturating_sub(HEADER_LEN) & !7);
    let payload = u32::from(hdr.ip_len.saturating_sub(HEADER_LEN));
    let may = ip.fragment.get() & Ipv4::DONT_FRAGMENT == 0 && ip.header_len() == HEADER_LEN;
    if !may || size == 0 || payload > size * MAX_PIECES {
        return Err(too_big);
    }
    pkt.set_mark(mark::with(pkt.mark(), mark::PIECE));
    let of_fragment = u32::from(if hdr.part == Part::Whole {
        0
    } else {
        OF_FRAGMENT
    });
    for piece in 0..MAX_PIECES {
        let offset = piece * size;
        if offset >= payload {
            break;
        }
        let rest = payload - offset;
        let length = if rest < size { rest } else { size };
        pkt.send_copy(env.net_interface(), (offset | of_fragment) << 16 | length)?;
    }
    Ok(Verdict::new(Action::Consumed, 0))
}

/// Makes a copy that has come round the piece that its ticket says, and [`Work::hdr`] and
/// [`Work::arrival`] and [`Work::of_fragment`] what they are for a packet of its sender.
///
/// # Errors
///
/// [`DropReason::NotForwarded`] for what is no copy of ours, and what the packet says.
#[inline(always)]
pub fn make_piece<E: Env, P: Packet>(
    env: &E,
    pkt: &mut P,
    work: &mut Work,
) -> Result<(), DropReason> {
    let ticket = pkt.ticket();
    #[allow(clippy::cast_possible_truncation, reason = "two halves")]
    let (offset, length) = ((ticket >> 16) as u16, ticket as u16);
    work.of_fragment = offset & OF_FRAGMENT != 0;
    shorten(pkt, offset & !OF_FRAGMENT, length)?;
    if parse::frame(pkt, &mut work.hdr)? != Frame::Ip {
        return Err(DropReason::NotForwarded);
    }
    let source = env.ipcache(&work.hdr.key.source).unwrap_or_default();
    work.arrive(env, pkt, flags::ARRIVAL_HOST, Direction::Egress);
    if source.kind == kind::ENDPOINT {
        let endpoint = env
            .endpoints()
            .get(&u32::from(source.index))
            .ok_or(DropReason::UnknownEndpoint)?;
        work.arrival.by = flags::ARRIVAL_POD;
        work.arrival.interface = endpoint.interface;
        work.arrival.mac = endpoint.mac_words();
    }
    Ok(())
}

/// Leaves `length` bytes at `offset` of the payload, and an IP header to go with them.
#[inline(never)]
fn shorten<P: Packet>(pkt: &mut P, offset: u16, length: u16) -> Result<(), DropReason> {
    let mut ip: Ipv4 = pkt.read(ETHERNET_LEN)?;
    let end = HEADER_LEN.saturating_add(offset).saturating_add(length);
    let whole = ip.total_len.get();
    if length == 0 || offset & 7 != 0 || end > whole {
        return Err(DropReason::NotForwarded);
    }
    pkt.truncate(u32::from(ETHERNET_LEN) + u32::from(end))?;
    pkt.remove_payload(offset)?;
    // What is cut may be a fragment itself.
    let at = ip.fragment_offset() + (offset >> 3);
    let more = ip.more_fragments() || end < whole;
    ip.fragment = U16::new(at | if more { Ipv4::MORE_FRAGMENTS } else { 0 });
    ip.total_len = U16::new(HEADER_LEN + length);
    ip.checksum = U16::ZERO;
    let words: [u16; 10] = zerocopy::transmute!(ip);
    ip.checksum = zerocopy::transmute!(checksum::over(&words, 0));
    pkt.write(ETHERNET_LEN, &ip)
}
