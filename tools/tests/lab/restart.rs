//! Agents that are killed or stopped, and started again.

use std::{
    fs,
    io::{BufRead, BufReader},
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

use crate::rig::{AGENT, Lab, Running, bpf_objects};

/// A ping that goes on in a pod until it is told to end.
struct Pings(Running);

impl Pings {
    fn start(lab: &Lab, pod: &str, address: &str) -> Self {
        let namespace = Namespace::open(&format!("{}-{pod}", lab.name())).unwrap();
        let mut command: Command = namespace.command("ping");
        let pings = command
            .args(["-i", "0.05", "-W", "3", address])
            .stdout(Stdio::piped())
            .spawn();
        Self(Running(pings.unwrap()))
    }

    /// Ends it, and returns how many were sent and how many answered.
    fn end(mut self) -> (u32, u32) {
        let out = self.0.0.stdout.take().unwrap();
        self.0.end(Signal::SIGINT);
        let lines = BufReader::new(out).lines().map(Result::unwrap);
        let summary = lines.filter(|line| line.contains("transmitted")).last();
        let summary = summary.unwrap();
        let mut numbers = summary
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|word| word.parse().ok());
        (numbers.next().unwrap(), numbers.next().unwrap())
    }
}

pub(crate) fn kill_agent(agent: Process) {
    let pid = Pid::from_raw(agent.pid.try_into().unwrap());
    kill(pid, Signal::SIGKILL).unwrap();
    assert!(agent.wait_until(Instant::now() + Duration::from_secs(5)));
}

/// Starts an agent of a node again, and waits until it is ready.
pub(crate) fn start_again(lab: &Lab, node: &str) -> Running {
    let namespace = Namespace::open(&format!("{}-{node}", lab.name())).unwrap();
    let child = namespace
        .command(AGENT)
        .arg("--config")
        .arg(lab.directory(node).join("agent.toml"))
        .stdout(Stdio::piped())
        .spawn();
    let mut agent = Running(child.unwrap());
    let mut line = String::new();
    BufReader::new(agent.0.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert!(line.contains("ready"), "{line:?}");
    let process = Process::of(agent.0.id()).unwrap();
    process
        .write(&lab.directory(node).join("agent.json"))
        .unwrap();
    agent
}

#[test]
fn pods_do_not_notice_that_their_agent_is_another_one() {
    let (lab, _) = Lab::up(&[]);
    let client = lab.client("n1");
    let before = (client.endpoints().unwrap(), client.peers().unwrap());
    let leases = client.addresses().unwrap().leases;
    let pings = [
        Pings::start(&lab, "n1p1", "198.51.100.10"),
        Pings::start(&lab, "n1p1", "fd00:10:244:2::3"),
        Pings::start(&lab, "n2p1", "10.244.1.3"),
    ];

    // Killed; then asked to end, after which nothing is to be removed.
    kill_agent(lab.agent("n1"));
    let config = lab.directory("n1").join("agent.toml");
    let text = fs::read_to_string(&config).unwrap();
    assert!(text.contains("on_stop = \"remove\""), "{text}");
    fs::write(&config, text.replace("\"remove\"", "\"leave\"")).unwrap();
    for _ in 0..2 {
        let mut agent = start_again(&lab, "n1");
        let after = (client.endpoints().unwrap(), client.peers().unwrap());
        assert_eq!(after, before);
        assert_eq!(client.addresses().unwrap().leases, leases);
        let status = lab.ask("n1", &["--output", "json", "status"]).good();
        let status: Value = serde_json::from_str(&status).unwrap();
        let adopted = &status["datapath"]["adopted"];
        assert_eq!(adopted["endpoints_kept"], 2, "{adopted}");
        assert_eq!(adopted["links_replaced"], 8, "{adopted}");
        let said = lab.ask("n1", &["status"]).good();
        assert!(said.contains("2 endpoints, 1 peers"), "{said}");
        // While it runs, some more pings go past it.
        thread::sleep(Duration::from_millis(700));
        assert_eq!(agent.end(Signal::SIGTERM), Some(0));
    }
    for pings in pings {
        let (sent, answered) = pings.end();
        // The last one may be on its way.
        assert!(sent > 20 && answered + 1 >= sent, "{answered} of {sent}");
    }

    // What was leased meanwhile by nobody's account is there again, and what is asked for changed.
    let changed = &before.0[1];
    let endpoint = format!(
        "\n[[endpoints]]\nid = {:?}\nnetns = {:?}\nidentity = 4711\n",
        changed.id, changed.netns
    );
    let text = fs::read_to_string(&config).unwrap();
    let text = text
        .replace("endpoints = []\n", "")
        .replace("\"leave\"", "\"remove\"");
    fs::write(&config, text + &endpoint).unwrap();
    fs::remove_file(lab.directory("n1").join("ipam.redb")).unwrap();
    let mut agent = start_again(&lab, "n1");
    let after = client.endpoints().unwrap();
    assert_eq!(after[0], before.0[0], "came by the API, and survives");
    assert_eq!((after[1].identity, after.len()), (4711, 2));
    assert_eq!(after[1].addresses, changed.addresses);
    assert_eq!(client.addresses().unwrap().leases.len(), 2);
    assert_eq!(agent.end(Signal::SIGTERM), Some(0));
}

#[test]
fn cleanup_removes_a_dead_agents_remains() {
    let (lab, _) = Lab::up(&["--nodes", "1", "--pods", "1"]);
    let agent = lab.agent("n1");
    let objects = bpf_objects(agent);
    let said = lab.ask("n1", &["cleanup"]).bad(1);
    assert!(said.contains(&format!("process {}", agent.pid)), "{said}");
    kill_agent(agent);
    let pins = |kind: &str| {
        let directory = lab.directory("bpf").join("n1").join(kind);
        fs::read_dir(directory).unwrap().count()
    };
    let (links, maps) = (pins("links"), pins("maps"));
    assert_eq!(links, 6, "two each of the uplink, the gateway and the pod");
    let removed = lab.ask("n1", &["--output", "json", "cleanup"]).good();
    let removed: Value = serde_json::from_str(&removed).unwrap();
    assert_eq!(
        (&removed["links"], &removed["maps"]),
        (&links.into(), &maps.into())
    );
    assert_eq!(removed["interfaces"].as_array().unwrap().len(), 2);
    let node = Namespace::open(&format!("{}-n1", lab.name())).unwrap();
    let links = node.netlink().unwrap().links().unwrap();
    assert!(
        !links.iter().any(|link| link.name.starts_with("dp")),
        "{links:?}"
    );
    let said = lab.ask("n1", &["cleanup"]).good();
    assert!(said.contains("nothing to remove"), "{said}");
    let left: Vec<_> = lab
        .changes(&objects)
        .into_iter()
        .filter(|thing| thing.starts_with("BPF link"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
