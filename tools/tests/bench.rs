//! `dpctl bench`: what it lists can be run, and what it prints is what it says. No word about speed.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "it is all tests"
)]

use std::{
    process::{self, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use datapath_conformance::{netns::Namespace, patience::scaled, signals};
use datapath_tunnel::netlink::VethEnd;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

fn dpctl(line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dpctl"));
    command.args(line.split_whitespace()).output().unwrap()
}

/// What it prints, where it ends with this code.
fn json(line: &str, code: i32) -> Value {
    let output = dpctl(line);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{line}: {said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn every_case_is_listed_with_what_it_measures() {
    let listing = json("--output json bench list", 0);
    assert_eq!(listing["format"], "bench-list/1");
    let cases = listing["cases"].as_array().unwrap();
    let names: Vec<_> = cases
        .iter()
        .map(|case| case["case"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "masquerade",
            "policy",
            "stream",
            "pingpong",
            "family",
            "cpus"
        ]
    );
    assert!(
        cases
            .iter()
            .all(|case| case["about"].as_str().unwrap().len() > 20)
    );
}

#[test]
fn a_tiny_run_says_what_was_measured_on_what() {
    let line = "--output json bench run masquerade --flows 7 --against iptables-nft,plain \
                --rounds 1 --warm-up 0 --packets 2048 --max-foreign 1";
    let report = json(line, 0);
    assert_eq!(report["format"], "bench/1");
    assert!(!report["machine"]["kernel"].as_str().unwrap().is_empty());
    assert!(report["machine"]["conntrack"]["nf_conntrack_buckets"].is_string());
    let tool = report["machine"]["tools"]["iptables-nft"].as_str().unwrap();
    assert!(tool.contains("nf_tables"), "{tool}");
    let results = report["results"].as_array().unwrap();
    let variants: Vec<_> = results
        .iter()
        .map(|row| row["variant"].as_str().unwrap())
        .collect();
    assert_eq!(variants, ["datapath", "iptables-nft", "datapath", "plain"]);
    let ours = &results[0];
    assert_eq!(ours["params"]["flows"], 7);
    assert_eq!(ours["loss"], 0.0);
    assert!(ours["ns_per_packet"]["median"].as_f64().unwrap() > 0.0);
    assert!(ours["ratio"]["iptables-nft"]["median"].as_f64().unwrap() > 0.0);
    assert_eq!(ours["gate"]["bound"], 1.8);
    assert_eq!(
        results[2]["gate"],
        Value::Null,
        "plain routing is for information"
    );
    let programs = ours["observed"].as_object().unwrap();
    assert!(
        programs.keys().any(|name| name.contains("from_pod")),
        "{programs:?}"
    );
}

#[test]
fn what_makes_no_sense_is_refused_with_what_does() {
    for (line, told) in [
        ("bench run fly", "masquerade"),
        ("bench run masquerade --against ufw", "iptables-legacy"),
        ("bench run masquerade --pattern zigzag", "one-destination"),
        ("bench run masquerade --rounds 0", "rounds"),
        ("bench run cpus --flows 1,2", "one number"),
        (
            "bench run masquerade --uplink none0 --uplink-mac 02:00:00:00:00:01",
            "ip -br link",
        ),
        (
            "bench run masquerade --uplink none0 --uplink-mac ff:ff:ff:ff:ff:ff",
            "broadcast",
        ),
        (
            "bench run cpus --uplink none0 --uplink-mac 02:00:00:00:00:01",
            "leave --uplink out",
        ),
    ] {
        let output = dpctl(line);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{line}: {said}");
        assert!(said.contains(told), "{line}: {said}");
    }
}

#[test]
fn a_run_that_is_ended_gives_the_card_back() {
    let machine = Namespace::create(&format!("bench-end-{}", process::id())).unwrap();
    let netlink = machine.netlink().unwrap();
    let (wire, card) = (VethEnd::new("wire0"), VethEnd::new("card0"));
    let wire = netlink.add_veth(wire, card).unwrap();
    let mac = machine.link("card0").unwrap().mac;
    netlink.set_up(wire.index, true).unwrap();
    netlink
        .set_up(machine.link("card0").unwrap().index, true)
        .unwrap();

    let line = "bench run masquerade --flows 7 --against plain --uplink card0 \
                --uplink-mac 02:00:00:00:00:99";
    let mut run = machine
        .command(env!("CARGO_BIN_EXE_dpctl"))
        .args(line.split_whitespace())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + scaled(Duration::from_mins(1));
    while netlink.link("card0").unwrap().is_some() {
        let ended = run.try_wait().unwrap();
        assert!(ended.is_none() && Instant::now() < deadline, "{ended:?}");
        thread::sleep(Duration::from_millis(10));
    }
    kill(Pid::from_raw(run.id().cast_signed()), Signal::SIGINT).unwrap();
    let output = run.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(signals::EXIT_CODE), "{said}");
    let back = machine.link("card0").unwrap();
    assert_eq!((back.mac, back.up), (mac, true), "{said}");
}
