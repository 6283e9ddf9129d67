//! Addresses that the host's stack translates to those of pods: node ports, services.

use std::{net::IpAddr, time::Duration};

use datapath_conformance::{
    family::Family,
    paths::pod_address,
    probe::{self, Options},
    topology::plan,
};
use datapath_kern::verdict::DropReason;
use datapath_tunnel::netlink::Route;

use crate::{
    node::{Lab, PORT, lead, reach},
    util::{OrPanic as _, at, tool::nft},
};

/// What the first node listens for on behalf of a pod of its own.
const LOCAL: u16 = 8080;
/// And on behalf of one of the other node.
const REMOTE: u16 = 8081;
/// And on behalf of a pod that asks for itself.
const OWN: u16 = 8082;
/// The service's port.
const SERVICE: u16 = 80;

/// An address that nobody has, for a service.
fn service(family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => "10.96.0.10".parse().unwrap(),
        Family::Ipv6 => "fd00:10:96::10".parse().unwrap(),
    }
}

/// The operator's rules on node 1: ports of the node, and a service.
fn rules(lab: &Lab) -> String {
    let rules = Family::ALL.iter().flat_map(|&family| {
        let node = lab.node_address(1, family);
        [
            (node, LOCAL, (1, 1)),
            (node, REMOTE, (2, 1)),
            (node, OWN, (1, 2)),
            (service(family), SERVICE, (1, 1)),
        ]
        .map(|(to, port, (node, pod))| lead(to, port, pod_address(node, pod, family)))
    });
    let rules: String = rules.collect();
    format!(
        "table inet coexist {{
           chain prerouting {{ type nat hook prerouting priority dstnat; {rules} }}
           chain output {{ type nat hook output priority -100; {rules} }}
         }}"
    )
}

#[test]
fn a_port_of_the_node_leads_to_a_pod_of_it() {
    let lab = Lab::start("dnat");
    nft(lab.node(1), &rules(&lab));
    for family in Family::ALL {
        let node = lab.node_address(1, family);
        let pod = pod_address(1, 1, family);

        // From outside. The pod sees who asks.
        let outside = plan::outside_address(family);
        assert_eq!(
            reach(lab.fabric.outside(), node, LOCAL),
            outside,
            "{family}"
        );
        let flows = lab.flows_to(pod, PORT);
        let from_outside = flows.iter().filter(|flow| flow.source == outside);
        let from_outside: Vec<_> = from_outside.collect();
        assert_eq!(from_outside.len(), 2, "{family}, TCP and UDP: {flows:#?}");
        for flow in from_outside {
            let told = (flow.via_stack, &*flow.arrival, &*flow.target);
            assert_eq!(told, (true, "host", "pod"), "{family}: {flow:#?}");
            let answers = lab.flows_to(outside, flow.source_port);
            let answer = answers
                .iter()
                .find(|answer| answer.pair == flow.pair)
                .unwrap();
            let told = (answer.via_stack, &*answer.arrival, &*answer.target);
            assert_eq!(told, (true, "pod", "host"), "{family}: {answer:#?}");
        }

        // From another node, from the node itself, and from another pod of the node.
        let other = lab.node_address(2, family);
        assert_eq!(reach(lab.node(2), node, LOCAL), other, "{family}");
        assert_eq!(reach(lab.node(1), node, LOCAL), node, "{family}");
        let neighbour = pod_address(1, 2, family);
        assert_eq!(reach(lab.pod(1, 2), node, LOCAL), neighbour, "{family}");
        // From a pod of the other node.
        let remote = pod_address(2, 1, family);
        let seen = reach(lab.pod(2, 1), node, LOCAL);
        assert!([remote, other].contains(&seen), "{family}: {seen}");
    }
}

#[test]
fn a_port_of_the_node_leads_to_a_pod_elsewhere_behind_the_gateway() {
    let lab = Lab::start("dnat-far");
    nft(lab.node(1), &rules(&lab));
    let impatient = Options::default().with_timeout(Duration::from_secs(1));
    for family in Family::ALL {
        let to = at(lab.node_address(1, family), REMOTE);
        // A tunnel packet with an inner source that is none of the peer's is not taken.
        let reason = DropReason::TunnelInvalidSource;
        let before = lab.dropped(1, reason);
        probe::udp_echo(lab.fabric.outside(), to, &[1], &impatient).unwrap_err();
        let dropped = lab.dropped(1, reason) - before;
        assert!(dropped > 0, "{family}");
    }
    nft(
        lab.node(1),
        "table inet coexist {
           chain postrouting {
             type nat hook postrouting priority srcnat;
             oifname dp_host ct status dnat masquerade
           }
         }",
    );
    for family in Family::ALL {
        let node = lab.node_address(1, family);
        let gateway = plan::pod_gateway(1, family);
        for from in [
            lab.fabric.outside(),
            lab.node(2),
            lab.node(1),
            lab.pod(1, 2),
        ] {
            assert_eq!(reach(from, node, REMOTE), gateway, "{family}");
        }
        // A pod that is led back to itself sees its gateway ask.
        assert_eq!(reach(lab.pod(1, 2), node, OWN), gateway, "{family}");
    }
}

#[test]
fn a_service_address_works_once_it_is_routed_to_the_gateway_pair() {
    let lab = Lab::start("dnat-svc");
    nft(lab.node(1), &rules(&lab));
    for family in Family::ALL {
        let service = service(family);
        let neighbour = lab.pod(1, 2);
        // Without a route of its own it leaves by the uplink, past the host's stack.
        let impatient = Options::default().with_timeout(Duration::from_secs(1));
        probe::udp_echo(neighbour, at(service, SERVICE), &[1], &impatient).unwrap_err();

        let netlink = lab.node(1).netlink().or_panic();
        let gateway = lab.node(1).link("dp_host").or_panic().index;
        let route = Route::to(service.into()).dev(gateway);
        netlink.replace_route(&route).unwrap();
        let seen = reach(neighbour, service, SERVICE);
        assert_eq!(seen, pod_address(1, 2, family), "{family}");
        assert_eq!(
            reach(lab.node(1), service, SERVICE),
            plan::pod_gateway(1, family),
            "{family}"
        );
    }
}
