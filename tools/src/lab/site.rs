//! A running lab as the path checks of the conformance suite look at it.

use std::collections::BTreeMap;

use datapath_conformance::{
    Error as LabError, Result as LabResult,
    family::Family,
    paths::{NodeView, Site},
};
use datapath_user::{FlowView, Tunnel};

use super::{Lab, NodeInfo};
use crate::{api::Client, error::Error};

impl Lab {
    /// Describes the lab with its pods, for [`paths::run`](datapath_conformance::paths::run).
    #[must_use]
    pub fn site(&self) -> Site<'_> {
        let first = self.fabric.plan().underlay.all().first().copied();
        let family = match self.tunnel {
            Tunnel::Direct => Some(first.unwrap_or(Family::Ipv4)),
            Tunnel::Native => None,
        };
        let mut site = Site::of(&self.fabric, family);
        for (index, (node, info)) in self.fabric.nodes().iter().zip(&self.nodes).enumerate() {
            for (namespace, pod) in node.pods().iter().zip(&info.pods) {
                let addresses = pod.addresses.iter().copied();
                site.add_pod(index, pod.id.clone(), namespace, addresses, pod.identity);
            }
        }
        site
    }

    fn ask<T>(
        &self,
        node: usize,
        question: impl FnOnce(&Client) -> Result<T, Error>,
    ) -> LabResult<T> {
        let info: &NodeInfo = self.nodes.get(node).ok_or_else(|| LabError::Invalid {
            what: "node",
            value: node.to_string(),
            rule: "nodes are counted from 0 up to the number in the lab",
        })?;
        question(&Client::new(&info.socket)).map_err(|error| LabError::View {
            node: info.name.clone(),
            source: Box::new(error),
        })
    }
}

impl NodeView for Lab {
    fn drops(&self, node: usize) -> LabResult<BTreeMap<String, u64>> {
        let mut drops = BTreeMap::new();
        for metric in self.ask(node, Client::metrics)? {
            if metric.dropped {
                *drops.entry(metric.outcome).or_default() += metric.packets;
            }
        }
        Ok(drops)
    }

    fn flows(&self, node: usize) -> LabResult<Vec<FlowView>> {
        self.ask(node, Client::flow_halves)
    }
}
