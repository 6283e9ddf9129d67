//! Who sent a packet, and whether it may have: established before any new flow is.

use crate::abi::addr::Addr;
use crate::abi::config::tunnel;
use crate::abi::endpoint::{Endpoint, identity};
use crate::abi::flow::{End, flags};
use crate::abi::ipcache::{IpEntry, kind};
use crate::abi::mac::MacWords;
use crate::abi::metric::Direction;
use crate::env::{Env, Table};
use crate::packet::Headers;
use crate::verdict::{DropReason, Verdict};
use crate::work::Work;

/// How a packet came in: what an established flow is checked against, without a further lookup.
#[derive(Clone, Copy, Debug, Default)]
pub struct Arrival {
    /// Ethernet source address; means nothing where it did not come from a pod.
    pub mac: MacWords,
    /// One of `flags::ARRIVAL_*`.
    pub by: u16,
    /// Outer source address; means nothing where it did not come through the tunnel.
    pub peer: Addr,
    /// Outer destination address, likewise.
    pub local: Addr,
    /// VNI, likewise.
    pub vni: u32,
    /// Interface of the hook.
    pub interface: u32,
    /// When; seconds on `CLOCK_MONOTONIC`.
    pub now_s: u32,
    /// Direction to count the packet under.
    pub direction: Direction,
}

/// The sender of a packet, as a new flow remembers it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Origin {
    /// Who.
    pub end: End,
    /// Security identity.
    pub identity: u32,
    /// Generation of `end`.
    pub generation: u32,
    /// One of `flags::ARRIVAL_*`, and [`flags::VIA_STACK`] where the stack forwards for someone.
    pub flags: u16,
}

impl Origin {
    /// `flags` of a sender that is not who the packet says.
    pub const REFUSED: u16 = 0x8000;
}

/// The pod behind the interface.
///
/// # Errors
///
/// [`DropReason::UnknownEndpoint`] where there is none.
#[inline(always)]
pub fn endpoint<E: Env>(env: &E, arrival: &Arrival) -> Result<(u32, Endpoint), DropReason> {
    let slot = env
        .endpoint_slots()
        .get(&arrival.interface)
        .ok_or(DropReason::UnknownEndpoint)?;
    let endpoint = env
        .endpoints()
        .get(&slot)
        .ok_or(DropReason::UnknownEndpoint)?;
    Ok((slot, endpoint))
}

/// Sender of a packet from a pod: its own addresses only, on both layers.
#[inline(always)]
fn pod<E: Env>(env: &E, hdr: &Headers, arrival: &Arrival) -> Result<Origin, DropReason> {
    let (slot, endpoint) = endpoint(env, arrival)?;
    if arrival.mac != endpoint.mac_words() {
        return Err(DropReason::InvalidSourceMac);
    }
    if !endpoint.owns(&hdr.key.source) {
        return Err(DropReason::InvalidSourceIp);
    }
    #[allow(
        clippy::cast_possible_truncation,
        reason = "slots are below MAX_ENDPOINTS"
    )]
    let end = End::endpoint(slot as u16);
    Ok(Origin {
        end,
        identity: endpoint.identity,
        generation: endpoint.generation,
        flags: flags::ARRIVAL_POD,
    })
}

/// Sender of a packet from a peer: the address must be one that the peer holds.
#[inline(always)]
fn peer<E: Env>(env: &E, hdr: &Headers, arrival: &Arrival) -> Result<Origin, DropReason> {
    let index = env
        .peer_indices()
        .get(&arrival.peer)
        .ok_or(DropReason::TunnelUnknownPeer)?;
    let peer = env
        .peers()
        .get(&index)
        .ok_or(DropReason::TunnelUnknownPeer)?;
    if peer.interface != arrival.interface || peer.local != arrival.local {
        return Err(DropReason::TunnelUnknownPeer);
    }
    let source = env.ipcache(&hdr.key.source).unwrap_or_default();
    let of_a_peer = source.kind == kind::PEER_POD || source.kind == kind::PEER_NODE;
    if !of_a_peer || u32::from(source.index) != index {
        return Err(DropReason::TunnelInvalidSource);
    }
    let identity = if env.identity_from_vni() == 0 {
        if source.identity != arrival.vni {
            return Err(DropReason::InvalidIdentity);
        }
        source.identity
    } else {
        agreed(arrival.vni)?
    };
    Ok(Origin {
        end: End::peer(source.index),
        identity,
        generation: peer.generation,
        flags: flags::ARRIVAL_TUNNEL,
    })
}

/// The identity that a VNI stands for, between nodes that agreed on numbers.
///
/// Of the reserved ones a peer can only speak for itself and for pods that were given none: this
/// node's own identity, and the world's, never come out of a tunnel.
#[inline(always)]
fn agreed(vni: u32) -> Result<u32, DropReason> {
    match vni {
        identity::REMOTE_NODE | identity::UNMANAGED | identity::FIRST_ALLOCATED..=identity::MAX => {
            Ok(vni)
        }
        _ => Err(DropReason::InvalidIdentity),
    }
}

/// Sender of a packet that came in as it is on an uplink.
#[inline(always)]
fn underlay<E: Env>(env: &E, hdr: &Headers) -> Result<Origin, DropReason> {
    let source = env.ipcache(&hdr.key.source).unwrap_or_default();
    if is_forged(env, source) {
        return Err(DropReason::InvalidSourceIp);
    }
    located(env, source, flags::ARRIVAL_UPLINK)
}

/// Whether nobody with this source sends a packet that comes in as it is on an uplink: the node's own,
/// and pods that are here or behind a tunnel.
#[inline(always)]
fn is_forged<E: Env>(env: &E, source: IpEntry) -> bool {
    match source.kind {
        kind::ENDPOINT | kind::HOST | kind::VACANT => true,
        kind::PEER_POD => env.tunnel() != tunnel::NATIVE,
        _ => false,
    }
}

/// Lets the host have a packet that came in as it is on an uplink. The host may send it on to a pod,
/// translated: then it is its source that says who sent it.
///
/// # Errors
///
/// [`DropReason::InvalidSourceIp`] where nobody with that source sends so.
#[inline(never)]
pub fn to_stack<E: Env>(env: &E, work: &Work) -> Result<Verdict, DropReason> {
    let source = env.ipcache(&work.hdr.key.source).unwrap_or_default();
    if is_forged(env, source) {
        return Err(DropReason::InvalidSourceIp);
    }
    Ok(Verdict::PASS)
}

/// Sender of a packet that this node's stack sends: the node itself, or someone it forwards for.
#[inline(always)]
fn stack<E: Env>(env: &E, hdr: &Headers) -> Result<Origin, DropReason> {
    let source = env.ipcache(&hdr.key.source).unwrap_or_default();
    let via = if source.kind == kind::HOST {
        0
    } else {
        flags::VIA_STACK
    };
    located(env, source, flags::ARRIVAL_HOST | via)
}

/// The end that an ipcache entry means, with its generation.
#[inline(always)]
fn located<E: Env>(env: &E, entry: IpEntry, flags: u16) -> Result<Origin, DropReason> {
    let (end, identity) = who(entry);
    let generation = generation(env, end).ok_or(DropReason::UnknownEndpoint)?;
    Ok(Origin {
        end,
        identity,
        generation,
        flags,
    })
}

/// The end and the identity that an ipcache entry stands for.
#[inline(always)]
#[must_use]
pub fn who(entry: IpEntry) -> (End, u32) {
    let end = match entry.kind {
        kind::HOST => End::HOST,
        kind::ENDPOINT => End::endpoint(entry.index),
        kind::PEER_POD | kind::PEER_NODE => End::peer(entry.index),
        _ => End::WORLD,
    };
    let unknown = entry.identity == identity::UNKNOWN;
    (
        end,
        if unknown {
            identity::WORLD
        } else {
            entry.identity
        },
    )
}

/// Generation that flows of `end` are judged under.
#[inline(always)]
pub fn generation<E: Env>(env: &E, end: End) -> Option<u32> {
    if end.is_remote() {
        Some(env.peers().get(&end.slot())?.generation)
    } else {
        Some(env.endpoints().get(&end.slot())?.generation)
    }
}

/// Establishes the sender of a packet for which there is no current flow, into [`Work::origin`].
///
/// # Errors
///
/// Every reason for which a packet cannot be whose it says it is.
#[inline(never)]
pub fn establish<E: Env>(env: &E, work: &mut Work) -> Result<(), DropReason> {
    work.origin.flags = Origin::REFUSED;
    let Work { hdr, arrival, .. } = work;
    work.origin = match arrival.by {
        flags::ARRIVAL_POD => pod(env, hdr, arrival)?,
        flags::ARRIVAL_TUNNEL => peer(env, hdr, arrival)?,
        flags::ARRIVAL_UPLINK => underlay(env, hdr)?,
        _ => stack(env, hdr)?,
    };
    if hdr.key.source.is_martian() || hdr.key.destination.is_martian() {
        return Err(DropReason::Martian);
    }
    if hdr.key.source.is_multicast() || hdr.key.destination.is_multicast() {
        return Err(DropReason::Multicast);
    }
    Ok(())
}
