//! A pod that sends under addresses it does not have.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use datapath_conformance::{
    frame::forge::{self, Place},
    netns::Namespace,
    probe::RawPort,
};

use crate::watch::FORGED;

/// How long it rests between two rounds.
const PAUSE: Duration = Duration::from_millis(5);
/// Rounds before it opens the interface anew, which costs more than a round.
const ROUNDS: usize = 200;
/// Rounds in which nothing can be sent before it does so.
const MISSES: usize = 5;

/// What it claims to be, and where it sends to.
#[derive(Clone)]
pub(crate) struct Forgeries {
    pub(crate) gateway_mac: [u8; 6],
    pub(crate) sources: Vec<IpAddr>,
    pub(crate) destinations: Vec<IpAddr>,
}

/// A thread that sends forged packets whenever the pod has an interface.
pub(crate) struct Forger {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Forger {
    pub(crate) fn start(pod: &Namespace, forgeries: &Forgeries) -> Self {
        let pod = Namespace::open(pod.name()).unwrap();
        let forgeries = forgeries.clone();
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        let sent = Arc::<AtomicU64>::default();
        let count = Arc::clone(&sent);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // It comes and goes with the pod, also while it is opened.
                if let Ok(mut port) = RawPort::open(&pod, "eth0") {
                    let frames = forgeries.frames(port.mac());
                    let mut misses = 0;
                    for _ in 0..ROUNDS {
                        let sent = frames.iter().filter(|frame| port.send(frame).is_ok());
                        let sent = u64::try_from(sent.count()).unwrap();
                        count.fetch_add(sent, Ordering::Relaxed);
                        // Not on yet, or gone: then there may be another one.
                        misses = if sent == 0 { misses + 1 } else { 0 };
                        if misses > MISSES || stopped.load(Ordering::Relaxed) {
                            break;
                        }
                        thread::sleep(PAUSE);
                    }
                }
                thread::sleep(PAUSE);
            }
        });
        Self { stop, sent, thread }
    }

    /// Ends it; returns how many it sent.
    pub(crate) fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        self.sent.load(Ordering::Relaxed)
    }
}

impl Forgeries {
    fn frames(&self, mac: [u8; 6]) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        for &source in &self.sources {
            for &destination in &self.destinations {
                if source.is_ipv4() == destination.is_ipv4() && source != destination {
                    let place = |mac, address| Place {
                        mac,
                        address: SocketAddr::new(address, 9),
                    };
                    let to = place(self.gateway_mac, destination);
                    frames.push(forge::udp(place(mac, source), to, FORGED).unwrap());
                }
            }
        }
        frames
    }
}
