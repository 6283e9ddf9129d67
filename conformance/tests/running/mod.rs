//! A lab whose nodes run datapaths in this process.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "every test program has its own copy and uses part of it; it is all tests"
)]

use std::net::{IpAddr, SocketAddr};

use datapath_conformance::{
    Result,
    family::Family,
    netns::Namespace,
    paths::{InProcess, pod_address},
    probe::EchoServer,
    topology::{Fabric, Node, Plan, plan},
};

use datapath_user::Config;

use crate::util::{OrPanic, at, lab_name};

/// The port of the servers.
pub const PORT: u16 = 7;

/// Two nodes of two pods, an outside host, and echo servers on all but the first pod.
pub struct Lab {
    // In the order in which they go.
    pub servers: Vec<EchoServer>,
    pub datapaths: InProcess,
    pub fabric: Fabric,
}

/// A receiver of packets that a pod of node 1 sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// The other pod of its node.
    Neighbour,
    /// A pod of the other node, by the tunnel.
    Remote,
    /// The outside host, behind the node's address.
    Outside,
}

impl To {
    pub const ALL: [Self; 3] = [Self::Neighbour, Self::Remote, Self::Outside];

    pub fn address(self, family: Family) -> IpAddr {
        match self {
            Self::Neighbour => pod_address(1, 2, family),
            Self::Remote => pod_address(2, 1, family),
            Self::Outside => plan::outside_address(family),
        }
    }

    pub fn server(self, family: Family) -> SocketAddr {
        at(self.address(family), PORT)
    }
}

impl Lab {
    pub fn start(what: &str, tunnel: Family) -> Self {
        Self::of(Plan::new(lab_name(what)), tunnel)
    }

    pub fn of(plan: Plan, tunnel: Family) -> Self {
        Self::with(plan, tunnel, |_| {})
    }

    /// A lab of a plan with two nodes of two pods, its datapaths' settings changed by `adjust`.
    pub fn with(plan: Plan, tunnel: Family, adjust: impl Fn(&mut Config)) -> Self {
        let fabric = Fabric::build(plan).or_panic();
        let datapaths = InProcess::with(&fabric, tunnel, adjust).or_panic();
        let mut this = Self {
            servers: Vec::new(),
            datapaths,
            fabric,
        };
        this.servers = To::ALL
            .iter()
            .map(|&to| EchoServer::start(this.host(to), &[PORT], &[PORT]))
            .collect::<Result<_>>()
            .or_panic();
        this
    }

    /// A pod, both numbers counted from 1.
    pub fn pod(&self, node: u8, pod: usize) -> &Namespace {
        &self.fabric.node(node).or_panic().pods()[pod - 1]
    }

    pub fn host(&self, to: To) -> &Namespace {
        match to {
            To::Neighbour => self.pod(1, 2),
            To::Remote => self.pod(2, 1),
            To::Outside => self.fabric.outside(),
        }
    }

    /// Every pod.
    pub fn pods(&self) -> impl Iterator<Item = &Namespace> {
        self.fabric.nodes().iter().flat_map(Node::pods)
    }

    /// Every host with an uplink.
    pub fn uplinks(&self) -> impl Iterator<Item = &Namespace> {
        let nodes = self.fabric.nodes().iter();
        nodes.map(Node::namespace).chain([self.fabric.outside()])
    }
}
