//! Labs to measure in: nodes with pods, the same with the datapath and without.

mod card;
mod plain;

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use datapath_conformance::{
    family::Family,
    netns::Namespace,
    paths::{self, InProcess, NodeView},
    topology::{Fabric, LabName, Node, NodePlan, Plan, plan::UPLINK},
};
use datapath_user::{Config, Datapath, policy::Document};

use self::card::Installed;
use crate::{
    error::{Error, Result},
    machine::Machine,
    uplink::Uplink,
};

/// Room for flows: both directions of the most that a case asks for, on all paths.
const MAX_FLOWS: u32 = 1 << 16;

/// A lab that traffic can be sent through. Dropping it takes it down.
#[derive(Debug)]
pub struct Rig {
    // In the order in which they are taken down. `None` where the kernel routes.
    datapaths: Option<InProcess>,
    // Given back before its namespace goes, with which the kernel would take some cards away.
    _card: Option<Installed>,
    fabric: Fabric,
    underlay: Family,
}

impl Rig {
    /// Builds a lab with a datapath on each node, and tunnels over this family.
    ///
    /// # Errors
    ///
    /// What the lab or the datapath says.
    pub fn datapath(underlay: Family) -> Result<Self> {
        let node = NodePlan::default();
        Self::datapath_with((2, node), None, underlay, |config| {
            config.max_flows = Some(MAX_FLOWS);
        })
    }

    /// As [`Rig::datapath`], with so many nodes of this plan, and settings changed by `adjust`. A
    /// card, if there is one, is the first node's uplink: to the other nodes there is no wire then.
    ///
    /// # Errors
    ///
    /// As [`Rig::datapath`]; as [`Uplink::check`], and [`Error::NoCarrier`], about the card.
    pub fn datapath_with(
        nodes: (usize, NodePlan),
        uplink: Option<&Uplink>,
        underlay: Family,
        adjust: impl Fn(&mut Config),
    ) -> Result<Self> {
        let (fabric, card) = build(nodes, uplink)?;
        let datapaths = InProcess::with(&fabric, underlay, adjust)?;
        Ok(Self {
            datapaths: Some(datapaths),
            _card: card,
            fabric,
            underlay,
        })
    }

    /// Builds a lab of the same shape without datapath: pods have the same interfaces and
    /// addresses, the nodes' kernels forward, and the underlay routes the pods' prefixes.
    ///
    /// # Errors
    ///
    /// What the lab says.
    pub fn plain() -> Result<Self> {
        Self::plain_with((2, NodePlan::default()), None)
    }

    /// As [`Rig::plain`], with so many nodes of this plan, and a card as of [`Rig::datapath_with`].
    ///
    /// # Errors
    ///
    /// As [`Rig::plain`]; as [`Uplink::check`], and [`Error::NoCarrier`], about the card.
    pub fn plain_with((nodes, node): (usize, NodePlan), uplink: Option<&Uplink>) -> Result<Self> {
        let forwards = NodePlan {
            forwards: true,
            ..node
        };
        let (fabric, card) = build((nodes, forwards), uplink)?;
        plain::wire(&fabric)?;
        Ok(Self {
            datapaths: None,
            _card: card,
            fabric,
            underlay: Family::Ipv4,
        })
    }

    /// The lab's network.
    #[must_use]
    pub fn fabric(&self) -> &Fabric {
        &self.fabric
    }

    /// The family of the tunnels.
    #[must_use]
    pub fn underlay(&self) -> Family {
        self.underlay
    }

    /// A node, counted from 1.
    ///
    /// # Errors
    ///
    /// [`Error::Lab`] where there is none.
    pub fn node(&self, node: u8) -> Result<&Node> {
        Ok(self.fabric.node(node)?)
    }

    /// The namespace of a node's pod, both counted from 1.
    ///
    /// # Errors
    ///
    /// [`Error::Lab`], [`Error::Invalid`] where there is none.
    pub fn pod(&self, node: u8, pod: u8) -> Result<&Namespace> {
        let pods = self.node(node)?.pods();
        let found = usize::from(pod).checked_sub(1).and_then(|i| pods.get(i));
        found.ok_or_else(|| Error::Invalid {
            what: "pod",
            value: pod.to_string(),
            rule: "the lab's nodes have fewer pods; they are counted from 1",
        })
    }

    /// Name of the node's side of a pod's interface, both counted from 1.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] where there is none.
    pub fn host_interface(&self, node: u8, pod: u8) -> Result<String> {
        if self.datapaths.is_none() {
            return Ok(plain::host_interface(pod));
        }
        let id = format!("n{node}p{pod}");
        let index = usize::from(node).saturating_sub(1);
        let views = self.datapaths()?.inside(index, |own| Ok(own.endpoints()))?;
        let view = views.into_iter().find(|view| view.id == id);
        view.map(|view| view.host_interface)
            .ok_or_else(|| Error::Invalid {
                what: "pod",
                value: id,
                rule: "the lab's nodes have fewer pods; they are counted from 1",
            })
    }

    /// Makes sure that every flow of some is in the established table of a node (counted from 1),
    /// in the direction given. A lab without datapath has none to look at.
    ///
    /// # Errors
    ///
    /// [`Error::NotEstablished`], or what the datapath says.
    pub fn check_established(
        &self,
        node: u8,
        protocol: &'static str,
        (from, ports): (IpAddr, impl Iterator<Item = u16>),
        to: SocketAddr,
    ) -> Result<()> {
        let Some(datapaths) = &self.datapaths else {
            return Ok(());
        };
        let node = usize::from(node);
        let flows = datapaths.flows(node.saturating_sub(1))?;
        let ports: Vec<_> = ports.collect();
        let established = flows.iter().filter(|flow| {
            flow.table == "established"
                && flow.protocol == protocol
                && !flow.reply
                && flow.source == from
                && ports.contains(&flow.source_port)
                && SocketAddr::new(flow.destination, flow.destination_port) == to
        });
        let found = established.count();
        if found == ports.len() {
            return Ok(());
        }
        Err(Error::NotEstablished {
            found,
            wanted: ports.len(),
            protocol,
            from: from.to_string(),
            to: to.to_string(),
            node,
        })
    }

    /// Frames and bytes that a node, counted from 1, has sent out of its uplink. Segments that the
    /// interface has yet to cut are one frame.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] when `/proc` cannot be read.
    pub fn uplink_sent(&self, node: u8) -> Result<(u64, u64)> {
        let file = "/proc/thread-self/net/dev";
        let table = self
            .node(node)?
            .namespace()
            .run(|| fs::read_to_string(file))?;
        let table = table.map_err(Error::os("read", file))?;
        Ok(sent(&table, UPLINK).unwrap_or_default())
    }

    /// Adds what the lab's interfaces do to the description of the machine; `what` names the lab.
    ///
    /// # Errors
    ///
    /// [`Error::Lab`].
    pub fn describe(&self, what: &str, machine: &mut Machine) -> Result<()> {
        let name = |of: &str| format!("{what}: {UPLINK} of {of}");
        machine.add(&name("n1p1"), self.pod(1, 1)?, UPLINK)?;
        machine.add(&name("n1"), self.node(1)?.namespace(), UPLINK)
    }

    /// How many frames a node, counted from 1, has dropped so far, by reason. A lab without
    /// datapath does not count them.
    ///
    /// # Errors
    ///
    /// What the datapath says.
    pub fn drops(&self, node: u8) -> Result<BTreeMap<String, u64>> {
        let index = usize::from(node).saturating_sub(1);
        Ok(self.datapaths()?.drops(index)?)
    }

    /// Gives a node, counted from 1, these policies in the place of those that it has.
    ///
    /// # Errors
    ///
    /// What the datapath says; [`Error::Invalid`] where there is none.
    pub fn set_policies(&self, node: u8, documents: Vec<Document>) -> Result<()> {
        let index = usize::from(node).saturating_sub(1);
        self.datapaths()?
            .inside(index, |own| own.set_policies(documents, Vec::new()))?;
        Ok(())
    }

    /// Has a node, counted from 1, remove the flows whose time is up.
    ///
    /// # Errors
    ///
    /// What the datapath says; [`Error::Invalid`] where there is none.
    pub fn sweep(&self, node: u8) -> Result<()> {
        let index = usize::from(node).saturating_sub(1);
        self.datapaths()?.inside(index, Datapath::sweep)?;
        Ok(())
    }

    fn datapaths(&self) -> Result<&InProcess> {
        self.datapaths.as_ref().ok_or_else(|| Error::Invalid {
            what: "lab",
            value: self.fabric.plan().lab.to_string(),
            rule: "this needs one with a datapath",
        })
    }
}

/// The network, and the card in it.
fn build(
    (nodes, node): (usize, NodePlan),
    uplink: Option<&Uplink>,
) -> Result<(Fabric, Option<Installed>)> {
    let fabric = Fabric::build(Plan::new(unique()?).with_nodes(nodes, node))?;
    let card = uplink.map(|uplink| Installed::install(uplink, &fabric));
    Ok((fabric, card.transpose()?))
}

/// Address of a node's pod, both counted from 1.
pub(crate) fn pod_address(node: u8, pod: u8, family: Family) -> IpAddr {
    paths::pod_address(node, pod, family)
}

/// A name that no other lab, of this process or another, has at the same time.
fn unique() -> Result<LabName> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Ok(format!("bench-{}-{number}", process::id()).parse()?)
}

/// Frames and bytes sent, of the line `interface: ...` in `/proc/net/dev`: eight columns of what was
/// received come first.
fn sent(table: &str, interface: &str) -> Option<(u64, u64)> {
    let lines = table.lines().filter_map(|line| line.split_once(':'));
    let (_, columns) = lines
        .into_iter()
        .find(|(name, _)| name.trim() == interface)?;
    let mut columns = columns.split_whitespace().skip(8);
    let bytes = columns.next()?.parse().ok()?;
    let frames = columns.next()?.parse().ok()?;
    Some((frames, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_is_behind_what_was_received() {
        let table = "Inter-|   Receive  |  Transmit\n face |bytes packets\n    \
                     lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n  \
                     eth0: 100 2 0 0 0 0 0 0 3000 4 0 0 0 0 0 0\n";
        assert_eq!(sent(table, "eth0"), Some((4, 3000)));
        assert_eq!(sent(table, "eth"), None);
    }
}
