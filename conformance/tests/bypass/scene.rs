//! Two nodes with an isolated pod, those that it may speak with, and those that it may not.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use datapath_conformance::{
    family::Family,
    frame::{Direction, Frame},
    netns::Namespace,
    paths::{InProcess, NodeView as _},
    probe::RawPort,
    topology::{Fabric, NodePlan, Plan, plan::UPLINK},
};
use datapath_kern::verdict::DropReason;
use datapath_user::Config;

use crate::{
    cast::{POLICIES, Who, documents, name_pods},
    spoof,
    util::{OrPanic as _, gateway_mac, lab_name, tool::nft},
    wire::{Ends, Mac, contains},
};

/// How long what comes may take; it takes microseconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// How long something is watched for after the datapath has dropped it.
const GRACE: Duration = Duration::from_millis(15);

/// What a trick has done so far.
#[derive(Debug, Default)]
struct Trick {
    name: &'static str,
    passed: usize,
    blocked: usize,
}

/// A trick: what it is called, why it should not work, and how it is played.
pub(crate) type Play = (&'static str, &'static str, fn(&mut Scene));

/// A lab of two nodes with policies in force, and a hand at everyone's interface.
pub(crate) struct Scene {
    // In the order in which they go.
    pub(crate) hands: BTreeMap<Who, RawPort>,
    pub(crate) datapaths: InProcess,
    pub(crate) fabric: Fabric,
    pub(crate) family: Family,
    /// What is in the frames at hand and in no others.
    pub(crate) marker: Vec<u8>,
    /// What is in frames that may not arrive at any time.
    forbidden: Vec<u8>,
    gateway_macs: BTreeMap<Who, Mac>,
    serial: u32,
    port: u16,
    trick: Trick,
}

impl Scene {
    pub(crate) fn build(what: &str, adjust: impl Fn(&mut Config)) -> Self {
        let node = NodePlan {
            pods: 4,
            forwards: true,
            ..NodePlan::default()
        };
        let plan = Plan::new(lab_name(what)).with_nodes(2, node);
        let fabric = Fabric::build(plan).or_panic();
        let datapaths = InProcess::with(&fabric, Family::Ipv4, |config| {
            config.events_per_s = 1_000_000;
            adjust(config);
        })
        .or_panic();
        name_pods(&fabric, &datapaths, None);
        let mut this = Self {
            hands: BTreeMap::new(),
            datapaths,
            fabric,
            family: Family::Ipv4,
            marker: Vec::new(),
            forbidden: Vec::new(),
            gateway_macs: BTreeMap::new(),
            serial: 0,
            port: 20_000,
            trick: Trick::default(),
        };
        for who in Who::ALL {
            this.equip(who);
        }
        let node = this.fabric.node(1).or_panic().namespace();
        nft(node, &spoof::lead());
        this.enforce(POLICIES);
        this
    }

    /// Gives someone a hand at his interface, anew where that is another one than before.
    pub(crate) fn equip(&mut self, who: Who) {
        let namespace = self.namespace(who);
        let router = self.fabric.router();
        let (hand, gateway) = match who {
            Who::Wire => {
                let node = self.fabric.node(1).or_panic();
                let port = RawPort::open(router, &node.uplink().fabric_port(1));
                (port, node.namespace().link(UPLINK).or_panic().mac)
            }
            Who::Outside => {
                be_quiet(namespace);
                let port = RawPort::open(namespace, UPLINK);
                (port, router.link("ext").or_panic().mac)
            }
            _ => {
                be_quiet(namespace);
                (RawPort::open(namespace, UPLINK), gateway_mac(namespace))
            }
        };
        self.hands.insert(who, hand.or_panic());
        self.gateway_macs.insert(who, gateway);
    }

    /// Plays tricks in both families.
    pub(crate) fn play(&mut self, tricks: &[Play]) {
        for &(name, why, play) in tricks {
            let mut tried = 0;
            for family in Family::ALL {
                self.family = family;
                self.trick = Trick {
                    name,
                    ..Trick::default()
                };
                play(self);
                let Trick {
                    passed, blocked, ..
                } = self.trick;
                // There may be nothing to try in a family.
                assert_eq!(passed > 0, blocked > 0, "{name}: {passed}, {blocked}");
                tried += blocked;
                println!("{name}, {family}: {passed} passed, {blocked} blocked: {why}");
            }
            assert!(tried > 0, "{name}: nothing was tried");
        }
    }

    /// Puts documents in force on both nodes.
    #[track_caller]
    pub(crate) fn enforce(&self, text: &str) {
        for node in 0..2 {
            let documents = documents(text);
            self.datapaths
                .inside(node, |datapath| {
                    datapath.set_policies(documents, Vec::new())
                })
                .or_panic();
        }
    }

    pub(crate) fn namespace(&self, who: Who) -> &Namespace {
        match (who, who.pod()) {
            (Who::Wire, _) => self.fabric.router(),
            (_, None) => self.fabric.outside(),
            (_, Some((node, pod))) => {
                &self.fabric.node(node).or_panic().pods()[usize::from(pod) - 1]
            }
        }
    }

    /// The Ethernet address of someone's interface.
    pub(crate) fn mac(&self, who: Who) -> Mac {
        self.hands[&who].mac()
    }

    /// The ends of a packet as an honest one has them.
    pub(crate) fn ends(&self, from: Who, to: Who) -> Ends {
        Ends {
            macs: (self.mac(from), self.gateway_macs[&from]),
            addresses: (from.address(self.family), to.address(self.family)),
        }
    }

    /// An honest segment, the marker in it.
    pub(crate) fn tcp(&self, from: Who, to: Who, ports: (u16, u16), flags: u8) -> Vec<u8> {
        let ends = self.ends(from, to);
        ends.frame(crate::wire::TCP, &ends.tcp(ports, flags, &self.marker))
    }

    /// An honest datagram, the marker in it.
    pub(crate) fn udp(&self, from: Who, to: Who, ports: (u16, u16)) -> Vec<u8> {
        let ends = self.ends(from, to);
        ends.frame(crate::wire::UDP, &ends.udp(ports, &self.marker))
    }

    /// A port that nobody had before.
    pub(crate) fn fresh_port(&mut self) -> u16 {
        self.port += 1;
        self.port
    }

    /// Sends frames, all of which must arrive at `to`, and nowhere else.
    #[track_caller]
    pub(crate) fn passes(&mut self, from: Who, to: Who, make: impl FnOnce(&Self) -> Vec<Vec<u8>>) {
        let frames = self.frames(make);
        let before = self.drops();
        for frame in &frames {
            self.hand(from).send(frame).or_panic();
        }
        let deadline = Instant::now() + PATIENCE;
        let mut heard = Vec::new();
        while heard.len() < frames.len() {
            heard.extend(self.heard());
            assert!(
                Instant::now() < deadline,
                "{}, {}: {} of {} lawful frames from {from:?} arrived at {heard:?}; drops: {:?}",
                self.trick.name,
                self.family,
                heard.len(),
                frames.len(),
                self.moved(&before),
            );
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(heard, vec![to; frames.len()], "{}", self.trick.name);
        self.trick.passed += frames.len();
    }

    /// Sends frames, none of which may arrive anywhere; each must be dropped for a reason by the
    /// datapath. Returns the reasons.
    #[track_caller]
    pub(crate) fn blocks(
        &mut self,
        from: Who,
        make: impl FnOnce(&Self) -> Vec<Vec<u8>>,
    ) -> BTreeMap<String, u64> {
        let frames = self.frames(make);
        let before = self.drops();
        for frame in &frames {
            self.hand(from).send(frame).or_panic();
        }
        self.nothing_arrived(&before, frames.len())
    }

    /// Makes frames with a marker of their own.
    pub(crate) fn frames(&mut self, make: impl FnOnce(&Self) -> Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        let _of_others = self.heard();
        self.serial += 1;
        self.marker = format!("<{:x} {:06x}>", std::process::id(), self.serial).into_bytes();
        make(self)
    }

    /// Sends frames that were made, over and over, while `work` is done; none of them may arrive
    /// anywhere.
    pub(crate) fn flooded(&mut self, by: Who, frames: &[Vec<u8>], work: impl FnOnce(&mut Self)) {
        self.forbid();
        let ((), sent) = self.sending(by, frames, work);
        self.pardon(sent);
    }

    /// Has what carries the marker not arrive anywhere, from now on; returns the marker.
    pub(crate) fn forbid(&mut self) -> Vec<u8> {
        self.forbidden.clone_from(&self.marker);
        self.marker.clone()
    }

    /// Ends that, when as many packets as this were sent.
    #[track_caller]
    pub(crate) fn pardon(&mut self, sent: usize) {
        thread::sleep(GRACE);
        self.heard();
        assert!(sent > 0, "{}: nothing was sent", self.trick.name);
        self.forbidden.clear();
        self.trick.blocked += sent;
    }

    /// Sends frames over and over while `work` is done; how many, too.
    pub(crate) fn sending<R>(
        &mut self,
        by: Who,
        frames: &[Vec<u8>],
        work: impl FnOnce(&mut Self) -> R,
    ) -> (R, usize) {
        let mut hand = self.hands.remove(&by).unwrap();
        let flooding = AtomicBool::new(true);
        let (hand, done) = thread::scope(|scope| {
            let flood = scope.spawn(|| {
                let mut sent = 0;
                while flooding.load(Ordering::Relaxed) {
                    for frame in frames {
                        hand.send(frame).or_panic();
                        sent += 1;
                    }
                    thread::sleep(Duration::from_micros(200));
                }
                (hand, sent)
            });
            let end = End(&flooding);
            let result = work(self);
            drop(end);
            let (hand, sent) = flood.join().unwrap();
            (hand, (result, sent))
        });
        self.hands.insert(by, hand);
        done
    }

    /// How many packets policy has denied so far.
    pub(crate) fn denied(&self) -> u64 {
        let reasons = [DropReason::PolicyDenied, DropReason::PolicyDeniedByRule];
        let drops = self.drops();
        let all = drops.iter().flat_map(|drops| {
            reasons.map(|reason| drops.get(reason.label()).copied().unwrap_or(0))
        });
        all.sum()
    }

    #[track_caller]
    fn nothing_arrived(&mut self, before: &[Drops], frames: usize) -> BTreeMap<String, u64> {
        let deadline = Instant::now() + PATIENCE;
        let mut heard = Vec::new();
        let moved = loop {
            heard.extend(self.heard());
            let moved = self.moved(before);
            if moved.values().sum::<u64>() >= frames as u64 || !heard.is_empty() {
                break moved;
            }
            assert!(
                Instant::now() < deadline,
                "{}, {}: {frames} frames were neither dropped nor arrived; drops: {moved:?}",
                self.trick.name,
                self.family
            );
            thread::sleep(Duration::from_millis(1));
        };
        thread::sleep(GRACE);
        heard.extend(self.heard());
        assert!(
            heard.is_empty(),
            "{}, {}: of {frames} frames some arrived at {heard:?}; drops: {moved:?}",
            self.trick.name,
            self.family
        );
        self.trick.blocked += frames;
        moved
    }

    fn hand(&mut self, who: Who) -> &mut RawPort {
        self.hands.get_mut(&who).unwrap()
    }

    /// Who has heard the marker since the last time, as often as he has.
    #[track_caller]
    fn heard(&mut self) -> Vec<Who> {
        let Self {
            hands,
            marker,
            forbidden,
            ..
        } = self;
        let mut heard = Vec::new();
        let carries = |frame: &Frame, what: &[u8]| contains(&frame.bytes, what);
        // What comes out of a node is on its way.
        for (&who, hand) in hands.iter_mut().filter(|(who, _)| **who != Who::Wire) {
            let wanted = |frame: &Frame| {
                frame.direction == Direction::In
                    && (carries(frame, marker) || carries(frame, forbidden))
            };
            while let Some(frame) = hand.receive(Duration::ZERO, wanted).or_panic() {
                let lawful = !carries(&frame, forbidden);
                assert!(lawful, "{}: arrived at {who:?}", self.trick.name);
                heard.push(who);
            }
        }
        heard
    }

    fn drops(&self) -> Vec<Drops> {
        let read = |node| self.datapaths.drops(node).or_panic();
        [0, 1].map(read).to_vec()
    }

    /// How often each reason was met since, but for what pods' stacks send all the time.
    fn moved(&self, before: &[Drops]) -> Drops {
        let mut moved = Drops::new();
        for (now, before) in self.drops().iter().zip(before) {
            for (reason, count) in now {
                let rise = count - before.get(reason).copied().unwrap_or(0);
                if rise > 0 && reason != DropReason::Multicast.label() {
                    *moved.entry(reason.clone()).or_default() += rise;
                }
            }
        }
        moved
    }
}

/// Ends a flood, also where what goes on beside it fails.
pub(crate) struct End<'a>(pub(crate) &'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

type Drops = BTreeMap<String, u64>;

/// Has a stack answer nothing: what is sent by hand is all there is, and what a test has it send to a
/// port. What is sent by hand does not go by netfilter.
fn be_quiet(namespace: &Namespace) {
    nft(
        namespace,
        "table inet quiet {
           chain output {
             type filter hook output priority 0;
             icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
             udp dport 5353 accept
             drop
           }
         }",
    );
}
