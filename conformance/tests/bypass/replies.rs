//! Answers to questions that were never asked, and middles of what never began.

use crate::{
    cast::{CLIENTS, INTRUDERS, Who},
    scene::{Play, Scene},
    wire::{ACK, FIN, PSH, RST, SYN},
};

pub(crate) const TRICKS: &[Play] = &[
    (
        "a SYN to an open port, by somebody else",
        "the rule names clients",
        somebody_else,
    ),
    (
        "a SYN to another port, by a client",
        "the rule names port 80",
        another_port,
    ),
    (
        "a forged SYN-ACK",
        "it answers no SYN of the server",
        |scene| forged_answer(scene, SYN | ACK),
    ),
    (
        "a forged ACK",
        "it acknowledges nothing that the server sent",
        |scene| forged_answer(scene, ACK),
    ),
    ("forged data", "it belongs to no connection", |scene| {
        forged_answer(scene, PSH | ACK);
    }),
    ("a forged FIN", "it ends no connection", |scene| {
        forged_answer(scene, FIN | ACK);
    }),
    ("a forged RST", "it ends no connection", |scene| {
        forged_answer(scene, RST);
    }),
    ("a forged RST with ACK", "it ends no connection", |scene| {
        forged_answer(scene, RST | ACK);
    }),
    (
        "a UDP answer to a question never asked",
        "the server asked others, or nothing",
        unasked,
    ),
    (
        "SYN-ACK poisoning",
        "the SYN that is answered was denied, and stays so",
        poisoning,
    ),
    (
        "the middle of a connection to a closed port",
        "a connection that is picked up is judged as a new one",
        mid_stream,
    ),
    (
        "a simultaneous open",
        "each SYN is judged by itself",
        simultaneous,
    ),
    (
        "the source port that answers would have",
        "who asks is told by the direction, not by ports",
        source_port,
    ),
];

fn somebody_else(scene: &mut Scene) {
    for (client, intruder) in CLIENTS.into_iter().zip(INTRUDERS) {
        let ports = (scene.fresh_port(), 80);
        scene.passes(client, Who::Server, |s| {
            vec![s.tcp(client, Who::Server, ports, SYN)]
        });
        let reasons = scene.blocks(intruder, |s| {
            vec![s.tcp(intruder, Who::Server, ports, SYN); 3]
        });
        assert_eq!(
            reasons.into_iter().collect::<Vec<_>>(),
            [("Policy denied".to_owned(), 3)]
        );
    }
}

fn another_port(scene: &mut Scene) {
    for client in CLIENTS {
        let source = scene.fresh_port();
        let syn = |s: &Scene, port| s.tcp(client, Who::Server, (source, port), SYN);
        scene.passes(client, Who::Server, |s| vec![syn(s, 80)]);
        scene.blocks(client, |s| {
            [0, 1, 53, 79, 81, 443, 8443, 65535]
                .map(|port| syn(s, port))
                .to_vec()
        });
    }
}

/// Begins a connection of the server to a client, up to where the client is to send `flags`.
fn begin(scene: &mut Scene, client: Who, ports: (u16, u16), flags: u8) {
    let back = (ports.1, ports.0);
    scene.passes(Who::Server, client, |s| {
        vec![s.tcp(Who::Server, client, ports, SYN)]
    });
    if flags == SYN | ACK {
        return;
    }
    scene.passes(client, Who::Server, |s| {
        vec![s.tcp(client, Who::Server, back, SYN | ACK)]
    });
    scene.passes(Who::Server, client, |s| {
        vec![s.tcp(Who::Server, client, ports, ACK)]
    });
}

fn forged_answer(scene: &mut Scene, flags: u8) {
    for (client, intruder) in CLIENTS.into_iter().zip(INTRUDERS) {
        let ports = (scene.fresh_port(), 443);
        let back = (443, ports.0);
        begin(scene, client, ports, flags);
        // Out of the blue, and with the tuple of what the server was denied.
        let answer = |s: &Scene, from, back| s.tcp(from, Who::Server, back, flags);
        scene.blocks(intruder, |s| vec![answer(s, intruder, back)]);
        scene.blocks(Who::Server, |s| {
            vec![s.tcp(Who::Server, intruder, ports, SYN)]
        });
        scene.blocks(intruder, |s| vec![answer(s, intruder, back)]);
        // Of the right one, about another connection.
        scene.blocks(client, |s| {
            vec![
                answer(s, client, (444, ports.0)),
                answer(s, client, (443, ports.0 ^ 0x4000)),
            ]
        });
        scene.passes(client, Who::Server, |s| vec![answer(s, client, back)]);
    }
}

fn unasked(scene: &mut Scene) {
    for (client, intruder) in CLIENTS.into_iter().zip(INTRUDERS) {
        let (port, other) = (scene.fresh_port(), scene.fresh_port());
        scene.passes(Who::Server, client, |s| {
            vec![s.udp(Who::Server, client, (port, 5353))]
        });
        let answer = |s: &Scene, from, ports| s.udp(from, Who::Server, ports);
        scene.passes(client, Who::Server, |s| {
            vec![answer(s, client, (5353, port))]
        });
        scene.blocks(client, |s| {
            vec![
                answer(s, client, (5354, port)),
                answer(s, client, (5353, other)),
            ]
        });
        scene.blocks(Who::Server, |s| {
            vec![s.udp(Who::Server, intruder, (port, 5353))]
        });
        scene.blocks(intruder, |s| {
            [port, other]
                .map(|to| answer(s, intruder, (5353, to)))
                .to_vec()
        });
    }
}

/// The one that the server may not ask answers all the same, and the server goes on.
fn poisoning(scene: &mut Scene) {
    for (client, intruder) in CLIENTS.into_iter().zip(INTRUDERS) {
        let ports = (scene.fresh_port(), 443);
        let back = (443, ports.0);
        begin(scene, client, ports, ACK);
        for (from, to, ports, flags) in [
            (Who::Server, intruder, ports, SYN),
            (intruder, Who::Server, back, SYN | ACK),
            (Who::Server, intruder, ports, ACK),
            (intruder, Who::Server, back, PSH | ACK),
            (Who::Server, intruder, ports, PSH | ACK),
        ] {
            scene.blocks(from, |s| vec![s.tcp(from, to, ports, flags)]);
        }
    }
}

fn mid_stream(scene: &mut Scene) {
    for (client, intruder) in CLIENTS.into_iter().zip(INTRUDERS) {
        let source = scene.fresh_port();
        for (from, to, ports, flags) in [
            (client, Who::Server, (source, 80), SYN),
            (Who::Server, client, (80, source), SYN | ACK),
            (client, Who::Server, (source, 80), ACK),
            (client, Who::Server, (source, 80), PSH | ACK),
        ] {
            scene.passes(from, to, |s| vec![s.tcp(from, to, ports, flags)]);
        }
        let all = [ACK, PSH | ACK, FIN | ACK, RST, RST | ACK, FIN, PSH];
        scene.blocks(client, |s| {
            all.map(|flags| s.tcp(client, Who::Server, (source, 81), flags))
                .to_vec()
        });
        scene.blocks(intruder, |s| {
            all.map(|flags| s.tcp(intruder, Who::Server, (source, 80), flags))
                .to_vec()
        });
        // By the isolated one, to those that it may not ask, as if they had begun it.
        scene.blocks(Who::Server, |s| {
            all.map(|flags| s.tcp(Who::Server, intruder, (80, source), flags))
                .to_vec()
        });
    }
}

fn simultaneous(scene: &mut Scene) {
    for (client, intruder) in CLIENTS.into_iter().zip(INTRUDERS) {
        let source = scene.fresh_port();
        scene.passes(client, Who::Server, |s| {
            vec![s.tcp(client, Who::Server, (source, 80), SYN)]
        });
        for _ in 0..2 {
            scene.blocks(Who::Server, |s| {
                vec![s.tcp(Who::Server, intruder, (source, 443), SYN)]
            });
            scene.blocks(intruder, |s| {
                vec![s.tcp(intruder, Who::Server, (443, source), SYN)]
            });
        }
        scene.blocks(intruder, |s| {
            vec![s.tcp(intruder, Who::Server, (443, source), SYN | ACK)]
        });
    }
}

fn source_port(scene: &mut Scene) {
    for (client, intruder) in CLIENTS.into_iter().zip(INTRUDERS) {
        let port = scene.fresh_port();
        scene.passes(client, Who::Server, |s| {
            vec![s.tcp(client, Who::Server, (port, 80), SYN)]
        });
        for source in [80, 443, 53, 5353] {
            scene.blocks(intruder, |s| {
                vec![
                    s.tcp(intruder, Who::Server, (source, 80), SYN),
                    s.tcp(intruder, Who::Server, (source, port), SYN),
                    s.udp(intruder, Who::Server, (source, 53)),
                    s.udp(intruder, Who::Server, (source, port)),
                ]
            });
            scene.blocks(client, |s| {
                vec![
                    s.tcp(client, Who::Server, (source, port ^ 0x4000), SYN),
                    s.udp(client, Who::Server, (source, port)),
                ]
            });
        }
    }
}
