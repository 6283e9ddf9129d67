//! netfilter as oracle: the same packets through a router of the kernel's and through the
//! datapath's programs, packet by packet.
//!
//! Both masquerade what comes from inside, let through what belongs to a connection, and drop the
//! rest. For every packet of a sequence they must agree: whether it goes on, to whom, with which
//! addresses, and whether its port was kept. Where they do not, the packet must be one of the
//! [`Difference`]s that the datapath's documentation lists, each with its reason; the sequence ends
//! there, as the two have a different past from then on.
//!
//! The datapath's programs run by `BPF_PROG_TEST_RUN`, netfilter's router in a namespace on raw
//! frames. Needs root. `ORACLE_SEQUENCES=20000` runs more sequences than usual, `ORACLE_SEED=7`
//! others.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "it is all tests"
)]

mod difference;
mod examples;
mod frames;
#[allow(dead_code, reason = "shared with the comparison of kernel and host")]
#[path = "../../../datapath-user/tests/differential/kernel.rs"]
mod kernel;
mod programs;
mod router;
mod traffic;
#[path = "../util/mod.rs"]
mod util;
#[allow(dead_code, reason = "shared with the comparison of kernel and host")]
#[path = "../../../datapath-user/tests/differential/world.rs"]
mod world;

use std::{collections::BTreeMap, env, str::FromStr, thread};

use datapath_kern::{host::plan, packet::Family};
use nix::{
    sched::{CloneFlags, CpuSet, sched_getcpu, sched_setaffinity, unshare},
    unistd::Pid,
};
use proptest::test_runner::{RngAlgorithm, TestRng};

use self::{
    difference::{Difference, Disagreement, History},
    frames::Ends,
    programs::Programs,
    router::Router,
    traffic::{Conversation, From, Kind, Protocol, Sequence, Step},
    world::Interfaces,
};

pub(crate) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Sequences of a run.
const SEQUENCES: u32 = 600;
/// Sequences until both sides begin anew, with empty tables.
const FRESH: u32 = 400;

/// A frame that came out, and on which side.
#[derive(Clone, Debug)]
pub(crate) struct Arrived {
    pub(crate) at: From,
    pub(crate) bytes: Vec<u8>,
}

/// What a run came to.
#[derive(Debug, Default)]
struct Tally {
    packets: u32,
    forwarded: u32,
    stopped: u32,
    ports_changed: u32,
    differences: BTreeMap<Difference, u32>,
    /// Those that no rule explains: how many of a kind, and one of them.
    unexplained: BTreeMap<String, (u32, String)>,
}

#[test]
fn netfilter_does_the_same() {
    let tally = in_a_namespace(by_chance);
    for (summary, (count, example)) in &tally.unexplained {
        println!("{count} times: {summary}\n{example}");
    }
    let Tally {
        packets,
        forwarded,
        stopped,
        ports_changed,
        differences,
        unexplained,
    } = tally;
    println!(
        "{packets} packets: both forwarded {forwarded}, {ports_changed} of them by another port; \
         both stopped {stopped}; sequences that ended in a difference: {differences:#?}"
    );
    assert!(unexplained.is_empty(), "no rule explains them: see above");
    assert!(
        forwarded > 2000,
        "{forwarded} forwarded packets are too few"
    );
    assert!(stopped > 500, "{stopped} stopped packets are too few");
    assert!(
        ports_changed > 50,
        "{ports_changed} other ports are too few"
    );
}

#[test]
fn every_difference_is_one() {
    in_a_namespace(|interfaces| {
        let (mut router, mut programs) = (Router::start(), Programs::load(interfaces));
        for (number, difference) in (0..).zip(Difference::ALL) {
            let sequence = examples::of(*difference, number);
            let mut tally = Tally::default();
            run(number, &sequence, &mut router, &mut programs, &mut tally);
            let found: Vec<_> = tally.differences.into_keys().collect();
            assert_eq!(found, [*difference], "{:#?}", tally.unexplained);
            let packets = usize::try_from(tally.packets).unwrap();
            assert_eq!(packets, sequence.steps.len(), "{difference:?}: too soon");
        }
    });
}

/// The datapath's documentation lists the differences, in the same words.
#[test]
fn every_difference_is_documented() {
    let documented = include_str!("../../../datapath-kern/src/netfilter.md");
    let (_, list) = documented.split_once("\n\n- ").unwrap();
    let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let listed: Vec<_> = list.split("\n- ").map(squeezed).collect();
    let expected: Vec<_> = Difference::ALL.iter().map(|d| squeezed(d.why())).collect();
    assert_eq!(listed, expected);
}

/// Runs on a thread with a CPU of its own, and a network namespace that has the node's interfaces.
fn in_a_namespace<R: Send>(work: impl FnOnce(Interfaces) -> R + Send) -> R {
    let work = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("network namespaces need root");
        let mut cpus = CpuSet::new();
        cpus.set(sched_getcpu().unwrap()).unwrap();
        sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
        work(Interfaces::make())
    };
    thread::scope(|scope| scope.spawn(work).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn by_chance(interfaces: Interfaces) -> Tally {
    let count = setting("ORACLE_SEQUENCES", SEQUENCES);
    let seed = setting("ORACLE_SEED", 0_u8);
    let mut rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]);
    let mut tally = Tally::default();
    let mut sides = None;
    for number in 0..count {
        if number % FRESH == 0 {
            sides = None;
        }
        let (router, programs) = sides.get_or_insert_with(|| {
            let programs = Programs::load(interfaces);
            (Router::start(), programs)
        });
        let sequence = Sequence::by_chance(number, &mut rng);
        run(number, &sequence, router, programs, &mut tally);
    }
    tally
}

/// A number from the environment.
fn setting<T: FromStr>(name: &str, default: T) -> T {
    match env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no such number")),
        Err(_) => default,
    }
}

/// What one side did so far in a sequence.
struct Past {
    /// Ports that the conversations have outside.
    ports: Vec<Option<u16>>,
    /// The last frames that came out of each: inside, outside.
    last: Vec<[Option<Vec<u8>>; 2]>,
    /// Whose a port is: that of who sent by it last.
    owners: BTreeMap<(u8, u16, u16), usize>,
}

impl Past {
    fn new(flows: usize) -> Self {
        Self {
            ports: vec![None; flows],
            last: vec![[None, None]; flows],
            owners: BTreeMap::new(),
        }
    }

    /// The frame of a step as this side's ends would send it; none where there is nothing to
    /// complain about.
    fn frame(&self, sequence: &Sequence, step: &Step) -> Option<Vec<u8>> {
        let flow = &sequence.flows[step.flow];
        let inside = step.from == From::Inside;
        let quote = match step.kind {
            Kind::Error(about) => {
                let last = self.last[step.flow][usize::from(!inside)].as_ref()?;
                frames::quote(last, flow.protocol, about)
            }
            _ => Vec::new(),
        };
        let node = plan::node(1, sequence.family);
        let port = if inside {
            flow.port
        } else {
            self.ports[step.flow].unwrap_or(flow.port)
        };
        let ends = if inside {
            Ends {
                macs: (plan::pod_mac(1, flow.pod), plan::gateway_mac(1)),
                source: flow.inside(),
                destination: flow.remote,
                ports: (port, flow.remote_port),
            }
        } else {
            Ends {
                macs: (plan::node_mac(plan::ROUTER), plan::node_mac(1)),
                source: flow.remote,
                destination: node,
                ports: (flow.remote_port, port),
            }
        };
        let (ends, answer) = match step.kind {
            Kind::Echo { turned } => {
                let ports = (port, 0);
                (Ends { ports, ..ends }, turned == inside)
            }
            _ => (ends, false),
        };
        Some(frames::build(&ends, step.kind, answer, &quote))
    }

    /// The conversation that a step is of, to everybody but its sender: that of who has the port
    /// that a packet from outside is for.
    fn subject(&self, sequence: &Sequence, step: &Step) -> usize {
        let flow = &sequence.flows[step.flow];
        let error = matches!(step.kind, Kind::Error(_));
        if step.from == From::Inside || error {
            return step.flow;
        }
        let port = self.ports[step.flow].unwrap_or(flow.port);
        let owner = self.owners.get(&outside_end(flow, port));
        owner.copied().unwrap_or(step.flow)
    }

    /// Whether it is an error of an inside host about a packet that another one got.
    fn is_strangers(&self, sequence: &Sequence, step: &Step) -> bool {
        let last = self.last[step.flow][0].as_ref();
        let error = matches!(step.kind, Kind::Error(_)) && step.from == From::Inside;
        let own = sequence.flows[step.flow].inside();
        error && last.is_some_and(|last| frames::addresses(last).1 != own)
    }

    /// Remembers what came out, and checks that it came to whom it belongs to.
    fn note(&mut self, sequence: &Sequence, step: &Step, arrived: &Arrived) {
        let flow = &sequence.flows[step.flow];
        frames::verify(&arrived.bytes);
        assert_ne!(arrived.at, step.from, "sent back");
        let (source, destination) = frames::addresses(&arrived.bytes);
        let error = matches!(step.kind, Kind::Error(_));
        if step.from == From::Inside {
            let node = plan::node(1, sequence.family);
            assert_eq!((source, destination), (node, flow.remote), "in whose name");
            if !error {
                let port = frames::outside_port(&arrived.bytes, flow.protocol);
                self.ports[step.flow] = Some(port);
                self.owners.insert(outside_end(flow, port), step.flow);
            }
        } else if !error {
            let port = self.ports[step.flow].unwrap_or(flow.port);
            let owner = self.owners.get(&outside_end(flow, port));
            let owner = &sequence.flows[*owner.expect("the port of nobody")];
            let got = (
                destination,
                frames::inside_port(&arrived.bytes, flow.protocol),
            );
            assert_eq!(got, (owner.inside(), owner.port), "to whom it belongs");
        }
        let side = usize::from(arrived.at == From::Outside);
        if !error {
            // An error from inside is about what came in.
            self.last[step.flow][side] = Some(arrived.bytes.clone());
        }
    }
}

/// What answers to a conversation are told by.
fn outside_end(flow: &Conversation, port: u16) -> (u8, u16, u16) {
    match flow.protocol {
        Protocol::Tcp => (6, flow.remote_port, port),
        Protocol::Udp => (17, flow.remote_port, port),
        Protocol::Echo => (1, 0, port),
    }
}

/// Runs a sequence through both sides, to its end or to the first difference.
fn run(
    number: u32,
    sequence: &Sequence,
    router: &mut Router,
    programs: &mut Programs,
    tally: &mut Tally,
) {
    let mut theirs = Past::new(sequence.flows.len());
    let mut ours = Past::new(sequence.flows.len());
    let mut histories = vec![History::default(); sequence.flows.len()];
    for (index, step) in sequence.steps.iter().enumerate() {
        let flow = &sequence.flows[step.flow];
        let (Some(to_router), Some(to_programs)) =
            (theirs.frame(sequence, step), ours.frame(sequence, step))
        else {
            continue;
        };
        let subject = theirs.subject(sequence, step);
        let stranger = theirs.is_strangers(sequence, step);
        let expected = router.take(step.from, &to_router);
        let found = programs.take(step.from, flow.pod, &to_programs);
        tally.packets += 1;
        let canonical = |arrived: &Option<Arrived>| {
            let arrived = arrived.as_ref()?;
            let to_outside = arrived.at == From::Outside;
            Some(frames::canonical(
                &arrived.bytes,
                flow,
                step.kind,
                to_outside,
            ))
        };
        for (past, arrived) in [(&mut theirs, &expected), (&mut ours, &found)] {
            if let Some(arrived) = arrived {
                past.note(sequence, step, arrived);
            }
        }
        if canonical(&expected) == canonical(&found) {
            let out = expected.is_some();
            match expected {
                Some(_) => {
                    histories[subject].note(step);
                    tally.forwarded += 1;
                }
                None => tally.stopped += 1,
            }
            let moved = step.from == From::Inside && theirs.ports[step.flow] != Some(flow.port);
            tally.ports_changed += u32::from(out && moved);
            continue;
        }
        let disagreement = Disagreement {
            sequence,
            index,
            histories: &histories,
            history: histories[subject],
            stranger,
            netfilter_forwards: expected.is_some(),
            datapath_forwards: found.is_some(),
        };
        if let Some(difference) = disagreement.rule() {
            *tally.differences.entry(difference).or_default() += 1;
        } else {
            let example = || {
                format!(
                    "sequence {number}\n{disagreement}\
                     netfilter {expected:02x?}\ndatapath  {found:02x?}\n"
                )
            };
            let kind = tally.unexplained.entry(disagreement.summary());
            kind.or_insert_with(|| (0, example())).0 += 1;
        }
        return;
    }
}
