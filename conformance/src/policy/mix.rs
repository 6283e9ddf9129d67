//! A large cluster's policy: as many documents as asked for, no two with the same selector.
//!
//! Of the documents, 60 % let in pods by labels, 20 % namespaces, 15 % prefixes less some, and 5 %
//! deny something; each names 1 to 10 ports or ranges.

use std::net::{IpAddr, Ipv4Addr};

use datapath_kern::abi::endpoint::identity;
use datapath_user::policy::{
    Document, DocumentId, DocumentKind, Labels, Operator, Peer, Peers, PortProtocol, PortRule,
    PortValue, Ports, Rule, RuleVerdict, Section, Selector, Spec, Subject, source,
};
use fastrand::Rng;
use ipnet::IpNet;

/// Pods of one namespace.
const NAMESPACE_PODS: u32 = 20;
/// Groups of pods within a namespace, which documents select.
const GROUPS: u32 = 5;

/// The documents, and whom they are about.
#[derive(Clone, Debug)]
pub struct Mix {
    /// In no order.
    pub documents: Vec<Document>,
    /// Identities of pods, with their labels.
    pub identities: Vec<(u32, Labels)>,
    /// Those of them that have endpoints on the node, which the documents select.
    pub endpoints: Vec<u32>,
}

impl Mix {
    /// The mix of a seed: the first `endpoints` of `identities` have one on the node.
    #[must_use]
    pub fn new(seed: u64, documents: u32, identities: u32, endpoints: u32) -> Self {
        let mut random = Rng::with_seed(seed);
        let numbers = (0..identities).map(|at| identity::FIRST_ALLOCATED + at);
        let local = endpoints.min(identities);
        Self {
            identities: numbers.clone().zip((0..identities).map(labels)).collect(),
            endpoints: numbers.take(local as usize).collect(),
            documents: (0..documents)
                .map(|at| document(at, identities, local, &mut random))
                .collect(),
        }
    }

    /// A document with another list of ports: what an edit of one rule comes to.
    #[must_use]
    pub fn edited(document: &Document, seed: u64) -> Document {
        let mut random = Rng::with_seed(seed);
        let mut document = document.clone();
        for spec in &mut document.specs {
            for rule in &mut spec.ingress.rules {
                rule.ports = ports(&mut random);
            }
        }
        document
    }
}

/// Labels of a pod.
fn labels(at: u32) -> Labels {
    let namespace = namespace(at);
    let key = format!("{}team", Labels::NAMESPACE_LABELS);
    let team = format!("team-{}", at / NAMESPACE_PODS % 7);
    [
        (Labels::NAMESPACE, namespace.as_str()),
        (&key, &team),
        ("app", &format!("app-{at}")),
        ("group", &format!("group-{}", at % GROUPS)),
        ("tier", tier(at)),
    ]
    .into_iter()
    .fold(Labels::default(), |labels, (key, value)| {
        labels.with(source::K8S, key, value)
    })
}

fn namespace(at: u32) -> String {
    format!("namespace-{}", at / NAMESPACE_PODS)
}

fn tier(at: u32) -> &'static str {
    match at % 3 {
        0 => "front",
        1 => "back",
        _ => "data",
    }
}

fn document(at: u32, identities: u32, local: u32, random: &mut Rng) -> Document {
    let chosen = random.u32(..local.max(1));
    let namespace = namespace(chosen);
    let group = format!("group-{}", chosen % GROUPS);
    // The last requirement holds for every pod, and for no two documents is the same.
    let subject = Selector::default()
        .equal(source::K8S, Labels::NAMESPACE, &namespace)
        .equal(source::K8S, "group", &group)
        .with(
            source::K8S,
            "app",
            Operator::NotIn(vec![format!("none-{at}")]),
        );
    let share = at % 20;
    let verdict = if share == 19 {
        RuleVerdict::Deny
    } else {
        RuleVerdict::Allow
    };
    let peer = match share {
        0..12 | 19 => {
            let apps = (0..random.usize(1..6)).map(|_| format!("app-{}", random.u32(..identities)));
            Peer::Labelled(Selector::default().with(
                source::K8S,
                "app",
                Operator::In(apps.collect()),
            ))
        }
        12..16 => {
            let key = format!("{}team", Labels::NAMESPACE_LABELS);
            let team = format!("team-{}", random.u32(..7));
            let tier = tier(random.u32(..3));
            Peer::Labelled(Selector::default().equal(source::K8S, &key, &team).with(
                source::K8S,
                "tier",
                Operator::NotIn(vec![tier.into()]),
            ))
        }
        _ => cidr(at),
    };
    let id = DocumentId {
        kind: DocumentKind::CiliumNetworkPolicy,
        namespace: Some(namespace),
        name: format!("policy-{at}"),
    };
    let section = Section {
        isolates: true,
        rules: vec![Rule {
            path: "spec.ingress[0]".into(),
            line: 1,
            verdict,
            peers: Peers::Of(vec![peer]),
            ports: ports(random),
        }],
    };
    Document {
        id,
        file: None,
        specs: vec![Spec {
            subject: Subject::Endpoints(subject),
            ingress: section,
            egress: Section::default(),
        }],
    }
}

/// A prefix of 256 addresses less one of 16, for each document another.
fn cidr(at: u32) -> Peer {
    let base = u32::from(Ipv4Addr::new(20, 0, 0, 0)) + (at << 8);
    let net = |address: u32, length| {
        let address = IpAddr::from(Ipv4Addr::from(address));
        IpNet::new(address, length).unwrap_or(IpNet::from(address))
    };
    Peer::Cidr {
        cidr: net(base, 24),
        except: vec![net(base + 32, 28)],
    }
}

fn ports(random: &mut Rng) -> Ports {
    let rules = (0..random.usize(1..=10)).map(|_| {
        let first = random.u16(1..60_000);
        let more = if random.u8(..4) == 0 {
            random.u16(..1000)
        } else {
            0
        };
        PortRule::Port {
            protocol: Some(if random.u8(..5) == 0 {
                PortProtocol::Udp
            } else {
                PortProtocol::Tcp
            }),
            port: PortValue::Range(first..=first + more),
        }
    });
    Ports::Of(rules.collect())
}
