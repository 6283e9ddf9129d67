//! What happens to a packet: start here.
//!
//! One short function per hook. An established packet is applied as its flow stands: one lookup,
//! one rewrite, one redirect. Everything else is decided once, in [`admit`], and remembered.
//! Nothing is dropped without a [`DropReason`], which is counted and left in [`Work::reason`].

use crate::abi::addr::Addr;
use crate::abi::config::{Settings, tunnel};
use crate::abi::event::Hook;
use crate::abi::flow::{flags, scope};
use crate::abi::ipcache::kind;
use crate::abi::mark;
use crate::abi::metric::Direction;
use crate::abi::tunnel::Uplink;
use crate::env::{Env, Table};
use crate::packet::{Frame, Headers, Kind, Packet, Part};
use crate::stage::flow::{self, Hit};
use crate::stage::origin;
use crate::stage::route::Route;
use crate::stage::{
    admit, answer, cut, decap, forward, fragment, neighbour, observe, parse, path_mtu, policy,
    quoted,
};
use crate::verdict::{DropReason, Verdict};
use crate::wire::ip::protocol;
use crate::work::Work;

/// What a hook's own part returns: it is [`observe::outcome`] that counts a drop.
type Outcome = Result<Verdict, DropReason>;

/// A frame leaving a pod: tcx ingress of the host's side of its veth, or the pod's end of its
/// netkit pair.
#[inline(always)]
pub fn from_pod<E: Env, P: Packet>(env: &E, pkt: &mut P, work: &mut Work) -> Verdict {
    work.begin(Hook::FromPod);
    let bytes = pkt.len();
    let result = leave_pod(env, pkt, work);
    observe::outcome(env, pkt, work, Direction::Egress, bytes, result)
}

#[inline(always)]
fn leave_pod<E: Env, P: Packet>(env: &E, pkt: &mut P, work: &mut Work) -> Outcome {
    work.arrive(env, pkt, flags::ARRIVAL_POD, Direction::Egress);
    if pkt.is_tagged() {
        return Err(DropReason::UnsupportedL2);
    }
    let parsed = parse::frame(pkt, &mut work.hdr);
    work.arrival.mac = work.hdr.source_mac;
    match parsed? {
        Frame::Ip => {}
        Frame::Arp => return neighbour::answer_arp(env, pkt, &work.arrival),
        Frame::Other => return Err(DropReason::UnsupportedL2),
    }
    match work.hdr.kind {
        Kind::Flow | Kind::IcmpError => flow_of(env, pkt, work)?,
        _ => return neighbour::control(env, pkt, work),
    }
    go_on(env, pkt, work)
}

/// The flow of a packet: its own, or the one of the packet that it is an error about.
#[inline(always)]
fn flow_of<E: Env, P: Packet>(env: &E, pkt: &P, work: &mut Work) -> Result<(), DropReason> {
    fragment::follow(env, work)?;
    if work.hdr.kind == Kind::IcmpError {
        quoted::flow_of(env, pkt, work)
    } else {
        admit::flow_of(env, pkt, work)
    }
}

/// Sends the packet where its flow says; where the way does not take it, its sender is told.
#[inline(always)]
fn go_on<E: Env, P: Packet>(env: &E, pkt: &mut P, work: &mut Work) -> Outcome {
    match forward::apply(env, pkt, work) {
        Err(reason) => answer::refusal(env, pkt, work, reason),
        sent => sent,
    }
}

/// A frame that reached a pod's interface through the host's stack: tcx egress of the host's side.
///
/// What the datapath itself sends into a pod comes by here only from another pod on a netkit pair,
/// and is left alone.
#[inline(always)]
pub fn to_pod<E: Env, P: Packet>(env: &E, pkt: &mut P, work: &mut Work) -> Verdict {
    work.begin(Hook::ToPod);
    let bytes = pkt.len();
    let result = enter_pod(env, pkt, work);
    observe::outcome(env, pkt, work, Direction::Ingress, bytes, result)
}

#[inline(always)]
fn enter_pod<E: Env, P: Packet>(env: &E, pkt: &mut P, work: &mut Work) -> Outcome {
    if env.netkit_pods() != 0 && mark::is(pkt.mark(), mark::FORWARDED) {
        return Ok(Verdict::PASS);
    }
    to_a_pod(env, pkt, work, Direction::Ingress)?;
    forward::in_place(env, pkt, work)
}

/// A frame arriving from the underlay: tcx ingress of an uplink.
///
/// Tunnel packets of peers, answers to masqueraded flows, and what is for a pod as it is. The
/// rest is the host's.
#[inline(always)]
pub fn from_uplink<E: Env, P: Packet>(env: &E, pkt: &mut P, work: &mut Work) -> Verdict {
    work.begin(Hook::FromUplink);
    let bytes = pkt.len();
    let result = match enter_node(env, pkt, work) {
        // What the node may have is not kept from it because it cannot be remembered.
        Err(DropReason::FlowInsertFailed | DropReason::EndpointQuota) if is_for_node(work) => {
            Ok(Verdict::PASS)
        }
        result => result,
    };
    observe::outcome(env, pkt, work, Direction::Ingress, bytes, result)
}

#[inline(always)]
fn enter_node<E: Env, P: Packet>(env: &E, pkt: &mut P, work: &mut Work) -> Outcome {
    match parse::frame(pkt, &mut work.hdr) {
        Ok(Frame::Ip) => {}
        // The stack would take off every tag without a VLAN, and go on with what nobody looked at.
        Err(DropReason::UnsupportedL2) => return Err(DropReason::UnsupportedL2),
        // Not to be understood is no offence in a packet for the host, unless that has a policy:
        // what was not understood was not judged.
        Err(reason) if policy::guards_node(env) => return Err(reason),
        // It may be whole in its eyes, or be put together by it.
        Err(_) => return origin::to_stack(env, work),
        _ => return Ok(Verdict::PASS),
    }
    work.arrive(env, pkt, flags::ARRIVAL_UPLINK, Direction::Ingress);
    if let Err(reason) = fragment::follow(env, work) {
        return fragment::refused(env, pkt, work, reason);
    }
    match work.hdr.kind {
        Kind::Flow => {}
        Kind::IcmpError => return told_by_underlay(env, pkt, work),
        _ => return Ok(Verdict::PASS),
    }
    // A tunnel packet that was cut on the way is the host's to put together, and to drop.
    let whole = work.hdr.part == Part::Whole;
    let tunnelled = env.tunnel() == tunnel::DIRECT && whole && is_tunnel_packet(env, &work.hdr);
    if tunnelled {
        decap::look_inside(pkt, work)?;
        fragment::follow(env, work)?;
    }
    if work.hdr.kind == Kind::IcmpError {
        quoted::flow_of(env, pkt, work)?;
    } else {
        match flow::lookup(env, work) {
            Hit::Current => {}
            Hit::Stale => admit::again(env, pkt, work)?,
            Hit::Miss => {
                if !is_ours(env, work) {
                    return origin::to_stack(env, work);
                }
                admit::new(env, pkt, work)?;
            }
        }
    }
    if work.arrival.by == flags::ARRIVAL_TUNNEL {
        decap::unwrap(pkt, work)?;
    }
    go_on(env, pkt, work)
}

/// An ICMP error from the underlay: about a flow, which it goes along, or about the tunnel, which
/// learns from it. The rest is the host's.
#[inline(always)]
fn told_by_underlay<E: Env, P: Packet>(env: &E, pkt: &mut P, work: &mut Work) -> Outcome {
    if quoted::flow_of(env, pkt, work).is_ok() {
        return forward::apply(env, pkt, work);
    }
    // The host may have its own use for what taught us something.
    let _ = path_mtu::learn(env, pkt, work);
    Ok(Verdict::PASS)
}

/// Whether what came in as it is goes to the node, as far as its way was found.
#[inline(always)]
fn is_for_node(work: &Work) -> bool {
    work.arrival.by == flags::ARRIVAL_UPLINK && work.route.target == flags::TARGET_HOST
}

/// Whether what has no flow may begin one here: what came through the tunnel, and of the rest what is
/// for a pod, and for the node where that has a policy of its own. A tunnel packet of a peer that
/// was cut on the way is none of that: it is looked at once the node has put it together.
#[inline(never)]
fn is_ours<E: Env>(env: &E, work: &Work) -> bool {
    let Work { hdr, arrival, .. } = work;
    if arrival.by == flags::ARRIVAL_TUNNEL {
        return true;
    }
    match env.ipcache(&hdr.key.destination).unwrap_or_default().kind {
        kind::ENDPOINT | kind::VACANT => true,
        kind::HOST if policy::guards_node(env) => {
            let by_tunnel = env.tunnel() == tunnel::DIRECT && is_tunnel_packet(env, hdr);
            !by_tunnel || env.peer_indices().get(&hdr.key.source).is_none()
        }
        _ => false,
    }
}

#[inline(always)]
fn is_tunnel_packet<S: Settings>(settings: &S, hdr: &Headers) -> bool {
    hdr.key.protocol == protocol::UDP
        && u32::from(hdr.key.destination_port.get()) == settings.tunnel_port()
}

/// A frame that the host's stack sends off the node: tcx egress of an uplink.
///
/// The node's own flows are entered beside the pods', so that no two share a tuple outside; pods'
/// packets that the stack forwards are masqueraded.
#[inline(always)]
pub fn to_uplink<E: Env, P: Packet>(env: &E, pkt: &mut P, work: &mut Work) -> Verdict {
    work.begin(Hook::ToUplink);
    let bytes = pkt.len();
    let result = leave_node(env, pkt, work);
    observe::outcome(env, pkt, work, Direction::Egress, bytes, result)
}

/// Whether a frame that leaves by an uplink was sent there by the datapath: it has been all that it
/// will be. Looked at before anything else, as it is for every frame that the datapath sends.
#[inline(always)]
pub fn is_sent<P: Packet>(pkt: &P) -> bool {
    mark::is(pkt.mark(), mark::FORWARDED)
}

#[inline(always)]
fn leave_node<E: Env, P: Packet>(env: &E, pkt: &mut P, work: &mut Work) -> Outcome {
    if is_sent(pkt) {
        return Ok(Verdict::PASS);
    }
    let parsed = parse::frame(pkt, &mut work.hdr);
    let ours = matches!(work.hdr.kind, Kind::Flow | Kind::IcmpError);
    if parsed != Ok(Frame::Ip) || !ours {
        return Ok(Verdict::PASS);
    }
    match env.ipcache(&work.hdr.key.source).unwrap_or_default().kind {
        kind::HOST if !is_of_tunnel(env, &work.hdr) => {}
        kind::ENDPOINT if masquerades(env, pkt.interface(), &work.hdr) => {
            work.hdr.key.scope = scope::STACK;
        }
        _ => return Ok(Verdict::PASS),
    }
    let of_pod = work.hdr.key.scope == scope::STACK;
    work.arrive(env, pkt, flags::ARRIVAL_HOST, Direction::Egress);
    match fragment::follow(env, work) {
        Err(reason) if of_pod => return Err(reason),
        Err(_) => return Ok(Verdict::PASS),
        Ok(()) => {}
    }
    if work.hdr.kind == Kind::IcmpError {
        return match quoted::flow_of(env, pkt, work) {
            Ok(()) => forward::in_place(env, pkt, work),
            // It would leave under the pod's own address.
            Err(reason) if of_pod => Err(reason),
            Err(_) => Ok(Verdict::PASS),
        };
    }
    let hit = flow::lookup(env, work);
    if hit == Hit::Current {
        return forward::in_place(env, pkt, work);
    }
    match leave_by_stack(env, pkt, work, hit == Hit::Stale) {
        Ok(()) => {}
        // Without a port of its own it would get a pod's answers, or leave as a pod.
        Err(reason) if of_pod || reason == DropReason::NatExhausted => return Err(reason),
        Err(reason) if policy::is_denial(reason) => return Err(reason),
        // What begins no flow, an answer to an echo for one, is the host's business.
        Err(_) => return Ok(Verdict::PASS),
    }
    forward::in_place(env, pkt, work)
}

/// Whether a packet of the node's is one of the tunnel, which is no flow: to anyone, where the node
/// has no policy of its own that could say otherwise.
#[inline(always)]
fn is_of_tunnel<E: Env>(env: &E, hdr: &Headers) -> bool {
    is_tunnel_packet(env, hdr)
        && (env.peer_indices().get(&hdr.key.destination).is_some() || !policy::guards_node(env))
}

/// Whether pods go out of this uplink behind its address.
#[inline(always)]
fn masquerades<E: Env>(env: &E, interface: u32, hdr: &Headers) -> bool {
    let uplink = env.uplinks().get(&interface).unwrap_or_default();
    !uplink.masquerade(hdr.key.destination.is_v4()).is_none()
}

/// Enters a flow that the stack sends out of an uplink: behind the uplink's address where it is a
/// pod's, and behind its own where it is the node's, so that its port is taken. A `stale` one is
/// judged again.
#[inline(always)]
fn leave_by_stack<E: Env, P: Packet>(
    env: &E,
    pkt: &P,
    work: &mut Work,
    stale: bool,
) -> Result<(), DropReason> {
    origin::establish(env, work)?;
    let Work { hdr, arrival, .. } = work;
    let uplink = env
        .uplinks()
        .get(&arrival.interface)
        .ok_or(DropReason::NoRoute)?;
    let masquerade = if hdr.key.scope == scope::STACK {
        uplink.masquerade(hdr.key.destination.is_v4())
    } else {
        hdr.key.source
    };
    if masquerade == Uplink::NO_ADDRESS {
        return Err(DropReason::NoRoute);
    }
    let entry = env.ipcache(&hdr.key.destination).unwrap_or_default();
    let (end, identity) = origin::who(entry);
    work.route = Route {
        end,
        identity,
        generation: origin::generation(env, end).ok_or(DropReason::NoRoute)?,
        target: flags::TARGET_UPLINK,
        next_hop: 0,
        next_hop_tag: 0,
        masquerade,
    };
    if stale {
        let answer = work.flow.has(flags::REPLY);
        if answer {
            work.route.masquerade = Addr::NONE;
        }
        if work.flow.arrival() == work.arrival.by && admit::is_same(work) {
            return admit::mend(env, pkt, work);
        }
        work.route.masquerade = masquerade;
        flow::remove_pair(env, &work.hdr.key, &work.flow);
    }
    if work.hdr.answers {
        return Err(DropReason::IcmpUnrelated);
    }
    let of_node = work.hdr.key.scope == scope::PATH;
    work.judgement.spared = of_node && !policy::guards_node(env);
    admit::enter(env, pkt, work)
}

/// A frame that the host's stack sends to a pod, here or on a peer: tcx ingress of the far side
/// of the gateway pair.
#[inline(always)]
pub fn from_host<E: Env, P: Packet>(env: &E, pkt: &mut P, work: &mut Work) -> Verdict {
    work.begin(Hook::FromHost);
    let bytes = pkt.len();
    let result = leave_host(env, pkt, work);
    observe::outcome(env, pkt, work, Direction::Egress, bytes, result)
}

#[inline(always)]
fn leave_host<E: Env, P: Packet>(env: &E, pkt: &mut P, work: &mut Work) -> Outcome {
    to_a_pod(env, pkt, work, Direction::Egress)?;
    forward::apply(env, pkt, work)
}

/// A frame about to enter the host's stack by the gateway pair: tcx ingress of the node's side.
///
/// Only what the datapath handed over, and judged before it did; and pieces that have come round
/// to be cut, which do not enter.
#[inline(always)]
pub fn to_host<E: Env, P: Packet>(env: &E, pkt: &mut P, work: &mut Work) -> Verdict {
    work.begin(Hook::ToHost);
    let bytes = pkt.len();
    let result = if mark::is(pkt.mark(), mark::TO_HOST) {
        pkt.set_mark(mark::with(pkt.mark(), 0));
        Ok(Verdict::PASS)
    } else if mark::is(pkt.mark(), mark::PIECE) {
        send_piece(env, pkt, work)
    } else {
        Err(DropReason::NotForwarded)
    };
    observe::outcome(env, pkt, work, Direction::Ingress, bytes, result)
}

#[inline(always)]
fn send_piece<E: Env, P: Packet>(env: &E, pkt: &mut P, work: &mut Work) -> Outcome {
    cut::make_piece(env, pkt, work)?;
    fragment::follow_piece(env, work)?;
    admit::flow_of(env, pkt, work)?;
    forward::apply(env, pkt, work)
}

/// The flow of a packet that the stack sends to a pod.
#[inline(always)]
fn to_a_pod<E: Env, P: Packet>(
    env: &E,
    pkt: &P,
    work: &mut Work,
    direction: Direction,
) -> Result<(), DropReason> {
    if parse::frame(pkt, &mut work.hdr)? != Frame::Ip {
        return Err(DropReason::UnsupportedL2);
    }
    if work.hdr.key.destination.is_multicast() {
        return Err(DropReason::Multicast);
    }
    // What the stack only put in order came by an uplink.
    let reordered = env.fragments_to_stack() != 0 && mark::is(pkt.mark(), mark::REORDERED);
    let by = if reordered {
        flags::ARRIVAL_UPLINK
    } else {
        flags::ARRIVAL_HOST
    };
    work.arrive(env, pkt, by, direction);
    flow_of(env, pkt, work)
}
