//! ICMP errors on real traffic: every hop of a path answers, and an error reaches the socket whose
//! packet it is about, whatever was translated or tunnelled in between.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "it is all tests"
)]

mod running;
mod util;

use std::net::IpAddr;

use datapath_conformance::{
    family::{Family, Protocol},
    offload::{self, Offload},
    paths::pod_address,
    probe::{self, Failure, Hop, trace},
    topology::{
        Node,
        plan::{self, UPLINK},
    },
};
use running::{Lab, To};
use util::{OrPanic, at, patient};

/// A port that nobody listens on.
const CLOSED: u16 = 9;

#[test]
fn every_hop_answers_with_a_tunnel_over_ipv4() {
    every_hop_answers(Family::Ipv4);
}

#[test]
fn every_hop_answers_with_a_tunnel_over_ipv6() {
    every_hop_answers(Family::Ipv6);
}

fn every_hop_answers(tunnel: Family) {
    let lab = Lab::start("hops", tunnel);
    unlimit(&lab);
    // Checksums left to interfaces everywhere, nowhere, and by the pods and node 1 but not by node 2:
    // it completes in an answer what was left open in the packet.
    for (pods, uplinks) in [
        (true, [true; 2]),
        (false, [false; 2]),
        (true, [true, false]),
    ] {
        for (node, uplink) in lab.fabric.nodes().iter().zip(uplinks) {
            for pod in node.pods() {
                offload::set(pod, UPLINK, &[(Offload::TxChecksum, pods)]).or_panic();
            }
            let uplink = [(Offload::TxChecksum, uplink)];
            offload::set(node.namespace(), UPLINK, &uplink).or_panic();
        }
        for family in Family::ALL {
            for to in To::ALL {
                // Quoted whole, and cut.
                for (protocol, size) in [
                    (Protocol::Udp, 32),
                    (Protocol::Udp, 1301),
                    (Protocol::Icmp, 1300),
                ] {
                    let (from, to_address) = (lab.pod(1, 1), to.address(family));
                    let found = trace(from, to_address, protocol, size, &patient());
                    assert_eq!(
                        found.or_panic(),
                        path(to, family),
                        "{to:?} by {protocol} of {size} bytes, checksums by interfaces of pods \
                         {pods}, of nodes {uplinks:?}"
                    );
                }
            }
        }
    }
    lab.datapaths.stop().or_panic();
}

/// Has everybody's stack answer as often as it is asked; six times at once is the default.
fn unlimit(lab: &Lab) {
    let pods = lab.fabric.nodes().iter().flat_map(Node::pods);
    for namespace in pods.chain([lab.fabric.router(), lab.fabric.outside()]) {
        for key in ["net.ipv4.icmp_ratelimit", "net.ipv6.icmp.ratelimit"] {
            namespace.set_sysctl(key, "0").or_panic();
        }
    }
}

/// The way from the first pod of node 1.
fn path(to: To, family: Family) -> Vec<Hop> {
    let end = to.address(family);
    let between = match to {
        To::Neighbour => vec![],
        To::Remote => vec![plan::pod_gateway(2, family)],
        To::Outside => vec![plan::fabric_address(family)],
    };
    let first = plan::pod_gateway(1, family);
    (1..)
        .zip([vec![first], between, vec![end]].concat())
        .map(|(hop_limit, from)| Hop {
            hop_limit,
            from: Some(from),
            reached: from == end,
        })
        .collect()
}

#[test]
fn a_closed_port_refuses_with_a_tunnel_over_ipv4() {
    a_closed_port_refuses(Family::Ipv4);
}

#[test]
fn a_closed_port_refuses_with_a_tunnel_over_ipv6() {
    a_closed_port_refuses(Family::Ipv6);
}

/// The receiver's error, and the one of a node whose port it is, reach the sender's socket.
fn a_closed_port_refuses(tunnel: Family) {
    let lab = Lab::start("refusal", tunnel);
    let one = lab.pod(1, 1);
    let node = lab.fabric.node(1).or_panic().namespace();
    for family in Family::ALL {
        let refuses = |from, to: IpAddr| {
            for size in [1, 1200] {
                let result = probe::udp_echo(from, at(to, CLOSED), &[size], &patient());
                let error = result.err().unwrap_or_else(|| panic!("{to} answers"));
                let refused = matches!(error.failure(), Some(Failure::Refused));
                assert!(refused, "{}", error.chain());
            }
        };
        for to in To::ALL {
            refuses(one, to.address(family));
        }
        refuses(one, plan::pod_gateway(1, family));
        refuses(one, plan::node_address(1, family));
        refuses(node, pod_address(1, 1, family));
        refuses(node, pod_address(2, 1, family));
        refuses(node, plan::outside_address(family));
    }
    lab.datapaths.stop().or_panic();
}
