//! Made-up frames of established flows, along one path of the datapath.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{PoisonError, RwLock},
    thread,
    time::{Duration, Instant},
};

use datapath_conformance::{
    family::Family,
    frame::forge::Place,
    netns::Namespace,
    paths::pod_identity,
    probe::{EchoServer, Options as Probe, UdpSession},
    topology::plan::{self, UPLINK},
};

use crate::{
    affinity::pin_to,
    error::{Error, Result},
    live::{Generator, Sink, Template},
    rig::{Rig, pod_address},
    stopwatch::Stopwatch,
};

/// First source port of the flows.
const FIRST_PORT: u16 = 20_000;
/// Port of the servers that the flows get their replies from.
const PORT: u16 = 7007;
/// Bytes of a datagram of theirs: no frame of a bench is as long.
const PROBE_BYTES: usize = 200;
/// How long the last frames may take on their way.
const PATIENCE: Duration = Duration::from_secs(2);

/// A way through the datapath, and where it is measured: from the interface that frames arrive on
/// to the first place behind the datapath.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Path {
    /// From a pod into the tunnel, up to the far end of the node's uplink.
    Encap,
    /// From the uplink out of the tunnel, into a pod.
    Decap,
    /// From a pod out behind the node's address, up to the far end of the uplink.
    Masquerade,
    /// From a pod to another of the same node.
    Local,
}

impl Path {
    pub(super) const ALL: [Self; 4] = [Self::Encap, Self::Decap, Self::Masquerade, Self::Local];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Encap => "pod-to-remote",
            Self::Decap => "remote-to-pod",
            Self::Masquerade => "pod-to-outside",
            Self::Local => "pod-to-pod",
        }
    }

    /// Where its frames end: a namespace, and an interface there.
    pub(super) fn end(self, rig: &Rig) -> Result<(&Namespace, &'static str)> {
        Ok(match self {
            Self::Encap | Self::Masquerade => (rig.fabric().router(), "n1"),
            Self::Decap => (rig.pod(2, 1)?, UPLINK),
            Self::Local => (rig.pod(1, 2)?, UPLINK),
        })
    }
}

/// Frames along one path, from one pod, in one family, of flows that real sockets have opened.
#[derive(Debug)]
pub(super) struct Lane {
    generator: Generator,
    /// The node that they go through, counted from 1.
    node: u8,
    from: IpAddr,
    to: SocketAddr,
    /// Length of a frame where it ends.
    length: usize,
}

impl Lane {
    /// Opens `flows` flows from a pod of node 1 (counted from 1), each with its reply, makes sure
    /// that they are established, and makes frames of them.
    pub(super) fn open(rig: &Rig, path: Path, family: Family, pod: u8, flows: u16) -> Result<Self> {
        let from = pod_address(1, pod, family);
        let (target, to) = match path {
            Path::Encap | Path::Decap => (rig.pod(2, pod)?, pod_address(2, pod, family)),
            Path::Masquerade => (rig.fabric().outside(), plan::outside_address(family)),
            Path::Local => {
                let neighbour = if pod == 1 { 2 } else { 1 };
                (rig.pod(1, neighbour)?, pod_address(1, neighbour, family))
            }
        };
        let to = SocketAddr::new(to, PORT);
        let source = rig.pod(1, pod)?;
        let (template, length) = frames(rig, path, source, (from, pod), to, flows)?;
        let server = EchoServer::start(target, &[], &[PORT])?;
        for port in template.ports() {
            let options = Probe::default()
                .with_timeout(PATIENCE)
                .with_source(SocketAddr::new(from, port));
            let mut session = UdpSession::open(source, to, &options)?;
            // A flow is established by the second packet after a reply.
            for _ in 0..3 {
                session.echo(PROBE_BYTES)?;
            }
        }
        drop(server);
        let (node, interface) = match path {
            Path::Decap => (2, UPLINK.to_owned()),
            _ => (1, rig.host_interface(1, pod)?),
        };
        let namespace = rig.node(node)?.namespace();
        let lane = Self {
            generator: Generator::new(namespace, &interface, template)?,
            node,
            from,
            to,
            length,
        };
        lane.check(rig)?;
        Ok(lane)
    }

    /// Length of a frame where it ends.
    pub(super) fn length_at_end(&self) -> usize {
        self.length
    }

    /// Makes sure that every flow is established.
    pub(super) fn check(&self, rig: &Rig) -> Result<()> {
        let ports = self.generator.template().ports();
        rig.check_established(self.node, "udp", (self.from, ports), self.to)
    }
}

/// The frames of a lane as they arrive, and their length where they end.
fn frames(
    rig: &Rig,
    path: Path,
    source: &Namespace,
    (from, pod): (IpAddr, u8),
    to: SocketAddr,
    flows: u16,
) -> Result<(Template, usize)> {
    let node = rig.node(1)?;
    let near = Place {
        mac: source.link(UPLINK)?.mac,
        address: SocketAddr::new(from, FIRST_PORT),
    };
    let gateway = node.namespace().link(&rig.host_interface(1, pod)?)?;
    let far = Place {
        mac: gateway.mac,
        address: to,
    };
    let template = Template::udp(near, far, flows)?;
    let plain = template.len();
    let (here, there) = (node, rig.node(2)?);
    let end = |of: &datapath_conformance::topology::Node| -> Result<_> {
        let mac = of.namespace().link(UPLINK)?.mac;
        Ok((mac, of.address(rig.underlay())))
    };
    let wrapped = template
        .clone()
        .in_tunnel(pod_identity(1, pod), end(here)?, end(there)?)?;
    Ok(match path {
        Path::Encap => (template, wrapped.len()),
        Path::Decap => (wrapped, plain),
        Path::Masquerade | Path::Local => (template, plain),
    })
}

/// What came of sending.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    /// How long each lane took.
    elapsed: Vec<Duration>,
    /// Until the last frame was there, after the last lane was done.
    tail: Duration,
    /// What this process has used of all CPUs.
    pub(super) cpu: Duration,
    pub(super) sent: u64,
    pub(super) delivered: u64,
}

impl Outcome {
    /// Until the last frame of the last lane was there.
    pub(super) fn time(&self) -> Duration {
        self.elapsed.iter().max().copied().unwrap_or_default() + self.tail
    }
}

/// Sends frames along lanes of one node at once, each on a CPU of its own, and counts them at their
/// common end.
pub(super) fn send(
    rig: &Rig,
    sink: &Sink,
    lanes: &[(&Lane, usize)],
    frames: u32,
) -> Result<Outcome> {
    let before = sink.taken()?;
    let watch = Stopwatch::start()?;
    let node = lanes.first().map_or(1, |(lane, _)| lane.node);
    let gate = RwLock::new(());
    // Threads are in the namespace of the one that starts them.
    let outcome = rig.node(node)?.namespace().run(|| {
        thread::scope(|scope| {
            let closed = gate.write().unwrap_or_else(PoisonError::into_inner);
            let threads = lanes.iter().map(|&(lane, cpu)| {
                let gate = &gate;
                thread::Builder::new()
                    .name(format!("lane {cpu}"))
                    .spawn_scoped(scope, move || {
                        pin_to(cpu)?;
                        drop(gate.read());
                        lane.generator.send(frames)
                    })
                    .map_err(Error::os("start a thread on CPU", cpu))
            });
            let threads = threads.collect::<Result<Vec<_>>>();
            drop(closed);
            let results = threads?.into_iter().map(|thread| {
                let panicked = || Err(Error::os("run", "a lane")(std::io::ErrorKind::Other));
                thread.join().unwrap_or_else(|_| panicked())
            });
            results.collect::<Result<Vec<_>>>()
        })
    })?;
    let elapsed = outcome?;
    let (_, cpu) = watch.read()?;
    let sent = u64::from(frames) * lanes.len() as u64;
    let start = Instant::now();
    let mut delivered = sink.taken()? - before;
    let mut tail = Duration::ZERO;
    while delivered < sent && start.elapsed() < PATIENCE {
        thread::yield_now();
        delivered = sink.taken()? - before;
        tail = start.elapsed();
    }
    Ok(Outcome {
        elapsed,
        tail,
        cpu,
        sent,
        delivered,
    })
}
