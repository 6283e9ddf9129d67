//! Labs: nodes in network namespaces, each with an agent that runs its datapath.
//!
//! The network is [`datapath_conformance::topology`]'s; here come the agents, in the nodes'
//! directories:
//!
//! ```text
//! /run/datapath-lab/<lab>/n1/agent.toml    what the agent of node 1 is started with
//! /run/datapath-lab/<lab>/n1/agent.sock    where it listens
//! /run/datapath-lab/<lab>/n1/agent.log     what it writes
//! /run/datapath-lab/<lab>/n1/agent.json    its process, so that it can be ended later
//! /run/datapath-lab/<lab>/n1/ipam.redb     its leases
//! ```

mod agents;
mod down;
mod native;
mod process;
mod site;
mod status;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
};

use datapath_conformance::{
    family::Family,
    netns::Namespace,
    topology::{Fabric, LabName, Node, Plan, plan},
};
use datapath_user::{EndpointSpec, EndpointView, PeerSpec, RemotePod, Tunnel};
use serde::Serialize;

use self::agents::Agents;
pub use self::{
    agents::agent_program,
    down::{Removed, down},
    process::Process,
    status::{LabStatus, NodeStatus, status},
};
use crate::{
    api::Client,
    error::{Error, Result},
    table::list,
};

/// File of a node's agent that it listens at.
const SOCKET: &str = "agent.sock";

/// A lab to bring up.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Its network.
    pub plan: Plan,
    /// How the nodes reach each other's pods.
    pub tunnel: Tunnel,
    /// The program to start as agents; [`agent_program`] finds it.
    pub agent: PathBuf,
}

/// A lab that is up. Dropping it takes it down, also by a panic, and so do the signals that
/// [`datapath_conformance::signals::cleanup_on_signal`] handles.
#[derive(Debug)]
pub struct Lab {
    // Taken down in this order.
    agents: Agents,
    nodes: Vec<NodeInfo>,
    tunnel: Tunnel,
    fabric: Fabric,
}

/// A node of a lab that is up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeInfo {
    /// Its name, `n1`.
    pub name: String,
    /// Its network namespace.
    pub namespace: String,
    /// Its addresses in the underlay.
    pub addresses: Vec<IpAddr>,
    /// The socket of its agent.
    pub socket: PathBuf,
    /// Its pods, in order.
    pub pods: Vec<EndpointView>,
}

impl Lab {
    /// Builds the network, starts the agents, connects the pods and makes the nodes each other's
    /// peers. `progress` is told what comes next.
    ///
    /// # Errors
    ///
    /// [`Error::NoAgentProgram`], [`Error::Lab`] for the network, [`Error::AgentEnded`] and
    /// [`Error::AgentNotReady`] with what the agent said, [`Error::Refused`] with what it did not
    /// do; then nothing is left of the lab.
    pub fn up(spec: Spec, mut progress: impl FnMut(&str)) -> Result<Self> {
        let Spec {
            plan,
            tunnel,
            agent,
        } = spec;
        agents::check_program(&agent)?;
        progress("building the network");
        let fabric = Fabric::build(plan)?;
        progress("starting the agents");
        let agents = Agents::start(&fabric, tunnel, &agent)?;
        progress("connecting the pods");
        let nodes = fabric
            .nodes()
            .iter()
            .map(|node| connect_pods(&fabric, node));
        let nodes = nodes.collect::<Result<Vec<_>>>()?;
        introduce(&nodes)?;
        if tunnel == Tunnel::Native {
            native::add_routes(&fabric)?;
        }
        Ok(Self {
            agents,
            nodes,
            tunnel,
            fabric,
        })
    }

    /// Leaves the lab running when this process ends, for [`status`] and [`down`].
    pub fn leak(self) {
        self.agents.leak();
        self.fabric.leak();
    }

    /// Takes the lab down.
    ///
    /// # Errors
    ///
    /// What could not be taken down, after trying the rest.
    pub fn destroy(self) -> Result<()> {
        let ended = self.agents.end();
        self.fabric.destroy()?;
        ended
    }

    /// Returns its network.
    #[must_use]
    pub fn fabric(&self) -> &Fabric {
        &self.fabric
    }

    /// Returns its nodes, in order.
    #[must_use]
    pub fn nodes(&self) -> &[NodeInfo] {
        &self.nodes
    }
}

/// Returns the socket of a node's agent.
///
/// # Errors
///
/// [`Error::NoLab`], [`Error::NoNode`] when there is no such lab or node.
pub fn socket(lab: &LabName, node: &str) -> Result<PathBuf> {
    let directory = Plan::new(lab.clone()).run_directory();
    if !directory.is_dir() {
        return Err(Error::NoLab {
            lab: lab.to_string(),
        });
    }
    let known = node_directories(&directory);
    let found = known.iter().find(|(name, _)| name == node);
    found
        .map(|(_, directory)| directory.join(SOCKET))
        .ok_or_else(|| Error::NoNode {
            lab: lab.to_string(),
            node: node.to_owned(),
            nodes: list(known.iter().map(|(name, _)| name)),
        })
}

/// Returns the network namespace of a node, and its directory for BPF pins.
///
/// # Errors
///
/// [`Error::NoLab`], [`Error::NoNode`] when there is no such lab or node, [`Error::Lab`] when the
/// namespace cannot be opened.
pub fn place(lab: &LabName, node: &str) -> Result<(Namespace, PathBuf)> {
    socket(lab, node)?;
    let namespace = Namespace::open(&format!("{lab}-{node}"))?;
    let bpffs = Plan::new(lab.clone())
        .run_directory()
        .join("bpf")
        .join(node);
    Ok((namespace, bpffs))
}

/// Lists the directories of a lab's nodes, in the order of their numbers.
fn node_directories(lab: &Path) -> Vec<(String, PathBuf)> {
    let entries = lab.read_dir().into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let number: u8 = name.strip_prefix('n')?.parse().ok()?;
            Some((number, name, entry.path()))
        })
        .collect();
    found.sort();
    found
        .into_iter()
        .map(|(_, name, path)| (name, path))
        .collect()
}

/// Connects the pods of a node; their addresses are for its agent to choose.
fn connect_pods(fabric: &Fabric, node: &Node) -> Result<NodeInfo> {
    let number = node.number();
    let client = Client::new(node.directory().join(SOCKET));
    let pods = (1_u8..).zip(node.pods()).map(|(pod, namespace)| {
        client.add_endpoint(&EndpointSpec {
            id: format!("n{number}p{pod}"),
            netns: namespace.path().to_owned(),
            interface: plan::UPLINK.to_owned(),
            addresses: Vec::new(),
            identity: Some(1000 * u32::from(number) + u32::from(pod)),
            ..EndpointSpec::default()
        })
    });
    let families = fabric.plan().underlay.all().iter();
    Ok(NodeInfo {
        name: format!("n{number}"),
        namespace: node.namespace().name().to_owned(),
        addresses: families.map(|&family| node.address(family)).collect(),
        socket: client.socket().to_owned(),
        pods: pods.collect::<Result<_>>()?,
    })
}

/// Tells every node of every other one.
fn introduce(nodes: &[NodeInfo]) -> Result<()> {
    for node in nodes {
        let client = Client::new(&node.socket);
        for other in nodes.iter().filter(|other| other.name != node.name) {
            client.put_peer(&other.as_peer())?;
        }
    }
    Ok(())
}

impl NodeInfo {
    /// What the other nodes are told of it.
    fn as_peer(&self) -> PeerSpec {
        // The underlay has a family at least, and IPv4 comes first.
        let address = self.addresses.first().copied();
        let pods = self.pods.iter().flat_map(|pod| {
            let identity = Some(pod.identity);
            pod.addresses
                .iter()
                .map(move |&address| RemotePod::new(address, identity))
        });
        PeerSpec {
            name: self.name.clone(),
            address: address.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)),
            node_addresses: self.addresses.iter().copied().skip(1).collect(),
            pod_cidrs: self.pod_cidrs(),
            pods: pods.collect(),
            uplink: None,
            labels: BTreeMap::new(),
        }
    }

    fn pod_cidrs(&self) -> Vec<ipnet::IpNet> {
        let number = self
            .name
            .strip_prefix('n')
            .and_then(|number| number.parse().ok());
        number.map_or_else(Vec::new, |number| {
            Family::ALL
                .map(|family| plan::pod_cidr(number, family))
                .to_vec()
        })
    }
}
