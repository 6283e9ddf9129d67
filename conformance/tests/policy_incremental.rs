//! What a change to policy touches, and nothing else: after any sequence of changes, rule sets of
//! subjects that were not named are the same, and all are those of an engine that was told of the
//! same state from cold.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests, outside of what clippy takes for one; how far it is"
)]

use std::collections::BTreeMap;
use std::sync::Arc;

use datapath_conformance::policy::generate::{Scenario, Size, endpoint_labels};
use datapath_conformance::policy::naive::ActorKind;
use datapath_kern::abi::endpoint::identity;
use datapath_user::policy::{
    Changed, Document, DocumentId, Labels, Place, PolicyEngine, PolicySettings, QuarantineKey,
    RuleSet, Subject, SubjectKey,
};
use fastrand::Rng;
use ipnet::IpNet;

/// Everything that an engine was told of.
#[derive(Clone, Default)]
struct State {
    settings: PolicySettings,
    identities: BTreeMap<u32, Labels>,
    documents: BTreeMap<DocumentId, Document>,
    refused: BTreeMap<DocumentId, Subject>,
    /// Numbers of prefixes; those that no rule names any more keep theirs.
    prefixes: BTreeMap<IpNet, u32>,
}

#[test]
fn changes_touch_what_they_name_and_come_to_the_same_as_from_cold() {
    let mut kept = 0;
    let mut touched = 0;
    for seed in 0..150 {
        let mut random = Rng::with_seed(seed);
        let pool: Vec<Scenario> = (0..3)
            .map(|at| Scenario::new(seed * 3 + at, &Size::default()))
            .collect();
        let mut state = State {
            settings: pool[0].rulebook.settings,
            ..State::default()
        };
        let mut engine = PolicyEngine::new(state.settings);
        let mut before = all(&mut engine);
        for step in 0..25 {
            let scenario = &pool[random.usize(..pool.len())];
            let mut changed = change(&mut engine, &mut state, scenario, &mut random);
            changed.merge(follow_prefixes(&mut engine, &mut state));
            let after = all(&mut engine);
            let cold = all(&mut cold(&state));
            for (subject, rules) in &after {
                let was = &before[subject];
                if changed.contains(*subject) {
                    touched += 1;
                } else {
                    kept += 1;
                    assert!(
                        Arc::ptr_eq(rules, was),
                        "seed {seed}, step {step}: {subject:?}"
                    );
                }
                // Nothing is kept of an identity that was forgotten.
                let forgotten = matches!(subject, SubjectKey::Identity(number)
                    if *number >= identity::FIRST_ALLOCATED && !state.identities.contains_key(number));
                assert!(
                    forgotten || rules != was || Arc::ptr_eq(rules, was),
                    "seed {seed}, step {step}: {subject:?} has the same rules in another place"
                );
                assert_eq!(
                    rules, &cold[subject],
                    "seed {seed}, step {step}: {subject:?}"
                );
            }
            before = after;
        }
    }
    println!("{kept} rule sets were kept, {touched} may have changed");
    assert!(kept > 1_000 && touched > 1_000);
}

/// Rule sets of every subject that there may be.
fn all(engine: &mut PolicyEngine) -> BTreeMap<SubjectKey, Arc<RuleSet>> {
    let pods = (identity::FIRST_ALLOCATED..identity::FIRST_ALLOCATED + 8).map(SubjectKey::Identity);
    let reserved = [identity::UNMANAGED, identity::HEALTH].map(SubjectKey::Identity);
    std::iter::once(SubjectKey::Node)
        .chain(reserved)
        .chain(pods)
        .map(|subject| (subject, engine.rules_for(&subject)))
        .collect()
}

fn change(
    engine: &mut PolicyEngine,
    state: &mut State,
    scenario: &Scenario,
    random: &mut Rng,
) -> Changed {
    let known: Vec<DocumentId> = state.documents.keys().cloned().collect();
    match random.u8(0..12) {
        0..5 => {
            let Some(document) = random.choice(&scenario.rulebook.documents) else {
                return Changed::none();
            };
            state.refused.remove(&document.id);
            state
                .documents
                .insert(document.id.clone(), document.clone());
            engine.upsert(document.clone())
        }
        5 | 6 => {
            let Some(id) = random.choice(&known) else {
                return Changed::none();
            };
            state.documents.remove(id);
            state.refused.remove(id);
            engine.remove(id)
        }
        7..10 => {
            let at = random.usize(..scenario.actors.len());
            let actor = &scenario.actors[at];
            let number = match actor.kind {
                ActorKind::Host => identity::HOST,
                ActorKind::RemoteNode => identity::REMOTE_NODE,
                ActorKind::Pod => identity::FIRST_ALLOCATED + u32::try_from(at).unwrap() - 2,
                ActorKind::Outside(_) => return Changed::none(),
            };
            let labels = endpoint_labels(actor);
            state.identities.insert(number, labels.clone());
            engine.set_identity(number, labels)
        }
        10 => {
            let number = identity::FIRST_ALLOCATED + random.u32(..6);
            state.identities.remove(&number);
            engine.remove_identity(number)
        }
        _ => match scenario.rulebook.refused.first() {
            Some((id, subject)) if random.bool() => {
                state.refused.insert(id.clone(), subject.clone());
                engine.quarantine(id.clone(), Place::default(), subject)
            }
            Some((id, _)) => {
                state.refused.remove(id);
                engine.lift(&QuarantineKey::Document(id.clone()))
            }
            None => Changed::none(),
        },
    }
}

/// Gives prefixes identities as they come, and takes them back as they go.
fn follow_prefixes(engine: &mut PolicyEngine, state: &mut State) -> Changed {
    let mut changed = Changed::none();
    let named = engine.prefixes();
    for prefix in &named {
        let next = identity::FIRST_LOCAL + u32::try_from(state.prefixes.len()).unwrap();
        let number = *state.prefixes.entry(*prefix).or_insert(next);
        changed.merge(engine.set_identity(number, Labels::cidr(*prefix)));
    }
    for (prefix, number) in &state.prefixes {
        if !named.contains(prefix) {
            changed.merge(engine.remove_identity(*number));
        }
    }
    changed
}

/// An engine that is told of a state all at once.
fn cold(state: &State) -> PolicyEngine {
    let mut engine = PolicyEngine::new(state.settings);
    for (id, subject) in &state.refused {
        let _ = engine.quarantine(id.clone(), Place::default(), subject);
    }
    for document in state.documents.values() {
        // A refused document of the name came later: it would be lifted by this.
        let key = QuarantineKey::Document(document.id.clone());
        let _ = engine.upsert(document.clone());
        if let Some(subject) = state.refused.get(&document.id) {
            let _ = engine.quarantine(key, Place::default(), subject);
        }
    }
    let named = engine.prefixes();
    for (prefix, number) in &state.prefixes {
        if named.contains(prefix) {
            let _ = engine.set_identity(*number, Labels::cidr(*prefix));
        }
    }
    for (number, labels) in &state.identities {
        let _ = engine.set_identity(*number, labels.clone());
    }
    engine
}
