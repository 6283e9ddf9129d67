//! Labs in words and tables.

use datapath_conformance::{
    family::Family,
    topology::{LabName, plan},
};
use datapath_user::EndpointView;

use crate::{
    lab::{LabStatus, NodeInfo, NodeStatus, Removed},
    table::{self, lines, list, numbers, words},
};

/// Who is in a lab, one row for each.
pub(super) fn nodes(nodes: &[NodeInfo]) -> String {
    let columns = [
        words("NAME"),
        words("NAMESPACE"),
        words("ADDRESSES"),
        numbers("IDENTITY"),
    ];
    let mut rows = Vec::new();
    for node in nodes {
        let addresses = list(&node.addresses);
        rows.push(vec![
            node.name.clone(),
            node.namespace.clone(),
            addresses,
            String::new(),
        ]);
        for pod in &node.pods {
            let name = format!("  {}", pod.id);
            let identity = pod.identity.to_string();
            rows.push(vec![name, namespace(pod), list(&pod.addresses), identity]);
        }
    }
    let outside = nodes.first().map(|node| {
        let families = node.addresses.iter().map(|&address| Family::of(address));
        let addresses = list(families.map(plan::outside_address));
        let lab = node.namespace.strip_suffix(&node.name).unwrap_or_default();
        vec![
            "outside".to_owned(),
            format!("{lab}ext"),
            addresses,
            String::new(),
        ]
    });
    rows.extend(outside);
    table::render(&columns, rows, "the lab is empty")
}

/// Three things to do with a lab.
pub(super) fn what_to_try(lab: &LabName, nodes: &[NodeInfo]) -> String {
    let (at, which) = if *lab == LabName::default() {
        (String::new(), String::new())
    } else {
        (format!("--lab {lab} "), format!(" {lab}"))
    };
    let pods = || nodes.iter().flat_map(|node| &node.pods);
    let ping = pods()
        .next()
        .zip(pods().next_back())
        .and_then(|(first, last)| {
            let address = last.addresses.first()?;
            Some(format!(
                "  ip netns exec {} ping -c 3 {address}",
                namespace(first)
            ))
        });
    let rest = [
        format!("  dpctl {at}--node n1 flows"),
        format!("  dpctl lab down{which}"),
    ];
    lines(["Try:".to_owned()].into_iter().chain(ping).chain(rest))
}

/// The labs that are up, one row for each node.
pub(super) fn labs(labs: &[LabStatus]) -> String {
    let columns = [
        words("LAB"),
        words("NODE"),
        words("AGENT"),
        numbers("PODS"),
        numbers("PEERS"),
        words("SOCKET"),
    ];
    let mut rows = Vec::new();
    let mut notes = Vec::new();
    for lab in labs {
        let name = lab.lab.as_str();
        rows.extend(lab.nodes.iter().map(|node| row(name, node)));
        for node in &lab.nodes {
            let trouble = node.trouble.iter();
            notes.extend(trouble.map(|trouble| format!("{name} {}: {trouble}", node.node)));
        }
        if lab.nodes.is_empty() {
            let what = list(&lab.namespaces);
            notes.push(format!(
                "{name}: remains ({what}), `dpctl lab down {name}` removes them"
            ));
        }
    }
    let none = if notes.is_empty() {
        "no lab is up, `dpctl lab up` brings up one"
    } else {
        ""
    };
    format!(
        "{}{}",
        table::render(&columns, rows, none).trim_start(),
        lines(notes)
    )
}

fn row(lab: &str, node: &NodeStatus) -> Vec<String> {
    let agent = match (node.pid, &node.trouble) {
        (Some(pid), None) => format!("process {pid}"),
        (Some(pid), Some(_)) => format!("process {pid}, does not answer"),
        (None, _) => "none".to_owned(),
    };
    let count = |number: Option<usize>| number.map_or_else(|| "-".to_owned(), |n| n.to_string());
    vec![
        lab.to_owned(),
        node.node.clone(),
        agent,
        count(node.endpoints),
        count(node.peers),
        node.socket.display().to_string(),
    ]
}

/// What there was of a lab that has been taken down.
pub(super) fn removed(removed: &Removed) -> String {
    let lab = &removed.lab;
    if removed.is_empty() {
        return format!("there is no lab {lab}, nothing to remove\n");
    }
    let directory = removed.directory.as_ref();
    let parts = [
        ("agents ended:", list(&removed.ended)),
        ("agents that were gone already:", list(&removed.gone)),
        ("processes killed:", list(&removed.killed)),
        ("namespaces removed:", list(&removed.namespaces)),
        (
            "directory removed:",
            list(directory.map(|directory| directory.display())),
        ),
    ];
    let told = parts.into_iter().filter(|(_, things)| !things.is_empty());
    let told = told.map(|(what, things)| format!("  {what} {things}"));
    lines([format!("lab {lab} is down:")].into_iter().chain(told))
}

/// The name of a pod's namespace, as `ip netns` has it.
fn namespace(pod: &EndpointView) -> String {
    pod.netns
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::sample;

    #[test]
    fn a_topology_reads_well() {
        let info = NodeInfo {
            name: "n1".to_owned(),
            namespace: "mine-n1".to_owned(),
            addresses: vec![
                "192.0.2.11".parse().unwrap(),
                "2001:db8:0:1::11".parse().unwrap(),
            ],
            socket: "/run/datapath-lab/mine/n1/agent.sock".into(),
            pods: vec![sample::endpoint()],
        };
        let lab = "mine".parse().unwrap();
        insta::assert_snapshot!(nodes(std::slice::from_ref(&info)), @"
        NAME     NAMESPACE  ADDRESSES                        IDENTITY
        n1       mine-n1    192.0.2.11, 2001:db8:0:1::11
          web-0  web-0      10.244.1.2, fd00:10:244:1::2         1001
        outside  mine-ext   198.51.100.10, 2001:db8:0:2::10
        ");
        insta::assert_snapshot!(what_to_try(&lab, &[info]), @"
        Try:
          ip netns exec web-0 ping -c 3 10.244.1.2
          dpctl --lab mine --node n1 flows
          dpctl lab down mine
        ");
    }

    #[test]
    fn labs_read_well() {
        let node = NodeStatus {
            node: "n1".to_owned(),
            pid: Some(4711),
            socket: "/run/datapath-lab/mine/n1/agent.sock".into(),
            endpoints: Some(2),
            peers: Some(1),
            trouble: None,
        };
        let silent = NodeStatus {
            node: "n2".to_owned(),
            pid: None,
            endpoints: None,
            peers: None,
            trouble: Some("no agent can be reached".to_owned()),
            ..node.clone()
        };
        let lab = LabStatus {
            lab: "mine".parse().unwrap(),
            namespaces: vec!["mine-n1".to_owned(), "mine-n2".to_owned()],
            directory: None,
            nodes: vec![node, silent],
        };
        let half = LabStatus {
            lab: "half".parse().unwrap(),
            namespaces: vec!["half-n1".to_owned()],
            directory: None,
            nodes: Vec::new(),
        };
        insta::assert_snapshot!(labs(&[lab, half.clone()]), @"
        LAB   NODE  AGENT         PODS  PEERS  SOCKET
        mine  n1    process 4711     2      1  /run/datapath-lab/mine/n1/agent.sock
        mine  n2    none             -      -  /run/datapath-lab/mine/n1/agent.sock
        mine n2: no agent can be reached
        half: remains (half-n1), `dpctl lab down half` removes them
        ");
        assert_eq!(
            labs(&[half]),
            "half: remains (half-n1), `dpctl lab down half` removes them\n"
        );
        assert_eq!(labs(&[]), "no lab is up, `dpctl lab up` brings up one\n");
    }

    #[test]
    fn what_was_removed_is_told() {
        let mut gone = Removed {
            lab: "mine".parse().unwrap(),
            ended: vec!["n1".to_owned()],
            gone: vec!["n2".to_owned()],
            namespaces: vec!["mine-n1".to_owned(), "mine-n2".to_owned()],
            killed: Vec::new(),
            directory: Some("/run/datapath-lab/mine".into()),
        };
        insta::assert_snapshot!(removed(&gone), @"
        lab mine is down:
          agents ended: n1
          agents that were gone already: n2
          namespaces removed: mine-n1, mine-n2
          directory removed: /run/datapath-lab/mine
        ");
        gone.namespaces.clear();
        gone.directory = None;
        assert_eq!(removed(&gone), "there is no lab mine, nothing to remove\n");
    }
}
