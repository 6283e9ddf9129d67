//! Flow tables get another size, and flows go on. Needs root.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests, outside of what clippy takes for one"
)]

mod common;

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, RandomState},
    thread,
    time::{Duration, Instant},
};

use common::{
    Lab, Namespace, OUTSIDE, ip,
    machine::{Machine, names},
    of, pod,
    stream::Stream,
    tcp, udp,
    worker::{Job, Worker, work_if_told},
};
use datapath_user::{Config, Datapath, FlowFilter, FlowOrder, FlowView, Status};

/// Kills while flows are being moved.
const KILLS: u64 = 6;

/// Masqueraded connections of both families, and one between two pods.
fn open_streams(lab: &Lab, one: &Namespace, two: &Namespace) -> Vec<Stream> {
    let mut streams: Vec<_> = (0..8)
        .flat_map(|_| OUTSIDE)
        .map(|outside| Stream::open(one, &lab.outside, ip(outside)))
        .collect();
    streams.push(Stream::open(one, two, common::pod_addresses(6)[0]));
    for stream in &mut streams {
        stream.echo();
    }
    streams
}

fn sized(lab: &Lab, max_flows: u32, max_pending: u32) -> Config {
    Config {
        max_flows: Some(max_flows),
        max_pending: Some(max_pending),
        ..lab.config()
    }
}

/// Sweeps until everything is where it belongs.
fn settle(datapath: &Datapath) -> Status {
    let patience = Instant::now() + Duration::from_mins(1);
    while is_filled(datapath) {
        assert!(Instant::now() < patience, "{:?}", datapath.status());
        datapath.sweep().unwrap();
    }
    datapath.status().unwrap()
}

/// Whether there is a table of a former size.
fn is_filled(datapath: &Datapath) -> bool {
    let maps = names(&datapath.config().bpffs.join("maps"));
    maps.contains("flows_before") || maps.contains("pending_before")
}

/// Frames of each direction of each incarnation of a flow.
fn packets(flows: &[FlowView]) -> BTreeMap<(u32, bool), u64> {
    let of = |flow: &FlowView| ((flow.pair, flow.reply), flow.packets);
    let counted: BTreeMap<_, _> = flows.iter().map(of).collect();
    assert_eq!(counted.len(), flows.len(), "none is there twice");
    counted
}

#[test]
fn flows_go_on_in_a_table_of_another_size() {
    Lab::run(|lab| {
        let before = Machine::look(lab);
        let first = Datapath::open(sized(lab, 2048, 1024)).unwrap();
        let (one, spec_one) = pod("web-1", 5);
        let (two, spec_two) = pod("web-2", 6);
        first.add_endpoint(&spec_one).unwrap();
        first.add_endpoint(&spec_two).unwrap();
        let mut streams = open_streams(lab, &one, &two);
        let known: Vec<_> = {
            let flows = first.flows().unwrap();
            streams.iter().map(|stream| stream.pair(&flows)).collect()
        };
        let mut counted = packets(&first.flows().unwrap());
        let mut datapath = first;
        // One of them grows; one shrinks and the other one grows.
        for (max_flows, max_pending) in [(8192, 1024), (1024, 4096)] {
            datapath.leave();
            datapath = Datapath::open(sized(lab, max_flows, max_pending)).unwrap();
            let adoption = datapath.adopted().unwrap();
            assert!(!adoption.flows_judged_again);
            assert!(adoption.flows_kept >= 2 * streams.len(), "{adoption:?}");
            assert!(is_filled(&datapath));
            let check = |streams: &mut Vec<Stream>, counted: &mut BTreeMap<_, _>| {
                for stream in &mut *streams {
                    stream.echo();
                }
                let flows = datapath.flows().unwrap();
                let now: Vec<_> = streams.iter().map(|stream| stream.pair(&flows)).collect();
                assert_eq!(now, known, "the same incarnations");
                let now = packets(&flows);
                for stream in &known {
                    for reply in [false, true] {
                        let key = (*stream, reply);
                        assert!(now[&key] > counted[&key], "{key:?} counts on");
                    }
                }
                *counted = now;
                // New ones begin, in whichever table.
                let sender = tcp(of(&one), of(&lab.outside), ip(OUTSIDE[0])).unwrap();
                assert_eq!(sender.ip(), ip(common::NODE[0]), "masqueraded");
                udp(of(&two), of(&one), spec_one.addresses[1]).unwrap();
            };
            check(&mut streams, &mut counted);
            let status = settle(&datapath);
            assert_eq!((status.flows.moving, status.pending.moving), (0, 0));
            assert_eq!(
                (status.flows.max, status.pending.max),
                (max_flows, max_pending)
            );
            check(&mut streams, &mut counted);
        }
        datapath.close().unwrap();
        assert_eq!(Machine::look(lab), before);
    });
}

#[test]
fn what_does_not_fit_waits_in_the_former_table() {
    const FLOWS: usize = 700;
    Lab::run(|lab| {
        let first = Datapath::open(sized(lab, 4096, 1024)).unwrap();
        let (one, spec_one) = pod("web-1", 5);
        let (two, spec_two) = pod("web-2", 6);
        first.add_endpoint(&spec_one).unwrap();
        first.add_endpoint(&spec_two).unwrap();
        let mut streams = open_streams(lab, &one, &two);
        let (three, spec_three) = pod("web-3", 7);
        first.add_endpoint(&spec_three).unwrap();
        for _ in 0..FLOWS {
            udp(of(&three), of(&one), spec_one.addresses[0]).unwrap();
        }
        first.leave();
        let second = Datapath::open(sized(lab, 1024, 1024)).unwrap();
        for _ in 0..3 {
            second.sweep().unwrap();
        }
        let status = second.status().unwrap();
        assert_eq!(status.flows.max, 1024);
        assert!(status.flows.moving > 0, "{status:?}");
        let flows = second.flows().unwrap();
        let of_three = flows.iter().filter(|flow| flow.from == "web-3");
        assert_eq!(of_three.count(), FLOWS, "none is lost");
        packets(&flows);
        let list = second.list_flows(&FlowFilter::default(), FlowOrder::default());
        let mut pairs: Vec<_> = list.unwrap().rest().unwrap();
        let listed = pairs.len();
        pairs.sort_unstable_by_key(|flow| flow.pair);
        pairs.dedup_by_key(|flow| flow.pair);
        assert_eq!(pairs.len(), listed, "none is listed twice");
        assert_eq!(listed * 2, flows.len());
        for stream in &mut streams {
            stream.echo();
            stream.pair(&flows);
        }
        // Room is made.
        second.remove_endpoint("web-3").unwrap();
        let status = settle(&second);
        assert_eq!(status.flows.moving, 0);
        let flows = second.flows().unwrap();
        assert!(
            flows
                .iter()
                .all(|flow| flow.from != "gone" && flow.to != "gone")
        );
        for stream in &mut streams {
            stream.echo();
            stream.pair(&flows);
        }
        second.close().unwrap();
    });
}

#[test]
fn a_kill_while_flows_move_costs_none() {
    work_if_told();
    Lab::run(|lab| {
        let before = Machine::look(lab);
        let first = Datapath::open(sized(lab, 1024, 1024)).unwrap();
        let (one, spec_one) = pod("web-1", 5);
        let (two, spec_two) = pod("web-2", 6);
        first.add_endpoint(&spec_one).unwrap();
        first.add_endpoint(&spec_two).unwrap();
        let mut streams = open_streams(lab, &one, &two);
        for _ in 0..200 {
            udp(of(&two), of(&one), spec_one.addresses[0]).unwrap();
        }
        let known: Vec<_> = {
            let flows = first.flows().unwrap();
            streams.iter().map(|stream| stream.pair(&flows)).collect()
        };
        first.leave();
        let test = "a_kill_while_flows_move_costs_none";
        let sizes = [(2048, 1024), (1024, 2048), (4096, 4096)];
        let mut span = Duration::from_secs(1);
        let mut filled = 0;
        let begun = Instant::now();
        for round in 0..KILLS {
            if round > 3 && begun.elapsed() > Duration::from_secs(90) {
                break;
            }
            let (max_flows, max_pending) = sizes[usize::try_from(round % 3).unwrap()];
            let job = Job {
                sweeps: true,
                ..Job::new(sized(lab, max_flows, max_pending))
            };
            let started = Instant::now();
            let mut worker = Worker::start(test, &job);
            worker.wait("begun");
            if round == 0 {
                worker.wait("ready");
                span = started.elapsed() * 2;
            }
            let number = RandomState::new().hash_one(round);
            thread::sleep(Duration::from_micros(
                number % u64::try_from(span.as_micros()).unwrap(),
            ));
            worker.kill();
            for stream in &mut streams {
                stream.echo();
            }
            let datapath = Datapath::open(sized(lab, max_flows, max_pending)).unwrap();
            filled += u32::from(is_filled(&datapath));
            let flows = datapath.flows().unwrap();
            let now: Vec<_> = streams.iter().map(|stream| stream.pair(&flows)).collect();
            assert_eq!(now, known, "round {round}");
            tcp(of(&one), of(&lab.outside), ip(OUTSIDE[1])).unwrap();
            // In some rounds the next process finds a table half filled.
            if round % 3 == 2 {
                let status = settle(&datapath);
                assert_eq!(
                    (status.flows.max, status.pending.max),
                    (max_flows, max_pending)
                );
            }
            datapath.leave();
        }
        println!("{filled} of the killed had begun to resize and not ended");
        let (max_flows, max_pending) = sizes[2];
        let last = Datapath::open(sized(lab, max_flows, max_pending)).unwrap();
        settle(&last);
        for stream in &mut streams {
            stream.echo();
        }
        packets(&last.flows().unwrap());
        last.close().unwrap();
        assert_eq!(Machine::look(lab), before);
    });
}
