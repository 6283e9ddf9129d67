//! Fragments: those that follow have no ports, and get the ones of the first.
//!
//! Nothing is kept but what a fragment says of itself: each goes on at once, or not at all. So that
//! what a receiver puts together is what was judged:
//!
//! - The first fragment has the transport header, and nothing before it goes on. What comes ahead
//!   of it is dropped, or handed to this node's stack: see [`refused`].
//! - What was there already does not go on a second time. A fragment that lies within what was
//!   there is a copy and is dropped; one that overlaps it in part, or does not agree with it on
//!   where the packet ends, condemns the packet: nothing of it goes on from then on. Linux does the
//!   same (`inet_frag_queue_insert`, `net/ipv4/inet_fragment.c`), in both families (RFC 5722; RFC
//!   8200, section 4.5).
//! - Only [`RANGES`] parts with gaps between them are kept apart. A fragment that would make one
//!   more is dropped, and the packet goes on when a gap is filled.
//!
//! What is remembered is bounded by the table, which lets go of what was unused for longest: the
//! followers of what it let go of are dropped. What one pod or peer begins and does not complete is
//! bounded by a share of the table in every half minute. Ends outside have no share: who is behind
//! an address there is not known, and what one used up all others would lack.
//!
//! A packet that is whole again makes room for the next of its identification at once, as 65536 of
//! them are a second or two of a fast sender's.

pub mod identification;
mod ranges;

use crate::abi::flow::flags;
use crate::abi::fragment::{Fragment, FragmentKey, Range, state};
use crate::abi::ipcache::kind;
use crate::abi::nexthop::PEERS_BASE;
use crate::abi::{event::Hook, mark};
use crate::env::{Env, Table};
use crate::packet::{Family, Headers, Kind, Packet, Part};
use crate::stage::apart::Apart;
use crate::stage::flow;
use crate::stage::origin::{self, Arrival};
use crate::stage::policy;
use crate::verdict::{DropReason, Verdict};
use crate::work::Work;

use self::ranges::Placed;

#[cfg(doc)]
use crate::abi::fragment::RANGES;

/// How long a packet in fragments is remembered, seconds: as long as Linux waits for the rest of
/// them (`IP_FRAG_TIME`, include/net/ip.h).
pub const LIFETIME_S: u32 = 30;

/// Completes the tuple of a fragment; a whole packet has it already. [`Work::arrival`] tells the
/// time.
///
/// # Errors
///
/// [`DropReason::FragmentWithoutFirst`], [`DropReason::FragmentOverlap`],
/// [`DropReason::TooManyFragments`], or [`DropReason::Fragment`] for what has no ports to follow by:
/// ICMP that is not echo. The tuple is complete then as far as the first fragment is known.
#[inline(always)]
pub fn follow<E: Env>(env: &E, work: &mut Work) -> Result<(), DropReason> {
    if work.hdr.part == Part::Whole {
        return Ok(());
    }
    env.apart(Apart::Fragment, work)
}

/// As [`follow`], of what is no whole packet.
///
/// # Errors
///
/// As [`follow`].
#[inline(always)]
pub fn part<E: Env>(env: &E, work: &mut Work) -> Result<(), DropReason> {
    if work.hdr.kind != Kind::Flow {
        return Err(DropReason::Fragment);
    }
    name(work, work.hook);
    let Work {
        hdr,
        arrival,
        fragment_key: key,
        fragment: copy,
        ..
    } = work;
    let placed = env.fragments().update(key, |known| {
        if known.expires_s <= arrival.now_s {
            return Placed::Over;
        }
        let placed = ranges::place(known, hdr);
        *copy = *known;
        placed
    });
    match placed {
        None | Some(Placed::Over) if hdr.part == Part::First => return begin(env, work),
        None | Some(Placed::Over | Placed::OfStack) => {
            return Err(DropReason::FragmentWithoutFirst);
        }
        Some(_) if hdr.part == Part::Later => take_tuple(hdr, copy),
        Some(_) => {}
    }
    match placed {
        Some(Placed::Last) => {
            close(env, arrival);
            Ok(())
        }
        Some(Placed::Scattered) => Err(DropReason::TooManyFragments),
        Some(Placed::Overlapping) => Err(DropReason::FragmentOverlap),
        _ => Ok(()),
    }
}

/// Names the packet that the fragment is of, as `hook` knows it.
#[inline(always)]
fn name(work: &mut Work, hook: Hook) {
    let Work {
        hdr,
        arrival,
        fragment_key: key,
        ..
    } = work;
    *key = FragmentKey {
        source: hdr.key.source,
        destination: hdr.key.destination,
        id: hdr.fragment_id,
        interface: if arrival.by == flags::ARRIVAL_POD {
            arrival.interface
        } else {
            0
        },
        protocol: protocol(hdr),
        hook: hook as u8,
        reserved: [0; 6],
    };
}

/// The protocol number in the name of a packet.
#[inline(always)]
const fn protocol(hdr: &Headers) -> u8 {
    match hdr.family {
        Family::V4 => hdr.key.protocol,
        Family::V6 => 0,
    }
}

/// Gives a fragment what the first one said.
#[inline(always)]
fn take_tuple(hdr: &mut Headers, first: &Fragment) {
    hdr.key.set_ports(first.source_port, first.destination_port);
    hdr.key.set_protocol(first.protocol, hdr.key.scope);
}

/// Remembers a first fragment, where its sender may have one more.
#[inline(always)]
fn begin<E: Env>(env: &E, work: &mut Work) -> Result<(), DropReason> {
    if !open(env, &work.arrival)? {
        return Err(DropReason::TooManyFragments);
    }
    let Work { hdr, fragment, .. } = work;
    *fragment = Fragment {
        source_port: hdr.key.source_port,
        destination_port: hdr.key.destination_port,
        id: hdr.fragment_id,
        protocol: hdr.key.protocol,
        ..Fragment::default()
    };
    let [range, ..] = &mut fragment.ranges;
    *range = Range {
        start: 0,
        end: hdr.piece_len >> 3,
    };
    remember(env, work);
    Ok(())
}

/// Enters [`Work::fragment`] under [`Work::fragment_key`], in the place of what is there.
#[inline(always)]
fn remember<E: Env>(env: &E, work: &mut Work) {
    let Work {
        arrival,
        fragment_key: key,
        fragment,
        ..
    } = work;
    fragment.expires_s = arrival.now_s.wrapping_add(LIFETIME_S);
    let known = env.fragments().update(key, |known| *known = *fragment);
    if known.is_none() {
        // Where that fails, the followers are the ones to be dropped.
        let _ = env.fragments().insert(key, fragment);
    }
}

/// Slot of the budget that a sender's packets in fragments are counted in; none for those that are
/// not told apart.
#[inline(always)]
fn budget<E: Env>(env: &E, arrival: &Arrival) -> Result<Option<u32>, DropReason> {
    match arrival.by {
        flags::ARRIVAL_POD => {
            let slot = env.endpoint_slots().get(&arrival.interface);
            slot.ok_or(DropReason::UnknownEndpoint).map(Some)
        }
        flags::ARRIVAL_TUNNEL => {
            let index = env.peer_indices().get(&arrival.peer);
            let index = index.ok_or(DropReason::TunnelUnknownPeer)?;
            Ok(Some(PEERS_BASE + index))
        }
        _ => Ok(None),
    }
}

/// Counts a packet that begins. Whether its sender may have it.
#[inline(always)]
fn open<E: Env>(env: &E, arrival: &Arrival) -> Result<bool, DropReason> {
    let Some(slot) = budget(env, arrival)? else {
        return Ok(true);
    };
    let (window, limit) = (arrival.now_s / LIFETIME_S, env.fragments_per_end());
    let opened = env.budgets().update(&slot, |budget| {
        if budget.window != window {
            budget.window = window;
            budget.open = 0;
        }
        if budget.open >= limit {
            return false;
        }
        budget.open += 1;
        true
    });
    Ok(opened == Some(true))
}

/// Counts a packet that is complete.
#[inline(always)]
fn close<E: Env>(env: &E, arrival: &Arrival) {
    let Ok(Some(slot)) = budget(env, arrival) else {
        return;
    };
    let window = arrival.now_s / LIFETIME_S;
    env.budgets().update(&slot, |budget| {
        if budget.window == window && budget.open != 0 {
            budget.open -= 1;
        }
    });
}

/// Completes the tuple of a piece that was cut from a packet that was judged: the piece of a
/// fragment gets the ports that its first one had where it was judged, and those of a whole packet
/// follow the first of them.
///
/// # Errors
///
/// As [`follow`].
#[inline(never)]
pub fn follow_piece<E: Env>(env: &E, work: &mut Work) -> Result<(), DropReason> {
    if work.hdr.kind != Kind::Flow {
        return Err(DropReason::Fragment);
    }
    let of_pod = work.arrival.by == flags::ARRIVAL_POD;
    let hook = match (work.of_fragment, of_pod) {
        (true, true) => Hook::FromPod,
        (true, false) => Hook::FromHost,
        (false, _) => work.hook,
    };
    name(work, hook);
    let Work {
        hdr,
        arrival,
        fragment_key: key,
        fragment,
        of_fragment,
        ..
    } = work;
    match hdr.part {
        Part::First if !*of_fragment => {
            *fragment = Fragment {
                source_port: hdr.key.source_port,
                destination_port: hdr.key.destination_port,
                id: hdr.fragment_id,
                protocol: hdr.key.protocol,
                ..Fragment::default()
            };
            remember(env, work);
        }
        Part::Later => {
            let first = env
                .fragments()
                .get(key)
                .filter(|first| first.expires_s > arrival.now_s)
                .ok_or(DropReason::FragmentWithoutFirst)?;
            take_tuple(hdr, &first);
        }
        _ => {}
    }
    Ok(())
}

/// What becomes of a fragment from the underlay that [`follow`] refused: the host has what is not
/// known to be for a pod.
///
/// One that comes ahead of its first, to the address of a pod, is handed to this node's stack where
/// the settings say so, and the rest of its packet after it. The stack puts the packet together
/// where something on the node made it do so before routing (`nf_defrag_ipv4`, `nf_defrag_ipv6`: a
/// rule of netfilter that looks at connections is enough), and sends it to the pod in order, where
/// it is judged: [`mark::REORDERED`] says that it came by an uplink. Where nothing did, the
/// fragments reach the pod's hook as they came, and are dropped there. An answer to the address
/// that pods are masqueraded behind cannot come back so, as the stack takes that for its own; nor
/// does what comes out of a tunnel, which keeps the fragments of a packet on one way.
///
/// # Errors
///
/// `reason`, where the fragment is a pod's.
#[inline(never)]
pub fn refused<E: Env, P: Packet>(
    env: &E,
    pkt: &mut P,
    work: &mut Work,
    reason: DropReason,
) -> Result<Verdict, DropReason> {
    if reason == DropReason::Fragment {
        return Ok(Verdict::PASS);
    }
    let destination = env.ipcache(&work.hdr.key.destination).unwrap_or_default();
    if destination.kind != kind::ENDPOINT {
        // What follows a first one that the node does not get is nothing to it. A first one in the
        // place of another may be about a port that policy denies.
        let guarded = destination.kind == kind::HOST && policy::guards_node(env);
        let known = reason != DropReason::FragmentWithoutFirst
            && (guarded || flow::peek(env, &work.hdr.key, |_| ()).is_some());
        return if known {
            Err(reason)
        } else {
            origin::to_stack(env, work)
        };
    }
    if reason != DropReason::FragmentWithoutFirst || env.fragments_to_stack() == 0 {
        return Err(reason);
    }
    work.fragment = Fragment {
        state: state::OF_STACK,
        ..Fragment::default()
    };
    remember(env, work);
    pkt.set_mark(mark::with(pkt.mark(), mark::REORDERED));
    Ok(Verdict::PASS)
}
