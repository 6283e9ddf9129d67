//! What SYN, FIN and RST do to a flow.
//!
//! | segment | on an open flow | half closed | closed by both | reset |
//! |---|---|---|---|---|
//! | SYN | passes | passes | begins another flow | begins another flow, see below |
//! | SYN, ACK | passes | the flow is open again | passes | the flow is open again |
//! | FIN | half closed; by both sides: closed | likewise | passes | as any other segment |
//! | RST | reset | reset | reset | reset |
//! | others | pass | pass | pass | alive again if it is the side that (it is said) sent the RST |
//!
//! A flow that is half closed keeps the life of an open one: the other side may send for hours. One
//! that is closed by both sides, or reset, has seconds to live, and what still comes does not
//! prolong them.
//!
//! **Sequence numbers are not followed**: windows that are scaled, segments that are cut by hardware
//! and flows that are picked up in the middle would each need an exception. A forged segment must
//! therefore not be able to end a flow:
//!
//! - A *reset* is believed only as long as the side that it came from stays silent. Who has really
//!   reset a connection has no socket left that could send anything but another RST, or the SYN of
//!   a new connection. Any other segment of that side takes it back, and the flow has its full life
//!   again. An idle flow may be lost: it has [`Config::tcp_closed_s`](crate::abi::config::Config::tcp_closed_s) to give a sign of life.
//! - A *FIN* is not taken back by what its sender sends afterwards: to acknowledge the other side's
//!   data, and to repeat what was lost, is what a closed side does. It need not be, for one FIN
//!   alone changes nothing: only what both sides sent cuts a life short, and whoever can forge both
//!   is on the path and needs no forgery.
//! - A *SYN* on a flow that is not over changes nothing, as with netfilter: its receiver answers
//!   with an ACK if it still has the old connection, and with SYN and ACK if it has not, which
//!   opens the flow again in place. A SYN on a flow that is over has that one removed and is judged
//!   as the first of another, whichever side sent it. Except that a SYN from the underlay, where
//!   senders can be forged, is not proof of its own side's reset; then it, too, has to be answered.
//!
//! What begins a flow is a SYN, or any segment with ACK and without SYN and RST where
//! [`Config::tcp_loose`](crate::abi::config::Config::tcp_loose) says so. A SYN with ACK never does: it answers what was not seen.

use crate::abi::flow::{Flow, flags, state};
use crate::abi::tally::Tally;
use crate::env::Env;
use crate::packet::Headers;
use crate::stage::flow::{self, Hit};
use crate::stage::origin::Arrival;
use crate::wire::transport::tcp_flag::{ACK, FIN, RST, SYN};
use crate::work::Work;

/// Whether a segment asks for a new connection: the only way that one begins.
#[inline(always)]
#[must_use]
pub const fn is_syn(hdr: &Headers) -> bool {
    hdr.tcp_flags & (SYN | ACK | RST | FIN) == SYN
}

/// Whether a segment is of a connection that has begun.
#[inline(always)]
#[must_use]
pub const fn is_mid_stream(hdr: &Headers) -> bool {
    hdr.tcp_flags & (SYN | ACK | RST) == ACK
}

/// Whether a packet on a flow in `state` may change that. Never, for one that is not TCP.
#[inline(always)]
#[must_use]
pub const fn is_event(hdr: &Headers, state: u8) -> bool {
    hdr.tcp_flags & (SYN | FIN | RST) != 0 || state & state::RESET != 0
}

/// Whether a segment on `flow` begins another one in its place.
#[inline(always)]
#[must_use]
pub const fn begins_another(hdr: &Headers, arrival: &Arrival, flow: &Flow) -> bool {
    let forgeable = arrival.by == flags::ARRIVAL_UPLINK;
    is_syn(hdr) && makes_room(flow.state, flow.has(flags::REPLY), forgeable)
}

/// Whether a flow in `state` makes room for another one, asked for by a SYN of one of its sides;
/// `reply` is the one that did not begin the flow.
#[inline(always)]
#[must_use]
pub const fn makes_room(state: u8, reply: bool, forgeable: bool) -> bool {
    let (_, own_reset) = bits_of(reply);
    let believed = if forgeable {
        state::RESET & !own_reset
    } else {
        state::RESET
    };
    state & state::CLOSED == state::CLOSED || state & believed != 0
}

/// The state of a flow after a segment of one of its sides that does not begin another one.
#[inline(always)]
#[must_use]
pub const fn next(state: u8, reply: bool, tcp_flags: u8) -> u8 {
    let (closed, reset) = bits_of(reply);
    if tcp_flags & RST != 0 {
        return state | reset;
    }
    if tcp_flags & (SYN | ACK) == SYN {
        return state;
    }
    let reopens = tcp_flags & SYN != 0 && state & state::CLOSED != state::CLOSED;
    let state = if reopens {
        state & !(state::CLOSED | state::RESET)
    } else {
        state & !reset
    };
    if tcp_flags & FIN != 0 {
        state | closed
    } else {
        state
    }
}

/// The bits of [`state`] that say that a side sent FIN, and RST.
#[inline(always)]
const fn bits_of(reply: bool) -> (u8, u8) {
    if reply {
        (state::CLOSED_REPLY, state::RESET_REPLY)
    } else {
        (state::CLOSED_ORIGINAL, state::RESET_ORIGINAL)
    }
}

/// A segment that [`is_event`], on a flow whose decisions hold. [`Hit::Miss`] where the flow has
/// made room for another one.
#[inline(always)]
pub fn event<E: Env>(env: &E, work: &mut Work) -> Hit {
    let Work {
        hdr, arrival, flow, ..
    } = work;
    let hit = if begins_another(hdr, arrival, flow) {
        // The ports are used again before the old flow's time was up.
        env.tally(Tally::PortReused, 1);
        Hit::Miss
    } else {
        follow(env, work);
        Hit::Current
    };
    flow::make_room(env, work, hit)
}

/// Counts a segment into its flow, and notes in both halves what it changes.
#[inline(never)]
pub fn follow<E: Env>(env: &E, work: &mut Work) {
    let Work {
        hdr, arrival, flow, ..
    } = work;
    let before = flow.state;
    let after = next(before, flow.has(flags::REPLY), hdr.tcp_flags);
    let turned = state::is_over(before) != state::is_over(after);
    let expires_s = arrival
        .now_s
        .wrapping_add(flow::lifetime_s(env, hdr.key.protocol, after));
    let change = |half: &mut Flow| {
        half.state = half.state & !(before & !after) | after;
        // Both halves: each may be the last one that is looked at.
        if turned {
            half.expires_s = expires_s;
        }
    };
    if before != after {
        flow::update(env, &flow.partner_key(&hdr.key), |half| {
            if half.pair == flow.pair {
                change(half);
            }
        });
    }
    flow::update(env, &hdr.key, |half| {
        flow::touch(env, half, hdr, arrival.now_s);
        if before != after {
            change(half);
        }
    });
    flow.state = after;
    if turned {
        note_turn(env, before, after);
    }
}

/// Counts a flow that is over now, or is not any more.
#[inline(always)]
fn note_turn<E: Env>(env: &E, before: u8, after: u8) {
    let what = if state::is_over(before) {
        Tally::ResetRevoked
    } else if after & state::RESET != 0 {
        Tally::Reset
    } else {
        Tally::Closed
    };
    env.tally(what, 1);
}
