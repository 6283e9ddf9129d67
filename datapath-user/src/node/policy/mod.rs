//! Policy into the kernel: rule sets of endpoints and of the node, switched as a whole.
//!
//! What is changed is done in this order, so that no packet is judged by half of it: identities and
//! their classes before anything leads to an identity; a rule set before the word that leads to it;
//! the word before the generation that has flows judged again.

mod documents;
mod ends;
pub(crate) mod identities;
pub(crate) mod prefixes;
mod store;
mod switch;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use datapath_kern::abi::endpoint::identity;
use datapath_kern::abi::policy::{PeerKey, word};

use self::documents::Documents;
use self::identities::{Identities, Swap};
use self::prefixes::PolicyPrefixes;
use self::store::Store;
use self::switch::word_of;
use self::writer::{Leftover, Writer};
use super::Node;
use crate::config::{Config, PodStart};
use crate::error::Error;
use crate::policy::{
    Changed, IdentityView, Labels, PolicyEngine, RuleRef, RuleSet, SubjectKey, source,
};
use crate::status::PolicyStatus;

/// The node's own slot.
const NODE: u16 = 0;

/// Policy of one node.
pub(crate) struct Policy {
    pub(crate) engine: PolicyEngine,
    pub(crate) identities: Identities,
    pub(crate) prefixes: PolicyPrefixes,
    documents: Documents,
    writer: Writer,
    /// Who is judged how, by slot.
    judged: BTreeMap<u16, Judged>,
    /// All endpoints are audited.
    pub(crate) audit: bool,
    /// An earlier process's rules, while it is not known which documents there are.
    leftover: Option<Leftover>,
    latency: Latency,
}

/// How one slot is judged.
#[derive(Clone, Debug, Default)]
struct Judged {
    /// None: as an earlier process left it.
    rules: Option<Arc<RuleSet>>,
    /// The rule set's number, or zero.
    set: u32,
    word: u32,
}

/// How long updates took.
#[derive(Clone, Copy, Debug, Default)]
struct Latency {
    updates: u64,
    last: Duration,
    max: Duration,
}

impl Policy {
    /// Nothing yet.
    ///
    /// # Errors
    ///
    /// What the file of identities is refused for.
    pub(super) fn of(config: &Config) -> Result<Self, Error> {
        Ok(Self {
            engine: PolicyEngine::new(config.policy.settings()),
            identities: Identities::of(&config.policy)?,
            prefixes: PolicyPrefixes::default(),
            documents: Documents::default(),
            writer: Writer::default(),
            judged: BTreeMap::new(),
            audit: config.policy.audit,
            leftover: None,
            latency: Latency::default(),
        })
    }

    /// Whether the documents are known, so that rules can be.
    pub(crate) const fn is_known(&self) -> bool {
        self.leftover.is_none()
    }

    /// The word that a slot is judged by.
    pub(super) fn word(&self, slot: u16) -> u32 {
        self.judged.get(&slot).map_or(0, |judged| judged.word)
    }

    /// The labels that an identity stands for.
    pub(crate) fn labels(&self, number: u32) -> Option<Labels> {
        let of_prefix = || {
            let mut all = self.prefixes.iter();
            let found = all.find(|(_, other)| *other == number);
            found.map(|(prefix, _)| Labels::cidr(prefix))
        };
        let known = self.identities.labels(number).cloned();
        known.or_else(of_prefix)
    }

    /// The rule of a number.
    pub(crate) fn rule(&self, number: u32) -> Option<&RuleRef> {
        self.engine.rule(number)
    }

    /// The identities that somebody has, by number.
    pub(crate) fn views_of_identities(&self) -> Vec<IdentityView> {
        let pods = self
            .identities
            .iter()
            .map(|(number, labels, users)| IdentityView {
                number,
                labels: labels.clone(),
                users,
                prefix: None,
            });
        let prefixes = self.prefixes.iter().map(|(prefix, number)| IdentityView {
            number,
            labels: Labels::cidr(prefix),
            users: 0,
            prefix: Some(prefix),
        });
        let mut all: Vec<_> = pods.chain(prefixes).collect();
        all.sort_unstable_by_key(|view| view.number);
        all
    }

    /// Entries in `policy_peers` and `policy_ports`.
    pub(crate) fn entries(&self) -> (usize, usize) {
        let used = self.writer.used();
        (used.peers, used.ports)
    }

    /// Policy at a glance.
    pub(crate) fn status(&self) -> PolicyStatus {
        let (rule_sets, classes) = self.writer.counts();
        let used = self.writer.used();
        let micros = |span: Duration| u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        PolicyStatus {
            known: self.is_known(),
            documents: self.engine.documents().count(),
            refused: self.documents.refused().len(),
            rule_sets,
            classes,
            peer_entries: used.peers as u64,
            port_entries: used.ports as u64,
            updates: self.latency.updates,
            last_update_us: micros(self.latency.last),
            max_update_us: micros(self.latency.max),
        }
    }
}

impl Node {
    /// Goes on with the rules that an earlier process left, if it left any.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub(super) fn adopt_policy(&mut self, config: &Config) -> Result<(), Error> {
        let known: Vec<_> = self
            .policy
            .identities
            .iter()
            .map(|(number, labels, _)| (number, labels.clone()))
            .collect();
        for (number, labels) in known {
            // Nobody is judged by it yet.
            let _all = self.policy.engine.set_identity(number, labels);
        }
        self.name_nodes(config)?;
        let slots = self.endpoints.values().map(|local| local.view.slot);
        for slot in std::iter::once(NODE).chain(slots).collect::<Vec<_>>() {
            let word = self.endpoint_entry(slot)?.policy;
            if word != 0 {
                let judged = Judged {
                    word,
                    ..Judged::default()
                };
                self.policy.judged.insert(slot, judged);
            }
        }
        let leftover = self.policy.writer.adopt(&mut Store::of(&mut self.maps))?;
        if !leftover.is_empty() || !self.policy.judged.is_empty() {
            self.policy.leftover = Some(leftover);
        }
        self.show_policy();
        Ok(())
    }

    /// Gives everyone the rules of this process, where the documents are known.
    ///
    /// # Errors
    ///
    /// [`Error::PolicyFull`], [`Error::Map`].
    pub(super) fn judge_all(&mut self, config: &Config) -> Result<(), Error> {
        self.judge(config, &Changed::all(), &BTreeSet::new())
    }

    /// Gives pods other identities, and has those known to all rules before anything leads to them.
    /// Those that nobody has any more are for [`Node::forget_identities`].
    ///
    /// # Errors
    ///
    /// [`Error::IdentityCollision`], [`Error::PolicyFull`], or what the allocator says; then they have
    /// what they had.
    pub(super) fn identify(
        &mut self,
        config: &Config,
        old: &[(u32, bool)],
        new: &[(Option<u32>, Labels)],
    ) -> Result<Swap, Error> {
        let swap = self.policy.identities.swap(old, new)?;
        let mut changed = Changed::none();
        for &number in swap.fresh.iter().chain(&swap.relabelled) {
            let labels = self.policy.identities.labels(number);
            let labels = labels.cloned().unwrap_or_default();
            changed.merge(self.policy.engine.set_identity(number, labels));
        }
        if let Err(error) = self.judge(config, &changed, &swap.fresh) {
            for given in &swap.given {
                self.policy
                    .identities
                    .give_back(given.number, given.allocated);
            }
            self.forget_identities(config, &swap.fresh)?;
            return Err(error);
        }
        Ok(swap)
    }

    /// Has the rules forget identities that nobody has any more.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub(super) fn forget_identities(
        &mut self,
        config: &Config,
        numbers: &BTreeSet<u32>,
    ) -> Result<(), Error> {
        let mut changed = Changed::none();
        for &number in numbers {
            changed.merge(self.policy.engine.remove_identity(number));
        }
        self.judge(config, &changed, numbers)
    }

    /// Tells what nodes are labelled: this one, and all others together.
    ///
    /// # Errors
    ///
    /// [`Error::PolicyFull`], [`Error::Map`].
    pub(super) fn name_nodes(&mut self, config: &Config) -> Result<(), Error> {
        let mut peers = self.peers.values().map(|remote| remote.spec.node_labels());
        // One identity stands for all of them: what they have in common.
        let first = peers.next().unwrap_or_default();
        let shared = peers.fold(first, |shared, labels| {
            let both = shared.iter().filter(|label| {
                labels.get(&label.source, &label.key) == Some(label.value.as_str())
            });
            both.collect()
        });
        let own = config.policy.node_labels.iter();
        let own = own.fold(Labels::default(), |all, (key, value)| {
            all.with(source::K8S, key, value)
        });
        let engine = &mut self.policy.engine;
        let mut changed = engine.set_identity(identity::HOST, own);
        changed.merge(engine.set_identity(identity::REMOTE_NODE, shared));
        self.judge(config, &changed, &BTreeSet::new())
    }

    /// A pod does not have its identity any more.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub(super) fn forget_identity(
        &mut self,
        config: &Config,
        number: u32,
        allocated: bool,
    ) -> Result<(), Error> {
        if self.policy.identities.give_back(number, allocated) {
            return self.forget_identities(config, &BTreeSet::from([number]));
        }
        Ok(())
    }

    /// The word that a new endpoint is judged by from its first packet on.
    ///
    /// # Errors
    ///
    /// [`Error::PolicyFull`], [`Error::Map`].
    pub(super) fn first_word(
        &mut self,
        config: &Config,
        slot: u16,
        identity: u32,
    ) -> Result<u32, Error> {
        if config.policy.start == PodStart::Standard {
            return Ok(0);
        }
        let judged = if self.policy.is_known() {
            let rules = self
                .policy
                .engine
                .rules_for(&SubjectKey::Identity(identity));
            let set = self
                .policy
                .writer
                .enter(&mut Store::of(&mut self.maps), &rules)?;
            let word = word_of(&rules, set, self.policy.audit);
            let rules = Some(rules);
            Judged { rules, set, word }
        } else {
            Judged {
                word: word::INGRESS | word::EGRESS,
                ..Judged::default()
            }
        };
        let word = judged.word;
        self.policy.judged.insert(slot, judged);
        self.show_policy();
        Ok(word)
    }

    /// Gives those their rules that are a subject, where they have none yet, or others.
    ///
    /// # Errors
    ///
    /// [`Error::PolicyFull`], [`Error::Map`].
    pub(super) fn judge_subject(
        &mut self,
        config: &Config,
        subject: SubjectKey,
    ) -> Result<(), Error> {
        self.judge_those(config, |other| other == subject, &BTreeSet::new())
    }

    /// A slot is judged no more.
    pub(super) fn acquit(&mut self, slot: u16) {
        if let Some(judged) = self.policy.judged.remove(&slot) {
            self.policy.writer.leave(judged.set);
        }
    }

    /// Gives those their rules whose may have changed. `numbers`: identities that nobody has yet or
    /// any more.
    ///
    /// While the documents are not known, nothing is done.
    ///
    /// # Errors
    ///
    /// [`Error::PolicyFull`]; then nobody's rules are changed. [`Error::Map`].
    pub(super) fn judge(
        &mut self,
        config: &Config,
        changed: &Changed,
        numbers: &BTreeSet<u32>,
    ) -> Result<(), Error> {
        self.judge_those(config, |subject| changed.contains(subject), numbers)
    }

    /// Removes rule sets that have been out of use for long enough.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub(crate) fn reap_policy(&mut self) -> Result<usize, Error> {
        let store = &mut Store::of(&mut self.maps);
        self.policy.writer.reap(store, Instant::now())
    }

    /// Has endpoints audited, or not any more: one, or all of the node.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::Map`].
    pub(crate) fn set_audit(
        &mut self,
        config: &Config,
        id: Option<&str>,
        on: bool,
    ) -> Result<(), Error> {
        match id {
            None => self.policy.audit = on,
            Some(id) => {
                let not_found = || Error::NotFound {
                    what: "endpoint",
                    name: id.to_owned(),
                };
                let local = self.endpoints.get_mut(id).ok_or_else(not_found)?;
                local.view.policy.audit = on;
                let view = local.view.clone();
                self.keep_details(&view)?;
            }
        }
        self.judge_those(config, |_| true, &BTreeSet::new())
    }

    /// Has an earlier process's rules say of new prefixes what they say of those around them.
    fn extend_leftover(&mut self, new: &BTreeMap<u32, u32>) -> Result<(), Error> {
        let Some(leftover) = &mut self.policy.leftover else {
            return Ok(());
        };
        let more: Vec<(PeerKey, u32)> = leftover
            .peers
            .iter()
            .flat_map(|&(key, class)| {
                let inside = new
                    .iter()
                    .filter(move |(_, around)| **around == key.identity);
                inside.map(move |(&identity, _)| (PeerKey { identity, ..key }, class))
            })
            .collect();
        Store::of(&mut self.maps).write_peers(&more)?;
        self.policy.writer.note_peers(more.len());
        leftover.peers.extend(more);
        Ok(())
    }
}

impl Latency {
    fn note(&mut self, took: Duration) {
        self.updates += 1;
        self.last = took;
        self.max = self.max.max(took);
    }
}
