//! ICMP errors, what is answered with one, and what is learned from one.

use datapath_kern::{
    abi::Mac,
    host::plan,
    packet::Family::{self, V4},
};

use crate::{
    fragments,
    frame::{self, L4, SYN, Tuple},
    icmp::{IcmpError, kinds, port_unreachable, quote, too_big},
    traffic::{Arrival, By, LONGEST, Traffic, gateway, outside},
    world::{FAMILIES, NODE, PEERS},
};

/// What the quoted packets carry.
const PAYLOAD: [u8; 71] = [0x5a; 71];

fn family(tuple: &Tuple) -> Family {
    FAMILIES[usize::from(tuple.source.is_ipv6())]
}

impl Traffic {
    /// Errors about a conversation: from everyone who may have one to tell, and from others. Each
    /// side sees its packets under its own tuple.
    pub(crate) fn errors(&self, all: &mut Vec<Arrival>, near: (By, Tuple), far: (By, Tuple)) {
        let (there, tuple) = near;
        let (back, seen) = far;
        let family = family(&tuple);
        let mut push = |by, error: &IcmpError| {
            all.push(self.brought(by, |from, to| error.frame(from, to, 62)));
        };
        let about = |tuple: &Tuple, source, kind, length| {
            IcmpError::about(tuple, source, kind, quote(tuple, 61, &PAYLOAD, length))
        };
        let routers = [gateway(family), plan::node(plan::ROUTER, family)];
        for source in routers.into_iter().chain([seen.destination]) {
            for &kind in kinds(family) {
                push(back, &about(&seen, source, kind, 8));
            }
            for length in [0, 3, 4, 7, 8, 17, 18, 20, 64, usize::MAX] {
                push(
                    back,
                    &about(&seen, source, port_unreachable(family), length),
                );
            }
        }
        let answers = [tuple.answer(0), seen.answer(0)];
        for answer in &answers {
            for source in routers.into_iter().chain([answer.destination]) {
                push(there, &about(answer, source, port_unreachable(family), 40));
            }
        }
        let strangers = [
            By::Pod(1),
            By::Pod(3),
            By::Router,
            By::Stack,
            By::StackOut,
            By::StackTo(2),
        ];
        let peers = PEERS.map(|(peer, underlay)| By::Peer(peer, underlay));
        for by in strangers.into_iter().chain(peers) {
            push(
                by,
                &about(&seen, seen.destination, port_unreachable(family), 8),
            );
            push(
                by,
                &about(&tuple, tuple.destination, port_unreachable(family), 8),
            );
        }
        // The time to live of errors counts, too; they are not answered.
        for ttl in [0, 1, 2] {
            let error = about(&seen, seen.destination, port_unreachable(family), 8);
            all.push(self.brought(back, |from, to| error.frame(from, to, ttl)));
        }
    }

    /// Packets on their last hop, by every way.
    pub(crate) fn expired(&self, all: &mut Vec<Arrival>, family: Family) {
        for l4 in [
            L4::Tcp(45_000, 80, SYN),
            L4::Udp(45_000, 53),
            L4::EchoRequest(45_000),
        ] {
            for (there, tuple, back, seen) in Self::pairs(family, l4) {
                for (by, tuple) in [(there, tuple), (back, seen.answer(0))] {
                    for ttl in [2, 1, 0] {
                        // Short, odd, as long as may be quoted, and longer.
                        for length in [0, 3, 519, 520, 521, 1203, 1204, 1300] {
                            let payload = vec![0x33; length];
                            let make =
                                |from: Mac, to: Mac| frame::build(from, to, &tuple, ttl, &payload);
                            all.push(self.brought(by, make));
                        }
                    }
                }
            }
        }
    }

    /// Packets about as long as the way takes, before and after a router says that it takes less.
    pub(crate) fn too_big(&self, all: &mut Vec<Arrival>, family: Family) {
        self.long(
            all,
            family,
            &[1429, 1430, 1431, 1450, 1451, 1500, 1501, 2000, 3000],
        );
        for (peer, underlay) in PEERS {
            let router = plan::node(plan::ROUTER, underlay);
            let (own, other) = (plan::node(NODE, underlay), plan::node(peer, underlay));
            let to = |port, source_port| Tuple::new(own, other, L4::Udp(source_port, port));
            let mut claim = |tuple: &Tuple, value, length: usize| {
                let quoted = quote(tuple, 63, &vec![0; length], 8);
                let error = IcmpError::about(tuple, router, too_big(underlay), quoted);
                let error = IcmpError { value, ..error };
                all.push(self.brought(By::Router, |from, to| error.frame(from, to, 60)));
            };
            claim(&to(6082, 0xc000), 1350, 1460);
            claim(&to(6081, 0xbfff), 1350, 1460);
            claim(&to(6081, 0xc000).answer(0), 1350, 1460);
            claim(&to(6081, 0xc000), 1350, 1200);
            for value in [1450, 1400, 1420, 0x1_0000 + 1390] {
                claim(&to(6081, 0xffff), value, 1460);
            }
        }
        self.long(
            all,
            family,
            &[1320, 1321, 1330, 1331, 1340, 1341, 1350, 1351],
        );
        for (peer, underlay) in PEERS {
            let tuple = Tuple::new(
                plan::node(NODE, underlay),
                plan::node(peer, underlay),
                L4::Udp(0xc000, 6081),
            );
            let router = plan::node(plan::ROUTER, underlay);
            let quoted = quote(&tuple, 63, &[0; 1300], 8);
            let error = IcmpError::about(&tuple, router, too_big(underlay), quoted);
            let error = IcmpError { value: 0, ..error };
            all.push(self.brought(By::Router, |from, to| error.frame(from, to, 60)));
        }
        self.long(
            all,
            family,
            &[500, 506, 507, 526, 527, 1210, 1211, 1230, 1231],
        );
    }

    /// Packets of these lengths, from the IP header on, by every way.
    fn long(&self, all: &mut Vec<Arrival>, family: Family, ip_bytes: &[usize]) {
        for l4 in [L4::Tcp(45_001, 80, SYN), L4::Udp(45_001, 53)] {
            let l4_len = if matches!(l4, L4::Udp(..)) { 8 } else { 20 };
            let headers = l4_len + if family == V4 { 20 } else { 40 };
            for (there, tuple, back, seen) in Self::pairs(family, l4) {
                for (by, tuple) in [(there, tuple), (back, seen.answer(0))] {
                    for length in ip_bytes {
                        let payload = vec![0x44; length - headers];
                        let make =
                            |from: Mac, to: Mac| frame::build(from, to, &tuple, 64, &payload);
                        let arrival = self.brought(by, make);
                        assert!(arrival.frame.len() <= LONGEST);
                        all.push(arrival);
                        if family == V4 {
                            all.push(self.brought(by, |from, to| may_be_cut(make(from, to))));
                        }
                    }
                }
            }
        }
    }

    /// Fragments, in order and without the first one.
    pub(crate) fn in_pieces(&self, all: &mut Vec<Arrival>, family: Family) {
        for l4 in [L4::Udp(45_002, 53), L4::EchoRequest(45_002)] {
            for (number, (there, tuple, back, seen)) in (1..).zip(Self::pairs(family, l4)) {
                let answer = seen.answer(0);
                for (id, by, tuple) in [(number, there, tuple), (100 + number, back, answer)] {
                    let make =
                        |from: Mac, to: Mac| frame::build(from, to, &tuple, 64, &[0x66; 900]);
                    let whole = self.brought(by, make);
                    if matches!(by, By::Peer(..)) {
                        continue;
                    }
                    for lost in [1, 0] {
                        let pieces = fragments::cut(&whole.frame, 400, id + 10 * lost);
                        let pieces = pieces.into_iter().skip(usize::from(lost));
                        all.extend(pieces.map(|frame| Arrival {
                            frame,
                            ..whole.clone()
                        }));
                    }
                }
            }
        }
        // What has no ports to follow by.
        let own = plan::pod(NODE, 1, family);
        let about = Tuple::new(outside(family), own, L4::Udp(45_003, 53));
        let quoted = quote(&about, 61, &PAYLOAD, usize::MAX);
        let error = IcmpError::about(&about, own, port_unreachable(family), quoted);
        let whole = self.brought(By::Pod(1), |from, to| error.frame(from, to, 64));
        let pieces = fragments::cut(&whole.frame, 48, 7);
        all.extend(pieces.into_iter().map(|frame| Arrival {
            frame,
            ..whole.clone()
        }));
    }

    /// Pairs that talk: who brings the packets, their tuple, who brings the answers, and the tuple
    /// of the packets as seen there.
    fn pairs(family: Family, l4: L4) -> Vec<(By, Tuple, By, Tuple)> {
        let own = plan::pod(NODE, 1, family);
        let mut pairs = Vec::new();
        let mut pair = |there, source, to, back, seen| {
            let tuple = Tuple::new(source, to, l4);
            let seen = Tuple {
                source: seen,
                ..tuple
            };
            pairs.push((there, tuple, back, seen));
        };
        let local = plan::pod(NODE, 2, family);
        pair(By::Pod(1), own, local, By::Pod(2), own);
        let node = plan::node(NODE, family);
        pair(By::Pod(1), own, outside(family), By::Router, node);
        pair(
            By::Router,
            outside(family),
            local,
            By::Pod(2),
            outside(family),
        );
        pair(
            By::Stack,
            gateway(family),
            local,
            By::Pod(2),
            gateway(family),
        );
        for (peer, underlay) in PEERS {
            let remote = plan::pod(peer, 1, family);
            let by = By::Peer(peer, underlay);
            pair(By::Pod(1), own, remote, by, own);
            pair(by, remote, local, By::Pod(2), remote);
            pair(By::Stack, gateway(family), remote, by, gateway(family));
        }
        pairs
    }
}

/// An IPv4 packet without the bit that forbids to cut it.
fn may_be_cut(mut frame: Vec<u8>) -> Vec<u8> {
    let at = frame.iter().position(|byte| *byte == 0x45).unwrap();
    frame[at + 6] &= !0x40;
    frame
}
