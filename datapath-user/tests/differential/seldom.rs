//! Frames for reasons that hardly a frame of the others has: enough of each.

use datapath_kern::{host::plan, packet::Family};

use crate::{
    fragments,
    frame::{self, L4, SYN, Tuple},
    icmp::{IcmpError, port_unreachable, quote},
    traffic::{Arrival, By, Traffic, gateway, outside},
    tunnel::{self, Wrap},
    world::{FAMILIES, NODE, PEERS},
};

/// Frames of a kind, for each family.
const EACH: u16 = 40;

impl Traffic {
    pub(crate) fn seldom(&self, all: &mut Vec<Arrival>) {
        for family in FAMILIES {
            // More flows to one destination than one pod may have where others are to have some.
            for port in 0..4 * EACH {
                let pod = if family == Family::V4 { 3 } else { 4 };
                let own = plan::pod(NODE, pod, family);
                let tuple = Tuple::new(own, outside(family), L4::Udp(47_000 + port, 55));
                all.push(self.by(By::Pod(pod), &tuple));
            }
            for number in 0..EACH {
                self.seldom_of_pod(all, family, number);
            }
            for (peer, underlay) in PEERS {
                self.seldom_of_peer(all, family, peer, underlay);
            }
        }
    }

    fn seldom_of_pod(&self, all: &mut Vec<Arrival>, family: Family, number: u16) {
        let own = plan::pod(NODE, 1, family);
        let other = plan::pod(NODE, 2, family);
        let port = 46_000 + number;
        // Tunnel packets, to every node in turn.
        let node = [NODE, 2, 3][usize::from(number % 3)];
        let tuple = Tuple::new(own, plan::node(node, family), L4::Udp(port, 6081));
        all.push(self.by(By::Pod(1), &tuple));
        // By an interface that is no pod's.
        let tuple = Tuple::new(own, other, L4::Tcp(port, 80, SYN));
        all.push(Arrival {
            interface: [self.0.away, self.0.uplink][usize::from(number % 2)],
            ..self.by(By::Pod(1), &tuple)
        });
        // Protocols without ports.
        let low = number.to_le_bytes()[0];
        for to in [other, outside(family), plan::pod(2, 1, family)] {
            let tuple = Tuple::new(own, to, L4::Udp(port, 53));
            let mut frame = self.by(By::Pod(1), &tuple).frame;
            frame[if family == Family::V4 { 23 } else { 20 }] = 200 + low;
            all.push(self.of_pod(frame));
        }
        // ICMP of the other family.
        let mut frame = self.by(By::Pod(1), &tuple).frame;
        let (at, icmp) = if family == Family::V4 {
            (23, 58)
        } else {
            (20, 1)
        };
        frame[at] = icmp;
        all.push(self.of_pod(frame));
        // Authenticated as it is (RFC 4302): not to be translated.
        if family == Family::V4 {
            let tuple = Tuple::new(own, outside(family), L4::Udp(port, 53));
            let mut frame = self.by(By::Pod(1), &tuple).frame;
            frame[23] = 51;
            all.push(self.of_pod(frame));
        }
        // More flows to one destination than there are ports, of all pods.
        for pod in 1..=4 {
            let own = plan::pod(NODE, pod, family);
            let tuple = Tuple::new(own, outside(family), L4::Udp(port, 54));
            all.push(self.by(By::Pod(pod), &tuple));
        }
        // Fragments that a TCP header does not fit into.
        let tuple = Tuple::new(own, other, L4::Tcp(port, 81, SYN));
        let whole = self.by(By::Pod(1), &tuple);
        let pieces = fragments::cut(&whole.frame, 8, 2000 + number);
        all.extend(pieces.into_iter().map(|frame| Arrival {
            frame,
            ..whole.clone()
        }));
        // What only routers say.
        let kind = [134, 137][usize::from(number % 2)];
        let mut body = [0; 16];
        body[15] = low;
        let from = (plan::pod_mac(NODE, 1), plan::pod(NODE, 1, Family::V6));
        let to = gateway(Family::V6);
        all.push(self.of_pod(frame::icmpv6(from.0, from.1, to, 255, kind, &body)));
        // ICMP that is no echo, in pieces.
        let about = Tuple::new(outside(family), own, L4::Udp(port, 53));
        let quoted = quote(&about, 61, &[0x5a; 64], usize::MAX);
        let error = IcmpError::about(&about, own, port_unreachable(family), quoted);
        let whole = self.brought(By::Pod(1), |from, to| error.frame(from, to, 64));
        let pieces = fragments::cut(&whole.frame, 48, 1000 + number);
        all.extend(pieces.into_iter().map(|frame| Arrival {
            frame,
            ..whole.clone()
        }));
    }

    fn seldom_of_peer(&self, all: &mut Vec<Arrival>, family: Family, peer: u8, underlay: Family) {
        let tuple = Tuple::new(
            plan::pod(peer, 1, family),
            plan::pod(NODE, 1, family),
            L4::Tcp(46_100, 80, SYN),
        );
        let inner = tunnel::inner(NODE, &tuple);
        let kind = Wrap::new(peer, NODE, underlay, plan::pod_identity(peer, 1));
        for number in 0..EACH {
            let low = number.to_le_bytes()[0];
            let option = [1, 2, 0x80 | low, 0];
            // Numbers that are no pod's, and one option in a place of its own.
            let vni = u32::from(number) + 10;
            let frames = [
                Wrap {
                    vni,
                    ..kind.clone()
                }
                .around(&inner),
                kind.clone().with_options(&option).around(&inner),
            ];
            let by = By::Peer(peer, underlay);
            all.extend(frames.map(|frame| Arrival {
                frame,
                ..self.by(by, &tuple)
            }));
        }
    }
}
