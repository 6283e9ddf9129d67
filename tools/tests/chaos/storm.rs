//! Kills the agent, starts it again, and looks at what it made of what it found.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use datapath_conformance::{family::Family, netns::Namespace, topology::plan};
use datapath_tools::api::{Client, EndpointView, PeerSpec, PeerView, RemotePod};
use datapath_tunnel::netlink::Route;
use datapath_user::PROGRAMS;
use ipnet::IpNet;
use serde_json::Value;

use crate::{
    agent::{Agent, kill_stranger},
    chance::Chance,
    object,
    pods::Pods,
    rig::Lab,
    tale::Teller,
};

/// How long a change of a peer takes, about: kills come within.
const CHANGE: Duration = Duration::from_millis(20);
/// How long an agent that just runs is let.
const RUN: Duration = Duration::from_millis(100);
/// Links of a node without pods: two each of the uplink and the gateway pair.
const OWN_LINKS: usize = 4;

/// When a kill comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    Running,
    Starting,
    Adding,
    Removing,
    ChangingPeer,
}

const MOMENTS: [Moment; 5] = [
    Moment::Running,
    Moment::Starting,
    Moment::Adding,
    Moment::Removing,
    Moment::ChangingPeer,
];

/// A lab whose first node has a hard life.
pub(crate) struct Storm {
    // Dropped in this order: the agent before what it runs in.
    agent: Option<Agent>,
    teller: Option<Teller>,
    pub(crate) pods: Pods,
    namespaces: BTreeMap<String, Namespace>,
    pub(crate) node: Namespace,
    pub(crate) outside: Namespace,
    pub(crate) fabric: Namespace,
    lab: Lab,
    client: Client,
    chance: Chance,
    /// Endpoints that nobody touches, of both nodes.
    stable: BTreeMap<String, EndpointView>,
    /// Pods that come and go and are there now, by their place among [`Pods`].
    present: BTreeSet<usize>,
    /// The one whose addition or removal the last kill interrupted.
    unsure: Option<usize>,
    /// The other node, as this one was told of it.
    second: PeerSpec,
    /// Whether there is a third one, as far as this one was told.
    third_is_there: bool,
    /// The configuration with the built-in object.
    config: String,
    starts: u32,
    /// Of the programs that run.
    numbers: BTreeSet<String>,
    /// Of the programs of either object.
    tags: [BTreeSet<String>; 2],
    /// How long starts took that had their programs verified, and those that kept the programs.
    ready: [Vec<Duration>; 2],
    last_start: Duration,
    kills: BTreeMap<Moment, usize>,
    half_done: usize,
    /// How long the last addition took that was not interrupted: kills come within about as long.
    addition: Duration,
}

impl Storm {
    /// Brings the lab up and takes over its first agent.
    pub(crate) fn gather() -> Self {
        let chance = Chance::seeded();
        let (lab, _) = Lab::up(&[]);
        let namespace = |name: &str| Namespace::open(&format!("{}-{name}", lab.name())).unwrap();
        let node = namespace("n1");
        // As on a node in earnest: what the programs let slip would be sent on by the kernel.
        for key in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
            node.set_sysctl(key, "1").unwrap();
        }
        let mut stable = BTreeMap::new();
        for name in ["n1", "n2"] {
            for view in lab.client(name).endpoints().unwrap() {
                stable.insert(view.id.clone(), view);
            }
        }
        let pods = ["n1p1", "n1p2", "n2p1", "n2p2"];
        let path = lab.directory("n1").join("agent.toml");
        let config = fs::read_to_string(path).unwrap();
        // An address goes to the next pod at once: what the last one had left would be for it.
        let config = config
            .replace("\"remove\"", "\"leave\"")
            .replace("address_cooldown_s = 60", "address_cooldown_s = 0");
        assert!(config.contains("address_cooldown_s = 0") && config.contains("\"leave\""));
        let outside = namespace("ext");
        let teller = Teller::start(&outside, plan::outside_address(Family::Ipv4));
        object::write_other(&lab.directory("n1").join("other.o"));
        let mut storm = Self {
            agent: None,
            teller: Some(teller),
            pods: Pods::new(&lab),
            namespaces: pods.map(|name| (name.to_owned(), namespace(name))).into(),
            node,
            outside,
            fabric: namespace("fabric"),
            client: lab.client("n1"),
            chance,
            second: second_node(&stable),
            third_is_there: false,
            stable,
            present: BTreeSet::new(),
            unsure: None,
            config,
            starts: 0,
            numbers: BTreeSet::new(),
            tags: Default::default(),
            ready: [Vec::new(), Vec::new()],
            last_start: Duration::ZERO,
            kills: BTreeMap::new(),
            half_done: 0,
            addition: CHANGE,
            lab,
        };
        kill_stranger(storm.lab.agent("n1"));
        storm.start();
        storm.check();
        storm
    }

    /// How often the agent was killed since.
    pub(crate) fn kills(&self) -> usize {
        self.kills.values().sum()
    }

    /// Kills the agent at the next moment, starts it again at once, and checks what it has.
    pub(crate) fn strike(&mut self) {
        let moment = MOMENTS[self.kills() % MOMENTS.len()];
        match moment {
            Moment::Running => {
                thread::sleep(self.chance.within(RUN));
                self.kill(moment);
            }
            Moment::Starting => {
                self.agent.take().unwrap().kill();
                self.spawn();
                thread::sleep(self.chance.within(self.last_start));
                self.kill(moment);
            }
            Moment::Adding => self.kill_while_adding(),
            Moment::Removing => self.kill_while_removing(),
            Moment::ChangingPeer => self.kill_while_changing_peer(),
        }
        self.start();
        self.check();
    }

    /// Says what came of it.
    pub(crate) fn settle(mut self) {
        println!("{:?}, {} changes half done", self.kills, self.half_done);
        for (what, mut spans) in ["verified", "kept"].into_iter().zip(self.ready) {
            spans.sort();
            let count = spans.len();
            assert!(count > 0, "no start had its programs {what}");
            println!(
                "from start to reconciled, programs {what}: median {:?}, worst {:?} of {count}",
                spans[count / 2],
                spans[count - 1],
            );
        }
        for metric in self.client.metrics().unwrap() {
            println!(
                "{} {}: {}",
                metric.direction, metric.outcome, metric.packets
            );
        }
        self.teller.take().unwrap().end();
    }

    /// The namespace of a pod that nobody touches.
    pub(crate) fn namespace(&self, pod: &str) -> &Namespace {
        &self.namespaces[pod]
    }

    /// The addresses of a pod that nobody touches.
    pub(crate) fn addresses(&self, pod: &str) -> &[IpAddr] {
        &self.stable[pod].addresses
    }

    /// The gateway as pods see it.
    pub(crate) fn gateway_mac(&self) -> [u8; 6] {
        let text = self.client.status().unwrap().datapath.gateway_mac;
        let bytes: Vec<_> = text
            .split(':')
            .map(|byte| u8::from_str_radix(byte, 16).unwrap())
            .collect();
        bytes.try_into().unwrap()
    }

    fn kill(&mut self, moment: Moment) {
        self.agent.take().unwrap().kill();
        *self.kills.entry(moment).or_default() += 1;
    }

    /// Starts the agent, every other time with the other object.
    fn spawn(&mut self) {
        self.starts += 1;
        let directory = self.lab.directory("n1");
        let mut config = self.config.clone();
        if self.has_other_object() {
            let other = directory.join("other.o");
            let object = format!("[datapath]\nobject = \"{}\"\n", other.display());
            config = config.replace("[datapath]\n", &object);
            assert!(config.contains("other.o"));
        }
        fs::write(directory.join("agent.toml"), config).unwrap();
        self.agent = Some(Agent::start(&self.lab, &self.node, "n1"));
    }

    /// Whether the agent's last start was with the other object. Two in a row are with the same, so
    /// that the second one can keep the programs.
    fn has_other_object(&self) -> bool {
        (self.starts / 2).is_multiple_of(2)
    }

    /// Starts the agent and waits until it is ready.
    fn start(&mut self) {
        self.spawn();
        let agent = self.agent.as_mut().unwrap();
        let span = agent.wait_ready();
        let programs = agent.programs();
        let log = agent.log();
        // All of them verified anew, or none: those of the last start, where they are the same.
        let same = programs.numbers == self.numbers;
        assert!(same || programs.numbers.is_disjoint(&self.numbers), "{log}");
        self.last_start = span;
        self.ready[usize::from(same)].push(span);
        let has_other = self.has_other_object();
        let [one, other] = &mut self.tags;
        let (own, others) = if has_other {
            (other, one)
        } else {
            (one, other)
        };
        // As many as there are programs, and no instruction of the other object's is left.
        assert_eq!(programs.tags.len(), PROGRAMS.len(), "{log}");
        assert!(programs.tags.is_disjoint(others), "{log}");
        assert!(own.is_empty() || programs.tags == *own, "{log}");
        *own = programs.tags;
        self.numbers = programs.numbers;
    }

    /// Kills the agent while a request to it is under way; tells whether it was answered well.
    fn kill_during(
        &mut self,
        moment: Moment,
        span: Duration,
        request: impl FnOnce(&Client) -> bool + Send + 'static,
    ) -> bool {
        let client = self.client.clone();
        let asking = thread::spawn(move || request(&client));
        thread::sleep(self.chance.within(span));
        self.kill(moment);
        let answered = asking.join().unwrap();
        self.half_done += usize::from(!answered);
        answered
    }

    fn kill_while_adding(&mut self) {
        let index = self.chance.below(self.pods.len());
        self.make_room(index);
        self.pods.comes(index);
        let spec = self.pods.get(index).spec().clone();
        let request = move |client: &Client| client.add_endpoint(&spec).is_ok();
        if self.kill_during(Moment::Adding, self.addition * 2, request) {
            self.present.insert(index);
        } else {
            self.unsure = Some(index);
        }
    }

    fn kill_while_removing(&mut self) {
        let index = self.chance.below(self.pods.len());
        if !self.present.contains(&index) {
            self.make_room(index);
            self.pods.comes(index);
            let spec = self.pods.get(index).spec();
            let begun = Instant::now();
            self.client.add_endpoint(spec).unwrap();
            self.addition = begun.elapsed();
            self.present.insert(index);
            let teller = self.teller.as_ref().unwrap();
            self.pods.is_there(index, teller);
        }
        let id = self.pods.get(index).spec().id.clone();
        let request = move |client: &Client| client.remove_endpoint(&id).is_ok();
        if self.kill_during(Moment::Removing, self.addition, request) {
            self.present.remove(&index);
        } else {
            self.unsure = Some(index);
        }
    }

    /// Removes a pod, and whoever has its addresses.
    fn make_room(&mut self, index: usize) {
        let addresses = &self.pods.get(index).spec().addresses;
        let in_the_way = |other: &usize| self.pods.get(*other).spec().addresses == *addresses;
        let holders: Vec<_> = self.present.iter().copied().filter(in_the_way).collect();
        for holder in holders {
            let id = &self.pods.get(holder).spec().id;
            self.client.remove_endpoint(id).unwrap();
            self.present.remove(&holder);
            self.pods.has_gone(holder);
        }
    }

    /// Kills while the other node gets or loses a pod and a range, or while a third one comes or
    /// goes.
    fn kill_while_changing_peer(&mut self) {
        if self.chance.below(2) == 0 {
            let range = "10.245.2.0/24".parse().unwrap();
            let pod = RemotePod::new("10.245.2.9".parse().unwrap(), Some(2009));
            if self.second.pod_cidrs.contains(&range) {
                self.second.pod_cidrs.retain(|known| *known != range);
                self.second.pods.retain(|known| *known != pod);
            } else {
                self.second.pod_cidrs.push(range);
                self.second.pods.push(pod);
            }
            let second = self.second.clone();
            let request = move |client: &Client| client.put_peer(&second).is_ok();
            self.kill_during(Moment::ChangingPeer, CHANGE, request);
        } else {
            self.third_is_there = !self.third_is_there;
            let there = self.third_is_there;
            let request = move |client: &Client| {
                if there {
                    client.put_peer(&third_node()).is_ok()
                } else {
                    client.remove_peer("n3").is_ok()
                }
            };
            self.kill_during(Moment::ChangingPeer, CHANGE, request);
        }
    }

    /// Checks that the agent, its store, the kernel's tables and the network say the same, that
    /// what was asked for and done is so, and that it works.
    fn check(&mut self) {
        let log = self.agent.as_ref().unwrap().log();
        let endpoints = self.client.endpoints().unwrap();
        for (id, view) in self.stable.iter().filter(|(id, _)| id.starts_with("n1")) {
            assert!(endpoints.contains(view), "{id} in {endpoints:#?}\n{log}");
        }
        for index in 0..self.pods.len() {
            let id = &self.pods.get(index).spec().id;
            let there = endpoints.iter().any(|endpoint| endpoint.id == *id);
            if self.unsure != Some(index) {
                assert_eq!(self.present.contains(&index), there, "{id}\n{log}");
            }
            assert_eq!(self.pods.get(index).is_wired(), there, "{id}\n{log}");
            if there {
                self.present.insert(index);
                self.pods.is_there(index, self.teller.as_ref().unwrap());
                let others = ["n1p2", "n2p1"];
                let others = others.map(|name| (self.namespace(name), self.addresses(name)));
                if let Err(error) = self.pods.get(index).check(&others) {
                    let drops = self.client.metrics().unwrap();
                    panic!("{error}\n{drops:#?}\n{endpoints:#?}\n{log}");
                }
            } else {
                self.present.remove(&index);
                self.pods.has_gone(index);
            }
        }
        self.unsure = None;
        self.check_kernel(&endpoints, &log);
        let leases = self.client.addresses().unwrap().leases;
        let leases: BTreeSet<_> = leases
            .iter()
            .map(|lease| lease.owner.container_id().to_owned())
            .collect();
        let ids: BTreeSet<_> = endpoints.into_iter().map(|endpoint| endpoint.id).collect();
        assert_eq!(leases, ids, "{log}");
        self.check_peers(&log);
    }

    /// Checks that interfaces, links of programs and the table that programs find endpoints by are
    /// those of the endpoints.
    fn check_kernel(&self, endpoints: &[EndpointView], log: &str) {
        let known: BTreeMap<_, _> = endpoints
            .iter()
            .map(|endpoint| (endpoint.host_index, endpoint.host_interface.clone()))
            .collect();
        let links = self.node.netlink().unwrap().links().unwrap();
        let of_pods: BTreeMap<_, _> = links
            .into_iter()
            .filter(|link| link.name.starts_with("dp") && !link.name.starts_with("dp_"))
            .map(|link| (link.index, link.name))
            .collect();
        assert_eq!(of_pods, known, "{log}");
        let pins = self.lab.directory("bpf").join("n1");
        let links = fs::read_dir(pins.join("links")).unwrap().count();
        assert_eq!(links, OWN_LINKS + 2 * known.len(), "{log}");
        let slots = dump(&pins.join("maps/endpoint_slots"));
        let indices = slots
            .into_keys()
            .map(|key| u32::from_le_bytes(key.try_into().unwrap()));
        assert_eq!(
            indices.collect::<Vec<_>>(),
            known.into_keys().collect::<Vec<_>>()
        );
    }

    /// Checks that the other node stayed a peer, sees to it that peers are as wanted, and that
    /// routes lead to them and nowhere else.
    fn check_peers(&self, log: &str) {
        let names =
            |peers: Vec<PeerView>| -> Vec<_> { peers.into_iter().map(|peer| peer.name).collect() };
        let found = names(self.client.peers().unwrap());
        assert!(found.contains(&self.second.name), "{found:?}\n{log}");
        self.client.put_peer(&self.second).unwrap();
        let mut wanted = vec![self.second.clone()];
        if self.third_is_there {
            self.client.put_peer(&third_node()).unwrap();
            wanted.push(third_node());
        } else if found.contains(&third_node().name) {
            self.client.remove_peer(&third_node().name).unwrap();
        }
        let peers = self.client.peers().unwrap();
        for (peer, wanted) in peers.iter().zip(&wanted) {
            let ranges = |ranges: &[IpNet]| ranges.iter().copied().collect::<BTreeSet<_>>();
            assert_eq!(ranges(&peer.pod_cidrs), ranges(&wanted.pod_cidrs));
            assert_eq!(peer.pods, wanted.pods.len());
        }
        assert_eq!(peers.len(), wanted.len(), "{log}");
        let netlink = self.node.netlink().unwrap();
        let gateway = netlink.link("dp_host").unwrap().unwrap().index;
        let routes = netlink.routes().unwrap().into_iter();
        let routes: BTreeSet<_> = routes
            .filter(|route| route.index == Some(gateway) && route.protocol == Route::STATIC)
            .map(|route| route.destination)
            .collect();
        let own = Family::ALL.map(|family| plan::pod_cidr(1, family));
        let theirs = wanted
            .iter()
            .flat_map(|peer| peer.pod_cidrs.iter().copied());
        assert_eq!(routes, own.into_iter().chain(theirs).collect(), "{log}");
    }
}

/// What the first node is told of the second.
fn second_node(stable: &BTreeMap<String, EndpointView>) -> PeerSpec {
    let pods = stable.values().filter(|pod| pod.id.starts_with("n2"));
    let pods = pods.flat_map(|pod| {
        pod.addresses
            .iter()
            .map(|&address| RemotePod::new(address, Some(pod.identity)))
    });
    PeerSpec {
        pods: pods.collect(),
        ..node(2)
    }
}

/// A node that is not there.
fn third_node() -> PeerSpec {
    node(3)
}

fn node(number: u8) -> PeerSpec {
    PeerSpec {
        name: format!("n{number}"),
        address: plan::node_address(number, Family::Ipv4),
        node_addresses: vec![plan::node_address(number, Family::Ipv6)],
        pod_cidrs: Family::ALL
            .map(|family| plan::pod_cidr(number, family))
            .to_vec(),
        pods: Vec::new(),
        uplink: None,
        labels: BTreeMap::new(),
    }
}

/// The entries of a pinned map, as bpftool lists them.
fn dump(pin: &Path) -> BTreeMap<Vec<u8>, Value> {
    let output = Command::new("bpftool")
        .args(["--json", "map", "dump", "pinned"])
        .arg(pin)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let entries: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let byte = |text: &Value| {
        let digits = text.as_str().unwrap().strip_prefix("0x").unwrap();
        u8::from_str_radix(digits, 16).unwrap()
    };
    let bytes = |entry: &Value| entry["key"].as_array().unwrap().iter().map(byte).collect();
    entries
        .iter()
        .map(|entry| (bytes(entry), entry["value"].clone()))
        .collect()
}
