//! One node of a lab, with its pods.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use super::{
    files,
    plan::{self, Plan},
    uplink::UplinkKind,
};
use crate::{error::Result, family::Family, netns::Namespace};

/// A node of a lab.
#[derive(Debug)]
pub struct Node {
    number: u8,
    uplink: UplinkKind,
    namespace: Namespace,
    pods: Vec<Namespace>,
    bpffs: PathBuf,
    directory: PathBuf,
}

impl Node {
    /// Returns the node's number, counted from 1.
    #[must_use]
    pub fn number(&self) -> u8 {
        self.number
    }

    /// Returns the node's own namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Returns the pods' namespaces; the first has number 1.
    #[must_use]
    pub fn pods(&self) -> &[Namespace] {
        &self.pods
    }

    /// Returns what the node's uplink is.
    #[must_use]
    pub fn uplink(&self) -> UplinkKind {
        self.uplink
    }

    /// Returns the node's address in the underlay, that of its first uplink.
    #[must_use]
    pub fn address(&self, family: Family) -> IpAddr {
        plan::node_address(self.number, family)
    }

    /// Returns the node's address on the uplink that tunnels go through.
    #[must_use]
    pub fn tunnel_address(&self, family: Family) -> IpAddr {
        match self.uplink {
            UplinkKind::Two => plan::second_node_address(self.number, family),
            _ => self.address(family),
        }
    }

    /// Returns the node's directory for BPF pins, on a bpffs of the lab's own.
    #[must_use]
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// Returns the directory for the node's other files: sockets, stores, logs.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn create(plan: &Plan, number: u8) -> Result<Self> {
        Self::with(plan, number, Namespace::create)
    }

    pub(super) fn adopt(plan: &Plan, number: u8) -> Result<Self> {
        Self::with(plan, number, Namespace::adopt)
    }

    fn with(plan: &Plan, number: u8, namespace: fn(&str) -> Result<Namespace>) -> Result<Self> {
        Ok(Self {
            number,
            uplink: plan
                .node(number)
                .map_or_else(UplinkKind::default, |node| node.uplink),
            namespace: namespace(&plan.node_namespace(number))?,
            pods: pod_names(plan, number)
                .map(|name| namespace(&name))
                .collect::<Result<_>>()?,
            bpffs: files::node_bpffs(plan, number),
            directory: files::node_directory(plan, number),
        })
    }

    pub(super) fn namespaces_mut(&mut self) -> impl Iterator<Item = &mut Namespace> {
        self.pods.iter_mut().chain([&mut self.namespace])
    }

    pub(super) fn into_namespaces(self) -> impl Iterator<Item = Namespace> {
        self.pods.into_iter().chain([self.namespace])
    }
}

/// Names the namespaces of a node's pods.
pub(super) fn pod_names(plan: &Plan, node: u8) -> impl Iterator<Item = String> {
    let count = plan.node(node).map_or(0, |planned| planned.pods);
    (1..=count).map(move |pod| plan.pod_namespace(node, pod))
}
