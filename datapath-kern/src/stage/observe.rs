//! Counters: the stage that only watches.

use crate::abi::metric::Direction;
use crate::env::Env;
use crate::verdict::{DropReason, Forward, Verdict};
use crate::work::Work;

/// Counts a packet that goes on.
#[inline(always)]
pub fn forwarded<E: Env>(env: &E, direction: Direction, how: Forward, bytes: u32) {
    env.count(direction, how.code(), bytes);
}

/// The verdict on a packet; counts it where it ends here, and notes why.
#[inline(always)]
pub fn outcome<E: Env>(
    env: &E,
    work: &mut Work,
    direction: Direction,
    bytes: u32,
    result: Result<Verdict, DropReason>,
) -> Verdict {
    match result {
        Ok(verdict) => verdict,
        Err(reason) => {
            dropped(env, work, direction, bytes, reason);
            Verdict::DROP
        }
    }
}

/// Counts a packet that ends here, and notes why.
#[inline(always)]
pub fn dropped<E: Env>(
    env: &E,
    work: &mut Work,
    direction: Direction,
    bytes: u32,
    reason: DropReason,
) {
    env.count(direction, reason.code(), bytes);
    work.reason = Some(reason);
}
