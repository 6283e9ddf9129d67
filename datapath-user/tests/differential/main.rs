//! The programs in the kernel and the same packet logic on the host, frame by frame: action,
//! bytes, mark, counter and event of every frame, flow tables, claims and next hops every so often.
//! Needs root.
//!
//! The kernel runs a program with `BPF_PROG_TEST_RUN`, in a network namespace with the interfaces,
//! routes and neighbours that the host's tables speak of. What this cannot compare:
//!
//! - which interface a redirect is to: the kernel keeps it to itself until the program is done. It
//!   comes from next hops, which are compared, from the settings, or is the frame's own. That the
//!   kind of redirect is the same is told by the mark and the arguments of `bpf_redirect_neigh`.
//! - VLAN tags beside the frame, checksums left to hardware, frames in several pieces: a test run
//!   has none of them.
//! - frames that end before the IP header that their EtherType says does: a test run does not take
//!   them. They are in the table as [`NOT_COMPARED`]; the host alone has them in `never_panics`.
//! - the packet type, which `bpf_skb_change_type` sets: it does not come back.
//! - `Flow::pair`, a random number on either side: that the same halves belong together is compared.
//! - [`DropReason::RewriteFailed`]: no frame that gets so far makes a helper refuse.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests, outside of what clippy takes for one"
)]

mod errors;
#[allow(dead_code, reason = "every test binary uses its own part")]
#[path = "../../../datapath-kern/tests/support/fragments.rs"]
mod fragments;
#[allow(dead_code, reason = "every test binary uses its own part")]
#[path = "../../../datapath-kern/tests/support/frame.rs"]
mod frame;
#[allow(dead_code, reason = "every test binary uses its own part")]
#[path = "../../../datapath-kern/tests/support/icmp.rs"]
mod icmp;
mod kernel;
mod pieces;
#[allow(dead_code, reason = "every test binary uses its own part")]
#[path = "../../../datapath-kern/tests/support/policy.rs"]
mod policy;
mod refused;
mod seldom;
mod traffic;
#[allow(dead_code, reason = "every test binary uses its own part")]
#[path = "../../../datapath-kern/tests/support/tunnel.rs"]
mod tunnel;
mod world;

use std::{
    collections::{BTreeMap, HashMap},
    thread,
    time::Duration,
};

use datapath_kern::{
    abi::{
        config::{Config, tunnel as mode, verdicts},
        endpoint::identity,
        event::Event,
        flow::{Flow, verdict},
        metric::{Counter, index},
        search::PORTS_PER_WORD,
    },
    env::Table,
    host::{Buffer, Hook, Host, plan},
    verdict::{Action, DropReason, Forward},
};
use nix::{
    errno::Errno,
    sched::{CloneFlags, CpuSet, sched_getcpu, sched_setaffinity, unshare},
    unistd::Pid,
};
use proptest::{
    prelude::*,
    test_runner::{RngAlgorithm, TestRng},
};

use self::{
    kernel::{Kernel, Outcome, clock, hex},
    traffic::{Arrival, Traffic},
    world::{Interfaces, PODS},
};

/// Frames that chance makes for each of the settings.
const BY_CHANCE: usize = 17_000;
/// Frames that are compared at least.
const LEAST: u32 = 100_000;
/// How often every reason to drop a frame, and every way on, is reached at least.
const LEAST_OF_EACH: u32 = 100;
/// Frames between two comparisons of the tables.
const BETWEEN: usize = 600;

/// Reasons that no frame of a test run is dropped for; see the module's documentation. What is done
/// where a helper refuses is in `host::buffer` and in the tests that run on it.
const NEVER: [DropReason; 1] = [DropReason::RewriteFailed];

/// What the table calls frames that the kernel takes no test run of.
const NOT_COMPARED: &str = "not compared: too short for a test run";

/// How often a hook had an outcome.
type Outcomes = BTreeMap<(&'static str, String), u32>;

#[test]
fn kernel_and_host_do_the_same() {
    let outcomes = thread::scope(|scope| scope.spawn(all_settings).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    for ((hook, outcome), count) in &outcomes {
        println!("{hook:<12} {outcome:<60} {count:>6}");
    }
    let mut compared = outcomes.clone();
    compared.retain(|(_, outcome), _| outcome != NOT_COMPARED);
    let total: u32 = compared.values().sum();
    println!("{total} frames compared");
    assert!(total > LEAST, "{total} frames are too few");
    let times = |outcome: &str| -> u32 {
        let of_it = compared
            .iter()
            .filter(|((_, seen), _)| seen.ends_with(outcome));
        of_it.map(|(_, count)| count).sum()
    };
    let dropped = DropReason::ALL
        .iter()
        .filter(|reason| !NEVER.contains(reason));
    let dropped = dropped.map(|reason| format!("dropped: {}", reason.label()));
    let went_on = Forward::ALL
        .iter()
        .map(|forward| forward.label().to_owned());
    let reached: Vec<_> = dropped
        .chain(went_on)
        .map(|outcome| (times(&outcome), outcome))
        .collect();
    let seldom = reached.iter().filter(|(times, _)| *times < LEAST_OF_EACH);
    let seldom: Vec<_> = seldom.collect();
    assert!(
        seldom.is_empty(),
        "reached less than {LEAST_OF_EACH} times: {seldom:#?}, of {reached:#?}"
    );
    for reason in NEVER {
        let times = times(reason.label());
        assert_eq!(times, 0, "{reason:?} is said never to be");
    }
    let answered = [
        (Hook::FromPod, DropReason::TtlExceeded),
        (Hook::FromPod, DropReason::FragmentationNeeded),
        (Hook::FromUplink, DropReason::TtlExceeded),
    ];
    for (hook, reason) in answered {
        let outcome = (hook.name(), format!("answered: {}", reason.label()));
        assert!(compared.contains_key(&outcome), "no {outcome:?}");
    }
    for hook in Hook::ALL {
        let least = if hook == Hook::ToHost { 2 } else { 5 };
        let kinds = compared.keys().filter(|(name, _)| *name == hook.name());
        assert!(kinds.count() >= least, "{}: too few outcomes", hook.name());
    }
}

/// Compares under each of the settings that change what the programs do, on a thread with a
/// network namespace and a CPU of its own: the programs remember by CPU what the last frame left.
fn all_settings() -> Outcomes {
    unshare(CloneFlags::CLONE_NEWNET).expect("network namespaces need root");
    let mut cpus = CpuSet::new();
    cpus.set(sched_getcpu().unwrap()).unwrap();
    sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
    let interfaces = Interfaces::make();
    let mut outcomes = Outcomes::new();
    let plain = |config: &mut Config| config.answers_per_s = 100_000;
    let strict = |config: &mut Config| {
        config.answers_per_s = 3;
        config.identity_from_vni = 0;
        config.tcp_loose = 0;
        config.nat_port_min = 40_000;
        config.nat_port_max = 40_063;
        config.fragments_per_end = 8;
        config.verdicts = verdicts::NONE;
    };
    let native = |config: &mut Config| {
        config.tunnel = mode::NATIVE;
        config.fragments_to_stack = 1;
        config.verdicts_per_s = 5;
    };
    let limited = |config: &mut Config| {
        config.endpoint_established = 3;
        config.endpoint_begun_per_s = 4;
        config.verdicts = verdicts::ALL;
        config.verdicts_per_s = 100_000;
        config.revoke_drains = 1;
    };
    for (seed, settings) in [plain as fn(&mut Config), strict, native, limited]
        .iter()
        .enumerate()
    {
        let seed = [u8::try_from(seed).unwrap(); 32];
        Pair::new(&interfaces, settings, seed).compare(&Traffic(interfaces), &mut outcomes);
    }
    outcomes
}

/// Both sides, and all that was counted.
struct Pair {
    kernel: Kernel,
    host: Host,
    counters: HashMap<u32, Counter>,
    rng: TestRng,
}

impl Pair {
    fn new(interfaces: &Interfaces, settings: impl FnOnce(&mut Config), seed: [u8; 32]) -> Self {
        let host = interfaces.host(settings);
        host.excluded_ports
            .update(&(40_003 / PORTS_PER_WORD), |word| {
                *word |= 1 << (40_003 % PORTS_PER_WORD);
            });
        let mut identities = vec![identity::HOST, identity::WORLD, identity::REMOTE_NODE];
        for node in [1, 2, 3] {
            identities.extend((1..=PODS).map(|number| plan::pod_identity(node, number)));
        }
        policy::by_chance(&host, &identities);
        Self {
            kernel: Kernel::like(&host),
            host,
            counters: HashMap::new(),
            rng: TestRng::from_seed(RngAlgorithm::ChaCha, &seed),
        }
    }

    fn compare(&mut self, traffic: &Traffic, outcomes: &mut Outcomes) {
        let crafted = traffic.crafted();
        for (count, arrival) in crafted.iter().enumerate() {
            self.run(arrival, outcomes);
            if count % BETWEEN == 0 {
                self.kernel.compare(&self.host, &self.counters);
            }
        }
        for count in 0..BY_CHANCE {
            let arrival = traffic.by_chance(&mut self.rng, &crafted);
            self.run(&arrival, outcomes);
            if count % BETWEEN == 0 {
                self.kernel.compare(&self.host, &self.counters);
                self.disturb();
            }
        }
        self.kernel.compare(&self.host, &self.counters);
    }

    /// Has a frame go through a hook on both sides.
    fn run(&mut self, arrival: &Arrival, outcomes: &mut Outcomes) {
        let Arrival {
            hook,
            interface,
            mark,
            frame,
        } = arrival;
        let now_s = clear_of_the_tick();
        let found = self.kernel.run(*hook, *interface, *mark, frame);
        let after_s = clock().0;
        assert_eq!(
            now_s, after_s,
            "this machine stood still for long: run again"
        );
        let mut count = |outcome: String| {
            *outcomes.entry((hook.name(), outcome)).or_default() += 1;
        };
        let found = match found {
            Ok(found) => found,
            Err(Errno::EINVAL) if cut_short(frame) => return count(NOT_COMPARED.to_owned()),
            Err(other) => panic!("{hook:?}: {other}: {}", hex(frame)),
        };
        self.host.clock_s.set(now_s);
        let mut packet = Buffer {
            mark: *mark,
            ..Buffer::new(*interface, frame.clone())
        };
        let run = self.host.run(*hook, &mut packet);
        drop(self.host.take_accesses());
        assert!(!packet.strayed.get(), "{hook:?}: beyond the last offset");
        let expected = Outcome {
            action: run.verdict.action,
            gateway: run.gateway,
            mark: packet.mark,
            bytes: packet.bytes,
        };
        assert!(
            found == expected,
            "{hook:?} of interface {interface}, mark {mark:#x}, {:?} on the host:\nframe  {}\n\
             kernel {found}\nhost   {expected}",
            run.reason,
            hex(frame)
        );
        self.same_events(arrival);
        let counted = self.counted(arrival);
        count(match run.reason {
            Some(reason) if expected.action == Action::Drop => {
                format!("dropped: {}", reason.label())
            }
            Some(reason) => format!("answered: {}", reason.label()),
            None => format!("{:?} {counted}", expected.action),
        });
    }

    /// Compares what is told of the frame, of verdicts and of a drop: all but the time, of which only the second is the same.
    fn same_events(&mut self, arrival: &Arrival) {
        let second = |event: &Event| event.head.time_ns / 1_000_000_000;
        let timeless = |event: &Event| {
            let mut event = *event;
            event.head.time_ns = 0;
            event
        };
        let found = self.kernel.take_events();
        let expected = self.host.take_events();
        let at = arrival.hook;
        assert_eq!(
            found.iter().map(timeless).collect::<Vec<_>>(),
            expected.iter().map(timeless).collect::<Vec<_>>(),
            "kernel, host: {at:?}: events of {}",
            hex(&arrival.frame)
        );
        // The kernel's coarse clock is behind the fine one by a tick.
        for (found, expected) in found.iter().zip(&expected) {
            assert!(second(found) - second(expected) <= 1);
        }
    }

    /// Compares the counters that the host's frame moved; how it went on, if it was counted so.
    fn counted(&mut self, arrival: &Arrival) -> &'static str {
        let mut label = "";
        for (direction, outcome, by) in self.host.take_counters() {
            let cell = index(direction, outcome);
            let expected = self.counters.entry(cell).or_default();
            expected.packets += by.packets;
            expected.bytes += by.bytes;
            let found = self.kernel.counter(cell);
            let at = arrival.hook;
            assert_eq!(found, *expected, "kernel, host: {at:?}: counter {outcome}");
            label = Forward::from_code(outcome).map_or(label, Forward::label);
        }
        label
    }

    /// What time and user space do to the tables, to both sides' alike: flows whose time is up or
    /// that policy denies, halves that are gone, ends that changed or are judged otherwise.
    fn disturb(&mut self) {
        let mut keys: Vec<_> = self.host.flows.entries();
        keys.extend(self.host.pending.entries());
        let mut keys: Vec<_> = keys.into_iter().map(|(key, _)| key).collect();
        keys.sort_by_key(|key| format!("{key:?}{}", key.scope));
        for key in keys {
            let what = self.rng.random_range(0..12);
            let change = |flow: &mut Flow| {
                match what {
                    0 | 1 => flow.expires_s = 1,
                    2 => flow.verdict = verdict::DENY,
                    3 => return false,
                    _ => {}
                }
                true
            };
            self.kernel.edit(&key, change);
            let keep = |flow: &mut _| change(flow);
            if self.host.flows.update(&key, keep) == Some(false) {
                self.host.flows.remove(&key);
            }
            if self.host.pending.update(&key, keep) == Some(false) {
                self.host.pending.remove(&key);
            }
        }
        for _ in 0..2 {
            let slot = self.rng.random_range(0..5);
            let word = if self.rng.random_bool(0.7) {
                policy::any_word(self.rng.random())
            } else {
                0
            };
            policy::switch(&self.host, slot, word);
        }
        let slot = self.rng.random_range(0..4);
        self.host.peers.update(&slot, |end| end.generation += 1);
        self.kernel.refill(&self.host);
    }
}

/// Whether the frame ends before the IP header that its EtherType says.
fn cut_short(frame: &[u8]) -> bool {
    match frame[12..14] {
        [0x08, 0x00] => frame.len() < 14 + 20,
        [0x86, 0xdd] => frame.len() < 14 + 40,
        _ => false,
    }
}

/// The second that it is and that it will be for a while: both sides must see the same.
fn clear_of_the_tick() -> u32 {
    loop {
        let (second, left) = clock();
        // A shared machine may take the processor away for as long.
        if left > Duration::from_millis(300) {
            return second;
        }
        thread::sleep(left);
    }
}
