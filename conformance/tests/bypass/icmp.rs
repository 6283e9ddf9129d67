//! ICMP: answers, errors, and what is neither.

use crate::{
    cast::{CLIENTS, INTRUDERS, Who},
    scene::{Play, Scene},
    wire::{ACK, Ends, SYN, TCP, UDP},
};

use datapath_conformance::family::Family;

pub(crate) const TRICKS: &[Play] = &[
    (
        "an echo reply to no request",
        "a reply begins no flow",
        replies,
    ),
    (
        "an echo request by somebody else",
        "the rule names clients",
        requests,
    ),
    (
        "ICMP that is neither echo nor error",
        "it belongs to no flow",
        others,
    ),
    (
        "an error about what was never sent",
        "it goes along with the flow that it quotes, or nowhere",
        about_nothing,
    ),
    (
        "an error about what was denied",
        "what is denied has no flow",
        about_denied,
    ),
    (
        "an error about another's flow",
        "a pod speaks for itself",
        about_another,
    ),
];

/// Request and reply of the family's echo.
fn echo(family: Family) -> (u8, u8) {
    match family {
        Family::Ipv4 => (8, 0),
        Family::Ipv6 => (128, 129),
    }
}

/// A message of the family's ICMP, the marker in it.
fn message(s: &Scene, from: Who, to: Who, kind: u8, id: u16) -> Vec<u8> {
    let ends = s.ends(from, to);
    let [high, low] = id.to_be_bytes();
    ends.frame(
        ends.icmp(),
        &ends.message(kind, 0, [high, low, 0, 1], &s.marker),
    )
}

fn replies(scene: &mut Scene) {
    let (request, reply) = echo(scene.family);
    for (client, intruder) in CLIENTS.into_iter().zip(INTRUDERS) {
        let id = scene.fresh_port();
        scene.passes(Who::Server, client, |s| {
            vec![message(s, Who::Server, client, request, id)]
        });
        scene.blocks(Who::Server, |s| {
            vec![message(s, Who::Server, intruder, request, id)]
        });
        scene.blocks(intruder, |s| {
            [id, id + 1000]
                .map(|id| message(s, intruder, Who::Server, reply, id))
                .to_vec()
        });
        scene.blocks(client, |s| {
            vec![message(s, client, Who::Server, reply, id + 1000)]
        });
        scene.passes(client, Who::Server, |s| {
            vec![message(s, client, Who::Server, reply, id)]
        });
    }
}

fn requests(scene: &mut Scene) {
    let (request, _) = echo(scene.family);
    for (client, intruder) in CLIENTS.into_iter().zip(INTRUDERS) {
        let id = scene.fresh_port();
        scene.passes(client, Who::Server, |s| {
            vec![message(s, client, Who::Server, request, id)]
        });
        scene.blocks(intruder, |s| {
            vec![message(s, intruder, Who::Server, request, id)]
        });
        // The other family's number means nothing here.
        scene.blocks(client, |s| {
            let ends = s.ends(client, Who::Server);
            let other = if ends.icmp() == 1 { 58 } else { 1 };
            let [high, low] = id.to_be_bytes();
            let body = ends.message(request, 0, [high, low, 0, 1], &s.marker);
            vec![ends.frame(other, &body)]
        });
    }
}

fn others(scene: &mut Scene) {
    let (request, _) = echo(scene.family);
    // Source quench, redirect, router advertisement and solicitation, timestamps, information,
    // address masks, traceroute, extended echo; group membership, router advertisement, redirect,
    // node information, experimental ones.
    let kinds: &[u8] = match scene.family {
        Family::Ipv4 => &[4, 5, 9, 10, 13, 14, 15, 16, 17, 18, 30, 42, 43],
        Family::Ipv6 => &[
            100, 127, 130, 131, 132, 134, 137, 138, 139, 140, 143, 160, 161, 200, 255,
        ],
    };
    for (client, intruder) in CLIENTS.into_iter().zip(INTRUDERS) {
        let id = scene.fresh_port();
        scene.passes(client, Who::Server, |s| {
            vec![message(s, client, Who::Server, request, id)]
        });
        for from in [client, intruder] {
            scene.blocks(from, |s| {
                let of = |&kind: &u8| message(s, from, Who::Server, kind, id);
                kinds.iter().map(of).collect()
            });
        }
    }
}

/// Errors of every kind by `from` to the server, about what the server sent to `about` or seems to
/// have sent; the marker behind what is quoted.
fn errors(s: &Scene, from: Who, about: Who, protocol: u8, ports: (u16, u16)) -> Vec<Vec<u8>> {
    let ends = s.ends(from, Who::Server);
    let asked = s.ends(Who::Server, about);
    let body = match protocol {
        TCP => asked.tcp(ports, SYN, &s.marker),
        _ => asked.udp(ports, &s.marker),
    };
    let quoted = asked.ip(&[], protocol, &body);
    errors_quoting(&ends, &quoted)
}

fn errors_quoting(ends: &Ends, quoted: &[u8]) -> Vec<Vec<u8>> {
    // Unreachable, too big, time exceeded, parameter problem.
    let kinds: [(u8, u8); 4] = match ends.icmp() {
        1 => [(3, 3), (3, 4), (11, 0), (12, 0)],
        _ => [(1, 4), (2, 0), (3, 0), (4, 0)],
    };
    let of =
        |(kind, code)| ends.frame(ends.icmp(), &ends.message(kind, code, [0, 0, 5, 0], quoted));
    kinds.map(of).to_vec()
}

fn about_nothing(scene: &mut Scene) {
    for (client, intruder) in CLIENTS.into_iter().zip(INTRUDERS) {
        let (port, other) = (scene.fresh_port(), scene.fresh_port());
        scene.passes(Who::Server, client, |s| {
            vec![s.udp(Who::Server, client, (port, 5353))]
        });
        for protocol in [UDP, TCP] {
            scene.blocks(client, |s| {
                errors(s, client, client, protocol, (other, 5353))
            });
            scene.blocks(client, |s| {
                errors(s, client, client, protocol, (port, 5354))
            });
            scene.blocks(intruder, |s| {
                errors(s, intruder, intruder, protocol, (port, 5353))
            });
        }
        // Something that is no packet, and one that the server did not send but get.
        scene.blocks(client, |s| {
            let ends = s.ends(client, Who::Server);
            let mut frames = errors_quoting(&ends, &s.marker);
            let back = ends.ip(&[], UDP, &ends.udp((5353, port), &s.marker));
            frames.extend(errors_quoting(&ends, &back));
            frames
        });
        scene.passes(client, Who::Server, |s| {
            errors(s, client, client, UDP, (port, 5353))
        });
    }
}

fn about_denied(scene: &mut Scene) {
    for (client, intruder) in CLIENTS.into_iter().zip(INTRUDERS) {
        let port = scene.fresh_port();
        scene.passes(Who::Server, client, |s| {
            vec![s.tcp(Who::Server, client, (port, 443), SYN)]
        });
        scene.blocks(Who::Server, |s| {
            vec![
                s.tcp(Who::Server, intruder, (port, 443), SYN),
                s.udp(Who::Server, intruder, (port, 5353)),
                s.tcp(Who::Server, client, (port, 444), SYN),
            ]
        });
        scene.blocks(intruder, |s| {
            errors(s, intruder, intruder, TCP, (port, 443))
        });
        scene.blocks(intruder, |s| {
            errors(s, intruder, intruder, UDP, (port, 5353))
        });
        scene.blocks(client, |s| errors(s, client, client, TCP, (port, 444)));
        // And by the server, about what was kept from it.
        scene.blocks(intruder, |s| {
            vec![s.tcp(intruder, Who::Server, (port, 80), SYN)]
        });
        scene.blocks(Who::Server, |s| {
            let kept = s.ends(intruder, Who::Server);
            let quoted = kept.ip(&[], TCP, &kept.tcp((port, 80), SYN, &s.marker));
            errors_quoting(&s.ends(Who::Server, intruder), &quoted)
        });
        scene.passes(client, Who::Server, |s| {
            errors(s, client, client, TCP, (port, 443))
        });
        scene.passes(client, Who::Server, |s| {
            vec![s.tcp(client, Who::Server, (443, port), SYN | ACK)]
        });
    }
}

fn about_another(scene: &mut Scene) {
    for (client, intruder) in CLIENTS.into_iter().zip(INTRUDERS) {
        let port = scene.fresh_port();
        scene.passes(Who::Server, client, |s| {
            vec![s.udp(Who::Server, client, (port, 5353))]
        });
        scene.blocks(intruder, |s| errors(s, intruder, client, UDP, (port, 5353)));
        // In the other one's name.
        scene.blocks(intruder, |s| {
            let mut ends = s.ends(client, Who::Server);
            ends.macs = s.ends(intruder, Who::Server).macs;
            let asked = s.ends(Who::Server, client);
            let quoted = asked.ip(&[], UDP, &asked.udp((port, 5353), &s.marker));
            errors_quoting(&ends, &quoted)
        });
        scene.passes(client, Who::Server, |s| {
            errors(s, client, client, UDP, (port, 5353))
        });
    }
}
