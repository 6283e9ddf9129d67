//! Next hops: claimed once per neighbour, kept fresh by the packets that use them.
//!
//! A hop that is in use asks the kernel once a second, and the packet that asked goes out through
//! the kernel's neighbour table, which so learns that the neighbour is wanted and probes it. Changes
//! of neighbours and routes are followed without any process.

use crate::abi::flow::{End, flags};
use crate::abi::nexthop::{CLAIMED, CLAIMED_BASE, Claim, NextHop, kind};
use crate::env::{Env, Fib, FibQuery, Table};
use crate::stage::flow;
use crate::verdict::DropReason;
use crate::work::Work;

/// Slots tried for a neighbour before its flows have to do without one.
const PROBES: u32 = 8;

/// A claimed slot and its tag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Zero where there is none.
    pub index: u16,
    /// Tag to go with it.
    pub tag: u16,
}

/// Finds or claims the slot of the neighbour in `found`.
///
/// None where all the slots it could have are taken; its flows then look the way up per packet.
#[inline(never)]
pub fn claim<E: Env>(env: &E, found: &NextHop) -> Slot {
    let wanted = Claim {
        gateway: found.gateway,
        interface: found.interface,
        reserved: 0,
    };
    let [a, b, c, d] = found.gateway.words();
    let mixed = a ^ b.rotate_left(8) ^ c.rotate_left(16) ^ d ^ found.interface;
    let start = flow::scramble(mixed);
    for probe in 0..PROBES {
        let slot = CLAIMED_BASE + (start.wrapping_add(probe) & (CLAIMED - 1));
        let ours = match env.claims().get(&slot) {
            Some(held) => held == wanted,
            None => env.claims().insert(&slot, &wanted).is_ok() && fill(env, slot, found),
        };
        if ours {
            let tag = env.next_hops().get(&slot).unwrap_or_default().tag;
            #[allow(
                clippy::cast_possible_truncation,
                reason = "slots are below MAX_NEXT_HOPS"
            )]
            return Slot {
                index: slot as u16,
                tag,
            };
        }
    }
    Slot::default()
}

/// Writes a slot that was just claimed; its tag changes, so that whoever still points here looks
/// again.
#[inline(always)]
fn fill<E: Env>(env: &E, slot: u32, found: &NextHop) -> bool {
    let written = env.next_hops().update(&slot, |hop| {
        let tag = hop.tag.wrapping_add(1);
        *hop = *found;
        hop.tag = tag;
        hop.refreshed_s = 0;
        hop.path_mtu_until_s = 0;
    });
    written.is_some()
}

/// The next hop of the packet's flow, into [`Work::hop`]. Whether the kernel must resolve the
/// neighbour on the way.
///
/// # Errors
///
/// [`DropReason::NoRoute`] where the routing table has no way any more.
#[inline(always)]
pub fn of<E: Env>(env: &E, work: &mut Work) -> Result<bool, DropReason> {
    let Work {
        flow, arrival, hop, ..
    } = work;
    let slot = u32::from(flow.next_hop);
    let found = env
        .next_hops()
        .update(&slot, |remembered| *hop = *remembered)
        .is_some();
    let good = found && slot != 0 && hop.tag == flow.next_hop_tag && hop.kind != kind::NONE;
    if good && (hop.kind == kind::POD || hop.refreshed_s == arrival.now_s) {
        return Ok(hop.kind == kind::UNRESOLVED);
    }
    ask(env, work, good)?;
    Ok(true)
}

/// Asks the routing table, and mends the hop or points the flow to another one.
#[inline(never)]
fn ask<E: Env>(env: &E, work: &mut Work, good: bool) -> Result<(), DropReason> {
    query(env, work)?;
    let Work {
        hdr,
        flow,
        arrival,
        query,
        hop,
        ..
    } = work;
    if env.fib(query, hop) != Fib::Found || env.uplinks().get(&hop.interface).is_none() {
        return Err(DropReason::NoRoute);
    }
    hop.refreshed_s = arrival.now_s;
    let slot = u32::from(flow.next_hop);
    let tunnelled = flow.target() == flags::TARGET_TUNNEL;
    if good {
        // A peer's slot is the peer's for good. A claimed slot is one neighbour's: when the way
        // leads elsewhere now, all flows that came here must look for themselves.
        env.next_hops().update(&slot, |remembered| {
            let NextHop {
                tag,
                path_mtu_bytes,
                path_mtu_until_s,
                ..
            } = *remembered;
            let same = remembered.gateway == hop.gateway && remembered.interface == hop.interface;
            if tunnelled || same {
                *remembered = *hop;
                remembered.tag = tag;
                remembered.path_mtu_bytes = path_mtu_bytes;
                remembered.path_mtu_until_s = path_mtu_until_s;
            } else {
                remembered.tag = tag.wrapping_add(1);
            }
        });
    } else if !tunnelled {
        let slot = claim(env, hop);
        flow::update(env, &hdr.key, |flow| {
            flow.next_hop = slot.index;
            flow.next_hop_tag = slot.tag;
        });
    }
    Ok(())
}

/// What to ask for a flow: the way to the peer, or to where its packets go after translation.
#[inline(always)]
fn query<E: Env>(env: &E, work: &mut Work) -> Result<(), DropReason> {
    let Work {
        hdr, flow, query, ..
    } = work;
    *query = match flow.target() {
        flags::TARGET_POD => return Err(DropReason::NoRoute),
        flags::TARGET_TUNNEL => {
            let end = End::from_raw(flow.to);
            let peer = env.peers().get(&end.slot()).ok_or(DropReason::NoRoute)?;
            FibQuery {
                source: peer.local,
                destination: peer.address,
            }
        }
        _ => FibQuery {
            source: if flow.has(flags::SNAT) {
                flow.nat_address
            } else {
                hdr.key.source
            },
            destination: if flow.has(flags::DNAT) {
                flow.nat_address
            } else {
                hdr.key.destination
            },
        },
    };
    Ok(())
}
