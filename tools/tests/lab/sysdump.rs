//! Dumps of a node whose agent runs, and of one whose agent is dead, read back.

#![allow(clippy::indexing_slicing, reason = "what is not there fails a test")]

use std::{
    collections::BTreeMap, fs::File, io::Read as _, os::unix::fs::PermissionsExt as _, path::Path,
};

use datapath_conformance::netns::Namespace;
use flate2::read::GzDecoder;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tar::Archive;

use crate::rig::{Lab, dpctl};

/// The files of an archive, by their names.
fn read(path: &Path) -> BTreeMap<String, String> {
    let mut archive = Archive::new(GzDecoder::new(File::open(path).unwrap()));
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_str().unwrap().to_owned();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        let name = name.strip_prefix("datapath-sysdump/").unwrap();
        (name.to_owned(), text)
    });
    entries.collect()
}

fn json(files: &BTreeMap<String, String>, name: &str) -> Value {
    let text = files
        .get(name)
        .unwrap_or_else(|| panic!("no {name} in {:?}", files.keys()));
    serde_json::from_str(text).unwrap()
}

/// What holds of a dump whether or not the agent lives.
fn assert_describes_node(files: &BTreeMap<String, String>) {
    let maps = json(files, "kernel/maps.json");
    let map = |name: &str| {
        let mut maps = maps.as_array().unwrap().iter();
        maps.find(|map| map["name"] == name).unwrap().clone()
    };
    let pending = map("pending")["used"].as_u64().unwrap();
    let flows = map("flows")["used"].as_u64().unwrap();
    assert!(pending + flows >= 2, "a ping leaves a flow: {maps:#}");
    assert_eq!(map("flows")["key_bytes"], 40);
    assert_eq!(map("metrics")["used"], Value::Null);

    let programs = json(files, "kernel/programs.json");
    let programs = programs.as_array().unwrap();
    for name in [
        "from_pod",
        "to_pod",
        "from_uplink",
        "to_uplink",
        "from_host",
    ] {
        let mut found = programs.iter().filter(|program| program["name"] == name);
        let program = found
            .next()
            .unwrap_or_else(|| panic!("no {name}: {programs:#?}"));
        assert!(found.next().is_none(), "one {name}: {programs:#?}");
        assert_eq!(program["tag"].as_str().unwrap().len(), 16);
        assert!(program["verified_instructions"].as_u64().unwrap() > 100);
    }
    let links = json(files, "kernel/links.json");
    let attached = |program: &Value| {
        let mut links = links.as_array().unwrap().iter();
        links.any(|link| link["program_id"] == program["id"])
    };
    assert!(programs.iter().all(attached), "{links:#} {programs:#?}");
    assert!(files["kernel/version.txt"].contains("Linux version"));
    assert_eq!(
        json(files, "kernel/sysctls.json")["net.ipv4.ip_forward"],
        "0"
    );

    // The node's namespace, and no other.
    let links = json(files, "network/links.json");
    let names: Vec<_> = links
        .as_array()
        .unwrap()
        .iter()
        .map(|link| &link["name"])
        .collect();
    assert!(names.contains(&&Value::from("dp_host")), "{links:#}");
    let routes = &files["network/routes.json"];
    assert!(
        routes.contains("10.244.2.0/24") || routes.contains("10.244.1.0/24"),
        "{routes}"
    );
    assert!(files["network/addresses.json"].contains("192.0.2.11"));
    assert!(files.contains_key("network/neighbours.json"));

    let doctor = json(files, "doctor.json");
    let findings = doctor["findings"].as_array().unwrap();
    assert!(
        findings
            .iter()
            .any(|finding| finding["check"] == "uplink eth0"),
        "{doctor:#}"
    );
    assert!(files["agent.toml"].contains("uplinks = [\"eth0\"]"));
    assert!(files.contains_key("agent.log"));
    assert_eq!(json(files, "summary.json")["format"], "sysdump/1");
}

#[test]
fn a_node_is_dumped_with_its_agent_alive_and_dead() {
    let (lab, _) = Lab::up(&["--pods", "2"]);
    let pod = Namespace::open(&format!("{}-n1p1", lab.name())).unwrap();
    let ping = pod
        .command("ping")
        .args(["-c2", "-W3", "10.244.1.3"])
        .output();
    assert!(ping.unwrap().status.success());

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("alive.tar.gz");
    let out = file.to_str().unwrap();
    let said = lab.ask("n1", &["sysdump", "--out", out]).good();
    let size = file.metadata().unwrap().len();
    assert!(said.starts_with(&format!("{out}: {size} bytes")), "{said}");
    assert_eq!(said.lines().count(), 1, "nothing is missing: {said}");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let files = read(&file);
    assert_describes_node(&files);
    assert!(!files.contains_key("errors.txt"));
    assert_eq!(
        json(&files, "agent/status.json")["agent"]["pid"],
        lab.agent("n1").pid
    );
    assert_eq!(
        json(&files, "agent/endpoints.json")
            .as_array()
            .unwrap()
            .len(),
        2
    );
    assert_eq!(
        json(&files, "agent/peers.json").as_array().unwrap().len(),
        1
    );
    assert!(files["agent/flows.json"].contains("10.244.1.3"));
    for name in ["ipam", "metrics", "drops"] {
        json(&files, &format!("agent/{name}.json"));
    }

    let pid = Pid::from_raw(lab.agent("n1").pid.try_into().unwrap());
    kill(pid, Signal::SIGKILL).unwrap();
    let file = directory.path().join("dead.tar.gz");
    let out = file.to_str().unwrap();
    let said = lab
        .ask("n1", &["--output", "json", "sysdump", "--out", out])
        .good();
    let said: Value = serde_json::from_str(&said).unwrap();
    let files = read(&file);
    assert_describes_node(&files);
    let errors = &files["errors.txt"];
    assert!(
        errors.contains("agent/: ") && errors.contains("agent.sock"),
        "{errors}"
    );
    assert_eq!(errors.lines().count(), 1, "{errors}");
    assert_eq!(said["errors"][0]["part"], "agent/");
    assert_eq!(said["bytes"], file.metadata().unwrap().len());
}

#[test]
fn where_there_is_nothing_the_rest_is_dumped() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (socket, bpffs, out) = (path("agent.sock"), path("bpffs"), path("dump.tar.gz"));
    let said = dpctl(&[
        "--socket", &socket, "sysdump", "--bpffs", &bpffs, "--out", &out,
    ])
    .good();
    for part in ["agent/", "agent.toml", "agent.log", "kernel/maps.json"] {
        assert!(said.contains(&format!("without {part}: ")), "{said}");
    }
    let files = read(Path::new(&out));
    assert!(
        files["errors.txt"].contains(&bpffs),
        "{}",
        files["errors.txt"]
    );
    assert!(files["network/links.json"].contains("\"lo\""));

    let said = dpctl(&[
        "--socket",
        &socket,
        "sysdump",
        "--out",
        &path("no/such/dir"),
    ])
    .bad(1);
    assert!(said.contains("no/such/dir"), "{said}");
}
