//! Policies replaced under load: what is always allowed loses nothing, what never is gets nothing
//! through, whatever the documents are in between. `DATAPATH_POLICY_REPLACEMENTS` says how often.
//! Needs root.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "it is all tests; how far it is"
)]

#[allow(dead_code, reason = "every test binary uses its own part")]
#[path = "bypass/cast.rs"]
mod cast;
mod util;
#[allow(dead_code, reason = "every test binary uses its own part")]
#[path = "bypass/wire.rs"]
mod wire;

use std::{
    collections::BTreeMap,
    env,
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread::{self, Scope, ScopedJoinHandle},
    time::{Duration, Instant},
};

use cast::{CLIENTS, INTRUDERS, Who, documents, name_pods};
use datapath_conformance::{
    family::Family,
    netns::Namespace,
    paths::{InProcess, NodeView as _},
    probe::{self, EchoServer, Options, RawPort, TcpSession, UdpSession},
    topology::{Fabric, NodePlan, Plan, plan::UPLINK},
};
use datapath_kern::verdict::DropReason;
use util::{OrPanic as _, at, gateway_mac, lab_name, tool::nft};
use wire::{ACK, Ends, PSH, SYN, TCP, UDP};

/// How often; without it, less often than that.
const REPLACEMENTS: &str = "DATAPATH_POLICY_REPLACEMENTS";
const FEW: u64 = 100;
/// What comes takes microseconds.
const PATIENCE: Duration = Duration::from_mins(1);
/// Ports of the server: one that clients may always have, and one that nobody ever may.
const OPEN: u16 = 80;
const CLOSED: u16 = 81;

/// Documents of a round. They are unlike, but for this: clients may have the server's 80, and nothing
/// else; what others of these pods want of it is denied.
fn rules(round: u64) -> String {
    let meta = |kind: &str, name: &str| {
        let version = match kind {
            "NetworkPolicy" => "networking.k8s.io/v1",
            _ => "cilium.io/v2",
        };
        let namespace = match kind {
            "CiliumClusterwideNetworkPolicy" => "",
            _ => ", namespace: shop",
        };
        format!("---\napiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}{namespace}}}\n")
    };
    let server = match round % 5 {
        // By ports, of pods with a label.
        0 => {
            meta("NetworkPolicy", "server")
                + "spec:
  podSelector: {matchLabels: {role: server}}
  ingress:
    - from: [{podSelector: {matchLabels: {role: client}}}]
      ports: [{port: 80}, {port: 80, protocol: UDP}]
"
        }
        // Beside prefixes, with holes.
        1 => {
            meta("CiliumNetworkPolicy", "web")
                + "spec:
  endpointSelector: {matchLabels: {role: server}}
  ingress:
    - fromEndpoints: [{matchLabels: {role: client}}]
      toPorts: [{ports: [{port: '80', protocol: ANY}]}]
    - fromCIDRSet: [{cidr: 203.0.113.0/24, except: [203.0.113.128/25]}]
      toPorts: [{ports: [{port: '443', protocol: TCP}]}]
"
        }
        // Everything but what is denied.
        2 => {
            meta("CiliumNetworkPolicy", "web")
                + "spec:
  endpointSelector: {matchLabels: {role: server}}
  ingress:
    - fromEndpoints: [{matchLabels: {role: client}}]
  ingressDeny:
    - fromEndpoints: [{matchLabels: {role: client}}]
      toPorts: [{ports: [{port: '81', protocol: ANY}]}]
    - fromEndpoints: [{matchLabels: {role: intruder}}]
"
        }
        // By ranges, of whoever is left; and of everyone also what he sends.
        3 => {
            meta("NetworkPolicy", "server")
                + "spec:
  podSelector: {matchLabels: {role: server}}
  ingress:
    - from:
        - podSelector:
            matchExpressions: [{key: role, operator: NotIn, values: [intruder, server, nobody]}]
      ports: [{port: 75, endPort: 80}, {port: 75, endPort: 80, protocol: UDP}]
" + &meta("NetworkPolicy", "everyone")
                + "spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
" + &meta("NetworkPolicy", "clients")
                + "spec:
  podSelector: {matchLabels: {role: client}}
  policyTypes: [Egress]
  egress:
    - to: [{podSelector: {matchLabels: {role: server}}}]
      ports: [{port: 80}, {port: 80, protocol: UDP}]
"
        }
        // For the whole cluster.
        _ => {
            meta("CiliumClusterwideNetworkPolicy", "web")
                + "spec:
  endpointSelector: {matchLabels: {role: server}}
  ingress:
    - fromEndpoints: [{matchLabels: {role: client}}]
      toPorts: [{ports: [{port: '80', protocol: TCP}, {port: '80', protocol: UDP}]}]
"
        }
    };
    // And prefixes that come and go.
    let filler = format!(
        "spec:
  podSelector: {{matchLabels: {{role: nobody}}}}
  ingress:
    - from: [{{ipBlock: {{cidr: 100.64.{}.0/24}}}}, {{ipBlock: {{cidr: 'fd99:{:x}::/32'}}}}]
      ports: [{{port: {}}}]
",
        round % 251,
        round % 4099,
        1000 + round % 5000
    );
    server + &meta("NetworkPolicy", "filler") + &filler
}

/// Two nodes under load.
struct Lab {
    // In the order in which they go.
    _server: EchoServer,
    datapaths: InProcess,
    fabric: Fabric,
}

impl Lab {
    fn start() -> Self {
        let node = NodePlan {
            pods: 4,
            ..NodePlan::default()
        };
        let plan = Plan::new(lab_name("churn")).with_nodes(2, node);
        let fabric = Fabric::build(plan).or_panic();
        let datapaths = InProcess::with(&fabric, Family::Ipv4, |config| {
            // Every round begins flows, which nobody clears away while it lasts.
            config.max_flows = Some(1 << 16);
            config.max_pending = Some(1 << 16);
        })
        .or_panic();
        name_pods(&fabric, &datapaths, None);
        let ports = [OPEN, CLOSED];
        let server = namespace(&fabric, Who::Server);
        let lab = Self {
            _server: EchoServer::start(server, &ports, &ports).or_panic(),
            datapaths,
            fabric,
        };
        lab.enforce(0);
        lab
    }

    /// Puts the documents of a round in force, on one node after the other; how long that took on
    /// each, microseconds.
    fn enforce(&self, round: u64) -> [u64; 2] {
        let text = rules(round);
        [0, 1].map(|node| {
            let documents = documents(&text);
            let set =
                |datapath: &datapath_user::Datapath| datapath.set_policies(documents, Vec::new());
            self.datapaths.inside(node, set).or_panic().took_us
        })
    }

    fn drops(&self) -> BTreeMap<String, u64> {
        let mut all = BTreeMap::new();
        for node in 0..2 {
            for (reason, count) in self.datapaths.drops(node).or_panic() {
                *all.entry(reason).or_default() += count;
            }
        }
        // Pods' stacks look for routers and tell of their groups.
        all.remove(DropReason::Multicast.label());
        all
    }
}

fn namespace(fabric: &Fabric, who: Who) -> &Namespace {
    let (node, pod) = who.pod().unwrap();
    &fabric.node(node).or_panic().pods()[usize::from(pod) - 1]
}

/// Counters in the server's stack: what comes of whom to where.
struct Ears<'a>(&'a Namespace);

impl<'a> Ears<'a> {
    fn open(server: &'a Namespace) -> Self {
        let set = |family| {
            let addresses = INTRUDERS.map(|who| who.address(family).to_string());
            addresses.join(", ")
        };
        let rules = format!(
            "table inet ears {{
               counter lawful {{ }}
               counter intruders {{ }}
               counter closed {{ }}
               chain heard {{
                 type filter hook prerouting priority raw;
                 ip saddr {{ {} }} counter name intruders
                 ip6 saddr {{ {} }} counter name intruders
                 meta l4proto {{ tcp, udp }} th dport {CLOSED} counter name closed
                 meta l4proto {{ tcp, udp }} th dport {OPEN} counter name lawful
               }}
             }}",
            set(Family::Ipv4),
            set(Family::Ipv6)
        );
        nft(server, &rules);
        Self(server)
    }

    fn packets(&self, counter: &str) -> u64 {
        let mut nft = self.0.command("nft");
        let output = nft
            .args(["list", "counter", "inet", "ears", counter])
            .output();
        let text = String::from_utf8(output.unwrap().stdout).unwrap();
        let mut words = text
            .split_whitespace()
            .skip_while(|word| *word != "packets");
        words.nth(1).unwrap().parse().unwrap()
    }
}

/// What goes on beside the replacements.
struct Load<'a> {
    fabric: &'a Fabric,
    /// The round that is in force.
    round: &'a AtomicU64,
    over: &'a AtomicBool,
}

impl<'a> Load<'a> {
    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    /// Has something done again and again; `done` counts.
    fn again<'scope>(
        &'a self,
        scope: &'scope Scope<'scope, 'a>,
        done: &'a AtomicU64,
        mut work: impl FnMut() + Send + 'scope,
    ) -> ScopedJoinHandle<'scope, ()> {
        scope.spawn(move || {
            let _end = End(self.over);
            while self.goes_on() {
                work();
                done.fetch_add(1, Ordering::Relaxed);
            }
        })
    }

    fn namespace(&self, who: Who) -> &'a Namespace {
        namespace(self.fabric, who)
    }

    /// A connection that goes on and on.
    fn stream(&self, from: Who, family: Family) -> impl FnMut() + Send + use<> {
        let to = server(family, OPEN);
        let mut session = TcpSession::connect(self.namespace(from), to, &patient()).or_panic();
        move || {
            session.echo(20_000).or_panic();
        }
    }

    /// Numbered questions, each after the answer to the one before.
    fn questions(&self, from: Who, family: Family) -> impl FnMut() + Send + use<> {
        let to = server(family, OPEN);
        let mut session = UdpSession::open(self.namespace(from), to, &patient()).or_panic();
        move || {
            session.echo(600).or_panic();
        }
    }

    /// New connections, and questions from new ports: one of each in a round.
    fn beginnings(&'a self, from: Who) -> impl FnMut() + Send + use<'a> {
        let mut last = u64::MAX;
        move || {
            while self.goes_on() && self.round.load(Ordering::Relaxed) == last {
                thread::sleep(Duration::from_micros(500));
            }
            last = self.round.load(Ordering::Relaxed);
            for family in Family::ALL {
                let to = server(family, OPEN);
                probe::tcp_echo(self.namespace(from), to, 1000, &patient()).or_panic();
                probe::udp_echo(self.namespace(from), to, &[100], &patient()).or_panic();
            }
        }
    }

    /// What never may, by hand: each frame is dropped once.
    fn attempts(&self, from: Who, port: u16, sent: &'a AtomicU64) -> impl FnMut() + Send + use<'a> {
        let mut hand = RawPort::open(self.namespace(from), UPLINK).or_panic();
        let macs = (hand.mac(), gateway_mac(self.namespace(from)));
        let mut source = 20_000;
        move || {
            source = if source == 29_999 { 20_000 } else { source + 1 };
            for family in Family::ALL {
                let ends = Ends {
                    macs,
                    addresses: (from.address(family), Who::Server.address(family)),
                };
                let ports = (source, port);
                for flags in [SYN, ACK, PSH | ACK] {
                    hand.send(&ends.frame(TCP, &ends.tcp(ports, flags, b"never")))
                        .or_panic();
                }
                hand.send(&ends.frame(UDP, &ends.udp(ports, b"never")))
                    .or_panic();
                sent.fetch_add(4, Ordering::Relaxed);
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Ends everything where something fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn patient() -> Options {
    Options::default().with_timeout(PATIENCE)
}

fn server(family: Family, port: u16) -> SocketAddr {
    at(Who::Server.address(family), port)
}

#[test]
fn what_is_always_allowed_loses_nothing_and_what_never_is_gets_nothing() {
    let rounds = env::var(REPLACEMENTS).map_or(FEW, |text| text.parse().expect(REPLACEMENTS));
    assert!(rounds > 0, "{REPLACEMENTS}: none would show nothing");
    let lab = Lab::start();
    let ears = Ears::open(namespace(&lab.fabric, Who::Server));
    let before = lab.drops();
    let (round, over, sent) = (AtomicU64::new(0), AtomicBool::new(false), AtomicU64::new(0));
    let load = Load {
        fabric: &lab.fabric,
        round: &round,
        over: &over,
    };
    let done: [AtomicU64; 10] = Default::default();
    let started = Instant::now();
    let mut took_us = Vec::new();
    thread::scope(|scope| {
        let _end = End(&over);
        let mut counters = done.iter();
        let mut next = || counters.next().unwrap();
        for client in CLIENTS {
            load.again(scope, next(), load.stream(client, Family::Ipv4));
            load.again(scope, next(), load.questions(client, Family::Ipv6));
            load.again(scope, next(), load.beginnings(client));
            load.again(scope, next(), load.attempts(client, CLOSED, &sent));
        }
        for intruder in INTRUDERS {
            load.again(scope, next(), load.attempts(intruder, OPEN, &sent));
        }
        for number in 1..=rounds {
            took_us.extend(lab.enforce(number));
            if number % 3 == 0 {
                // One of those that have nothing to do with it.
                let instead = (number % 2 == 0).then_some((Who::Newcomer, "nobody"));
                name_pods(&lab.fabric, &lab.datapaths, instead);
            }
            round.store(number, Ordering::Relaxed);
            each_went_on(&done, &over);
        }
    });
    let elapsed = started.elapsed();
    let sent = sent.into_inner();
    let mut dropped = lab.drops();
    let deadline = Instant::now() + PATIENCE;
    let risen = |dropped: &BTreeMap<String, u64>| {
        let rise = |(reason, count): (&String, &u64)| {
            let rise = count - before.get(reason).copied().unwrap_or(0);
            (rise > 0).then(|| (reason.clone(), rise))
        };
        dropped.iter().filter_map(rise).collect::<BTreeMap<_, _>>()
    };
    while risen(&dropped).values().sum::<u64>() < sent && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
        dropped = lab.drops();
    }
    let risen = risen(&dropped);
    took_us.sort_unstable();
    println!(
        "{rounds} replacements on both nodes in {elapsed:.1?}, each {} us and at most {} us; beside them {:?} \
         exchanges and attempts, {sent} packets sent that may never be; drops: {risen:?}",
        took_us[took_us.len() / 2],
        took_us[took_us.len() - 1],
        done.map(AtomicU64::into_inner)
    );
    assert_eq!(ears.packets("intruders"), 0);
    assert_eq!(ears.packets("closed"), 0);
    assert!(ears.packets("lawful") > 0);
    // Each of them, and nothing else.
    assert_eq!(risen.values().sum::<u64>(), sent, "{risen:?}");
    let reasons = [DropReason::PolicyDenied, DropReason::PolicyDeniedByRule];
    let by_policy = |reason: &String| reasons.iter().any(|it| it.label() == reason);
    assert!(risen.keys().all(by_policy), "{risen:?}");
}

/// Waits until everyone has done something in full since.
fn each_went_on(done: &[AtomicU64], over: &AtomicBool) {
    let counts = || done.iter().map(|count| count.load(Ordering::Relaxed));
    let before: Vec<_> = counts().collect();
    let deadline = Instant::now() + PATIENCE;
    while counts().zip(&before).any(|(now, before)| now < before + 1) {
        assert!(!over.load(Ordering::Relaxed), "something failed");
        assert!(Instant::now() < deadline, "something stands still");
        thread::sleep(Duration::from_micros(500));
    }
}
