//! New flows: judged once, here, and remembered.

use crate::abi::addr::Addr;
use crate::abi::config::Settings;
use crate::abi::flow::{End, Flow, FlowKey, flags, scope, state, verdict};
use crate::abi::nexthop::PEERS_BASE;
use crate::abi::tally::Tally;
use crate::env::{Env, Table};
use crate::packet::{Headers, Kind, Part};
use crate::stage::flow::{self, Hit};
use crate::stage::nat;
use crate::stage::origin;
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
pub fn flow_of<E: Env>(env: &E, work: &mut Work) -> Result<(), DropReason> {
    match flow::lookup(env, work) {
        Hit::Current => Ok(()),
        Hit::Stale => again(env, work),
        Hit::Miss => new(env, work),
    }
}

/// Admits the first packet of a flow.
///
/// # Errors
///
/// As [`flow_of`].
#[inline(always)]
pub fn new<E: Env>(env: &E, work: &mut Work) -> Result<(), DropReason> {
    origin::establish(env, work)?;
    begins(env, &work.hdr)?;
    refusal::check(env, work)?;
    work.destination = work.hdr.key.destination;
    route::find(env, work)?;
    enter(env, work)
}

/// Whether the packet may begin a flow.
#[inline(always)]
fn begins<E: Env>(env: &E, hdr: &Headers) -> Result<(), DropReason> {
    if hdr.kind != Kind::Flow {
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

/// Enters both halves of a new flow, from [`Work::origin`] along [`Work::route`].
///
/// # Errors
///
/// What judgement and port search say, [`DropReason::FlowInsertFailed`] where there is no room.
#[inline(always)]
pub fn enter<E: Env>(env: &E, work: &mut Work) -> Result<(), DropReason> {
    halves(env, work)?;
    if work.route.masquerade.is_none() {
        work.reply_key = work.flow.partner_key(&work.hdr.key);
        if !nat::reserve(env, work)? {
            return join(env, work);
        }
    } else {
        nat::masquerade(env, work)?;
    }
    commit(env, work)
}

/// Judges the flow and makes both its halves.
#[inline(never)]
fn halves<E: Env>(env: &E, work: &mut Work) -> Result<(), DropReason> {
    let (verdict, rule_id) = judge(env, work)?;
    let pair = env.random() | 1;
    let lifetime_s = flow::lifetime_s(env, work.hdr.key.protocol, 0);
    let expires_s = work.arrival.now_s.wrapping_add(lifetime_s);
    forward_half(work);
    quota::check(env, &work.flow, work.arrival.now_s)?;
    reply_half(env, work);
    let of_stack = if work.hdr.key.scope == scope::STACK {
        flags::STACK_SCOPE
    } else {
        0
    };
    for half in [&mut work.flow, &mut work.reply] {
        half.verdict = verdict;
        half.rule_id = rule_id;
        half.pair = pair;
        half.expires_s = expires_s;
        half.flags |= of_stack;
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

/// Decides whether the flow may be: the one place where policy is asked.
///
/// No policy is compiled in yet, so every flow of a known origin is allowed, by no rule. What no
/// policy can allow is refused before: tunnel packets from a pod to any node.
#[inline(always)]
fn judge<S: Settings>(settings: &S, work: &Work) -> Result<(u8, u32), DropReason> {
    let Work {
        hdr, origin, route, ..
    } = work;
    let node = matches!(route.target, flags::TARGET_HOST | flags::TARGET_UPLINK)
        && route.end != End::WORLD;
    if origin.flags & flags::ARRIVAL == flags::ARRIVAL_POD
        && node
        && hdr.key.protocol == protocol::UDP
        && u32::from(hdr.key.destination_port.get()) == settings.tunnel_port()
    {
        return Err(DropReason::EncapsulationProhibited);
    }
    Ok((verdict::ALLOW, 0))
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
pub fn again<E: Env>(env: &E, work: &mut Work) -> Result<(), DropReason> {
    origin::establish(env, work)?;
    let flow = &work.flow;
    if flow.arrival() != work.arrival.by {
        return Err(DropReason::UnexpectedArrival);
    }
    let initial = !flow.has(flags::REPLY);
    let translated = flow.has(flags::DNAT);
    work.destination = if translated {
        flow.nat_address
    } else {
        work.hdr.key.destination
    };
    if !initial && flow.has(flags::VIA_STACK) {
        route::back_by_stack(env, work)?;
    } else {
        route::find(env, work)?;
    }
    if !initial {
        // Answers keep the source that the question was sent to.
        work.route.masquerade = Addr::NONE;
    }
    let Work {
        hdr,
        arrival,
        flow,
        route,
        ..
    } = &*work;
    let behind = if flow.has(flags::SNAT) {
        flow.nat_address
    } else {
        Addr::NONE
    };
    // What began behind an address, or under its own, goes on so whatever new flows do: the other
    // end knows no other. Flows behind an address that the node has no more are user space's to
    // remove.
    let same_way = route.next_hop == flow.next_hop && route.next_hop_tag == flow.next_hop_tag;
    let as_it_began = same_way && route.next_hop != 0 && route.target == flags::TARGET_UPLINK;
    let goes_on = (route.masquerade == behind || as_it_began) && route.target == flow.target();
    if goes_on && !(initial && tcp::begins_another(hdr, arrival, flow)) {
        mend(env, work)?;
        if tcp::is_event(&work.hdr, work.flow.state) {
            // What a packet does, it does also when its flow had to be judged again.
            tcp::follow(env, work);
        }
        return Ok(());
    }
    flow::remove_pair(env, &hdr.key, flow);
    if !initial {
        return Err(DropReason::UnexpectedArrival);
    }
    begins(env, hdr)?;
    enter(env, work)
}

/// Writes what was decided again into both halves of a flow.
#[inline(never)]
fn mend<E: Env>(env: &E, work: &mut Work) -> Result<(), DropReason> {
    let (verdict, rule_id) = judge(env, work)?;
    // Then it is counted where that is followed.
    let followed = tcp::is_event(&work.hdr, work.flow.state);
    work.held_key = work.flow.partner_key(&work.hdr.key);
    let Work {
        hdr,
        arrival,
        flow,
        held_key: partner_key,
        origin,
        route,
        ..
    } = work;
    let expires_s = arrival
        .now_s
        .wrapping_add(flow::lifetime_s(env, hdr.key.protocol, flow.state));
    flow.verdict = verdict;
    flow.rule_id = rule_id;
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
            half.verdict = verdict;
            half.rule_id = rule_id;
            half.source_identity = route.identity;
            half.generation = [route.generation, origin.generation];
            half.from = route.end.raw();
            half.to = origin.end.raw();
        }
    });
    Ok(())
}
