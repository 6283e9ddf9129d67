//! Counters and events: the stage that only watches.

use crate::abi::config::verdicts;
use crate::abi::event::{self, Head, flags, kind};
use crate::abi::flow::verdict;
use crate::abi::metric::Direction;
use crate::abi::policy::matched;
use crate::env::{Env, Table};
use crate::packet::Packet;
use crate::stage::origin::Origin;
use crate::stage::policy;
use crate::verdict::{DropReason, Forward, Ruling, Verdict};
use crate::work::Work;

/// Counts a packet that goes on.
#[inline(always)]
pub fn forwarded<E: Env>(env: &E, direction: Direction, how: Forward, bytes: u32) {
    env.count(direction, how.code(), bytes);
}

/// The verdict on a packet; counts it where it ends here, notes why, and tells of it.
#[inline(always)]
pub fn outcome<E: Env, P: Packet>(
    env: &E,
    pkt: &P,
    work: &mut Work,
    direction: Direction,
    bytes: u32,
    result: Result<Verdict, DropReason>,
) -> Verdict {
    match result {
        Ok(verdict) => verdict,
        Err(reason) => {
            dropped(env, pkt, work, direction, bytes, reason);
            Verdict::DROP
        }
    }
}

/// Counts a packet that ends here, notes why, and tells of it.
#[inline(always)]
pub fn dropped<E: Env, P: Packet>(
    env: &E,
    pkt: &P,
    work: &mut Work,
    direction: Direction,
    bytes: u32,
    reason: DropReason,
) {
    env.count(direction, reason.code(), bytes);
    work.reason = Some(reason);
    if env.events_per_s() != 0 {
        tell(env, pkt, work, direction, reason);
    }
}

/// Tells of a drop, as long as there are not too many for the same reason.
#[inline(never)]
fn tell<E: Env, P: Packet>(
    env: &E,
    pkt: &P,
    work: &mut Work,
    direction: Direction,
    reason: DropReason,
) {
    if !may_tell(env, reason.code(), env.events_per_s()) {
        return;
    }
    describe(pkt, work, direction);
    work.event.kind = kind::DROP;
    work.event.outcome = reason as u8;
    if policy::is_denial(reason) {
        let decisive = work.judgement.decisive();
        (work.event.rule_id, work.event.matched) = if work.judged {
            (work.flow.rule_id, matched::NONE)
        } else {
            (decisive.rule_id, decisive.matched)
        };
    }
    send(env, pkt, work, reason.code());
}

/// Counts and tells what policy says of a flow.
#[inline(always)]
pub fn rulings<E: Env, P: Packet>(env: &E, pkt: &P, work: &mut Work) {
    ruling(env, pkt, work, Direction::Egress);
    ruling(env, pkt, work, Direction::Ingress);
}

#[inline(never)]
fn ruling<E: Env, P: Packet>(env: &E, pkt: &P, work: &mut Work, direction: Direction) {
    let judgement = &work.judgement;
    let how = match judgement.of(direction).verdict {
        verdict::ALLOW => Ruling::Allowed,
        verdict::AUDIT => Ruling::Audited,
        verdict::DENY => Ruling::Denied,
        // It needs no rule, or was not asked any more.
        _ => {
            let local = !policy::asked(work, direction).is_remote();
            if local && judgement.verdict != verdict::DENY && env.verdicts() == verdicts::ALL {
                tell_ruling(env, pkt, work, direction);
            }
            return;
        }
    };
    env.count(direction, how.code(), work.hdr.length);
    if env.verdicts() != verdicts::NONE {
        tell_ruling(env, pkt, work, direction);
    }
}

/// Tells of what policy said of a flow, as long as there is not too much of it.
#[inline(never)]
fn tell_ruling<E: Env, P: Packet>(env: &E, pkt: &P, work: &mut Work, direction: Direction) {
    if !may_tell(env, event::VERDICTS, env.verdicts_per_s()) {
        return;
    }
    describe(pkt, work, direction);
    let Work {
        event, judgement, ..
    } = work;
    let found = judgement.of(direction);
    event.kind = kind::VERDICT;
    event.outcome = match found.verdict {
        verdict::NONE => verdict::ALLOW,
        judged => judged,
    };
    event.rule_id = found.rule_id;
    event.matched = found.matched;
    if judgement.reply {
        event.flags |= flags::REPLY;
    }
    send(env, pkt, work, event::VERDICTS);
}

/// Whether another event may be told of those that `window` counts; counts it.
#[inline(always)]
fn may_tell<E: Env>(env: &E, window: u32, limit: u32) -> bool {
    let now_s = env.now_s();
    let admitted = env
        .event_windows()
        .update(&window, |window| window.admit(now_s, limit));
    admitted == Some(true)
}

/// Sends [`Work::event`] off, with the packet as it is.
#[inline(never)]
fn send<E: Env, P: Packet>(env: &E, pkt: &P, work: &mut Work, window: u32) {
    work.event.time_ns = env.now_ns();
    if !env.emit(pkt, &work.event) {
        env.event_windows().update(&window, |window| {
            window.lost = window.lost.wrapping_add(1);
        });
    }
}

/// Fills in [`Work::event`] with what is known of the packet.
#[inline(always)]
fn describe<P: Packet>(pkt: &P, work: &mut Work, direction: Direction) {
    let Work {
        hdr,
        flow,
        origin,
        route,
        hook,
        judged,
        event,
        ..
    } = work;
    *event = Head {
        hook: *hook as u8,
        direction: direction as u8,
        flags: if pkt.is_tagged() { flags::TAGGED } else { 0 },
        l3: hdr.l3,
        interface: pkt.interface(),
        length: pkt.len(),
        ..Head::default()
    };
    // A flow that needed no new judgement names both ends.
    if origin.flags == 0 && *judged {
        event.flags |= flags::SOURCE | flags::DESTINATION;
        event.source = flow.from;
        event.source_identity = flow.source_identity;
        event.destination = flow.to;
        return;
    }
    if origin.flags != 0 && origin.flags != Origin::REFUSED {
        event.flags |= flags::SOURCE;
        event.source = origin.end.raw();
        event.source_identity = origin.identity;
    }
    if route.target != 0 {
        event.flags |= flags::DESTINATION;
        event.destination = route.end.raw();
        event.destination_identity = route.identity;
    }
}
