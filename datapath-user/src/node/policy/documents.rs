//! Documents in force, and what becomes of those that were refused.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::time::Instant;

use ipnet::IpNet;

use super::{Policy, prefixes};
use crate::config::Config;
use crate::error::Error;
use crate::node::Node;
use crate::policy::{
    Changed, Document, DocumentId, Labels, Place, PolicyReport, PolicyView, QuarantineKey, Refusal,
    Subject, SubjectKey,
};

/// What was said of documents, beside those in force.
#[derive(Debug, Default)]
pub(super) struct Documents {
    refused: Vec<Refusal>,
    /// Those of them whose subjects are closed.
    closed: BTreeSet<QuarantineKey>,
}

impl Documents {
    /// Documents that were refused the last time.
    pub(super) fn refused(&self) -> &[Refusal] {
        &self.refused
    }
}

/// What is to be done to the engine.
#[derive(Default)]
struct Plan {
    upserts: Vec<Document>,
    removes: Vec<DocumentId>,
    closes: Vec<(QuarantineKey, Place, Subject)>,
    lifts: Vec<QuarantineKey>,
    refused: Vec<Refusal>,
}

/// How to take it back.
#[derive(Default)]
struct Undo {
    documents: Vec<(DocumentId, Option<Document>)>,
    closed: Vec<QuarantineKey>,
}

impl Policy {
    /// What makes these documents, and these refused ones, all that there are.
    fn plan(&self, documents: Vec<Document>, refused: Vec<Refusal>) -> Plan {
        let known: BTreeMap<&DocumentId, &Document> = self
            .engine
            .documents()
            .map(|document| (&document.id, document))
            .collect();
        let given: BTreeSet<DocumentId> = documents.iter().map(|doc| doc.id.clone()).collect();
        // The last good one of a refused document stays: that of its name, else those of its file.
        let kept: BTreeSet<DocumentId> = refused
            .iter()
            .flat_map(|refusal| {
                let last_good = |document: &&&Document| match (&refusal.id, &refusal.file) {
                    (Some(id), _) => document.id == *id,
                    (None, Some(file)) => document.file.as_ref() == Some(file),
                    (None, None) => false,
                };
                let kept = known.values().filter(last_good);
                kept.map(|document| document.id.clone()).collect::<Vec<_>>()
            })
            .collect();
        let is_kept = |refusal: &Refusal| match (&refusal.id, &refusal.file) {
            (Some(id), _) => known.contains_key(id),
            (None, Some(file)) => {
                let mut of_file = kept.iter().filter_map(|id| known.get(id));
                of_file.any(|document| document.file.as_ref() == Some(file))
            }
            (None, None) => false,
        };
        let closes: Vec<_> = refused
            .iter()
            .filter(|refusal| !is_kept(refusal))
            .filter_map(|refusal| {
                let place = Place {
                    file: refusal.file.clone(),
                    line: refusal.line,
                };
                Some((key(refusal), place, refusal.concerns()?))
            })
            .collect();
        let now: BTreeSet<&QuarantineKey> = closes.iter().map(|(key, _, _)| key).collect();
        let lifts = self
            .documents
            .closed
            .iter()
            .filter(|key| !now.contains(key));
        let lifts = lifts.cloned().collect();
        let stays = |id: &&&DocumentId| !given.contains(**id) && !kept.contains(**id);
        let removes = known.keys().filter(stays).map(|id| (*id).clone()).collect();
        let differs = |document: &Document| known.get(&document.id) != Some(&document);
        Plan {
            upserts: documents.into_iter().filter(differs).collect(),
            removes,
            closes,
            lifts,
            refused,
        }
    }

    /// Does it, as far as the engine goes; returns whose rules may differ.
    fn carry_out(&mut self, plan: Plan) -> (Changed, Undo) {
        let mut undo = Undo::default();
        let mut changed = Changed::none();
        let known: BTreeMap<DocumentId, Document> = {
            let touched: BTreeSet<&DocumentId> = plan
                .upserts
                .iter()
                .map(|document| &document.id)
                .chain(&plan.removes)
                .collect();
            let before = self
                .engine
                .documents()
                .filter(|doc| touched.contains(&doc.id));
            before.map(|doc| (doc.id.clone(), doc.clone())).collect()
        };
        for document in plan.upserts {
            let id = document.id.clone();
            self.documents
                .closed
                .remove(&QuarantineKey::Document(id.clone()));
            changed.merge(self.engine.upsert(document));
            undo.documents.push((id.clone(), known.get(&id).cloned()));
        }
        for id in plan.removes {
            changed.merge(self.engine.remove(&id));
            undo.documents.push((id.clone(), known.get(&id).cloned()));
        }
        // One that is closed is closed before another one is opened.
        for (key, place, subject) in plan.closes {
            changed.merge(self.engine.quarantine(key.clone(), place, &subject));
            if self.documents.closed.insert(key.clone()) {
                undo.closed.push(key);
            }
        }
        for key in plan.lifts {
            changed.merge(self.engine.lift(&key));
            self.documents.closed.remove(&key);
        }
        (changed, undo)
    }

    /// Takes it back. What was closed and is mended stays open: it was judged by good documents.
    fn take_back(&mut self, undo: Undo) {
        for (id, before) in undo.documents.into_iter().rev() {
            // Rules are not fetched: they are as they were.
            let _same = match before {
                Some(document) => self.engine.upsert(document),
                None => self.engine.remove(&id),
            };
        }
        for key in undo.closed {
            let _same = self.engine.lift(&key);
            self.documents.closed.remove(&key);
        }
    }
}

impl Node {
    /// The documents in force, and the refused ones.
    pub(crate) fn policy_views(&self) -> Vec<PolicyView> {
        let mut pods: BTreeMap<u32, usize> = BTreeMap::new();
        for local in self.endpoints.values() {
            *pods.entry(local.view.identity).or_default() += 1;
        }
        let policy = &self.policy;
        let in_force = policy.engine.documents().map(|document| {
            let subjects = policy.engine.subjects_of(&document.id);
            let endpoints = subjects.iter().filter_map(|subject| match subject {
                SubjectKey::Identity(number) => pods.get(number),
                SubjectKey::Node => None,
            });
            let node = subjects.contains(&SubjectKey::Node);
            PolicyView::of(document, endpoints.sum(), node)
        });
        let refused = policy.documents.refused.iter().map(|refusal| {
            let closed = policy.documents.closed.contains(&key(refusal));
            PolicyView::refused(refusal, closed)
        });
        in_force.chain(refused).collect()
    }

    /// The endpoints that a document in force is for.
    pub(crate) fn policy_endpoints(&self, id: &DocumentId) -> Vec<String> {
        let subjects = self.policy.engine.subjects_of(id);
        let views = self.endpoints.values().map(|local| &local.view);
        let its = views.filter(|view| subjects.contains(&SubjectKey::Identity(view.identity)));
        its.map(|view| view.id.clone()).collect()
    }

    /// Puts these documents in force, and no others.
    ///
    /// # Errors
    ///
    /// [`Error::PolicyFull`]; then those are in force that were. [`Error::Map`].
    pub(crate) fn set_policies(
        &mut self,
        config: &Config,
        documents: Vec<Document>,
        refused: Vec<Refusal>,
    ) -> Result<PolicyReport, Error> {
        let plan = self.policy.plan(documents, refused);
        self.change_policies(config, plan)
    }

    /// Puts these documents in force, in the place of those of the same names.
    ///
    /// # Errors
    ///
    /// [`Error::PoliciesUnknown`], and as [`Node::set_policies`].
    pub(crate) fn upsert_policies(
        &mut self,
        config: &Config,
        documents: Vec<Document>,
    ) -> Result<PolicyReport, Error> {
        self.known_policies()?;
        let mut refused = self.policy.documents.refused.clone();
        let mended = |refusal: &Refusal| {
            documents
                .iter()
                .any(|doc| refusal.id == Some(doc.id.clone()))
        };
        refused.retain(|refusal| !mended(refusal));
        let plan = Plan {
            upserts: documents,
            refused,
            ..Plan::default()
        };
        self.change_policies(config, plan)
    }

    /// Takes these documents out of force. Those that there are not are passed over.
    ///
    /// # Errors
    ///
    /// As [`Node::upsert_policies`].
    pub(crate) fn remove_policies(
        &mut self,
        config: &Config,
        ids: &[DocumentId],
    ) -> Result<PolicyReport, Error> {
        self.known_policies()?;
        let mut refused = self.policy.documents.refused.clone();
        refused.retain(|refusal| refusal.id.as_ref().is_none_or(|id| !ids.contains(id)));
        for id in ids {
            let key = QuarantineKey::Document(id.clone());
            self.policy.documents.closed.remove(&key);
        }
        let plan = Plan {
            removes: ids.to_vec(),
            refused,
            ..Plan::default()
        };
        self.change_policies(config, plan)
    }

    fn known_policies(&self) -> Result<(), Error> {
        if self.policy.is_known() {
            return Ok(());
        }
        Err(Error::PoliciesUnknown)
    }

    fn change_policies(&mut self, config: &Config, mut plan: Plan) -> Result<PolicyReport, Error> {
        let began = Instant::now();
        let refused = mem::take(&mut plan.refused);
        let mut report = PolicyReport {
            changed: plan.upserts.len(),
            removed: plan.removes.len(),
            refused: refused.len(),
            ..PolicyReport::default()
        };
        let added = self.enter_prefixes(config, &plan)?;
        let (changed, undo) = self.policy.carry_out(plan);
        let leftover = self.policy.leftover.take();
        let judged = match &leftover {
            None => self.judge(config, &changed, &BTreeSet::new()),
            // Everyone has rules that are not ours.
            Some(_) => self.judge(config, &Changed::all(), &BTreeSet::new()),
        };
        if let Err(error) = judged {
            self.policy.leftover = leftover;
            self.policy.take_back(undo);
            // Again what they were: their entries are there.
            self.judge(config, &changed, &BTreeSet::new())?;
            self.forget_prefixes_unnamed(config)?;
            return Err(error);
        }
        if let Some(leftover) = leftover {
            self.policy.writer.disown(leftover);
        }
        self.policy.documents.refused = refused;
        let removed = self.forget_prefixes_unnamed(config)?;
        if added || removed {
            self.renew_world()?;
        }
        let took = began.elapsed();
        self.policy.latency.note(took);
        report.documents = self.policy.engine.documents().count();
        report.closed = self.policy.documents.closed.len();
        report.took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        Ok(report)
    }

    /// Gives the prefixes identities that are to be named: known to the rules that there are, under
    /// which they are what is around them, and then to the ipcache.
    fn enter_prefixes(&mut self, config: &Config, plan: &Plan) -> Result<bool, Error> {
        let mut wanted = self.policy.engine.prefixes();
        wanted.extend(prefixes::named(plan.upserts.iter()));
        let around = |policy: &Policy, prefix: IpNet| policy.prefixes.identity(prefix);
        let before: BTreeMap<IpNet, u32> = wanted
            .iter()
            .map(|&prefix| (prefix, around(&self.policy, prefix)))
            .collect();
        let added = self.policy.prefixes.add(&wanted);
        // Also those that were found in the ipcache.
        let mut changed = Changed::none();
        let all: Vec<_> = self.policy.prefixes.iter().collect();
        for (prefix, number) in all {
            let labels = Labels::cidr(prefix);
            changed.merge(self.policy.engine.set_identity(number, labels));
        }
        let inside = added.iter().filter_map(|(prefix, number)| {
            let around = before.get(prefix)?;
            Some((*number, *around))
        });
        let inside: BTreeMap<u32, u32> = inside.collect();
        let fresh: BTreeSet<u32> = inside.keys().copied().collect();
        let entered = self
            .extend_leftover(&inside)
            .and_then(|()| self.judge(config, &changed, &fresh))
            .and_then(|()| self.settle_outside(config));
        if let Err(error) = entered {
            self.forget_prefixes_unnamed(config)?;
            return Err(error);
        }
        Ok(!added.is_empty())
    }

    /// Takes the identities from the prefixes that no document names: out of the ipcache first.
    fn forget_prefixes_unnamed(&mut self, config: &Config) -> Result<bool, Error> {
        let wanted = self.policy.engine.prefixes();
        if !self.policy.is_known() {
            return Ok(false);
        }
        let gone = self.policy.prefixes.keep(&wanted);
        if gone.is_empty() {
            return Ok(false);
        }
        self.settle_outside(config)?;
        let mut changed = Changed::none();
        for (_, number) in &gone {
            changed.merge(self.policy.engine.remove_identity(*number));
        }
        let numbers = gone.into_iter().map(|(_, number)| number).collect();
        self.judge(config, &changed, &numbers)?;
        Ok(true)
    }
}

/// What a refused document is known by.
fn key(refusal: &Refusal) -> QuarantineKey {
    if let Some(id) = &refusal.id {
        return QuarantineKey::Document(id.clone());
    }
    let file = refusal.file.as_ref().map(|file| file.display().to_string());
    QuarantineKey::Unnamed(format!("{}:{}", file.unwrap_or_default(), refusal.line))
}
