//! Finding the flow of a packet, and keeping it alive.

use crate::abi::config::Settings;
use crate::abi::flow::{End, Flow, FlowKey, flags, state};
use crate::abi::tally::Tally;
use crate::env::{Env, InsertError, Table, Visit};
use crate::packet::Headers;
use crate::stage::origin::{self, Arrival};
use crate::stage::{quota, tcp};
use crate::wire::ip::protocol;
use crate::wire::transport::tcp_flag;
use crate::work::Work;

/// What is known of a packet's flow.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hit {
    /// An entry whose decisions hold; it is in [`Work::flow`].
    Current,
    /// An entry that must be judged again; it is in [`Work::flow`].
    Stale,
    /// None.
    Miss,
}

/// How an entry stands towards a packet.
#[derive(Clone, Copy)]
enum Standing {
    Current,
    Stale,
    Dead,
    /// A TCP flag that may change the flow's state, or a segment after a reset.
    Event,
}

/// Looks up the flow of a packet and counts the packet into it.
///
/// One lookup in the established table where the flow is there; the pending table only after
/// that.
#[inline(always)]
pub fn lookup<E: Env>(env: &E, work: &mut Work) -> Hit {
    match inspect_in(env, &env.flows(), work) {
        Some(Standing::Current) => Hit::Current,
        Some(Standing::Stale) => Hit::Stale,
        Some(Standing::Event) => tcp::event(env, work),
        Some(Standing::Dead) => revive(env, work),
        None => lookup_pending(env, work),
    }
}

/// Looks the packet's flow up in one of the tables and, where it is there, [`Inspect`]s it.
#[inline(always)]
fn inspect_in<E: Env>(
    env: &E,
    table: &impl Table<FlowKey, Flow>,
    work: &mut Work,
) -> Option<Standing> {
    let Work {
        hdr,
        arrival,
        flow: copy,
        ..
    } = work;
    let inspect = Inspect {
        env,
        hdr,
        arrival,
        copy,
    };
    table.visit(&hdr.key, inspect)
}

/// Compares an entry with the packet, counts the packet where it holds, and copies the entry.
struct Inspect<'a, E> {
    env: &'a E,
    hdr: &'a Headers,
    arrival: &'a Arrival,
    copy: &'a mut Flow,
}

impl<E: Env> Visit<Flow> for Inspect<'_, E> {
    type Outcome = Standing;

    #[inline(always)]
    fn visit(self, flow: &mut Flow) -> Standing {
        let Self {
            env,
            hdr,
            arrival,
            copy,
        } = self;
        let standing = if flow.expires_s <= arrival.now_s {
            Standing::Dead
        } else if !holds(env, flow, arrival) {
            Standing::Stale
        } else if tcp::is_event(hdr, flow.state) {
            Standing::Event
        } else {
            touch(env, flow, hdr, arrival.now_s);
            Standing::Current
        };
        *copy = *flow;
        standing
    }
}

/// Whether the packet came the way that its flow's packets come, from whom they come, and both
/// ends are still judged as they were. Array reads only.
#[inline(always)]
pub(super) fn holds<E: Env>(env: &E, flow: &Flow, arrival: &Arrival) -> bool {
    if flow.arrival() != arrival.by {
        return false;
    }
    let [from_generation, to_generation] = flow.generation;
    let from = End::from_raw(flow.from);
    let sender_holds = if from.is_remote() {
        env.peers().get(&from.slot()).is_some_and(|peer| {
            let tunnelled = arrival.by == flags::ARRIVAL_TUNNEL;
            peer.generation == from_generation
                && (!tunnelled
                    || peer.address == arrival.peer
                        && peer.local == arrival.local
                        && peer.interface == arrival.interface
                        && flow.source_identity == arrival.vni)
        })
    } else {
        env.endpoints().get(&from.slot()).is_some_and(|endpoint| {
            let pod = arrival.by == flags::ARRIVAL_POD;
            endpoint.generation == from_generation
                && (!pod
                    || endpoint.interface == arrival.interface
                        && endpoint.mac_words() == arrival.mac)
        })
    };
    sender_holds && origin::generation(env, End::from_raw(flow.to)) == Some(to_generation)
}

/// Counts a packet and moves the end of life; the time is written once a second at most.
#[inline(always)]
pub fn touch<S: Settings>(settings: &S, flow: &mut Flow, hdr: &Headers, now_s: u32) {
    flow.packets = flow.packets.wrapping_add(1);
    flow.bytes = flow.bytes.wrapping_add(u64::from(hdr.length));
    // What is over lives out its last seconds, whatever still comes.
    if !state::is_over(flow.state) {
        let expires_s = now_s.wrapping_add(lifetime_s(settings, hdr.key.protocol, flow.state));
        if flow.expires_s != expires_s {
            flow.expires_s = expires_s;
        }
    }
}

/// How long a flow in `state` lives after a packet, seconds.
#[inline(always)]
pub fn lifetime_s<S: Settings>(settings: &S, protocol: u8, state: u8) -> u32 {
    let proven = state & state::ESTABLISHED != 0;
    match (protocol == protocol::TCP, proven) {
        (true, _) if state::is_over(state) => settings.tcp_closed_s(),
        (true, true) => settings.tcp_established_s(),
        (true, false) => settings.tcp_pending_s(),
        (false, true) => settings.other_established_s(),
        (false, false) => settings.other_pending_s(),
    }
}

/// An entry whose time is up lives on if its partner does; otherwise both go.
#[inline(always)]
fn revive<E: Env>(env: &E, work: &Work) -> Hit {
    let hit = revived(env, work);
    make_room(env, work, hit)
}

/// Removes the flow that a packet was found not to belong to any more.
///
/// Called from here and not from where that is found: a kernel before 6.8 counts every frame of the
/// stack in steps of 32 bytes, and one frame more is one too many.
#[inline(always)]
pub fn make_room<E: Env>(env: &E, work: &Work, hit: Hit) -> Hit {
    if hit == Hit::Miss {
        remove_pair(env, &work.hdr.key, &work.flow);
    }
    hit
}

/// Whether the partner of an entry whose time is up lives.
#[inline(never)]
fn revived<E: Env>(env: &E, work: &Work) -> Hit {
    let Work {
        hdr, arrival, flow, ..
    } = work;
    let partner_key = flow.partner_key(&hdr.key);
    if !state::is_over(flow.state) && is_alive(env, &partner_key, flow.pair, arrival.now_s) {
        // Judged again: nobody looked at this half for a lifetime.
        return Hit::Stale;
    }
    Hit::Miss
}

/// The pending half of [`lookup`]: the same, and promotion of what has proven itself.
#[inline(never)]
fn lookup_pending<E: Env>(env: &E, work: &mut Work) -> Hit {
    match inspect_in(env, &env.pending(), work) {
        Some(Standing::Current) => {}
        Some(Standing::Stale) => {
            let hit = stale_unless_alone(env, work);
            return make_room(env, work, hit);
        }
        Some(Standing::Event) => {
            let hit = tcp::event(env, work);
            if hit != Hit::Current {
                return hit;
            }
        }
        Some(Standing::Dead) => return revive(env, work),
        None => return Hit::Miss,
    }
    progress(env, work)
}

/// Whether a pending entry that must be judged again still has its partner.
#[inline(never)]
fn stale_unless_alone<E: Env>(env: &E, work: &Work) -> Hit {
    let Work {
        hdr, arrival, flow, ..
    } = work;
    let partner_key = flow.partner_key(&hdr.key);
    if partner_lives(env, &partner_key, flow.pair, arrival.now_s).is_some() {
        return Hit::Stale;
    }
    env.tally(Tally::LoneHalves, 1);
    Hit::Miss
}

/// What a packet does for a pending flow: an answer is noted in both halves, and an answer's
/// answer proves the flow.
#[inline(always)]
fn progress<E: Env>(env: &E, work: &mut Work) -> Hit {
    let Work {
        hdr,
        flow,
        reply: partner,
        reply_key: partner_key,
        ..
    } = work;
    *partner_key = flow.partner_key(&hdr.key);
    let found = env
        .pending()
        .update(partner_key, |half| *partner = *half)
        .is_some();
    if !found || partner.pair != flow.pair {
        if established(env, &hdr.key, flow.pair) {
            // Another CPU has promoted it this moment.
            return Hit::Current;
        }
        // The table let go of one half; the other must not live on alone.
        env.tally(Tally::LoneHalves, 1);
        remove_pair(env, &hdr.key, flow);
        return Hit::Miss;
    }
    if flow.has(flags::REPLY) {
        if flow.state & state::REPLIED == 0 {
            env.pending()
                .update(&hdr.key, |half| half.state |= state::REPLIED);
            env.pending()
                .update(partner_key, |half| half.state |= state::REPLIED);
        }
        return Hit::Current;
    }
    let answered = flow.state & state::REPLIED != 0 && !state::is_over(flow.state);
    let confirms = hdr.key.protocol != protocol::TCP
        || hdr.tcp_flags & (tcp_flag::SYN | tcp_flag::RST | tcp_flag::ACK) == tcp_flag::ACK;
    if answered && confirms {
        promote(env, work);
    }
    Hit::Current
}

/// Moves a proven flow to the established table; where that has no room for it, it stays pending.
///
/// Entered there before it is taken out here, the reply first: at no moment is the reply's tuple
/// free for another flow to be translated to. Whoever enters the reply promotes the flow.
#[inline(never)]
fn promote<E: Env>(env: &E, work: &mut Work) {
    let Work {
        hdr,
        arrival,
        flow,
        reply: partner,
        reply_key: partner_key,
        ..
    } = work;
    if !quota::has_room(env, flow) {
        env.tally(Tally::QuotaPromotion, 1);
        return;
    }
    let (pending_state, pending_expires_s) = (flow.state, flow.expires_s);
    let proven = flow.state | state::ESTABLISHED;
    flow.state = proven;
    flow.expires_s = arrival
        .now_s
        .wrapping_add(lifetime_s(env, hdr.key.protocol, proven));
    partner.state = proven;
    partner.expires_s = flow.expires_s;
    let entered = match env.flows().insert(partner_key, partner) {
        Ok(()) => match env.flows().insert(&hdr.key, flow) {
            // Unless another CPU removed the flow meanwhile, and found the reply already here.
            Ok(()) if established(env, partner_key, flow.pair) => Ok(()),
            Ok(()) => {
                env.flows().remove(&hdr.key);
                Err(InsertError::Exists)
            }
            Err(error) => {
                env.flows().remove(partner_key);
                Err(error)
            }
        },
        Err(error) => Err(error),
    };
    match entered {
        Ok(()) => {
            env.pending().remove(partner_key);
            env.pending().remove(&hdr.key);
            env.tally(Tally::EstablishedInserted, 2);
            env.tally(Tally::PendingRemoved, 2);
            quota::promoted(env, flow, arrival.now_s);
        }
        Err(error) => {
            flow.state = pending_state;
            flow.expires_s = pending_expires_s;
            refused(env, error, Tally::EstablishedFull);
        }
    }
}

/// Counts why a table refused an entry; `full` is the first of the table's four tallies.
#[inline(always)]
pub(super) fn refused<E: Env>(env: &E, error: InsertError, full: Tally) {
    let established = matches!(full, Tally::EstablishedFull);
    let why = match (error, established) {
        (InsertError::Exists, _) => return,
        (InsertError::Full, _) => full,
        (InsertError::NoMemory, true) => Tally::EstablishedNoMemory,
        (InsertError::NoMemory, false) => Tally::PendingNoMemory,
        (InsertError::Busy, true) => Tally::EstablishedBusy,
        (InsertError::Busy, false) => Tally::PendingBusy,
        (InsertError::Other, true) => Tally::EstablishedOther,
        (InsertError::Other, false) => Tally::PendingOther,
    };
    env.tally(why, 1);
}

/// Whether the entry of the established table under `key` belongs to `pair`.
#[inline(always)]
fn established<E: Env>(env: &E, key: &FlowKey, pair: u32) -> bool {
    env.flows().update(key, |half| half.pair == pair) == Some(true)
}

/// Removes both halves of a flow, given one of them.
#[inline(never)]
pub fn remove_pair<E: Env>(env: &E, key: &FlowKey, flow: &Flow) {
    remove_both(env, key, &flow.partner_key(key), flow.pair);
}

/// Removes the entries of `pair` under `key` and `partner_key`.
#[inline(always)]
pub fn remove_both<E: Env>(env: &E, key: &FlowKey, partner_key: &FlowKey, pair: u32) {
    remove(env, partner_key, pair);
    if let Some(slot) = remove(env, key, pair) {
        quota::ended(env, slot);
        // Where another CPU was promoting the flow, the partner has come here after it went there.
        remove(env, partner_key, pair);
    }
}

/// Whether the entry under `key` belongs to `pair` and its time is not up.
#[inline(always)]
pub fn is_alive<E: Env>(env: &E, key: &FlowKey, pair: u32, now_s: u32) -> bool {
    partner_lives(env, key, pair, now_s) == Some(true)
}

/// Whether the time of the partner under `key` is not up; none where there is no entry of `pair`.
#[inline(always)]
pub fn partner_lives<E: Env>(env: &E, key: &FlowKey, pair: u32, now_s: u32) -> Option<bool> {
    let look = |half: &mut Flow| (half.pair, half.expires_s > now_s);
    let found = match env.flows().update(key, look) {
        None => match env.pending().update(key, look) {
            // A flow that is promoted between the two looks is in neither of them.
            None => env.flows().update(key, look),
            found => found,
        },
        found => found,
    };
    match found {
        Some((found, lives)) if found == pair => Some(lives),
        _ => None,
    }
}

/// How an entry holds the tuple that another flow would like to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Its time is up.
    Dead,
    /// It may be that its partner is only just being entered.
    Fresh,
    /// It has been there for a while, so that without a partner it is a lone half.
    Settled,
}

/// How `half`, entered under `key`, holds that.
#[inline(always)]
pub fn held<S: Settings>(settings: &S, key: &FlowKey, half: &Flow, now_s: u32) -> Held {
    let newest_s = now_s.wrapping_add(lifetime_s(settings, key.protocol, half.state));
    if half.expires_s <= now_s {
        Held::Dead
    } else if half.state & state::ESTABLISHED == 0 && half.expires_s + 2 > newest_s {
        Held::Fresh
    } else {
        Held::Settled
    }
}

/// Looks at the entry under `key`, wherever it is.
#[inline(always)]
pub fn peek<E: Env, R>(env: &E, key: &FlowKey, mut look: impl FnMut(&Flow) -> R) -> Option<R> {
    match env.flows().update(key, |flow| look(flow)) {
        Some(seen) => Some(seen),
        None => env.pending().update(key, |flow| look(flow)),
    }
}

/// Changes the entry under `key`, wherever it is.
#[inline(always)]
pub fn update<E: Env>(env: &E, key: &FlowKey, change: impl Fn(&mut Flow)) {
    if env.flows().update(key, &change).is_none() {
        env.pending().update(key, &change);
    }
}

/// Removes the entry of `pair` under `key`, wherever it is; returns the slot of the endpoint that an
/// established one counts against.
#[inline(always)]
fn remove<E: Env>(env: &E, key: &FlowKey, pair: u32) -> Option<u32> {
    let established = env.flows().update(key, |half| {
        (half.pair == pair).then_some(half.charge().slot)
    });
    if let Some(Some(slot)) = established {
        env.flows().remove(key);
        env.tally(Tally::EstablishedRemoved, 1);
        return Some(slot);
    }
    if env.pending().update(key, |half| half.pair == pair) == Some(true) {
        env.pending().remove(key);
        env.tally(Tally::PendingRemoved, 1);
    }
    None
}

/// Spreads the bits of a word: the finaliser of `MurmurHash3`.
#[inline(always)]
#[must_use]
pub const fn scramble(word: u32) -> u32 {
    let word = (word ^ (word >> 16)).wrapping_mul(0x85eb_ca6b);
    let word = (word ^ (word >> 13)).wrapping_mul(0xc2b2_ae35);
    word ^ (word >> 16)
}

/// A number that depends on all of a tuple and on the secret of this load.
#[inline(always)]
#[must_use]
pub fn hash(key: &FlowKey, seed: u32) -> u32 {
    let mut mixed = seed;
    for word in key.source.words() {
        mixed = scramble(mixed ^ word);
    }
    for word in key.destination.words() {
        mixed = scramble(mixed ^ word);
    }
    let ports = u32::from(key.source_port.get()) << 16 | u32::from(key.destination_port.get());
    scramble(scramble(mixed ^ ports) ^ u32::from(key.protocol))
}
