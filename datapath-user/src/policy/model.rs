//! Policy documents as they are meant: what Kubernetes and Cilium write differently is the same
//! here.
//!
//! Whatever a format leaves to be understood is written out when a document is read: namespaces are
//! requirements of selectors, defaults are filled in. Nothing here depends on which identities
//! there are.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::selector::Selector;

/// What a document is called: no two in force have the same name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DocumentId {
    /// Its kind.
    pub kind: DocumentKind,
    /// Its namespace; none of a kind that has none.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

/// Kinds of policy documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum DocumentKind {
    /// `networking.k8s.io/v1`.
    NetworkPolicy,
    /// `cilium.io/v2`, of a namespace.
    CiliumNetworkPolicy,
    /// `cilium.io/v2`, of all namespaces.
    CiliumClusterwideNetworkPolicy,
}

/// One policy document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// What it is called.
    pub id: DocumentId,
    /// The file that it is from; none if it came another way.
    pub file: Option<PathBuf>,
    /// Its specifications: one, of `spec`, or several, of `specs`.
    pub specs: Vec<Spec>,
}

/// One specification: rules for some subjects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// For whom the rules are.
    pub subject: Subject,
    /// What others may begin with them.
    pub ingress: Section,
    /// What they may begin with others.
    pub egress: Section,
}

/// For whom rules are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Endpoints whose labels fit.
    Endpoints(Selector),
    /// Nodes whose labels fit.
    Nodes(Selector),
}

/// The rules of one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Section {
    /// Whether the subjects need a rule, of this document or another, for what begins in this
    /// direction.
    pub isolates: bool,
    /// In the order of the document, allowing ones first.
    pub rules: Vec<Rule>,
}

/// One rule: it applies where one of the peers and one of the ports fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Where it stands in the document: `spec.ingress[0]`, `specs[1].egressDeny[2]`.
    pub path: String,
    /// Line of the document's file where it begins, counted from one.
    pub line: u64,
    /// What it does.
    pub verdict: RuleVerdict,
    /// With whom.
    pub peers: Peers,
    /// On which ports.
    pub ports: Ports,
}

/// What a rule does to what fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuleVerdict {
    /// Lets it through.
    Allow,
    /// Keeps it out, whatever else lets it through.
    Deny,
}

/// With whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peers {
    /// Everyone.
    Any,
    /// Those that one of these fits; an empty list fits nobody.
    Of(Vec<Peer>),
}

/// Some peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Identities whose labels fit.
    Labelled(Selector),
    /// Addresses outside the cluster in a prefix and in none of the exceptions.
    Cidr {
        /// The prefix.
        cidr: IpNet,
        /// Prefixes inside it that are left out.
        except: Vec<IpNet>,
    },
    /// What a word stands for.
    Entity(Entity),
}

/// Words for peers (Cilium's `fromEntities`, `toEntities`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Entity {
    /// Everyone.
    All,
    /// Outside the cluster.
    World,
    /// Outside the cluster, IPv4.
    WorldIpv4,
    /// Outside the cluster, IPv6.
    WorldIpv6,
    /// All pods, all nodes, and what else is inside.
    Cluster,
    /// The node that the subject is on.
    Host,
    /// The other nodes.
    RemoteNode,
    /// The API server of Kubernetes.
    KubeApiserver,
    /// What terminates traffic from outside for others.
    Ingress,
    /// Pods whose labels are not known yet.
    Init,
    /// What probes the health of nodes.
    Health,
    /// Pods that were given no identity.
    Unmanaged,
    /// Nobody.
    None,
}

/// On which ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// All of all protocols.
    Any,
    /// Those that one of these fits; an empty list fits none.
    Of(Vec<PortRule>),
}

/// Some ports, or ICMP messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortRule {
    /// Destination ports.
    Port {
        /// Of this protocol; none: of TCP, UDP and SCTP.
        protocol: Option<PortProtocol>,
        /// Which.
        port: PortValue,
    },
    /// ICMP messages of a type.
    Icmp {
        /// Of this family.
        family: IcmpFamily,
        /// The type.
        kind: u8,
    },
}

/// Protocols that have ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum PortProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// Which destination ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortValue {
    /// All of them.
    All,
    /// These.
    Range(RangeInclusive<u16>),
    /// The ones that the receiving pod has under this name.
    Named(String),
}

/// Which ICMP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum IcmpFamily {
    /// ICMP.
    #[serde(rename = "IPv4")]
    V4,
    /// ICMPv6.
    #[serde(rename = "IPv6")]
    V6,
}

/// A container port of a pod that has a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedPort {
    /// The name.
    pub name: String,
    /// The port.
    pub port: u16,
    /// Its protocol.
    pub protocol: PortProtocol,
}

impl Entity {
    /// The word, as documents have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::World => "world",
            Self::WorldIpv4 => "world-ipv4",
            Self::WorldIpv6 => "world-ipv6",
            Self::Cluster => "cluster",
            Self::Host => "host",
            Self::RemoteNode => "remote-node",
            Self::KubeApiserver => "kube-apiserver",
            Self::Ingress => "ingress",
            Self::Init => "init",
            Self::Health => "health",
            Self::Unmanaged => "unmanaged",
            Self::None => "none",
        }
    }
}

impl PortProtocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// IP protocol number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl IcmpFamily {
    /// IP protocol number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::V4 => 1,
            Self::V6 => 58,
        }
    }
}

impl fmt::Display for PortProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

impl fmt::Display for DocumentKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::NetworkPolicy => "NetworkPolicy",
            Self::CiliumNetworkPolicy => "CiliumNetworkPolicy",
            Self::CiliumClusterwideNetworkPolicy => "CiliumClusterwideNetworkPolicy",
        })
    }
}

impl fmt::Display for DocumentId {
    /// `Kind/namespace/name`, or `Kind/name`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{}/{namespace}/{}", self.kind, self.name),
            None => write!(f, "{}/{}", self.kind, self.name),
        }
    }
}
