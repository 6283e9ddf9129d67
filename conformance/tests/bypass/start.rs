//! The first packets of a pod, and the first ones to it.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use datapath_conformance::{
    family::Family,
    frame::{Direction, FrameSocket},
    netns::Namespace,
};
use socket2::{Domain, Socket, Type};

use crate::{
    cast::{self, CLIENTS, INTRUDERS, Who},
    scene::{End, PATIENCE, Play, Scene},
    util::OrPanic as _,
    wire::{SYN, contains},
};

pub(crate) const TRICKS: &[Play] = &[
    (
        "the first packets to a pod",
        "its rules are there before its interface is",
        first_to,
    ),
    (
        "the first packets of a pod",
        "its rules are there before its interface is",
        first_of,
    ),
];

/// What a pod goes through that often.
const TIMES: usize = 5;
/// Where pods' stacks may send: one of the server's own.
const OPEN_PORT: u16 = 5353;

/// Takes the newcomer away, and adds it again; how long it was there without rules, microseconds.
fn renew(scene: &mut Scene) -> Option<u64> {
    let spec = cast::endpoint(&scene.fabric, Who::Newcomer, None);
    scene.hands.remove(&Who::Newcomer);
    let view = scene.datapaths.inside(0, |datapath| {
        datapath.remove_endpoint(&spec.id)?;
        datapath.add_endpoint(&spec)
    });
    view.or_panic().policy.window_us
}

/// What the newcomer is sent all the time, though it may not be.
fn unlawful(scene: &mut Scene, intruder: Who) -> Vec<Vec<u8>> {
    let port = scene.fresh_port();
    scene.frames(|s| {
        vec![
            s.tcp(intruder, Who::Newcomer, (port, 80), SYN),
            s.udp(intruder, Who::Newcomer, (port, 53)),
        ]
    })
}

/// How many frames the newcomer got since the last time, with each marker.
fn got<const N: usize>(ears: &mut FrameSocket, markers: [&[u8]; N]) -> [usize; N] {
    let mut counts = [0; N];
    while let Some(frame) = ears.next(Instant::now()).unwrap() {
        for (count, marker) in counts.iter_mut().zip(markers) {
            if frame.direction == Direction::In && contains(&frame.bytes, marker) {
                *count += 1;
            }
        }
    }
    counts
}

fn first_to(scene: &mut Scene) {
    for (client, intruder) in CLIENTS.into_iter().zip(INTRUDERS) {
        let frames = unlawful(scene, intruder);
        let marker = scene.marker.clone();
        // Hears what comes by an interface that is not there yet.
        let mut ears = FrameSocket::open(scene.namespace(Who::Newcomer), None).or_panic();
        scene.flooded(intruder, &frames, |scene| {
            for _ in 0..TIMES {
                assert_eq!(renew(scene), None);
                scene.equip(Who::Newcomer);
                let port = scene.fresh_port();
                scene.passes(client, Who::Newcomer, |s| {
                    vec![s.udp(client, Who::Newcomer, (port, 53))]
                });
                assert_eq!(got(&mut ears, [&marker, &scene.marker]), [0, 1]);
            }
        });
    }
    scene.hands.remove(&Who::Newcomer);
}

/// Has the stack of a namespace send datagrams for as long as `work` is done; how many went.
fn sent_by_stack(
    namespace: &Namespace,
    to: SocketAddr,
    payload: &[u8],
    work: impl FnOnce(),
) -> usize {
    let socket: Socket = namespace
        .socket(Domain::for_address(to), Type::DGRAM, None)
        .or_panic();
    let sending = AtomicBool::new(true);
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut sent = 0;
            while sending.load(Ordering::Relaxed) {
                // There is no way out before there is an interface.
                if socket.send_to(payload, &to.into()).is_ok() {
                    sent += 1;
                } else {
                    thread::sleep(Duration::from_micros(50));
                }
            }
            sent
        });
        let end = End(&sending);
        work();
        drop(end);
        sender.join().unwrap()
    })
}

fn first_of(scene: &mut Scene) {
    for (client, intruder) in CLIENTS.into_iter().zip(INTRUDERS) {
        for _ in 0..TIMES {
            scene.frames(|_| Vec::new());
            let to = SocketAddr::new(intruder.address(scene.family), OPEN_PORT);
            let namespace = Namespace::open(scene.namespace(Who::Newcomer).name()).or_panic();
            // Nothing of it is heard by anyone, whenever.
            let payload = scene.forbid();
            let before = scene.denied();
            let sent = sent_by_stack(&namespace, to, &payload, || {
                assert_eq!(renew(scene), None);
                let deadline = Instant::now() + PATIENCE;
                while scene.denied() == before {
                    assert!(Instant::now() < deadline, "nothing was denied");
                    thread::sleep(Duration::from_millis(1));
                }
            });
            assert!(sent > 0);
            scene.equip(Who::Newcomer);
            scene.passes(Who::Newcomer, client, |s| {
                vec![s.udp(Who::Newcomer, client, (OPEN_PORT, OPEN_PORT))]
            });
            scene.pardon(sent);
        }
    }
    scene.hands.remove(&Who::Newcomer);
}

/// Where pods start before their rules do: how long that takes, and that it ends.
pub(crate) fn window(scene: &mut Scene) {
    let mut all_us = Vec::new();
    let mut came = 0;
    for family in Family::ALL {
        scene.family = family;
        for intruder in INTRUDERS {
            let frames = unlawful(scene, intruder);
            let marker = scene.marker.clone();
            let mut ears = FrameSocket::open(scene.namespace(Who::Newcomer), None).or_panic();
            for _ in 0..TIMES {
                let (window_us, _) = scene.sending(intruder, &frames, renew);
                all_us.push(window_us.unwrap());
                came += got(&mut ears, [&marker])[0];
                // What began in it is judged again.
                scene.equip(Who::Newcomer);
                scene.blocks(intruder, |_| frames.clone());
                assert_eq!(got(&mut ears, [&marker]), [0]);
            }
        }
    }
    scene.hands.remove(&Who::Newcomer);
    all_us.sort_unstable();
    println!(
        "window of pods that start before their rules, of {}: {} us, {} us, {} us (least, median, most); \
         {came} packets came in by it",
        all_us.len(),
        all_us[0],
        all_us[all_us.len() / 2],
        all_us[all_us.len() - 1],
    );
}
