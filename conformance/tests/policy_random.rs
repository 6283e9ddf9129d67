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
        case::{Case, CellId, ExternalHost, Namespace, Node, Pod, Probe, ProbeProtocol},
        generate::{Scenario, Size},
        matrix::{Runner, Verdict},
        naive::{Actor, ActorKind, Attempt},
        second::SecondReading,
    },
};
use datapath_user::policy::{
    Document, HostToLocal, Labels, OwnNode, PolicyMode, PolicySettings, source,
};
use fastrand::Rng;
use util::{OrPanic, cases::chosen_tunnel, lab_name};

/// How many sets; without it, a few.
const SETS: &str = "DATAPATH_RANDOM_POLICIES";
const FEW: usize = 3;
/// The first of them.
const SEED: &str = "DATAPATH_RANDOM_POLICIES_SEED";
/// Cells of a set.
const CELLS: usize = 80;

/// A scenario as a case, and its documents.
struct Stage {
    case: Case,
    documents: Vec<Document>,
}

/// What was seen of all sets.
#[derive(Debug, Default)]
struct Tally {
    sets: usize,
    allowed: usize,
    denied: usize,
    wrong: String,
}

#[test]
fn random_policies_do_what_a_second_reading_of_them_says() {
    let mut tally = Tally::default();
    let stages = number(SETS).map_or_else(alike, |sets| {
        assert!(sets > 0, "{SETS}: none would show nothing");
        let mut stages = all()
            .take(usize::try_from(sets).unwrap())
            .collect::<Vec<_>>();
        // Those with the same nodes are next to each other: programs are loaded for the first of
        // them only, and that takes longer than the rest.
        stages.sort_by_key(|(_, stage)| stage.nodes());
        stages
    });
    tally.run(PolicySettings::default(), &stages);
    tally.check();
}

#[test]
fn random_policies_do_so_where_policy_is_understood_otherwise() {
    let strictest = PolicySettings {
        mode: PolicyMode::Always,
        own_node: OwnNode::Policy,
        host_to_local: HostToLocal::Policy,
        ..PolicySettings::default()
    };
    let mode = |mode| PolicySettings {
        mode,
        ..PolicySettings::default()
    };
    let mut all = vec![strictest];
    if number(SETS).is_some() {
        all.extend([
            mode(PolicyMode::Always),
            mode(PolicyMode::Never),
            PolicySettings {
                mode: PolicyMode::Default,
                ..strictest
            },
        ]);
    }
    let (mut tally, stages) = (Tally::default(), alike());
    for settings in all {
        tally.run(settings, &stages);
    }
    tally.check();
}

impl Tally {
    /// Sends the cells of all sets, on nodes that understand policy in this way.
    fn run(&mut self, settings: PolicySettings, stages: &[(u64, Stage)]) {
        let runner = Runner::new(lab_name("random"), chosen_tunnel());
        let mut runner = runner.with_settings(settings);
        for (seed, Stage { case, documents }) in stages {
            let second = SecondReading::under(documents.clone(), case).with_settings(settings);
            let cells = cells(*seed, case, &second);
            let started = Instant::now();
            let matrix = runner.run_under(documents.clone(), case, &cells).or_panic();
            println!("set {seed}: {:.1?}", started.elapsed());
            self.sets += 1;
            let before = self.wrong.len();
            for cell in &matrix.cells {
                let expected = if second.passes(&cell.id).unwrap() {
                    self.allowed += 1;
                    Verdict::Allow
                } else {
                    self.denied += 1;
                    Verdict::Deny
                };
                if cell.verdict != expected || cell.doubtful {
                    let (id, seen, detail) = (&cell.id, cell.verdict, &cell.detail);
                    writeln!(
                        self.wrong,
                        "seed {seed}: {id}: expected {expected}, seen {seen} ({detail})"
                    )
                    .unwrap();
                }
            }
            if self.wrong.len() != before {
                writeln!(self.wrong, "{settings:#?}\n{documents:#?}").unwrap();
            }
        }
    }

    #[track_caller]
    fn check(&self) {
        let Self {
            sets,
            allowed,
            denied,
            wrong,
        } = self;
        println!("{sets} sets: {allowed} cells allowed, {denied} denied");
        assert!(wrong.is_empty(), "{wrong}");
        assert!(
            *allowed > 0 && *denied > 0,
            "{allowed} allowed, {denied} denied"
        );
    }
}

/// All sets there are.
fn all() -> impl Iterator<Item = (u64, Stage)> {
    let first = number(SEED).unwrap_or(1);
    (first..).map(|seed| (seed, Stage::new(seed)))
}

/// A few sets whose nodes are alike.
fn alike() -> Vec<(u64, Stage)> {
    let mut all = all().peekable();
    let nodes = all.peek().map(|(_, stage)| stage.nodes());
    let alike = all.filter(|(_, stage)| Some(stage.nodes()) == nodes);
    alike.take(FEW).collect()
}

/// What a variable of the environment says, in digits.
fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.parse().expect(variable))
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
            documents: scenario.rulebook.documents,
        };
        let mut outside: BTreeMap<Family, Vec<IpAddr>> = BTreeMap::new();
        for (index, actor) in scenario.actors.iter().enumerate() {
            match actor.kind {
                ActorKind::Host => stage.add_node(1, actor),
                ActorKind::RemoteNode => stage.add_node(2, actor),
                ActorKind::Pod => stage.add_pod(index, actor),
                ActorKind::Outside(address) => {
                    let family = Family::of(address);
                    outside.entry(family).or_default().push(address);
                }
            }
        }
        // An address is one host in a scenario; here a host has one of each family.
        let most = outside.values().map(Vec::len).max().unwrap_or_default();
        for number in 0..most {
            let addresses = outside.values().filter_map(|all| all.get(number));
            stage.case.hosts.push(ExternalHost {
                name: format!("out{number}"),
                addresses: addresses.copied().collect(),
                line: 1,
            });
        }
        stage
    }

    /// What its nodes differ by from those of others.
    fn nodes(&self) -> Vec<BTreeMap<String, String>> {
        let nodes = self.case.nodes.iter();
        nodes.map(|node| node.labels.clone()).collect()
    }

    fn add_node(&mut self, number: u16, actor: &Actor) {
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
        self.case.nodes.push(node);
    }

    fn add_pod(&mut self, index: usize, actor: &Actor) {
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
        self.case.pods.push(pod);
    }
}

/// Picks cells of all sorts, between ends that have addresses of the family.
fn cells(seed: u64, case: &Case, second: &SecondReading<'_>) -> Vec<CellId> {
    let mut random = Rng::with_seed(seed);
    let pods = case.pods.iter().map(Pod::id);
    let hosts = case.hosts.iter().map(ExternalHost::id);
    let nodes = case.nodes.iter().map(Node::id);
    let pods: Vec<_> = pods.collect();
    let others: Vec<_> = hosts.chain(nodes).collect();
    let mut cells = BTreeSet::new();
    while cells.len() < CELLS {
        let one = random.choice(&pods).unwrap().clone();
        let others = if random.bool() { &pods } else { &others };
        let other = random.choice(others).unwrap().clone();
        let Some(((protocol, port), family)) = family(Scenario::attempt(&mut random), &mut random)
        else {
            continue;
        };
        let (source, destination) = if random.bool() {
            (one, other)
        } else {
            (other, one)
        };
        let cell = CellId {
            source,
            destination,
            family,
            protocol,
            port,
            http: None,
        };
        if cell.source != cell.destination && second.passes(&cell).is_some() {
            cells.insert(cell);
        }
    }
    cells.into_iter().collect()
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
