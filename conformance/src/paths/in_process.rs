//! Datapaths for a lab, in this process.

use std::{collections::BTreeMap, net::IpAddr};

use datapath_user::{Adoption, Config, Datapath, EndpointSpec, FlowView, PeerSpec, RemotePod};

use super::site::{NodeView, Site};
use crate::{
    error::{Error, Result},
    family::Family,
    netns::Namespace,
    topology::{
        Fabric, Node,
        plan::{self, UPLINK},
    },
};

/// A datapath for every node of a lab, with all its pods connected and all nodes peers of each
/// other. Dropping it removes them.
///
/// Pods are called `n1p1`, `n1p2`, ...; [`pod_address`] and [`pod_identity`] are theirs.
#[derive(Debug)]
pub struct InProcess {
    nodes: Vec<Running>,
}

/// The datapath of a node. It is to be used from inside the node's namespace.
#[derive(Debug)]
struct Running {
    name: String,
    namespace: Namespace,
    /// None once it is stopped.
    datapath: Option<Datapath>,
}

/// Returns the address of a node's pod, both counted from 1: `10.244.1.2` is that of the first.
#[must_use]
pub fn pod_address(node: u8, pod: u8, family: Family) -> IpAddr {
    match plan::pod_gateway(node, family) {
        IpAddr::V4(gateway) => {
            std::net::Ipv4Addr::from_bits(gateway.to_bits() + u32::from(pod)).into()
        }
        IpAddr::V6(gateway) => {
            std::net::Ipv6Addr::from_bits(gateway.to_bits() + u128::from(pod)).into()
        }
    }
}

/// Returns the security identity of a node's pod, both counted from 1: 1000 for each node, and
/// the pod's number.
#[must_use]
pub fn pod_identity(node: u8, pod: u8) -> u32 {
    1000 * u32::from(node) + u32::from(pod)
}

impl InProcess {
    /// Brings up the datapaths, with tunnels over the underlay's `tunnel` family.
    ///
    /// # Errors
    ///
    /// [`Error::View`] with what a datapath says; then nothing is left of any.
    pub fn start(fabric: &Fabric, tunnel: Family) -> Result<Self> {
        Self::with(fabric, tunnel, |_| {})
    }

    /// Brings up the datapaths with settings changed by `adjust`.
    ///
    /// # Errors
    ///
    /// As [`InProcess::start`].
    pub fn with(fabric: &Fabric, tunnel: Family, adjust: impl Fn(&mut Config)) -> Result<Self> {
        let mut this = Self { nodes: Vec::new() };
        for node in fabric.nodes() {
            let mut config = config(node, tunnel);
            adjust(&mut config);
            this.nodes.push(Running::open(node, config)?);
        }
        for (node, running) in fabric.nodes().iter().zip(&this.nodes) {
            for endpoint in endpoints(node) {
                running.inside(|datapath| datapath.add_endpoint(&endpoint))?;
            }
            for other in fabric
                .nodes()
                .iter()
                .filter(|other| other.number() != node.number())
            {
                let peer = peer_spec(fabric, other, tunnel);
                running.inside(|datapath| datapath.upsert_peer(&peer))?;
            }
        }
        Ok(this)
    }

    /// Describes the lab with its pods, for [`run`](super::run).
    #[must_use]
    pub fn site<'a>(&self, fabric: &'a Fabric, tunnel: Family) -> Site<'a> {
        let mut site = Site::of(fabric, Some(tunnel));
        for (index, node) in fabric.nodes().iter().enumerate() {
            for (number, namespace) in (1_u8..).zip(node.pods()) {
                let id = format!("n{}p{number}", node.number());
                let addresses =
                    Family::ALL.map(|family| pod_address(node.number(), number, family));
                let identity = pod_identity(node.number(), number);
                site.add_pod(index, id, namespace, addresses, identity);
            }
        }
        site
    }

    /// Has the datapath of the node at `node`, counted from 0, do something inside the node's
    /// namespace.
    ///
    /// # Errors
    ///
    /// [`Error::View`] with what the datapath says, [`Error::Invalid`] when there is no such node.
    pub fn inside<R: Send>(
        &self,
        node: usize,
        work: impl FnOnce(&Datapath) -> Result<R, datapath_user::Error> + Send,
    ) -> Result<R> {
        self.running(node)?.inside(work)
    }

    /// Has every datapath end as its process would, and another one take it over with settings
    /// changed by `adjust`; returns what each says that it took over.
    ///
    /// # Errors
    ///
    /// [`Error::View`] with what a datapath says.
    pub fn take_over(&mut self, adjust: impl Fn(&mut Config)) -> Result<Vec<Adoption>> {
        let nodes = self.nodes.iter_mut();
        nodes.map(|node| node.take_over(&adjust)).collect()
    }

    /// Removes the datapaths.
    ///
    /// # Errors
    ///
    /// What could not be removed, after trying the rest.
    pub fn stop(mut self) -> Result<()> {
        let stopped = self.nodes.iter_mut().map(Running::stop);
        Error::collect(stopped.filter_map(Result::err).collect())
    }

    fn running(&self, node: usize) -> Result<&Running> {
        self.nodes.get(node).ok_or_else(|| Error::Invalid {
            what: "node",
            value: node.to_string(),
            rule: "nodes are counted from 0 up to the number in the lab",
        })
    }
}

impl Running {
    fn open(node: &Node, config: Config) -> Result<Self> {
        let mut this = Self {
            name: name(node),
            namespace: Namespace::open(node.namespace().name())?,
            datapath: None,
        };
        let opened = this.namespace.run(|| Datapath::open(config))?;
        this.datapath = Some(opened.map_err(failed(&this.name))?);
        Ok(this)
    }

    fn inside<R: Send>(
        &self,
        work: impl FnOnce(&Datapath) -> Result<R, datapath_user::Error> + Send,
    ) -> Result<R> {
        let datapath = self.datapath()?;
        self.namespace
            .run(|| work(datapath))?
            .map_err(failed(&self.name))
    }

    /// Reads from maps, which are no namespace's.
    fn read<R>(
        &self,
        work: impl FnOnce(&Datapath) -> Result<R, datapath_user::Error>,
    ) -> Result<R> {
        work(self.datapath()?).map_err(failed(&self.name))
    }

    fn datapath(&self) -> Result<&Datapath> {
        self.datapath.as_ref().ok_or_else(|| Error::Invalid {
            what: "datapath of",
            value: self.name.clone(),
            rule: "it has been stopped",
        })
    }

    fn take_over(&mut self, adjust: impl Fn(&mut Config)) -> Result<Adoption> {
        let datapath = self.datapath()?;
        let mut config = datapath.config().clone();
        adjust(&mut config);
        if let Some(datapath) = self.datapath.take() {
            datapath.leave();
        }
        let opened = self.namespace.run(|| Datapath::open(config))?;
        let datapath = opened.map_err(failed(&self.name))?;
        let adoption = datapath.adopted().unwrap_or_default();
        self.datapath = Some(datapath);
        Ok(adoption)
    }

    fn stop(&mut self) -> Result<()> {
        let Some(datapath) = self.datapath.take() else {
            return Ok(());
        };
        self.namespace
            .run(|| datapath.close())?
            .map_err(failed(&self.name))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::warn!(error = error.chain(), "stop a datapath");
        }
    }
}

impl NodeView for InProcess {
    fn drops(&self, node: usize) -> Result<BTreeMap<String, u64>> {
        let mut drops = BTreeMap::new();
        for metric in self.running(node)?.read(Datapath::metrics)? {
            if metric.dropped {
                *drops.entry(metric.outcome).or_default() += metric.packets;
            }
        }
        Ok(drops)
    }

    fn flows(&self, node: usize) -> Result<Vec<FlowView>> {
        self.running(node)?.read(Datapath::flows)
    }
}

fn name(node: &Node) -> String {
    format!("n{}", node.number())
}

fn config(node: &Node, tunnel: Family) -> Config {
    let number = node.number();
    Config {
        gateways: Family::ALL
            .map(|family| plan::pod_gateway(number, family))
            .to_vec(),
        pod_cidrs: Family::ALL
            .map(|family| plan::pod_cidr(number, family))
            .to_vec(),
        underlay: vec![node.tunnel_address(tunnel)],
        // Many labs on one machine: some thousand connections are enough for each.
        max_flows: Some(8192),
        max_pending: Some(8192),
        ..Config::new(node.bpffs(), node.uplink().interfaces().iter().copied())
    }
}

fn endpoints(node: &Node) -> impl Iterator<Item = EndpointSpec> {
    (1_u8..)
        .zip(node.pods())
        .map(|(pod, namespace)| EndpointSpec {
            id: format!("n{}p{pod}", node.number()),
            netns: namespace.path().to_owned(),
            interface: UPLINK.to_owned(),
            addresses: Family::ALL
                .map(|family| pod_address(node.number(), pod, family))
                .to_vec(),
            identity: Some(pod_identity(node.number(), pod)),
            ..EndpointSpec::default()
        })
}

/// Returns what the other nodes of a lab are told of `node`, with tunnels over the underlay's
/// `tunnel` family.
#[must_use]
pub fn peer_spec(fabric: &Fabric, node: &Node, tunnel: Family) -> PeerSpec {
    let number = node.number();
    let families = fabric.plan().underlay.all().iter();
    let mut node_addresses: Vec<_> = families
        .flat_map(|&family| [node.address(family), node.tunnel_address(family)])
        .chain(Family::ALL.map(|family| plan::pod_gateway(number, family)))
        .collect();
    node_addresses.dedup();
    let pods = (1_u8..).zip(node.pods()).flat_map(|(pod, _)| {
        Family::ALL.map(|family| {
            let address = pod_address(number, pod, family);
            RemotePod::new(address, Some(pod_identity(number, pod)))
        })
    });
    PeerSpec {
        name: name(node),
        address: node.tunnel_address(tunnel),
        node_addresses,
        pod_cidrs: Family::ALL
            .map(|family| plan::pod_cidr(number, family))
            .to_vec(),
        pods: pods.collect(),
        uplink: Some(node.uplink().tunnel_interface().to_owned()),
        labels: BTreeMap::new(),
    }
}

fn failed(node: &str) -> impl FnOnce(datapath_user::Error) -> Error {
    let node = node.to_owned();
    move |source| Error::View {
        node,
        source: Box::new(source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_have_addresses_of_their_own() {
        assert_eq!(pod_address(1, 1, Family::Ipv4).to_string(), "10.244.1.2");
        assert_eq!(
            pod_address(2, 3, Family::Ipv6).to_string(),
            "fd00:10:244:2::4"
        );
        assert_eq!(pod_identity(2, 3), 2003);
    }
}
