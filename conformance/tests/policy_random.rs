//! Random policies on the real datapath, on both nodes: what passes is what a second reading of the
//! documents lets pass. `DATAPATH_RANDOM_POLICIES` says how many sets, and
//! `DATAPATH_RANDOM_POLICIES_SEED` which is the first, counted from 1.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests, outside of what clippy takes for one; how far it is"
)]

mod util;

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fmt::Write as _,
    net::IpAddr,
    path::PathBuf,
    time::Instant,
};

use datapath_conformance::{
    family::Family,
    policy::{
        case::{
            Case, CellId, EndpointId, ExternalHost, Namespace, Node, Pod, Probe, ProbeProtocol,
        },
        generate::{Scenario, Size},
        matrix::{Runner, Verdict},
        naive::{Actor, ActorKind, Attempt, Rulebook},
    },
};
use datapath_kern::abi::metric::Direction;
use datapath_user::{
    Tunnel,
    policy::{Labels, source},
};
use fastrand::Rng;
use util::{OrPanic, lab_name};

/// How many sets; without it, a few.
const SETS: &str = "DATAPATH_RANDOM_POLICIES";
const FEW: u64 = 5;
/// The first of them.
const SEED: &str = "DATAPATH_RANDOM_POLICIES_SEED";
/// Cells of a set.
const CELLS: usize = 80;

/// A scenario as a case: the same ends under both names.
struct Stage {
    scenario: Scenario,
    case: Case,
    /// Which actor an endpoint is. The hosts outside are one for each address here, and have one of
    /// each family there.
    actors: BTreeMap<(EndpointId, Option<IpAddr>), usize>,
}

#[test]
fn random_policies_do_what_a_second_reading_of_them_says() {
    let sets = number(SETS, FEW);
    assert!(sets > 0, "{SETS}: none would show nothing");
    let first = number(SEED, 1);
    let mut runner = Runner::new(lab_name("random"), Tunnel::Direct);
    let (mut allowed, mut denied) = (0_usize, 0_usize);
    let mut wrong = String::new();
    let mut stages: Vec<_> = (first..first + sets)
        .map(|seed| (seed, Stage::new(seed)))
        .collect();
    // Nodes that are alike run one set after the other, without loading anything anew.
    stages.sort_by_key(|(_, stage)| {
        let nodes = stage.case.nodes.iter();
        nodes.map(|node| node.labels.clone()).collect::<Vec<_>>()
    });
    for (seed, stage) in &stages {
        let cells = stage.cells(*seed);
        let documents = stage.scenario.rulebook.documents.clone();
        let started = Instant::now();
        let matrix = runner.run_under(documents, &stage.case, &cells).or_panic();
        println!("set {seed}: {:.1?}", started.elapsed());
        let before = wrong.len();
        for cell in &matrix.cells {
            let expected = if stage.passes(&cell.id) {
                allowed += 1;
                Verdict::Allow
            } else {
                denied += 1;
                Verdict::Deny
            };
            if cell.verdict != expected || cell.doubtful {
                let (id, seen, detail) = (&cell.id, cell.verdict, &cell.detail);
                writeln!(
                    wrong,
                    "seed {seed}: {id}: expected {expected}, seen {seen} ({detail})"
                )
                .unwrap();
            }
        }
        if wrong.len() != before {
            writeln!(wrong, "{:#?}", stage.scenario.rulebook).unwrap();
        }
    }
    println!("{sets} sets: {allowed} cells allowed, {denied} denied");
    assert!(wrong.is_empty(), "{wrong}");
    assert!(
        allowed > 0 && denied > 0,
        "{allowed} allowed, {denied} denied"
    );
}

/// What a variable of the environment says, in digits.
fn number(variable: &str, default: u64) -> u64 {
    env::var(variable).map_or(default, |text| text.parse().expect(variable))
}

impl Stage {
    fn new(seed: u64) -> Self {
        let size = Size {
            settings: false,
            ..Size::default()
        };
        let scenario = Scenario::new(seed, &size);
        let mut stage = Self {
            case: empty(),
            actors: BTreeMap::new(),
            scenario,
        };
        let mut outside: BTreeMap<Family, Vec<(IpAddr, usize)>> = BTreeMap::new();
        let actors = stage.scenario.actors.clone();
        for (index, actor) in actors.iter().enumerate() {
            let id = match actor.kind {
                ActorKind::Host => stage.add_node(1, actor),
                ActorKind::RemoteNode => stage.add_node(2, actor),
                ActorKind::Pod => stage.add_pod(index, actor),
                ActorKind::Outside(address) => {
                    let family = Family::of(address);
                    outside.entry(family).or_default().push((address, index));
                    continue;
                }
            };
            stage.actors.insert((id, None), index);
        }
        let most = outside.values().map(Vec::len).max().unwrap_or_default();
        for number in 0..most {
            let name = format!("out{number}");
            let mut addresses = Vec::new();
            for all in outside.values() {
                if let Some(&(address, index)) = all.get(number) {
                    addresses.push(address);
                    let id = EndpointId::External(name.clone());
                    stage.actors.insert((id, Some(address)), index);
                }
            }
            let line = 1;
            stage.case.hosts.push(ExternalHost {
                name,
                addresses,
                line,
            });
        }
        stage
    }

    fn add_node(&mut self, number: u16, actor: &Actor) -> EndpointId {
        let node = Node {
            name: format!("n{number}"),
            labels: own_labels(&actor.labels),
            addresses: vec![
                format!("192.0.2.1{number}").parse().unwrap(),
                format!("2001:db8:1::1{number}").parse().unwrap(),
            ],
            pod_cidrs: vec![
                format!("10.244.{number}.0/24").parse().unwrap(),
                format!("fd00:10:244:{number}::/64").parse().unwrap(),
            ],
            line: 1,
        };
        let id = node.id();
        self.case.nodes.push(node);
        id
    }

    fn add_pod(&mut self, index: usize, actor: &Actor) -> EndpointId {
        let node = 1 + index % 2;
        let namespace = actor.labels.namespace().unwrap().to_owned();
        let prefix = Labels::NAMESPACE_LABELS;
        let of_namespace = actor.labels.iter().filter_map(|label| {
            let key = label.key.strip_prefix(prefix)?.to_owned();
            Some((key, label.value))
        });
        let pod = Pod {
            namespace: namespace.clone(),
            name: format!("pod{index}"),
            labels: own_labels(&actor.labels),
            node: format!("n{node}"),
            host_network: false,
            service_account: "default".to_owned(),
            ports: actor.ports.clone(),
            addresses: vec![
                format!("10.244.{node}.{}", 10 + index).parse().unwrap(),
                format!("fd00:10:244:{node}::{}", 10 + index)
                    .parse()
                    .unwrap(),
            ],
            line: 1,
        };
        let described = Namespace {
            name: namespace.clone(),
            labels: of_namespace.collect(),
        };
        self.case.namespaces.insert(namespace, described);
        let id = pod.id();
        self.case.pods.push(pod);
        id
    }

    /// Picks cells of all sorts.
    fn cells(&self, seed: u64) -> Vec<CellId> {
        let mut random = Rng::with_seed(seed);
        let pods = self.case.pods.iter().map(Pod::id);
        let hosts = self.case.hosts.iter().map(ExternalHost::id);
        let nodes = self.case.nodes.iter().map(Node::id);
        let pods: Vec<_> = pods.collect();
        let others: Vec<_> = hosts.chain(nodes).collect();
        let mut cells = BTreeSet::new();
        while cells.len() < CELLS {
            let one = random.choice(&pods).unwrap().clone();
            let others = if random.bool() { &pods } else { &others };
            let other = random.choice(others);
            let other = other.unwrap().clone();
            let Some((protocol, family)) = family(Scenario::attempt(&mut random), &mut random)
            else {
                continue;
            };
            let (attempt, family) = (protocol, family);
            let (source, destination) = if random.bool() {
                (one, other)
            } else {
                (other, one)
            };
            let cell = CellId {
                source,
                destination,
                family,
                protocol: attempt.0,
                port: attempt.1,
                http: None,
            };
            if cell.source != cell.destination && self.is_whole(&cell) {
                cells.insert(cell);
            }
        }
        cells.into_iter().collect()
    }

    /// Whether both ends have an address of the family.
    fn is_whole(&self, cell: &CellId) -> bool {
        [&cell.source, &cell.destination]
            .into_iter()
            .all(|id| self.actor(id, cell.family).is_some())
    }

    fn actor(&self, id: &EndpointId, family: Family) -> Option<&Actor> {
        let fits =
            |address: &Option<IpAddr>| address.is_none_or(|address| Family::of(address) == family);
        let mut fitting = self.actors.iter();
        let (_, index) = fitting.find(|((known, address), _)| known == id && fits(address))?;
        self.scenario.actors.get(*index)
    }

    /// What the second reading says: both ends' nodes have to let it pass.
    fn passes(&self, cell: &CellId) -> bool {
        let attempt = Attempt {
            protocol: match cell.protocol {
                ProbeProtocol::Tcp => 6,
                ProbeProtocol::Udp => 17,
                ProbeProtocol::Sctp => 132,
                ProbeProtocol::Icmp => 1,
                ProbeProtocol::Icmpv6 => 58,
            },
            port: cell.port,
        };
        let rulebook: &Rulebook = &self.scenario.rulebook;
        let judge = |direction, subject: &EndpointId, peer: &EndpointId| {
            let Some(node) = self.node_of(subject) else {
                return true;
            };
            let seen = |id| self.seen_from(node, id, cell.family);
            // What a pod sends to another node leaves behind the address of its own.
            let masqueraded =
                direction == Direction::Ingress && matches!(subject, EndpointId::Node(_));
            let peer = match self.node_of(peer) {
                Some(other) if masqueraded && other != node => &EndpointId::Node(other.to_owned()),
                _ => peer,
            };
            rulebook
                .judge(direction, &seen(subject), &seen(peer), attempt)
                .allowed
        };
        judge(Direction::Egress, &cell.source, &cell.destination)
            && judge(Direction::Ingress, &cell.destination, &cell.source)
    }

    /// The node that judges for an end.
    fn node_of(&self, id: &EndpointId) -> Option<&str> {
        match id {
            EndpointId::Node(name) => self.case.nodes.iter().find(|it| it.name == *name),
            EndpointId::Pod { .. } => {
                let pod = self.case.pods.iter().find(|pod| pod.id() == *id)?;
                self.case.nodes.iter().find(|it| it.name == pod.node)
            }
            EndpointId::External(_) | EndpointId::Service { .. } => None,
        }
        .map(|node| node.name.as_str())
    }

    /// An end as a node knows it: a node is the host to itself, and another node to the other.
    fn seen_from(&self, node: &str, id: &EndpointId, family: Family) -> Actor {
        let actor = self.actor(id, family).unwrap().clone();
        let EndpointId::Node(name) = id else {
            return actor;
        };
        let (kind, reserved) = if name == node {
            (ActorKind::Host, "host")
        } else {
            (ActorKind::RemoteNode, "remote-node")
        };
        let own = own_labels(&actor.labels);
        let labels = own
            .iter()
            .fold(Labels::reserved(reserved), |labels, (key, value)| {
                labels.with(source::K8S, key, value)
            });
        Actor {
            kind,
            labels,
            ..actor
        }
    }
}

/// What is sent for an attempt, and over which family; none for what has no flows to begin.
fn family(attempt: Attempt, random: &mut Rng) -> Option<((ProbeProtocol, u16), Family)> {
    let any = if random.bool() {
        Family::Ipv4
    } else {
        Family::Ipv6
    };
    Some(match (attempt.protocol, attempt.port) {
        (1, _) => ((ProbeProtocol::Icmp, 8), Family::Ipv4),
        (58, _) => ((ProbeProtocol::Icmpv6, 128), Family::Ipv6),
        (_, 0) => return None,
        (6, port) => ((ProbeProtocol::Tcp, port), any),
        (17, port) => ((ProbeProtocol::Udp, port), any),
        (132, port) => ((ProbeProtocol::Sctp, port), any),
        _ => return None,
    })
}

/// Labels that an object has itself.
fn own_labels(labels: &Labels) -> BTreeMap<String, String> {
    let own = labels.iter().filter(|label| {
        let of_namespace = label.key.starts_with(Labels::NAMESPACE_LABELS);
        label.source == source::K8S && label.key != Labels::NAMESPACE && !of_namespace
    });
    own.map(|label| (label.key, label.value)).collect()
}

fn empty() -> Case {
    Case {
        file: PathBuf::from("random"),
        name: "random".to_owned(),
        title: String::new(),
        tags: BTreeSet::new(),
        needs: BTreeSet::new(),
        probes: Vec::<Probe>::new(),
        families: Family::ALL.to_vec(),
        sources: Vec::new(),
        destinations: Vec::new(),
        rejected: BTreeSet::new(),
        assertions: Vec::new(),
        namespaces: BTreeMap::new(),
        nodes: Vec::new(),
        pods: Vec::new(),
        services: Vec::new(),
        hosts: Vec::new(),
        policies: Vec::new(),
    }
}
