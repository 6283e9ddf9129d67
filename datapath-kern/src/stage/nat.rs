//! Masquerade: choosing the port, and holding it.
//!
//! A translated flow is known by the tuple its answers come with; that tuple entered, atomically
//! and in neither table twice, is what makes the port its own.

use zerocopy::network_endian::U16;

use crate::abi::config::Settings;
use crate::abi::flow::{flags, scope};
use crate::abi::tally::Tally;
use crate::env::{Env, InsertError, Table};
use crate::stage::flow::{self, Held};
use crate::verdict::DropReason;
use crate::wire::checksum;
use crate::wire::ip::protocol;
use crate::work::Work;

/// Ports tried before a flow is refused.
pub const PROBES: u32 = 32;

/// Steps of the port search. Primes above the size of any range are coprime to it, so that a
/// search with one of these steps visits every port once before it visits one twice.
const STEPS: [u32; 8] = [
    65_537, 65_539, 65_543, 65_551, 65_557, 65_563, 65_579, 65_581,
];

/// Enters [`Work::reply`] under [`Work::reply_key`], unless a live flow has that tuple already.
/// Whether it did.
///
/// # Errors
///
/// [`DropReason::FlowInsertFailed`] where there is no room.
#[inline(never)]
pub fn reserve<E: Env>(env: &E, work: &mut Work) -> Result<bool, DropReason> {
    let Work {
        reply_key: key,
        held_key,
        arrival,
        ..
    } = work;
    let held = flow::peek(env, key, |held| {
        *held_key = held.partner_key(key);
        (held.pair, flow::held(env, key, held, arrival.now_s))
    });
    if let Some((pair, held)) = held {
        match flow::partner_lives(env, held_key, pair, arrival.now_s) {
            Some(true) => return Ok(false),
            Some(false) if held != Held::Dead => return Ok(false),
            None if held == Held::Fresh => return Ok(false),
            None => env.tally(Tally::LoneHalves, 1),
            Some(false) => {}
        }
        flow::remove_both(env, key, held_key, pair);
    }
    take(env, work)
}

/// As [`reserve`], but a flow whose time is up and that was not swept yet counts as live.
#[inline(always)]
fn take<E: Env>(env: &E, work: &Work) -> Result<bool, DropReason> {
    let Work {
        reply_key: key,
        reply,
        ..
    } = work;
    match env.pending().insert(key, reply) {
        Ok(()) => {}
        Err(InsertError::Exists) => return Ok(false),
        Err(error) => {
            flow::refused(env, error, Tally::PendingFull);
            return Err(DropReason::FlowInsertFailed);
        }
    }
    // A flow that was being promoted was in the one table or the other all the time; now that the
    // tuple is ours in this one, the other one tells.
    if env.flows().update(key, |_| ()).is_some() {
        env.pending().remove(key);
        return Ok(false);
    }
    Ok(true)
}

/// Gives the flow in the making the address that its route says and a port there, and enters its
/// reply under them.
///
/// The flow keeps its own port where that is free; then up to [`PROBES`] ports of the range are
/// tried, in an order of the flow's own.
///
/// # Errors
///
/// [`DropReason::NatUnsupported`] for protocols whose checksums and ports are not known,
/// [`DropReason::NatExhausted`] where none of the ports tried was free.
#[inline(always)]
pub fn masquerade<E: Env>(env: &E, work: &mut Work) -> Result<(), DropReason> {
    prepare(work)?;
    let own = work.hdr.key.source_port.get();
    // The node's own connections have ports of their own choosing.
    let of_node = work.hdr.key.source == work.route.masquerade;
    let keeps = (of_node || may_have(env, work, u32::from(own))) && {
        set_port(work, own);
        // One look at a dead flow's port is enough: the sweeper sees to the others.
        reserve(env, work)?
    };
    if !keeps {
        search(env, work)?;
    }
    settle(work);
    Ok(())
}

/// What is the same for every port.
#[inline(never)]
fn prepare(work: &mut Work) -> Result<(), DropReason> {
    let Work {
        hdr,
        route,
        reply,
        reply_key,
        ..
    } = work;
    let key = &hdr.key;
    if !matches!(
        key.protocol,
        protocol::TCP | protocol::UDP | protocol::ICMP | protocol::ICMPV6
    ) {
        return Err(DropReason::NatUnsupported);
    }
    // The answer to an echo is no flow's beginning that could be told from another's.
    let echo = key.protocol == protocol::ICMP || key.protocol == protocol::ICMPV6;
    if echo && key.destination_port.get() != 0 {
        return Err(DropReason::IcmpUnrelated);
    }
    reply.flags |= flags::DNAT;
    reply.nat_address = key.source;
    reply.nat_port = key.source_port;
    reply.address_delta = checksum::address_delta(&route.masquerade, &key.source);
    *reply_key = key.reversed();
    reply_key.scope = scope::PATH;
    reply_key.destination = route.masquerade;
    Ok(())
}

/// Whether masquerade may hand out `port`.
#[inline(always)]
fn may_have<S: Settings>(settings: &S, work: &Work, port: u32) -> bool {
    // Answers to the tunnel's port would be taken for tunnel packets.
    let reserved = work.hdr.key.protocol == protocol::UDP && port == settings.tunnel_port();
    settings.nat_port_min() <= port && port <= settings.nat_port_max() && !reserved
}

/// Makes the reply one to `port`.
#[inline(always)]
fn set_port(work: &mut Work, port: u16) {
    work.reply.port_delta = checksum::port_delta(port, work.hdr.key.source_port.get());
    work.reply_key.destination_port = U16::new(port);
}

/// Finds a free port and takes it.
#[inline(never)]
fn search<E: Env>(env: &E, work: &mut Work) -> Result<(), DropReason> {
    let low = env.nat_port_min();
    let size = env.nat_port_max().wrapping_sub(low).wrapping_add(1);
    if size == 0 || size > 0x1_0000 {
        return Err(DropReason::NatExhausted);
    }
    let hash = flow::hash(&work.hdr.key, env.seed());
    let step = STEPS.get((hash & 7) as usize).copied().unwrap_or(65_537);
    let start = (hash >> 3) % size;
    for probe in 0..PROBES {
        let port = low + (start + probe * step) % size;
        if !may_have(env, work, port) {
            continue;
        }
        #[allow(clippy::cast_possible_truncation, reason = "at most nat_port_max")]
        set_port(work, port as u16);
        if take(env, work)? {
            return Ok(());
        }
    }
    Err(DropReason::NatExhausted)
}

/// Translates the forward half to what the reply half was given.
#[inline(never)]
fn settle(work: &mut Work) {
    let Work {
        hdr,
        flow,
        reply_key,
        ..
    } = work;
    let own = hdr.key.source_port.get();
    flow.flags |= flags::SNAT;
    flow.nat_address = reply_key.destination;
    flow.nat_port = reply_key.destination_port;
    flow.address_delta = checksum::address_delta(&hdr.key.source, &reply_key.destination);
    flow.port_delta = checksum::port_delta(own, reply_key.destination_port.get());
}
