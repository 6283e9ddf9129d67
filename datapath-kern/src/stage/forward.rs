//! Sending a packet where its flow says.

use crate::abi::flow::{flags, verdict};
use crate::abi::mark;
use crate::abi::nexthop::{NextHop, kind};
use crate::env::Env;
use crate::packet::{Packet, Wrapped};
use crate::stage::fragment::identification;
use crate::stage::nexthop;
use crate::stage::observe;
use crate::stage::{cut, encap, rewrite};
use crate::verdict::{Action, DropReason, Forward, Verdict};
use crate::wire::ethernet::Macs;
use crate::wire::underlay::{OVERHEAD_V4, OVERHEAD_V6};
use crate::work::Work;

/// Applies [`Work::flow`] to the packet.
///
/// # Errors
///
/// [`DropReason::PolicyDenied`] where the flow was judged so, and what the way out says.
#[inline(always)]
pub fn apply<E: Env, P: Packet>(
    env: &E,
    pkt: &mut P,
    work: &mut Work,
) -> Result<Verdict, DropReason> {
    work.judged = true;
    if !matches!(work.flow.verdict, verdict::ALLOW | verdict::AUDIT) {
        return Err(DropReason::PolicyDenied);
    }
    if work.flow.target() == flags::TARGET_HOST {
        return to_host(env, pkt, work);
    }
    let resolve = nexthop::of(env, work)?;
    if !fits(pkt, work) {
        return cut::send_round(env, pkt, work);
    }
    identification::choose(env, work)?;
    // What this node's own stack sends was not routed by us.
    rewrite::apply(pkt, work, work.arrival.by != flags::ARRIVAL_HOST)?;
    let (verdict, how) = match work.flow.target() {
        flags::TARGET_POD => {
            link_header(pkt, &work.hop)?;
            (
                Verdict::new(Action::IntoPod, work.hop.interface),
                Forward::ToEndpoint,
            )
        }
        flags::TARGET_TUNNEL => (into_tunnel(env, pkt, work, resolve)?, Forward::ToOverlay),
        _ => {
            pkt.set_mark(mark::with(pkt.mark(), mark::FORWARDED));
            link_header(pkt, &work.hop)?;
            (leave(&work.hop, resolve), Forward::ToNetwork)
        }
    };
    observe::forwarded(env, work.arrival.direction, how, work.hdr.length);
    Ok(verdict)
}

/// Sends the packet to the peer of its flow, by [`Work::hop`].
///
/// # Errors
///
/// What [`encap::wrap`] says; [`DropReason::RewriteFailed`] where the neighbour is not known and
/// the kernel would not find the outer packet to resolve it.
#[inline(always)]
pub(super) fn into_tunnel<E: Env, P: Packet>(
    env: &E,
    pkt: &mut P,
    work: &mut Work,
    resolve: bool,
) -> Result<Verdict, DropReason> {
    pkt.set_mark(mark::with(pkt.mark(), mark::FORWARDED));
    let known = encap::wrap(env, pkt, work)? == Wrapped::Known;
    if !known && work.hop.kind != kind::RESOLVED {
        return Err(DropReason::RewriteFailed);
    }
    Ok(leave(&work.hop, resolve && known))
}

/// Whether the way takes the packet, or else the segments that it will be cut into.
#[inline(always)]
fn fits<P: Packet>(pkt: &P, work: &Work) -> bool {
    let room = u32::from(room(work));
    let hdr = &work.hdr;
    if room == 0 || u32::from(hdr.ip_len) <= room {
        return true;
    }
    let segment = pkt.segment_bytes();
    segment != 0 && u32::from(hdr.l4 - hdr.l3) + u32::from(hdr.l4_len) + segment <= room
}

/// Longest packet that the next hop in [`Work::hop`] takes from the flow, bytes; zero: not known.
#[inline(always)]
#[must_use]
pub fn room(work: &Work) -> u16 {
    let hop = &work.hop;
    if work.flow.target() != flags::TARGET_TUNNEL {
        return hop.mtu_bytes;
    }
    let overhead = if hop.gateway.is_v4() {
        OVERHEAD_V4
    } else {
        OVERHEAD_V6
    };
    let learned = hop.path_mtu_until_s > work.arrival.now_s;
    if learned && (hop.mtu_bytes == 0 || hop.path_mtu_bytes < hop.mtu_bytes) {
        hop.path_mtu_bytes.saturating_sub(overhead)
    } else {
        hop.mtu_bytes.saturating_sub(overhead)
    }
}

/// Hands a packet to this node: it stays where it is on an uplink, and comes in by the gateway
/// pair from anywhere else.
#[inline(always)]
fn to_host<E: Env, P: Packet>(env: &E, pkt: &mut P, work: &Work) -> Result<Verdict, DropReason> {
    let Work {
        hdr, flow, arrival, ..
    } = work;
    rewrite::apply(pkt, work, false)?;
    let how = if flow.has(flags::VIA_STACK) {
        Forward::ToStack
    } else {
        Forward::ToHost
    };
    observe::forwarded(env, arrival.direction, how, hdr.length);
    if arrival.by == flags::ARRIVAL_UPLINK {
        return Ok(Verdict::PASS);
    }
    pkt.write(0, &env.gateway_mac())?;
    pkt.set_mark(mark::with(pkt.mark(), mark::TO_HOST));
    Ok(Verdict::new(Action::ToHost, env.host_interface()))
}

/// Applies the flow of a packet that the stack sends and that goes on by itself.
///
/// # Errors
///
/// As [`apply`].
#[inline(always)]
pub fn in_place<E: Env, P: Packet>(
    env: &E,
    pkt: &mut P,
    work: &mut Work,
) -> Result<Verdict, DropReason> {
    work.judged = true;
    if !matches!(work.flow.verdict, verdict::ALLOW | verdict::AUDIT) {
        return Err(DropReason::PolicyDenied);
    }
    identification::choose(env, work)?;
    rewrite::apply(pkt, work, false)?;
    Ok(Verdict::PASS)
}

/// Out of the interface of the hop, by the kernel's neighbour table where that is due.
#[inline(always)]
fn leave(hop: &NextHop, resolve: bool) -> Verdict {
    Verdict::new(
        if resolve {
            Action::OutToNeighbour
        } else {
            Action::Out
        },
        hop.interface,
    )
}

/// Writes the Ethernet addresses of the hop.
#[inline(always)]
fn link_header<P: Packet>(pkt: &mut P, hop: &NextHop) -> Result<(), DropReason> {
    pkt.write(
        0,
        &Macs {
            destination: hop.destination_mac,
            source: hop.source_mac,
        },
    )
}
