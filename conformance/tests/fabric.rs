//! The lab's network carries traffic by plain kernel routing, and leaves nothing behind.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod util;

use std::{
    env, fs,
    net::IpAddr,
    os::unix::process::ExitStatusExt,
    panic,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use datapath_conformance::{
    Error,
    family::{Families, Family},
    probe::{self, EchoServer, Failure},
    signals,
    topology::{Fabric, LabName, Node, NodePlan, Plan, Remains, labs, plan},
};
use nix::{
    sys::signal::{Signal, kill, raise},
    unistd::Pid,
};
use util::{OrPanic, at, both_families, impatient, patient};

const BULK_BYTES: usize = 2 << 20;

#[test]
fn every_host_reaches_every_other() {
    let fabric = util::fabric("reach", 2);
    let nodes = fabric.nodes().iter();
    let of_node = |node: &Node| Family::ALL.map(|family| node.address(family));
    let mut hosts: Vec<_> = nodes
        .map(|node| (node.namespace(), of_node(node)))
        .collect();
    hosts.push((fabric.outside(), Family::ALL.map(plan::outside_address)));
    let _servers: Vec<_> = hosts
        .iter()
        .map(|(host, _)| EchoServer::start(host, &[80], &[53]).or_panic())
        .collect();
    both_families(|family| {
        for (from, own) in &hosts {
            for (_, to) in hosts.iter().filter(|(to, _)| to.name() != from.name()) {
                let pick = |both: &[IpAddr; 2]| both[usize::from(family == Family::Ipv6)];
                let (own, to) = (pick(own), pick(to));
                let tcp = probe::tcp_echo(from, at(to, 80), BULK_BYTES, &patient())?;
                assert_eq!(tcp.bytes, BULK_BYTES);
                assert_eq!(tcp.seen_source.map(|seen| seen.ip()), Some(own));
                // Empty, tiny, odd, full, and in fragments.
                let sizes = [0, 1, 17, 1200, 1452, 9000];
                let udp = probe::udp_echo(from, at(to, 53), &sizes, &patient())?;
                assert_eq!(udp.seen_source.map(|seen| seen.ip()), Some(own));
                for size in [0, 1, 56, 1452, 9000] {
                    probe::icmp_echo(from, to, 1, size, &patient())?;
                }
            }
        }
        Ok::<_, Error>(())
    });
}

#[test]
fn only_nodes_that_are_told_to_forward() {
    let mut plan = util::plan("forward", 2);
    plan.nodes[1].forwards = true;
    let fabric = Fabric::build(plan).or_panic();
    for (number, forwards) in [(1, "0"), (2, "1")] {
        let node = fabric.node(number).or_panic().namespace();
        for key in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
            assert_eq!(
                node.sysctl(key).or_panic(),
                forwards,
                "{key} of node {number}"
            );
        }
    }
    assert!(matches!(fabric.node(3), Err(Error::Invalid { .. })));
    assert!(matches!(fabric.node(0), Err(Error::Invalid { .. })));
}

#[test]
fn each_link_has_its_own_mtu() {
    let mut plan = util::plan("mtu", 2);
    plan.nodes[1].mtu_bytes = 1400;
    plan.outside_mtu_bytes = 1300;
    let fabric = Fabric::build(plan).or_panic();
    let node = fabric.node(1).or_panic().namespace();
    let whole = patient().with_dont_fragment();
    both_families(|family| {
        let headers = if family == Family::Ipv4 { 28 } else { 48 };
        let to = plan::outside_address(family);
        probe::icmp_echo(node, to, 1, 1300 - headers, &whole)?;
        let too_large = probe::icmp_echo(node, to, 1, 1301 - headers, &whole).unwrap_err();
        let router = plan::fabric_address(family);
        assert!(
            matches!(
                too_large.failure(),
                Some(Failure::IcmpError { from, mtu_bytes: Some(1300), .. }) if *from == router
            ),
            "{too_large}"
        );
        // Now the path is known.
        let again = probe::icmp_echo(node, to, 1, 1301 - headers, &whole).unwrap_err();
        assert!(
            matches!(again.failure(), Some(Failure::TooLarge { .. })),
            "{again}"
        );
        Ok::<_, Error>(())
    });
    let small = fabric.node(2).or_panic().namespace();
    assert_eq!(small.link(plan::UPLINK).or_panic().mtu_bytes, 1400);
}

#[test]
fn an_underlay_of_one_family_lacks_the_other() {
    for (families, has, lacks) in [
        (Families::Ipv4, Family::Ipv4, Family::Ipv6),
        (Families::Ipv6, Family::Ipv6, Family::Ipv4),
    ] {
        let fabric = Fabric::build(util::plan("one", 1).with_underlay(families)).or_panic();
        let node = fabric.node(1).or_panic().namespace();
        probe::icmp_echo(node, plan::outside_address(has), 1, 56, &patient()).or_panic();
        let missing = probe::icmp_echo(node, plan::outside_address(lacks), 1, 56, &impatient());
        let missing = missing.unwrap_err();
        assert!(
            matches!(missing.failure(), Some(Failure::Io(_))),
            "{missing}"
        );
    }
}

#[test]
fn two_labs_at_once_do_not_meet() {
    let one = util::fabric("one", 1);
    let other = util::fabric("other", 1);
    // The same addresses in both: each answers its own.
    both_families(|family| {
        for fabric in [&one, &other] {
            let server = EchoServer::start(fabric.outside(), &[80], &[])?;
            let node = fabric.node(1)?.namespace();
            probe::tcp_echo(
                node,
                at(plan::outside_address(family), 80),
                1000,
                &patient(),
            )?;
            assert_eq!(server.seen().values().sum::<u64>(), 1);
        }
        Ok::<_, Error>(())
    });
    let lab = one.plan().lab.clone();
    let same = Fabric::build(one.plan().clone()).unwrap_err();
    assert!(matches!(same, Error::LabExists { .. }));
    assert!(same.to_string().contains("dpctl lab down"), "{same}");
    one.destroy().or_panic();
    assert!(Remains::find(&lab).or_panic().is_empty());
    let node = other.node(1).or_panic().namespace();
    let gateway = plan::fabric_address(Family::Ipv4);
    probe::icmp_echo(node, gateway, 1, 56, &patient()).or_panic();
}

#[test]
fn a_panic_in_a_lab_leaves_nothing() {
    let plan = Plan::new(util::lab_name("panic"));
    let lab = plan.lab.clone();
    let mut child = None;
    let payload = panic::catch_unwind(panic::AssertUnwindSafe(|| {
        let fabric = Fabric::build(plan).or_panic();
        let pod = &fabric.node(2).or_panic().pods()[1];
        let sleeper = pod.command("sleep").arg("1000").spawn().unwrap();
        child = Some(sleeper);
        let pins = fabric.node(1).or_panic().bpffs();
        assert!(fs::metadata(pins).unwrap().is_dir());
        let remains = Remains::find(&lab).or_panic();
        assert_eq!(remains.namespaces.len(), 8, "{remains:?}");
        assert_eq!(remains.processes.len(), 1);
        panic::panic_any(17_u8);
    }))
    .unwrap_err();
    assert_eq!(payload.downcast_ref(), Some(&17_u8));
    let remains = Remains::find(&lab).or_panic();
    assert!(remains.is_empty(), "{remains:?}");
    let ended = child.unwrap().wait().unwrap();
    assert_eq!(ended.signal(), Some(Signal::SIGKILL as i32));
}

#[test]
fn left_running_it_can_be_adopted() {
    let plan = util::plan("leak", 2);
    let lab = plan.lab.clone();
    Fabric::build(plan.clone()).or_panic().leak();
    assert!(labs().or_panic().contains(&lab));
    let fabric = Fabric::adopt(&lab).or_panic();
    assert_eq!(fabric.plan(), &plan);
    let node = fabric.node(1).or_panic().namespace();
    let to = fabric.node(2).or_panic().address(Family::Ipv6);
    probe::icmp_echo(node, to, 1, 56, &patient()).or_panic();
    drop(fabric);
    assert!(Remains::find(&lab).or_panic().is_empty());
    assert!(!labs().or_panic().contains(&lab));
    assert!(matches!(Fabric::adopt(&lab), Err(Error::LabMissing { .. })));
}

#[test]
fn what_cannot_be_built_leaves_nothing() {
    let mut plan = util::plan("bad", 1);
    plan.nodes[0].mtu_bytes = 70_000;
    let lab = plan.lab.clone();
    assert!(matches!(Fabric::build(plan), Err(Error::Invalid { .. })));
    assert!(Remains::find(&lab).or_panic().is_empty());
}

/// Runs itself again as a process that builds a lab and is killed in it.
#[test]
fn after_kill_9_everything_is_found_and_removed() {
    const ROLE: &str = "LAB_TEST_KILLED";
    if let Ok(lab) = env::var(ROLE) {
        let plan = Plan::new(lab.parse().or_panic()).with_nodes(1, NodePlan::default());
        let fabric = Fabric::build(plan).or_panic();
        let pod = &fabric.node(1).or_panic().pods()[0];
        let mut sleeper = pod.command("sleep").arg("1000").spawn().unwrap();
        raise(Signal::SIGKILL).unwrap();
        sleeper.wait().unwrap();
    }
    let lab = util::lab_name("killed");
    let status = again("after_kill_9_everything_is_found_and_removed", ROLE, &lab)
        .status()
        .unwrap();
    assert_eq!(status.signal(), Some(Signal::SIGKILL as i32));

    let found = Remains::find(&lab).or_panic();
    assert_eq!(
        (found.namespaces.len(), found.processes.len()),
        (5, 1),
        "{found:?}"
    );
    assert!(found.directory.is_some());
    let plan = Plan::new(lab.clone());
    assert!(matches!(Fabric::build(plan), Err(Error::LabExists { .. })));
    assert_eq!(Remains::destroy(&lab).or_panic(), found);
    assert!(Remains::find(&lab).or_panic().is_empty());
    assert!(Remains::destroy(&lab).or_panic().is_empty());
}

/// Runs itself again as a process that has a lab and is told to end.
#[test]
fn signals_take_the_lab_down() {
    const ROLE: &str = "LAB_TEST_SIGNALLED";
    if let Ok(lab) = env::var(ROLE) {
        signals::cleanup_on_signal().or_panic();
        let _fabric = Fabric::build(Plan::new(lab.parse().or_panic())).or_panic();
        thread::sleep(Duration::from_mins(1));
    }
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let lab = util::lab_name("signalled");
        let mut child = again("signals_take_the_lab_down", ROLE, &lab)
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        // One signal arrives while the lab is being built, the other when it is up.
        let enough = if signal == Signal::SIGINT { 3 } else { 8 };
        while Remains::find(&lab).or_panic().namespaces.len() < enough {
            assert!(Instant::now() < deadline, "the lab does not come up");
            thread::sleep(Duration::from_millis(1));
        }
        kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(signals::EXIT_CODE), "after {signal}");
        let remains = Remains::find(&lab).or_panic();
        assert!(remains.is_empty(), "after {signal}: {remains:?}");
    }
}

/// This test program again, to run one of its tests in another role.
fn again(test: &str, role: &str, lab: &LabName) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(["--exact", test])
        .env(role, lab.as_str())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}
