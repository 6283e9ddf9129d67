//! Random policy: pods, nodes, hosts outside, and documents about them, the same for the same seed.

use std::collections::BTreeMap;
use std::net::IpAddr;

use datapath_user::policy::{
    Document, DocumentId, DocumentKind, Entity, HostToLocal, IcmpFamily, Labels, NamedPort,
    Operator, OwnNode, Peer, Peers, PolicyMode, PolicySettings, PortProtocol, PortRule, PortValue,
    Ports, Rule, RuleVerdict, Section, Selector, Spec, Subject, source,
};
use fastrand::Rng;
use ipnet::IpNet;

use super::naive::{Actor, ActorKind, Attempt, Rulebook};

/// Namespaces; each has a label `team` of one of two values, and its name.
const NAMESPACES: [&str; 3] = ["a", "b", "c"];
/// Keys of pods' labels, and their values.
const LABELS: [(&str, [&str; 3]); 3] = [
    ("app", ["web", "db", "cache"]),
    ("tier", ["front", "back", ""]),
    ("env", ["prod", "dev", "test"]),
];
/// Names of ports, and what they may stand for.
const PORT_NAMES: [(&str, [u16; 2]); 2] = [("http", [80, 8080]), ("dns", [53, 5353])];
/// Ports that ranges begin and end at, and that are probed.
const EDGES: [u16; 10] = [0, 1, 53, 79, 80, 443, 1023, 8080, 32_768, 65_535];

/// A random set of policies, and whom it is about.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The documents and the settings.
    pub rulebook: Rulebook,
    /// This node first, another one second, then pods, then hosts outside.
    pub actors: Vec<Actor>,
}

/// How large a scenario may be.
#[derive(Clone, Debug)]
pub struct Size {
    /// Pods, at least one.
    pub pods: usize,
    /// Documents, at most; no more than 30.
    pub documents: usize,
    /// Addresses of hosts outside.
    pub outside: Vec<IpAddr>,
    /// Whether there are refused documents, and settings other than the defaults.
    pub settings: bool,
}

impl Default for Size {
    fn default() -> Self {
        let outside = [
            "10.0.0.1",
            "10.1.0.1",
            "10.1.2.3",
            "192.168.7.7",
            "203.0.113.9",
            "fd00::1",
            "fd00:1::1",
            "2001:db8::7",
        ];
        Self {
            pods: 6,
            documents: 12,
            outside: outside
                .iter()
                .filter_map(|text| text.parse().ok())
                .collect(),
            settings: true,
        }
    }
}

impl Scenario {
    /// The scenario of a seed.
    #[must_use]
    pub fn new(seed: u64, size: &Size) -> Self {
        let mut random = Rng::with_seed(seed);
        let mut maker = Maker {
            random: &mut random,
            outside: &size.outside,
        };
        let actors = maker.actors(size);
        let rulebook = maker.rulebook(size);
        Self { rulebook, actors }
    }

    /// An attempt that a seed picks: the edges of ranges by preference.
    #[must_use]
    pub fn attempt(random: &mut Rng) -> Attempt {
        let protocol = pick(random, &[6, 6, 6, 17, 17, 132, 1, 58, 47]);
        let port = match protocol {
            1 | 58 => pick(random, &[0, 3, 8, 128]),
            47 => 0,
            _ if random.u8(..) < 200 => {
                let edge = pick(random, &EDGES);
                let step = pick(random, &[0, 0, 0, 1, u16::MAX]);
                edge.wrapping_add(step)
            }
            _ => random.u16(..),
        };
        Attempt { protocol, port }
    }
}

/// The labels of an actor with those of its named ports, as an endpoint of it has them.
#[must_use]
pub fn endpoint_labels(actor: &Actor) -> Labels {
    let mut named: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for port in &actor.ports {
        let text = format!("{}/{}", port.port, port.protocol);
        named.entry(&port.name).or_default().push(text);
    }
    named
        .into_iter()
        .fold(actor.labels.clone(), |labels, (name, mut texts)| {
            texts.sort();
            labels.with(source::PORT, name, &texts.join(","))
        })
}

struct Maker<'a> {
    random: &'a mut Rng,
    outside: &'a [IpAddr],
}

impl Maker<'_> {
    fn actors(&mut self, size: &Size) -> Vec<Actor> {
        let mut node = |name: &str, kind, reserved| Actor {
            name: name.into(),
            kind,
            labels: Labels::reserved(reserved).with(
                source::K8S,
                "env",
                self.pick(&["prod", "dev"]),
            ),
            ports: Vec::new(),
        };
        let mut actors = vec![
            node("host", ActorKind::Host, "host"),
            node("other", ActorKind::RemoteNode, "remote-node"),
        ];
        actors.extend((0..size.pods.max(1)).map(|at| self.pod(at)));
        actors.extend(self.outside.iter().map(|&address| Actor {
            name: address.to_string(),
            kind: ActorKind::Outside(address),
            labels: Labels::reserved(if address.is_ipv4() {
                "world-ipv4"
            } else {
                "world-ipv6"
            }),
            ports: Vec::new(),
        }));
        actors
    }

    fn pod(&mut self, at: usize) -> Actor {
        let namespace = self.pick(&NAMESPACES);
        let mut labels = namespace_labels(namespace);
        for (key, values) in LABELS {
            if self.chance(2, 3) {
                labels = labels.with(source::K8S, key, self.pick(&values));
            }
        }
        // So that no two pods are one identity.
        labels = labels.with(source::K8S, "pod", &at.to_string());
        let mut ports = Vec::new();
        for (name, values) in PORT_NAMES {
            for protocol in [PortProtocol::Tcp, PortProtocol::Udp] {
                if self.chance(1, 3) {
                    ports.push(NamedPort {
                        name: name.into(),
                        port: self.pick(&values),
                        protocol,
                    });
                }
            }
        }
        Actor {
            name: format!("{namespace}/pod-{at}"),
            kind: ActorKind::Pod,
            labels,
            ports,
        }
    }

    fn rulebook(&mut self, size: &Size) -> Rulebook {
        let count = self.random.usize(0..=size.documents);
        let documents = (0..count).map(|at| self.document(at)).collect();
        let mut rulebook = Rulebook {
            documents,
            ..Rulebook::default()
        };
        if !size.settings {
            return rulebook;
        }
        let rare = self.chance(1, 8);
        rulebook.settings = PolicySettings {
            mode: match (rare, self.chance(1, 2)) {
                (false, _) => PolicyMode::Default,
                (true, true) => PolicyMode::Always,
                (true, false) => PolicyMode::Never,
            },
            own_node: self.pick(&[OwnNode::Allow, OwnNode::Policy]),
            host_to_local: self.pick(&[HostToLocal::Allow, HostToLocal::Policy]),
            ..PolicySettings::default()
        };
        if self.chance(1, 8) {
            let id = self.id(count);
            let subject = self.subject(&id);
            rulebook.refused.push((id, subject));
        }
        rulebook
    }

    fn id(&mut self, at: usize) -> DocumentId {
        let kind = self.pick(&[
            DocumentKind::NetworkPolicy,
            DocumentKind::NetworkPolicy,
            DocumentKind::CiliumNetworkPolicy,
            DocumentKind::CiliumClusterwideNetworkPolicy,
        ]);
        let namespaced = kind != DocumentKind::CiliumClusterwideNetworkPolicy;
        DocumentId {
            kind,
            namespace: namespaced.then(|| self.pick(&NAMESPACES).into()),
            name: format!("p{}", (at * 7 + 3) % 31),
        }
    }

    fn subject(&mut self, id: &DocumentId) -> Subject {
        let selector = if self.chance(1, 2) {
            Selector::default()
        } else {
            self.selector()
        };
        match &id.namespace {
            Some(namespace) => Subject::Endpoints(in_namespace(selector, namespace)),
            None if self.chance(1, 4) => Subject::Nodes(selector),
            None => Subject::Endpoints(selector),
        }
    }

    fn document(&mut self, at: usize) -> Document {
        let id = self.id(at);
        let is_cilium = id.kind != DocumentKind::NetworkPolicy;
        let specs = if is_cilium && self.chance(1, 4) { 2 } else { 1 };
        let specs = (0..specs).map(|spec| {
            let path = if specs == 1 {
                "spec".to_owned()
            } else {
                format!("specs[{spec}]")
            };
            Spec {
                subject: self.subject(&id),
                ingress: self.section(&id, &format!("{path}.ingress")),
                egress: self.section(&id, &format!("{path}.egress")),
            }
        });
        Document {
            specs: specs.collect(),
            id,
            file: None,
        }
    }

    fn section(&mut self, id: &DocumentId, path: &str) -> Section {
        if self.chance(1, 3) {
            return Section::default();
        }
        let is_cilium = id.kind != DocumentKind::NetworkPolicy;
        let mut rules = Vec::new();
        for at in 0..self.random.usize(0..4) {
            rules.push(self.rule(id, format!("{path}[{at}]"), RuleVerdict::Allow));
        }
        if is_cilium && self.chance(1, 3) {
            for at in 0..self.random.usize(1..3) {
                rules.push(self.rule(id, format!("{path}Deny[{at}]"), RuleVerdict::Deny));
            }
        }
        Section {
            // `enableDefaultDeny: false` is Cilium's only.
            isolates: !is_cilium || self.chance(3, 4),
            rules,
        }
    }

    fn rule(&mut self, id: &DocumentId, path: String, verdict: RuleVerdict) -> Rule {
        let is_cilium = id.kind != DocumentKind::NetworkPolicy;
        let peers = if self.chance(1, 5) {
            Peers::Any
        } else {
            let count = self.random.usize(0..4);
            Peers::Of((0..count).map(|_| self.peer(id, is_cilium)).collect())
        };
        let ports = if self.chance(1, 3) {
            Ports::Any
        } else {
            let count = self.random.usize(0..4);
            Ports::Of((0..count).map(|_| self.port(is_cilium)).collect())
        };
        Rule {
            path,
            line: 1,
            verdict,
            peers,
            ports,
        }
    }

    fn peer(&mut self, id: &DocumentId, is_cilium: bool) -> Peer {
        match self.random.u8(0..10) {
            0..3 => Peer::Labelled(match &id.namespace {
                Some(namespace) => in_namespace(self.selector(), namespace),
                None => self.selector(),
            }),
            3..5 => {
                let team = Operator::In(vec![self.pick(&["red", "blue"]).into()]);
                let key = format!("{}team", Labels::NAMESPACE_LABELS);
                Peer::Labelled(self.selector().with(source::K8S, &key, team))
            }
            5..8 => self.cidr(),
            _ if is_cilium => Peer::Entity(self.pick(&[
                Entity::All,
                Entity::World,
                Entity::WorldIpv4,
                Entity::WorldIpv6,
                Entity::Cluster,
                Entity::Host,
                Entity::RemoteNode,
                Entity::Health,
                Entity::None,
            ])),
            _ => {
                let exists = Operator::Exists;
                Peer::Labelled(self.selector().with(source::K8S, Labels::NAMESPACE, exists))
            }
        }
    }

    /// A prefix around one of the hosts outside, less some inside it.
    fn cidr(&mut self) -> Peer {
        let at = self.random.usize(..self.outside.len().max(1));
        let Some(&address) = self.outside.get(at) else {
            return Peer::Entity(Entity::None);
        };
        let lengths: &[u8] = if address.is_ipv4() {
            &[0, 4, 8, 15, 16, 24, 31, 32]
        } else {
            &[0, 7, 8, 16, 31, 32, 64, 127, 128]
        };
        let length = self.pick(lengths);
        let around = |address: IpAddr, length: u8| {
            IpNet::new(address, length).map_or(IpNet::from(address), |net| net.trunc())
        };
        let cidr = around(address, length);
        let mut except = Vec::new();
        for &other in self.outside {
            if cidr.contains(&other) && self.chance(1, 3) {
                let longer: Vec<u8> = lengths.iter().copied().filter(|l| *l >= length).collect();
                except.push(around(other, self.pick(&longer)));
            }
        }
        Peer::Cidr { cidr, except }
    }

    fn port(&mut self, is_cilium: bool) -> PortRule {
        if is_cilium && self.chance(1, 6) {
            return PortRule::Icmp {
                family: self.pick(&[IcmpFamily::V4, IcmpFamily::V6]),
                kind: self.pick(&[0, 3, 8, 128]),
            };
        }
        let port = match self.random.u8(0..8) {
            0 => PortValue::All,
            1 | 2 => PortValue::Named(self.pick(&["http", "dns", "nobody"]).into()),
            3..6 => {
                let port = self.pick(&EDGES);
                PortValue::Range(port..=port)
            }
            _ => {
                let (one, other) = (self.pick(&EDGES), self.pick(&EDGES));
                PortValue::Range(one.min(other)..=one.max(other))
            }
        };
        let protocol = if is_cilium && self.chance(1, 3) {
            None
        } else {
            Some(self.pick(&PortProtocol::ALL))
        };
        PortRule::Port { protocol, port }
    }

    fn selector(&mut self) -> Selector {
        let mut selector = Selector::default();
        for _ in 0..self.pick(&[0, 1, 1, 2]) {
            let (key, values) = self.pick(&LABELS);
            let source = self.pick(&[source::K8S, source::K8S, source::ANY]);
            let some = |random: &mut Rng| {
                let count = random.usize(1..3);
                (0..count)
                    .map(|_| pick(random, &values).to_owned())
                    .collect()
            };
            let operator = match self.random.u8(0..6) {
                0..3 => Operator::In(some(self.random)),
                3 => Operator::NotIn(some(self.random)),
                4 => Operator::Exists,
                _ => Operator::DoesNotExist,
            };
            selector = selector.with(source, key, operator);
        }
        selector
    }

    fn chance(&mut self, of: u32, among: u32) -> bool {
        self.random.u32(..among) < of
    }

    fn pick<T: Copy>(&mut self, among: &[T]) -> T {
        pick(self.random, among)
    }
}

/// Labels that every pod of a namespace has.
fn namespace_labels(namespace: &str) -> Labels {
    let team = if namespace == "a" { "red" } else { "blue" };
    let key = |key: &str| format!("{}{key}", Labels::NAMESPACE_LABELS);
    Labels::default()
        .with(source::K8S, Labels::NAMESPACE, namespace)
        .with(source::K8S, &key("team"), team)
        .with(source::K8S, &key("kubernetes.io/metadata.name"), namespace)
}

fn in_namespace(selector: Selector, namespace: &str) -> Selector {
    selector.equal(source::K8S, Labels::NAMESPACE, namespace)
}

#[expect(
    clippy::indexing_slicing,
    reason = "below the length, and no list here is empty"
)]
fn pick<T: Copy>(random: &mut Rng, among: &[T]) -> T {
    among[random.usize(..among.len())]
}
