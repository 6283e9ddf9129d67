//! Where a packet goes: a local pod, a peer's pod, this node, or out of an uplink.

use crate::abi::addr::Addr;
use crate::abi::config::tunnel;
use crate::abi::flow::{End, flags};
use crate::abi::ipcache::{self, kind};
use crate::abi::nexthop::PEERS_BASE;
use crate::abi::tunnel::Uplink;
use crate::env::{Env, Fib, FibQuery, Table};
use crate::stage::nexthop;
use crate::stage::origin::{generation, who};
use crate::verdict::DropReason;
use crate::work::Work;

/// The receiver of a packet, as a new flow remembers it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Route {
    /// Who.
    pub end: End,
    /// Security identity.
    pub identity: u32,
    /// Generation of `end`.
    pub generation: u32,
    /// One of `flags::TARGET_*`.
    pub target: u16,
    /// Next hop, zero where the target needs none or it is still to be found.
    pub next_hop: u16,
    /// Tag of the next hop.
    pub next_hop_tag: u16,
    /// The address to masquerade behind; none: the source stays.
    pub masquerade: Addr,
}

/// Finds the way to [`Work::destination`] for a packet of [`Work::origin`], into [`Work::route`].
///
/// # Errors
///
/// [`DropReason::Vacant`] for an address of the pod range that nobody has,
/// [`DropReason::NoRoute`] where there is no way or the origin may not go it: nothing passes
/// from the underlay or a tunnel back out of this node.
#[inline(never)]
pub fn find<E: Env>(env: &E, work: &mut Work) -> Result<(), DropReason> {
    let entry = env.ipcache(&work.destination).unwrap_or_default();
    let came_by = work.origin.flags & flags::ARRIVAL;
    let outside = came_by == flags::ARRIVAL_TUNNEL || came_by == flags::ARRIVAL_UPLINK;
    let (target, next_hop) = match entry.kind {
        // A pod's slot among the next hops is its slot among the endpoints.
        kind::ENDPOINT => (flags::TARGET_POD, u32::from(entry.index)),
        kind::HOST => (flags::TARGET_HOST, 0),
        kind::VACANT => return Err(DropReason::Vacant),
        // Answers go back the way the question came.
        _ if outside => return Err(DropReason::NoRoute),
        kind::PEER_POD if env.tunnel() == tunnel::DIRECT => {
            (flags::TARGET_TUNNEL, PEERS_BASE + u32::from(entry.index))
        }
        // What the stack routed here is for pods; it goes out of an uplink by itself.
        _ if came_by == flags::ARRIVAL_HOST => return Err(DropReason::NoRoute),
        _ => return out(env, entry, work),
    };
    let (end, identity) = who(entry);
    let tag = env
        .next_hops()
        .get(&next_hop)
        .ok_or(DropReason::NoRoute)?
        .tag;
    #[allow(
        clippy::cast_possible_truncation,
        reason = "slots are below MAX_NEXT_HOPS"
    )]
    let next_hop = next_hop as u16;
    work.route = Route {
        end,
        identity,
        generation: generation(env, end).ok_or(DropReason::NoRoute)?,
        target,
        next_hop,
        next_hop_tag: tag,
        masquerade: Addr::NONE,
    };
    Ok(())
}

/// The way back through the stack, for answers to what the stack forwarded.
///
/// # Errors
///
/// [`DropReason::NoRoute`] where the array of generations has no slot for the receiver.
#[inline(always)]
pub fn back_by_stack<E: Env>(env: &E, work: &mut Work) -> Result<(), DropReason> {
    let (end, identity) = who(env.ipcache(&work.destination).unwrap_or_default());
    work.route = Route {
        end,
        identity,
        generation: generation(env, end).ok_or(DropReason::NoRoute)?,
        target: flags::TARGET_HOST,
        ..Route::default()
    };
    Ok(())
}

/// The way out of this node, by the routing table: out of an uplink, or through the stack where
/// the interface is none of ours. There is none for a pod that would have to leave behind an
/// address that the uplink does not have.
#[inline(always)]
fn out<E: Env>(env: &E, entry: ipcache::IpEntry, work: &mut Work) -> Result<(), DropReason> {
    let (end, identity) = who(entry);
    work.route = Route {
        end,
        identity,
        generation: generation(env, end).ok_or(DropReason::NoRoute)?,
        target: flags::TARGET_HOST,
        ..Route::default()
    };
    work.query = FibQuery {
        source: work.hdr.key.source,
        destination: work.destination,
    };
    match env.fib(&work.query, &mut work.hop) {
        Fib::Unreachable => return Err(DropReason::NoRoute),
        Fib::Stack => return Ok(()),
        Fib::Found => {}
    }
    let Some(uplink) = env.uplinks().get(&work.hop.interface) else {
        return Ok(());
    };
    let slot = nexthop::claim(env, &work.hop);
    work.route.target = flags::TARGET_UPLINK;
    work.route.next_hop = slot.index;
    work.route.next_hop_tag = slot.tag;
    let keeps_source =
        entry.flags & ipcache::flags::NO_MASQUERADE != 0 || entry.kind == kind::PEER_POD;
    let masquerade = if keeps_source {
        Addr::NONE
    } else {
        uplink.masquerade(work.destination.is_v4())
    };
    let without = masquerade == Uplink::NO_ADDRESS;
    let own_address = (masquerade.is_none() || without) && env.tunnel() == tunnel::DIRECT;
    if own_address && entry.kind == kind::PEER_NODE {
        // Its answers come through the tunnel, as to any of our pods: so must the question go.
        return to_peer(env, entry.index, work);
    }
    if without {
        return Err(DropReason::NoRoute);
    }
    work.route.masquerade = masquerade;
    Ok(())
}

/// Through the tunnel, to the peer itself: the rest of the route is there already.
#[inline(always)]
fn to_peer<E: Env>(env: &E, index: u16, work: &mut Work) -> Result<(), DropReason> {
    let slot = PEERS_BASE + u32::from(index);
    let tag = env.next_hops().get(&slot).ok_or(DropReason::NoRoute)?.tag;
    #[allow(
        clippy::cast_possible_truncation,
        reason = "slots are below MAX_NEXT_HOPS"
    )]
    let next_hop = slot as u16;
    work.route.target = flags::TARGET_TUNNEL;
    work.route.next_hop = next_hop;
    work.route.next_hop_tag = tag;
    Ok(())
}
