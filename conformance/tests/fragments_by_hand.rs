//! Fragments that no stack makes in one go: of two pods under one identification, over each other,
//! and in the wrong order. Made by hand, put together by real sockets. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "it is all tests"
)]

#[allow(dead_code, reason = "every test binary uses its own part")]
#[path = "../../datapath-kern/tests/support/fragments.rs"]
mod pieces;
mod running;
mod util;

use std::{
    collections::HashSet,
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use datapath_conformance::{
    family::Family,
    frame::forge::{self, Place},
    netns::Namespace,
    paths::pod_address,
    probe::RawPort,
    topology::plan::UPLINK,
};
use datapath_user::{Datapath, EarlyFragments};
use pieces::cut;
use running::{Lab, To};
use socket2::{Domain, Type};
use util::{OrPanic, at, both_families, lab_name, way_out};

/// The port of the receiver.
const RECEIVER: u16 = 9000;
/// The port of the senders.
const SENDER: u16 = 31_000;
/// Bytes of a datagram, in three fragments.
const BYTES: usize = 3000;
/// Bytes of a fragment.
const PIECE: usize = 1200;

/// A socket that waits for datagrams in a namespace.
fn receiver(namespace: &Namespace, address: SocketAddr) -> UdpSocket {
    let domain = Domain::for_address(address);
    let socket = namespace.socket(domain, Type::DGRAM, None).or_panic();
    socket.bind(&address.into()).unwrap();
    UdpSocket::from(socket)
}

/// The datagrams that come until none does for a while.
fn received(socket: &UdpSocket, patience: Duration, wanted: usize) -> Vec<Vec<u8>> {
    socket.set_read_timeout(Some(patience)).unwrap();
    let mut all = Vec::new();
    let mut buffer = vec![0; 65_536];
    while all.len() < wanted {
        match socket.recv(&mut buffer) {
            Ok(length) => all.push(buffer[..length].to_vec()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    all
}

/// The fragments of a datagram of a pod of node 1, all bytes of it the same, and the port that they
/// are sent from.
fn of_pod(lab: &Lab, pod: u8, to: SocketAddr, family: Family, id: u16) -> (RawPort, Vec<Vec<u8>>) {
    let namespace = lab.pod(1, usize::from(pod));
    let port = RawPort::open(namespace, UPLINK).or_panic();
    let source = at(pod_address(1, pod, family), SENDER);
    let [from, to] = way_out(namespace, &port, source, to);
    let frame = forge::udp(from, to, &[pod; BYTES]).or_panic();
    (port, cut(&frame, PIECE, id))
}

/// Packets of node 1 that were dropped for a reason.
fn dropped(lab: &Lab, reason: &str) -> u64 {
    let metrics = lab.datapaths.inside(0, Datapath::metrics).or_panic();
    let of_reason = metrics.iter().filter(|metric| metric.outcome == reason);
    of_reason.map(|metric| metric.packets).sum()
}

#[test]
fn two_pods_under_one_identification() {
    let lab = Lab::start("fragment-ids", Family::Ipv4);
    both_families(|family| {
        let to = at(To::Outside.address(family), RECEIVER);
        let socket = receiver(lab.fabric.outside(), to);
        for id in 0..20 {
            let mut senders = [1, 2].map(|pod| of_pod(&lab, pod, to, family, id));
            for piece in 0..3 {
                for (port, pieces) in &mut senders {
                    port.send(&pieces[piece]).or_panic();
                }
            }
            let came: HashSet<_> = received(&socket, Duration::from_secs(20), 2)
                .into_iter()
                .collect();
            let sent = HashSet::from([vec![1; BYTES], vec![2; BYTES]]);
            assert!(came == sent, "{family}: identification {id}: mixed or lost");
        }
        Ok::<_, datapath_conformance::error::Error>(())
    });
    lab.datapaths.stop().or_panic();
}

#[test]
fn fragments_over_others_end_at_the_datapath() {
    let lab = Lab::start("overlaps", Family::Ipv4);
    both_families(|family| {
        let to = at(To::Neighbour.address(family), RECEIVER);
        let socket = receiver(lab.pod(1, 2), to);
        let (mut port, pieces) = of_pod(&lab, 1, to, family, 1);
        let (_, others) = of_pod(&lab, 1, to, family, 2);
        let before = dropped(&lab, "Overlapping IP fragments");
        // From the second one on eight bytes early.
        let mut over = of_pod(&lab, 1, to, family, 1).1.remove(1);
        earlier(&mut over);
        for piece in [&pieces[0], &over, &pieces[1], &pieces[2]] {
            port.send(piece).or_panic();
        }
        // What comes after it comes alone.
        for piece in &others {
            port.send(piece).or_panic();
        }
        let came = received(&socket, Duration::from_secs(20), 1);
        assert_eq!(came, [vec![1; BYTES]]);
        assert_eq!(received(&socket, Duration::from_millis(500), 1).len(), 0);
        assert_eq!(dropped(&lab, "Overlapping IP fragments"), before + 3);
        Ok::<_, datapath_conformance::error::Error>(())
    });
    lab.datapaths.stop().or_panic();
}

/// Moves a fragment eight bytes to the front.
fn earlier(frame: &mut [u8]) {
    if frame[12..14] == [8, 0] {
        frame[21] -= 1;
        pieces::seal(frame);
    } else {
        let field = u16::from_be_bytes([frame[56], frame[57]]) - 8;
        frame[56..58].copy_from_slice(&field.to_be_bytes());
    }
}

/// Where a rule of netfilter has the stack put packets together before it routes them.
#[test]
fn the_stack_puts_in_order_what_comes_in_reverse() {
    for early in [EarlyFragments::Drop, EarlyFragments::Stack] {
        let plan = datapath_conformance::topology::Plan::new(lab_name("reordered"));
        let lab = Lab::with(plan, Family::Ipv4, |config| config.fragments = early);
        let node = lab.fabric.node(1).or_panic().namespace();
        let rules = "add table inet order; \
                     add chain inet order forward { type filter hook forward priority 0; }; \
                     add rule inet order forward ct state established accept";
        let nft = node.command("nft").arg(rules).output().unwrap();
        assert!(nft.status.success(), "{nft:?}");
        for key in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
            node.set_sysctl(key, "1").or_panic();
        }
        let mut port = RawPort::open(lab.fabric.router(), "n1").or_panic();
        let uplink = RawPort::open(node, UPLINK).or_panic().mac();
        both_families(|family| {
            let to = at(pod_address(1, 1, family), RECEIVER);
            let socket = receiver(lab.pod(1, 1), to);
            let from = Place {
                mac: port.mac(),
                address: at(To::Outside.address(family), SENDER),
            };
            let to = Place {
                mac: uplink,
                address: to,
            };
            let frame = forge::udp(from, to, &[5; BYTES]).or_panic();
            // In order before and after, by way of the datapath alone.
            for (id, reverse) in [(1, false), (2, true), (3, false)] {
                let mut pieces = cut(&frame, PIECE, id);
                if reverse {
                    pieces.reverse();
                }
                for piece in &pieces {
                    port.send(piece).or_panic();
                }
                let arrives = !reverse || early == EarlyFragments::Stack;
                let patience = if arrives { 20_000 } else { 500 };
                let came = received(&socket, Duration::from_millis(patience), 1);
                let expected = vec![vec![5; BYTES]; usize::from(arrives)];
                assert!(came == expected, "{early:?}, {family}: packet {id}");
            }
            Ok::<_, datapath_conformance::error::Error>(())
        });
        lab.datapaths.stop().or_panic();
    }
}
