//! Frames: conversations as they go, everything that is refused, and what chance makes of them.

use std::net::IpAddr;

use datapath_kern::{
    abi::{Mac, mark},
    host::{Hook, plan},
    packet::Family,
};
use proptest::prelude::*;
use proptest::test_runner::TestRng;

use crate::{
    frame::{self, ACK, FIN, L4, RST, SYN, Tuple},
    tunnel::Wrap,
    world::{AWAY, FAMILIES, Interfaces, NODE, NOWHERE, PEERS, UNRESOLVED},
};

/// No test run takes less than an Ethernet header (`bpf_prog_test_run_skb`,
/// `net/bpf/test_run.c`).
pub(crate) const SHORTEST: usize = 14;
/// What a test run takes in one piece: less than a page, which has a head and a tail.
pub(crate) const LONGEST: usize = 3300;

/// A frame, where it arrives, and how it is marked.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub(crate) hook: Hook,
    pub(crate) interface: u32,
    pub(crate) mark: u32,
    pub(crate) frame: Vec<u8>,
}

/// By whom a frame is brought.
#[derive(Clone, Copy)]
pub(crate) enum By {
    /// A pod of this node.
    Pod(u8),
    /// A peer, in a tunnel packet with its pod 1's number.
    Peer(u8, Family),
    /// The router.
    Router,
    /// This node's stack, to a pod or a peer's pod.
    Stack,
    /// This node's stack, off the node.
    StackOut,
    /// This node's stack, past the gateway pair.
    StackTo(u8),
}

/// Frames for one node.
pub(crate) struct Traffic(pub(crate) Interfaces);

impl Traffic {
    /// All that can be thought of, in an order that makes conversations of it.
    pub(crate) fn crafted(&self) -> Vec<Arrival> {
        let mut all = Vec::new();
        for family in FAMILIES {
            for l4 in [
                L4::Tcp(40_000, 80, SYN),
                L4::Udp(40_001, 53),
                L4::EchoRequest(40_002),
            ] {
                self.conversations(&mut all, family, l4);
            }
            self.ways(&mut all, family);
            self.crowded(&mut all, family);
            self.expired(&mut all, family);
            self.too_big(&mut all, family);
            self.in_pieces(&mut all, family);
            self.harmed(&mut all, family);
            self.forged(&mut all, family);
            self.kinds(&mut all, family);
            for (peer, underlay) in PEERS {
                self.tunnelled(&mut all, family, peer, underlay);
                self.carried(&mut all, family, peer, underlay);
            }
        }
        self.neighbours(&mut all);
        self.seldom(&mut all);
        for mark in [
            0,
            mark::TO_HOST,
            mark::FORWARDED,
            mark::TO_HOST | 0x8000_0001,
        ] {
            let tuple = Tuple::new(gateway(Family::V4), outside(Family::V4), L4::Udp(1, 2));
            let of_node = self.by(By::StackOut, &tuple);
            let (hook, interface) = (Hook::ToHost, self.0.gateway);
            all.push(Arrival {
                mark,
                ..of_node.clone()
            });
            all.push(Arrival {
                hook,
                interface,
                mark,
                ..of_node
            });
        }
        all
    }

    /// More flows to one remote than a small range has ports: one pod's, others', and too many.
    fn crowded(&self, all: &mut Vec<Arrival>, family: Family) {
        for (pod, flows) in [(1, 20), (2, 4), (1, 2), (3, 2)] {
            for number in 0..flows {
                let l4 = L4::Tcp(45_000 + number, 8443, SYN);
                let tuple = Tuple::new(plan::pod(NODE, pod, family), outside(family), l4);
                all.push(self.by(By::Pod(pod), &tuple));
            }
        }
    }

    /// A frame of `tuple` as it is brought.
    pub(crate) fn by(&self, by: By, tuple: &Tuple) -> Arrival {
        self.brought(by, |from, to| frame::build(from, to, tuple, 64, b"hello"))
    }

    /// What is made for a pair of Ethernet addresses, from one to the other, as it is brought.
    pub(crate) fn brought(&self, by: By, make: impl FnOnce(Mac, Mac) -> Vec<u8>) -> Arrival {
        let (node, router) = (plan::node_mac(NODE), plan::node_mac(plan::ROUTER));
        let own = plan::gateway_mac(NODE);
        let Interfaces {
            uplink,
            gateway_far,
            ..
        } = self.0;
        let (hook, interface, frame) = match by {
            By::Pod(pod) => {
                let frame = make(plan::pod_mac(NODE, pod), own);
                (Hook::FromPod, self.pod(pod), frame)
            }
            By::Peer(peer, underlay) => {
                let wrap = Wrap::new(peer, NODE, underlay, plan::pod_identity(peer, 1));
                let frame = wrap.around(&make(plan::gateway_mac(peer), own));
                (Hook::FromUplink, uplink, frame)
            }
            By::Router => (Hook::FromUplink, uplink, make(router, node)),
            By::Stack => (Hook::FromHost, gateway_far, make(own, [2; 6])),
            By::StackOut => (Hook::ToUplink, uplink, make(node, router)),
            By::StackTo(pod) => {
                let frame = make(own, plan::pod_mac(NODE, pod));
                (Hook::ToPod, self.pod(pod), frame)
            }
        };
        Arrival {
            hook,
            interface,
            mark: 0,
            frame,
        }
    }

    pub(crate) fn pod(&self, pod: u8) -> u32 {
        self.0.pods[usize::from(pod) - 1]
    }

    /// Every pair that may talk, from the first packet to the last.
    fn conversations(&self, all: &mut Vec<Arrival>, family: Family, l4: L4) {
        let pod = |number| plan::pod(NODE, number, family);
        let node = plan::node(NODE, family);
        let outside = outside(family);
        let mut talk = |there: By, back: By, tuple: Tuple, seen: IpAddr| {
            // What the answer is sent to, where the question was masqueraded.
            let seen = Tuple {
                source: seen,
                ..tuple
            };
            let steps: &[(bool, u8)] = match l4 {
                L4::Tcp(..) => &[
                    (true, SYN),
                    (false, SYN | ACK),
                    (true, ACK),
                    (true, ACK),
                    (false, ACK),
                    (true, FIN | ACK),
                    (false, FIN | ACK),
                    (true, ACK),
                    (true, SYN),
                    (false, RST | ACK),
                    (true, SYN),
                    (false, SYN | ACK),
                    (true, ACK),
                ],
                _ => &[(true, 0), (false, 0), (true, 0), (false, 0), (true, 0)],
            };
            for (forward, flags) in steps {
                all.push(if *forward {
                    self.by(there, &tuple.with_flags(*flags))
                } else {
                    self.by(back, &seen.answer(*flags))
                });
            }
            self.errors(all, (there, tuple), (back, seen));
        };
        let own = pod(1);
        talk(By::Pod(1), By::Pod(2), Tuple::new(own, pod(2), l4), own);
        talk(By::Pod(1), By::Router, Tuple::new(own, outside, l4), node);
        talk(
            By::Stack,
            By::Pod(3),
            Tuple::new(gateway(family), pod(3), l4),
            gateway(family),
        );
        talk(
            By::StackOut,
            By::Router,
            Tuple::new(node, outside, l4),
            node,
        );
        talk(
            By::StackOut,
            By::Router,
            Tuple::new(pod(4), outside, l4),
            node,
        );
        talk(
            By::StackTo(2),
            By::Pod(2),
            Tuple::new(outside, pod(2), l4),
            outside,
        );
        talk(
            By::Router,
            By::Pod(4),
            Tuple::new(outside, pod(4), l4),
            outside,
        );
        for (peer, underlay) in PEERS {
            let remote = plan::pod(peer, 1, family);
            let by_peer = By::Peer(peer, underlay);
            talk(By::Pod(1), by_peer, Tuple::new(own, remote, l4), own);
            talk(by_peer, By::Pod(2), Tuple::new(remote, pod(2), l4), remote);
            talk(By::Stack, by_peer, Tuple::new(node, remote, l4), node);
            let other = plan::node(peer, family);
            talk(By::Pod(3), By::Router, Tuple::new(pod(3), other, l4), node);
            // In native routing pods of peers come as they are.
            let there = Tuple::new(plan::pod(peer, 2, family), pod(1), l4);
            talk(By::Router, By::Pod(1), there, there.source);
        }
    }

    /// Places that only the routing table knows, and some that nobody does.
    fn ways(&self, all: &mut Vec<Arrival>, family: Family) {
        let own = plan::pod(NODE, 1, family);
        let tcp = L4::Tcp(41_000, 80, SYN);
        let at = usize::from(family == Family::V6);
        let inside = |list: [&str; 2]| {
            let net: ipnet::IpNet = list[at].parse().unwrap();
            net.hosts().nth(9).unwrap()
        };
        let (many, never): (&[&str], &[&str]) = match family {
            Family::V4 => (
                &["224.0.0.251", "255.255.255.255"],
                &["127.0.0.1", "0.0.0.0"],
            ),
            Family::V6 => (&["ff02::fb", "ff0e::1"], &["::1", "fe80::1", "::"]),
        };
        let mut to: Vec<IpAddr> = [NOWHERE, AWAY, UNRESOLVED].map(inside).to_vec();
        to.extend([150, 240].map(|pod| plan::pod(NODE, pod, family)));
        to.extend([7, plan::ROUTER, NODE].map(|node| plan::node(node, family)));
        to.extend([gateway(family), own]);
        to.extend(
            many.iter()
                .chain(never)
                .map(|text| text.parse::<IpAddr>().unwrap()),
        );
        for to in to {
            for by in [
                By::Pod(1),
                By::Stack,
                By::StackTo(1),
                By::StackOut,
                By::Router,
            ] {
                let tuple = Tuple::new(own, to, tcp);
                // Twice: remembered, and gone by.
                all.extend([self.by(by, &tuple), self.by(by, &tuple)]);
                let node = Tuple::new(plan::node(NODE, family), to, L4::Udp(41_001, 53));
                all.push(self.by(by, &node));
            }
        }
        for ttl in [0, 1, 2, 255] {
            for to in [plan::pod(NODE, 2, family), outside(family), gateway(family)] {
                let macs = (plan::pod_mac(NODE, 1), plan::gateway_mac(NODE));
                let frame = frame::build(macs.0, macs.1, &Tuple::new(own, to, tcp), ttl, b"");
                all.push(self.of_pod(frame));
            }
        }
        for flags in [0, ACK, FIN | ACK, RST, RST | ACK, SYN | ACK, SYN | RST] {
            let tuple = Tuple::new(own, plan::pod(NODE, 2, family), L4::Tcp(41_002, 81, flags));
            all.push(self.by(By::Pod(1), &tuple));
            let tuple = Tuple::new(own, outside(family), L4::Tcp(41_002, 81, flags));
            all.push(self.by(By::Pod(1), &tuple));
        }
        for port in 0..12 {
            let tuple = Tuple::new(own, outside(family), L4::Udp(500 + port, 443));
            all.push(self.by(By::Pod(1), &tuple));
        }
    }

    pub(crate) fn of_pod(&self, frame: Vec<u8>) -> Arrival {
        Arrival {
            hook: Hook::FromPod,
            interface: self.pod(1),
            mark: 0,
            frame,
        }
    }

    /// An arrival that chance had its hands in: at another hook, with bits and bytes that others
    /// had not; or bytes by chance altogether.
    pub(crate) fn by_chance(&self, rng: &mut TestRng, crafted: &[Arrival]) -> Arrival {
        let mut arrival = crafted[rng.random_range(0..crafted.len())].clone();
        if rng.random_range(0..4) == 0 {
            arrival.mark = 0;
            (arrival.hook, arrival.interface) = match rng.random_range(0..7) {
                0 => (Hook::FromPod, self.pod(1)),
                1 => (Hook::FromPod, self.pod(2)),
                2 => (Hook::ToPod, self.pod(2)),
                3 => (Hook::FromUplink, self.0.uplink),
                4 => (Hook::ToUplink, self.0.uplink),
                5 => (Hook::FromHost, self.0.gateway_far),
                _ => (Hook::ToHost, self.0.gateway),
            };
        }
        if rng.random_range(0..8) == 0 {
            arrival.mark = rng.random();
            if !matches!(arrival.hook, Hook::ToHost | Hook::ToUplink) {
                // Ours come to these two alone; elsewhere they tell what was done.
                arrival.mark = mark::with(arrival.mark, 0);
            }
        }
        if rng.random_range(0..10) == 0 {
            let length = rng.random_range(SHORTEST..400);
            let kept = rng.random_range(SHORTEST..=arrival.frame.len().min(length));
            arrival.frame.truncate(kept);
            arrival.frame.resize_with(length, || rng.random());
        }
        for _ in 0..rng.random_range(0..4) {
            harm(rng, &mut arrival.frame);
        }
        arrival
    }
}

/// Does one thing to a frame.
fn harm(rng: &mut TestRng, frame: &mut Vec<u8>) {
    // Most of what matters is in front.
    let at = rng.random_range(0..frame.len().min(140));
    match rng.random_range(0..9) {
        0..=2 => frame[at] = rng.random(),
        3..=5 => frame[at] ^= 1 << rng.random_range(0..8),
        6 => frame.truncate(at.max(SHORTEST)),
        7 => {
            let bytes: Vec<u8> = (0..rng.random_range(1..40)).map(|_| rng.random()).collect();
            frame.splice(at..at, bytes);
        }
        _ => {
            let length = LONGEST.min(frame.len() + rng.random_range(0..600));
            frame.resize_with(length, || rng.random());
        }
    }
}

pub(crate) fn gateway(family: Family) -> IpAddr {
    plan::gateway(NODE, family)
}

pub(crate) fn outside(family: Family) -> IpAddr {
    plan::outside(family)
}
