//! Kills a process that works on a datapath, at random moments, again and again, and looks at what
//! is left. Needs root.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests, outside of what clippy takes for one"
)]

mod common;

use std::{
    hash::{BuildHasher, RandomState},
    thread,
    time::{Duration, Instant},
};

use common::{
    Lab, Namespace, OUTSIDE, here, ip,
    machine::{Machine, peer},
    of, ping, pod,
    stream::Stream,
    tcp,
    worker::{Job, Worker, work_if_told},
};
use datapath_tunnel::netlink::Netlink;
use datapath_user::{Datapath, EndpointSpec};

/// After this long a busy machine has done enough, if it has killed a few times.
const ENOUGH: Duration = Duration::from_mins(2);
const FEW: u64 = 5;
/// Kills while pods and peers come and go.
const KILLS_AT_WORK: u64 = 20;
/// Kills while the whole comes and goes, which takes longer.
const KILLS_AT_THE_ENDS: u64 = 10;

/// Opening (which is adopting), adding and removing are interrupted; flows of a pod that nobody
/// touches go on all the time, and what was half done is undone.
#[test]
fn pods_and_peers_that_come_and_go_when_a_kill_comes() {
    work_if_told();
    Lab::run(|lab| {
        let before = Machine::look(lab);
        let (one, spec) = pod("web-1", 5);
        let churn: Vec<_> = (0..3).map(|n| pod(&format!("job-{n}"), 20 + n)).collect();
        let datapath = Datapath::open(lab.config()).unwrap();
        let view = datapath.add_endpoint(&spec).unwrap();
        let stays = datapath.upsert_peer(&peer("node-2", 2)).unwrap();
        let mut streams = OUTSIDE.map(|outside| Stream::open(&one, &lab.outside, ip(outside)));
        streams.iter_mut().for_each(Stream::echo);
        let pairs = |datapath: &Datapath, streams: &[Stream]| -> Vec<_> {
            let flows = datapath.flows().unwrap();
            streams.iter().map(|stream| stream.pair(&flows)).collect()
        };
        let known = pairs(&datapath, &streams);
        datapath.leave();

        let job = Job {
            churn: churn.iter().map(|(_, spec)| spec.clone()).collect(),
            churn_peers: vec![peer("node-3", 3), peer("node-4", 4)],
            ..Job::new(lab.config())
        };
        let test = "pods_and_peers_that_come_and_go_when_a_kill_comes";
        let (mut removed, mut peers) = (0, 0);
        let span = span(test, &job);
        for round in rounds(KILLS_AT_WORK) {
            let delay = kill_a_worker(test, &job, round, span);
            streams.iter_mut().for_each(Stream::echo);

            let datapath = Datapath::open(lab.config())
                .unwrap_or_else(|error| panic!("killed after {delay:?}: {error:?}"));
            let adoption = datapath.adopted().unwrap();
            removed += adoption.endpoints_removed.len();
            peers += adoption.peers_removed.len();
            streams.iter_mut().for_each(Stream::echo);
            assert_eq!(pairs(&datapath, &streams), known, "{delay:?}: {adoption:?}");
            assert!(datapath.endpoints().contains(&view), "{delay:?}");
            assert_eq!(
                datapath
                    .peers()
                    .into_iter()
                    .find(|peer| peer.name == "node-2"),
                Some(stays.clone()),
            );
            check(&datapath, &churn, &one, &spec);
            datapath.leave();
        }
        println!("kills within {span:?}: {removed} endpoints and {peers} peers undone");
        Datapath::open(lab.config()).unwrap().close().unwrap();
        assert_eq!(Machine::look(lab), before);
    });
}

/// Building and removing are interrupted.
#[test]
fn a_datapath_that_comes_and_goes_when_a_kill_comes() {
    work_if_told();
    Lab::run(|lab| {
        let before = Machine::look(lab);
        let (one, spec) = pod("web-1", 5);
        let job = Job {
            churn: vec![spec.clone()],
            close: true,
            ..Job::new(lab.config())
        };
        let test = "a_datapath_that_comes_and_goes_when_a_kill_comes";
        let span = span(test, &job);
        let mut adopted = 0;
        for round in rounds(KILLS_AT_THE_ENDS) {
            let delay = kill_a_worker(test, &job, round, span);

            let datapath = Datapath::open(lab.config())
                .unwrap_or_else(|error| panic!("killed after {delay:?}: {error:?}"));
            adopted += usize::from(datapath.adopted().is_some());
            if datapath.endpoints().is_empty() {
                datapath.add_endpoint(&spec).unwrap();
            }
            ping(here, spec.addresses[0]).unwrap();
            tcp(of(&one), of(&lab.outside), ip(OUTSIDE[1])).unwrap();
            datapath.close().unwrap();
            // A directory that was just made looks like any other one.
            let mut after = Machine::look(lab);
            after.forget(&lab.config().bpffs);
            assert_eq!(after, before, "killed after {delay:?}");
        }
        println!("kills within {span:?}: {adopted} were adopted");
    });
}

/// Counts up to so many, fewer on a busy machine.
fn rounds(most: u64) -> impl Iterator<Item = u64> {
    let begun = Instant::now();
    (0..most).take_while(move |round| *round < FEW || begun.elapsed() < ENOUGH)
}

/// What is known is there, what is not leaves nothing, and all of it works.
fn check(
    datapath: &Datapath,
    churn: &[(Namespace, EndpointSpec)],
    one: &Namespace,
    spec: &EndpointSpec,
) {
    let netlink = Netlink::open().unwrap();
    let links = netlink.links().unwrap();
    let pods = links.iter().filter(|link| link.alias.is_some());
    assert_eq!(pods.count(), datapath.endpoints().len());
    for (namespace, endpoint) in churn {
        let known = datapath
            .endpoints()
            .into_iter()
            .find(|view| view.id == endpoint.id);
        let inside = namespace.netlink().link("eth0").unwrap();
        assert_eq!(inside.is_some(), known.is_some(), "{}", endpoint.id);
        if known.is_none() {
            datapath.add_endpoint(endpoint).unwrap();
        }
        ping(of(namespace), spec.addresses[0]).unwrap();
        tcp(of(one), of(namespace), endpoint.addresses[1]).unwrap();
        datapath.remove_endpoint(&endpoint.id).unwrap();
    }
    for number in [3, 4] {
        let name = format!("node-{number}");
        let known = datapath.peers().iter().any(|peer| peer.name == name);
        let routes = netlink.routes().unwrap();
        let prefix = common::net(&format!("10.244.{number}.0/24"));
        let reached = routes.iter().any(|route| route.destination == prefix);
        assert_eq!(reached, known, "{name}");
        if known {
            datapath.remove_peer(&name).unwrap();
        }
    }
}

/// Starts a worker and kills it: in every other round while it opens or later, in the others while
/// it does what comes then, which is soon done.
fn kill_a_worker(test: &str, job: &Job, round: u64, span: Duration) -> Duration {
    let mut worker = Worker::start(test, job);
    let (point, span) = if round.is_multiple_of(2) {
        ("begun", span)
    } else {
        ("open", span / 6)
    };
    worker.wait(point);
    let number = RandomState::new().hash_one(round);
    let delay = Duration::from_micros(number % u64::try_from(span.as_micros()).unwrap());
    thread::sleep(delay);
    worker.kill();
    delay
}

/// How long a worker takes to open, and again as long: kills come within.
fn span(test: &str, job: &Job) -> Duration {
    let mut worker = Worker::start(test, job);
    worker.wait("begun");
    let begun = Instant::now();
    worker.wait("ready");
    let opened = begun.elapsed();
    worker.kill();
    opened * 2
}
