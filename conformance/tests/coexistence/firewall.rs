//! What the operator's nftables chains see of each kind of traffic: the table of `README.md`,
//! row by row, and what a firewall that drops by default leaves.

use std::{collections::BTreeMap, fmt::Write as _, net::IpAddr};

use datapath_conformance::{
    family::Family, netns::Namespace, paths::pod_address, probe, topology::plan,
};
use datapath_tunnel::netlink::{Route, VethEnd};
use ipnet::IpNet;
use serde_json::Value;

use crate::{
    node::{Lab, PORT, lead, reach},
    util::{
        OrPanic as _, at, impatient,
        tool::{feed, nft},
    },
};

const README: &str = include_str!("../../../README.md");
const SECTION: &str = "\n## The host's firewall\n";
const CHAINS: [&str; 5] = ["prerouting", "input", "forward", "output", "postrouting"];
/// What node 1 leads to a pod of its own.
const LED: u16 = 8080;
/// An interface of node 1 that is no uplink, to the outside host, and the addresses at its ends.
const BRANCH: &str = "branch0";
const BRANCH_ADDRESSES: [[&str; 2]; 2] = [
    ["203.0.113.1/24", "203.0.113.2/24"],
    ["2001:db8:0:3::1/64", "2001:db8:0:3::2/64"],
];
/// What must never be seen beside the packets in it.
const TUNNEL: u16 = 6081;

/// One kind of traffic, as node 1 is in it.
struct Kind<'a> {
    /// Its row in the table.
    name: &'static str,
    from: &'a Namespace,
    to: IpAddr,
    port: u16,
}

fn kinds(lab: &Lab, family: Family) -> Vec<Kind<'_>> {
    let node = lab.node_address(1, family);
    let kind = |name, from, to, port| Kind {
        name,
        from,
        to,
        port,
    };
    let local = pod_address(1, 1, family);
    let remote = pod_address(2, 1, family);
    let outside = plan::outside_address(family);
    vec![
        kind("pod to pod of the same node", lab.pod(1, 2), local, PORT),
        kind("pod to pod of another node", lab.pod(1, 2), remote, PORT),
        kind("pod of another node to pod", lab.pod(2, 2), local, PORT),
        kind("pod to outside, masqueraded", lab.pod(1, 2), outside, PORT),
        kind("pod to its node", lab.pod(1, 2), node, PORT),
        kind(
            "pod of another node to the node",
            lab.pod(2, 2),
            plan::pod_gateway(1, family),
            PORT,
        ),
        kind("node to its pod", lab.node(1), local, PORT),
        kind("node to pod of another node", lab.node(1), remote, PORT),
        kind(
            "outside to a port of the node that leads to a pod",
            lab.fabric.outside(),
            node,
            LED,
        ),
        kind(
            "pod to a port of its node that leads to a pod",
            lab.pod(1, 2),
            node,
            LED,
        ),
        kind(
            "pod to an interface that is no uplink",
            lab.pod(1, 2),
            far_end(family),
            PORT,
        ),
        kind("outside to the node", lab.fabric.outside(), node, PORT),
        kind("node to outside", lab.node(1), outside, PORT),
    ]
}

/// Joins node 1 and the outside host by one more cable, by which pods are answered.
fn branch(lab: &Lab) {
    let outside = lab.fabric.outside();
    let netlink = lab.node(1).netlink().or_panic();
    let far = VethEnd {
        netns: Some(outside.path()),
        ..VethEnd::new(BRANCH)
    };
    let near = netlink.add_veth(VethEnd::new(BRANCH), far).unwrap().index;
    let other = outside.netlink().or_panic();
    let far = outside.link(BRANCH).or_panic().index;
    for (family, [node, host]) in Family::ALL.into_iter().zip(BRANCH_ADDRESSES) {
        netlink.set_up(near, true).unwrap();
        other.set_up(far, true).unwrap();
        let node: IpNet = node.parse().unwrap();
        netlink.add_address(near, node).unwrap();
        other.add_address(far, host.parse().unwrap()).unwrap();
        let pods = Route::to(plan::pod_cidr(1, family)).via(node.addr());
        other.add_route(&pods).unwrap();
    }
}

fn far_end(family: Family) -> IpAddr {
    let [_, host] = BRANCH_ADDRESSES[usize::from(family == Family::Ipv6)];
    host.parse::<IpNet>().unwrap().addr()
}

/// The rows of the table: for each chain `→`, `←`, both or nothing.
fn documented() -> BTreeMap<&'static str, [&'static str; 5]> {
    let (_, section) = README.split_once(SECTION).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let mut rows = section.lines().filter_map(|line| {
        let cells = line.strip_prefix('|')?.strip_suffix('|')?.split('|');
        let cells: Vec<_> = cells.map(str::trim).collect();
        let (name, chains) = cells.split_first()?;
        Some((*name, <[_; 5]>::try_from(chains).unwrap()))
    });
    assert_eq!(rows.next().unwrap().1, CHAINS, "the head of the table");
    rows.filter(|(name, _)| !name.starts_with("--")).collect()
}

#[test]
fn the_table_says_what_the_chains_see() {
    let lab = Lab::start("nft-seen");
    let node = lab.node(1);
    branch(&lab);
    nft(node, &lead_to_pod(&lab));
    nft(node, &counting());
    let mut rows = documented();
    for family in Family::ALL {
        for Kind {
            name,
            from,
            to,
            port,
        } in kinds(&lab, family)
        {
            feed(node.command("nft").args(["reset", "counters"]), "");
            reach(from, to, port);
            let seen = seen(node);
            assert_eq!(
                rows.get(name),
                Some(&seen),
                "{family}, {name}: the table, and what was seen"
            );
        }
    }
    for kind in kinds(&lab, Family::Ipv4) {
        rows.remove(kind.name);
    }
    assert!(rows.is_empty(), "in the table, and not measured: {rows:?}");
}

#[test]
fn a_firewall_that_drops_by_default_stops_what_the_table_says_it_sees() {
    let lab = Lab::start("nft-drop");
    branch(&lab);
    nft(lab.node(1), &lead_to_pod(&lab));
    nft(
        lab.node(1),
        "table inet operator {
           chain input { type filter hook input priority 0; policy drop; meta l4proto { icmp, icmpv6 } accept; }
           chain forward { type filter hook forward priority 0; policy drop; }
         }",
    );
    for family in Family::ALL {
        for Kind {
            name,
            from,
            to,
            port,
        } in kinds(&lab, family)
        {
            let chains = documented()[name];
            // Requests by input or forward; and answers, where the node asks.
            if chains[1].is_empty() && chains[2].is_empty() {
                reach(from, to, port);
            } else {
                let failure = probe::udp_echo(from, at(to, port), &[1], &impatient());
                assert!(failure.is_err(), "{family}, {name} gets through");
            }
        }
    }
}

fn lead_to_pod(lab: &Lab) -> String {
    let rules = Family::ALL.map(|family| {
        let node = lab.node_address(1, family);
        lead(node, LED, pod_address(1, 1, family))
    });
    let rules = rules.concat();
    format!(
        "table inet lead {{
           chain prerouting {{ type nat hook prerouting priority dstnat; {rules} }}
         }}"
    )
}

/// Counters for each chain, of packets there, back and of the tunnel.
fn counting() -> String {
    let mut chains = String::new();
    for chain in CHAINS {
        for way in ["there", "back", "tunnel"] {
            writeln!(chains, "counter {chain}-{way} {{}}").unwrap();
        }
        writeln!(
            chains,
            "chain {chain} {{
               type filter hook {chain} priority 0;
               meta l4proto {{ tcp, udp }} th dport {{ {PORT}, {LED} }} counter name {chain}-there
               meta l4proto {{ tcp, udp }} th sport {{ {PORT}, {LED} }} counter name {chain}-back
               udp dport {TUNNEL} counter name {chain}-tunnel
             }}"
        )
        .unwrap();
    }
    format!("table inet watch {{ {chains} }}")
}

/// What the counters say, in the words of the table.
fn seen(node: &Namespace) -> [&'static str; 5] {
    let listed = feed(node.command("nft").args(["-j", "list", "counters"]), "");
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let counters = listed["nftables"].as_array().unwrap().iter();
    let packets: BTreeMap<_, _> = counters
        .filter_map(|object| object.get("counter"))
        .map(|counter| {
            let name = counter["name"].as_str().unwrap();
            (name, counter["packets"].as_u64().unwrap())
        })
        .collect();
    CHAINS.map(|chain| {
        let some = |way: &str| packets[&*format!("{chain}-{way}")] > 0;
        assert!(!some("tunnel"), "{chain} sees tunnel packets: {packets:?}");
        match (some("there"), some("back")) {
            (true, true) => "→ ←",
            (true, false) => "→",
            (false, true) => "←",
            (false, false) => "",
        }
    })
}
