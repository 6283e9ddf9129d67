//! Which rules a subject has, and in which order.

use std::collections::BTreeMap;

use datapath_kern::abi::endpoint::identity;
use datapath_kern::abi::flow::verdict;
use datapath_kern::abi::metric::Direction;
use datapath_kern::abi::policy::{PortVerdict, matched};

use super::PolicyEngine;
use crate::policy::compile::{Compiler, Receiver};
use crate::policy::installed::{self, Installed, InstalledPeers, InstalledRule, InstalledSpec};
use crate::policy::matcher::{MatcherId, Matchers, SubjectMatcher};
use crate::policy::model::{DocumentId, DocumentKind, RuleVerdict};
use crate::policy::rules::{DirectionRules, RuleSet, SubjectKey};
use crate::policy::settings::{HostToLocal, OwnNode, PolicyMode};
use crate::policy::universe;

/// Rules that settings stand for.
#[derive(Debug)]
pub(super) struct Fixed {
    /// To and from the node of the subject.
    host: InstalledRule,
    /// Everything, where a direction has rules that deny and needs none that allow.
    open: InstalledRule,
}

impl PolicyEngine {
    /// Compiles the rules of a subject.
    pub(super) fn compile(&mut self, subject: SubjectKey) -> RuleSet {
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
    /// `host` is a matcher of the node.
    pub(super) fn new(host: MatcherId, meanings: &mut u32) -> Self {
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
