//! A second reading of policy documents: rule by rule, address by address, without compilation.
//!
//! It shares nothing with the compiler but the model of documents: no identities, no prefixes of
//! ports, no caches. Where the two disagree, one of them is wrong.

use std::net::IpAddr;

use datapath_kern::abi::metric::Direction;
use datapath_user::policy::{
    Document, DocumentId, DocumentKind, Entity, HostToLocal, Labels, NamedPort, Operator, OwnNode,
    Peer, Peers, PolicyMode, PolicySettings, PortProtocol, PortRule, PortValue, Ports, Requirement,
    Rule, RuleVerdict, Section, Selector, Subject, source,
};

/// One end of a flow.
#[derive(Clone, Debug)]
pub struct Actor {
    /// What it is called, for people.
    pub name: String,
    /// What it is.
    pub kind: ActorKind,
    /// Its labels; those of its named ports are not needed.
    pub labels: Labels,
    /// Its named ports.
    pub ports: Vec<NamedPort>,
}

/// What an end of a flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActorKind {
    /// A pod of this node or of another.
    Pod,
    /// This node.
    Host,
    /// Another node.
    RemoteNode,
    /// An address outside the cluster.
    Outside(IpAddr),
}

/// Everything that a verdict depends on besides the flow.
#[derive(Clone, Debug, Default)]
pub struct Rulebook {
    /// How policy is understood.
    pub settings: PolicySettings,
    /// The documents, in any order, no two of one name.
    pub documents: Vec<Document>,
    /// Whom refused documents would have been for.
    pub refused: Vec<(DocumentId, Subject)>,
}

/// What is begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port, or type of an ICMP message; zero where there is neither.
    pub port: u16,
}

/// What was decided for one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// Whether it is let through.
    pub allowed: bool,
    /// The rule that decided, by document and path; none where no document's did.
    pub rule: Option<(DocumentId, String)>,
}

/// The path of the rule that keeps the subjects of a refused document closed.
const REFUSED: &str = "refused";

impl Rulebook {
    /// Judges one direction of one subject: egress if it begins the flow, else ingress.
    #[must_use]
    pub fn judge(
        &self,
        direction: Direction,
        subject: &Actor,
        peer: &Actor,
        attempt: Attempt,
    ) -> Ruling {
        let by_setting = |allowed| Ruling {
            allowed,
            rule: None,
        };
        let is_pod = subject.kind == ActorKind::Pod;
        let is_node = subject.kind == ActorKind::Host;
        if !is_pod && !is_node || is_pod && self.settings.mode == PolicyMode::Never {
            return by_setting(true);
        }
        let mut refused = self.refused.iter().collect::<Vec<_>>();
        refused.sort_by_key(|(id, _)| id);
        for (id, whom) in refused {
            if selects(whom, subject) {
                return Ruling {
                    allowed: false,
                    rule: Some((id.clone(), REFUSED.into())),
                };
            }
        }
        // The host's ports have no names; what is asked of a pod is asked of the receiving one.
        let receiver = match direction {
            Direction::Ingress => subject,
            Direction::Egress => peer,
        };
        let mut needs_rule = is_pod && self.settings.mode == PolicyMode::Always;
        let mut by_kubernetes = false;
        let mut allowed_by = None;
        let mut denied_by = None;
        let mut documents = self.documents.iter().collect::<Vec<_>>();
        documents.sort_by_key(|document| &document.id);
        for document in documents {
            for spec in &document.specs {
                if !selects(&spec.subject, subject) {
                    continue;
                }
                let section: &Section = match direction {
                    Direction::Ingress => &spec.ingress,
                    Direction::Egress => &spec.egress,
                };
                needs_rule |= section.isolates;
                by_kubernetes |=
                    section.isolates && document.id.kind == DocumentKind::NetworkPolicy;
                for rule in &section.rules {
                    if !fits(rule, peer, receiver, attempt) {
                        continue;
                    }
                    let first = match rule.verdict {
                        RuleVerdict::Allow => &mut allowed_by,
                        RuleVerdict::Deny => &mut denied_by,
                    };
                    first.get_or_insert_with(|| (document.id.clone(), rule.path.clone()));
                }
            }
        }
        if denied_by.is_some() {
            return Ruling {
                allowed: false,
                rule: denied_by,
            };
        }
        if allowed_by.is_some() {
            return Ruling {
                allowed: true,
                rule: allowed_by,
            };
        }
        let with_host = is_pod
            && peer.kind == ActorKind::Host
            && match direction {
                Direction::Ingress => self.settings.host_to_local == HostToLocal::Allow,
                Direction::Egress => by_kubernetes && self.settings.own_node == OwnNode::Allow,
            };
        by_setting(!needs_rule || with_host)
    }
}

fn selects(whom: &Subject, actor: &Actor) -> bool {
    match whom {
        Subject::Endpoints(selector) => actor.kind == ActorKind::Pod && has(actor, selector),
        Subject::Nodes(selector) => actor.kind == ActorKind::Host && has(actor, selector),
    }
}

fn has(actor: &Actor, selector: &Selector) -> bool {
    selector
        .requirements
        .iter()
        .all(|requirement| requirement_holds(requirement, &actor.labels))
}

fn requirement_holds(requirement: &Requirement, labels: &Labels) -> bool {
    let found = labels.iter().find(|label| {
        label.key == requirement.key
            && (requirement.source == source::ANY || requirement.source == label.source)
    });
    match (&requirement.operator, found) {
        (Operator::Exists, found) => found.is_some(),
        (Operator::DoesNotExist, found) => found.is_none(),
        (Operator::In(_), None) => false,
        (Operator::NotIn(_), None) => true,
        (Operator::In(values), Some(label)) => values.contains(&label.value),
        (Operator::NotIn(values), Some(label)) => !values.contains(&label.value),
    }
}

fn fits(rule: &Rule, peer: &Actor, receiver: &Actor, attempt: Attempt) -> bool {
    let peer_fits = match &rule.peers {
        Peers::Any => true,
        Peers::Of(peers) => peers.iter().any(|one| peer_fits(one, peer)),
    };
    let port_fits = match &rule.ports {
        Ports::Any => true,
        Ports::Of(ports) => ports.iter().any(|one| port_fits(one, receiver, attempt)),
    };
    peer_fits && port_fits
}

fn peer_fits(one: &Peer, peer: &Actor) -> bool {
    match one {
        Peer::Labelled(selector) => has(peer, selector),
        Peer::Cidr { cidr, except } => match peer.kind {
            ActorKind::Outside(address) => {
                cidr.contains(&address) && !except.iter().any(|out| out.contains(&address))
            }
            _ => false,
        },
        Peer::Entity(entity) => entity_fits(*entity, peer.kind),
    }
}

fn entity_fits(entity: Entity, kind: ActorKind) -> bool {
    match entity {
        Entity::All => true,
        Entity::World => matches!(kind, ActorKind::Outside(_)),
        Entity::WorldIpv4 => matches!(kind, ActorKind::Outside(IpAddr::V4(_))),
        Entity::WorldIpv6 => matches!(kind, ActorKind::Outside(IpAddr::V6(_))),
        Entity::Cluster => !matches!(kind, ActorKind::Outside(_)),
        Entity::Host => kind == ActorKind::Host,
        Entity::RemoteNode => kind == ActorKind::RemoteNode,
        // No actor is one of these.
        Entity::KubeApiserver
        | Entity::Ingress
        | Entity::Init
        | Entity::Health
        | Entity::Unmanaged
        | Entity::None => false,
    }
}

fn port_fits(one: &PortRule, receiver: &Actor, attempt: Attempt) -> bool {
    match one {
        PortRule::Icmp { family, kind } => {
            family.number() == attempt.protocol && u16::from(*kind) == attempt.port
        }
        PortRule::Port { protocol, port } => {
            let Some(used) = PortProtocol::ALL
                .into_iter()
                .find(|known| known.number() == attempt.protocol)
            else {
                return false;
            };
            protocol.is_none_or(|asked| asked == used)
                && match port {
                    PortValue::All => true,
                    PortValue::Range(ports) => ports.contains(&attempt.port),
                    PortValue::Named(name) => receiver.ports.iter().any(|known| {
                        known.name == *name && known.protocol == used && known.port == attempt.port
                    }),
                }
        }
    }
}
