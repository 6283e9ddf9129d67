//! Agents that are killed at any moment while somebody who may not floods a pod.

use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use datapath_conformance::{
    frame::forge::{self, Place},
    netns::Namespace,
    probe::{EchoServer, Options, RawPort, TcpSession},
};

use crate::policy::{PATIENCE, Rig, WEB, addresses, place, restart};

/// How often the agent is killed.
const TIMES: u16 = 6;

/// The server's stack counts what comes of whom.
fn count(server: &Namespace, of: &str) {
    let [v4, v6] = addresses("n1", place(of).2);
    for rule in [
        "add table inet heard".to_owned(),
        format!("add counter inet heard {of}"),
        format!("add chain inet heard {of} {{ type filter hook prerouting priority raw; }}"),
        format!("add rule inet heard {of} ip saddr {v4} tcp dport 80 counter name {of}"),
        format!("add rule inet heard {of} ip6 saddr {v6} tcp dport 80 counter name {of}"),
    ] {
        let status = server.command("nft").arg(&rule).status().unwrap();
        assert!(status.success(), "{rule}");
    }
}

fn counted(server: &Namespace, of: &str) -> u64 {
    let mut nft = server.command("nft");
    let output = nft.args(["list", "counter", "inet", "heard", of]).output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    let mut words = text
        .split_whitespace()
        .skip_while(|word| *word != "packets");
    words.nth(1).unwrap().parse().unwrap()
}

/// Connection requests of one pod to another, in both families, without end.
struct Flood {
    port: RawPort,
    frames: Vec<Vec<u8>>,
}

impl Flood {
    fn new(rig: &Rig, from: &str, to: &str) -> Self {
        let namespace = rig.namespace(from);
        let port = RawPort::open(&namespace, "eth0").unwrap();
        let index = namespace.link("eth0").unwrap().index;
        let neighbours = namespace.netlink().unwrap().neighbours().unwrap();
        let mut gateway = neighbours.into_iter().filter(|it| it.index == index);
        let gateway = gateway.find_map(|entry| entry.mac).unwrap();
        let mac = port.mac();
        let [from, to] = [from, to].map(|name| addresses("n1", place(name).2));
        let ends = from.into_iter().zip(to);
        let frames = ends.flat_map(|(from, to)| {
            let [from, to]: [IpAddr; 2] = [from, to].map(|text| text.parse().unwrap());
            (20_000..20_064).map(move |source| {
                let place = |mac, address, port| Place {
                    mac,
                    address: SocketAddr::new(address, port),
                };
                forge::tcp_syn(place(mac, from, source), place(gateway, to, 80), b"").unwrap()
            })
        });
        Self {
            frames: frames.collect(),
            port,
        }
    }

    /// Sends them all once.
    fn once(&mut self) -> u64 {
        for frame in &self.frames {
            self.port.send(frame).unwrap();
        }
        self.frames.len() as u64
    }
}

/// Ends the flood also where the test fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_flood_gets_nothing_through_while_agents_are_killed() {
    let mut rig = Rig::new("1", "3", "directory = \"@/policy.d\"");
    for (pod, app) in [("n1p1", "web"), ("n1p2", "front"), ("n1p3", "other")] {
        rig.label("n1", pod, app);
    }
    let web = rig.namespace("web");
    for who in ["front", "other"] {
        count(&web, who);
    }
    let _server = EchoServer::start(&web, &[80], &[]).unwrap();
    let mut flood = Flood::new(&rig, "other", "web");
    // Nothing is in its way yet.
    flood.once();
    let heard = counted(&web, "other");
    assert!(heard > 0);
    rig.write("policy.d/web.yaml", WEB);
    rig.wait(&["policy", "list"], "enforced");
    let before = counted(&web, "other");

    let options = Options::default().with_timeout(PATIENCE);
    let [v4, _] = addresses("n1", place("web").2);
    let to = SocketAddr::new(v4.parse().unwrap(), 80);
    let front = rig.namespace("front");
    let mut stream = TcpSession::connect(&front, to, &options).unwrap();
    let (over, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let _end = End(&over);
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                sent.fetch_add(flood.once(), Ordering::Relaxed);
                thread::sleep(Duration::from_millis(2));
            }
        });
        for time in 0..TIMES {
            // It has something to do as it is killed, or is about to have.
            let more = format!("ports: [{{port: {}}}, {{port: 80}}]", 8000 + time);
            rig.write(
                "policy.d/web.yaml",
                &WEB.replace("ports: [{port: 80}]", &more),
            );
            thread::sleep(Duration::from_millis(u64::from(time) * 7));
            restart(&mut rig);
            stream.echo(10_000).unwrap();
            let mut another = TcpSession::connect(&front, to, &options).unwrap();
            another.echo(1000).unwrap();
        }
    });
    assert!(sent.into_inner() > 0);
    assert_eq!(counted(&web, "other"), before);
    assert!(counted(&web, "front") > 0);
    stream.echo(10_000).unwrap();
    rig.end();
}
