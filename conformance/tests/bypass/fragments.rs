//! Fragments: ports that only the first one has, and what overlaps them.

use datapath_conformance::family::Family;

use crate::{
    cast::{CLIENTS, INTRUDERS, Who},
    pieces::{cut, seal},
    scene::{Play, Scene},
    wire::{ACK, PSH, SYN, UDP},
};

pub(crate) const TRICKS: &[Play] = &[
    (
        "a denied packet in fragments",
        "the first one has the ports, and the others follow it",
        in_fragments,
    ),
    (
        "fragments that follow nothing",
        "whose ports they have nobody said",
        followers_alone,
    ),
    (
        "fragments that follow another's first",
        "who sent the first is part of its name",
        followers_of_another,
    ),
    (
        "a second first fragment, to another port",
        "what lies over what went on does not go on",
        second_first,
    ),
    (
        "a fragment over the ports",
        "what lies over what went on does not go on",
        over_the_ports,
    ),
    (
        "a first fragment without the flags of TCP",
        "what is cut within its header goes nowhere (RFC 1858, RFC 3128)",
        tiny,
    ),
    (
        "an atomic fragment",
        "it is a whole packet, and is judged as one",
        atomic,
    ),
    (
        "a fragment within a fragment",
        "what is not understood is not let through",
        nested,
    ),
];

/// Bytes of a piece: two markers fit in what is left of the first one behind a header.
const PIECE: usize = 96;

/// A datagram in pieces, the marker in all of them.
fn datagram(s: &Scene, from: Who, ports: (u16, u16), id: u16) -> Vec<Vec<u8>> {
    let ends = s.ends(from, Who::Server);
    let frame = ends.frame(UDP, &ends.udp(ports, &s.marker.repeat(16)));
    cut(&frame, PIECE, id)
}

fn in_fragments(scene: &mut Scene) {
    for (client, intruder) in CLIENTS.into_iter().zip(INTRUDERS) {
        let (port, id) = (scene.fresh_port(), scene.fresh_port());
        scene.passes(client, Who::Server, |s| datagram(s, client, (port, 53), id));
        scene.blocks(intruder, |s| datagram(s, intruder, (port, 53), id));
        scene.blocks(client, |s| datagram(s, client, (port, 54), id + 1));
        // Also of a flow that there is.
        scene.blocks(Who::Server, |s| {
            let ends = s.ends(Who::Server, intruder);
            let frame = ends.frame(UDP, &ends.udp((53, port), &s.marker.repeat(16)));
            cut(&frame, PIECE, id)
        });
    }
}

fn followers_alone(scene: &mut Scene) {
    for client in CLIENTS {
        let (port, id) = (scene.fresh_port(), scene.fresh_port());
        scene.passes(client, Who::Server, |s| datagram(s, client, (port, 53), id));
        scene.blocks(client, |s| {
            datagram(s, client, (port, 53), id + 1000)[1..].to_vec()
        });
        // Those of a packet that is complete.
        scene.blocks(client, |s| {
            datagram(s, client, (port, 53), id)[1..].to_vec()
        });
        // And those of a first one that was denied.
        scene.blocks(client, |s| {
            datagram(s, client, (port, 54), id + 2000)[..1].to_vec()
        });
        scene.blocks(client, |s| {
            datagram(s, client, (port, 53), id + 2000)[1..].to_vec()
        });
    }
}

fn followers_of_another(scene: &mut Scene) {
    for (client, intruder) in CLIENTS.into_iter().zip(INTRUDERS) {
        let (port, id) = (scene.fresh_port(), scene.fresh_port());
        scene.passes(client, Who::Server, |s| {
            datagram(s, client, (port, 53), id)[..1].to_vec()
        });
        scene.blocks(intruder, |s| {
            datagram(s, intruder, (port, 53), id)[1..].to_vec()
        });
        // In the other one's name.
        scene.blocks(intruder, |s| {
            let mut frames = datagram(s, client, (port, 53), id)[1..].to_vec();
            let ends = s.ends(intruder, Who::Server);
            for frame in &mut frames {
                frame[..6].copy_from_slice(&ends.macs.1);
                frame[6..12].copy_from_slice(&ends.macs.0);
            }
            frames
        });
        scene.passes(client, Who::Server, |s| {
            datagram(s, client, (port, 53), id)[1..].to_vec()
        });
    }
}

fn second_first(scene: &mut Scene) {
    for client in CLIENTS {
        let (port, id) = (scene.fresh_port(), scene.fresh_port());
        scene.passes(client, Who::Server, |s| {
            datagram(s, client, (port, 53), id)[..1].to_vec()
        });
        scene.blocks(client, |s| {
            datagram(s, client, (port, 54), id)[..1].to_vec()
        });
        // The other way round: the denied one opens no way for what follows it.
        scene.blocks(client, |s| {
            datagram(s, client, (port, 54), id + 1000)[..1].to_vec()
        });
        scene.blocks(client, |s| {
            let mut frames = datagram(s, client, (port, 54), id + 1000)[1..].to_vec();
            frames.extend_from_slice(&datagram(s, client, (port, 54), id + 1000)[..1]);
            frames
        });
    }
}

/// Moves a piece to where another one lies, in units of eight bytes, with more to follow or not.
fn moved(mut frame: Vec<u8>, offset: u16, more: bool) -> Vec<u8> {
    if frame[12..14] == [8, 0] {
        let field = offset | if more { 0x2000 } else { 0 };
        frame[20..22].copy_from_slice(&field.to_be_bytes());
        seal(&mut frame);
    } else {
        let field = offset << 3 | u16::from(more);
        frame[56..58].copy_from_slice(&field.to_be_bytes());
    }
    frame
}

fn over_the_ports(scene: &mut Scene) {
    for client in CLIENTS {
        let (port, id) = (scene.fresh_port(), scene.fresh_port());
        for (nth, (offset, more)) in [(1, true), (1, false), (0, false), (4, true)]
            .into_iter()
            .enumerate()
        {
            let id = id + u16::try_from(nth).unwrap() * 100;
            scene.passes(client, Who::Server, |s| {
                datagram(s, client, (port, 53), id)[..1].to_vec()
            });
            if (offset, more) == (0, false) {
                // Nothing else than a whole packet, which is judged as such.
                scene.blocks(client, |s| {
                    let frame = datagram(s, client, (port, 54), id).swap_remove(0);
                    vec![moved(frame, 0, false)]
                });
                continue;
            }
            scene.blocks(client, |s| {
                let frame = datagram(s, client, (port, 53), id).swap_remove(1);
                vec![moved(frame, offset, more)]
            });
            // Nothing of that packet goes on.
            scene.blocks(client, |s| {
                datagram(s, client, (port, 53), id)[1..].to_vec()
            });
        }
    }
}

fn tiny(scene: &mut Scene) {
    for client in CLIENTS {
        let (port, id) = (scene.fresh_port(), scene.fresh_port());
        let segment = |s: &Scene, flags| {
            let ends = s.ends(client, Who::Server);
            ends.frame(6, &ends.tcp((port, 80), flags, &s.marker.repeat(16)))
        };
        scene.passes(client, Who::Server, |s| cut(&segment(s, SYN), PIECE, id));
        scene.passes(client, Who::Server, |s| {
            cut(&segment(s, PSH | ACK), PIECE, id + 1)
        });
        for (nth, piece) in [8, 16, 24, 40].into_iter().enumerate() {
            let id = id + 1000 + u16::try_from(nth).unwrap();
            scene.blocks(client, |s| cut(&segment(s, SYN), piece, id));
        }
        // A whole first one, and then one over its flags.
        for offset in [1, 2] {
            let id = id + 2000 + offset;
            scene.passes(client, Who::Server, |s| {
                cut(&segment(s, SYN), PIECE, id)[..1].to_vec()
            });
            scene.blocks(client, |s| {
                vec![moved(
                    cut(&segment(s, SYN), PIECE, id).swap_remove(1),
                    offset,
                    true,
                )]
            });
        }
    }
}

/// A fragment header behind its first byte (RFC 8200, section 4.5).
fn header(offset: u16, more: bool, id: u16) -> [u8; 7] {
    let [o0, o1] = (offset << 3 | u16::from(more)).to_be_bytes();
    let [i0, i1] = id.to_be_bytes();
    [0, o0, o1, 0, 0, i0, i1]
}

fn atomic(scene: &mut Scene) {
    if scene.family == Family::Ipv4 {
        return;
    }
    for (client, intruder) in CLIENTS.into_iter().zip(INTRUDERS) {
        let port = scene.fresh_port();
        let whole = |s: &Scene, from, to_port| {
            let ends = s.ends(from, Who::Server);
            let body = ends.udp((port, to_port), &s.marker);
            ends.with_extensions(&[(44, &header(0, false, port))], UDP, &body)
        };
        scene.passes(client, Who::Server, |s| vec![whole(s, client, 53)]);
        scene.blocks(client, |s| vec![whole(s, client, 54)]);
        scene.blocks(intruder, |s| vec![whole(s, intruder, 53)]);
    }
}

fn nested(scene: &mut Scene) {
    if scene.family == Family::Ipv4 {
        return;
    }
    for client in CLIENTS {
        let port = scene.fresh_port();
        let within = |s: &Scene, chain: &[(u8, &[u8])], to_port| {
            let ends = s.ends(client, Who::Server);
            let body = ends.udp((port, to_port), &s.marker.repeat(16));
            ends.with_extensions(chain, UDP, &body)
        };
        let whole = header(0, false, port);
        let first = header(0, true, port);
        scene.passes(client, Who::Server, |s| {
            vec![within(s, &[(44, &whole)], 53)]
        });
        for to_port in [53, 54] {
            scene.blocks(client, |s| {
                vec![
                    within(s, &[(44, &first), (44, &whole)], to_port),
                    within(s, &[(44, &first), (44, &first)], to_port),
                ]
            });
        }
        scene.blocks(client, |s| {
            vec![within(s, &[(44, &whole), (44, &whole)], 54)]
        });
    }
}
