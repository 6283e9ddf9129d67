//! Every path through the datapath, on labs in this process, and nothing left of it afterwards.

mod util;

use std::{collections::BTreeSet, time::Duration};

use datapath_conformance::{
    family::Family,
    paths::{self, InProcess},
    probe,
    report::{Check, Outcome},
    snapshot::MachineState,
    topology::{Fabric, Plan},
};
use util::{OrPanic, lab_name, patient};

/// How many checks there are at least; with fewer, some were left out without a word.
const LEAST_CHECKS: usize = 42;

#[test]
fn every_path_with_a_tunnel_over_ipv4() {
    every_path(Family::Ipv4);
}

#[test]
fn every_path_with_a_tunnel_over_ipv6() {
    every_path(Family::Ipv6);
}

fn every_path(tunnel: Family) {
    let fabric = Fabric::build(Plan::new(lab_name("paths"))).or_panic();
    let datapaths = InProcess::start(&fabric, tunnel).or_panic();
    let site = datapaths.site(&fabric, tunnel);
    let report = paths::run(&site, &datapaths, |check| eprintln!("{}", line(check)));
    let failed: Vec<_> = report
        .checks()
        .iter()
        .filter(|check| check.outcome != Outcome::Passed)
        .map(line)
        .collect();
    assert!(
        failed.is_empty(),
        "{} failed:\n{}",
        failed.len(),
        failed.join("\n")
    );
    let subjects: BTreeSet<_> = report
        .checks()
        .iter()
        .map(|check| {
            let labels = (check.family, check.protocol);
            (&check.scenario, &check.path, format!("{labels:?}"))
        })
        .collect();
    assert_eq!(
        subjects.len(),
        report.checks().len(),
        "two checks of one name"
    );
    assert!(
        subjects.len() >= LEAST_CHECKS,
        "only {} checks",
        subjects.len()
    );
    let silent = report
        .checks()
        .iter()
        .find(|check| check.detail.is_empty() || check.actions == 0);
    assert!(silent.is_none(), "nothing was measured by {silent:?}");
    datapaths.stop().or_panic();
}

/// Other programs may make and remove things at the same time, which nothing tells apart. What
/// is left behind here is left behind every time.
#[test]
fn the_machine_is_as_before() {
    const ATTEMPTS: usize = 4;

    let mut left = Vec::new();
    for attempt in 0..ATTEMPTS {
        let before = MachineState::take().or_panic();
        let plan = Plan::new(lab_name("leftover"));
        let lab = plan.lab.to_string();
        let fabric = Fabric::build(plan).or_panic();
        let datapaths = InProcess::start(&fabric, Family::Ipv4).or_panic();
        let up = before.diff(&MachineState::take().or_panic());
        for kind in [
            "BPF link",
            "BPF program",
            "BPF map",
            "network namespace",
            "mount",
            "file",
        ] {
            assert!(
                up.iter().any(|thing| thing.starts_with(kind)),
                "no {kind} in {up:#?}"
            );
        }
        let pod = &fabric.node(1).or_panic().pods()[0];
        let remote = paths::pod_address(2, 1, Family::Ipv6);
        probe::icmp_echo(pod, remote, 1, 56, &patient()).or_panic();
        // Once in order, once by dropping it, as when a test panics.
        if attempt % 2 == 0 {
            datapaths.stop().or_panic();
            fabric.destroy().or_panic();
        } else {
            drop(datapaths);
            drop(fabric);
        }
        left = before.wait_for_return(Duration::from_secs(5)).or_panic();
        assert!(!left.iter().any(|thing| thing.contains(&lab)), "{left:#?}");
        if left.is_empty() && attempt > 0 {
            return;
        }
    }
    assert!(
        left.is_empty(),
        "every time something is left behind: {left:#?}"
    );
}

fn line(check: &Check) -> String {
    let labels = [
        check.family.map(|f| f.to_string()),
        check.protocol.map(|p| p.to_string()),
    ];
    let labels: Vec<_> = labels.into_iter().flatten().collect();
    let (
        labels,
        Check {
            seconds,
            scenario,
            path,
            ..
        },
    ) = (labels.join(" "), check);
    let said = match &check.outcome {
        Outcome::Passed => format!("ok: {}", check.detail),
        Outcome::Failed { detail } => format!("FAILED: {detail}"),
        Outcome::Skipped { reason } => format!("skipped: {reason}"),
    };
    format!("{seconds:.3}s {scenario}: {path} {labels}: {said}")
}
