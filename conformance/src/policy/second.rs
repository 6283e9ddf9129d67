//! What the naive reading of policies says of a case's cells.

use std::{net::IpAddr, ptr};

use datapath_kern::abi::metric::Direction;
use datapath_user::policy::{Document, Labels, PolicySettings, source};

use super::{
    case::{Case, CellId, EndpointId, Node, Pod, ProbeProtocol},
    matrix::documents,
    naive::{Actor, ActorKind, Attempt, Rulebook},
};
use crate::family::Family;

/// A case as the naive reading has it: each end as the node that judges it knows it.
#[derive(Clone, Debug)]
pub struct SecondReading<'a> {
    case: &'a Case,
    rulebook: Rulebook,
}

/// An end of a cell. A pod of its node's network is the node.
#[derive(Clone, Copy, Debug)]
enum End<'a> {
    Pod(&'a Pod, &'a Node),
    Node(&'a Node),
    Outside(IpAddr),
}

impl<'a> SecondReading<'a> {
    /// Reads a case under those of its policies that are not refused.
    #[must_use]
    pub fn new(case: &'a Case) -> Self {
        Self::under(documents(case), case)
    }

    /// Reads a case under these policies instead of those of its file.
    #[must_use]
    pub fn under(documents: Vec<Document>, case: &'a Case) -> Self {
        let rulebook = Rulebook {
            documents,
            ..Rulebook::default()
        };
        Self { case, rulebook }
    }

    /// Reads it as nodes do that understand policies in this way.
    #[must_use]
    pub fn with_settings(mut self, settings: PolicySettings) -> Self {
        self.rulebook.settings = settings;
        self
    }

    /// Whether both ends' nodes let a cell pass.
    ///
    /// None where that is not for policies alone to say: for what is sent to services, and for
    /// messages of ICMP that begin nothing.
    #[must_use]
    pub fn passes(&self, cell: &CellId) -> Option<bool> {
        let attempt = attempt(cell)?;
        let source = self.end(&cell.source, cell.family)?;
        let destination = self.end(&cell.destination, cell.family)?;
        if source.is(destination) {
            // It never leaves.
            return Some(true);
        }
        let judge = |direction, node: &Node, subject, peer| {
            let (subject, peer) = (self.actor(node, subject), self.actor(node, peer));
            let ruling = self.rulebook.judge(direction, &subject, &peer, attempt);
            ruling.allowed
        };
        let may_leave = source
            .node()
            .is_none_or(|node| judge(Direction::Egress, node, source, destination));
        let may_enter = destination.node().is_none_or(|node| {
            let seen = match (source, destination) {
                // What a pod sends to another node leaves behind the address of its own.
                (End::Pod(_, home), End::Node(_)) if !ptr::eq(home, node) => End::Node(home),
                _ => source,
            };
            judge(Direction::Ingress, node, destination, seen)
        });
        Some(may_leave && may_enter)
    }

    fn end(&self, id: &EndpointId, family: Family) -> Option<End<'a>> {
        let case = self.case;
        let node = |name: &str| case.nodes.iter().find(|node| node.name == name);
        match id {
            EndpointId::Node(name) => node(name).map(End::Node),
            EndpointId::Pod { .. } => {
                let pod = case.pods.iter().find(|pod| pod.id() == *id)?;
                let home = node(&pod.node)?;
                Some(if pod.host_network {
                    End::Node(home)
                } else {
                    End::Pod(pod, home)
                })
            }
            EndpointId::External(name) => {
                let host = case.hosts.iter().find(|host| host.name == *name)?;
                let mut addresses = host.addresses.iter().copied();
                let of_family = addresses.find(|&address| Family::of(address) == family);
                of_family.map(End::Outside)
            }
            EndpointId::Service { .. } => None,
        }
    }

    /// An end as a node knows it: a node is the host to itself, and another node to the others.
    fn actor(&self, node: &Node, end: End<'_>) -> Actor {
        let (name, kind, labels) = match end {
            End::Pod(pod, _) => (pod.id().to_string(), ActorKind::Pod, self.pod_labels(pod)),
            End::Node(it) if ptr::eq(it, node) => {
                let labels = of_kubernetes(Labels::reserved("host"), &it.labels);
                (it.name.clone(), ActorKind::Host, labels)
            }
            End::Node(it) => (
                it.name.clone(),
                ActorKind::RemoteNode,
                self.remote_labels(node),
            ),
            End::Outside(address) => {
                let world = if address.is_ipv4() {
                    "world-ipv4"
                } else {
                    "world-ipv6"
                };
                let kind = ActorKind::Outside(address);
                (address.to_string(), kind, Labels::reserved(world))
            }
        };
        let ports = match end {
            End::Pod(pod, _) => pod.ports.clone(),
            _ => Vec::new(),
        };
        Actor {
            name,
            kind,
            labels,
            ports,
        }
    }

    /// What a pod is labelled: by itself, and by where it belongs, which it has no say in.
    fn pod_labels(&self, pod: &Pod) -> Labels {
        let derived = |key: &str| key.starts_with("io.cilium.k8s.") || key == Labels::NAMESPACE;
        let own = pod.labels.iter().filter(|(key, _)| !derived(key));
        let mut labels = of_kubernetes(Labels::default(), own);
        let name = [("kubernetes.io/metadata.name", pod.namespace.as_str())];
        let given = self.case.namespaces.get(&pod.namespace).into_iter();
        let given = given.flat_map(|namespace| &namespace.labels);
        let given = given.map(|(key, value)| (key.as_str(), value.as_str()));
        for (key, value) in given.chain(name) {
            let key = format!("{}{key}", Labels::NAMESPACE_LABELS);
            labels = labels.with(source::K8S, &key, value);
        }
        labels
            .with(source::K8S, Labels::NAMESPACE, &pod.namespace)
            .with(source::K8S, Labels::SERVICE_ACCOUNT, &pod.service_account)
    }

    /// What all nodes but one are labelled alike: one identity stands for them.
    fn remote_labels(&self, node: &Node) -> Labels {
        let others = || {
            self.case
                .nodes
                .iter()
                .filter(|other| !ptr::eq(*other, node))
        };
        let shared = others().next().into_iter().flat_map(|one| {
            let labels = one.labels.iter();
            labels
                .filter(|(key, value)| others().all(|other| other.labels.get(*key) == Some(*value)))
        });
        of_kubernetes(Labels::reserved("remote-node"), shared)
    }
}

impl<'a> End<'a> {
    /// The node that judges for it.
    fn node(self) -> Option<&'a Node> {
        match self {
            Self::Pod(_, node) | Self::Node(node) => Some(node),
            Self::Outside(_) => None,
        }
    }

    fn is(self, other: Self) -> bool {
        match (self, other) {
            (Self::Pod(one, _), Self::Pod(other, _)) => ptr::eq(one, other),
            (Self::Node(one), Self::Node(other)) => ptr::eq(one, other),
            _ => false,
        }
    }
}

/// What a cell begins, if it begins anything.
fn attempt(cell: &CellId) -> Option<Attempt> {
    let protocol = match (cell.protocol, cell.port) {
        (ProbeProtocol::Tcp, _) => 6,
        (ProbeProtocol::Udp, _) => 17,
        (ProbeProtocol::Sctp, _) => 132,
        (ProbeProtocol::Icmp, 8) => 1,
        (ProbeProtocol::Icmpv6, 128) => 58,
        (ProbeProtocol::Icmp | ProbeProtocol::Icmpv6, _) => return None,
    };
    Some(Attempt {
        protocol,
        port: cell.port,
    })
}

fn of_kubernetes<'l>(
    labels: Labels,
    more: impl IntoIterator<Item = (&'l String, &'l String)>,
) -> Labels {
    let more = more.into_iter();
    more.fold(labels, |labels, (key, value)| {
        labels.with(source::K8S, key, value)
    })
}
