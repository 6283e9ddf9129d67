//! From rules in order of precedence to the classes of peers.

use std::collections::HashMap;
use std::sync::Arc;

use super::class::{Class, Classes};
use super::installed::{InstalledPeers, InstalledRule};
use super::matcher::Matchers;
use super::rules::DirectionRules;
use super::universe::{NamedPorts, Universe};

/// Whose named ports the rules of a direction mean.
#[derive(Clone, Copy)]
pub(super) enum Receiver {
    /// Those of the subject, by its identity: ingress.
    Subject(u32),
    /// Those of the peer: egress.
    Peer,
}

/// What rules are compiled with.
pub(super) struct Compiler<'a> {
    /// The identities.
    pub(super) universe: &'a Universe,
    /// Whom rules name.
    pub(super) matchers: &'a Matchers,
    /// The classes there are.
    pub(super) classes: &'a mut Classes,
}

/// Positions of rules in their order of precedence, ascending.
type Ranks = Vec<usize>;

impl Compiler<'_> {
    /// Compiles one direction of one subject. `rules` are in order of precedence: of those that
    /// fit, the first decides.
    pub(super) fn direction(
        &mut self,
        rules: &[&InstalledRule],
        receiver: Receiver,
    ) -> DirectionRules {
        let (any, named) = self.peers(rules, receiver);
        let nobody = NamedPorts::new();
        let any_class = match receiver {
            Receiver::Subject(subject) => {
                let known = self.universe.get(subject);
                self.class(rules, &any, known.variant, &known.ports)
            }
            Receiver::Peer => self.class(rules, &any, 0, &nobody),
        };
        // Many identities are in the same rules: each list of them is looked at once.
        let mut made: HashMap<(Ranks, u32), Option<Arc<Class>>> = HashMap::new();
        let mut peers = Vec::new();
        for (identity, own) in named {
            let known = match receiver {
                Receiver::Subject(subject) => self.universe.get(subject),
                Receiver::Peer => self.universe.get(identity),
            };
            let key = (own, known.variant);
            let class = if let Some(class) = made.get(&key) {
                class.clone()
            } else {
                let ranks = merge(&any, &key.0);
                let class = self.class(rules, &ranks, known.variant, &known.ports);
                made.insert(key, class.clone());
                class
            };
            // What says no more than the class of everyone is found there.
            if let Some(class) = class
                && !any_class
                    .as_ref()
                    .is_some_and(|any| Arc::ptr_eq(any, &class))
            {
                peers.push((identity, class));
            }
        }
        DirectionRules {
            any: any_class,
            peers: peers.into_iter().collect(),
        }
    }

    /// The rules about everyone, and beside them those about each identity that rules name.
    fn peers(&self, rules: &[&InstalledRule], receiver: Receiver) -> (Ranks, HashMap<u32, Ranks>) {
        let mut any = Ranks::new();
        let mut named: HashMap<u32, Ranks> = HashMap::new();
        for (rank, rule) in rules.iter().enumerate() {
            match &rule.peers {
                InstalledPeers::Any => {
                    any.push(rank);
                    if matches!(receiver, Receiver::Peer) {
                        // To some of everyone it says more: to those that have the port.
                        for identity in rule.names().flat_map(|name| self.universe.with_port(name))
                        {
                            named.entry(identity).or_default();
                        }
                    }
                }
                InstalledPeers::Of(matchers) => {
                    for identity in matchers.iter().flat_map(|&id| self.matchers.members(id)) {
                        let ranks = named.entry(identity).or_default();
                        if ranks.last() != Some(&rank) {
                            ranks.push(rank);
                        }
                    }
                }
            }
        }
        (any, named)
    }

    /// The class of some of the rules.
    fn class(
        &mut self,
        rules: &[&InstalledRule],
        ranks: &[usize],
        variant: u32,
        ports: &NamedPorts,
    ) -> Option<Arc<Class>> {
        let chosen: Vec<&InstalledRule> = ranks
            .iter()
            .filter_map(|&rank| rules.get(rank).copied())
            .collect();
        // What a rule says is settled by its own meaning, and the ports that its names stand for.
        let meanings = chosen.iter().map(|rule| {
            let variant = if rule.is_named() { variant } else { 0 };
            u64::from(rule.meaning) << 32 | u64::from(variant)
        });
        self.classes.get(meanings.collect(), || {
            chosen.iter().flat_map(|rule| rule.claims(ports)).collect()
        })
    }
}

/// Merges two ascending lists.
fn merge(one: &[usize], other: &[usize]) -> Ranks {
    let mut merged: Ranks = one.iter().chain(other).copied().collect();
    merged.sort_unstable();
    merged
}
