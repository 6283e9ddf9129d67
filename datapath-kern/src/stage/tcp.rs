//! What SYN, FIN and RST do to a flow.
//!
//! FIN closes the direction it is sent in; RST closes both. A flow that both sides closed has
//! seconds to live and a SYN begins a new one in its place. Sequence numbers are not followed.

use crate::abi::flow::{Flow, flags, state};
use crate::env::Env;
use crate::stage::flow::{self, Hit};
use crate::wire::transport::tcp_flag;
use crate::work::Work;

/// A segment with SYN, FIN or RST on a flow whose decisions hold.
#[inline(always)]
pub fn event<E: Env>(env: &E, work: &mut Work) -> Hit {
    let hit = follow(env, work);
    flow::make_room(env, work, hit)
}

/// What becomes of the flow; [`Hit::Miss`] where it has to make room for a new one.
#[inline(never)]
fn follow<E: Env>(env: &E, work: &mut Work) -> Hit {
    let Work {
        hdr, arrival, flow, ..
    } = work;
    let begins = hdr.tcp_flags & (tcp_flag::SYN | tcp_flag::ACK) == tcp_flag::SYN;
    if begins && flow.state & state::CLOSED != 0 {
        // The port is used again before the old flow's time was up.
        return Hit::Miss;
    }
    let closes = if hdr.tcp_flags & tcp_flag::RST != 0 {
        state::CLOSED
    } else if hdr.tcp_flags & tcp_flag::FIN == 0 {
        0
    } else if flow.has(flags::REPLY) {
        state::CLOSED_REPLY
    } else {
        state::CLOSED_ORIGINAL
    };
    let newly = closes & !flow.state != 0;
    let close = |half: &mut Flow| {
        half.state |= closes;
        // Both halves: each may be the last one that is looked at.
        if half.state & state::CLOSED == state::CLOSED {
            half.expires_s = arrival.now_s + env.tcp_closed_s();
        }
    };
    if newly {
        flow::update(env, &flow.partner_key(&hdr.key), |half| {
            if half.pair == flow.pair {
                close(half);
            }
        });
    }
    flow::update(env, &hdr.key, |half| {
        flow::touch(env, half, hdr, arrival.now_s);
        if newly {
            close(half);
        }
    });
    flow.state |= closes;
    Hit::Current
}
