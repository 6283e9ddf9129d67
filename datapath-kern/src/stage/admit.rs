//! New flows: judged once, here, and remembered.
//!
//! Only what policy allows is remembered: a flow that is denied has no entry, so that nothing can
//! come by it, and each of its packets is judged as the first one. One that is denied when it is
//! judged again loses its entry, both halves of it; what comes after that begins anew or not at
//! all, also when policy changes back. Where
//! [`Config::revoke_drains`](crate::abi::config::Config::revoke_drains) says so, it goes on instead
//! as it was, if it was proven: as long as neither its ports are used again nor its way changes, and
//! both its ends are who they were.

use crate::abi::addr::Addr;
use crate::abi::config::Settings;
use crate::abi::endpoint::identity;
use crate::abi::flow::{End, Flow, FlowKey, flags, scope, state};
use crate::abi::nexthop::PEERS_BASE;
use crate::abi::tally::Tally;
use crate::env::{Env, Table};
use crate::packet::{Headers, Kind, Packet, Part};
use crate::stage::apart::Apart;
use crate::stage::flow::{self, Hit};
use crate::stage::nat;
use crate::stage::observe;
use crate::stage::origin;
use crate::stage::policy;
use crate::stage::quota;
use crate::stage::refusal;
use crate::stage::route;
use crate::stage::tcp;
use crate::verdict::DropReason;
use crate::wire::ip::protocol;
use crate::work::Work;

/// The flow of a packet, into [`Work::flow`]: the one it has, judged again where that is due, or a
/// new one.
///
/// # Errors
///
/// Every reason for which a packet may not begin or continue a flow.
#[inline(always)]
pub fn flow_of<E: Env, P: Packet>(env: &E, pkt: &P, work: &mut Work) -> Result<(), DropReason> {
    match flow::lookup(env, work) {
        Hit::Current => Ok(()),
        Hit::Stale => again(env, pkt, work),
        Hit::Miss => new(env, pkt, work),
    }
}

/// Admits the first packet of a flow.
///
/// # Errors
///
/// As [`flow_of`].
#[inline(always)]
pub fn new<E: Env, P: Packet>(env: &E, pkt: &P, work: &mut Work) -> Result<(), DropReason> {
    origin::establish(env, work)?;
    begins(env, &work.hdr)?;
    refusal::check(env, work)?;
    work.destination = work.hdr.key.destination;
    route::find(env, work)?;
    work.judgement.spared = false;
    enter(env, pkt, work)
}

/// Whether the packet may begin a flow.
#[inline(always)]
fn begins<E: Env>(env: &E, hdr: &Headers) -> Result<(), DropReason> {
    if hdr.kind != Kind::Flow || hdr.answers {
        return Err(DropReason::IcmpUnrelated);
    }
    if hdr.part == Part::Later {
        return Err(DropReason::FragmentWithoutFirst);
    }
    if hdr.key.protocol != protocol::TCP || tcp::is_syn(hdr) {
        return Ok(());
    }
    if env.tcp_loose() == 0 || !tcp::is_mid_stream(hdr) {
        return Err(DropReason::TcpWithoutFlow);
    }
    env.tally(Tally::PickedUp, 1);
    Ok(())
}

/// Enters both halves of a new flow, from [`Work::origin`] along [`Work::route`], and tells what
/// policy says of it.
///
/// # Errors
///
/// What judgement and port search say, [`DropReason::FlowInsertFailed`] where there is no room.
#[inline(always)]
pub fn enter<E: Env, P: Packet>(env: &E, pkt: &P, work: &mut Work) -> Result<(), DropReason> {
    halves(env, pkt, work)?;
    if work.route.masquerade.is_none() {
        work.reply_key = work.flow.partner_key(&work.hdr.key);
        if !nat::reserve(env, work)? {
            return join(env, work);
        }
    } else {
        env.apart(Apart::Masquerade, work)?;
    }
    commit(env, work)
}

/// Judges the flow and makes both its halves.
#[inline(never)]
fn halves<E: Env, P: Packet>(env: &E, pkt: &P, work: &mut Work) -> Result<(), DropReason> {
    refuse_tunnels(env, work)?;
    let judged = policy::judge(env, work, false);
    observe::rulings(env, pkt, work);
    judged?;
    let pair = env.random() | 1;
    let lifetime_s = flow::lifetime_s(env, work.hdr.key.protocol, 0);
    let expires_s = work.arrival.now_s.wrapping_add(lifetime_s);
    forward_half(work);
    quota::check(env, &work.flow, work.arrival.now_s)?;
    reply_half(env, work);
    let mut both = 0;
    if work.hdr.key.scope == scope::STACK {
        both |= flags::STACK_SCOPE;
    }
    if work.judgement.spared {
        both |= flags::UNJUDGED;
    }
    for half in [&mut work.flow, &mut work.reply] {
        half.verdict = work.judgement.verdict;
        half.rule_id = work.judgement.rule_id;
        half.pair = pair;
        half.expires_s = expires_s;
        half.flags |= both;
    }
    work.flow.packets = 1;
    work.flow.bytes = u64::from(work.hdr.length);
    work.flow.entropy = entropy(&work.hdr.key, env.seed());
    work.reply.entropy = work.flow.entropy;
    Ok(())
}

/// Enters the forward half; the reply is in already.
#[inline(never)]
fn commit<E: Env>(env: &E, work: &mut Work) -> Result<(), DropReason> {
    let Work {
        hdr,
        flow,
        reply,
        reply_key,
        arrival,
        ..
    } = work;
    let entered = env.pending().insert(&hdr.key, flow);
    if entered.is_ok()
        // A flow that was promoted between our looks into the two tables was in neither of them.
        && env.flows().update(&hdr.key, |_| ()).is_none()
        && (is_pending(env, reply_key, flow.pair)
            // The table made room for the forward half by it, or its own packets came first and
            // found it alone.
            || env.pending().insert(reply_key, reply).is_ok()
                && is_pending(env, &hdr.key, flow.pair))
    {
        env.tally(Tally::PendingInserted, 2);
        quota::begun(env, flow, arrival.now_s);
        return Ok(());
    }
    for key in [reply_key, &mut hdr.key] {
        if is_pending(env, key, flow.pair) {
            env.pending().remove(key);
        }
    }
    if let Err(error) = entered {
        flow::refused(env, error, Tally::PendingFull);
    }
    join(env, work)
}

/// Whether the entry of the pending table under `key` belongs to `pair`.
#[inline(always)]
fn is_pending<E: Env>(env: &E, key: &FlowKey, pair: u32) -> bool {
    env.pending().update(key, |half| half.pair == pair) == Some(true)
}

/// Another CPU was first with the same flow, or there is no room. Theirs counts.
#[inline(always)]
fn join<E: Env>(env: &E, work: &mut Work) -> Result<(), DropReason> {
    let Work {
        hdr, flow: copy, ..
    } = work;
    flow::peek(env, &hdr.key, |flow| *copy = *flow).ok_or(DropReason::FlowInsertFailed)
}

/// Refuses what no policy can allow, nor audit let through: tunnel packets from a pod to any node.
#[inline(always)]
fn refuse_tunnels<S: Settings>(settings: &S, work: &Work) -> Result<(), DropReason> {
    let Work {
        hdr, origin, route, ..
    } = work;
    // A peer has addresses among its pods that are its own: they are reached by the tunnel.
    let node = matches!(route.target, flags::TARGET_HOST | flags::TARGET_UPLINK)
        && route.end != End::WORLD
        || route.identity == identity::REMOTE_NODE;
    if origin.flags & flags::ARRIVAL == flags::ARRIVAL_POD
        && node
        && hdr.key.protocol == protocol::UDP
        && u32::from(hdr.key.destination_port.get()) == settings.tunnel_port()
    {
        return Err(DropReason::EncapsulationProhibited);
    }
    Ok(())
}

/// The half of a flow that goes from the origin along the route.
#[inline(always)]
fn forward_half(work: &mut Work) {
    let Work { origin, route, .. } = work;
    work.flow = Flow {
        source_identity: origin.identity,
        generation: [origin.generation, route.generation],
        from: origin.end.raw(),
        to: route.end.raw(),
        flags: origin.flags | route.target,
        next_hop: route.next_hop,
        next_hop_tag: route.next_hop_tag,
        ..Flow::default()
    };
}

/// The half that comes back: it arrives where the other one went, and goes where it came from.
#[inline(always)]
fn reply_half<E: Env>(env: &E, work: &mut Work) {
    let Work { origin, route, .. } = work;
    let came_by = origin.flags & flags::ARRIVAL;
    let slot = match came_by {
        flags::ARRIVAL_POD => origin.end.slot(),
        flags::ARRIVAL_TUNNEL => PEERS_BASE + origin.end.slot(),
        // Found when the first answer goes out.
        _ => 0,
    };
    let tag = env.next_hops().get(&slot).unwrap_or_default().tag;
    #[allow(
        clippy::cast_possible_truncation,
        reason = "slots are below MAX_NEXT_HOPS"
    )]
    let next_hop = slot as u16;
    work.reply = Flow {
        source_identity: route.identity,
        generation: [route.generation, origin.generation],
        from: route.end.raw(),
        to: origin.end.raw(),
        flags: arrival_from(route.target)
            | target_towards(came_by)
            | flags::REPLY
            | origin.flags & flags::VIA_STACK,
        next_hop,
        next_hop_tag: tag,
        ..Flow::default()
    };
}

/// How answers arrive from where packets went by `target`.
#[inline(always)]
const fn arrival_from(target: u16) -> u16 {
    target << 3
}

/// Where answers go for packets that `arrived`.
#[inline(always)]
const fn target_towards(arrived: u16) -> u16 {
    arrived >> 3
}

const _: () = assert!(
    arrival_from(flags::TARGET_POD) == flags::ARRIVAL_POD
        && arrival_from(flags::TARGET_TUNNEL) == flags::ARRIVAL_TUNNEL
        && arrival_from(flags::TARGET_UPLINK) == flags::ARRIVAL_UPLINK
        && target_towards(flags::ARRIVAL_HOST) == flags::TARGET_HOST
);

/// Source port for the tunnel packets of a flow: in the dynamic range, as RFC 8926, section 3.3
/// advises.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "masked to fourteen bits")]
fn entropy(key: &FlowKey, seed: u32) -> u16 {
    0xc000 | (flow::hash(key, seed) & 0x3fff) as u16
}

/// Judges a flow again whose ends or routes changed since, by the tuple and direction in which it
/// began, and mends both halves; or makes another flow of it where the way is another one.
///
/// # Errors
///
/// As [`flow_of`]; [`DropReason::UnexpectedArrival`] for a packet that comes another way than its
/// flow's packets do.
#[inline(always)]
pub fn again<E: Env, P: Packet>(env: &E, pkt: &P, work: &mut Work) -> Result<(), DropReason> {
    origin::establish(env, work)?;
    let Work {
        hdr, arrival, flow, ..
    } = &*work;
    if flow.arrival() != arrival.by {
        return Err(DropReason::UnexpectedArrival);
    }
    // Whichever side asks for another connection, it is the one that begins that.
    let answer = flow.has(flags::REPLY) && !tcp::begins_another(hdr, arrival, flow);
    let by_stack = answer && flow.has(flags::VIA_STACK);
    let translated = answer && flow.has(flags::DNAT);
    work.destination = if translated {
        flow.nat_address
    } else {
        hdr.key.destination
    };
    if by_stack {
        route::back_by_stack(env, work)?;
    } else {
        route::find(env, work)?;
    }
    if answer {
        // Answers keep the source that the question was sent to.
        work.route.masquerade = Addr::NONE;
    }
    if is_same(work) {
        return mend(env, pkt, work);
    }
    flow::remove_pair(env, &work.hdr.key, &work.flow);
    if answer {
        return Err(DropReason::UnexpectedArrival);
    }
    begins(env, &work.hdr)?;
    work.judgement.spared = false;
    enter(env, pkt, work)
}

/// Whether a packet is of the flow in [`Work::flow`], now that its [`Work::route`] is known: it
/// does not begin another one, and goes the way that the flow's packets go.
///
/// What began behind an address, or under its own, goes on so whatever new flows do: the other end
/// knows no other. Flows behind an address that the node has no more are user space's to remove.
#[inline(always)]
#[must_use]
pub fn is_same(work: &Work) -> bool {
    let Work {
        hdr,
        arrival,
        flow,
        route,
        ..
    } = work;
    let behind = if flow.has(flags::SNAT) {
        flow.nat_address
    } else {
        Addr::NONE
    };
    let same_way = route.next_hop == flow.next_hop && route.next_hop_tag == flow.next_hop_tag;
    let as_it_began = same_way && route.next_hop != 0 && route.target == flags::TARGET_UPLINK;
    (route.masquerade == behind || as_it_began)
        && route.target == flow.target()
        && !tcp::begins_another(hdr, arrival, flow)
}

/// Judges the flow in [`Work::flow`] again and writes what was decided into both its halves;
/// removes them where it is denied. Tells of it where the verdict is another one.
///
/// # Errors
///
/// What judgement says.
#[inline(never)]
pub fn mend<E: Env, P: Packet>(env: &E, pkt: &P, work: &mut Work) -> Result<(), DropReason> {
    work.held_key = work.flow.partner_key(&work.hdr.key);
    if let Err(reason) = judge_again(env, pkt, work) {
        flow::remove_both(env, &work.hdr.key, &work.held_key, work.flow.pair);
        return Err(reason);
    }
    // Then it is counted where that is followed.
    let followed = tcp::is_event(&work.hdr, work.flow.state);
    let Work {
        hdr,
        arrival,
        flow,
        held_key: partner_key,
        origin,
        route,
        ..
    } = &mut *work;
    let expires_s = arrival
        .now_s
        .wrapping_add(flow::lifetime_s(env, hdr.key.protocol, flow.state));
    flow.source_identity = origin.identity;
    flow.generation = [origin.generation, route.generation];
    flow.from = origin.end.raw();
    flow.to = route.end.raw();
    flow.next_hop = route.next_hop;
    flow.next_hop_tag = route.next_hop_tag;
    if !followed {
        flow.packets = flow.packets.wrapping_add(1);
        flow.bytes = flow.bytes.wrapping_add(u64::from(hdr.length));
    }
    if !state::is_over(flow.state) {
        flow.expires_s = expires_s;
    }
    flow::update(env, &hdr.key, |half| *half = *flow);
    flow::update(env, partner_key, |half| {
        if half.pair == flow.pair {
            half.verdict = flow.verdict;
            half.rule_id = flow.rule_id;
            half.source_identity = route.identity;
            half.generation = [route.generation, origin.generation];
            half.from = route.end.raw();
            half.to = origin.end.raw();
        }
    });
    if followed {
        // What a packet does, it does also when its flow had to be judged again.
        tcp::follow(env, work);
    }
    Ok(())
}

/// Whether the flow in [`Work::flow`] is proven, and of those who began it: not of others who have
/// their addresses now. An end outside is its address, whatever the prefixes that rules name make of
/// it.
#[inline(never)]
fn is_between_the_same<E: Env>(env: &E, work: &Work) -> bool {
    let Work {
        flow,
        origin,
        route,
        held_key,
        ..
    } = work;
    let is_same = |end: End, was: u32, is: u32| end == End::WORLD || was == is;
    flow.state & state::ESTABLISHED != 0
        && is_same(origin.end, flow.source_identity, origin.identity)
        && env.flows().update(held_key, |half| {
            half.pair == flow.pair && is_same(route.end, half.source_identity, route.identity)
        }) == Some(true)
}

/// Judges the flow in [`Work::flow`] again, into its verdict.
#[inline(always)]
fn judge_again<E: Env, P: Packet>(env: &E, pkt: &P, work: &mut Work) -> Result<(), DropReason> {
    let reply = work.flow.has(flags::REPLY);
    if !reply {
        refuse_tunnels(env, work)?;
    }
    work.judgement.spared = work.flow.has(flags::UNJUDGED);
    let judged = policy::judge(env, work, reply);
    if judged.is_err() && env.revoke_drains() != 0 && is_between_the_same(env, work) {
        return Ok(());
    }
    if work.flow.verdict != work.judgement.verdict {
        observe::rulings(env, pkt, work);
    }
    work.flow.verdict = work.judgement.verdict;
    work.flow.rule_id = work.judgement.rule_id;
    judged
}
