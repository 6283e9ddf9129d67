//! Compiled policy and the naive reading of the same documents agree, on random ones.
//!
//! `DATAPATH_POLICY_SETS` is how many sets are tried, 1,000 if it is not set; `DATAPATH_POLICY_SEED`
//! is the first seed. In a release build 100,000, which are 20 million verdicts, take
//! 75 seconds of one processor:
//!
//! ```text
//! DATAPATH_POLICY_SETS=100000 cargo test --release -p datapath-conformance --test policy_naive
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests, outside of what clippy takes for one; how far it is"
)]

use std::collections::BTreeMap;
use std::env;

use datapath_conformance::policy::generate::{Scenario, Size, endpoint_labels};
use datapath_conformance::policy::naive::{Actor, ActorKind, Attempt, Ruling};
use datapath_kern::abi::endpoint::identity;
use datapath_kern::abi::flow::verdict;
use datapath_kern::abi::metric::Direction;
use datapath_user::policy::{
    ExplainEnd, ExplainQuery, Labels, Place, PolicyEngine, RuleSet, SubjectKey,
};
use fastrand::Rng;
use ipnet::IpNet;

/// Flows that are judged in each set.
const ATTEMPTS: usize = 200;

#[test]
fn compiled_policy_is_what_the_documents_say() {
    let sets = number("DATAPATH_POLICY_SETS", 1_000);
    let first = number("DATAPATH_POLICY_SEED", 0);
    let size = Size::default();
    let mut tally = Tally::default();
    for seed in first..first + sets {
        let scenario = Scenario::new(seed, &size);
        check(seed, &scenario, &mut tally);
    }
    println!("{sets} sets: {tally:?}");
    // What never occurs is not checked.
    let Tally {
        unjudged,
        allowed,
        denied,
        by_rule,
    } = tally;
    for count in [unjudged, allowed, denied, by_rule] {
        assert!(count > sets, "{tally:?}");
    }
}

/// How often what was decided.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    unjudged: u64,
    allowed: u64,
    denied: u64,
    by_rule: u64,
}

fn number(variable: &str, default: u64) -> u64 {
    match env::var(variable) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{variable}={text:?}: not a number")),
        Err(_) => default,
    }
}

fn check(seed: u64, scenario: &Scenario, tally: &mut Tally) {
    let mut random = Rng::with_seed(seed ^ 0x5eed);
    let (mut engine, prefixes) = engine(scenario, &mut random);
    let outside = |actor: &&Actor| matches!(actor.kind, ActorKind::Outside(_));
    let inside = scenario
        .actors
        .iter()
        .filter(|actor| !outside(actor))
        .count();
    for _ in 0..ATTEMPTS {
        let subject = &scenario.actors[random.usize(..inside)];
        let peer = &scenario.actors[random.usize(..scenario.actors.len())];
        let attempt = Scenario::attempt(&mut random);
        let direction = if random.bool() {
            Direction::Ingress
        } else {
            Direction::Egress
        };
        let Some(key) = subject_key(scenario, subject) else {
            continue;
        };
        let mut wanted = scenario.rulebook.judge(direction, subject, peer, attempt);
        let rules = engine.rules_for(&key);
        let peer_identity = identity_of(scenario, peer, &prefixes);
        let (found, judged) = compiled(
            &engine,
            &rules,
            direction,
            peer_identity,
            (attempt.protocol, attempt.port),
        );
        if !judged {
            // Where no rule is needed, none is looked for.
            wanted.rule = None;
        }
        assert_eq!(
            found, wanted,
            "seed {seed}: {direction:?} of {} with {} ({peer_identity}), {attempt:?}\n{scenario:#?}",
            subject.name, peer.name
        );
        if random.u8(..10) == 0 {
            explains(
                &engine,
                scenario,
                direction,
                (subject, peer),
                attempt,
                &wanted,
            );
        }
        tally.unjudged += u64::from(!judged);
        tally.allowed += u64::from(judged && found.allowed);
        tally.denied += u64::from(judged && !found.allowed);
        tally.by_rule += u64::from(found.rule.is_some());
    }
}

/// What is explained is what was decided.
fn explains(
    engine: &PolicyEngine,
    scenario: &Scenario,
    direction: Direction,
    (subject, peer): (&Actor, &Actor),
    attempt: Attempt,
    wanted: &Ruling,
) {
    let end = |actor: &Actor| match (actor.kind, own_identity(scenario, actor)) {
        (ActorKind::Outside(address), _) => ExplainEnd::Address(address),
        (_, Some(number)) if attempt.port.is_multiple_of(2) => ExplainEnd::Identity(number),
        _ => ExplainEnd::Labels(endpoint_labels(actor)),
    };
    let (from, to) = match direction {
        Direction::Egress => (subject, peer),
        Direction::Ingress => (peer, subject),
    };
    let explanation = engine.explain(&ExplainQuery {
        from: end(from),
        to: end(to),
        protocol: attempt.protocol,
        port: attempt.port,
    });
    let judgement = match direction {
        Direction::Egress => &explanation.egress,
        Direction::Ingress => &explanation.ingress,
    };
    assert_eq!(judgement.allowed, wanted.allowed, "{explanation}");
    if let Some(wanted) = &wanted.rule {
        let rule = judgement.rule.as_ref().unwrap();
        assert_eq!(
            (rule.document.as_ref(), &rule.path),
            (Some(&wanted.0), &wanted.1)
        );
    }
    assert_eq!(
        explanation.allowed,
        explanation.egress.allowed && explanation.ingress.allowed
    );
}

/// An engine that was told of everything in a random order, and of some things twice.
fn engine(scenario: &Scenario, random: &mut Rng) -> (PolicyEngine, BTreeMap<IpNet, u32>) {
    let mut engine = PolicyEngine::new(scenario.rulebook.settings);
    let mut documents = scenario.rulebook.documents.clone();
    random.shuffle(&mut documents);
    let mut actors: Vec<&Actor> = scenario.actors.iter().collect();
    random.shuffle(&mut actors);
    let half = actors.len() / 2;
    let tell = |engine: &mut PolicyEngine, actor: &Actor| {
        if let Some(number) = own_identity(scenario, actor) {
            let _ = engine.set_identity(number, endpoint_labels(actor));
        }
    };
    for actor in &actors[..half] {
        tell(&mut engine, actor);
    }
    for document in &documents {
        let _ = engine.upsert(document.clone());
    }
    for actor in &actors[half..] {
        tell(&mut engine, actor);
    }
    for (id, subject) in &scenario.rulebook.refused {
        let _ = engine.quarantine(id.clone(), Place::default(), subject);
    }
    let numbers = identity::FIRST_LOCAL..;
    let prefixes: BTreeMap<IpNet, u32> = engine.prefixes().into_iter().zip(numbers).collect();
    for (prefix, number) in &prefixes {
        let _ = engine.set_identity(*number, Labels::cidr(*prefix));
    }
    (engine, prefixes)
}

fn subject_key(scenario: &Scenario, actor: &Actor) -> Option<SubjectKey> {
    match actor.kind {
        ActorKind::Host => Some(SubjectKey::Node),
        _ => own_identity(scenario, actor).map(SubjectKey::Identity),
    }
}

/// The identity of what is no prefix's.
fn own_identity(scenario: &Scenario, actor: &Actor) -> Option<u32> {
    match actor.kind {
        ActorKind::Host => Some(identity::HOST),
        ActorKind::RemoteNode => Some(identity::REMOTE_NODE),
        ActorKind::Outside(_) => None,
        ActorKind::Pod => {
            let same = |other: &Actor| other.name == actor.name;
            let at = scenario.actors.iter().position(same).unwrap();
            Some(identity::FIRST_ALLOCATED + u32::try_from(at).unwrap())
        }
    }
}

/// The identity that ipcache has for an actor.
fn identity_of(scenario: &Scenario, actor: &Actor, prefixes: &BTreeMap<IpNet, u32>) -> u32 {
    let ActorKind::Outside(address) = actor.kind else {
        return own_identity(scenario, actor).unwrap();
    };
    let around = prefixes
        .iter()
        .filter(|(prefix, _)| prefix.contains(&address));
    let longest = around.max_by_key(|(prefix, _)| prefix.prefix_len());
    let world = if address.is_ipv4() {
        identity::WORLD_IPV4
    } else {
        identity::WORLD_IPV6
    };
    longest.map_or(world, |(_, number)| *number)
}

/// What the kernel would find, and whether it would look.
fn compiled(
    engine: &PolicyEngine,
    rules: &RuleSet,
    direction: Direction,
    peer: u32,
    (protocol, port): (u8, u16),
) -> (Ruling, bool) {
    let unjudged = Ruling {
        allowed: true,
        rule: None,
    };
    let Some(rules) = rules.direction(direction) else {
        return (unjudged, false);
    };
    let class = rules.class_of(peer);
    let found = class.and_then(|class| class.verdict(protocol, port));
    let Some(found) = found else {
        return (
            Ruling {
                allowed: false,
                ..unjudged
            },
            true,
        );
    };
    let rule = engine.rule(found.rule_id).map(|rule| {
        assert_eq!(rule.id, found.rule_id);
        (rule.document.clone().unwrap(), rule.path.clone())
    });
    assert_eq!(rule.is_none(), found.rule_id == 0);
    let allowed = found.verdict == verdict::ALLOW;
    (Ruling { allowed, rule }, true)
}
