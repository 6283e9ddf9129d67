//! What the checks need to know of a running lab.

use std::{collections::BTreeMap, net::IpAddr};

use datapath_user::FlowView;
use ipnet::IpNet;

use crate::{
    error::{Error, Result},
    family::Family,
    netns::Namespace,
    topology::{
        Fabric,
        plan::{self, UPLINK},
    },
};

/// A lab whose nodes run a datapath, as far as the checks look at it.
///
/// It borrows the namespaces: whoever runs the lab keeps it up meanwhile.
#[derive(Clone, Debug)]
pub struct Site<'a> {
    /// The nodes.
    pub nodes: Vec<SiteNode<'a>>,
    /// The pods of all nodes.
    pub pods: Vec<SitePod<'a>>,
    /// A host that is neither node nor pod.
    pub outside: Host<'a>,
    /// Name of the fabric's interface that the outside host is behind.
    pub outside_port: String,
    /// The namespace of the switch and router between all of them.
    pub fabric: &'a Namespace,
}

/// A namespace that packets come from and go to.
#[derive(Clone, Debug)]
pub struct Host<'a> {
    /// Its name in reports.
    pub name: String,
    /// Where its sockets live.
    pub namespace: &'a Namespace,
    /// The interface that it has its addresses on.
    pub interface: String,
    /// Its addresses.
    pub addresses: Addresses,
}

/// A node.
#[derive(Clone, Debug)]
pub struct SiteNode<'a> {
    /// Its namespace, the uplink that tunnels go through, and the addresses there.
    pub host: Host<'a>,
    /// The addresses that it and its pods have for hosts that are no nodes.
    pub outward: Addresses,
    /// Its addresses among its pods.
    pub gateways: Addresses,
    /// The interface that the node's stack has the gateway's addresses on.
    pub gateway_interface: String,
    /// Its end of the tunnel; none where pods' packets are routed as they are.
    pub tunnel: Option<IpAddr>,
    /// Name of the fabric's interface that it is behind.
    pub fabric_port: String,
    /// The ranges of its pods.
    pub pod_cidrs: Vec<IpNet>,
}

/// A pod.
#[derive(Clone, Debug)]
pub struct SitePod<'a> {
    /// Its namespace, interface and addresses.
    pub host: Host<'a>,
    /// Which of the site's nodes it is on.
    pub node: usize,
    /// Its security identity.
    pub identity: u32,
}

/// Addresses of one host, at most one of each family that counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses(pub Vec<IpAddr>);

impl Addresses {
    /// Returns the first address of a family.
    #[must_use]
    pub fn get(&self, family: Family) -> Option<IpAddr> {
        let mut all = self.0.iter().copied();
        all.find(|&address| Family::of(address) == family)
    }
}

impl FromIterator<IpAddr> for Addresses {
    fn from_iter<T: IntoIterator<Item = IpAddr>>(addresses: T) -> Self {
        Self(addresses.into_iter().collect())
    }
}

/// Name of the node's side of the datapath's gateway pair.
const GATEWAY_INTERFACE: &str = "dp_host";
/// Name of the fabric's interface towards the outside host.
const OUTSIDE_PORT: &str = "ext";

impl<'a> Site<'a> {
    /// Describes a lab without pods: nodes whose pods have the ranges and gateways of
    /// [`plan::pod_cidr`] and [`plan::pod_gateway`], and tunnels over the underlay's `tunnel`
    /// family; no tunnels if there is none.
    #[must_use]
    pub fn of(fabric: &'a Fabric, tunnel: Option<Family>) -> Self {
        let families = fabric.plan().underlay.all();
        let nodes = fabric.nodes().iter().map(|node| {
            let number = node.number();
            let gateways = Family::ALL.map(|family| plan::pod_gateway(number, family));
            SiteNode {
                host: Host {
                    name: format!("n{number}"),
                    namespace: node.namespace(),
                    interface: node.uplink().tunnel_interface().to_owned(),
                    addresses: families
                        .iter()
                        .map(|&family| node.tunnel_address(family))
                        .collect(),
                },
                outward: families
                    .iter()
                    .map(|&family| node.address(family))
                    .collect(),
                gateways: gateways.into_iter().collect(),
                gateway_interface: GATEWAY_INTERFACE.to_owned(),
                tunnel: tunnel.map(|family| node.tunnel_address(family)),
                fabric_port: node.uplink().fabric_port(number),
                pod_cidrs: Family::ALL
                    .map(|family| plan::pod_cidr(number, family))
                    .to_vec(),
            }
        });
        let outside = families.iter().map(|&family| plan::outside_address(family));
        Self {
            nodes: nodes.collect(),
            pods: Vec::new(),
            outside: Host {
                name: "outside".to_owned(),
                namespace: fabric.outside(),
                interface: UPLINK.to_owned(),
                addresses: outside.collect(),
            },
            outside_port: OUTSIDE_PORT.to_owned(),
            fabric: fabric.router(),
        }
    }

    /// Adds a pod with an interface `eth0` to the node at `node`, counted from 0.
    pub fn add_pod(
        &mut self,
        node: usize,
        name: impl Into<String>,
        namespace: &'a Namespace,
        addresses: impl IntoIterator<Item = IpAddr>,
        identity: u32,
    ) {
        self.pods.push(SitePod {
            host: Host {
                name: name.into(),
                namespace,
                interface: UPLINK.to_owned(),
                addresses: addresses.into_iter().collect(),
            },
            node,
            identity,
        });
    }
}

/// What a node's datapath tells of itself, in this process or over its agent's socket.
pub trait NodeView: Sync {
    /// Reads the number of packets that the node at `node` (counted from 0) has dropped so far,
    /// by the reason's label
    /// ([`DropReason::label`](datapath_kern::verdict::DropReason::label)), in both directions
    /// together. A reason that was never met may be missing.
    ///
    /// # Errors
    ///
    /// [`Error::View`] when the datapath does not answer.
    fn drops(&self, node: usize) -> Result<BTreeMap<String, u64>>;

    /// Lists the flows that the node at `node` knows.
    ///
    /// # Errors
    ///
    /// As [`NodeView::drops`].
    fn flows(&self, node: usize) -> Result<Vec<FlowView>>;
}

/// Who plays which part in the checks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cast<'s, 'a> {
    pub(super) site: &'s Site<'a>,
    /// The node that most of it happens on, and its place in the site.
    pub(super) node: &'s SiteNode<'a>,
    pub(super) node_index: usize,
    /// Another node.
    pub(super) other_node: &'s SiteNode<'a>,
    /// A pod of `node`.
    pub(super) pod: &'s SitePod<'a>,
    /// Another pod of `node`.
    pub(super) neighbour: &'s SitePod<'a>,
    /// A pod of `other_node`.
    pub(super) remote: &'s SitePod<'a>,
}

impl<'s, 'a> Cast<'s, 'a> {
    /// Finds two pods of one node and one of another.
    pub(super) fn of(site: &'s Site<'a>) -> Result<Self> {
        let pods_of = |index| site.pods.iter().filter(move |pod| pod.node == index);
        let mut nodes = site.nodes.iter().enumerate();
        let found = nodes.find_map(|(node_index, node)| {
            let mut own = pods_of(node_index);
            let (pod, neighbour) = (own.next()?, own.next()?);
            let remote = site.pods.iter().find(|pod| pod.node != node_index)?;
            Some(Self {
                site,
                node,
                node_index,
                other_node: site.nodes.get(remote.node)?,
                pod,
                neighbour,
                remote,
            })
        });
        found.ok_or_else(|| Error::Invalid {
            what: "lab of",
            value: format!("{} nodes and {} pods", site.nodes.len(), site.pods.len()),
            rule: "the paths need two pods on one node and one on another",
        })
    }
}
