//! A lab whose nodes forward, and what an operator does on them.

use std::net::IpAddr;

use datapath_conformance::{
    Result,
    family::Family,
    netns::Namespace,
    paths::{InProcess, NodeView as _},
    probe::{self, EchoServer},
    topology::{Fabric, Node, NodePlan, Plan},
};
use datapath_kern::verdict::DropReason;
use datapath_user::{Config, FlowView};

use crate::util::{OrPanic as _, at, lab_name, patient};

/// The port of the servers, in every pod, on the first node and outside.
pub(crate) const PORT: u16 = 7;

/// Two nodes of two pods, in both families, an outside host, and servers on all but the second
/// node.
pub(crate) struct Lab {
    // In the order in which they go.
    pub(crate) servers: Vec<EchoServer>,
    pub(crate) datapaths: InProcess,
    pub(crate) fabric: Fabric,
}

impl Lab {
    pub(crate) fn start(what: &str) -> Self {
        Self::on(Self::fabric(what))
    }

    /// The network alone.
    pub(crate) fn fabric(what: &str) -> Fabric {
        let node = NodePlan {
            forwards: true,
            ..NodePlan::default()
        };
        let plan = Plan::new(lab_name(what)).with_nodes(2, node);
        Fabric::build(plan).or_panic()
    }

    /// The rest of it.
    pub(crate) fn on(fabric: Fabric) -> Self {
        Self::with(fabric, |_| {})
    }

    /// As [`Lab::on`], the datapaths' settings changed by `adjust`.
    pub(crate) fn with(fabric: Fabric, adjust: impl Fn(&mut Config)) -> Self {
        let datapaths = InProcess::with(&fabric, Family::Ipv4, adjust).or_panic();
        let pods = fabric.nodes().iter().flat_map(Node::pods);
        let node = fabric.node(1).or_panic().namespace();
        let servers = pods
            .chain([node, fabric.outside()])
            .map(|host| EchoServer::start(host, &[PORT], &[PORT]))
            .collect::<Result<_>>()
            .or_panic();
        Self {
            servers,
            datapaths,
            fabric,
        }
    }

    /// A node, counted from 1.
    pub(crate) fn node(&self, number: u8) -> &Namespace {
        self.fabric.node(number).or_panic().namespace()
    }

    /// An address of a node in the underlay.
    pub(crate) fn node_address(&self, number: u8, family: Family) -> IpAddr {
        self.fabric.node(number).or_panic().address(family)
    }

    /// A pod, both numbers counted from 1.
    pub(crate) fn pod(&self, node: u8, pod: usize) -> &Namespace {
        &self.fabric.node(node).or_panic().pods()[pod - 1]
    }

    /// Entries of the first node's flow tables towards this address and port.
    pub(crate) fn flows_to(&self, address: IpAddr, port: u16) -> Vec<FlowView> {
        let mut flows = self.datapaths.flows(0).or_panic();
        flows.retain(|flow| flow.destination == address && flow.destination_port == port);
        flows
    }

    /// How many packets a node has dropped for a reason.
    pub(crate) fn dropped(&self, node: usize, reason: DropReason) -> u64 {
        let drops = self.datapaths.drops(node).or_panic();
        drops.get(reason.label()).copied().unwrap_or(0)
    }
}

/// Has a server there answer by TCP and by UDP, and returns the address that it saw both come
/// from.
#[track_caller]
pub(crate) fn reach(from: &Namespace, to: IpAddr, port: u16) -> IpAddr {
    let tcp = probe::tcp_echo(from, at(to, port), 100_000, &patient()).or_panic();
    let udp = probe::udp_echo(from, at(to, port), &[1, 512, 1200], &patient()).or_panic();
    let seen = [tcp, udp].map(|report| report.seen_source.unwrap().ip());
    assert_eq!(seen[0], seen[1], "TCP and UDP come from one address");
    seen[0]
}

/// A line of a ruleset that leads a port to the server of a pod.
pub(crate) fn lead(to: IpAddr, port: u16, pod: IpAddr) -> String {
    let ip = if to.is_ipv4() { "ip" } else { "ip6" };
    let pod = at(pod, PORT);
    format!("{ip} daddr {to} meta l4proto {{ tcp, udp }} th dport {port} dnat {ip} to {pod}\n")
}
