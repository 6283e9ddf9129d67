//! Labs without a tunnel: the nodes' own routing tables lead to each other's pods.

use datapath_conformance::{
    Error as LabError, Result as LabResult,
    topology::{Fabric, Node, plan},
};
use datapath_tunnel::netlink::{NetlinkError, Route};

/// Adds the routes to every other node's pods, by that node's address. All nodes are on one link;
/// a router between them would tell pods so by ICMP redirects.
pub(super) fn add_routes(fabric: &Fabric) -> LabResult<()> {
    for node in fabric.nodes() {
        let uplink = node.namespace().link(plan::UPLINK)?;
        let netlink = node.namespace().netlink()?;
        for other in fabric
            .nodes()
            .iter()
            .filter(|other| other.number() != node.number())
        {
            for &family in fabric.plan().underlay.all() {
                // As itself among the pods, which is how a tunnel shows it, too.
                let own = plan::pod_gateway(node.number(), family);
                let route = Route::to(plan::pod_cidr(other.number(), family))
                    .via(other.address(family))
                    .dev(uplink.index)
                    .source(own);
                netlink.add_route(&route).map_err(failed(node))?;
            }
        }
    }
    Ok(())
}

fn failed(node: &Node) -> impl FnOnce(NetlinkError) -> LabError {
    let namespace = node.namespace().name().to_owned();
    move |source| LabError::Netlink { namespace, source }
}
