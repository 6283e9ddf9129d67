//! Many flows behind one address: short connections when nearly all ports are taken, a whole range
//! of ports to one remote, and the node's own connections among its pods'.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "it is all tests"
)]

mod running;
mod util;

use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, SocketAddr, TcpListener},
    ops::RangeInclusive,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use datapath_conformance::{
    family::Family,
    frame::{Direction, Frame},
    netns::Namespace,
    paths::{NodeView, pod_address},
    probe::{Options, RawPort, TcpSession},
    topology::{
        NodePlan, Plan,
        plan::{UPLINK, node_address},
    },
};
use datapath_kern::verdict::DropReason;
use datapath_user::{Datapath, FlowView, PortRange};
use etherparse::{PacketBuilder, PacketHeaders, TransportHeader};
use running::{Lab, To};
use util::{OrPanic, at, gateway_mac, lab_name, patient};

const PODS: u8 = 4;

/// A lab whose node 1 has four pods that share these ports; flows end soon after they are done.
fn lab(what: &str, ports: RangeInclusive<u16>, max_flows: u32) -> Lab {
    let pods = NodePlan {
        pods: PODS,
        ..NodePlan::default()
    };
    let plan = Plan::new(lab_name(what)).with_nodes(2, pods);
    Lab::with(plan, Family::Ipv4, |config| {
        config.nat_ports = PortRange {
            first: *ports.start(),
            last: *ports.end(),
        };
        config.max_flows = Some(max_flows);
        config.max_pending = Some(max_flows);
        config.timeouts.tcp_closed_s = 1;
        config.timeouts.tcp_pending_s = 5;
    })
}

/// Ports that node 1's answers from the server come to, one for every flow.
fn ports_in_use(lab: &Lab, server: SocketAddr) -> Vec<u16> {
    let flows = lab.datapaths.flows(0).or_panic();
    let answers = flows
        .iter()
        .filter(|flow| flow.reply && flow.source == server.ip());
    answers.map(|flow| flow.destination_port).collect()
}

/// What node 1 has dropped for each of the reasons that masquerade and flow tracking have.
fn refused(lab: &Lab) -> BTreeMap<DropReason, u64> {
    let drops = lab.datapaths.drops(0).or_panic();
    let reasons = [
        DropReason::NatExhausted,
        DropReason::NatShare,
        DropReason::NatUnsupported,
        DropReason::FlowInsertFailed,
        DropReason::TcpWithoutFlow,
        DropReason::InvalidPacket,
        DropReason::UnexpectedArrival,
    ];
    let count = |reason: &DropReason| drops.get(reason.label()).copied().unwrap_or_default();
    reasons.map(|reason| (reason, count(&reason))).into()
}

/// Sweeps until nothing is left of the flows to a server.
#[track_caller]
fn all_end(lab: &Lab, server: SocketAddr) {
    let start = Instant::now();
    while start.elapsed() < Duration::from_mins(1) {
        lab.datapaths.inside(0, Datapath::sweep).or_panic();
        if ports_in_use(lab, server).is_empty() {
            break;
        }
        thread::sleep(Duration::from_millis(100));
    }
    let flows = lab.datapaths.flows(0).or_panic();
    let left = flows
        .iter()
        .filter(|flow| [flow.source, flow.destination].contains(&server.ip()));
    assert_eq!(left.collect::<Vec<_>>(), Vec::<&_>::new());
}

/// Tuples that sessions were seen with outside, while they are open.
#[derive(Default)]
struct Outside(Mutex<HashSet<SocketAddr>>);

impl Outside {
    fn enter(&self, session: &TcpSession) {
        let new = self.0.lock().unwrap().insert(session.seen_source());
        assert!(new, "two sessions as {}", session.seen_source());
    }

    fn leave(&self, session: &TcpSession) {
        assert!(self.0.lock().unwrap().remove(&session.seen_source()));
    }
}

/// Each session's bytes come back to it and to no other ([`TcpSession::echo`] looks at every one of
/// them), whatever became of those that had its port before.
#[test]
fn short_connections_while_nearly_all_ports_are_taken() {
    const PORTS: RangeInclusive<u16> = 20_000..=20_999;
    const OPEN: usize = 232;
    const SHORT: usize = 50;
    let lab = lab("soak", PORTS, 8192);
    let server = To::Outside.server(Family::Ipv4);
    let before = refused(&lab);
    let outside = Outside::default();
    let (filled, failures) = (AtomicU64::new(0), AtomicU64::new(0));
    // Long enough for the first packet to be sent again.
    let options = Options::default();
    let start = Instant::now();
    let in_time = || assert!(start.elapsed() < Duration::from_mins(5), "stuck");
    let connect = |pod: &Namespace| loop {
        in_time();
        // Where the first packet was dropped, none is made of it.
        match TcpSession::connect(pod, server, &options) {
            Ok(session) => {
                outside.enter(&session);
                assert!(PORTS.contains(&session.seen_source().port()));
                return session;
            }
            Err(_) => failures.fetch_add(1, Ordering::Relaxed),
        };
    };
    let soak = |pod: &Namespace| {
        let mut sessions: Vec<_> = (0..OPEN).map(|_| connect(pod)).collect();
        filled.fetch_add(1, Ordering::Relaxed);
        while filled.load(Ordering::Relaxed) < PODS.into() {
            in_time();
            thread::sleep(Duration::from_millis(10));
        }
        for number in 0..SHORT {
            // Another one each time, of those that have been there for long, too.
            let mut done = sessions.swap_remove(number * 7 % OPEN);
            done.echo(2000).or_panic();
            outside.leave(&done);
            done.close().or_panic();
            sessions.push(connect(pod));
        }
        for mut session in sessions {
            session.echo(2000).or_panic();
            outside.leave(&session);
            session.close().or_panic();
        }
    };
    let mut most = 0;
    thread::scope(|scope| {
        let (lab, soak) = (&lab, &soak);
        let pods: Vec<_> = (1..=usize::from(PODS))
            .map(|pod| scope.spawn(move || soak(lab.pod(1, pod))))
            .collect();
        while !pods.iter().all(thread::ScopedJoinHandle::is_finished) {
            lab.datapaths.inside(0, Datapath::sweep).or_panic();
            most = most.max(ports_in_use(lab, server).len());
            thread::sleep(Duration::from_millis(100));
        }
        for pod in pods {
            pod.join().unwrap();
        }
    });
    let after = refused(&lab);
    let by = |reason: DropReason| after[&reason] - before[&reason];
    let failures = failures.into_inner();
    println!("{most} of 1000 ports; {failures} tries failed: {after:?}");
    assert!(most > 900, "{most} of 1000 ports");
    for reason in after.keys() {
        let expected = *reason == DropReason::NatExhausted;
        assert!(expected || by(*reason) == 0, "{reason:?}: {after:?}");
    }
    assert!(failures <= by(DropReason::NatExhausted), "failed otherwise");
    all_end(&lab, server);
    lab.datapaths.stop().or_panic();
}

/// A pod's end of its cable, for datagrams of many flows without a socket for each.
struct Many {
    port: RawPort,
    gateway: [u8; 6],
    address: IpAddr,
}

impl Many {
    fn of(lab: &Lab, pod: u8) -> Self {
        let namespace = lab.pod(1, pod.into());
        let session = TcpSession::connect(namespace, To::Outside.server(Family::Ipv4), &patient());
        session.or_panic().close().or_panic();
        Self {
            port: RawPort::open(namespace, UPLINK).or_panic(),
            gateway: gateway_mac(namespace),
            address: pod_address(1, pod, Family::Ipv4),
        }
    }

    /// What a flow sends and gets back.
    fn text(&self, source_port: u16) -> String {
        format!("{} {source_port}", self.address)
    }

    fn send(&mut self, source_port: u16, server: SocketAddr) {
        let (IpAddr::V4(from), IpAddr::V4(to)) = (self.address, server.ip()) else {
            panic!("{server}")
        };
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(self.port.mac(), self.gateway)
            .ipv4(from.octets(), to.octets(), 64)
            .udp(source_port, server.port())
            .write(&mut frame, self.text(source_port).as_bytes())
            .unwrap();
        self.port.send(&frame).or_panic();
    }

    /// The flow of the next answer, which is its own; none if there is none for a moment.
    fn receive(&mut self, server: SocketAddr) -> Option<u16> {
        let wait = Duration::from_millis(20);
        let answer = |frame: &Frame| answer(frame, server).is_some();
        let frame = self.port.receive(wait, answer).or_panic()?;
        let (port, text) = answer_of(&frame, server);
        assert_eq!(text, self.text(port), "another flow's answer");
        Some(port)
    }
}

/// Port and text of a datagram from the server.
fn answer(frame: &Frame, server: SocketAddr) -> Option<(u16, String)> {
    let headers = PacketHeaders::from_ethernet_slice(&frame.bytes).ok()?;
    let Some(TransportHeader::Udp(udp)) = headers.transport else {
        return None;
    };
    let of_server = frame.direction == Direction::In && udp.source_port == server.port();
    let text = String::from_utf8(headers.payload.slice().to_vec()).ok()?;
    of_server.then_some((udp.destination_port, text))
}

fn answer_of(frame: &Frame, server: SocketAddr) -> (u16, String) {
    answer(frame, server).unwrap()
}

/// Four pods with the same source ports, 94 % of what there is.
#[test]
fn a_whole_range_of_ports_to_one_remote() {
    const EACH: u16 = 15_200;
    const AT_ONCE: u16 = 40;
    let lab = lab("range", 1024..=65_535, 262_144);
    let server = To::Outside.server(Family::Ipv4);
    let mut pods: Vec<_> = (1..=PODS).map(|pod| Many::of(&lab, pod)).collect();
    let before = refused(&lab);
    let exhausted = || refused(&lab)[&DropReason::NatExhausted] - before[&DropReason::NatExhausted];
    let mut begun: Vec<HashSet<u16>> = vec![HashSet::new(); pods.len()];
    let start = Instant::now();
    // The first packet and its answer; then once more, which proves the flow.
    for round in 0..2 {
        for first in (0..EACH).step_by(AT_ONCE.into()) {
            for (pod, begun) in pods.iter_mut().zip(&mut begun) {
                let ports = (first..first + AT_ONCE).map(|number| 10_000 + number);
                let mut missing: HashSet<u16> = if round == 0 {
                    ports.collect()
                } else {
                    ports.filter(|port| begun.contains(port)).collect()
                };
                let refused_before = exhausted();
                for port in &missing {
                    pod.send(*port, server);
                }
                let mut refused = 0;
                while missing.len() as u64 > refused {
                    if let Some(port) = pod.receive(server) {
                        assert!(missing.remove(&port), "answered twice: {port}");
                        begun.insert(port);
                    } else {
                        refused = exhausted() - refused_before;
                        assert!(start.elapsed() < Duration::from_mins(5), "{missing:?}");
                    }
                }
            }
        }
    }
    let flows: usize = begun.iter().map(HashSet::len).sum();
    let failed = usize::from(EACH) * pods.len() - flows;
    println!("{flows} flows, {failed} refused, {:?}", start.elapsed());
    assert_eq!(exhausted(), failed as u64);
    // The sum of `(n / 64512)^32` up to so many flows is 254, its deviation less than 16.
    assert!(failed < 254 + 100, "{failed} refused");
    let after = refused(&lab);
    assert_eq!(after[&DropReason::NatShare], 0);
    assert_eq!(after[&DropReason::FlowInsertFailed], 0);
    let views = lab.datapaths.flows(0).or_panic();
    let of_udp = views.iter().filter(|flow| {
        flow.protocol == "udp" && [flow.source, flow.destination].contains(&server.ip())
    });
    let (answers, sent): (Vec<_>, Vec<_>) = of_udp.partition(|flow| flow.reply);
    assert_eq!((answers.len(), sent.len()), (flows, flows));
    let proven = |flow: &&FlowView| flow.table == "established";
    assert!(answers.iter().all(proven) && sent.iter().all(proven));
    lab.datapaths.stop().or_panic();
}

/// Whoever comes first has the port, and the other one another.
#[test]
fn the_nodes_own_connections_among_its_pods() {
    let lab = lab("own", 1024..=65_535, 8192);
    let server = To::Outside.server(Family::Ipv4);
    let node = lab.fabric.node(1).or_panic().namespace();
    let address = node_address(1, Family::Ipv4);
    let connect = |from: &Namespace, source: IpAddr, port: u16| {
        let options = patient().with_source(at(source, port));
        TcpSession::connect(from, server, &options).or_panic()
    };
    let of_pod = |pod: u8, port| {
        connect(
            lab.pod(1, pod.into()),
            pod_address(1, pod, Family::Ipv4),
            port,
        )
    };

    // The pod first.
    let mut pods = of_pod(1, 40_000);
    assert_eq!(pods.seen_source(), at(address, 40_000));
    let mut nodes = connect(node, address, 40_000);
    let translated = nodes.seen_source();
    assert_eq!(translated.ip(), address);
    assert_ne!(translated.port(), 40_000);
    // The node first.
    let mut nodes_too = connect(node, address, 41_000);
    assert_eq!(nodes_too.seen_source(), at(address, 41_000));
    let mut pods_too = of_pod(1, 41_000);
    assert_eq!(pods_too.seen_source().ip(), address);
    assert_ne!(pods_too.seen_source().port(), 41_000);
    // A port that the node listens on, and has no flow from.
    let listener = node
        .run(|| TcpListener::bind(at(address, 42_000)))
        .or_panic();
    let mut beside = of_pod(2, 42_000);
    assert_eq!(beside.seen_source().ip(), address);
    assert_ne!(beside.seen_source().port(), 42_000);
    for session in [
        &mut pods,
        &mut nodes,
        &mut nodes_too,
        &mut pods_too,
        &mut beside,
    ] {
        for _ in 0..3 {
            session.echo(10_000).or_panic();
        }
    }
    for session in [pods, nodes, nodes_too, pods_too, beside] {
        session.close().or_panic();
    }
    drop(listener);
    all_end(&lab, server);
    lab.datapaths.stop().or_panic();
}
