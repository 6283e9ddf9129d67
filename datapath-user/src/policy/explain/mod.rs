//! Why a flow is let through or not: the rule that decides, or the one that is missing.
//!
//! Documents are read rule by rule for this, as a person would; the answer is that of the compiled
//! rule sets.

mod text;

use std::net::IpAddr;

use datapath_kern::abi::endpoint::identity;
use datapath_kern::abi::metric::Direction;
use serde::{Deserialize, Serialize};

use super::engine::PolicyEngine;
use super::installed::{InstalledPeers, InstalledRule};
use super::labels::Labels;
use super::matcher::Matcher;
use super::model::{DocumentId, DocumentKind, Entity, Peers, Rule, RuleVerdict, Subject};
use super::reserved;
use super::rules::RuleRef;
use super::settings::{HostToLocal, OwnNode, PolicyMode};
use super::universe::{self, Known};

/// A flow that is asked about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainQuery {
    /// Who would begin it.
    pub from: ExplainEnd,
    /// With whom.
    pub to: ExplainEnd,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port, or type of an ICMP message; zero where there is neither.
    #[serde(default)]
    pub port: u16,
}

/// One end of a flow that is asked about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExplainEnd {
    /// What has this identity.
    Identity(u32),
    /// What has these labels, those of its named ports included.
    Labels(Labels),
    /// An address outside the cluster.
    Address(IpAddr),
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Whether both directions let it through.
    pub allowed: bool,
    /// Labels of who would begin it.
    pub from: Labels,
    /// Labels of the other side.
    pub to: Labels,
    /// Name of the protocol, or its number.
    pub protocol: String,
    /// Destination port, or type of an ICMP message.
    pub port: u16,
    /// What is said of the one who begins it.
    pub egress: Judgement,
    /// What is said of the other side.
    pub ingress: Judgement,
}

/// What one direction comes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judgement {
    /// Whether it is let through.
    pub allowed: bool,
    /// Why.
    pub reason: Reason,
    /// The rule that decided.
    pub rule: Option<RuleRef>,
    /// The documents for which a rule is needed.
    pub isolated_by: Vec<DocumentId>,
    /// Rules that would allow it if one thing were otherwise; only where a rule is missing.
    pub near: Vec<NearRule>,
}

/// Why a direction lets something through, or does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// That end is outside, or another node, and is not judged here.
    NoEndpoint,
    /// Policy is not enforced for pods (`mode = "never"`).
    ModeNever,
    /// No rule is needed, and none denies it.
    NotIsolated,
    /// A rule allows or denies it.
    Rule,
    /// The document of the rule was refused, and its subjects are closed until it is mended.
    Refused,
    /// A pod may reach its own node (`own-node = "allow"`).
    OwnNode,
    /// The node may reach its own pods (`host-to-local = "allow"`).
    HostToLocal,
    /// A rule is needed, and none fits.
    NoRule,
}

/// A rule that all but fits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NearRule {
    /// The rule.
    pub rule: RuleRef,
    /// What is otherwise.
    pub otherwise: Otherwise,
    /// What the rule says there.
    pub says: String,
}

/// What of a flow a rule does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Otherwise {
    /// It is about this port, and other peers.
    Peer,
    /// It is about this peer, and other ports.
    Port,
}

/// More rules that all but fit are not of much help.
const NEAR_MOST: usize = 5;

impl PolicyEngine {
    /// Says whether a flow would be let through, and why. Either end is taken to be on this node if
    /// it is a pod or the node itself: each node judges its own.
    #[must_use]
    pub fn explain(&self, query: &ExplainQuery) -> Explanation {
        let from = self.known(&query.from);
        let to = self.known(&query.to);
        let flow = Flow {
            receiver: &to,
            protocol: query.protocol,
            port: query.port,
        };
        let egress = self.judge(Direction::Egress, &from, &to, &flow);
        let ingress = self.judge(Direction::Ingress, &to, &from, &flow);
        Explanation {
            allowed: egress.allowed && ingress.allowed,
            protocol: text::protocol(query.protocol),
            port: query.port,
            egress,
            ingress,
            from: from.labels,
            to: to.labels,
        }
    }

    fn known(&self, end: &ExplainEnd) -> Known {
        let labels = match end {
            ExplainEnd::Identity(number) if self.universe.knows(*number) => {
                self.universe.get(*number).labels.clone()
            }
            ExplainEnd::Identity(_) => return Known::default(),
            ExplainEnd::Labels(labels) => labels.clone(),
            ExplainEnd::Address(address) => {
                let prefix = self.prefixes.around(*address);
                if prefix.prefix_len() > 0 {
                    Labels::cidr(prefix)
                } else if address.is_ipv4() {
                    reserved::labels(identity::WORLD_IPV4).unwrap_or_default()
                } else {
                    reserved::labels(identity::WORLD_IPV6).unwrap_or_default()
                }
            }
        };
        Known::new(labels)
    }

    fn judge(
        &self,
        direction: Direction,
        subject: &Known,
        peer: &Known,
        flow: &Flow<'_>,
    ) -> Judgement {
        let is_node = subject.is(Entity::Host);
        let is_pod = universe::is_endpoint(&subject.labels);
        if !is_pod && !is_node {
            return Judgement::new(true, Reason::NoEndpoint);
        }
        let settings = self.settings();
        if is_pod && settings.mode == PolicyMode::Never {
            return Judgement::new(true, Reason::ModeNever);
        }
        let mut found = Found::default();
        for (_, quarantined) in self.refused() {
            if selects(&quarantined.subject_of, subject) {
                let rule = self.rule(quarantined.rule.id()).cloned();
                return Judgement {
                    rule,
                    ..Judgement::new(false, Reason::Refused)
                };
            }
        }
        for (id, installed) in self.in_force() {
            let specs = installed.document.specs.iter().zip(&installed.specs);
            for (spec, compiled) in specs {
                if !selects(&spec.subject, subject) {
                    continue;
                }
                let section = match direction {
                    Direction::Ingress => &spec.ingress,
                    Direction::Egress => &spec.egress,
                };
                if section.isolates && !found.isolated_by.contains(id) {
                    found.isolated_by.push(id.clone());
                }
                let rules = section.rules.iter().zip(&compiled.section(direction).rules);
                for (rule, compiled) in rules {
                    found.add(rule, compiled, peer, flow);
                }
            }
        }
        let needed = is_pod && settings.mode == PolicyMode::Always || !found.isolated_by.is_empty();
        let by_kubernetes = |id: &DocumentId| id.kind == DocumentKind::NetworkPolicy;
        let setting = match direction {
            Direction::Ingress => settings.host_to_local == HostToLocal::Allow,
            Direction::Egress => {
                settings.own_node == OwnNode::Allow && found.isolated_by.iter().any(by_kubernetes)
            }
        };
        let reason = if found.denied.or(found.allowed).is_some() {
            Reason::Rule
        } else if !needed {
            Reason::NotIsolated
        } else if !(is_pod && setting && peer.is(Entity::Host)) {
            Reason::NoRule
        } else if direction == Direction::Egress {
            Reason::OwnNode
        } else {
            Reason::HostToLocal
        };
        let allowed = found.denied.is_none() && reason != Reason::NoRule;
        let near = if reason == Reason::NoRule {
            found.near
        } else {
            Vec::new()
        };
        let near = near.into_iter().filter_map(|(number, otherwise, says)| {
            Some(NearRule {
                rule: self.rule(number)?.clone(),
                otherwise,
                says,
            })
        });
        Judgement {
            allowed,
            reason,
            rule: found
                .denied
                .or(found.allowed)
                .and_then(|number| self.rule(number).cloned()),
            near: near.take(NEAR_MOST).collect(),
            isolated_by: found.isolated_by,
        }
    }
}

impl Judgement {
    fn new(allowed: bool, reason: Reason) -> Self {
        Self {
            allowed,
            reason,
            rule: None,
            isolated_by: Vec::new(),
            near: Vec::new(),
        }
    }
}

/// What is begun.
struct Flow<'a> {
    receiver: &'a Known,
    protocol: u8,
    port: u16,
}

/// What the rules come to, as far as they were read.
#[derive(Default)]
struct Found {
    denied: Option<u32>,
    allowed: Option<u32>,
    isolated_by: Vec<DocumentId>,
    near: Vec<(u32, Otherwise, String)>,
}

impl Found {
    fn add(&mut self, rule: &Rule, compiled: &InstalledRule, peer: &Known, flow: &Flow<'_>) {
        let peer_fits = match (&compiled.peers, &rule.peers) {
            (InstalledPeers::Any, _) | (_, Peers::Any) => true,
            (_, Peers::Of(peers)) => peers.iter().any(|one| Matcher::of(one).fits(peer)),
        };
        let port_fits = compiled.claims(&flow.receiver.ports).any(|claim| {
            claim.protocol.is_none_or(|named| {
                named == flow.protocol && (claim.first..=claim.last).contains(&flow.port)
            })
        });
        match (peer_fits, port_fits, rule.verdict) {
            (true, true, RuleVerdict::Deny) => {
                self.denied.get_or_insert(compiled.id());
            }
            (true, true, RuleVerdict::Allow) => {
                self.allowed.get_or_insert(compiled.id());
            }
            (true, false, RuleVerdict::Allow) => {
                let says = text::ports(&rule.ports);
                self.near.push((compiled.id(), Otherwise::Port, says));
            }
            (false, true, RuleVerdict::Allow) => {
                let says = text::peers(&rule.peers);
                self.near.push((compiled.id(), Otherwise::Peer, says));
            }
            _ => {}
        }
    }
}

fn selects(whom: &Subject, subject: &Known) -> bool {
    match whom {
        Subject::Endpoints(selector) => {
            universe::is_endpoint(&subject.labels) && selector.matches(&subject.labels)
        }
        Subject::Nodes(selector) => subject.is(Entity::Host) && selector.matches(&subject.labels),
    }
}
