//! Refusing flows to a remote that has no ports left, before they cost more than that.
//!
//! A flow that is refused for want of a port has been routed and judged by then. Where a search has
//! just found all ports taken, the next flows of the same pods to the same remote are refused at
//! once, but for one in [`EVERY`], whose search finds what becomes free. It is the remote alone that
//! counts, not the address to masquerade behind: which that is only the route says, and as a rule
//! there is one for each remote.

use crate::abi::flow::flags;
use crate::abi::search::MAX_REFUSALS;
use crate::env::{Env, Table};
use crate::stage::flow::scramble;
use crate::verdict::DropReason;
use crate::work::Work;

/// One flow in so many is tried all the same.
pub const EVERY: u32 = 16;

/// Slot of the remote that a packet goes to.
#[inline(always)]
fn slot<E: Env>(env: &E, work: &Work) -> u32 {
    let key = &work.hdr.key;
    let mut mixed = env.seed();
    for word in key.destination.words() {
        mixed = scramble(mixed ^ word);
    }
    let port = u32::from(key.destination_port.get());
    scramble(mixed ^ (port << 8 | u32::from(key.protocol))) % MAX_REFUSALS
}

/// Lets the first packet of a pod's flow pass, or not.
///
/// # Errors
///
/// [`DropReason::NatExhausted`] and [`DropReason::NatShare`], as the last search said.
#[inline(never)]
pub fn check<E: Env>(env: &E, work: &Work) -> Result<(), DropReason> {
    let Work {
        hdr,
        arrival,
        origin,
        ..
    } = work;
    if arrival.by != flags::ARRIVAL_POD {
        return Ok(());
    }
    let reason = env.refusals().update(&slot(env, work), |refusal| {
        if refusal.until_s <= arrival.now_s
            || refusal.remote != hdr.key.destination
            || refusal.port != hdr.key.destination_port
            || refusal.protocol != hdr.key.protocol
            || refusal.end != 0 && refusal.end != origin.end.raw()
        {
            return 0;
        }
        refusal.turns = refusal.turns.wrapping_add(1);
        if refusal.turns % EVERY == 0 {
            return 0;
        }
        u32::from(refusal.reason)
    });
    match reason {
        Some(code) if code == DropReason::NatShare.code() => Err(DropReason::NatShare),
        Some(code) if code == DropReason::NatExhausted.code() => Err(DropReason::NatExhausted),
        _ => Ok(()),
    }
}

/// Has the flows that are to come refused, for `reason` and no longer than `until_s`: those of the
/// same endpoint where it is for its share.
#[inline(never)]
pub fn note<E: Env>(env: &E, work: &Work, reason: DropReason, until_s: u32) {
    let Work { hdr, reply, .. } = work;
    env.refusals().update(&slot(env, work), |refusal| {
        refusal.remote = hdr.key.destination;
        refusal.port = hdr.key.destination_port;
        refusal.protocol = hdr.key.protocol;
        refusal.reason = reason as u8;
        refusal.end = match reason {
            DropReason::NatShare => reply.to,
            _ => 0,
        };
        refusal.until_s = until_s;
    });
}

/// A port was found.
#[inline(never)]
pub fn lift<E: Env>(env: &E, work: &Work) {
    env.refusals().update(&slot(env, work), |refusal| {
        if refusal.remote == work.hdr.key.destination {
            refusal.until_s = 0;
        }
    });
}
