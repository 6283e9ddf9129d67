//! netfilter: a router in a namespace of its own that masquerades what comes from inside, lets
//! through what belongs to a connection, and drops the rest.

use std::{
    io::Write,
    net::IpAddr,
    process::Stdio,
    time::{Duration, Instant},
};

use datapath_conformance::{
    frame::{Direction, Frame},
    netns::Namespace,
    probe::RawPort,
};
use datapath_kern::{abi::Mac, host::plan, packet::Family};
use datapath_tunnel::netlink::{Route, VethEnd};
use etherparse::PacketBuilder;

use crate::{
    Arrived, FAMILIES,
    frames::{self, is_ip},
    traffic::{From, PODS},
    util::{OrPanic, unique},
};

/// The rules. What is new from outside is dropped; so is what is no connection's.
const RULES: &str = "
table inet oracle {
  chain input { type filter hook input priority 0; policy drop; }
  chain forward {
    type filter hook forward priority 0; policy drop;
    ct state invalid drop
    ct state established,related accept
    iifname in0 ct state new accept
  }
  chain postrouting {
    type nat hook postrouting priority srcnat;
    oifname up0 ip saddr 10.244.1.0/24 masquerade
    oifname up0 ip6 saddr fd00:244:1::/64 masquerade
  }
}
";

/// What the router is told of connections: as loose as the datapath.
const SYSCTLS: [(&str, &str); 9] = [
    ("net.ipv4.ip_forward", "1"),
    ("net.ipv6.conf.all.forwarding", "1"),
    ("net.ipv6.conf.all.accept_dad", "0"),
    ("net.ipv6.conf.default.accept_dad", "0"),
    ("net.ipv4.conf.all.rp_filter", "0"),
    ("net.ipv4.conf.default.rp_filter", "0"),
    ("net.netfilter.nf_conntrack_tcp_loose", "1"),
    ("net.netfilter.nf_conntrack_tcp_be_liberal", "1"),
    ("net.netfilter.nf_conntrack_checksum", "1"),
];

/// A pod of which only [`Router::marker`] comes.
const MARKER_POD: u8 = 200;
const MARKER_PORT: u16 = 9;
const MARKER: &[u8] = b"marker";
/// How long a frame may take on a machine that does other things, too.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long to wait before a frame is sent again that may have been dropped.
const MOMENT: Duration = Duration::from_millis(50);

/// The router, and the far ends of its two links.
pub(crate) struct Router {
    inside: RawPort,
    outside: RawPort,
    marker: Vec<u8>,
    _namespace: Namespace,
}

impl Router {
    pub(crate) fn start() -> Self {
        let namespace = Namespace::create(&unique("netfilter")).or_panic();
        let netlink = namespace.netlink().or_panic();
        for (key, value) in &SYSCTLS[..6] {
            namespace.set_sysctl(key, value).or_panic();
        }
        let (gateway, node) = (plan::gateway_mac(1), plan::node_mac(1));
        let pair = |near: &str, mac: Mac, far: &str| {
            let end = VethEnd {
                mac: Some(mac),
                ..VethEnd::new(near)
            };
            let link = netlink.add_veth(end, VethEnd::new(far)).unwrap();
            let far = netlink.link(far).unwrap().unwrap();
            for index in [link.index, far.index] {
                netlink.set_no_addrgen(index).unwrap();
                netlink.set_up(index, true).unwrap();
            }
            link.index
        };
        let inside = pair("in0", gateway, "in1");
        let outside = pair("up0", node, "up1");
        for family in FAMILIES {
            let bits = if family == Family::V4 { 24 } else { 64 };
            let net = |address: IpAddr| ipnet::IpNet::new(address, bits).unwrap();
            netlink
                .add_address(inside, net(plan::gateway(1, family)))
                .unwrap();
            netlink
                .add_address(outside, net(plan::node(1, family)))
                .unwrap();
            for pod in (1..=PODS).chain([MARKER_POD]) {
                netlink
                    .add_neighbour(inside, plan::pod(1, pod, family), plan::pod_mac(1, pod))
                    .unwrap();
            }
            let router = plan::node(plan::ROUTER, family);
            let mac = plan::node_mac(plan::ROUTER);
            netlink.add_neighbour(outside, router, mac).unwrap();
            let everywhere = if family == Family::V4 {
                "0.0.0.0/0"
            } else {
                "::/0"
            };
            let route = Route::to(everywhere.parse().unwrap());
            netlink.add_route(&route.via(router).dev(outside)).unwrap();
        }
        load(&namespace);
        // There once there are rules that ask for connections.
        for (key, value) in &SYSCTLS[6..] {
            namespace.set_sysctl(key, value).or_panic();
        }
        let mut router = Self {
            inside: RawPort::open(&namespace, "in1").or_panic(),
            outside: RawPort::open(&namespace, "up1").or_panic(),
            marker: marker(),
            _namespace: namespace,
        };
        router.wait_for_links();
        router
    }

    /// Waits until frames cross in both directions: the kernel drops what is sent by an interface
    /// until it has dealt with its carrier, some time after it was switched on.
    fn wait_for_links(&mut self) {
        let left = cross(&mut self.inside, &self.marker, &mut self.outside);
        let (node, router) = (plan::node_mac(1), plan::node_mac(plan::ROUTER));
        let answer = answer_to(&left, router, node);
        cross(&mut self.outside, &answer, &mut self.inside);
        // What came late is nobody's answer to anything.
        for port in [&mut self.inside, &mut self.outside] {
            while port.receive(MOMENT, came_in).or_panic().is_some() {}
        }
    }

    /// Sends a frame to the router; what comes out of it, if anything does.
    ///
    /// That nothing does is known by a packet that is always let through, sent behind it: all are
    /// of one CPU's queue, which is the one that this thread is bound to.
    pub(crate) fn take(&mut self, from: From, frame: &[u8]) -> Option<Arrived> {
        let port = match from {
            From::Inside => &mut self.inside,
            From::Outside => &mut self.outside,
        };
        port.send(frame).or_panic();
        self.inside.send(&self.marker).or_panic();
        let mut arrived = Vec::new();
        loop {
            let next = self.outside.receive(PATIENCE, came_in).or_panic();
            let next = next.expect("the marker did not come through the router");
            if is_marker(&next.bytes) {
                break;
            }
            arrived.push((From::Outside, next.bytes));
        }
        while let Some(next) = self.inside.receive(Duration::ZERO, came_in).or_panic() {
            arrived.push((From::Inside, next.bytes));
        }
        assert!(arrived.len() <= 1, "one packet became {arrived:02x?}");
        arrived.pop().map(|(at, bytes)| Arrived { at, bytes })
    }
}

/// Sends a frame by one end until it comes out at the other; what came out.
fn cross(from: &mut RawPort, frame: &[u8], to: &mut RawPort) -> Vec<u8> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        from.send(frame).or_panic();
        let out = to.receive(MOMENT, |frame| {
            came_in(frame) && frame.bytes.ends_with(MARKER)
        });
        if let Some(out) = out.or_panic() {
            return out.bytes;
        }
        assert!(
            Instant::now() < deadline,
            "the router's links do not come up"
        );
    }
}

/// The answer to a UDP packet over IPv4.
fn answer_to(packet: &[u8], from: Mac, to: Mac) -> Vec<u8> {
    let mut answer = [&to[..], &from[..], &packet[12..]].concat();
    // A checksum is a sum: it is the same for the ends the other way round.
    for (at, length) in [(26, 4), (34, 2)] {
        let (front, back) = answer[at..at + 2 * length].split_at_mut(length);
        front.swap_with_slice(back);
    }
    answer
}

/// Whether the frame came out of the router by this end: what goes in is seen too.
fn came_in(frame: &Frame) -> bool {
    frame.direction == Direction::In && is_ip(&frame.bytes)
}

fn marker() -> Vec<u8> {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(v6) => panic!("{v6}"),
    };
    let source = octets(plan::pod(1, MARKER_POD, Family::V4));
    let destination = octets(plan::node(plan::ROUTER, Family::V4));
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(plan::pod_mac(1, MARKER_POD), plan::gateway_mac(1))
        .ipv4(source, destination, 64)
        .udp(MARKER_PORT, MARKER_PORT)
        .write(&mut bytes, MARKER)
        .unwrap();
    bytes
}

fn is_marker(frame: &[u8]) -> bool {
    frame.ends_with(MARKER) && frames::addresses(frame).1 == plan::node(plan::ROUTER, Family::V4)
}

fn load(namespace: &Namespace) {
    let mut nft = namespace.command("nft");
    let mut child = nft
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("nft: {error}; cargo xtask setup installs it"));
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(RULES.as_bytes()).unwrap();
    drop(stdin);
    assert!(child.wait().unwrap().success(), "nft refused the rules");
}
