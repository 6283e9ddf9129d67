//! Masquerade: behind which tuple a flow leaves, and holding it.
//!
//! A translated flow is known by the tuple its answers come with; that tuple entered, atomically
//! and in neither table twice, is what makes the port its own.
//!
//! | protocol | translated | where the tuple is taken |
//! |---|---|---|
//! | TCP, UDP, ICMP echo | address, and port or identifier where it must be | another port |
//! | UDP-Lite (RFC 3828), DCCP (RFC 4340, RFC 5597) | likewise | another port |
//! | SCTP (RFC 9260) | address: its checksum covers the ports, and chunks are left alone | refused |
//! | GRE, ESP, IP in IP and all others | address: one flow for each protocol and remote | refused |
//! | AH, HIP, VRRP, OSPF, PIM, mobility header | nothing: their checksums cover the addresses | |
//!
//! The node goes before its pods where a flow of its own cannot have another port: the pod's flow
//! that holds the tuple ends.

use crate::abi::flow::{Flow, FlowKey, flags, scope};
use crate::abi::tally::Tally;
use crate::env::{Env, InsertError, Table};
use crate::stage::flow::{self, Held};
use crate::stage::ports;
use crate::verdict::DropReason;
use crate::wire::checksum;
use crate::wire::ip::protocol;
use crate::wire::transport::has_ports;
use crate::work::Work;

/// Gives the flow in the making the address that its route says and a port there, and enters its
/// reply under them.
///
/// The flow keeps its own port where that is free and not of the reserve; then ports of the range
/// are tried ([`ports::search`]), in an order of the flow's own.
///
/// # Errors
///
/// [`DropReason::NatUnsupported`] for protocols whose packets would not be valid any more,
/// [`DropReason::NatExhausted`] and [`DropReason::NatShare`] where there is no port to be had.
#[inline(always)]
pub fn masquerade<E: Env>(env: &E, work: &mut Work) -> Result<(), DropReason> {
    prepare(work)?;
    let own = work.hdr.key.source_port.get();
    ports::set(work, own);
    // The node's own connections have ports of their own choosing.
    let of_node = work.hdr.key.source == work.route.masquerade;
    if changes_of(work.hdr.key.protocol) == Changes::Address {
        hold_address(env, work, of_node)?;
    } else {
        let may = of_node || ports::may_keep(env, work, own);
        // One look at a dead flow's port is enough: the sweeper sees to the others.
        let keeps = may
            && if of_node {
                reserve(env, work)?
            } else {
                keep(env, work)? && !gives_way(env, work)
            };
        if !keeps {
            ports::search(env, work)?;
        }
    }
    settle(work);
    Ok(())
}

/// As [`reserve`], for a flow that may as well have another port.
///
/// An entry whose time is not up may be a lone half, which would make room: but to see that costs
/// more than another port does.
#[inline(always)]
fn keep<E: Env>(env: &E, work: &mut Work) -> Result<bool, DropReason> {
    let now_s = work.arrival.now_s;
    let lives = |held: &mut Flow| held.expires_s > now_s;
    let mut held = env.pending().update(&work.reply_key, lives);
    if held.is_none() {
        if enter(env, &work.reply_key, &work.reply)? {
            return Ok(true);
        }
        held = env.flows().update(&work.reply_key, lives);
    }
    match held {
        Some(false) => reserve(env, work),
        _ => Ok(false),
    }
}

/// Gives the tuple that was just entered back if a socket of this node holds its port. Whether it
/// did.
///
/// A packet of the socket's that came in between found half a flow, which is none.
#[inline(always)]
pub(super) fn gives_way<E: Env>(env: &E, work: &Work) -> bool {
    let held = env.is_of_socket(&work.reply_key);
    if held {
        env.pending().remove(&work.reply_key);
    }
    held
}

/// What masquerade can change of a protocol's packets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Changes {
    /// Address and port, or identifier.
    Port,
    /// The address alone.
    Address,
    /// Nothing.
    Nothing,
}

#[inline(always)]
const fn changes_of(protocol: u8) -> Changes {
    match protocol {
        protocol::TCP
        | protocol::UDP
        | protocol::ICMP
        | protocol::ICMPV6
        | protocol::UDP_LITE
        | protocol::DCCP => Changes::Port,
        // The last three over IPv6 only, or in their newest versions; routers speak them to their
        // neighbours.
        protocol::AH
        | protocol::HIP
        | protocol::MOBILITY
        | protocol::OSPF
        | protocol::PIM
        | protocol::VRRP => Changes::Nothing,
        _ => Changes::Address,
    }
}

/// Enters the reply of a flow that has no other port to go to.
#[inline(always)]
fn hold_address<E: Env>(env: &E, work: &mut Work, of_node: bool) -> Result<(), DropReason> {
    let Work { hdr, .. } = &*work;
    if of_node {
        evict(env, work);
    } else if has_ports(hdr.key.protocol) && !ports::may_hold(env, work, hdr.key.source_port.get())
    {
        return Err(DropReason::NatUnsupported);
    }
    if reserve(env, work)? {
        Ok(())
    } else {
        Err(DropReason::NatExhausted)
    }
}

/// Ends the flow that holds [`Work::reply_key`], if there is one.
#[inline(never)]
fn evict<E: Env>(env: &E, work: &mut Work) {
    let Work {
        reply_key: key,
        held_key,
        ..
    } = work;
    let held = flow::peek(env, key, |held| {
        *held_key = held.partner_key(key);
        held.pair
    });
    if let Some(pair) = held {
        flow::remove_both(env, key, held_key, pair);
    }
}

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
        reply,
        held_key,
        arrival,
        ..
    } = work;
    // Mostly nobody has it. That it is not established is seen to when it has been entered.
    if env.pending().update(key, |_| ()).is_none() && enter(env, key, reply)? {
        return Ok(true);
    }
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
    enter(env, key, reply)
}

/// Enters a reply under its key. Whether it did: a flow whose time is up and that was not swept yet
/// counts as live.
///
/// # Errors
///
/// As [`reserve`].
#[inline(always)]
pub(super) fn enter<E: Env>(env: &E, key: &FlowKey, reply: &Flow) -> Result<bool, DropReason> {
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
    if changes_of(key.protocol) == Changes::Nothing {
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
    reply_key.set_protocol(key.protocol, scope::PATH);
    reply_key.destination = route.masquerade;
    Ok(())
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
