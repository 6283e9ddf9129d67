//! Each endpoint's share of the flow tables: one cannot starve another.
//!
//! Proven flows are counted in the established table: an endpoint that has its share of it begins
//! no further flow until one of its own is gone; those that it has go on.
//!
//! The pending table lets go of entries by itself, so those are not counted. What is counted is how
//! many flows an endpoint begins in a second without proving them: as long as each stays below its
//! share, a flow in the making has the table's turn-over time to prove itself, whoever floods. The
//! second passes by itself, so a quota mends itself without any process.
//!
//! A flow from outside counts against the pod that it is begun to, but apart from those that the pod
//! begins: who is flooded can still connect. [`Flow::charge`] tells whose a flow is.

use crate::abi::flow::Flow;
use crate::abi::tally::Tally;
use crate::env::{Env, Table};
use crate::verdict::DropReason;

/// Whether the endpoint of a new flow may begin it.
///
/// # Errors
///
/// [`DropReason::EndpointQuota`] where it has its share already.
#[inline(always)]
pub fn check<E: Env>(env: &E, flow: &Flow, now_s: u32) -> Result<(), DropReason> {
    let (most, per_s) = (env.endpoint_established(), env.endpoint_begun_per_s());
    let charge = flow.charge();
    let Some(mut quota) = env.quotas().get(&charge.slot) else {
        return Ok(());
    };
    // The node is not kept from its own connections by those that it has.
    let over = most != 0 && charge.slot != 0 && quota.established >= most;
    if over || per_s != 0 && *quota.unproven(now_s, charge.received) >= per_s {
        env.tally(
            if over {
                Tally::QuotaEstablished
            } else {
                Tally::QuotaPending
            },
            1,
        );
        return Err(DropReason::EndpointQuota);
    }
    Ok(())
}

/// Counts a flow that was begun.
#[inline(always)]
pub fn begun<E: Env>(env: &E, flow: &Flow, now_s: u32) {
    if env.endpoint_begun_per_s() == 0 {
        return;
    }
    let charge = flow.charge();
    env.quotas().update(&charge.slot, |quota| {
        let unproven = quota.unproven(now_s, charge.received);
        *unproven = unproven.saturating_add(1);
    });
}

/// Whether the endpoint of a proven flow may have one more in the established table.
#[inline(always)]
pub fn has_room<E: Env>(env: &E, flow: &Flow) -> bool {
    let most = env.endpoint_established();
    let slot = flow.charge().slot;
    if most == 0 || slot == 0 {
        return true;
    }
    let established = env.quotas().update(&slot, |quota| quota.established);
    established.is_none_or(|established| established < most)
}

/// Counts a flow that was entered into the established table.
#[inline(always)]
pub fn promoted<E: Env>(env: &E, flow: &Flow, now_s: u32) {
    let charge = flow.charge();
    env.quotas().update(&charge.slot, |quota| {
        quota.established = quota.established.saturating_add(1);
        quota.promoted = quota.promoted.wrapping_add(1);
        let unproven = quota.unproven(now_s, charge.received);
        *unproven = unproven.saturating_sub(1);
    });
}

/// Counts a flow of the endpoint in `slot` that was removed from the established table.
#[inline(always)]
pub fn ended<E: Env>(env: &E, slot: u32) {
    env.quotas().update(&slot, |quota| {
        quota.established = quota.established.saturating_sub(1);
    });
}
