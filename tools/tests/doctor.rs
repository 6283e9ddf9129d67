//! `dpctl doctor` with less than it needs, and the agent beside it: one remedy from both.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "what fails here fails a test"
)]

use std::{
    fs, process,
    process::{Command, Output},
};

use datapath_conformance::netns::Namespace;
use serde_json::Value;

const DPCTL: &str = env!("CARGO_BIN_EXE_dpctl");
const AGENT: &str = env!("CARGO_BIN_EXE_dp-agent");

/// A program that runs without some capabilities, whatever it is started by.
fn without(capabilities: &[&str], namespace: &Namespace, program: &str) -> Command {
    let mut command = namespace.command("setpriv");
    if !capabilities.is_empty() {
        let dropped: Vec<_> = capabilities.iter().map(|one| format!("-{one}")).collect();
        let dropped = dropped.join(",");
        command.args(["--bounding-set", &dropped, "--inh-caps", &dropped]);
    }
    command.arg(program);
    command
}

fn diagnosis(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn finding<'a>(diagnosis: &'a Value, check: &str) -> &'a Value {
    let mut findings = diagnosis["findings"].as_array().unwrap().iter();
    findings
        .find(|finding| finding["check"] == check)
        .unwrap_or_else(|| panic!("no {check} in {diagnosis:#}"))
}

/// A namespace of a test, where nobody else is.
fn namespace(what: &str) -> Namespace {
    Namespace::create(&format!("dpt{}-{what}", process::id())).unwrap()
}

#[test]
fn with_all_capabilities_it_runs() {
    let namespace = namespace("doctor");
    let mut dpctl = without(&[], &namespace, DPCTL);
    let output = dpctl
        .args(["--output", "json", "doctor", "--uplink", "lo"])
        .output()
        .unwrap();
    let diagnosis = diagnosis(&output);
    assert_eq!(output.status.code(), Some(0), "{diagnosis:#}");
    assert_eq!(diagnosis["format"], "doctor/1");
    assert_eq!(diagnosis["runs"], true);
    for check in ["bpf system call", "bpffs", "veth device", "datapath"] {
        assert_eq!(finding(&diagnosis, check)["level"], "ok", "{diagnosis:#}");
    }
    let uplink = finding(&diagnosis, "uplink lo")["found"].as_str().unwrap();
    assert!(uplink.starts_with("MTU 65536"), "{uplink}");
    let offloads = finding(&diagnosis, "offloads lo")["found"]
        .as_str()
        .unwrap();
    assert!(offloads.contains("rx-checksum") && offloads.contains("tx-tcp-segmentation"));
    assert!(offloads.starts_with("on: "), "{offloads}");
    // What it mounted is nobody's any more, and the namespace has what it had.
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(" doctor "), "{mounts}");
    assert_eq!(namespace.netlink().unwrap().links().unwrap().len(), 1);

    let table = without(&[], &namespace, DPCTL)
        .arg("doctor")
        .output()
        .unwrap();
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("The datapath runs here"), "{table}");
}

#[test]
fn an_uplink_that_is_not_there_is_missing() {
    let namespace = namespace("nouplink");
    let mut dpctl = without(&[], &namespace, DPCTL);
    let output = dpctl
        .args(["--output", "json", "doctor", "--uplink", "eth7"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let diagnosis = diagnosis(&output);
    let uplink = finding(&diagnosis, "uplink eth7");
    assert_eq!(uplink["level"], "missing");
    assert!(uplink["remedy"].as_str().unwrap().contains("ip link"));
}

#[test]
fn each_capability_that_is_needed_is_named_by_doctor_and_agent() {
    // CAP_SYS_ADMIN stands for CAP_BPF, so that one is missed only without both.
    let cases: [(&[&str], &[&str]); 3] = [
        (&["net_admin"], &["CAP_NET_ADMIN"]),
        (&["sys_admin"], &["CAP_SYS_ADMIN"]),
        (&["bpf", "sys_admin"], &["CAP_BPF", "CAP_SYS_ADMIN"]),
    ];
    let namespace = namespace("caps");
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("agent.toml");
    let at = directory.path().display();
    let text = format!(
        "socket = \"{at}/agent.sock\"\nstate = \"{at}/ipam.redb\"\n\
         [datapath]\nbpffs = \"{at}/bpffs\"\nuplinks = [\"lo\"]\n\
         pod_cidrs = [\"10.244.1.0/24\"]\ngateways = [\"10.244.1.1\"]\n"
    );
    fs::write(&config, text).unwrap();
    for (dropped, missing) in cases {
        let mut dpctl = without(dropped, &namespace, DPCTL);
        let output = dpctl.args(["--output", "json", "doctor"]).output().unwrap();
        let diagnosis = diagnosis(&output);
        assert_eq!(output.status.code(), Some(1), "{diagnosis:#}");
        assert_eq!(diagnosis["runs"], false);
        for name in missing {
            let finding = finding(&diagnosis, name);
            assert_eq!(finding["level"], "missing", "{diagnosis:#}");
            let remedy = format!("run as root, or give the process {name}");
            assert_eq!(finding["remedy"], remedy);
        }

        let mut agent = without(dropped, &namespace, AGENT);
        let output = agent.arg("--config").arg(&config).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        let all = missing.join(", ");
        let remedy = format!("run as root, or give the process {all}");
        assert!(said.contains(&remedy), "{said}");
        assert!(said.contains("dpctl doctor"), "{said}");
    }
}

#[test]
fn a_capability_that_another_stands_for_is_not_missed() {
    let namespace = namespace("lesser");
    let mut dpctl = without(&["bpf", "perfmon", "sys_resource"], &namespace, DPCTL);
    let output = dpctl.args(["--output", "json", "doctor"]).output().unwrap();
    let diagnosis = diagnosis(&output);
    assert_eq!(output.status.code(), Some(0), "{diagnosis:#}");
    for name in ["CAP_BPF", "CAP_PERFMON", "CAP_SYS_RESOURCE", "datapath"] {
        assert_eq!(finding(&diagnosis, name)["level"], "ok", "{diagnosis:#}");
    }
}

#[test]
fn it_asks_no_agent() {
    let output = Command::new(DPCTL)
        .args(["--node", "n1", "doctor"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("leave out --socket, --node and --lab"),
        "{said}"
    );
}
