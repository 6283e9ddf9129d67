//! Labs by `dpctl`, as root: what it says, what works, and that nothing is left of them.

#![allow(clippy::unwrap_used, reason = "what fails here fails a test")]

mod container;
mod flood;
mod flows;
mod policy;
mod restart;
mod rig;
mod sysdump;
mod two_labs;

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use datapath_conformance::netns::Namespace;
use datapath_tools::lab::Process;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use self::rig::{AGENT, DPCTL, Lab, Running, Said, bpf_objects, dpctl};

/// A table without its layout.
fn words(table: &str) -> String {
    table.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The events of a reason on the first node, as soon as there are some.
fn watched(lab: &Lab, reason: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let said = lab.ask("n1", &["watch", "--last=9", "--reason", reason]);
        let said = said.good();
        if !said.is_empty() || Instant::now() >= deadline {
            return said;
        }
    }
}

#[test]
fn a_lab_comes_works_and_leaves_nothing() {
    let (lab, said) = Lab::up(&[]);
    for word in [
        "n1p1",
        "10.244.2.3",
        "fd00:10:244:1::2",
        "2002",
        "198.51.100.10",
        "lab down",
    ] {
        assert!(said.contains(word), "no {word} in\n{said}");
    }
    let objects: BTreeSet<_> = ["n1", "n2"]
        .into_iter()
        .flat_map(|node| bpf_objects(lab.agent(node)))
        .collect();
    let kinds = ["BPF link ", "BPF program ", "BPF map "];
    let up = lab.changes(&objects);
    for kind in kinds
        .into_iter()
        .chain(["network namespace ", "mount ", "file "])
    {
        assert!(
            up.iter().any(|thing| thing.starts_with(kind)),
            "no {kind}in {up:#?}"
        );
    }

    // What it suggests to try works.
    let namespace = Namespace::open(&format!("{}-n1p1", lab.name())).unwrap();
    for address in ["10.244.2.3", "fd00:10:244:2::3", "198.51.100.10"] {
        let ping = namespace
            .command("ping")
            .args(["-c1", "-W3", address])
            .output()
            .unwrap();
        assert!(ping.status.success(), "{address}: {ping:?}");
    }
    let flows = words(&lab.ask("n1", &["flows"]).good());
    assert!(
        flows.contains("10.244.1.2:") && flows.contains("snat 192.0.2.11:"),
        "{flows}"
    );
    assert!(flows.contains("(n1p1) -> 10.244.2.3 (n2)"), "{flows}");
    let forwards = lab.ask("n1", &["drops", "--forwards"]).good();
    assert!(forwards.contains("to-overlay"), "{forwards}");
    let nobody = "10.244.1.200";
    let mut ping = namespace.command("ping");
    let answered = ping.args(["-c1", "-W1", nobody]).status().unwrap();
    assert!(!answered.success(), "nobody has it");
    let watched = watched(&lab, "stale or unroutable");
    let drop = "n1p1 (ID:1001) <> 10.244.1.200 (unknown) Stale or unroutable IP DROPPED (ICMPv4 \
                EchoRequest)\n";
    assert!(watched.contains(drop), "{watched}");

    let status = dpctl(&["--output", "json", "lab", "status", lab.name()]).good();
    let status: Value = serde_json::from_str(&status).unwrap();
    for (node, at) in status[0]["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .zip(["n1", "n2"])
    {
        assert_eq!(node["pid"], lab.agent(at).pid);
        assert_eq!(
            (node["endpoints"].as_u64(), node["peers"].as_u64()),
            (Some(2), Some(1))
        );
    }

    let said = dpctl(&["lab", "down", lab.name()]).good();
    assert!(
        said.contains("agents ended: n1, n2") && !said.contains("killed"),
        "{said}"
    );
    lab.assert_gone(&objects);
    let said = dpctl(&["lab", "down", lab.name()]).good();
    assert!(said.contains("nothing to remove"), "{said}");
    let said = dpctl(&["lab", "status", lab.name()]).bad(3);
    assert!(
        said.contains("there is no lab") && said.contains("dpctl lab up"),
        "{said}"
    );
}

#[test]
fn pods_come_and_go_while_it_is_up() {
    let (lab, _) = Lab::up(&["--nodes", "1", "--pods", "1"]);
    let namespace = Namespace::create(&format!("{}-n1p9", lab.name())).unwrap();
    let said = lab.ask(
        "n1",
        &[
            "endpoint",
            "add",
            "nine",
            "--netns",
            namespace.name(),
            "--identity",
            "909",
        ],
    );
    assert!(said.good().contains("10.244.1.3"));
    let first = "10.244.1.2";
    let ping = || {
        namespace
            .command("ping")
            .args(["-c1", "-W3", first])
            .output()
            .unwrap()
    };
    assert!(ping().status.success());
    assert!(lab.ask("n1", &["ipam"]).good().contains("nine/eth0"));

    let said = lab.ask(
        "n1",
        &[
            "endpoint",
            "add",
            "nine",
            "--netns",
            "x",
            "--identity",
            "909",
        ],
    );
    let said = said.bad(1);
    assert!(said.contains("\"nine\" exists already"), "{said}");
    let said = lab.ask(
        "n1",
        &[
            "endpoint",
            "add",
            "ten",
            "--netns",
            "nowhere",
            "--identity",
            "909",
        ],
    );
    let said = said.bad(1);
    assert!(said.contains("/run/netns/nowhere"), "{said}");
    let taken = [
        "endpoint",
        "add",
        "ten",
        "--netns",
        namespace.name(),
        "--identity",
        "909",
    ];
    let taken = [&taken[..], &["--interface", "eth1", "--address", first]].concat();
    let said = lab.ask("n1", &taken).bad(1);
    assert!(said.contains("10.244.1.2 is leased to n1p1/eth0"), "{said}");
    let named = [
        "endpoint",
        "add",
        "a/b",
        "--netns",
        namespace.name(),
        "--identity",
        "909",
    ];
    let said = lab.ask("n1", &named).bad(1);
    assert!(said.contains("endpoint id \"a/b\""), "{said}");
    // What was refused holds nothing.
    assert_eq!(lab.client("n1").addresses().unwrap().leases.len(), 2);

    lab.ask("n1", &["endpoint", "remove", "nine"]).good();
    assert!(!ping().status.success());
    assert_eq!(lab.client("n1").addresses().unwrap().leases.len(), 1);
    let said = lab.ask("n1", &["endpoint", "remove", "nine"]).bad(1);
    assert!(said.contains("no endpoint \"nine\""), "{said}");
}

#[test]
fn an_agent_that_was_killed_leaves_nothing_either() {
    let (lab, _) = Lab::up(&["--pods", "1"]);
    let agent = lab.agent("n1");
    let objects = bpf_objects(agent);
    kill(
        Pid::from_raw(agent.pid.try_into().unwrap()),
        Signal::SIGKILL,
    )
    .unwrap();
    assert!(agent.wait_until(Instant::now() + Duration::from_secs(5)));

    let said = lab.ask("n1", &["status"]).bad(3);
    assert!(
        said.contains("n1/agent.sock") && said.contains("dp-agent --config"),
        "{said}"
    );
    let said = dpctl(&["lab", "status", lab.name()]).good();
    assert!(
        said.contains("none") && said.contains("no agent can be reached"),
        "{said}"
    );
    let said = dpctl(&["lab", "down", lab.name()]).good();
    assert!(
        said.contains("ended: n2") && said.contains("gone already: n1"),
        "{said}"
    );
    lab.assert_gone(&objects);
}

#[test]
fn a_process_that_got_an_agents_number_is_left_alone() {
    let lab = Lab::new();
    let directory = lab.directory("n1");
    fs::create_dir_all(&directory).unwrap();
    let mut stranger = Command::new("sleep").arg("60").spawn().unwrap();
    let process = Process::of(stranger.id()).unwrap();
    let former = Process {
        start_ticks: process.start_ticks - 1,
        ..process
    };
    former.write(&directory.join("agent.json")).unwrap();

    let said = dpctl(&["lab", "down", lab.name()]).good();
    let left_alone = process.runs();
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    assert!(left_alone && said.contains("gone already: n1"), "{said}");
    assert!(!directory.exists());
}

#[test]
fn a_second_lab_or_agent_in_the_same_place_is_refused() {
    let (lab, _) = Lab::up(&["--nodes", "1", "--pods", "1"]);
    let said = dpctl(&["lab", "up", lab.name()]).bad(1);
    assert!(
        said.contains("is up already") && said.contains("dpctl lab down"),
        "{said}"
    );

    let namespace = Namespace::open(&format!("{}-n1", lab.name())).unwrap();
    let start = |config: &Path| {
        let mut command = namespace.command(AGENT);
        Said::of(
            command
                .args(["--log", "off", "--config"])
                .arg(config)
                .output()
                .unwrap(),
        )
    };
    let config = lab.directory("n1").join("agent.toml");
    let said = start(&config).bad(1);
    let pid = lab.agent("n1").pid;
    assert!(
        said.contains(&format!("another agent that is running (process {pid})")),
        "{said}"
    );
    // Another socket is not enough: leases and pins have one owner, too.
    let text = fs::read_to_string(&config)
        .unwrap()
        .replace("agent.sock", "other.sock");
    let other = lab.directory("n1").join("other.toml");
    fs::write(&other, &text).unwrap();
    let said = start(&other).bad(1);
    assert!(
        said.contains("ipam.redb") && said.contains("one owner"),
        "{said}"
    );
    fs::write(&other, text.replace("ipam.redb", "other.redb")).unwrap();
    let said = start(&other).bad(1);
    assert!(said.contains("another datapath"), "{said}");
    assert!(!lab.directory("n1").join("other.sock").exists());
    lab.client("n1").health().unwrap();
}

#[test]
fn an_agent_that_is_started_again_gives_its_pods_their_addresses_back() {
    let (lab, _) = Lab::up(&["--nodes", "1", "--pods", "2"]);
    let before = lab.client("n1").endpoints().unwrap();
    let agent = lab.agent("n1");
    agent.terminate().unwrap();
    assert!(agent.wait_until(Instant::now() + Duration::from_secs(15)));
    assert!(!lab.directory("n1").join("agent.sock").exists());

    // From the configuration this time, the second one only.
    let config = lab.directory("n1").join("agent.toml");
    let second = before.last().unwrap();
    let text = fs::read_to_string(&config).unwrap();
    let endpoint = format!(
        "\n[[endpoints]]\nid = {:?}\nnetns = {:?}\nidentity = {}\n",
        second.id, second.netns, second.identity
    );
    let text = text
        .replace("peers = []\n", "")
        .replace("endpoints = []\n", "")
        + &endpoint;
    fs::write(&config, text).unwrap();
    let namespace = Namespace::open(&format!("{}-n1", lab.name())).unwrap();
    let mut command = namespace.command(AGENT);
    let child = command
        .arg("--config")
        .arg(&config)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut agent = Running(child);
    let mut line = String::new();
    BufReader::new(agent.0.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert!(
        line.contains("ready") && line.contains("1 endpoints"),
        "{line:?}"
    );
    let after = lab.client("n1").endpoints().unwrap();
    assert_eq!(after.len(), 1);
    assert_eq!(
        (&after[0].id, &after[0].addresses),
        (&second.id, &second.addresses)
    );
    // The first one's lease went with it.
    assert_eq!(lab.client("n1").addresses().unwrap().leases.len(), 1);
    assert_eq!(agent.end(Signal::SIGTERM), Some(0));
    assert!(!lab.directory("n1").join("agent.sock").exists());
}

#[test]
fn ctrl_c_takes_a_demo_down() {
    let lab = Lab::new();
    let mut command = Command::new(DPCTL);
    let temporary = tempfile::tempdir().unwrap();
    let captures = || fs::read_dir(temporary.path()).unwrap().count();
    command
        .args(["lab", "demo", lab.name()])
        .env("TMPDIR", temporary.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut demo = Running(command.spawn().unwrap());
    let said = BufReader::new(demo.0.stderr.take().unwrap());
    let mut lines = said.lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("is up after")));
    let objects = bpf_objects(lab.agent("n1"));
    assert!(!lab.changes(&objects).is_empty());
    let deadline = Instant::now() + Duration::from_secs(20);
    while captures() == 0 && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(captures(), 1, "the traffic is captured");
    assert_eq!(demo.end(Signal::SIGINT), Some(130));
    assert_eq!(captures(), 0, "and nobody asked for it");
    lab.assert_gone(&objects);
}

#[test]
fn a_demo_passes_and_says_so_in_both_forms() {
    for tunnel in ["direct", "native"] {
        let lab = Lab::new();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("report.json");
        let demo = ["lab", "demo", lab.name(), "--tunnel", tunnel];
        let said = dpctl(&[&demo[..], &["--json", file.to_str().unwrap()]].concat());
        assert_eq!(said.code, Some(0), "{}{}", said.out, said.err);
        let last = said.out.lines().last().unwrap();
        let count = last.strip_prefix("demo: ");
        let count = count.and_then(|rest| rest.strip_suffix(" checks passed, 0 failed"));
        let count: u32 = count.and_then(|count| count.parse().ok()).unwrap();
        assert!(count > 50, "{last}");
        let report: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        assert_eq!(report["format"], "conformance/1");
        let not_passed = (report["failed"].as_u64(), report["skipped"].as_u64());
        assert_eq!(not_passed, (Some(0), Some(0)));
        lab.assert_gone(&BTreeSet::new());
    }
}
