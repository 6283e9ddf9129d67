//! What a rule set is in the map of peers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use datapath_kern::abi::metric::Direction;
use datapath_kern::abi::policy::PeerKey;

use crate::policy::{Class, RuleSet};

/// One entry of `policy_peers`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line<'a> {
    pub(super) direction: Direction,
    pub(super) identity: u32,
    pub(super) class: &'a Arc<Class>,
}

impl Line<'_> {
    pub(super) fn key(&self, set: u32) -> PeerKey {
        PeerKey::new(set, self.direction, self.identity)
    }
}

/// The entries of a rule set.
pub(super) fn lines(rules: &RuleSet) -> impl Iterator<Item = Line<'_>> {
    let directions = [
        (Direction::Ingress, &rules.ingress),
        (Direction::Egress, &rules.egress),
    ];
    directions.into_iter().flat_map(|(direction, of)| {
        let any = of.iter().filter_map(|of| of.any.as_ref());
        let any = any.map(|class| (PeerKey::ANY, class));
        let peers = of.iter().flat_map(|of| &of.peers);
        let peers = peers.map(|(&identity, class)| (identity, class));
        any.chain(peers).map(move |(identity, class)| Line {
            direction,
            identity,
            class,
        })
    })
}

/// Where a class is in memory, as a name.
pub(super) fn place(class: &Arc<Class>) -> usize {
    Arc::as_ptr(class).addr()
}

/// What makes one rule set of another.
pub(super) struct Difference<'a> {
    pub(super) added: Vec<Line<'a>>,
    pub(super) removed: Vec<Line<'a>>,
}

/// What is to be added and removed, where that is about these identities only.
pub(super) fn difference<'a>(
    before: &'a RuleSet,
    now: &'a RuleSet,
    numbers: &BTreeSet<u32>,
) -> Option<Difference<'a>> {
    let needs = |rules: &RuleSet| (rules.ingress.is_some(), rules.egress.is_some());
    if needs(before) != needs(now) {
        return None;
    }
    let table = |rules: &'a RuleSet| -> BTreeMap<_, _> {
        lines(rules)
            .map(|line| ((line.direction as u32, line.identity), line))
            .collect()
    };
    let (before, now) = (table(before), table(now));
    let mut difference = Difference {
        added: Vec::new(),
        removed: Vec::new(),
    };
    for (key, line) in &now {
        match before.get(key) {
            Some(old) if Arc::ptr_eq(old.class, line.class) => {}
            None if numbers.contains(&line.identity) => difference.added.push(*line),
            _ => return None,
        }
    }
    for (key, line) in &before {
        if !now.contains_key(key) {
            if !numbers.contains(&line.identity) {
                return None;
            }
            difference.removed.push(*line);
        }
    }
    Some(difference)
}
