//! Real connections between real pods, as `dpctl watch` prints what policy says of them. Needs root.

use std::{
    net::SocketAddr,
    process,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, lpm_trie::Key};
use datapath_conformance::{
    family::Family,
    netns::Namespace,
    paths::{self, InProcess},
    probe::{EchoServer, Options, TcpSession},
    topology::{Fabric, NodePlan, Plan},
};
use datapath_kern::abi::{
    endpoint::Endpoint,
    flow::verdict,
    metric::Direction,
    policy::{PeerKey, PortKey, PortVerdict, matched, word},
};
use datapath_tools::api::{EventView, Item, Node};
use datapath_user::{Config, Datapath, EventKind, Events, Verdicts};

use super::{events::watched, memory::Server};

/// For what comes in milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a connection that must not come about is tried.
const TRIED: Duration = Duration::from_millis(300);
const ALLOWED: u16 = 8080;
const DENIED: u16 = 8081;

/// Two pods of one node, and the policy in force.
struct Scene {
    fabric: Fabric,
    datapaths: InProcess,
}

impl Scene {
    fn new(verdicts: Verdicts) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("dpv{}-{number}", process::id());
        let plan = Plan::new(name.parse().unwrap()).with_nodes(1, NodePlan::default());
        let fabric = Fabric::build(plan).unwrap();
        let told = |config: &mut Config| config.verdicts = verdicts;
        let datapaths = InProcess::with(&fabric, Family::Ipv4, told).unwrap();
        Self { fabric, datapaths }
    }

    fn pod(&self, number: u8) -> &Namespace {
        &self.fabric.node(1).unwrap().pods()[usize::from(number) - 1]
    }

    fn identity(&self, id: &str) -> u32 {
        let endpoints = |datapath: &Datapath| Ok(datapath.endpoints());
        let endpoints = self.datapaths.inside(0, endpoints).unwrap();
        let found = endpoints.iter().find(|endpoint| endpoint.id == id);
        found.unwrap().identity
    }
}

/// Reads events until one is as wanted; pods' stacks send all sorts of things besides.
fn read_until(events: &mut Events, wanted: impl Fn(&EventView) -> bool) -> Vec<EventView> {
    let deadline = Instant::now() + PATIENCE;
    let mut all = Vec::new();
    while Instant::now() < deadline {
        all.extend(events.read(64));
        if all.iter().any(&wanted) {
            return all;
        }
        events.wait(Some(Duration::from_millis(100))).unwrap();
    }
    panic!("no such event among {all:#?}");
}

#[test]
fn connections_read_as_hubble_prints_them() {
    let scene = Scene::new(Verdicts::Judged);
    scene.datapaths.inside(0, enforce).unwrap();
    let mut events = scene.datapaths.inside(0, Datapath::events).unwrap();
    let _echo = EchoServer::start(scene.pod(2), &[ALLOWED, DENIED], &[]).unwrap();
    let [client, server] = ["n1p1", "n1p2"].map(|id| scene.identity(id));
    for (family, ports) in [
        (Family::Ipv4, [40_001, 40_002]),
        (Family::Ipv6, [40_003, 40_004]),
    ] {
        let [from, to] = [1, 2].map(|pod| paths::pod_address(1, pod, family));
        let connect = |own: u16, port: u16, timeout: Duration| {
            let options = Options::default()
                .with_source(SocketAddr::new(from, own))
                .with_timeout(timeout);
            TcpSession::connect(scene.pod(1), SocketAddr::new(to, port), &options)
        };
        let session = connect(ports[0], ALLOWED, PATIENCE).unwrap();
        session.close().unwrap();
        connect(ports[1], DENIED, TRIED).unwrap_err();
        let all = read_until(&mut events, |event| {
            event.source.port == Some(ports[1])
                && event.reason == "Policy denied"
                && event.policy.is_none()
        });
        let api = Server::start();
        let items = all.into_iter().map(|event| Item::Event(Box::new(event)));
        api.node.feed().publish(items);
        let seen = |own: u16, more: &[&str]| -> Vec<String> {
            let own = format!("--from-port={own}");
            let lines = watched(
                &api,
                &[&["--all", own.as_str(), "--to-pod=n1p2"], more].concat(),
            );
            let time = "Nov 21 06:30:00.123: ".len();
            lines.iter().map(|line| line[time..].to_owned()).collect()
        };
        let ends = |own: u16, arrow: &str, port: u16| {
            format!("n1p1:{own} (ID:{client}) {arrow} n1p2:{port} (ID:{server})")
        };
        let allowed = ends(ports[0], "->", ALLOWED);
        let denied = ends(ports[1], "<>", DENIED);
        assert_eq!(
            seen(ports[0], &[]),
            [format!(
                "{allowed} policy-verdict:L3-L4 INGRESS ALLOWED (TCP Flags: SYN)"
            )]
        );
        // The kernel of the client may have tried again, which is dropped and nothing new.
        assert_eq!(
            seen(ports[1], &[])[..2],
            [
                format!("{denied} policy-verdict:none INGRESS DENIED (TCP Flags: SYN)"),
                format!("{denied} Policy denied DROPPED (TCP Flags: SYN)"),
            ]
        );
    }
    let counts = scene.datapaths.inside(0, Datapath::policy_counts).unwrap();
    let ingress = |verdict: &str| {
        let mut of = counts.iter();
        let found = of.find(|count| count.direction == "ingress" && count.verdict == verdict);
        found.map(|count| count.flows)
    };
    assert_eq!(ingress("allowed"), Some(2));
    assert!(ingress("denied") >= Some(2), "{counts:?}");
    drop(events);
    scene.datapaths.stop().unwrap();
}

#[test]
fn flows_that_need_no_rule_are_told_when_asked_for() {
    for (verdicts, wanted) in [
        (Verdicts::None, &[][..]),
        (Verdicts::All, &["egress", "ingress"]),
    ] {
        let scene = Scene::new(verdicts);
        let mut events = scene.datapaths.inside(0, Datapath::events).unwrap();
        let _echo = EchoServer::start(scene.pod(2), &[ALLOWED], &[]).unwrap();
        let [from, to] = [1, 2].map(|pod| paths::pod_address(1, pod, Family::Ipv4));
        let options = Options::default()
            .with_source(SocketAddr::new(from, 40_001))
            .with_timeout(PATIENCE);
        let to = SocketAddr::new(to, ALLOWED);
        let session = TcpSession::connect(scene.pod(1), to, &options).unwrap();
        // Verdicts are told before the packet goes on.
        let told = events.read(usize::MAX);
        let of_flow = told.iter().filter(|event| {
            event.kind == EventKind::PolicyVerdict && event.source.port == Some(40_001)
        });
        let directions: Vec<_> = of_flow.map(|event| event.direction.as_str()).collect();
        assert_eq!(directions, wanted, "{verdicts:?}");
        session.close().unwrap();
        drop(events);
        scene.datapaths.stop().unwrap();
    }
}

/// Lets the first pod begin TCP flows with port [`ALLOWED`] of the second one, and nobody else
/// anything; written into the maps as they are.
fn enforce(datapath: &Datapath) -> Result<(), datapath_user::Error> {
    const SET: u32 = 5;
    const CLASS: u32 = 9;
    let maps = datapath.config().bpffs.join("maps");
    let open = |name: &str| {
        let data = MapData::from_pin(maps.join(name)).unwrap();
        Map::from_map_data(data).unwrap()
    };
    let mut peers: HashMap<_, PeerKey, u32> = open("policy_peers").try_into().unwrap();
    let client = PeerKey::new(SET, Direction::Ingress, paths::pod_identity(1, 1));
    peers.insert(client, CLASS, 0).unwrap();
    let mut ports: LpmTrie<_, PortKey, PortVerdict> = open("policy_ports").try_into().unwrap();
    let port = PortKey {
        class: CLASS,
        protocol: 6,
        port: ALLOWED.into(),
        ..PortKey::default()
    };
    let allow = PortVerdict {
        rule_id: 77,
        verdict: verdict::ALLOW,
        matched: matched::L3_L4,
        ..PortVerdict::default()
    };
    let key = Key::new(PortKey::PORT_BITS, port);
    ports.insert(&key, allow, 0).unwrap();
    let mut endpoints: Array<_, Endpoint> = open("endpoints").try_into().unwrap();
    let server = datapath
        .endpoints()
        .into_iter()
        .find(|endpoint| endpoint.id == "n1p2");
    let slot = server.unwrap().slot.into();
    let mut endpoint = endpoints.get(&slot, 0).unwrap();
    endpoint.policy = word::INGRESS | SET;
    endpoints.set(slot, endpoint, 0).unwrap();
    Ok(())
}
