//! Host ports by the CNI reference plugin `portmap`, called as a container runtime does.

use std::net::IpAddr;

use datapath_conformance::{
    family::Family, netns::Namespace, paths::pod_address, probe, topology::plan,
};
use serde_json::{Value, json};

use crate::{
    node::{Lab, PORT, reach},
    util::{at, impatient, tool::feed},
};

/// Where Debian's containernetworking-plugins puts it.
const PLUGIN: &str = "/usr/lib/cni/portmap";
const HOST_PORT: u16 = 8090;

/// Runs the plugin on a node for its first pod.
fn portmap(lab: &Lab, command: &str) -> String {
    let pod = lab.pod(1, 1);
    let ips = Family::ALL.map(|family| {
        let (address, gateway) = (pod_address(1, 1, family), plan::pod_gateway(1, family));
        let length = if address.is_ipv4() { 32 } else { 128 };
        json!({ "address": format!("{address}/{length}"), "gateway": gateway, "interface": 0 })
    });
    let mappings = ["tcp", "udp"].map(
        |protocol| json!({ "hostPort": HOST_PORT, "containerPort": PORT, "protocol": protocol }),
    );
    let configuration = json!({
        "cniVersion": "1.0.0",
        "name": "coexist",
        "type": "portmap",
        "capabilities": { "portMappings": true },
        "snat": true,
        "runtimeConfig": { "portMappings": mappings },
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [{ "name": "eth0", "sandbox": pod.path() }],
            "ips": ips,
        },
    });
    let mut plugin = lab.node(1).command(PLUGIN);
    plugin
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", pod.name())
        .env("CNI_NETNS", pod.path())
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", "/usr/lib/cni");
    feed(&mut plugin, &configuration.to_string())
}

#[test]
fn host_ports_of_a_pod_come_and_go() {
    let lab = Lab::start("portmap");
    let result: Value = serde_json::from_str(&portmap(&lab, "ADD")).unwrap();
    assert_eq!(result["ips"].as_array().unwrap().len(), 2, "{result}");
    for family in Family::ALL {
        let node = lab.node_address(1, family);
        let asked_by = |from: &Namespace, expected: IpAddr| {
            let seen = reach(from, node, HOST_PORT);
            assert_eq!(seen, expected, "{family}, {}", from.name());
        };
        let outside = plan::outside_address(family);
        asked_by(lab.fabric.outside(), outside);
        asked_by(lab.node(2), lab.node_address(2, family));
        asked_by(lab.node(1), node);
        asked_by(lab.pod(1, 2), pod_address(1, 2, family));
        // A pod that is led back to itself sees its gateway ask.
        asked_by(lab.pod(1, 1), plan::pod_gateway(1, family));
        let pod = pod_address(1, 1, family);
        let flows = lab.flows_to(pod, PORT);
        let from_outside = flows.iter().filter(|flow| flow.source == outside);
        assert_eq!(
            from_outside.filter(|flow| flow.via_stack).count(),
            2,
            "{flows:#?}"
        );
    }
    // With `snat` also the node's own loopback address, which there is of IPv4 only.
    reach(lab.node(1), IpAddr::from([127, 0, 0, 1]), HOST_PORT);

    portmap(&lab, "DEL");
    for family in Family::ALL {
        let to = at(lab.node_address(1, family), HOST_PORT);
        probe::udp_echo(lab.fabric.outside(), to, &[1], &impatient()).unwrap_err();
        // The pod itself is where it was.
        reach(lab.pod(1, 2), pod_address(1, 1, family), PORT);
    }
}
