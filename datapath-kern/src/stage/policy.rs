//! Policy: whether a flow may be, asked once for each local end of it.
//!
//! The one that begins a flow needs its egress, the one that it is begun to its ingress; each is
//! asked only of ends of this node, pods and in slot 0 the node itself. Whoever is not of this node
//! was asked where he is. A flow is judged by the tuple and the direction in which it began,
//! whichever of its packets it is judged for. What a pod sends through the stack is a flow on its way
//! there and another one from there on, translated or not; the pod is asked about both.
//!
//! The word of an endpoint is read after the generations that the flow is stamped with. User space
//! writes them in the other order, so that no flow is stamped newer than the rules that it was
//! judged by; see [`abi::policy`](crate::abi::policy).

use zerocopy::network_endian::U16;

use crate::abi::endpoint::Endpoint;
use crate::abi::flow::{End, verdict};
use crate::abi::metric::Direction;
use crate::abi::policy::{PeerKey, PortKey, PortVerdict, word};
use crate::env::{Env, Table};
use crate::verdict::DropReason;
use crate::wire::ip::protocol;
use crate::wire::transport::{icmp, icmpv6};
use crate::work::Work;

/// Class that no rule is about.
const NO_CLASS: u32 = 0;

/// What policy says of a flow, and what it was asked with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Judgement {
    /// What the flow is to remember: one of [`verdict`],
    pub verdict: u8,
    /// Whether the packet at hand goes against the direction in which the flow began.
    pub reply: bool,
    /// Whether the node's own policy is not asked:
    /// [`UNJUDGED`](crate::abi::flow::flags::UNJUDGED).
    pub spared: bool,
    /// and the rule that decided.
    pub rule_id: u32,
    /// What was found for the egress of the one that began the flow; [`verdict::NONE`] where that
    /// needs no rule. [`verdict::AUDIT`] where it goes on all the same.
    pub egress: PortVerdict,
    /// The same for the ingress of the other one.
    pub ingress: PortVerdict,
    /// Who is looked up,
    peer: PeerKey,
    /// and what for.
    port: PortKey,
}

impl Judgement {
    /// What was found for a direction.
    #[inline(always)]
    #[must_use]
    pub const fn of(&self, direction: Direction) -> &PortVerdict {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }

    /// What a flow was denied by; of one that was not, what was asked last.
    #[inline(always)]
    #[must_use]
    pub const fn decisive(&self) -> &PortVerdict {
        match self.ingress.verdict {
            verdict::NONE => &self.egress,
            _ => &self.ingress,
        }
    }
}

/// Judges the flow between [`Work::origin`] and [`Work::route`], into [`Work::judgement`].
///
/// `reply` says that the packet at hand goes against the direction in which the flow began; then
/// [`Work::held_key`] is the key of the other half.
///
/// # Errors
///
/// [`DropReason::PolicyDenied`] where a rule is needed and none allows it,
/// [`DropReason::PolicyDeniedByRule`] where one denies it.
#[inline(never)]
pub fn judge<E: Env>(env: &E, work: &mut Work, reply: bool) -> Result<(), DropReason> {
    begin(work, reply);
    direction(env, work, Direction::Egress)?;
    direction(env, work, Direction::Ingress)?;
    let judgement = &mut work.judgement;
    judgement.rule_id = judgement.decisive().rule_id;
    let audited =
        judgement.egress.verdict == verdict::AUDIT || judgement.ingress.verdict == verdict::AUDIT;
    judgement.verdict = if audited {
        verdict::AUDIT
    } else {
        verdict::ALLOW
    };
    Ok(())
}

/// Nothing is found yet, and this is what is looked for.
#[inline(always)]
fn begin(work: &mut Work, reply: bool) {
    let Work {
        hdr,
        held_key,
        judgement,
        ..
    } = work;
    judgement.reply = reply;
    judgement.verdict = verdict::DENY;
    judgement.egress = PortVerdict::default();
    judgement.ingress = PortVerdict::default();
    judgement.port = PortKey {
        class: NO_CLASS,
        reserved: 0,
        protocol: hdr.key.protocol,
        port: match hdr.key.protocol {
            // What begins a flow of echo is a request.
            protocol::ICMP => U16::new(icmp::ECHO_REQUEST.into()),
            protocol::ICMPV6 => U16::new(icmpv6::ECHO_REQUEST.into()),
            // As the one that began it named it, whatever it is translated to.
            _ if reply => held_key.destination_port,
            _ => hdr.key.destination_port,
        },
    };
}

/// Who is asked for a direction: of a flow, the one that began it for the egress.
#[inline(always)]
#[must_use]
pub fn asked(work: &Work, direction: Direction) -> End {
    let Work {
        origin,
        route,
        judgement,
        ..
    } = work;
    if sends(direction, judgement.reply) {
        origin.end
    } else {
        route.end
    }
}

/// Whether the one that is asked for a direction sent the packet at hand.
#[inline(always)]
const fn sends(direction: Direction, reply: bool) -> bool {
    matches!(direction, Direction::Egress) != reply
}

/// Judges one direction.
#[inline(never)]
fn direction<E: Env>(env: &E, work: &mut Work, direction: Direction) -> Result<(), DropReason> {
    let end = asked(work, direction);
    if end.is_remote() || end == End::HOST && work.judgement.spared {
        return Ok(());
    }
    let bit = match direction {
        Direction::Ingress => word::INGRESS,
        Direction::Egress => word::EGRESS,
    };
    let mut judged_by = word_of(env, end.slot());
    // What denies it may have been replaced while it was being read, and taken apart.
    for _ in 0..2 {
        if judged_by & bit == 0 {
            *place(&mut work.judgement, direction) = PortVerdict::default();
            return Ok(());
        }
        find(env, work, judged_by & word::SET, direction);
        let now = word_of(env, end.slot());
        if work.judgement.of(direction).verdict == verdict::ALLOW || now == judged_by {
            break;
        }
        judged_by = now;
    }
    settle(work, judged_by & word::AUDIT != 0, direction)
}

/// How an endpoint is judged: bits of [`word`]. In doubt nothing is allowed.
#[inline(always)]
pub fn word_of<E: Env>(env: &E, slot: u32) -> u32 {
    let endpoint: Option<Endpoint> = env.endpoints().get(&slot);
    endpoint.map_or(word::INGRESS | word::EGRESS, |endpoint| endpoint.policy)
}

/// Whether the node's own policy is in force.
#[inline(always)]
pub fn guards_node<E: Env>(env: &E) -> bool {
    word_of(env, End::HOST.slot()) & (word::INGRESS | word::EGRESS) != 0
}

/// Looks up what a rule set says, into the judgement: [`verdict::NONE`] where it says nothing.
#[inline(always)]
fn find<E: Env>(env: &E, work: &mut Work, set: u32, direction: Direction) {
    let Work {
        origin,
        route,
        judgement,
        ..
    } = work;
    let peer = if sends(direction, judgement.reply) {
        route.identity
    } else {
        origin.identity
    };
    let found = if set == 0 {
        None
    } else {
        judgement.peer = PeerKey::new(set, direction, peer);
        class_of(env, &mut judgement.peer).and_then(|class| {
            judgement.port.class = class;
            env.policy_port(&judgement.port)
        })
    };
    *place(judgement, direction) = found.unwrap_or_default();
}

/// The class of a peer: its own, or that of everyone.
#[inline(always)]
fn class_of<E: Env>(env: &E, peer: &mut PeerKey) -> Option<u32> {
    let own = env.policy_peers().get(peer);
    let class = if own.is_some() {
        own
    } else {
        peer.identity = PeerKey::ANY;
        env.policy_peers().get(peer)
    };
    class.filter(|class| *class != NO_CLASS)
}

#[inline(always)]
const fn place(judgement: &mut Judgement, direction: Direction) -> &mut PortVerdict {
    match direction {
        Direction::Ingress => &mut judgement.ingress,
        Direction::Egress => &mut judgement.egress,
    }
}

/// What follows from what was found.
#[inline(always)]
fn settle(work: &mut Work, audited: bool, direction: Direction) -> Result<(), DropReason> {
    let found = place(&mut work.judgement, direction);
    let reason = match found.verdict {
        verdict::ALLOW => return Ok(()),
        verdict::DENY => DropReason::PolicyDeniedByRule,
        _ => DropReason::PolicyDenied,
    };
    if audited {
        found.verdict = verdict::AUDIT;
        return Ok(());
    }
    found.verdict = verdict::DENY;
    Err(reason)
}

/// Whether a reason is that of policy.
#[inline(always)]
#[must_use]
pub const fn is_denial(reason: DropReason) -> bool {
    matches!(
        reason,
        DropReason::PolicyDenied | DropReason::PolicyDeniedByRule
    )
}
