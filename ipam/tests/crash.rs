//! Kills a process that allocates and releases, again and again, and looks at what is left.
//!
//! The process is this test binary, told by the environment to be the worker. It writes a line to
//! its standard output before each operation and another when the operation is done. What the
//! second line says must be found after the kill; an operation with a first line only may have
//! happened or not, and there is at most one.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod common;

use std::collections::BTreeMap;
use std::env;
use std::io::{self, BufRead, BufReader, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use common::{Bench, owner};
use datapath_ipam::{Families, Ipam, IpamError, Lease, Options, PoolSpec};
use proptest::prelude::RngExt;
use proptest::test_runner::{RngAlgorithm, TestRng};

const STORE: &str = "DATAPATH_IPAM_CRASH_STORE";
const SEED: &str = "DATAPATH_IPAM_CRASH_SEED";
const KILLS: u64 = 40;
const OWNERS: usize = 40;

/// The addresses of each owner who has a lease, by the owner's number.
type Leases = BTreeMap<usize, Vec<IpAddr>>;

#[derive(Clone, Debug, PartialEq)]
enum Line {
    Ready,
    Begin(usize),
    Allocated(usize, Vec<IpAddr>),
    Released(usize),
}

impl Line {
    fn write(&self, out: &mut impl Write) {
        // Each line goes out in one write, so a kill cannot leave half of one.
        let text = match self {
            // The harness has begun a line of its own.
            Self::Ready => "\njournal ready\n".to_owned(),
            Self::Begin(who) => format!("journal begin {who}\n"),
            Self::Allocated(who, addresses) => {
                let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
                format!("journal allocated {who} {}\n", addresses.join(" "))
            }
            Self::Released(who) => format!("journal released {who}\n"),
        };
        out.write_all(text.as_bytes()).unwrap();
        out.flush().unwrap();
    }

    /// The test harness writes to the same pipe; its lines are not ours.
    fn read(text: &str) -> Option<Self> {
        let words: Vec<_> = text.split_whitespace().collect();
        let number = |text: &str| text.parse().unwrap();
        match words.as_slice() {
            ["journal", "ready"] => Some(Self::Ready),
            ["journal", "begin", who] => Some(Self::Begin(number(who))),
            ["journal", "released", who] => Some(Self::Released(number(who))),
            ["journal", "allocated", who, addresses @ ..] => {
                let addresses = addresses.iter().map(|text| text.parse().unwrap());
                Some(Self::Allocated(number(who), addresses.collect()))
            }
            _ => None,
        }
    }
}

fn random_from(seed: u64) -> TestRng {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    TestRng::from_seed(RngAlgorithm::ChaCha, &bytes)
}

fn open(path: &Path) -> Result<Ipam, IpamError> {
    let ranges = ["10.0.0.0/27", "10.0.1.0/27", "fd00::/64"];
    let mut options = Options::new(vec![PoolSpec {
        name: "p".to_owned(),
        ranges: ranges.iter().map(|net| net.parse().unwrap()).collect(),
    }]);
    // Addresses come round soon, so that a double hand-out has every chance to happen.
    options.cooldown = Duration::ZERO;
    Ipam::open(path, options)
}

/// Does one random operation, with a line before and a line behind it.
fn churn(ipam: &Ipam, random: &mut TestRng, journal: &mut impl Write) {
    let who = random.random_range(0..OWNERS);
    Line::Begin(who).write(journal);
    if ipam.lease(&owner(who)).unwrap().is_some() {
        ipam.release(&owner(who)).unwrap();
        Line::Released(who).write(journal);
    } else {
        let families = match random.random_range(0..4) {
            0 => Families::V4,
            1 => Families::V6,
            _ => Families::Dual,
        };
        let lease = ipam.allocate("p", &owner(who), families).unwrap();
        Line::Allocated(who, lease.addresses).write(journal);
    }
}

fn note(line: &Line, done: &mut Leases) {
    match line {
        Line::Allocated(who, addresses) => {
            let before = done.insert(*who, addresses.clone());
            assert_eq!(before, None, "owner {who} was given a second lease");
        }
        Line::Released(who) => {
            done.remove(who).expect("only leases are released");
        }
        Line::Ready | Line::Begin(_) => {}
    }
}

fn number(lease: &Lease) -> usize {
    lease.owner.container_id()[1..].parse().unwrap()
}

fn found(ipam: &Ipam) -> Leases {
    let leases = ipam.leases().unwrap().into_iter();
    leases
        .map(|lease| (number(&lease), lease.addresses))
        .collect()
}

/// In the environment of the tests below, the process to be killed. On its own, the same churn
/// for a while, whose journal must agree with the store at the end.
#[test]
fn worker() {
    if let (Ok(path), Ok(seed)) = (env::var(STORE), env::var(SEED)) {
        let mut journal = io::stdout();
        let mut random = random_from(seed.parse().unwrap());
        let ipam = open(&PathBuf::from(path)).unwrap();
        Line::Ready.write(&mut journal);
        loop {
            churn(&ipam, &mut random, &mut journal);
        }
    }
    let bench = Bench::new();
    let ipam = open(&bench.path()).unwrap();
    let mut journal = Vec::new();
    let mut random = random_from(1);
    for _ in 0..200 {
        churn(&ipam, &mut random, &mut journal);
    }
    let mut done = Leases::new();
    for line in String::from_utf8(journal).unwrap().lines() {
        note(&Line::read(line).unwrap(), &mut done);
    }
    assert!(!done.is_empty());
    assert_eq!(found(&ipam), done);
}

fn spawn(path: &Path, seed: u64) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", "worker", "--nocapture", "--test-threads=1"])
        .env(STORE, path)
        .env(SEED, seed.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Lets the worker run until it has written `lines` lines and some microseconds more, kills it,
/// and returns all it wrote.
fn run_and_kill(path: &Path, random: &mut TestRng, lines: usize) -> Vec<Line> {
    let mut child = spawn(path, random.random());
    let mut reader = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut journal: Vec<Line> = Vec::new();
    while journal.len() < lines {
        let text = reader.next().expect("the worker runs until it is killed");
        journal.extend(Line::read(&text.unwrap()));
    }
    thread::sleep(Duration::from_micros(random.random_range(0..4_000)));
    child.kill().unwrap();
    child.wait().unwrap();
    journal.extend(
        reader
            .map_while(Result::ok)
            .filter_map(|text| Line::read(&text)),
    );
    journal
}

/// Checks a store whose owner was killed, against what was acknowledged (`done`) and the owner
/// whose operation was under way. Returns the leases to go on from.
fn verify(path: &Path, mut done: Leases, under_way: Option<usize>) -> (Leases, Option<Lease>) {
    let ipam = open(path).unwrap();
    let mut found = found(&ipam);
    if let Some(who) = under_way
        && found.get(&who) != done.get(&who)
    {
        // It has happened, unreported. Only a whole lease may have come or gone.
        match (done.remove(&who), found.remove(&who)) {
            (None, Some(lease)) => assert!((1..=2).contains(&lease.len())),
            (Some(_), None) => {}
            (before, after) => panic!("owner {who} had {before:?} and has {after:?}"),
        }
    }
    assert_eq!(found, done, "acknowledged leases and leases found");

    let mut holders = BTreeMap::new();
    for lease in ipam.leases().unwrap() {
        for address in &lease.addresses {
            let other = holders.insert(*address, lease.owner.clone());
            assert_eq!(other, None, "{address} has two owners");
        }
    }
    let used: u64 = ipam.usage().unwrap().iter().map(|usage| usage.used).sum();
    assert_eq!(used, holders.len() as u64);

    // Whoever was not told of a lease does not know it, and reconciliation must end it.
    let unknown = ipam
        .reconcile(|lease| done.contains_key(&number(lease)))
        .unwrap();
    assert!(unknown.len() <= 1, "{unknown:?}");
    let unknown = unknown.into_iter().next();
    assert!(
        unknown
            .as_ref()
            .is_none_or(|lease| Some(number(lease)) == under_way)
    );
    (done, unknown)
}

#[test]
fn what_was_acknowledged_survives_a_kill_and_nothing_else_does() {
    let bench = Bench::new();
    let mut random = random_from(u64::from(std::process::id()));
    let (mut done, mut operations, mut leaked) = (Leases::new(), 0, 0);
    for kill in 0..KILLS {
        // Every fourth is killed while it opens the store, and repairs what the one before left.
        let most = if kill % 4 == 0 { 1 } else { 120 };
        let lines = random.random_range(0..most);
        let journal = run_and_kill(&bench.path(), &mut random, lines);
        for line in &journal {
            note(line, &mut done);
        }
        operations += journal.len();
        let under_way = match journal.last() {
            Some(Line::Begin(who)) => Some(*who),
            _ => None,
        };
        let unknown;
        (done, unknown) = verify(&bench.path(), done, under_way);
        leaked += usize::from(unknown.is_some());
    }
    eprintln!("{KILLS} kills, {operations} lines, {leaked} unreported leases");
    assert!(operations > 0);
}

#[test]
fn a_store_whose_making_was_killed_can_be_made_again() {
    let mut random = random_from(u64::from(std::process::id()));
    for _ in 0..10 {
        let bench = Bench::new();
        let mut child = spawn(&bench.path(), 1);
        thread::sleep(Duration::from_micros(random.random_range(0..12_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        open(&bench.path()).unwrap();
        let files = bench.path().parent().unwrap().read_dir().unwrap();
        assert_eq!(files.count(), 1, "no unfinished file is left");
    }
}

#[test]
fn the_store_of_a_live_process_names_it() {
    let bench = Bench::new();
    let mut child = spawn(&bench.path(), 1);
    let mut reader = BufReader::new(child.stdout.take().unwrap()).lines();
    let ready = reader.find_map(|text| Line::read(&text.unwrap()));
    let opened = open(&bench.path());
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(ready, Some(Line::Ready));
    let refused = opened.unwrap_err();
    let expected = format!("is open in process {} (", child.id());
    assert!(refused.to_string().contains(&expected), "{refused}");
    open(&bench.path()).unwrap();
}
