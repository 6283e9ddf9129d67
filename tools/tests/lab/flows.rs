//! `dpctl flows` of real traffic: found, followed and flushed.

use std::process::Stdio;

use datapath_conformance::netns::Namespace;
use datapath_user::{FlowFilter, FlowPair, FlowTurn};
use serde_json::json;

use super::rig::{Lab, Running};

const OUTSIDE: &str = "198.51.100.10";

/// Lets a pod ping until the test ends, and returns once it was answered.
fn pinging(lab: &Lab, pod: &str) -> Running {
    let namespace = Namespace::open(&format!("{}-{pod}", lab.name())).unwrap();
    let once = |wait: &str| {
        namespace
            .command("ping")
            .args(["-c1", wait, OUTSIDE])
            .output()
    };
    let answered = once("-W5").unwrap();
    assert!(answered.status.success(), "{answered:?}");
    let mut ping = namespace.command("ping");
    ping.args(["-i", "0.2", OUTSIDE]).stdout(Stdio::null());
    Running(ping.spawn().unwrap())
}

#[test]
fn flows_are_found_followed_and_flushed() {
    let (lab, _) = Lab::up(&["--nodes", "1", "--pods", "2"]);
    let of = |pod: &str| -> FlowFilter {
        let to = format!("{OUTSIDE}/32");
        serde_json::from_value(json!({"from": pod, "to": to, "protocol": "icmp"})).unwrap()
    };
    let client = lab.client("n1");
    let mut changes = client.follow_flows(&of("n1p1"), Some(50)).unwrap();
    // Until each of them was told, in any order: what ends and what begins between two looks is.
    let mut await_turns = |mut wanted: Vec<FlowTurn>| {
        while !wanted.is_empty() {
            let change = changes.next_change().expect("the agent has stopped");
            let change = change.unwrap();
            assert_eq!(change.flow.source.name, "n1p1", "no other is told");
            assert_ne!(change.flow.pair, 0);
            wanted.retain(|turn| *turn != change.turn);
        }
    };
    let _pinging = [pinging(&lab, "n1p1"), pinging(&lab, "n1p2")];
    await_turns(vec![FlowTurn::New]);

    let list = |arguments: &[&str]| -> Vec<FlowPair<'static>> {
        let base = ["--output", "json", "flows", "--protocol", "icmp"];
        let said = lab.ask("n1", &[&base[..], arguments].concat()).good();
        let flows = said.lines().map(serde_json::from_str::<FlowPair<'_>>);
        flows.map(|flow| flow.unwrap().into_owned()).collect()
    };
    let seconds = list(&["--pod", "n1p2", "--nat"]);
    assert!(!seconds.is_empty() && seconds.iter().all(|flow| flow.missing.is_none()));
    assert!(list(&["--pod", "n1p2", "--no-nat"]).is_empty());
    assert!(list(&["-6", "--pod", "n1p2"]).is_empty());
    let table = lab
        .ask("n1", &["flows", "--from", "n1p1", "--to", OUTSIDE])
        .good();
    for word in [
        "ICMP   10.244.1.2:",
        "(n1p1)  ->  198.51.100.10 (world)",
        "snat 192.0.2.11:",
    ] {
        assert!(table.contains(word), "no {word} in\n{table}");
    }

    let which = ["flows", "flush", "--from", "n1p1", "--to", OUTSIDE];
    let said = lab.ask("n1", &[&which[..], &["--dry-run"]].concat()).good();
    assert!(said.contains("would be removed"), "{said}");
    let said = lab.ask("n1", &which).good();
    assert!(said.contains("removed ("), "{said}");
    // The one that goes on has begun again, and the other pod's flows are the same.
    await_turns(vec![FlowTurn::End, FlowTurn::New]);
    let after = list(&["--pod", "n1p2"]);
    for flow in seconds.iter().filter(|flow| flow.packets > 1) {
        let same = after.iter().find(|other| other.pair == flow.pair);
        assert!(
            same.is_some_and(|same| same.packets >= flow.packets),
            "{flow:?}"
        );
    }

    let said = lab.ask("n1", &["flows", "--pod", "n1p7"]).bad(1);
    assert!(
        said.contains("no endpoint \"n1p7\"") && said.contains("dpctl endpoint list"),
        "{said}"
    );
    let said = lab.ask("n1", &["flows", "flush", "--to", "n9:80"]).bad(1);
    assert!(said.contains("no endpoint or peer \"n9\""), "{said}");
    let said = lab.ask("n1", &["flows", "flush"]).bad(2);
    assert!(said.contains("--all-flows"), "{said}");
}
