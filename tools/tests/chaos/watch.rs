//! Looks at every frame of a namespace, and keeps what must not be.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use datapath_conformance::{
    frame::{Direction, Frame, FrameSocket},
    netns::Namespace,
};
use etherparse::{LaxPacketHeaders, NetHeaders};
use ipnet::IpNet;

use crate::tale;

/// As much of a frame as is looked at: a tunnelled packet's headers, and what its payload begins
/// with.
const LOOK_BYTES: usize = 256;
/// How often a thread that sees nothing looks whether it is to end.
const GLANCE: Duration = Duration::from_millis(100);
/// Findings that are kept; one is too many.
const KEPT: usize = 8;

/// Begins the payload of every packet with a forged source.
pub(crate) const FORGED: &[u8] = b"chaos: this source is forged";

/// What must not arrive in a namespace.
#[derive(Clone)]
pub(crate) enum Rule {
    /// Packets from pods under their own addresses, outside of a tunnel.
    NoPods(Vec<IpNet>),
    /// Packets for others than these addresses.
    OnlyFor(Vec<IpAddr>),
    /// Packets for others than these addresses, and what belongs to a pod that had them before
    /// the one with this number.
    OnlyForNumber(Vec<IpAddr>, Arc<AtomicU64>),
}

/// A namespace that is looked at. Whatever the rule, nothing with a forged source may arrive.
pub(crate) struct Watch {
    name: String,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

/// What was seen.
#[derive(Debug, Default)]
struct Seen {
    frames: u64,
    unseen: u32,
    wrong: Vec<String>,
}

impl Watch {
    pub(crate) fn start(namespace: &Namespace, rule: Rule) -> Self {
        let mut socket = FrameSocket::open(namespace, None).unwrap().cut(LOOK_BYTES);
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut seen = Seen::default();
            let mut end = None;
            loop {
                if end.is_none() && stopped.load(Ordering::Relaxed) {
                    end = SystemTime::now().duration_since(UNIX_EPOCH).ok();
                }
                // Also what came before the end and was not looked at yet.
                let frame = socket.next(Instant::now() + GLANCE).unwrap();
                match (frame, end) {
                    (Some(frame), Some(end)) if frame.timestamp > end => break,
                    (Some(frame), _) => seen.look(&rule, &frame),
                    (None, Some(_)) => break,
                    (None, None) => {}
                }
            }
            seen.unseen = socket.lost();
            seen
        });
        Self {
            name: namespace.name().to_owned(),
            stop,
            thread,
        }
    }

    /// Ends it, and fails with what was wrong.
    pub(crate) fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        let seen = self.thread.join().unwrap();
        println!("{}: {} frames in", self.name, seen.frames);
        assert!(seen.wrong.is_empty(), "{}: {:#?}", self.name, seen.wrong);
        assert_eq!(seen.unseen, 0, "{}: all of them were looked at", self.name);
    }
}

impl Seen {
    fn look(&mut self, rule: &Rule, frame: &Frame) {
        if frame.direction == Direction::In {
            self.frames += 1;
            let wrong = rule.broken_by(&frame.bytes);
            self.wrong.extend(wrong.filter(|_| self.wrong.len() < KEPT));
        }
    }
}

impl Rule {
    /// Says how a frame breaks the rule, if it does.
    fn broken_by(&self, frame: &[u8]) -> Option<String> {
        let (source, destination) = addresses(frame)?;
        let way = format!("{source} to {destination}");
        if contains(frame, FORGED) {
            return Some(format!("forged source: {way}"));
        }
        let for_others =
            |own: &[IpAddr]| !destination.is_multicast() && !own.contains(&destination);
        match self {
            Self::NoPods(pods) => {
                let of_pod = pods.iter().any(|pods| pods.contains(&source));
                of_pod.then(|| format!("a pod's own address: {way}"))
            }
            Self::OnlyFor(own) => for_others(own).then(|| format!("another's packet: {way}")),
            Self::OnlyForNumber(own, number) => {
                if for_others(own) {
                    return Some(format!("another's packet: {way}"));
                }
                let told = tale::number_in(frame)?;
                let number = number.load(Ordering::SeqCst);
                (told != number).then(|| format!("pod {number} got what is for {told}: {way}"))
            }
        }
    }
}

/// Source and destination of a packet, the outer ones of one in a tunnel.
fn addresses(frame: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let headers = LaxPacketHeaders::from_ethernet(frame).ok()?;
    match headers.net? {
        NetHeaders::Ipv4(header, _) => Some((header.source.into(), header.destination.into())),
        NetHeaders::Ipv6(header, _) => Some((header.source.into(), header.destination.into())),
        NetHeaders::Arp(_) => None,
    }
}

fn contains(frame: &[u8], what: &[u8]) -> bool {
    frame.windows(what.len()).any(|window| window == what)
}
