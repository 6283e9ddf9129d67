//! What there is in a case: objects of Kubernetes as far as they matter here, and hosts outside.

use std::{collections::BTreeMap, net::IpAddr};

use datapath_user::policy::{NamedPort, PortProtocol};
use ipnet::IpNet;
use serde::{Deserialize, de::DeserializeOwned};

use super::{
    EndpointId,
    document::{Piece, Problem},
};

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its addresses of the type `InternalIP`.
    pub addresses: Vec<IpAddr>,
    /// The ranges of its pods, if the file says so.
    pub pod_cidrs: Vec<IpNet>,
    /// Line of the file.
    pub line: u64,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The node that it is on.
    pub node: String,
    /// Whether it has its node's network.
    pub host_network: bool,
    /// Its service account: `default` where the file says none, as an API server has it.
    pub service_account: String,
    /// Its named container ports.
    pub ports: Vec<NamedPort>,
    /// Its addresses; a pod of the node's network has the node's instead.
    pub addresses: Vec<IpAddr>,
    /// Line of the file.
    pub line: u64,
}

/// A service. Nothing sends to services yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// A host outside the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalHost {
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Line of the file.
    pub line: u64,
}

impl Node {
    /// What it is called in cells.
    #[must_use]
    pub fn id(&self) -> EndpointId {
        EndpointId::Node(self.name.clone())
    }
}

impl Pod {
    /// What it is called in cells.
    #[must_use]
    pub fn id(&self) -> EndpointId {
        EndpointId::Pod {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }
}

impl Service {
    /// What it is called in cells.
    #[must_use]
    pub fn id(&self) -> EndpointId {
        EndpointId::Service {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }
}

impl ExternalHost {
    /// What it is called in cells.
    #[must_use]
    pub fn id(&self) -> EndpointId {
        EndpointId::External(self.name.clone())
    }
}

pub(super) fn namespace(piece: &Piece<'_>) -> Result<Namespace, Problem> {
    let Object { metadata, .. } = piece.read::<Object<Ignored, Ignored>>()?;
    Ok(Namespace {
        name: metadata.name,
        labels: metadata.labels,
    })
}

pub(super) fn node(piece: &Piece<'_>) -> Result<Node, Problem> {
    let object: Object<NodeSpec, NodeStatus> = piece.read()?;
    let internal = |address: &&NodeAddress| address.kind == "InternalIP";
    let addresses: Vec<_> = object.status.addresses.iter().filter(internal).collect();
    let addresses: Vec<_> = addresses
        .into_iter()
        .map(|address| parsed(piece, "InternalIP", &address.address))
        .collect::<Result<_, _>>()?;
    if addresses.is_empty() {
        return Err(piece.wrong(format!(
            "node {} has no address: give it status.addresses of the type InternalIP",
            object.metadata.name
        )));
    }
    let NodeSpec {
        pod_cidr,
        pod_cidrs,
    } = object.spec;
    let pod_cidrs = if pod_cidrs.is_empty() {
        pod_cidr.into_iter().collect()
    } else {
        pod_cidrs
    };
    Ok(Node {
        name: object.metadata.name,
        labels: object.metadata.labels,
        addresses,
        pod_cidrs: pod_cidrs
            .iter()
            .map(|cidr| parsed(piece, "podCIDR", cidr).map(|cidr: IpNet| cidr.trunc()))
            .collect::<Result<_, _>>()?,
        line: piece.first_line(),
    })
}

pub(super) fn pod(piece: &Piece<'_>) -> Result<Pod, Problem> {
    let Object {
        metadata,
        spec,
        status,
    } = piece.read::<Object<PodSpec, PodStatus>>()?;
    let all: Vec<_> = status.pod_ips.into_iter().map(|entry| entry.ip).collect();
    let all = if all.is_empty() {
        status.pod_ip.into_iter().collect()
    } else {
        all
    };
    let ports = spec.containers.into_iter().flat_map(|one| one.ports);
    let named = |port: ContainerPort| {
        port.name.map(|name| NamedPort {
            name,
            port: port.port,
            protocol: port.protocol.unwrap_or(PortProtocol::Tcp),
        })
    };
    Ok(Pod {
        namespace: metadata.namespace.unwrap_or_else(|| "default".to_owned()),
        name: metadata.name,
        labels: metadata.labels,
        node: spec.node_name,
        host_network: spec.host_network,
        service_account: spec
            .service_account_name
            .unwrap_or_else(|| "default".to_owned()),
        ports: ports.filter_map(named).collect(),
        addresses: all
            .iter()
            .map(|address| parsed(piece, "podIP", address))
            .collect::<Result<_, _>>()?,
        line: piece.first_line(),
    })
}

pub(super) fn service(piece: &Piece<'_>) -> Result<Service, Problem> {
    let Object { metadata, .. } = piece.read::<Object<Ignored, Ignored>>()?;
    Ok(Service {
        namespace: metadata.namespace.unwrap_or_else(|| "default".to_owned()),
        name: metadata.name,
    })
}

pub(super) fn host(piece: &Piece<'_>) -> Result<ExternalHost, Problem> {
    let document: HostDocument = piece.read()?;
    let addresses = document.spec.ips.iter();
    let addresses: Vec<IpAddr> = addresses
        .map(|address| parsed(piece, "address", address))
        .collect::<Result<_, _>>()?;
    if addresses.is_empty() {
        return Err(piece.wrong(format!(
            "host {} has no address: give it spec.ips",
            document.metadata.name
        )));
    }
    Ok(ExternalHost {
        name: document.metadata.name,
        addresses,
        line: piece.first_line(),
    })
}

fn parsed<T: std::str::FromStr>(piece: &Piece<'_>, what: &str, text: &str) -> Result<T, Problem> {
    text.parse()
        .map_err(|_| piece.wrong(format!("{what} {text:?} cannot be read")))
}

/// What all objects have; fields that do not matter here are not looked at.
#[derive(Deserialize)]
#[serde(bound = "S: DeserializeOwned + Default, T: DeserializeOwned + Default")]
struct Object<S, T> {
    metadata: Metadata,
    #[serde(default)]
    spec: S,
    #[serde(default)]
    status: T,
}

#[derive(Default, Deserialize)]
struct Ignored {}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    #[serde(default)]
    namespace: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeSpec {
    #[serde(default, rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(default, rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
}

#[derive(Default, Deserialize)]
struct NodeStatus {
    #[serde(default)]
    addresses: Vec<NodeAddress>,
}

#[derive(Deserialize)]
struct NodeAddress {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    #[serde(default)]
    node_name: String,
    #[serde(default)]
    host_network: bool,
    #[serde(default)]
    service_account_name: Option<String>,
    #[serde(default)]
    containers: Vec<Container>,
}

#[derive(Deserialize)]
struct Container {
    #[serde(default)]
    ports: Vec<ContainerPort>,
}

#[derive(Deserialize)]
struct ContainerPort {
    #[serde(default)]
    name: Option<String>,
    #[serde(rename = "containerPort")]
    port: u16,
    #[serde(default)]
    protocol: Option<PortProtocol>,
}

#[derive(Default, Deserialize)]
struct PodStatus {
    #[serde(default, rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(default, rename = "podIPs")]
    pod_ips: Vec<PodIp>,
}

#[derive(Deserialize)]
struct PodIp {
    ip: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HostDocument {
    #[serde(rename = "apiVersion")]
    _version: String,
    #[serde(rename = "kind")]
    _kind: String,
    metadata: HostMetadata,
    spec: HostSpec,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HostMetadata {
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct HostSpec {
    ips: Vec<String>,
    /// For policies by name, which there are none of yet.
    #[serde(default, rename = "dnsNames")]
    _dns_names: Vec<String>,
}
