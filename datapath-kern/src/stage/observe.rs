//! Counters and events: the stage that only watches.

use crate::abi::event::{Head, flags, kind};
use crate::abi::metric::Direction;
use crate::env::{Env, Table};
use crate::packet::Packet;
use crate::stage::origin::Origin;
use crate::verdict::{DropReason, Forward, Verdict};
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
    let (now_s, limit) = (env.now_s(), env.events_per_s());
    let windows = env.event_windows();
    let admitted = windows.update(&reason.code(), |window| window.admit(now_s, limit));
    if admitted != Some(true) {
        return;
    }
    describe(pkt, work, direction, reason);
    work.event.time_ns = env.now_ns();
    if !env.emit(pkt, &work.event) {
        windows.update(&reason.code(), |window| {
            window.lost = window.lost.wrapping_add(1);
        });
    }
}

/// Fills in [`Work::event`] with what is known of the packet.
#[inline(always)]
fn describe<P: Packet>(pkt: &P, work: &mut Work, direction: Direction, reason: DropReason) {
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
        kind: kind::DROP,
        outcome: reason as u8,
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
