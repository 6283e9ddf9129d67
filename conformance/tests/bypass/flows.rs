//! Flows that there are, and what changes under them.

use datapath_user::policy::document;

use crate::{
    cast::{self, CLIENTS, INTRUDERS, POLICIES, Who},
    scene::{Play, Scene},
    util::OrPanic as _,
    wire::{ACK, FIN, PSH, RST, SYN},
};

pub(crate) const TRICKS: &[Play] = &[
    (
        "ports of a connection that is over, used again",
        "who begins another one is judged by it",
        ports_again,
    ),
    (
        "a connection whose rule is gone",
        "its next packet is judged again, in either direction",
        revoked,
    ),
    (
        "a connection that begins as its rule goes",
        "its next packet is judged again, in either direction",
        revoked_in_the_middle,
    ),
    (
        "a connection of a pod that has other labels now",
        "its next packet is judged again, in either direction",
        relabelled,
    ),
    (
        "an address that had another pod",
        "flows and identity go with the pod",
        address_again,
    ),
    (
        "audit of somebody else",
        "it excuses what the audited one would be denied",
        audit_of_another,
    ),
    (
        "a document that cannot be read",
        "whom it was for is closed, not open",
        refused,
    ),
    (
        "a flood while the process goes and comes back",
        "the rules stay in the kernel",
        restarted,
    ),
];

pub(crate) const DRAINED: &[Play] = &[
    (
        "a new connection beside one that is drained",
        "what goes on is what there was",
        beside_drained,
    ),
    (
        "an address that had another pod, with flows to drain",
        "flows and identity go with the pod",
        address_again,
    ),
];

/// The server takes 8443 of the one outside, and nothing else.
const NARROW: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server, namespace: shop}
spec:
  podSelector: {matchLabels: {role: server}}
  policyTypes: [Ingress, Egress]
  ingress:
    - from: [{ipBlock: {cidr: 198.51.100.10/32}}, {ipBlock: {cidr: '2001:db8:0:2::10/128'}}]
      ports: [{port: 8443}]
";

/// What asks and what answers.
type Ports = (u16, u16);

const fn back(ports: Ports) -> Ports {
    (ports.1, ports.0)
}

/// Sends segments of a connection to the server, which arrive: `true` goes there.
#[track_caller]
fn segments(scene: &mut Scene, from: Who, ports: Ports, sequence: &[(bool, u8)]) {
    for &(there, flags) in sequence {
        let (from, to, ports) = way(from, ports, there);
        scene.passes(from, to, |s| vec![s.tcp(from, to, ports, flags)]);
    }
}

const fn way(from: Who, ports: Ports, there: bool) -> (Who, Who, Ports) {
    if there {
        (from, Who::Server, ports)
    } else {
        (Who::Server, from, back(ports))
    }
}

const OPEN: &[(bool, u8)] = &[
    (true, SYN),
    (false, SYN | ACK),
    (true, ACK),
    (true, PSH | ACK),
    (false, PSH | ACK),
];

/// A connection to the server's 80, and questions to its 53, both proven.
#[track_caller]
fn open(scene: &mut Scene, from: Who, source: u16) {
    segments(scene, from, (source, 80), OPEN);
    for there in [true, false, true] {
        let (from, to, ports) = way(from, (source, 53), there);
        scene.passes(from, to, |s| vec![s.udp(from, to, ports)]);
    }
}

/// Packets of what [`open`] opened, one way.
fn going_on(s: &Scene, from: Who, source: u16, there: bool) -> Vec<Vec<u8>> {
    let (asks, to, ports) = way(from, (source, 80), there);
    let segment = s.tcp(asks, to, ports, PSH | ACK);
    let (asks, to, ports) = way(from, (source, 53), there);
    vec![segment, s.udp(asks, to, ports)]
}

/// Nothing of what [`open`] opened goes on.
#[track_caller]
fn is_cut(scene: &mut Scene, from: Who, source: u16) {
    for there in [true, false, true] {
        let (sender, ..) = way(from, (source, 80), there);
        scene.blocks(sender, |s| going_on(s, from, source, there));
    }
}

fn ports_again(scene: &mut Scene) {
    const CLOSE: &[(bool, u8)] = &[(true, FIN | ACK), (false, FIN | ACK), (true, ACK)];
    const RESET: &[(bool, u8)] = &[(true, RST | ACK)];
    for (client, intruder) in CLIENTS.into_iter().zip(INTRUDERS) {
        for end in [CLOSE, RESET] {
            let ports = (scene.fresh_port(), 80);
            segments(scene, client, ports, OPEN);
            segments(scene, client, ports, end);
            // By the one that may not ask, and by others with these ports.
            scene.blocks(Who::Server, |s| {
                vec![
                    s.tcp(Who::Server, client, back(ports), SYN),
                    s.tcp(Who::Server, intruder, back(ports), SYN),
                ]
            });
            scene.blocks(intruder, |s| {
                [SYN, ACK, RST, FIN | ACK, PSH | ACK]
                    .map(|flags| s.tcp(intruder, Who::Server, ports, flags))
                    .to_vec()
            });
            segments(scene, client, ports, OPEN);
        }
    }
}

fn revoked(scene: &mut Scene) {
    for client in CLIENTS {
        let source = scene.fresh_port();
        open(scene, client, source);
        scene.enforce(NARROW);
        is_cut(scene, client, source);
        scene.enforce(POLICIES);
        // What was cut does not come back by itself, the way that may not be asked.
        scene.blocks(Who::Server, |s| going_on(s, client, source, false));
        open(scene, client, source);
        // The other direction finds out first.
        scene.enforce(NARROW);
        scene.blocks(Who::Server, |s| going_on(s, client, source, false));
        is_cut(scene, client, source);
        scene.enforce(POLICIES);
    }
}

fn revoked_in_the_middle(scene: &mut Scene) {
    for client in CLIENTS {
        for done in 1..OPEN.len() {
            let ports = (scene.fresh_port(), 80);
            let (before, after) = OPEN.split_at(done);
            segments(scene, client, ports, before);
            scene.enforce(NARROW);
            for &(there, flags) in after {
                let (from, to, ports) = way(client, ports, there);
                scene.blocks(from, |s| vec![s.tcp(from, to, ports, flags)]);
            }
            scene.enforce(POLICIES);
        }
    }
}

fn relabelled(scene: &mut Scene) {
    for client in CLIENTS {
        let source = scene.fresh_port();
        open(scene, client, source);
        cast::name_pods(&scene.fabric, &scene.datapaths, Some((client, "intruder")));
        is_cut(scene, client, source);
        scene.blocks(client, |s| {
            let fresh = source ^ 0x4000;
            vec![
                s.tcp(client, Who::Server, (fresh, 80), SYN),
                s.udp(client, Who::Server, (fresh, 53)),
            ]
        });
        cast::name_pods(&scene.fabric, &scene.datapaths, None);
        open(scene, client, source);
    }
}

/// Takes a pod away and gives its address to another one in a role.
fn replace(scene: &mut Scene, who: Who, role: Option<&'static str>) {
    let instead = role.map(|role| (who, role));
    let (node, _) = who.pod().unwrap();
    let spec = cast::endpoint(&scene.fabric, who, instead);
    scene.hands.remove(&who);
    scene
        .datapaths
        .inside(usize::from(node) - 1, |datapath| {
            datapath.remove_endpoint(&spec.id)?;
            datapath.add_endpoint(&spec)
        })
        .or_panic();
    cast::name_pods(&scene.fabric, &scene.datapaths, instead);
    scene.equip(who);
}

fn address_again(scene: &mut Scene) {
    for client in CLIENTS {
        let source = scene.fresh_port();
        open(scene, client, source);
        replace(scene, client, Some("intruder"));
        is_cut(scene, client, source);
        scene.blocks(client, |s| {
            let fresh = source ^ 0x4000;
            vec![
                s.tcp(client, Who::Server, (source, 80), SYN),
                s.tcp(client, Who::Server, (fresh, 80), SYN),
                s.udp(client, Who::Server, (fresh, 53)),
            ]
        });
        scene.blocks(Who::Server, |s| {
            vec![s.tcp(Who::Server, client, (source, 443), SYN)]
        });
        replace(scene, client, None);
        open(scene, client, source);
    }
}

fn audit_of_another(scene: &mut Scene) {
    let set = |scene: &Scene, id: &str, on| {
        let result = scene
            .datapaths
            .inside(0, |datapath| datapath.set_audit(Some(id), on));
        result.or_panic();
    };
    for intruder in INTRUDERS {
        let ports = (scene.fresh_port(), 80);
        // Of the one that is asked it excuses.
        set(scene, "n1p2", true);
        segments(scene, intruder, ports, OPEN);
        set(scene, "n1p2", false);
        scene.blocks(intruder, |s| {
            vec![s.tcp(intruder, Who::Server, ports, PSH | ACK)]
        });
        for id in ["n1p1", "n1p3", "n1p4"] {
            set(scene, id, true);
            scene.blocks(intruder, |s| {
                [SYN, ACK, PSH | ACK]
                    .map(|flags| s.tcp(intruder, Who::Server, ports, flags))
                    .to_vec()
            });
            scene.blocks(Who::Server, |s| {
                vec![s.tcp(Who::Server, intruder, (ports.0, 443), SYN)]
            });
            set(scene, id, false);
        }
    }
}

fn refused(scene: &mut Scene) {
    // There is no last good one of that name; that of the others stands.
    let text = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: mistyped, namespace: shop}
spec:
  podSelecter: {}
  ingress: [{}]
";
    for client in CLIENTS {
        let source = scene.fresh_port();
        open(scene, client, source);
        let reading = document::read(text, None);
        assert!(reading.documents.is_empty() && !reading.refused.is_empty());
        for node in 0..2 {
            let (documents, refused) = (cast::documents(POLICIES), reading.refused.clone());
            let set =
                |datapath: &datapath_user::Datapath| datapath.set_policies(documents, refused);
            scene.datapaths.inside(node, set).or_panic();
        }
        is_cut(scene, client, source);
        for intruder in INTRUDERS {
            scene.blocks(intruder, |s| {
                vec![s.tcp(intruder, Who::Server, (source, 80), SYN)]
            });
        }
        scene.enforce(POLICIES);
        open(scene, client, source);
    }
}

fn restarted(scene: &mut Scene) {
    for (client, intruder) in CLIENTS.into_iter().zip(INTRUDERS) {
        let source = scene.fresh_port();
        open(scene, client, source);
        let frames = scene.frames(|s| {
            vec![
                s.tcp(intruder, Who::Server, (source, 80), SYN),
                s.tcp(intruder, Who::Server, (source, 80), PSH | ACK),
                s.udp(intruder, Who::Server, (source, 53)),
            ]
        });
        scene.flooded(intruder, &frames, |scene| {
            for _ in 0..3 {
                scene.datapaths.take_over(|_| {}).or_panic();
                // Before it is told of anything.
                scene.passes(client, Who::Server, |s| going_on(s, client, source, true));
                cast::name_pods(&scene.fabric, &scene.datapaths, None);
                scene.passes(client, Who::Server, |s| going_on(s, client, source, true));
                scene.enforce(POLICIES);
                scene.passes(client, Who::Server, |s| going_on(s, client, source, true));
            }
        });
        scene.passes(Who::Server, client, |s| going_on(s, client, source, false));
    }
}

fn beside_drained(scene: &mut Scene) {
    for client in CLIENTS {
        let (source, pending) = (scene.fresh_port(), (scene.fresh_port(), 80));
        open(scene, client, source);
        segments(scene, client, pending, &OPEN[..1]);
        scene.enforce(NARROW);
        for there in [true, false] {
            let (from, to, _) = way(client, (source, 80), there);
            scene.passes(from, to, |s| going_on(s, client, source, there));
        }
        // What was not proven, what is new, and what takes the place of what is over.
        scene.blocks(Who::Server, |s| {
            vec![s.tcp(Who::Server, client, back(pending), SYN | ACK)]
        });
        let fresh = scene.fresh_port();
        scene.blocks(client, |s| {
            vec![
                s.tcp(client, Who::Server, pending, ACK),
                s.tcp(client, Who::Server, (fresh, 80), SYN),
                s.udp(client, Who::Server, (fresh, 53)),
                s.tcp(client, Who::Server, (source, 81), SYN),
            ]
        });
        let ports = (source, 80);
        segments(
            scene,
            client,
            ports,
            &[(true, FIN | ACK), (false, FIN | ACK)],
        );
        scene.blocks(client, |s| vec![s.tcp(client, Who::Server, ports, SYN)]);
        scene.blocks(Who::Server, |s| {
            vec![s.tcp(Who::Server, client, back(ports), SYN)]
        });
        scene.enforce(POLICIES);
    }
}
