//! Real connections between real pods, as `dpctl watch` prints what policy says of them. Needs root.

use std::{
    net::SocketAddr,
    process,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use datapath_conformance::{
    family::Family,
    netns::Namespace,
    paths::{self, InProcess},
    probe::{EchoServer, Options, TcpSession},
    topology::{Fabric, NodePlan, Plan},
};
use datapath_tools::api::{EndpointSpec, EventView, Item, Node};
use datapath_user::{Config, Datapath, EventKind, Events, Verdicts, policy::document};

use super::{events::watched, memory::Server};

/// For what comes in milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a connection that must not come about is tried.
const TRIED: Duration = Duration::from_millis(300);
const ALLOWED: u16 = 8080;
const DENIED: u16 = 8081;

const POLICY: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: server
  namespace: default
spec:
  podSelector:
    matchLabels:
      app: server
  ingress:
  - from:
    - podSelector:
        matchLabels:
          app: client
    ports:
    - port: 8080
";

/// Two pods of one node.
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

    /// Calls the pods `client-1` and `server`, and puts the policy in force.
    fn enforce(&self) {
        self.call("n1p1", "client-1", "client");
        self.call("n1p2", "server", "server");
        let reading = document::read(POLICY, None);
        assert!(reading.refused.is_empty(), "{:?}", reading.refused);
        let set = |datapath: &Datapath| datapath.set_policies(reading.documents, Vec::new());
        self.datapaths.inside(0, set).unwrap();
    }

    /// Gives a pod a name and a label, and the identity that goes with that.
    fn call(&self, id: &str, name: &str, app: &str) {
        let spec = EndpointSpec {
            namespace: Some("default".to_owned()),
            name: Some(name.to_owned()),
            labels: [("app".to_owned(), app.to_owned())].into(),
            ..EndpointSpec::default()
        };
        let call = |datapath: &Datapath| datapath.set_endpoint_labels(id, &spec);
        self.datapaths.inside(0, call).unwrap();
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
    scene.enforce();
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
                &[&["--all", own.as_str(), "--to-pod=default/server"], more].concat(),
            );
            let time = "Nov 21 06:30:00.123: ".len();
            lines.iter().map(|line| line[time..].to_owned()).collect()
        };
        let ends = |own: u16, arrow: &str, port: u16| {
            format!(
                "default/client-1:{own} (ID:{client}) {arrow} default/server:{port} (ID:{server})"
            )
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
        let named = seen(
            ports[0],
            &["--policy=default/server", "--print-policy-names"],
        );
        let by = "policy-verdict:L3-L4 INGRESS ALLOWED BY server (NetworkPolicy)";
        assert_eq!(named, [format!("{allowed} {by} (TCP Flags: SYN)")]);
        let labelled = ["--from-label=app=client", "--to-label=k8s:app=server"];
        assert_eq!(seen(ports[0], &labelled).len(), 1);
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
