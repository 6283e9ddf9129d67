//! The policy engine: documents and identities in, compiled rule sets out, and only those again
//! that a change may concern.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem;
use std::sync::Arc;

use datapath_kern::abi::endpoint::identity;
use datapath_kern::abi::flow::verdict;
use datapath_kern::abi::metric::Direction;
use datapath_kern::abi::policy::{PortVerdict, matched};
use ipnet::IpNet;

use super::cidr::NamedPrefixes;
use super::class::Classes;
use super::compile::{Compiler, Receiver};
use super::installed::{self, Ground, Installed, InstalledPeers, InstalledRule, InstalledSpec};
use super::labels::Labels;
use super::matcher::{Matcher, MatcherId, Matchers, SubjectMatcher, Use};
use super::model::{Document, DocumentId, DocumentKind, Entity, Peer, Peers, RuleVerdict, Subject};
use super::numbering::{Collision, Named, Numbering};
use super::quarantine::{Place, QuarantineKey, Quarantined};
use super::rules::{Changed, DirectionRules, RuleRef, RuleSet, SubjectKey};
use super::settings::{HostToLocal, OwnNode, PolicyMode, PolicySettings};
use super::universe::{self, Known, Universe};

/// Everything that policy depends on, and what it comes to for each subject.
///
/// Selectors, prefixes and entities are asked once of each identity. A change says whose rule sets
/// may differ; the others stay as they are, the same `Arc`s.
#[derive(Debug)]
pub struct PolicyEngine {
    settings: PolicySettings,
    pub(super) universe: Universe,
    matchers: Matchers,
    classes: Classes,
    numbering: Numbering,
    documents: BTreeMap<DocumentId, Installed>,
    quarantined: BTreeMap<QuarantineKey, Quarantined>,
    pub(super) prefixes: NamedPrefixes,
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

/// Rules that settings stand for.
#[derive(Debug)]
struct Fixed {
    /// To and from the node of the subject.
    host: InstalledRule,
    /// Everything, where a direction has rules that deny and needs none that allow.
    open: InstalledRule,
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
        let labels = universe::reserved(number)
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
        if universe::reserved(number).is_some() {
            return self.set_identity(number, Labels::default());
        }
        let Some(old) = self.universe.remove(number) else {
            return Changed::none();
        };
        let changed = self.identity_changed(number, Some(&old));
        self.compiled.remove(&SubjectKey::Identity(number));
        changed
    }

    /// Puts a document in force, in the place of one of the same name. The subjects of a refused
    /// one of that name are judged by this one from now on.
    pub fn upsert(&mut self, document: Document) -> Changed {
        let mut changed = self.lift(&QuarantineKey::Document(document.id.clone()));
        let id = document.id.clone();
        if self
            .documents
            .get(&id)
            .is_some_and(|old| old.document == document)
        {
            return changed;
        }
        let old = self.documents.remove(&id);
        let old_names = old.as_ref().map(|old| names(&old.document));
        let cleared = old_names.map_or(Ok(()), |names| self.numbering.remove(&names));
        let numbered = self.numbering.add(&names(&document));
        // The new one first, so that matchers which both use stay.
        let installed = self.install(document);
        changed.merge(self.subjects_of(&installed));
        let mut prefixes = self.count_prefixes(&installed.document, true);
        self.documents.insert(id, installed);
        if let Some(old) = old {
            changed.merge(self.subjects_of(&old));
            prefixes |= self.count_prefixes(&old.document, false);
            self.release(&old);
        }
        self.settle(changed.with_prefixes(prefixes), cleared.and(numbered))
    }

    /// Takes a document out of force. If one of that name was refused, its subjects are no longer
    /// closed.
    pub fn remove(&mut self, id: &DocumentId) -> Changed {
        let mut changed = self.lift(&QuarantineKey::Document(id.clone()));
        let Some(old) = self.documents.remove(id) else {
            return changed;
        };
        let cleared = self.numbering.remove(&names(&old.document));
        changed.merge(self.subjects_of(&old));
        let prefixes = self.count_prefixes(&old.document, false);
        self.release(&old);
        self.settle(changed.with_prefixes(prefixes), cleared)
    }

    /// Closes the subjects of a refused document in both directions, until a document of that name
    /// is put in force or removed, or [`PolicyEngine::lift`] is called. Only for a document without
    /// a last good one: that one would rather stay in force.
    pub fn quarantine(
        &mut self,
        key: impl Into<QuarantineKey>,
        place: Place,
        subject: &Subject,
    ) -> Changed {
        let key = key.into();
        let mut changed = self.lift(&key);
        let named = key.named(place);
        let numbered = self.numbering.add(std::slice::from_ref(&named));
        let meaning = installed::next(&mut self.meanings);
        let said = PortVerdict {
            rule_id: self.numbering.of(&named.name),
            verdict: verdict::DENY,
            matched: matched::ALL,
            reserved: [0; 2],
        };
        let quarantined = Quarantined {
            subject: installed::subject(subject, &mut self.matchers, &self.universe),
            subject_of: subject.clone(),
            rule: InstalledRule::of_setting(InstalledPeers::Any, meaning, said),
            named,
        };
        changed.merge(self.subjects(quarantined.subject));
        self.quarantined.insert(key, quarantined);
        self.settle(changed, numbered)
    }

    /// Opens the subjects of a refused document again, as far as other documents let them.
    pub fn lift(&mut self, key: &QuarantineKey) -> Changed {
        let Some(old) = self.quarantined.remove(key) else {
            return Changed::none();
        };
        let cleared = self.numbering.remove(std::slice::from_ref(&old.named));
        let changed = self.subjects(old.subject);
        let nodes = old.subject.nodes;
        self.matchers
            .release(old.subject.matcher, Use::Subject { nodes });
        self.settle(changed, cleared)
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
    pub(super) fn in_force(&self) -> impl Iterator<Item = (&DocumentId, &Installed)> {
        self.documents.iter()
    }

    /// Refused documents, in the order of precedence of their rules.
    pub(super) fn refused(&self) -> impl Iterator<Item = (&QuarantineKey, &Quarantined)> {
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

    /// Ends a change: numbers everything anew if hashes collide, and notes what is to be compiled.
    fn settle(&mut self, changed: Changed, numbered: Result<(), Collision>) -> Changed {
        let changed = if numbered.is_ok() {
            changed
        } else {
            self.renumber();
            Changed::all()
        };
        self.stale(&changed);
        changed
    }

    fn stale(&mut self, changed: &Changed) {
        for (subject, compiled) in &mut self.compiled {
            compiled.fresh &= !changed.contains(*subject);
        }
    }

    fn renumber(&mut self) {
        let quarantined = self.quarantined.values().map(|q| q.named.clone());
        let documents = self.documents.values();
        let all: Vec<Named> = quarantined
            .chain(documents.flat_map(|installed| names(&installed.document)))
            .collect();
        self.numbering.renumber(all.iter());
        for (_, installed) in mem::take(&mut self.documents) {
            let again = self.install(installed.document.clone());
            self.release(&installed);
            self.documents.insert(again.document.id.clone(), again);
        }
        for quarantined in self.quarantined.values_mut() {
            let said = PortVerdict {
                rule_id: self.numbering.of(&quarantined.named.name),
                verdict: verdict::DENY,
                matched: matched::ALL,
                reserved: [0; 2],
            };
            let meaning = installed::next(&mut self.meanings);
            quarantined.rule = InstalledRule::of_setting(InstalledPeers::Any, meaning, said);
        }
    }

    fn install(&mut self, document: Document) -> Installed {
        let id = document.id.clone();
        let mut ground = Ground {
            matchers: &mut self.matchers,
            universe: &self.universe,
            meanings: &mut self.meanings,
        };
        let numbering = &self.numbering;
        let number = |rule: &super::model::Rule| numbering.of(&name(&id, &rule.path));
        let installed = Installed::new(document, &mut ground, number);
        for (name, subject) in port_names(&installed) {
            let subjects = self.named_ports.entry(name.to_owned()).or_default();
            *subjects.entry(subject).or_default() += 1;
        }
        installed
    }

    fn release(&mut self, installed: &Installed) {
        for (name, subject) in port_names(installed) {
            let Some(subjects) = self.named_ports.get_mut(name) else {
                continue;
            };
            if let Some(count) = subjects.get_mut(&subject) {
                *count -= 1;
            }
            subjects.retain(|_, count| *count > 0);
            if subjects.is_empty() {
                self.named_ports.remove(name);
            }
        }
        installed.release(&mut self.matchers);
    }

    /// Counts the prefixes of a document in or out. Returns whether any came or went.
    fn count_prefixes(&mut self, document: &Document, more: bool) -> bool {
        let mut changed = false;
        for prefix in prefixes(document) {
            changed |= if more {
                self.prefixes.add(prefix)
            } else {
                self.prefixes.remove(prefix)
            };
        }
        changed
    }

    fn subjects_of(&self, installed: &Installed) -> Changed {
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

    fn compile(&mut self, subject: SubjectKey) -> RuleSet {
        if !self.judges(subject) {
            return RuleSet::default();
        }
        RuleSet {
            ingress: self.compile_direction(subject, Direction::Ingress),
            egress: self.compile_direction(subject, Direction::Egress),
        }
    }

    /// Whether documents can be for a subject at all.
    fn judges(&self, subject: SubjectKey) -> bool {
        match subject {
            SubjectKey::Node => true,
            SubjectKey::Identity(number) => {
                self.settings.mode != PolicyMode::Never
                    && universe::is_endpoint(&self.universe.get(number).labels)
            }
        }
    }

    fn compile_direction(
        &mut self,
        subject: SubjectKey,
        direction: Direction,
    ) -> Option<DirectionRules> {
        let is_pod = subject != SubjectKey::Node;
        let selects = |spec: SubjectMatcher| selects(&self.matchers, spec, subject);
        let mut isolated = is_pod && self.settings.mode == PolicyMode::Always;
        let mut by_kubernetes = false;
        let mut denying: Vec<&InstalledRule> = Vec::new();
        let mut allowing: Vec<&InstalledRule> = Vec::new();
        for quarantined in self.quarantined.values() {
            if selects(quarantined.subject) {
                isolated = true;
                denying.push(&quarantined.rule);
            }
        }
        for (id, spec) in specs(&self.documents) {
            if !selects(spec.subject) {
                continue;
            }
            let section = spec.section(direction);
            isolated |= section.isolates;
            by_kubernetes |= section.isolates && id.kind == DocumentKind::NetworkPolicy;
            for rule in &section.rules {
                match rule.verdict {
                    RuleVerdict::Deny => denying.push(rule),
                    RuleVerdict::Allow => allowing.push(rule),
                }
            }
        }
        if !isolated && denying.is_empty() {
            return None;
        }
        let mut rules = denying;
        rules.append(&mut allowing);
        let to_host = match direction {
            Direction::Ingress => self.settings.host_to_local == HostToLocal::Allow,
            Direction::Egress => self.settings.own_node == OwnNode::Allow && by_kubernetes,
        };
        if is_pod && isolated && to_host {
            rules.push(&self.fixed.host);
        }
        if !isolated {
            rules.push(&self.fixed.open);
        }
        let receiver = match (direction, subject) {
            (Direction::Egress, _) => Receiver::Peer,
            (Direction::Ingress, SubjectKey::Node) => Receiver::Subject(identity::HOST),
            (Direction::Ingress, SubjectKey::Identity(number)) => Receiver::Subject(number),
        };
        let mut compiler = Compiler {
            universe: &self.universe,
            matchers: &self.matchers,
            classes: &mut self.classes,
        };
        Some(compiler.direction(&rules, receiver))
    }
}

impl Fixed {
    fn new(host: MatcherId, meanings: &mut u32) -> Self {
        let mut allowed = |peers, matched| {
            let said = PortVerdict {
                rule_id: 0,
                verdict: verdict::ALLOW,
                matched,
                reserved: [0; 2],
            };
            InstalledRule::of_setting(peers, installed::next(meanings), said)
        };
        Self {
            host: allowed(InstalledPeers::Of(vec![host]), matched::L3_ONLY),
            open: allowed(InstalledPeers::Any, matched::NONE),
        }
    }
}

fn selects(matchers: &Matchers, spec: SubjectMatcher, subject: SubjectKey) -> bool {
    match subject {
        SubjectKey::Node => spec.nodes && matchers.fits(spec.matcher, identity::HOST),
        SubjectKey::Identity(number) => !spec.nodes && matchers.fits(spec.matcher, number),
    }
}

/// All specifications, in the order of precedence of their rules.
fn specs(
    documents: &BTreeMap<DocumentId, Installed>,
) -> impl Iterator<Item = (&DocumentId, &InstalledSpec)> {
    documents
        .iter()
        .flat_map(|(id, installed)| installed.specs.iter().map(move |spec| (id, spec)))
}

/// Ports of peers that rules of a document name, and for whom.
fn port_names(installed: &Installed) -> impl Iterator<Item = (&str, SubjectMatcher)> {
    installed.specs.iter().flat_map(|spec| {
        let rules = spec.egress.rules.iter();
        rules.flat_map(|rule| rule.names().map(|name| (name, spec.subject)))
    })
}

/// All prefixes in a document, exceptions too.
fn prefixes(document: &Document) -> impl Iterator<Item = IpNet> {
    let specs = document.specs.iter();
    let rules = specs.flat_map(|spec| spec.ingress.rules.iter().chain(&spec.egress.rules));
    let peers = rules.flat_map(|rule| match &rule.peers {
        Peers::Any => [].as_slice(),
        Peers::Of(peers) => peers,
    });
    peers.flat_map(|peer| match peer {
        Peer::Cidr { cidr, except } => {
            let all = std::iter::once(cidr).chain(except);
            all.copied().collect()
        }
        _ => Vec::new(),
    })
}

/// The rules of a document, in its order.
fn names(document: &Document) -> Vec<Named> {
    let rules = document
        .specs
        .iter()
        .flat_map(|spec| spec.ingress.rules.iter().chain(&spec.egress.rules));
    let named = rules.map(|rule| Named {
        name: name(&document.id, &rule.path),
        rule: RuleRef {
            id: 0,
            document: Some(document.id.clone()),
            path: rule.path.clone(),
            file: document.file.clone(),
            line: rule.line,
            verdict: rule.verdict,
        },
    });
    named.collect()
}

/// What a rule's number is made of.
fn name(document: &DocumentId, path: &str) -> String {
    format!("{document}#{path}")
}
