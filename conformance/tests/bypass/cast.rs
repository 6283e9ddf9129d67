//! Who is there, and what they may.

use std::net::IpAddr;

use datapath_conformance::{
    family::Family,
    paths::{self, InProcess, pod_address},
    topology::{
        Fabric,
        plan::{self, UPLINK},
    },
};
use datapath_user::{
    EndpointSpec,
    policy::{Document, document},
};

use crate::util::OrPanic as _;

/// Someone who sends and receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    /// May speak with the server, on its node.
    Client,
    /// Isolated both ways.
    Server,
    /// May not speak with the server, on its node.
    Intruder,
    /// As the client, on the other node.
    FarClient,
    /// As the intruder, on the other node.
    FarIntruder,
    /// Neither pod nor node. The server takes 8443 of it.
    Outside,
    /// As the server, and not always there.
    Newcomer,
    /// Whoever sits where the other node's packets come to node 1 from.
    Wire,
}

/// Those who may not, and are pods.
pub(crate) const INTRUDERS: [Who; 2] = [Who::Intruder, Who::FarIntruder];
/// Those who may.
pub(crate) const CLIENTS: [Who; 2] = [Who::Client, Who::FarClient];

impl Who {
    /// Those that have a hand at their interface.
    pub(crate) const ALL: [Self; 7] = [
        Self::Client,
        Self::Server,
        Self::Intruder,
        Self::FarClient,
        Self::FarIntruder,
        Self::Outside,
        Self::Wire,
    ];

    /// Node and number, both counted from 1; none of those who are no pods.
    pub(crate) fn pod(self) -> Option<(u8, u8)> {
        match self {
            Self::Client => Some((1, 1)),
            Self::Server => Some((1, 2)),
            Self::Intruder => Some((1, 3)),
            Self::Newcomer => Some((1, 4)),
            Self::FarClient => Some((2, 1)),
            Self::FarIntruder => Some((2, 2)),
            Self::Outside | Self::Wire => None,
        }
    }

    pub(crate) fn address(self, family: Family) -> IpAddr {
        match (self, self.pod()) {
            (_, Some((node, pod))) => pod_address(node, pod, family),
            (Self::Wire, None) => plan::node_address(2, family),
            (_, None) => plan::outside_address(family),
        }
    }
}

/// What the server may: be asked for TCP 80, UDP 53, SCTP 3868 and pings by clients and for TCP 8443
/// from outside; ask clients for TCP 443, UDP 5353 and pings.
pub(crate) const POLICIES: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server, namespace: shop}
spec:
  podSelector: {matchLabels: {role: server}}
  policyTypes: [Ingress, Egress]
  ingress:
    - from: [{podSelector: {matchLabels: {role: client}}}]
      ports: [{port: 80}, {port: 53, protocol: UDP}, {port: 3868, protocol: SCTP}]
    - from: [{ipBlock: {cidr: 198.51.100.10/32}}, {ipBlock: {cidr: '2001:db8:0:2::10/128'}}]
      ports: [{port: 8443}]
  egress:
    - to: [{podSelector: {matchLabels: {role: client}}}]
      ports: [{port: 443}, {port: 5353, protocol: UDP}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: pings, namespace: shop}
spec:
  endpointSelector: {matchLabels: {role: server}}
  ingress:
    - fromEndpoints: [{matchLabels: {role: client}}]
      icmps: [{fields: [{family: IPv4, type: 8}, {family: IPv6, type: 128}]}]
  egress:
    - toEndpoints: [{matchLabels: {role: client}}]
      icmps: [{fields: [{family: IPv4, type: 8}, {family: IPv6, type: 128}]}]
";

/// Reads documents that are right.
#[track_caller]
pub(crate) fn documents(text: &str) -> Vec<Document> {
    let reading = document::read(text, None);
    assert!(reading.refused.is_empty(), "{:?}", reading.refused);
    reading.documents
}

/// The role that a pod's label says.
fn role(node: u8, pod: u8) -> &'static str {
    match (node, pod) {
        (1 | 2, 1) => "client",
        (1, 2 | 4) => "server",
        (1, 3) | (2, 2) => "intruder",
        _ => "nobody",
    }
}

/// What a pod is called and labelled, in a role of its own or in another one, which is another
/// identity.
fn labelled(node: u8, pod: u8, instead: Option<(Who, &'static str)>) -> EndpointSpec {
    let own = paths::pod_identity(node, pod);
    let (role, identity) = match instead {
        Some((who, role)) if who.pod() == Some((node, pod)) => (role, own + 500),
        _ => (role(node, pod), own),
    };
    let id = format!("n{node}p{pod}");
    EndpointSpec {
        name: Some(id.clone()),
        id,
        identity: Some(identity),
        namespace: Some("shop".to_owned()),
        labels: [("role".to_owned(), role.to_owned())].into(),
        ..EndpointSpec::default()
    }
}

/// A pod as it is added, in a role of its own or in another one.
pub(crate) fn endpoint(
    fabric: &Fabric,
    who: Who,
    instead: Option<(Who, &'static str)>,
) -> EndpointSpec {
    let (node, pod) = who.pod().unwrap();
    let namespace = &fabric.node(node).or_panic().pods()[usize::from(pod) - 1];
    EndpointSpec {
        netns: namespace.path().to_owned(),
        interface: UPLINK.to_owned(),
        addresses: Family::ALL.map(|family| who.address(family)).to_vec(),
        ..labelled(node, pod, instead)
    }
}

/// Gives all pods labels, on their node and on the other one: those of their roles, but for one
/// that may have another role instead.
pub(crate) fn name_pods(
    fabric: &Fabric,
    datapaths: &InProcess,
    instead: Option<(Who, &'static str)>,
) {
    for (index, node) in fabric.nodes().iter().enumerate() {
        let numbers = (1_u8..).zip(node.pods()).map(|(pod, _)| pod);
        let specs: Vec<_> = numbers
            .map(|pod| labelled(node.number(), pod, instead))
            .collect();
        for spec in &specs {
            datapaths
                .inside(index, |datapath| {
                    datapath.set_endpoint_labels(&spec.id, spec)
                })
                .or_panic();
        }
        for (other, _) in fabric.nodes().iter().enumerate().filter(|it| it.0 != index) {
            let mut peer = paths::peer_spec(fabric, node, Family::Ipv4);
            for pod in &mut peer.pods {
                let own = usize::try_from(pod.identity.unwrap() % 1000).unwrap();
                let spec = &specs[own - 1];
                pod.identity = spec.identity;
                pod.name.clone_from(&spec.name);
                pod.namespace.clone_from(&spec.namespace);
                pod.labels.clone_from(&spec.labels);
            }
            datapaths
                .inside(other, |datapath| datapath.upsert_peer(&peer))
                .or_panic();
        }
    }
}
