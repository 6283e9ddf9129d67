//! In another's name: addresses and identities, from a pod, from the tunnel, beside it.

use std::net::IpAddr;

use datapath_conformance::{
    family::Family,
    frame::forge,
    paths::pod_identity,
    topology::plan::{self, pod_gateway},
};

use crate::{
    cast::{CLIENTS, INTRUDERS, Who},
    pieces::cut,
    scene::{Play, Scene},
    wire::{Ends, SYN, UDP},
};

/// What does not work whatever identities come from.
pub(crate) const TRICKS: &[Play] = &[
    (
        "a client's addresses, by somebody else on its node",
        "a pod has its own addresses and no others",
        addresses,
    ),
    (
        "reserved identities in the tunnel",
        "no peer speaks for the node, the world, or nobody",
        reserved,
    ),
    (
        "inner sources that are not the peer's",
        "a peer speaks for its own pods",
        inner_sources,
    ),
    (
        "tunnel packets of somebody who is no peer",
        "a tunnel has two ends, both known",
        outer_sources,
    ),
    (
        "a remote pod's address beside the tunnel",
        "pods of peers come by the tunnel",
        beside,
    ),
    (
        "tunnel packets of a pod",
        "tunnels are the nodes'",
        of_a_pod,
    ),
    (
        "a port of the node that leads to the pod",
        "who asks is told behind the translation",
        led_by_the_node,
    ),
    (
        "a pod's address, to a port of the node that leads to the pod",
        "nobody with that address sends so",
        forged_to_the_node,
    ),
];

/// What does not work where the identity is that of the address.
pub(crate) const BY_ADDRESS: &[Play] = &[(
    "a client's identity in the tunnel",
    "the identity is that of the inner source, whatever the tunnel says",
    identities,
)];

/// Port of GENEVE (RFC 8926, section 3.3).
const GENEVE: u16 = 6081;

fn addresses(scene: &mut Scene) {
    for (client, intruder) in CLIENTS.into_iter().zip(INTRUDERS) {
        let port = scene.fresh_port();
        scene.passes(client, Who::Server, |s| {
            vec![s.udp(client, Who::Server, (port, 53))]
        });
        scene.blocks(intruder, |s| {
            let (node, _) = intruder.pod().unwrap();
            let claimed = CLIENTS.map(|who| who.address(s.family)).into_iter().chain([
                Who::Server.address(s.family),
                Who::Outside.address(s.family),
                pod_gateway(node, s.family),
                plan::node_address(node, s.family),
                plan::node_address(3 - node, s.family),
                unspecified(s.family),
            ]);
            let own = s.ends(intruder, Who::Server);
            let frames = claimed.flat_map(|source| {
                let forged = |mac| {
                    let ends = Ends {
                        macs: (mac, own.macs.1),
                        addresses: (source, own.addresses.1),
                    };
                    ends.frame(UDP, &ends.udp((port, 53), &s.marker))
                };
                [own.macs.0, s.mac(client)].map(forged)
            });
            frames.collect()
        });
        // Its own address, with the client's Ethernet address.
        scene.blocks(intruder, |s| {
            let mut ends = s.ends(intruder, Who::Server);
            ends.macs.0 = s.mac(client);
            vec![ends.frame(UDP, &ends.udp((port, 53), &s.marker))]
        });
    }
}

fn unspecified(family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => [0; 4].into(),
        Family::Ipv6 => [0; 16].into(),
    }
}

/// A datagram inside the tunnel, from an address to the server.
fn inner(s: &Scene, source: IpAddr, ports: (u16, u16)) -> Vec<u8> {
    let ends = Ends {
        macs: ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]),
        addresses: (source, Who::Server.address(s.family)),
    };
    ends.frame(UDP, &ends.udp(ports, &s.marker))
}

/// The ends of the tunnel, as node 1 sees them.
fn outer(s: &Scene) -> Ends {
    Ends {
        addresses: (
            plan::node_address(2, Family::Ipv4),
            plan::node_address(1, Family::Ipv4),
        ),
        ..s.ends(Who::Wire, Who::Server)
    }
}

fn wrapped(outer: &Ends, vni: u32, inner: &[u8]) -> Vec<u8> {
    let payload = forge::geneve(vni, &[], inner);
    outer.frame(UDP, &outer.udp((50_000, GENEVE), &payload))
}

/// A tunnel packet as the other node sends it for its client, which arrives.
fn honest(scene: &mut Scene, port: u16) {
    scene.passes(Who::Wire, Who::Server, |s| {
        let inner = inner(s, Who::FarClient.address(s.family), (port, 53));
        vec![wrapped(&outer(s), pod_identity(2, 1), &inner)]
    });
}

fn identities(scene: &mut Scene) {
    let port = scene.fresh_port();
    honest(scene, port);
    scene.blocks(Who::Wire, |s| {
        let claims = [(Who::FarIntruder, (2, 2)), (Who::FarIntruder, (2, 1))];
        let claims = claims.into_iter().chain([
            (Who::FarIntruder, (1, 1)),
            (Who::FarIntruder, (1, 2)),
            (Who::FarClient, (2, 2)),
            (Who::FarClient, (1, 1)),
        ]);
        let frames = claims.map(|(who, (node, pod))| {
            let inner = inner(s, who.address(s.family), (port, 53));
            wrapped(&outer(s), pod_identity(node, pod), &inner)
        });
        frames.collect()
    });
}

fn reserved(scene: &mut Scene) {
    let port = scene.fresh_port();
    honest(scene, port);
    for who in [Who::FarClient, Who::FarIntruder] {
        scene.blocks(Who::Wire, |s| {
            let inner = inner(s, who.address(s.family), (port, 53));
            let frame = |vni| wrapped(&outer(s), vni, &inner);
            (0..=10).chain([255]).map(frame).collect()
        });
    }
}

fn inner_sources(scene: &mut Scene) {
    let port = scene.fresh_port();
    honest(scene, port);
    scene.blocks(Who::Wire, |s| {
        let sources = [
            Who::Client.address(s.family),
            Who::Intruder.address(s.family),
            Who::Server.address(s.family),
            Who::Outside.address(s.family),
            pod_gateway(1, s.family),
            plan::node_address(1, s.family),
        ];
        let frames = sources.into_iter().flat_map(|source| {
            let frame = |vni| wrapped(&outer(s), vni, &inner(s, source, (port, 53)));
            [pod_identity(2, 1), pod_identity(1, 1)].map(frame)
        });
        frames.collect()
    });
}

fn outer_sources(scene: &mut Scene) {
    let port = scene.fresh_port();
    honest(scene, port);
    scene.blocks(Who::Wire, |s| {
        let inner = inner(s, Who::FarClient.address(s.family), (port, 53));
        let own = plan::node_address(1, Family::Ipv4);
        let sources = [
            plan::node_address(9, Family::Ipv4),
            own,
            plan::fabric_address(Family::Ipv4),
            plan::outside_address(Family::Ipv4),
            Who::FarClient.address(Family::Ipv4),
        ];
        let frames = sources.map(|source| {
            let ends = Ends {
                addresses: (source, own),
                ..outer(s)
            };
            wrapped(&ends, pod_identity(2, 1), &inner)
        });
        frames.to_vec()
    });
}

fn beside(scene: &mut Scene) {
    let port = scene.fresh_port();
    honest(scene, port);
    // The server takes 8443 of the one outside, and 53 of clients.
    let plain = |s: &Scene, source| Ends {
        addresses: (source, Who::Server.address(s.family)),
        ..s.ends(Who::Wire, Who::Server)
    };
    scene.passes(Who::Wire, Who::Server, |s| {
        let ends = plain(s, Who::Outside.address(s.family));
        vec![ends.frame(6, &ends.tcp((port, 8443), SYN, &s.marker))]
    });
    scene.blocks(Who::Wire, |s| {
        let sources = [
            Who::FarClient.address(s.family),
            Who::Client.address(s.family),
            Who::Server.address(s.family),
            Who::Outside.address(s.family),
            pod_gateway(1, s.family),
            pod_gateway(2, s.family),
            plan::node_address(1, s.family),
            plan::node_address(2, s.family),
        ];
        let frames = sources.map(|source| {
            let ends = plain(s, source);
            ends.frame(UDP, &ends.udp((port, 53), &s.marker))
        });
        frames.to_vec()
    });
    // Under a tag that says a priority and no VLAN, which the stack takes off, and two of them.
    scene.blocks(Who::Wire, |s| {
        let sources = CLIENTS.map(|who| who.address(s.family));
        let tags: [&[u8]; 3] = [
            &[0x81, 0, 0, 0],
            &[0x81, 0, 0xe0, 0],
            &[0x81, 0, 0, 0, 0x81, 0, 0, 0],
        ];
        let frames = sources.into_iter().flat_map(|source| {
            let ends = plain(s, source);
            let frame = ends.frame(UDP, &ends.udp((port, 53), &s.marker));
            tags.map(|tag| [&frame[..12], tag, &frame[12..]].concat())
        });
        frames.collect()
    });
}

fn of_a_pod(scene: &mut Scene) {
    for (client, intruder) in CLIENTS.into_iter().zip(INTRUDERS) {
        let port = scene.fresh_port();
        scene.passes(client, Who::Server, |s| {
            vec![s.udp(client, Who::Server, (port, 53))]
        });
        scene.blocks(intruder, |s| {
            let inner = inner(s, Who::FarClient.address(s.family), (port, 53));
            let to = [
                plan::node_address(1, s.family),
                plan::node_address(2, s.family),
                pod_gateway(1, s.family),
                pod_gateway(2, s.family),
            ];
            let frames = to.map(|to| {
                let own = s.ends(intruder, Who::Server);
                let ends = Ends {
                    addresses: (own.addresses.0, to),
                    ..own
                };
                wrapped(&ends, pod_identity(2, 1), &inner)
            });
            frames.to_vec()
        });
    }
}

/// Ports of node 1 that lead to the server's 53 and 54.
pub(crate) const LED: (u16, u16) = (5300, 5400);

/// The ruleset that leads them there.
pub(crate) fn lead() -> String {
    let rules = Family::ALL.map(|family| {
        let server = Who::Server.address(family);
        let (ip, server) = match family {
            Family::Ipv4 => ("ip", server.to_string()),
            Family::Ipv6 => ("ip6", format!("[{server}]")),
        };
        let node = plan::node_address(1, family);
        let (open, closed) = LED;
        format!(
            "{ip} daddr {node} udp dport {open} dnat {ip} to {server}:53
             {ip} daddr {node} udp dport {closed} dnat {ip} to {server}:54\n"
        )
    });
    format!(
        "table inet lead {{
           chain prerouting {{ type nat hook prerouting priority dstnat; {} }}
         }}",
        rules.concat()
    )
}

fn led_by_the_node(scene: &mut Scene) {
    let port = scene.fresh_port();
    let to_node = |s: &Scene, from, to_port| {
        let own = s.ends(from, Who::Server);
        let ends = Ends {
            addresses: (own.addresses.0, plan::node_address(1, s.family)),
            ..own
        };
        vec![ends.frame(UDP, &ends.udp((port, to_port), &s.marker))]
    };
    let (open, closed) = LED;
    scene.passes(Who::Client, Who::Server, |s| to_node(s, Who::Client, open));
    scene.blocks(Who::Client, |s| to_node(s, Who::Client, closed));
    for from in [Who::Intruder, Who::FarIntruder, Who::Outside] {
        scene.blocks(from, |s| to_node(s, from, open));
    }
}

fn forged_to_the_node(scene: &mut Scene) {
    let (port, id) = (scene.fresh_port(), scene.fresh_port());
    let datagram = |s: &Scene, source, payload: &[u8]| {
        let ends = Ends {
            addresses: (source, plan::node_address(1, s.family)),
            ..s.ends(Who::Wire, Who::Server)
        };
        ends.frame(UDP, &ends.udp((port, LED.0), payload))
    };
    scene.passes(Who::Client, Who::Server, |s| {
        vec![s.udp(Who::Client, Who::Server, (port, 53))]
    });
    scene.blocks(Who::Wire, |s| {
        let sources = [
            Who::Client.address(s.family),
            Who::FarClient.address(s.family),
            pod_gateway(1, s.family),
            plan::node_address(1, s.family),
        ];
        let frame = |source| datagram(s, source, &s.marker);
        sources.map(frame).to_vec()
    });
    // The stack would put pieces together, whatever their size and order.
    for (nth, piece) in [8, 16, 96].into_iter().enumerate() {
        let id = id + u16::try_from(nth).unwrap() * 100;
        let pieces = |s: &Scene| {
            let source = Who::FarClient.address(s.family);
            cut(&datagram(s, source, &s.marker.repeat(16)), piece, id)
        };
        scene.blocks(Who::Wire, |s| {
            let mut frames = pieces(s);
            // The first one twice: what overlaps is judged by none.
            frames.insert(0, frames[0].clone());
            frames
        });
        scene.blocks(Who::Wire, |s| pieces(s).into_iter().rev().collect());
    }
}
