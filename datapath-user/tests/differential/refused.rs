//! Frames that are refused, or nearly: forged, broken, and of kinds that are none of ours.

use std::net::IpAddr;

use datapath_kern::{abi::endpoint::identity, host::plan, packet::Family};

use crate::{
    frame::{self, L4, SYN, Tuple},
    traffic::{Arrival, By, SHORTEST, Traffic, gateway, outside},
    tunnel::{self, Wrap},
    world::{NODE, PEERS},
};

impl Traffic {
    /// In others' names, and by ways that are not theirs.
    pub(crate) fn forged(&self, all: &mut Vec<Arrival>, family: Family) {
        let pod = |number| plan::pod(NODE, number, family);
        let tcp = L4::Tcp(42_000, 80, SYN);
        let sources = [
            pod(1),
            pod(2),
            pod(99),
            gateway(family),
            plan::node(NODE, family),
            plan::node(2, family),
            plan::pod(2, 1, family),
            outside(family),
        ];
        for source in sources {
            for to in [
                pod(1),
                pod(3),
                plan::node(NODE, family),
                plan::pod(3, 1, family),
            ] {
                let tuple = Tuple::new(source, to, tcp);
                let ways = [
                    By::Pod(1),
                    By::Pod(2),
                    By::Router,
                    By::Stack,
                    By::StackTo(3),
                ];
                all.extend(ways.map(|by| self.by(by, &tuple)));
                let by_peers = PEERS.map(|(peer, underlay)| By::Peer(peer, underlay));
                all.extend(by_peers.map(|by| self.by(by, &tuple)));
            }
        }
        let own = Tuple::new(pod(1), pod(3), L4::Tcp(42_001, 80, SYN));
        let arrival = self.by(By::Pod(1), &own);
        for interface in [self.pod(2), self.0.away, self.0.uplink] {
            all.push(Arrival {
                interface,
                ..arrival.clone()
            });
        }
        for to in [plan::node(2, family), plan::node(NODE, family), pod(2)] {
            let tuple = Tuple::new(pod(1), to, L4::Udp(50_000, 6081));
            all.push(self.by(By::Pod(1), &tuple));
        }
    }

    /// Protocols, options and extension headers, and what is broken in all of them.
    pub(crate) fn kinds(&self, all: &mut Vec<Arrival>, family: Family) {
        let own = plan::pod(NODE, 1, family);
        let v4 = family == Family::V4;
        for to in [
            plan::pod(NODE, 2, family),
            plan::pod(2, 1, family),
            outside(family),
        ] {
            for l4 in [
                L4::Tcp(43_000, 80, SYN),
                L4::Udp(43_000, 53),
                L4::EchoReply(7),
            ] {
                let whole = frame::of_pod(NODE, 1, &Tuple::new(own, to, l4));
                let mut push = |frame: Vec<u8>| all.push(self.of_pod(frame));
                let with = |changes: &[(usize, u8)]| {
                    let mut frame = whole.clone();
                    for (at, value) in changes {
                        frame[*at] = *value;
                    }
                    frame
                };
                let protocol = if v4 { 23 } else { 20 };
                for number in [
                    0, 1, 4, 6, 17, 33, 43, 44, 47, 50, 51, 58, 59, 60, 89, 132, 135, 136, 255,
                ] {
                    push(with(&[(protocol, number)]));
                }
                for version in [0x00, 0x44, 0x45, 0x46, 0x4f, 0x60, 0x65] {
                    push(with(&[(14, version)]));
                }
                for ether_type in [[0x81, 0], [0x88, 0xa8], [0, 38], [0x88, 0x47], [0x86, 0xdd]] {
                    push(with(&[(12, ether_type[0]), (13, ether_type[1])]));
                    let mut tagged = whole.clone();
                    tagged.splice(12..12, [ether_type[0], ether_type[1], 0, 5]);
                    push(tagged);
                }
                if v4 {
                    for bits in [0x20, 0x40, 0x80, 0x01] {
                        push(with(&[(20, bits)]));
                    }
                }
                for length in [0, 19, 20, 21, 28, 40] {
                    push(with(&[
                        (if v4 { 16 } else { 18 }, 0),
                        (if v4 { 17 } else { 19 }, length),
                    ]));
                }
                for units in [1, 2, 30, 60] {
                    let one = tunnel::with_extension(whole.clone(), units);
                    push(tunnel::with_extension(one.clone(), 1));
                    push((0..6).fold(one.clone(), |frame, _| tunnel::with_extension(frame, 1)));
                    push(one);
                }
                // Without a checksum, and with the two that mean the same.
                let l4_at = if v4 { 34 } else { 54 };
                let at = l4_at
                    + match l4 {
                        L4::Tcp(..) => 16,
                        L4::Udp(..) => 6,
                        L4::EchoRequest(_) | L4::EchoReply(_) => 2,
                    };
                for half in [0, 0xff] {
                    push(with(&[(at, half), (at + 1, half)]));
                }
                for icmp in [3, 5, 8, 11, 13, 128, 129, 130, 133, 134, 135, 136, 137, 143] {
                    push(with(&[(l4_at, icmp)]));
                }
                for length in SHORTEST..whole.len() {
                    push(whole[..length].to_vec());
                }
            }
        }
        if let (IpAddr::V4(from), IpAddr::V4(to)) = (
            plan::pod(NODE, 1, Family::V4),
            plan::pod(NODE, 2, Family::V4),
        ) {
            let mapped = Tuple::new(
                from.to_ipv6_mapped().into(),
                to.to_ipv6_mapped().into(),
                L4::Udp(1, 2),
            );
            all.push(self.by(By::Pod(1), &mapped));
        }
    }

    /// Tunnel packets whose own headers are not as they should be.
    pub(crate) fn tunnelled(
        &self,
        all: &mut Vec<Arrival>,
        family: Family,
        peer: u8,
        underlay: Family,
    ) {
        let tuple = Tuple::new(
            plan::pod(peer, 1, family),
            plan::pod(NODE, 1, family),
            L4::Tcp(44_000, 80, SYN),
        );
        let inner = tunnel::inner(NODE, &tuple);
        let kind = Wrap::new(peer, NODE, underlay, plan::pod_identity(peer, 1));
        let mut push = |frame: Vec<u8>| {
            all.push(Arrival {
                frame,
                ..self.by(By::Peer(peer, underlay), &tuple)
            });
        };
        for source in [
            plan::node(9, underlay),
            plan::pod(NODE, 2, underlay),
            plan::node(5 - peer, underlay),
        ] {
            push(
                Wrap {
                    source,
                    ..kind.clone()
                }
                .around(&inner),
            );
        }
        for destination in [plan::gateway(NODE, underlay), plan::node(8, underlay)] {
            push(
                Wrap {
                    destination,
                    ..kind.clone()
                }
                .around(&inner),
            );
        }
        for first in [
            [0x40, 0],
            [0xc0, 0],
            [0, 0x80],
            [0, 0x40],
            [0, 0xc0],
            [0, 0x3f],
            [1, 0],
            [63, 0],
        ] {
            push(
                Wrap {
                    first,
                    ..kind.clone()
                }
                .around(&inner),
            );
        }
        for protocol in [0x0800, 0x86dd, 0x6559, 0] {
            push(
                Wrap {
                    protocol,
                    ..kind.clone()
                }
                .around(&inner),
            );
        }
        let numbers = [
            0,
            identity::HOST,
            identity::WORLD,
            identity::UNMANAGED,
            identity::REMOTE_NODE,
        ];
        for vni in numbers.into_iter().chain([255, 256, 0xff_ffff]) {
            push(
                Wrap {
                    vni,
                    ..kind.clone()
                }
                .around(&inner),
            );
        }
        let options: [&[u8]; 7] = [
            &[1, 2, 3, 0],
            &[1, 2, 0x83, 0],
            &[1, 2, 3, 1, 0, 0, 0, 0],
            &[1, 2, 3, 0, 1, 2, 0x80, 0],
            &[1, 2, 3, 2, 0, 0, 0, 0],
            &[1, 2, 3, 0xe1, 0, 0, 0, 0],
            &[0; 252],
        ];
        for option in options {
            push(kind.clone().with_options(option).around(&inner));
        }
    }

    /// Tunnel packets whose inner frame is not as it should be.
    pub(crate) fn carried(
        &self,
        all: &mut Vec<Arrival>,
        family: Family,
        peer: u8,
        underlay: Family,
    ) {
        let tuple = Tuple::new(
            plan::pod(peer, 1, family),
            plan::pod(NODE, 1, family),
            L4::Tcp(44_000, 80, SYN),
        );
        let inner = tunnel::inner(NODE, &tuple);
        let kind = Wrap::new(peer, NODE, underlay, plan::pod_identity(peer, 1));
        let mut push = |frame: Vec<u8>| {
            all.push(Arrival {
                frame,
                ..self.by(By::Peer(peer, underlay), &tuple)
            });
        };
        for at in [12, 14, 20, 21, 23, 34, 47] {
            let mut harmed = inner.clone();
            harmed[at] ^= 0xff;
            push(kind.around(&harmed));
        }
        for reply in [0, 3, 128, 129, 135] {
            let mut other = tunnel::inner(
                NODE,
                &Tuple {
                    l4: L4::EchoRequest(3),
                    ..tuple
                },
            );
            other[if family == Family::V4 { 34 } else { 54 }] = reply;
            push(kind.around(&other));
        }
        let whole = kind.around(&inner);
        for units in [1, 8, 40] {
            push(tunnel::with_extension(whole.clone(), units));
            push(kind.around(&tunnel::with_extension(inner.clone(), units)));
        }
        for length in SHORTEST..whole.len() {
            push(whole[..length].to_vec());
        }
        // Not the receiver of what it carries; the sender alone.
        let destinations = [
            plan::pod(NODE, 99, family),
            gateway(family),
            plan::pod(5 - peer, 1, family),
            outside(family),
        ];
        for destination in destinations {
            push(kind.around(&tunnel::inner(
                NODE,
                &Tuple {
                    destination,
                    ..tuple
                },
            )));
        }
    }

    /// ARP and neighbour discovery.
    pub(crate) fn neighbours(&self, all: &mut Vec<Arrival>) {
        let (gateway4, gateway6) = (gateway(Family::V4), gateway(Family::V6));
        let (mac, other) = (plan::pod_mac(NODE, 1), plan::pod_mac(NODE, 2));
        let pod = |number, family| plan::pod(NODE, number, family);
        let own = pod(1, Family::V4);
        let mut push = |frame: Vec<u8>| all.push(self.of_pod(frame));
        push(frame::arp_request(NODE, 1, gateway4));
        push(frame::arp_request(NODE, 1, pod(2, Family::V4)));
        push(frame::arp_request(NODE, 2, gateway4));
        push(frame::arp(mac, 2, mac, own, gateway4));
        push(frame::arp(mac, 1, other, own, gateway4));
        push(frame::arp(mac, 1, mac, pod(2, Family::V4), gateway4));
        let request = frame::arp_request(NODE, 1, gateway4);
        for at in 14..request.len() {
            let mut harmed = request.clone();
            harmed[at] ^= 0x55;
            push(harmed);
            push(request[..at].to_vec());
        }
        let own = pod(1, Family::V6);
        let link_local = "fe80::1".parse().unwrap();
        let target = |address: IpAddr| match address {
            IpAddr::V6(v6) => v6.octets().to_vec(),
            IpAddr::V4(v4) => v4.octets().to_vec(),
        };
        push(frame::solicitation(NODE, 1, gateway6));
        push(frame::solicitation(NODE, 1, pod(2, Family::V6)));
        push(frame::solicitation(NODE, 2, gateway6));
        for source in [own, link_local, "::".parse().unwrap(), pod(2, Family::V6)] {
            for (hop_limit, kind) in [(255, 135), (64, 135), (255, 136), (255, 134), (255, 137)] {
                let body = target(gateway6);
                push(frame::icmpv6(mac, source, gateway6, hop_limit, kind, &body));
            }
            for kind in [133, 143, 1, 2] {
                let everyone = "ff02::2".parse().unwrap();
                push(frame::icmpv6(mac, source, everyone, 255, kind, &[0; 16]));
                push(frame::icmpv6(mac, source, gateway6, 255, kind, &[0; 16]));
            }
        }
        let request = frame::solicitation(NODE, 1, gateway6);
        for at in 14..request.len() {
            let mut harmed = request.clone();
            harmed[at] ^= 0x55;
            push(harmed);
            push(request[..at].to_vec());
        }
        push(tunnel::with_extension(request, 1));
    }
}
