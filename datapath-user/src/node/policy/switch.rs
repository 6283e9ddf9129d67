//! Endpoints, and the node, from the rules that they have to others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use datapath_kern::abi::endpoint::Endpoint;
use datapath_kern::abi::policy::word;

use super::store::Store;
use super::{Judged, NODE};
use crate::config::Config;
use crate::error::Error;
use crate::node::Node;
use crate::policy::{RuleSet, SubjectKey};

/// A rule set that is to be switched to.
struct Switch {
    slot: u16,
    rules: Arc<RuleSet>,
    set: u32,
    word: u32,
}

impl Node {
    /// Has those judged by what the rules are now whom it concerns; `numbers` are identities that
    /// nobody had before, or has any more.
    ///
    /// # Errors
    ///
    /// [`Error::PolicyFull`], [`Error::Map`].
    pub(super) fn judge_those(
        &mut self,
        config: &Config,
        concerned: impl Fn(SubjectKey) -> bool,
        numbers: &BTreeSet<u32>,
    ) -> Result<(), Error> {
        if !self.policy.is_known() {
            return Ok(());
        }
        self.reap_policy()?;
        let mut wanted = self.wanted(config, concerned);
        self.amend(&mut wanted, numbers)?;
        let switches = self.enter(wanted)?;
        for switch in switches {
            self.switch(switch)?;
        }
        self.show_policy();
        Ok(())
    }

    /// Who is to be judged otherwise than now.
    fn wanted(
        &mut self,
        config: &Config,
        concerned: impl Fn(SubjectKey) -> bool,
    ) -> Vec<(u16, Arc<RuleSet>, bool)> {
        let Self {
            policy, endpoints, ..
        } = self;
        let pods = endpoints.values().map(|local| {
            let subject = SubjectKey::Identity(local.view.identity);
            (local.view.slot, subject, local.view.policy.audit)
        });
        let node = (NODE, SubjectKey::Node, false);
        let mut wanted = Vec::new();
        for (slot, subject, audit) in pods.chain([node]) {
            if !concerned(subject) {
                continue;
            }
            let rules = if slot == NODE && !config.policy.host_firewall {
                Arc::default()
            } else {
                policy.engine.rules_for(&subject)
            };
            let audit = audit || policy.audit;
            let judged = policy.judged.get(&slot);
            let same = match judged {
                None => word_of(&rules, 0, audit) == 0,
                Some(judged) => {
                    judged
                        .rules
                        .as_ref()
                        .is_some_and(|known| alike(known, &rules))
                        && judged.word == word_of(&rules, judged.set, audit)
                }
            };
            if !same {
                wanted.push((slot, rules, audit));
            }
        }
        wanted
    }

    /// Changes sets in place where that is enough: where all who have one are to have the same one,
    /// which differs in identities only that nobody has.
    fn amend(
        &mut self,
        wanted: &mut Vec<(u16, Arc<RuleSet>, bool)>,
        numbers: &BTreeSet<u32>,
    ) -> Result<(), Error> {
        if numbers.is_empty() {
            return Ok(());
        }
        let policy = &mut self.policy;
        let mut by_set: BTreeMap<u32, Vec<(u16, Arc<RuleSet>)>> = BTreeMap::new();
        for (slot, rules, audit) in wanted.iter() {
            let judged = policy.judged.get(slot);
            let same_word = |judged: &&Judged| judged.word == word_of(rules, judged.set, *audit);
            if let Some(judged) = judged.filter(|judged| judged.set != 0).filter(same_word) {
                let users = by_set.entry(judged.set).or_default();
                users.push((*slot, Arc::clone(rules)));
            }
        }
        let mut done = BTreeSet::new();
        for (set, users) in by_set {
            let Some((_, rules)) = users.first() else {
                continue;
            };
            let all = users.len() == policy.writer.users(set);
            if !all || !users.iter().all(|(_, other)| alike(other, rules)) {
                continue;
            }
            let store = &mut Store::of(&mut self.maps);
            if policy.writer.amend(store, set, rules, numbers)? {
                for (slot, rules) in users {
                    if let Some(judged) = policy.judged.get_mut(&slot) {
                        judged.rules = Some(rules);
                    }
                    done.insert(slot);
                }
            }
        }
        wanted.retain(|(slot, _, _)| !done.contains(slot));
        Ok(())
    }

    /// Enters rule sets that nobody is led to yet: all of them, or none.
    fn enter(&mut self, wanted: Vec<(u16, Arc<RuleSet>, bool)>) -> Result<Vec<Switch>, Error> {
        let mut switches: Vec<Switch> = Vec::with_capacity(wanted.len());
        for (slot, rules, audit) in wanted {
            let entered = self
                .policy
                .writer
                .enter(&mut Store::of(&mut self.maps), &rules);
            match entered {
                Ok(set) => switches.push(Switch {
                    slot,
                    word: word_of(&rules, set, audit),
                    rules,
                    set,
                }),
                Err(error) => {
                    for switch in switches {
                        self.policy.writer.leave(switch.set);
                    }
                    return Err(error);
                }
            }
        }
        Ok(switches)
    }

    /// Has a slot judged by a rule set that is there: the word, then the generation.
    fn switch(&mut self, switch: Switch) -> Result<(), Error> {
        let Switch {
            slot,
            rules,
            set,
            word,
        } = switch;
        let entry = self.endpoint_entry(slot)?;
        let entry = Endpoint {
            policy: word,
            ..entry
        };
        let generation = self.next_generation()?;
        let newer = Endpoint {
            generation,
            ..entry
        };
        for entry in [entry, newer] {
            self.maps
                .endpoints
                .set(slot.into(), entry, 0)
                .map_err(Error::map("write to", "endpoints"))?;
        }
        let rules = Some(rules);
        let before = self.policy.judged.insert(slot, Judged { rules, set, word });
        if let Some(before) = before {
            self.policy.writer.leave(before.set);
        }
        Ok(())
    }

    pub(super) fn endpoint_entry(&self, slot: u16) -> Result<Endpoint, Error> {
        let read = Error::map("read", "endpoints");
        self.maps.endpoints.get(&slot.into(), 0).map_err(read)
    }

    /// Has the views say how endpoints are judged.
    pub(super) fn show_policy(&mut self) {
        let Self {
            policy, endpoints, ..
        } = self;
        for local in endpoints.values_mut() {
            let word = policy.word(local.view.slot);
            local.view.policy.ingress = word & word::INGRESS != 0;
            local.view.policy.egress = word & word::EGRESS != 0;
        }
    }
}

/// The word that leads to a rule set.
pub(super) fn word_of(rules: &RuleSet, set: u32, audit: bool) -> u32 {
    let needs = [
        (rules.ingress.is_some(), word::INGRESS),
        (rules.egress.is_some(), word::EGRESS),
    ];
    let needs = needs.into_iter().filter(|(needed, _)| *needed);
    let needs = needs.fold(0, |all, (_, bit)| all | bit);
    match needs {
        0 => 0,
        _ if audit => needs | word::AUDIT | set,
        _ => needs | set,
    }
}

/// Whether two rule sets say the same.
fn alike(one: &Arc<RuleSet>, other: &Arc<RuleSet>) -> bool {
    Arc::ptr_eq(one, other) || one == other
}
