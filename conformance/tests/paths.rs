//! Every path through the datapath, on labs in this process, and nothing left of it afterwards.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "it is all tests"
)]

mod util;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use datapath_conformance::{
    Error, Result,
    family::Family,
    paths::{self, InProcess, NodeView, Site},
    probe,
    report::{Check, Outcome},
    snapshot::MachineState,
    topology::{Fabric, Plan},
};
use datapath_user::FlowView;
use serde_json::Value;
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
    assert_eq!(captures(&site), Vec::<PathBuf>::new(), "nothing failed");
    datapaths.stop().or_panic();
}

/// Directories of captures that were kept of a lab.
fn captures(site: &Site<'_>) -> Vec<PathBuf> {
    let prefix = format!("datapath-{}-", site.fabric.name());
    let entries = fs::read_dir(std::env::temp_dir()).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with(&prefix)
    });
    paths
}

/// A node that cannot be asked: by the time that shows, a pod has sent something.
struct Mute<'a>(&'a Fabric);

impl NodeView for Mute<'_> {
    fn drops(&self, _: usize) -> Result<BTreeMap<String, u64>> {
        let pod = &self.0.node(1)?.pods()[0];
        let to = paths::pod_address(2, 1, Family::Ipv4);
        probe::icmp_echo(pod, to, 1, 1000, &patient())?;
        Err(Error::View {
            node: "n1".to_owned(),
            source: "mute".into(),
        })
    }

    fn flows(&self, node: usize) -> Result<Vec<FlowView>> {
        self.drops(node).map(|_| Vec::new())
    }
}

#[test]
fn what_crossed_the_lab_is_kept_when_something_fails() {
    let fabric = Fabric::build(Plan::new(lab_name("kept"))).or_panic();
    let datapaths = InProcess::start(&fabric, Family::Ipv4).or_panic();
    let site = datapaths.site(&fabric, Family::Ipv4);
    let report = paths::run(&site, &Mute(&fabric), |_| {});
    let kept = captures(&site);
    let [directory] = kept.as_slice() else {
        panic!("{kept:?}")
    };
    let [check] = report.checks() else {
        panic!("{report:?}")
    };
    let said = line(check);
    assert!(
        said.contains("mute") && said.contains(directory.to_str().unwrap()),
        "{said}"
    );
    // An echo request and its answer, at the pod as they are and between the nodes in the tunnel.
    for (host, filter) in [
        ("n1p1", "icmp && !geneve"),
        ("n2p1", "icmp && !geneve"),
        ("n1", "icmp && geneve"),
        ("n2", "icmp && geneve"),
    ] {
        let file = directory.join(host).with_extension("pcapng");
        let output = Command::new("tshark")
            .arg("-r")
            .arg(&file)
            .args([
                "-Y",
                filter,
                "-T",
                "fields",
                "-e",
                "frame.cap_len",
                "-e",
                "frame.len",
            ])
            .output()
            .expect("tshark is not installed");
        let frames = String::from_utf8(output.stdout).unwrap();
        assert_eq!(frames.lines().count(), 2, "{}: {frames}", file.display());
        assert!(
            frames.lines().all(|line| line.starts_with("256\t1")),
            "{frames}"
        );
    }
    fs::remove_dir_all(directory).unwrap();
    datapaths.stop().or_panic();
}

#[test]
fn the_machine_is_as_before() {
    // Once in order, once by dropping it, as when a test panics.
    for in_order in [true, false] {
        let before = MachineState::take().or_panic();
        let plan = Plan::new(lab_name("leftover"));
        let lab = plan.lab.to_string();
        let fabric = Fabric::build(plan).or_panic();
        let datapaths = InProcess::start(&fabric, Family::Ipv4).or_panic();
        let remote = paths::pod_address(2, 1, Family::Ipv6);
        let node = fabric.node(1).or_panic();
        probe::icmp_echo(&node.pods()[0], remote, 1, 56, &patient()).or_panic();

        // Other programs may make and remove things at the same time: only what is this lab's is
        // looked at, and interfaces, which no other lab leaves to the machine either.
        let objects = bpf_objects(&fabric);
        let ours = |thing: &String| {
            let is_ours = |object: &String| thing.starts_with(object.as_str());
            thing.contains(&lab) || thing.starts_with("interface") || objects.iter().any(is_ours)
        };
        let changes = || -> Vec<_> {
            let all = before.diff(&MachineState::take().or_panic());
            all.into_iter().filter(ours).collect()
        };
        let up = changes();
        assert!(objects.len() > 30, "{objects:?}");
        let named = ["network namespace ", "mount ", "file "].map(str::to_owned);
        for thing in objects.iter().chain(&named) {
            assert!(
                up.iter().any(|line| line.starts_with(thing)),
                "no {thing} in {up:#?}"
            );
        }
        if in_order {
            datapaths.stop().or_panic();
            fabric.destroy().or_panic();
        } else {
            drop(datapaths);
            drop(fabric);
        }
        // The kernel frees what nobody holds any more a moment later.
        let deadline = Instant::now() + Duration::from_secs(20);
        while !changes().is_empty() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(50));
        }
        let left = changes();
        assert!(
            left.is_empty(),
            "in order: {in_order}; left behind: {left:#?}"
        );
    }
}

/// Names every BPF link, program and map of a lab's nodes, as [`MachineState`] does.
fn bpf_objects(fabric: &Fabric) -> BTreeSet<String> {
    let mut objects = BTreeSet::new();
    let number = |value: &Value| value.as_u64().unwrap();
    for node in fabric.nodes() {
        for pin in fs::read_dir(node.bpffs().join("links")).unwrap() {
            let path = pin.unwrap().path();
            let link = bpftool(&["link", "show", "pinned", path.to_str().unwrap()]);
            let program = number(&link["prog_id"]).to_string();
            objects.insert(format!("BPF link {} ", link["id"]));
            objects.insert(format!("BPF program {program} "));
            // Those that are pinned are among them.
            let maps = bpftool(&["prog", "show", "id", &program]);
            let maps = maps["map_ids"].as_array().unwrap().iter();
            objects.extend(maps.map(|id| format!("BPF map {id} ")));
        }
    }
    objects
}

fn bpftool(arguments: &[&str]) -> Value {
    let output = Command::new("bpftool")
        .arg("-j")
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
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
