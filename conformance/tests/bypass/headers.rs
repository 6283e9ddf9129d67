//! Headers that hide the ports, or say something else than they seem to.

use std::net::IpAddr;

use datapath_conformance::family::Family;

use crate::{
    cast::{CLIENTS, INTRUDERS, POLICIES, Who},
    scene::{Play, Scene},
    wire::{ACK, Ends, FIN, PSH, RST, SCTP, SYN, TCP, UDP, URG},
};

pub(crate) const TRICKS: &[Play] = &[
    (
        "extension headers before TCP",
        "the ports are looked for behind them",
        extensions,
    ),
    (
        "more extension headers than are walked",
        "what is not understood is not let through, whatever the rules say of unknown protocols",
        too_many_extensions,
    ),
    (
        "options in the IPv4 header",
        "the ports are looked for behind them",
        options,
    ),
    (
        "IPv4-mapped IPv6 addresses",
        "they would be taken for the pod's IPv4 address",
        mapped,
    ),
    (
        "odd flags of TCP",
        "a rule is about the port, whatever the flags",
        odd_flags,
    ),
    (
        "other protocols",
        "a rule about a port is about one protocol",
        protocols,
    ),
    ("VLAN tags", "a pod has no VLANs", tags),
    (
        "the receiver's Ethernet address, or everybody's",
        "the sender is asked, wherever the frame says that it goes",
        past_the_gateway,
    ),
    (
        "lengths that contradict each other",
        "what is not understood is not let through",
        lengths,
    ),
];

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION: u8 = 60;
const FRAGMENT: u8 = 44;

/// One of eight bytes, but for its first: padding (RFC 8200, section 4.2).
const PADDING: &[u8] = &[0, 1, 4, 0, 0, 0, 0];
/// One of sixteen bytes.
const LONG_PADDING: &[u8] = &[1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// A routing header that says nothing any more: of an experimental type, no segments left.
const ROUTED: &[u8] = &[0, 253, 0, 0, 0, 0, 0];
/// A fragment header of a whole packet.
const WHOLE: &[u8] = &[0, 0, 0, 0, 0, 0, 7];

/// Clients may everything but TCP 22.
const ALL_BUT_ONE: &str = "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: all-but-one, namespace: shop}
spec:
  endpointSelector: {matchLabels: {role: server}}
  ingress:
    - fromEndpoints: [{matchLabels: {role: client}}]
  ingressDeny:
    - fromEndpoints: [{matchLabels: {role: client}}]
      toPorts: [{ports: [{port: '22', protocol: TCP}]}]
";

fn extensions(scene: &mut Scene) {
    if scene.family == Family::Ipv4 {
        return;
    }
    let chains: [&[(u8, &[u8])]; 6] = [
        &[(HOP_BY_HOP, PADDING)],
        &[(DESTINATION, PADDING)],
        &[(DESTINATION, LONG_PADDING)],
        &[(ROUTING, ROUTED)],
        &[
            (HOP_BY_HOP, LONG_PADDING),
            (DESTINATION, PADDING),
            (ROUTING, ROUTED),
        ],
        &[
            (HOP_BY_HOP, PADDING),
            (FRAGMENT, WHOLE),
            (DESTINATION, PADDING),
        ],
    ];
    for (client, intruder) in CLIENTS.into_iter().zip(INTRUDERS) {
        let source = scene.fresh_port();
        let syns = |s: &Scene, from, port| {
            let ends = s.ends(from, Who::Server);
            let segment = ends.tcp((source, port), SYN, &s.marker);
            chains
                .map(|chain| ends.with_extensions(chain, TCP, &segment))
                .to_vec()
        };
        scene.passes(client, Who::Server, |s| syns(s, client, 80));
        scene.blocks(client, |s| syns(s, client, 81));
        scene.blocks(intruder, |s| syns(s, intruder, 80));
    }
}

fn too_many_extensions(scene: &mut Scene) {
    if scene.family == Family::Ipv4 {
        return;
    }
    scene.enforce(ALL_BUT_ONE);
    for client in CLIENTS {
        let source = scene.fresh_port();
        let syn = |s: &Scene, count: usize, port| {
            let ends = s.ends(client, Who::Server);
            let segment = ends.tcp((source, port), SYN, &s.marker);
            ends.with_extensions(&vec![(DESTINATION, PADDING); count], TCP, &segment)
        };
        scene.passes(client, Who::Server, |s| {
            (0..=5).map(|count| syn(s, count, 23)).collect()
        });
        scene.blocks(client, |s| {
            (0..=12).map(|count| syn(s, count, 22)).collect()
        });
        // In what says that it is a fragment, one that says that it is whole.
        let [high, low] = source.to_be_bytes();
        let first = [0, 0, 1, 0, 0, high, low];
        scene.blocks(client, |s| {
            let ends = s.ends(client, Who::Server);
            let segment = ends.tcp((source, 22), SYN, &s.marker.repeat(16));
            vec![
                ends.with_extensions(&[(FRAGMENT, WHOLE), (FRAGMENT, WHOLE)], TCP, &segment),
                ends.with_extensions(&[(FRAGMENT, &first), (FRAGMENT, WHOLE)], TCP, &segment),
                ends.with_extensions(
                    &[
                        (FRAGMENT, &first),
                        (DESTINATION, PADDING),
                        (FRAGMENT, WHOLE),
                    ],
                    TCP,
                    &segment,
                ),
            ]
        });
    }
    scene.enforce(POLICIES);
}

fn options(scene: &mut Scene) {
    if scene.family == Family::Ipv6 {
        return;
    }
    // No operation, router alert (RFC 2113), as many as there can be (RFC 791, section 3.1).
    let options: [&[u8]; 3] = [&[1; 4], &[148, 4, 0, 0], &[1; 40]];
    for (client, intruder) in CLIENTS.into_iter().zip(INTRUDERS) {
        let source = scene.fresh_port();
        let syns = |s: &Scene, from, port| {
            let ends = s.ends(from, Who::Server);
            let segment = ends.tcp((source, port), SYN, &s.marker);
            options
                .map(|options| ends.with_options(options, TCP, &segment))
                .to_vec()
        };
        scene.passes(client, Who::Server, |s| syns(s, client, 80));
        scene.blocks(client, |s| syns(s, client, 81));
        scene.blocks(intruder, |s| syns(s, intruder, 80));
        // Ports of port 80, where a header without options would have ended.
        scene.blocks(client, |s| {
            let ends = s.ends(client, Who::Server);
            let segment = ends.tcp((source, 81), SYN, &s.marker);
            let [high, low] = source.to_be_bytes();
            vec![ends.with_options(&[high, low, 0, 80], TCP, &segment)]
        });
    }
}

fn mapped(scene: &mut Scene) {
    if scene.family == Family::Ipv4 {
        return;
    }
    for (client, intruder) in CLIENTS.into_iter().zip(INTRUDERS) {
        let source = scene.fresh_port();
        scene.passes(client, Who::Server, |s| {
            vec![s.tcp(client, Who::Server, (source, 80), SYN)]
        });
        for from in [client, intruder] {
            scene.blocks(from, |s| {
                let honest = s.ends(from, Who::Server);
                let mapped = |who: Who| match who.address(Family::Ipv4) {
                    IpAddr::V4(address) => IpAddr::V6(address.to_ipv6_mapped()),
                    IpAddr::V6(address) => IpAddr::V6(address),
                };
                let (source_address, destination) = honest.addresses;
                let pairs = [
                    (mapped(client), mapped(Who::Server)),
                    (mapped(client), destination),
                    (source_address, mapped(Who::Server)),
                ];
                let frames = pairs.map(|addresses| {
                    let ends = Ends {
                        addresses,
                        ..honest
                    };
                    ends.frame(TCP, &ends.tcp((source, 80), SYN, &s.marker))
                });
                frames.to_vec()
            });
        }
    }
}

fn odd_flags(scene: &mut Scene) {
    let odd = [
        0,
        SYN | FIN,
        SYN | RST,
        SYN | PSH,
        SYN | URG,
        FIN | PSH | URG,
        SYN | ACK | FIN,
        0xff,
        0xc2,
    ];
    for (client, intruder) in CLIENTS.into_iter().zip(INTRUDERS) {
        let source = scene.fresh_port();
        let segments = |s: &Scene, from, port| {
            odd.map(|flags| s.tcp(from, Who::Server, (source, port), flags))
                .to_vec()
        };
        // A SYN with data, and then one of them after the other on the connection.
        scene.passes(client, Who::Server, |s| {
            vec![s.tcp(client, Who::Server, (source, 80), SYN | PSH)]
        });
        scene.passes(client, Who::Server, |s| segments(s, client, 80));
        scene.blocks(client, |s| segments(s, client, 81));
        scene.blocks(intruder, |s| segments(s, intruder, 80));
    }
}

fn protocols(scene: &mut Scene) {
    // ICMP of the other family, IPIP, DCCP, IPv6, GRE, ESP, AH, EtherIP, UDP-Lite, MPLS,
    // experimental, reserved.
    let others = [4, 33, 41, 47, 50, 51, 97, 136, 137, 253, 255];
    for (client, intruder) in CLIENTS.into_iter().zip(INTRUDERS) {
        let port = scene.fresh_port();
        // An INIT of SCTP (RFC 9260, section 3.3.2), as far as anyone on the way looks.
        let sctp = |s: &Scene, from, to_port: u16| {
            let [p0, p1] = port.to_be_bytes();
            let [t0, t1] = to_port.to_be_bytes();
            let chunk = [p0, p1, t0, t1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20];
            let ends = s.ends(from, Who::Server);
            ends.frame(SCTP, &[&chunk[..], &s.marker, &[0; 16]].concat())
        };
        scene.passes(client, Who::Server, |s| vec![sctp(s, client, 3868)]);
        scene.blocks(client, |s| {
            [80, 53, 3869].map(|to| sctp(s, client, to)).to_vec()
        });
        scene.blocks(intruder, |s| vec![sctp(s, intruder, 3868)]);
        for from in [client, intruder] {
            scene.blocks(from, |s| {
                let ends = s.ends(from, Who::Server);
                // As if they had the ports of UDP, or those of TCP.
                let datagram = ends.udp((port, 53), &s.marker.repeat(2));
                let segment = ends.tcp((port, 80), SYN, &s.marker);
                let both = |&protocol: &u8| {
                    [
                        ends.frame(protocol, &datagram),
                        ends.frame(protocol, &segment),
                    ]
                };
                others.iter().flat_map(both).collect()
            });
            // The port of one protocol in the other.
            scene.blocks(from, |s| {
                vec![
                    s.udp(from, Who::Server, (port, 80)),
                    s.tcp(from, Who::Server, (port, 53), SYN),
                ]
            });
        }
    }
}

fn tags(scene: &mut Scene) {
    for client in CLIENTS {
        let port = scene.fresh_port();
        let datagram = |s: &Scene| s.udp(client, Who::Server, (port, 53));
        scene.passes(client, Who::Server, |s| vec![datagram(s)]);
        scene.blocks(client, |s| {
            let tags: [&[u8]; 5] = [
                &[0x81, 0, 0, 0],
                &[0x81, 0, 0, 1],
                &[0x81, 0, 0x0f, 0xff],
                &[0x88, 0xa8, 0, 1],
                &[0x88, 0xa8, 0, 1, 0x81, 0, 0, 2],
            ];
            let frame = datagram(s);
            tags.map(|tag| [&frame[..12], tag, &frame[12..]].concat())
                .to_vec()
        });
    }
}

fn past_the_gateway(scene: &mut Scene) {
    let port = scene.fresh_port();
    let (client, intruder) = (Who::Client, Who::Intruder);
    let server = scene.mac(Who::Server);
    for to in [
        server,
        [0xff; 6],
        [1, 0, 0x5e, 0, 0, 1],
        [0x33, 0x33, 0, 0, 0, 1],
    ] {
        let sent = |s: &Scene, from, port| {
            let mut ends = s.ends(from, Who::Server);
            ends.macs.1 = to;
            vec![ends.frame(UDP, &ends.udp((port, 53), &s.marker))]
        };
        scene.passes(client, Who::Server, |s| {
            vec![s.udp(client, Who::Server, (port, 53))]
        });
        scene.blocks(intruder, |s| sent(s, intruder, port));
    }
}

fn lengths(scene: &mut Scene) {
    for client in CLIENTS {
        let port = scene.fresh_port();
        let datagram = |s: &Scene| s.udp(client, Who::Server, (port, 53));
        scene.passes(client, Who::Server, |s| vec![datagram(s)]);
        let v4 = scene.family == Family::Ipv4;
        scene.blocks(client, |s| {
            let whole = datagram(s);
            let ends = s.ends(client, Who::Server);
            let short = ends.frame(
                TCP,
                &[ends.tcp((port, 80), SYN, &[]), s.marker.clone()].concat(),
            );
            let changed = |mut frame: Vec<u8>, at: usize, to: &[u8]| {
                frame[at..at + to.len()].copy_from_slice(to);
                frame
            };
            let (length, l4) = if v4 { (16, 34) } else { (18, 54) };
            vec![
                // More than there is, and less than the header.
                changed(whole.clone(), length, &[0x40, 0]),
                changed(whole.clone(), length, &[0, 7]),
                // Less than a header of UDP, and one of TCP that is shorter than TCP's.
                changed(whole, l4 + 4, &[0, 7]),
                changed(short, l4 + 12, &[0x40]),
            ]
        });
    }
}
