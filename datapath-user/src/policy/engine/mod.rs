//! The policy engine: documents and identities in, compiled rule sets out, and only those again
//! that a change may concern.

mod documents;
mod subjects;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use datapath_kern::abi::endpoint::identity;
use ipnet::IpNet;

use self::subjects::Fixed;
use super::cidr::NamedPrefixes;
use super::class::Classes;
use super::installed::Installed;
use super::labels::Labels;
use super::matcher::{Matcher, Matchers, SubjectMatcher, Use};
use super::model::{Document, DocumentId, Entity};
use super::numbering::Numbering;
use super::quarantine::{QuarantineKey, Quarantined};
use super::reserved;
use super::rules::{Changed, RuleRef, RuleSet, SubjectKey};
use super::settings::PolicySettings;
use super::universe::{self, Known, Universe};

/// Everything that policy depends on, and what it comes to for each subject.
///
/// Selectors, prefixes and entities are asked once of each identity. A change says whose rule sets
/// may differ; the others stay as they are, the same `Arc`s.
#[derive(Debug)]
pub struct PolicyEngine {
    settings: PolicySettings,
    pub(in crate::policy) universe: Universe,
    matchers: Matchers,
    classes: Classes,
    numbering: Numbering,
    documents: BTreeMap<DocumentId, Installed>,
    quarantined: BTreeMap<QuarantineKey, Quarantined>,
    pub(in crate::policy) prefixes: NamedPrefixes,
    /// In how many rules of which subjects a port of a name is asked of the peer.
    named_ports: HashMap<String, BTreeMap<SubjectMatcher, usize>>,
    /// The meaning of the next rule.
    meanings: u32,
    fixed: Fixed,
    compiled: HashMap<SubjectKey, Compiled>,
}

/// How much there is, for people and for benches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyStats {
    /// Documents in force.
    pub documents: usize,
    /// Rules of them.
    pub rules: usize,
    /// Refused documents whose subjects are closed.
    pub quarantined: usize,
    /// Known identities, reserved ones included.
    pub identities: usize,
    /// Different selectors, prefixes and entities.
    pub matchers: usize,
    /// Rule sets that were asked for.
    pub rule_sets: usize,
    /// Entries of peers in them.
    pub peers: usize,
    /// Different classes in them.
    pub classes: usize,
    /// Entries in those.
    pub class_entries: usize,
}

/// A rule set that was asked for.
#[derive(Debug)]
struct Compiled {
    rules: Arc<RuleSet>,
    /// Whether nothing has changed since.
    fresh: bool,
}

impl PolicyEngine {
    /// An engine that knows the reserved identities and no document.
    #[must_use]
    pub fn new(settings: PolicySettings) -> Self {
        let universe = Universe::new();
        let mut matchers = Matchers::default();
        // Never given back: the settings ask for it.
        let host = matchers.acquire(
            &Matcher::Entity(Entity::Host),
            Use::Subject { nodes: true },
            &universe,
        );
        let mut meanings = 0;
        let fixed = Fixed::new(host, &mut meanings);
        Self {
            settings,
            universe,
            matchers,
            classes: Classes::default(),
            numbering: Numbering::default(),
            documents: BTreeMap::new(),
            quarantined: BTreeMap::new(),
            prefixes: NamedPrefixes::default(),
            named_ports: HashMap::new(),
            meanings,
            fixed,
            compiled: HashMap::new(),
        }
    }

    /// Learns the labels of an identity, or that they are others. Reserved identities are known
    /// from the start, and always keep the label of their name.
    pub fn set_identity(&mut self, number: u32, labels: Labels) -> Changed {
        let labels = reserved::labels(number)
            .iter()
            .flat_map(Labels::iter)
            .fold(labels, |labels, own| {
                labels.with(&own.source, &own.key, &own.value)
            });
        if self.universe.knows(number) && self.universe.get(number).labels == labels {
            return Changed::none();
        }
        let old = self.universe.set(number, labels);
        self.identity_changed(number, old.as_ref())
    }

    /// Forgets an identity: what a rule about nobody in particular lets through is all that it may
    /// do. A reserved one is as at the start again.
    pub fn remove_identity(&mut self, number: u32) -> Changed {
        if reserved::labels(number).is_some() {
            return self.set_identity(number, Labels::default());
        }
        let Some(old) = self.universe.remove(number) else {
            return Changed::none();
        };
        let changed = self.identity_changed(number, Some(&old));
        self.compiled.remove(&SubjectKey::Identity(number));
        changed
    }

    /// How policy is understood.
    #[must_use]
    pub fn settings(&self) -> PolicySettings {
        self.settings
    }

    /// The documents in force, by name.
    pub fn documents(&self) -> impl Iterator<Item = &Document> {
        self.documents.values().map(|installed| &installed.document)
    }

    /// The refused documents whose subjects are closed.
    pub fn quarantined(&self) -> impl Iterator<Item = &QuarantineKey> {
        self.quarantined.keys()
    }

    /// Labels of an identity; none of an unknown one.
    #[must_use]
    pub fn labels(&self, number: u32) -> Option<&Labels> {
        let known = self.universe.knows(number);
        known.then(|| &self.universe.get(number).labels)
    }

    /// Prefixes that rules name, exceptions too, and that need an identity therefore:
    /// [`Labels::cidr`]. Those of all addresses are the world's.
    #[must_use]
    pub fn prefixes(&self) -> BTreeSet<IpNet> {
        self.prefixes.needed()
    }

    /// Rules of a subject. The same `Arc` as before while they are the same.
    ///
    /// What is no endpoint, as the nodes and the world, needs no rules. An identity that nobody told
    /// of is in no document.
    pub fn rules_for(&mut self, subject: &SubjectKey) -> Arc<RuleSet> {
        let subject = *subject;
        if let Some(compiled) = self.compiled.get(&subject)
            && compiled.fresh
        {
            return Arc::clone(&compiled.rules);
        }
        let rules = self.compile(subject);
        let rules = match self.compiled.remove(&subject) {
            Some(old) if *old.rules == rules => old.rules,
            _ => Arc::new(rules),
        };
        let compiled = Compiled {
            rules: Arc::clone(&rules),
            fresh: true,
        };
        self.compiled.insert(subject, compiled);
        rules
    }

    /// The rule of a number; none of one that is no longer in force.
    #[must_use]
    pub fn rule(&self, id: u32) -> Option<&RuleRef> {
        self.numbering.rule(id)
    }

    /// How much there is.
    #[must_use]
    pub fn stats(&self) -> PolicyStats {
        let (classes, class_entries) = self.classes.count();
        let rule_sets = self.compiled.values().map(|compiled| &compiled.rules);
        let directions = rule_sets.flat_map(|rules| rules.ingress.iter().chain(&rules.egress));
        PolicyStats {
            documents: self.documents.len(),
            rules: self.numbering.len() - self.quarantined.len(),
            quarantined: self.quarantined.len(),
            identities: self.universe.len(),
            matchers: self.matchers.len(),
            rule_sets: self.compiled.len(),
            peers: directions.map(|rules| rules.peers.len()).sum(),
            classes,
            class_entries,
        }
    }

    /// Documents in force, in the order of precedence of their rules.
    pub(in crate::policy) fn in_force(&self) -> impl Iterator<Item = (&DocumentId, &Installed)> {
        self.documents.iter()
    }

    /// Refused documents, in the order of precedence of their rules.
    pub(in crate::policy) fn refused(
        &self,
    ) -> impl Iterator<Item = (&QuarantineKey, &Quarantined)> {
        self.quarantined.iter()
    }

    fn identity_changed(&mut self, number: u32, old: Option<&Known>) -> Changed {
        let new = self
            .universe
            .knows(number)
            .then(|| self.universe.get(number));
        let is_host = |known: Option<&Known>| known.is_some_and(|known| known.is(Entity::Host));
        let mut affected = self.matchers.refresh(number, old, new);
        let ports = |known: Option<&Known>| known.map(|known| known.ports.clone());
        if ports(old) != ports(new) {
            let ports = old
                .into_iter()
                .chain(new)
                .flat_map(|known| known.ports.keys());
            let named = ports.filter_map(|name| self.named_ports.get(name));
            affected.extend(named.flat_map(BTreeMap::keys));
        }
        let mut changed = Changed::none();
        if is_host(old) != is_host(new) {
            // The settings are about it, for everyone.
            changed = Changed::all().with_prefixes(false);
        }
        for subject in affected {
            changed.merge(self.subjects(subject));
        }
        changed.add(SubjectKey::Identity(number));
        if number == identity::HOST {
            changed.add(SubjectKey::Node);
        }
        self.stale(&changed);
        changed
    }

    /// Whose rules a document may change.
    fn changed_by(&self, installed: &Installed) -> Changed {
        let mut changed = Changed::none();
        for spec in &installed.specs {
            changed.merge(self.subjects(spec.subject));
        }
        changed
    }

    /// Whom a specification is for.
    fn subjects(&self, subject: SubjectMatcher) -> Changed {
        let mut changed = Changed::none();
        if subject.nodes {
            if self.matchers.fits(subject.matcher, identity::HOST) {
                changed.add(SubjectKey::Node);
            }
            return changed;
        }
        for number in self.matchers.members(subject.matcher) {
            if universe::is_endpoint(&self.universe.get(number).labels) {
                changed.add(SubjectKey::Identity(number));
            }
        }
        changed
    }

    fn stale(&mut self, changed: &Changed) {
        for (subject, compiled) in &mut self.compiled {
            compiled.fresh &= !changed.contains(*subject);
        }
    }
}
