//! A flood of SYNs from one pod, at the speed of the kernel, against tables ten times too small for
//! it: established flows of other pods stay, all of them, and other pods go on connecting.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "it is all tests"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    process,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use datapath_bench::{
    Result,
    live::{Generator, Sink, Template},
};
use datapath_conformance::{
    family::Family,
    frame::forge::Place,
    netns::Namespace,
    paths::{InProcess, pod_address},
    probe::EchoServer,
    topology::{
        Fabric, NodePlan, Plan,
        plan::{UPLINK, outside_address},
    },
};
use datapath_user::{Datapath, FlowView, Tallies};

/// Entries of the established table: room for those of others, and a tenth of what the flood asks
/// for.
const MAX_FLOWS: u32 = 32_768;
/// Entries of the pending table.
const MAX_PENDING: u32 = 4096;
/// Flows that the flood asks for, by their source ports: thirty times what is pending at once.
const FLOOD: u16 = 60_000;
const FLOOD_FROM: u16 = 2000;
/// How long it lasts.
const FLOOD_TIME: Duration = Duration::from_secs(10);
/// Frames that are sent in one go.
const BURST: u32 = 20_000;
/// Between two connections of another pod: those that are closed stay in the table for ten seconds.
const PACE: Duration = Duration::from_millis(10);
/// As agents do.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Flows of two other pods each.
const FLOWS: u16 = 5000;
const FLOWS_FROM: u16 = 20_000;
/// Connections that are open all the time.
const CONNECTIONS: usize = 50;
/// Port of the servers.
const PORT: u16 = 7007;
/// How long a busy machine may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Length of a SYN without options in a frame, and of the answer of a Linux server, which has one.
const SYN_BYTES: usize = 54;
const SYN_ACK_BYTES: usize = 58;

/// One node: pod 1 floods, pods 2 and 3 have flows, pod 4 serves.
struct Lab {
    // In the order in which they go.
    _server: EchoServer,
    datapaths: InProcess,
    fabric: Fabric,
}

impl Lab {
    fn start() -> Result<Self> {
        let name = format!("dpt{}-flood", process::id());
        let pods = NodePlan {
            pods: 4,
            ..NodePlan::default()
        };
        let fabric = Fabric::build(Plan::new(name.parse()?).with_nodes(1, pods))?;
        let datapaths = InProcess::with(&fabric, Family::Ipv4, |config| {
            config.max_flows = Some(MAX_FLOWS);
            config.max_pending = Some(MAX_PENDING);
        })?;
        let server = EchoServer::start(&fabric.node(1)?.pods()[3], &[PORT], &[PORT])?;
        let lab = Self {
            _server: server,
            datapaths,
            fabric,
        };
        // What cannot be queued is answered without being remembered (the kernel's default).
        lab.pod(4).set_sysctl("net.ipv4.tcp_syncookies", "1")?;
        Ok(lab)
    }

    fn pod(&self, number: usize) -> &Namespace {
        &self.fabric.node(1).unwrap().pods()[number - 1]
    }

    fn flows(&self) -> Result<Vec<FlowView>> {
        Ok(self.datapaths.inside(0, Datapath::flows)?)
    }

    fn tallies(&self) -> Result<Tallies> {
        Ok(self.datapaths.inside(0, Datapath::tallies)?)
    }

    /// Numbers of the pairs of the established flows of pods 2 and 3, by how they began.
    fn established(&self) -> Result<BTreeMap<(String, IpAddr, u16), u32>> {
        let others = [2, 3].map(|pod| pod_address(1, pod, Family::Ipv4));
        let flows = self.flows()?.into_iter().filter(|flow| {
            flow.table == "established" && !flow.reply && others.contains(&flow.source)
        });
        Ok(flows
            .map(|flow| {
                let end = (flow.protocol, flow.source, flow.source_port);
                (end, flow.pair)
            })
            .collect())
    }

    /// Has each of a pod's UDP flows send a datagram and get it back, `times` over; the second one
    /// proves a flow.
    fn exchange(&self, pod: u8, times: usize) -> Result<()> {
        let own = pod_address(1, pod, Family::Ipv4);
        let server = SocketAddr::new(pod_address(1, 4, Family::Ipv4), PORT);
        self.pod(pod.into()).run(|| {
            for port in FLOWS_FROM..FLOWS_FROM + FLOWS {
                let socket = UdpSocket::bind((own, port)).unwrap();
                socket.connect(server).unwrap();
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                for time in 0..times {
                    let sent = [port.to_be_bytes(), [0xa5, u8::try_from(time).unwrap()]].concat();
                    socket.send(&sent).unwrap();
                    let mut got = [0; 64];
                    let length = socket.recv(&mut got).unwrap_or_else(|error| {
                        panic!("pod {pod}, port {port}: no answer: {error}");
                    });
                    assert_eq!(got[..length], sent, "pod {pod}, port {port}");
                }
            }
        })?;
        Ok(())
    }

    /// Sends SYNs in the name of pod 1 for a while; returns how many.
    fn flood(&self, to: SocketAddr) -> Result<u64> {
        let pods = self
            .datapaths
            .inside(0, |datapath| Ok(datapath.endpoints()))?;
        let node = self.fabric.node(1)?.namespace();
        let interface = &pods[0].host_interface;
        let from = Place {
            mac: self.pod(1).link(UPLINK)?.mac,
            address: SocketAddr::new(pod_address(1, 1, Family::Ipv4), FLOOD_FROM),
        };
        let gateway = Place {
            mac: node.link(interface)?.mac,
            address: to,
        };
        let template = Template::tcp_syn(from, gateway, FLOOD)?;
        assert_eq!(template.len(), SYN_BYTES);
        let generator = Generator::new(node, interface, template)?;
        let sent = node.run(|| {
            let start = Instant::now();
            let mut sent = 0;
            while start.elapsed() < FLOOD_TIME {
                generator.send(BURST)?;
                sent += u64::from(BURST);
            }
            Ok::<_, datapath_bench::Error>(sent)
        })??;
        Ok(sent)
    }

    /// Floods while another pod opens connections to the server and uses each; returns how many
    /// SYNs that were, and how many connections.
    fn flood_while_others_connect(&self, to: SocketAddr) -> Result<(u64, u64)> {
        let over = AtomicBool::new(false);
        let connected = AtomicU64::new(0);
        let sent = thread::scope(|scope| {
            let connecting = scope.spawn(|| {
                self.pod(3).run(|| {
                    while !over.load(Ordering::Relaxed) {
                        drop(open());
                        connected.fetch_add(1, Ordering::Relaxed);
                        thread::sleep(PACE);
                    }
                })
            });
            let sweeping = scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    self.datapaths.inside(0, Datapath::sweep)?;
                    thread::sleep(SWEEP_EVERY);
                }
                Ok::<_, datapath_bench::Error>(())
            });
            let sent = self.flood(to);
            over.store(true, Ordering::Relaxed);
            connecting.join().unwrap()?;
            sweeping.join().unwrap()?;
            sent
        })?;
        Ok((sent, connected.into_inner()))
    }
}

/// A connection to the server, from the calling thread's namespace, with an exchange on it.
fn open() -> TcpStream {
    let server = SocketAddr::new(pod_address(1, 4, Family::Ipv4), PORT);
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // It says first who it takes the client for.
    stream.read_exact(&mut [0; 18]).unwrap();
    echo(&mut stream);
    stream
}

fn echo(stream: &mut TcpStream) {
    stream.write_all(b"still there?").unwrap();
    let mut got = [0; 12];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"still there?");
}

#[test]
fn a_flood_of_syns_takes_no_established_flow_with_it() {
    flood().unwrap_or_else(|error| panic!("{}", error.chain()));
}

fn flood() -> Result<()> {
    let lab = Lab::start()?;
    for pod in [2, 3] {
        lab.exchange(pod, 2)?;
    }
    let mut streams = lab
        .pod(2)
        .run(|| (0..CONNECTIONS).map(|_| open()).collect::<Vec<_>>())?;
    let before = lab.established()?;
    let wanted = 2 * usize::from(FLOWS) + CONNECTIONS;
    assert_eq!(before.len(), wanted, "established to begin with");

    // Nobody answers outside; and in the pod nobody resets what the server answers.
    let unanswered = Sink::attach(lab.fabric.outside(), UPLINK, &BTreeSet::from([SYN_BYTES]))?;
    let answered = Sink::attach(lab.pod(1), UPLINK, &BTreeSet::from([SYN_ACK_BYTES]))?;
    let nowhere = SocketAddr::new(outside_address(Family::Ipv4), 9);
    let server = SocketAddr::new(pod_address(1, 4, Family::Ipv4), PORT);
    for (to, sink) in [(nowhere, &unanswered), (server, &answered)] {
        let refused = lab.tallies()?.quota_pending;
        let (sent, connected) = lab.flood_while_others_connect(to)?;
        let tallies = lab.tallies()?;
        println!("to {to}: {sent} SYNs, {connected} connections of others meanwhile, {tallies:?}");
        assert!(sent > u64::from(FLOOD), "each of them once at least");
        assert!(sink.taken()? > 0, "the flood comes through");
        assert!(tallies.quota_pending > refused, "up to its quota");
        assert!(connected > 0, "others connect");
        let after = lab.established()?;
        let lost: Vec<_> = before
            .iter()
            .filter(|(end, pair)| after.get(*end) != Some(pair))
            .collect();
        assert!(lost.is_empty(), "{} lost: {lost:?}", lost.len());
    }

    // All of them pass a packet both ways, and are what they were.
    for pod in [2, 3] {
        lab.exchange(pod, 1)?;
    }
    for stream in &mut streams {
        echo(stream);
    }
    let after = lab.established()?;
    for (end, pair) in &before {
        assert_eq!(after.get(end), Some(pair), "{end:?} is another one");
    }
    let tallies = lab.tallies()?;
    assert_eq!(tallies.established.refused_full, 0, "{tallies:?}");
    Ok(())
}
