//! Documents coming and going.

use std::collections::BTreeSet;
use std::mem;

use datapath_kern::abi::flow::verdict;
use datapath_kern::abi::policy::{PortVerdict, matched};
use ipnet::IpNet;

use super::PolicyEngine;
use crate::policy::installed::{self, Ground, Installed, InstalledPeers, InstalledRule};
use crate::policy::matcher::{SubjectMatcher, Use};
use crate::policy::model::{Document, DocumentId, Peer, Peers, Rule, Subject};
use crate::policy::numbering::{Collision, Named};
use crate::policy::quarantine::{Place, QuarantineKey, Quarantined};
use crate::policy::rules::{Changed, RuleRef, SubjectKey};

impl PolicyEngine {
    /// For whom a document in force is; for nobody, one that is not.
    #[must_use]
    pub fn subjects_of(&self, id: &DocumentId) -> BTreeSet<SubjectKey> {
        let installed = self.documents.get(id);
        let changed = installed.map(|installed| self.changed_by(installed));
        changed
            .map(|changed| changed.subjects().clone())
            .unwrap_or_default()
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
        changed.merge(self.changed_by(&installed));
        let mut prefixes = self.count_prefixes(&installed.document, true);
        self.documents.insert(id, installed);
        if let Some(old) = old {
            changed.merge(self.changed_by(&old));
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
        changed.merge(self.changed_by(&old));
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
        let number = |rule: &Rule| numbering.of(&name(&id, &rule.path));
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
