//! Pods without a datapath, as plainly as the kernel can route them.

use datapath_conformance::{
    Error as LabError,
    family::Family,
    netns::Namespace,
    topology::{
        Fabric, Node,
        plan::{self, UPLINK},
    },
};
use datapath_tunnel::netlink::{Mac, Netlink, NetlinkError, Route, VethEnd};
use ipnet::IpNet;

use super::pod_address;
use crate::error::Result;

/// Ethernet address of the nodes' side of every pod's interface.
const GATEWAY_MAC: Mac = [2, 0, 0, 0, 2, 1];

/// Gives every pod an interface, addresses and routes, and every node the routes to them. No
/// address is asked for on the way between them: neighbours are given, as the datapath does.
pub(super) fn wire(fabric: &Fabric) -> Result<()> {
    for node in fabric.nodes() {
        let netlink = node.namespace().netlink()?;
        for (pod, namespace) in (1_u8..).zip(node.pods()) {
            connect(node, &netlink, pod, namespace)?;
        }
        let uplink = node.namespace().link(UPLINK)?;
        for other in fabric.nodes() {
            for family in Family::ALL {
                if other.number() != node.number() {
                    let pods = Route::to(plan::pod_cidr(other.number(), family));
                    let route = pods.via(other.address(family)).dev(uplink.index);
                    done(node.namespace(), netlink.add_route(&route))?;
                }
            }
        }
    }
    Ok(())
}

/// Name of the node's side of a pod's interface.
pub(super) fn host_interface(pod: u8) -> String {
    format!("p{pod}")
}

fn connect(node: &Node, netlink: &Netlink, pod: u8, namespace: &Namespace) -> Result<()> {
    // Addresses are usable at once; nobody else has them.
    namespace.set_sysctl("net.ipv6.conf.default.accept_dad", "0")?;
    let name = host_interface(pod);
    let pod_mac = [2, 0, 0, 0, 3, pod];
    let near = VethEnd {
        mac: Some(GATEWAY_MAC),
        ..VethEnd::new(&name)
    };
    let far = VethEnd {
        mac: Some(pod_mac),
        netns: Some(namespace.path()),
        ..VethEnd::new(UPLINK)
    };
    let near = done(node.namespace(), netlink.add_veth(near, far))?;
    let inside = namespace.netlink()?;
    let far = namespace.link(UPLINK)?;
    done(namespace, inside.set_up(far.index, true))?;
    done(node.namespace(), netlink.set_up(near.index, true))?;
    for family in Family::ALL {
        let address = pod_address(node.number(), pod, family);
        let gateway = plan::pod_gateway(node.number(), family);
        let everywhere = match family {
            Family::Ipv4 => IpNet::V4(ipnet::Ipv4Net::default()),
            Family::Ipv6 => IpNet::V6(ipnet::Ipv6Net::default()),
        };
        let on_link = Route::to(IpNet::from(gateway)).dev(far.index);
        let default = Route::to(everywhere).via(gateway).dev(far.index);
        let in_pod = inside
            .add_address(far.index, IpNet::from(address))
            .and_then(|_| inside.add_neighbour(far.index, gateway, GATEWAY_MAC))
            .and_then(|()| inside.add_route(&on_link))
            .and_then(|()| inside.add_route(&default.source(address)));
        done(namespace, in_pod)?;
        let on_node = netlink
            .add_neighbour(near.index, address, pod_mac)
            .and_then(|()| netlink.add_route(&Route::to(IpNet::from(address)).dev(near.index)));
        done(node.namespace(), on_node)?;
    }
    Ok(())
}

fn done<T>(namespace: &Namespace, outcome: Result<T, NetlinkError>) -> Result<T> {
    let outcome = outcome.map_err(|source| LabError::Netlink {
        namespace: namespace.name().to_owned(),
        source,
    });
    Ok(outcome?)
}
