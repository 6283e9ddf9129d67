//! Which ports masquerade hands out, and the search for a free one.
//!
//! The range has two parts. The open part is anybody's. The reserve, an eighth of the range, is
//! searched only where the open part showed no free port, and not for an endpoint that holds most
//! of what is seen there: however many flows to one remote a pod opens, others still get ports.
//! It lies where clients seldom have their own ports, so that nearly all flows keep theirs.
//!
//! A search tries [`OPEN_PROBES`] ports of the open part and [`RESERVE_PROBES`] of the reserve, in
//! proportion to their sizes: with occupancies `a` and `b` it fails with a probability of `a^28 *
//! b^4`, which is never more than `((28 a + 4 b) / 32)^32`, the occupancy of the whole to the power
//! of the probes (inequality of weighted means).
//!
//! Where and by which steps a search goes is its flow's own: with the same steps for all, taken
//! ports would gather in runs, as in a hash table that is probed linearly. Once a search to a remote
//! has failed, those to the same remote go on where the one before stopped ([`PortSearch`]): what
//! lies ahead is less full than the whole. When they have in a row seen every port of a part taken,
//! within a second or two, it is known to be full: for the rest of that time a search looks at a few
//! ports of it only, each at others, so that a port that becomes free is found, and most flows are
//! refused without one ([`refusal`]).

use zerocopy::network_endian::U16;

use crate::abi::config::Settings;
use crate::abi::flow::End;
use crate::abi::search::{PORTS_PER_WORD, PortSearch};
use crate::env::{Env, Table};
use crate::stage::{flow, nat, refusal};
use crate::verdict::DropReason;
use crate::wire::checksum;
use crate::wire::ip::protocol;
use crate::work::Work;

/// Ports of the open part tried before a flow goes to the reserve.
pub const OPEN_PROBES: u32 = 28;

/// Ports of the reserve tried before a flow is refused.
pub const RESERVE_PROBES: u32 = 4;

/// The reserve is one part of so many.
const PARTS: u32 = OPEN_PROBES / RESERVE_PROBES + 1;

/// Ports that an endpoint's share is judged by at least, and tried of an open part that is full. Of
/// so many, one that holds a quarter of all is found to hold three quarters once in 26,000 times.
const SAMPLE: u32 = 16;

/// Ports of the open part that are tried where the reserve is full, too.
const FEW: u32 = 8;

/// How long what was seen in a row counts, in whole seconds beyond the one that it began in.
const MEMORY_S: u32 = 1;

/// Steps of a search. Primes above the size of any range are coprime to it, so that a search with
/// one of these steps visits every port once before it visits one twice.
const STEPS: [u32; 64] = [
    65_537, 65_539, 65_543, 65_551, 65_557, 65_563, 65_579, 65_581, 65_587, 65_599, 65_609, 65_617,
    65_629, 65_633, 65_647, 65_651, 65_657, 65_677, 65_687, 65_699, 65_701, 65_707, 65_713, 65_717,
    65_719, 65_729, 65_731, 65_761, 65_777, 65_789, 65_809, 65_827, 65_831, 65_837, 65_839, 65_843,
    65_851, 65_867, 65_881, 65_899, 65_921, 65_927, 65_929, 65_951, 65_957, 65_963, 65_981, 65_983,
    65_993, 66_029, 66_037, 66_041, 66_047, 66_067, 66_071, 66_083, 66_089, 66_103, 66_107, 66_109,
    66_137, 66_161, 66_169, 66_173,
];

/// The range that masquerade hands out, in its two parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// Lowest port.
    low: u32,
    /// Ports of the open part; zero where the settings make no sense.
    open: u32,
    /// Ports of the reserve; none in a range below eight.
    reserve: u32,
    /// First port of the reserve, from `low`.
    reserve_first: u32,
}

impl Range {
    /// As the settings say.
    #[inline(always)]
    pub fn of<S: Settings>(settings: &S) -> Self {
        let low = settings.nat_port_min();
        let size = settings.nat_port_max().wrapping_sub(low).wrapping_add(1);
        if size > 0x1_0000 {
            return Self::default();
        }
        let reserve = size / PARTS;
        Self {
            low,
            open: size - reserve,
            reserve,
            reserve_first: reserve * 3,
        }
    }

    /// Whether the port is of the open part.
    #[inline(always)]
    fn is_open(&self, port: u32) -> bool {
        let at = port.wrapping_sub(self.low);
        at < self.open + self.reserve && at.wrapping_sub(self.reserve_first) >= self.reserve
    }
}

/// One search, as far as it has come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Search {
    /// What was remembered, brought up to date as the search goes on.
    memory: PortSearch,
    /// Whether something was.
    remembered: bool,
    range: Range,
    step: u32,
    /// Ports to try of the open part,
    open_probes: u32,
    /// and of the reserve.
    reserve_probes: u32,
    /// Ports that were held by somebody,
    held: u32,
    /// and by the endpoint that the search is for.
    own: u32,
}

/// Whether a flow that comes with this port may keep it, as far as the settings say.
#[inline(always)]
pub fn may_keep<E: Env>(env: &E, work: &Work, port: u16) -> bool {
    Range::of(env).is_open(u32::from(port)) && !is_excluded(env, work, port)
}

/// Whether a flow that can have no other port may have this one, as far as the settings say.
#[inline(always)]
pub fn may_hold<E: Env>(env: &E, work: &Work, port: u16) -> bool {
    let wanted = u32::from(port);
    (env.nat_port_min()..=env.nat_port_max()).contains(&wanted) && !is_excluded(env, work, port)
}

/// Whether the port is none to be handed out, though it is in the range.
#[inline(always)]
fn is_excluded<E: Env>(env: &E, work: &Work, port: u16) -> bool {
    let port = u32::from(port);
    // Answers to the tunnel's port would be taken for tunnel packets.
    if work.hdr.key.protocol == protocol::UDP && port == env.tunnel_port() {
        return true;
    }
    let bits = env.excluded_ports().get(&(port / PORTS_PER_WORD));
    bits.unwrap_or_default() >> (port % PORTS_PER_WORD) & 1 != 0
}

/// Makes the reply one to `port`.
#[inline(always)]
pub fn set(work: &mut Work, port: u16) {
    work.reply.port_delta = checksum::port_delta(port, work.hdr.key.source_port.get());
    work.reply_key.set_destination_port(U16::new(port));
}

/// Finds a free port and takes it: enters [`Work::reply`] under [`Work::reply_key`] with it.
///
/// # Errors
///
/// [`DropReason::NatExhausted`] where none of the ports tried was free, [`DropReason::NatShare`]
/// where the endpoint holds most of them and others are not to be left without.
#[inline(always)]
pub fn search<E: Env>(env: &E, work: &mut Work) -> Result<(), DropReason> {
    recall(env, work);
    let found = if probe_open(env, work)? {
        work.search.memory.open_tried = 0;
        Ok(())
    } else if is_dominant(work) {
        Err(DropReason::NatShare)
    } else if probe_reserve(env, work)? {
        work.search.memory.reserve_tried = 0;
        Ok(())
    } else {
        Err(DropReason::NatExhausted)
    };
    if found.is_err() || work.search.remembered {
        remember(env, work);
    }
    match found {
        Err(reason) if work.search.open_probes < OPEN_PROBES => {
            let until_s = work.search.memory.began_s.wrapping_add(MEMORY_S + 1);
            refusal::note(env, work, reason, until_s);
        }
        Ok(()) if work.search.remembered => refusal::lift(env, work),
        _ => {}
    }
    found
}

/// Key of what is remembered for the remote of the flow, into [`Work::held_key`].
#[inline(always)]
fn name(work: &mut Work) {
    work.held_key = work.reply_key;
    work.held_key.set_destination_port(U16::ZERO);
}

/// Begins [`Work::search`]: where, and how many ports it tries.
#[inline(never)]
fn recall<E: Env>(env: &E, work: &mut Work) {
    name(work);
    let Work {
        hdr,
        arrival,
        held_key: key,
        search,
        ..
    } = work;
    search.range = Range::of(env);
    let Range { open, reserve, .. } = search.range;
    (search.held, search.own) = (0, 0);
    let copy = &mut search.memory;
    search.remembered = env
        .port_searches()
        .update(key, |memory| *copy = *memory)
        .is_some();
    let memory = &mut search.memory;
    // Searches that follow one another go by the same steps.
    let steps_of = if search.remembered { &*key } else { &hdr.key };
    let hash = flow::hash(steps_of, env.seed());
    search.step = STEPS.get((hash & 63) as usize).copied().unwrap_or(65_537);
    if !search.remembered {
        memory.open_at = (hash >> 6).checked_rem(open).unwrap_or(0);
        memory.reserve_at = (hash >> 6).checked_rem(reserve).unwrap_or(0);
    }
    if !search.remembered || arrival.now_s.wrapping_sub(memory.began_s) > MEMORY_S {
        (memory.open_tried, memory.reserve_tried) = (0, 0);
        memory.began_s = arrival.now_s;
    }
    let open_full = memory.open_tried >= open;
    let reserve_full = memory.reserve_tried >= reserve;
    (search.open_probes, search.reserve_probes) = match (open_full, reserve_full) {
        (false, _) => (OPEN_PROBES, RESERVE_PROBES),
        (true, false) => (SAMPLE, RESERVE_PROBES),
        (true, true) => (FEW, 1),
    };
}

/// Whether the search is for a pod that holds three quarters of the ports seen. The node itself may
/// have all it needs.
#[inline(always)]
fn is_dominant(work: &Work) -> bool {
    let Work { reply, search, .. } = work;
    reply.to != End::HOST.raw() && search.held >= SAMPLE && search.own * 4 >= search.held * 3
}

/// Tries ports of the open part. Whether one was taken.
#[inline(never)]
fn probe_open<E: Env>(env: &E, work: &mut Work) -> Result<bool, DropReason> {
    for probe in 0..OPEN_PROBES {
        if probe >= work.search.open_probes {
            break;
        }
        let Search {
            memory,
            range,
            step,
            ..
        } = &mut work.search;
        let Some(at) = (memory.open_at + *step).checked_rem(range.open) else {
            break;
        };
        memory.open_at = at;
        memory.open_tried += 1;
        let behind = if at < range.reserve_first {
            0
        } else {
            range.reserve
        };
        let port = range.low + at + behind;
        if take(env, work, port)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// As [`probe_open`], of the reserve.
#[inline(never)]
fn probe_reserve<E: Env>(env: &E, work: &mut Work) -> Result<bool, DropReason> {
    for probe in 0..RESERVE_PROBES {
        if probe >= work.search.reserve_probes {
            break;
        }
        let Search {
            memory,
            range,
            step,
            ..
        } = &mut work.search;
        let Some(at) = (memory.reserve_at + *step).checked_rem(range.reserve) else {
            break;
        };
        memory.reserve_at = at;
        memory.reserve_tried += 1;
        let port = range.low + range.reserve_first + at;
        if take(env, work, port)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Takes a port if it is free and may be had. Whether it did.
///
/// A flow whose time is up and that was not swept yet counts as live.
#[inline(always)]
fn take<E: Env>(env: &E, work: &mut Work, port: u32) -> Result<bool, DropReason> {
    #[allow(clippy::cast_possible_truncation, reason = "at most nat_port_max")]
    let port = port as u16;
    set(work, port);
    match flow::peek(env, &work.reply_key, |held| held.to) {
        Some(to) => {
            let own = to == work.reply.to;
            work.search.held += 1;
            work.search.own += u32::from(own);
            Ok(false)
        }
        None if is_excluded(env, work, port) => Ok(false),
        None => Ok(nat::enter(env, &work.reply_key, &work.reply)? && !nat::gives_way(env, work)),
    }
}

/// Notes where the next search goes on, and what this one has seen.
#[inline(never)]
fn remember<E: Env>(env: &E, work: &mut Work) {
    name(work);
    let Work {
        held_key: key,
        search,
        ..
    } = work;
    let searches = env.port_searches();
    if search.remembered {
        searches.update(key, |memory| *memory = search.memory);
    } else {
        // Those that it saw are none of the ones that others will go by.
        (search.memory.open_tried, search.memory.reserve_tried) = (0, 0);
        // Where there is no room, or another CPU was first, it is not remembered.
        let _ = searches.insert(key, &search.memory);
    }
}
