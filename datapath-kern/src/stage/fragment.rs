//! Fragments: those that follow have no ports, and get the ones of the first.

use crate::abi::fragment::{Fragment, FragmentKey};
use crate::env::{Env, Table};
use crate::packet::{Kind, Part};
use crate::verdict::DropReason;
use crate::work::Work;

/// How long the first fragment of a packet is remembered, seconds: as long as Linux waits for the
/// others (`IP_FRAG_TIME`, include/net/ip.h).
pub const LIFETIME_S: u32 = 30;

/// Completes the tuple of a fragment; a whole packet has it already. [`Work::arrival`] tells the
/// time.
///
/// # Errors
///
/// [`DropReason::FragmentWithoutFirst`], or [`DropReason::Fragment`] for what has no ports to
/// follow by: ICMP that is not echo.
#[inline(always)]
pub fn follow<E: Env>(env: &E, work: &mut Work) -> Result<(), DropReason> {
    if work.hdr.part == Part::Whole {
        return Ok(());
    }
    part(env, work)
}

#[inline(never)]
fn part<E: Env>(env: &E, work: &mut Work) -> Result<(), DropReason> {
    let Work {
        hdr,
        arrival,
        fragment_key: key,
        ..
    } = work;
    if hdr.kind != Kind::Flow {
        return Err(DropReason::Fragment);
    }
    *key = FragmentKey {
        source: hdr.key.source,
        destination: hdr.key.destination,
        id: hdr.fragment_id,
        protocol: hdr.key.protocol,
        reserved: [0; 3],
    };
    let now_s = arrival.now_s;
    if hdr.part == Part::First {
        let first = Fragment {
            source_port: hdr.key.source_port,
            destination_port: hdr.key.destination_port,
            expires_s: now_s.wrapping_add(LIFETIME_S),
        };
        let known = env
            .fragments()
            .update(key, |remembered| *remembered = first);
        if known.is_none() {
            // Where that fails, its followers are the ones to be dropped.
            let _ = env.fragments().insert(key, &first);
        }
        return Ok(());
    }
    let first = env
        .fragments()
        .get(key)
        .filter(|first| first.expires_s > now_s);
    let first = first.ok_or(DropReason::FragmentWithoutFirst)?;
    hdr.key.source_port = first.source_port;
    hdr.key.destination_port = first.destination_port;
    Ok(())
}
