//! Peers: the other nodes and their pods.

use std::collections::BTreeMap;
use std::net::IpAddr;

use datapath_kern::abi::addr::Addr;
use datapath_kern::abi::endpoint::identity;
use datapath_kern::abi::ipcache::{IpEntry, flags, kind};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::naming;
use crate::pod::{Pod, check_identity, check_labels};
use crate::policy::{Labels, NamedPort, source};

/// A peer to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerSpec {
    /// The node's name.
    pub name: String,
    /// Its end of the tunnel, on the underlay.
    pub address: IpAddr,
    /// Its other addresses. Those inside `pod_cidrs`, its gateways, are reached through the tunnel;
    /// the node speaks to this node's pods from them, so that with
    /// [`IdentityFrom::Ipcache`](crate::IdentityFrom::Ipcache) they must be named.
    #[serde(default)]
    pub node_addresses: Vec<IpAddr>,
    /// The prefixes of its pods.
    #[serde(default)]
    pub pod_cidrs: Vec<IpNet>,
    /// Those of its pods whose identities are known.
    #[serde(default)]
    pub pods: Vec<RemotePod>,
    /// The uplink that it is behind; default: the first one.
    #[serde(default)]
    pub uplink: Option<String>,
    /// The node's labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// A pod of a peer: one of its addresses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemotePod {
    /// Its address.
    pub address: IpAddr,
    /// Its security identity: 3 (unmanaged), or 256 to 16777215. Without, a number is found for its
    /// labels, where numbers are the same on all nodes; a pod without labels is unmanaged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<u32>,
    /// The namespace of the pod, in the sense of Kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The pod's name there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The pod's labels. One under a key that says where a pod belongs
    /// (`io.kubernetes.pod.namespace`, and all that begin with `io.cilium.k8s.`) is no label to
    /// policies.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Labels of its namespace.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub namespace_labels: BTreeMap<String, String>,
    /// Its service account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
    /// Ports of its containers that have names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<NamedPort>,
}

impl RemotePod {
    /// A pod known by its identity only; none: by its labels, which are to be added.
    #[must_use]
    pub const fn new(address: IpAddr, identity: Option<u32>) -> Self {
        Self {
            address,
            identity,
            namespace: None,
            name: None,
            labels: BTreeMap::new(),
            namespace_labels: BTreeMap::new(),
            service_account: None,
            ports: Vec::new(),
        }
    }

    /// The labels that policies select it by.
    #[must_use]
    pub fn identity_labels(&self) -> Labels {
        self.pod().labels()
    }

    /// The number that stands for it in the ipcache.
    pub(crate) fn number(&self) -> u32 {
        self.identity.unwrap_or(identity::UNMANAGED)
    }

    pub(crate) fn pod(&self) -> Pod<'_> {
        Pod {
            namespace: self.namespace.as_deref(),
            name: self.name.as_deref(),
            labels: &self.labels,
            namespace_labels: &self.namespace_labels,
            service_account: self.service_account.as_deref(),
            ports: &self.ports,
        }
    }
}

/// A peer as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerView {
    /// The node's name.
    pub name: String,
    /// Its index among this node's peers.
    pub index: u16,
    /// Its end of the tunnel.
    pub address: IpAddr,
    /// Our end towards it.
    pub local: IpAddr,
    /// Its other addresses.
    pub node_addresses: Vec<IpAddr>,
    /// The prefixes of its pods.
    pub pod_cidrs: Vec<IpNet>,
    /// How many of its pods are known by identity.
    pub pods: usize,
    /// The uplink that it is behind.
    pub interface: String,
    /// Counts changes that its flows depend on.
    pub generation: u32,
}

impl PeerSpec {
    /// Checks what can be checked without a kernel.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for the first thing that cannot be used.
    pub fn validate(&self) -> Result<(), Error> {
        naming::check_id("peer name", &self.name)?;
        for address in std::iter::once(&self.address).chain(&self.node_addresses) {
            let packed = Addr::from(*address);
            if packed.is_martian() || packed.is_multicast() {
                return Err(Error::Invalid {
                    what: "peer address",
                    value: address.to_string(),
                    rule: "must be one that other nodes reach it by: not unspecified, loopback, \
                           link-local or multicast",
                });
            }
        }
        for pod in &self.pods {
            if let Some(number) = pod.identity {
                check_identity(number)?;
            }
            pod.pod().check()?;
            if !self
                .pod_cidrs
                .iter()
                .any(|cidr| cidr.contains(&pod.address))
            {
                let rule = "must lie inside one of the peer's pod_cidrs";
                let value = pod.address.to_string();
                return Err(Error::Invalid {
                    what: "pod address",
                    value,
                    rule,
                });
            }
        }
        check_labels(&self.labels)?;
        for cidr in &self.pod_cidrs {
            if cidr.network() != cidr.addr() {
                let rule = "must have no bits behind the prefix";
                return Err(Error::Invalid {
                    what: "pod prefix",
                    value: cidr.to_string(),
                    rule,
                });
            }
        }
        Ok(())
    }

    /// Whether another specification says the same, in whichever order.
    pub(crate) fn says_the_same(&self, other: &Self) -> bool {
        self.sorted() == other.sorted()
    }

    fn sorted(&self) -> Self {
        let mut spec = self.clone();
        spec.node_addresses.sort_unstable();
        spec.node_addresses.dedup();
        spec.pod_cidrs.sort_unstable();
        spec.pod_cidrs.dedup();
        spec.pods.sort_unstable();
        spec.pods.dedup();
        spec
    }

    /// Whether one of its prefixes is this one.
    pub(crate) fn names(&self, prefix: IpNet) -> bool {
        let nodes = std::iter::once(&self.address).chain(&self.node_addresses);
        let mut addresses = nodes.chain(self.pods.iter().map(|pod| &pod.address));
        self.pod_cidrs.contains(&prefix) || addresses.any(|&address| IpNet::from(address) == prefix)
    }

    /// What the ipcache says of this peer.
    pub(crate) fn prefixes(&self, index: u16) -> Vec<(IpNet, IpEntry)> {
        let entry = |identity, kind, flags| IpEntry {
            identity,
            index,
            kind,
            flags,
        };
        let range = |prefix: &IpNet| {
            if self.pod_cidrs.contains(prefix) {
                flags::RANGE
            } else {
                0
            }
        };
        let ranges = self.pod_cidrs.iter().map(|&cidr| {
            (
                cidr,
                entry(identity::UNMANAGED, kind::PEER_POD, flags::RANGE),
            )
        });
        let pods = self.pods.iter().map(|pod| {
            let prefix = IpNet::from(pod.address);
            let flags = flags::POD | range(&prefix);
            (prefix, entry(pod.number(), kind::PEER_POD, flags))
        });
        let node = std::iter::once(&self.address)
            .chain(&self.node_addresses)
            .map(|&address| {
                let tunnelled = self.pod_cidrs.iter().any(|cidr| cidr.contains(&address));
                let kind = if tunnelled {
                    kind::PEER_POD
                } else {
                    kind::PEER_NODE
                };
                let prefix = IpNet::from(address);
                (prefix, entry(identity::REMOTE_NODE, kind, range(&prefix)))
            });
        ranges.chain(pods).chain(node).collect()
    }

    /// The labels that policies select the node by.
    pub(crate) fn node_labels(&self) -> Labels {
        let labels = self.labels.iter();
        labels.fold(Labels::reserved("remote-node"), |all, (key, value)| {
            all.with(source::K8S, key, value)
        })
    }

    /// The specification that led to these entries of the ipcache, all of one peer.
    pub(crate) fn recover<'a>(
        name: String,
        address: IpAddr,
        uplink: Option<String>,
        entries: impl Iterator<Item = (&'a IpNet, &'a IpEntry)>,
    ) -> Self {
        let mut spec = Self {
            name,
            address,
            node_addresses: Vec::new(),
            pod_cidrs: Vec::new(),
            pods: Vec::new(),
            uplink,
            labels: BTreeMap::new(),
        };
        for (prefix, entry) in entries {
            if entry.flags & flags::RANGE != 0 {
                spec.pod_cidrs.push(*prefix);
            }
            let address = prefix.addr();
            if entry.flags & flags::POD != 0 {
                let identity = Some(entry.identity);
                spec.pods.push(RemotePod::new(address, identity));
            } else if entry.identity == identity::REMOTE_NODE && address != spec.address {
                spec.node_addresses.push(address);
            }
        }
        spec
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_known_by_all_its_prefixes() {
        let spec = PeerSpec {
            name: "n2".into(),
            address: "192.0.2.12".parse().unwrap(),
            node_addresses: vec!["10.244.2.1".parse().unwrap(), "192.0.2.22".parse().unwrap()],
            pod_cidrs: vec!["10.244.2.0/24".parse().unwrap()],
            pods: vec![RemotePod::new("10.244.2.5".parse().unwrap(), Some(2001))],
            uplink: None,
            labels: BTreeMap::new(),
        };
        spec.validate().unwrap();
        let found = |prefix: &str| {
            let prefix: IpNet = prefix.parse().unwrap();
            let all = spec.prefixes(7);
            let (_, entry) = all
                .iter()
                .find(|(other, _)| *other == prefix)
                .copied()
                .unwrap();
            assert_eq!(entry.index, 7);
            (entry.kind, entry.identity)
        };
        assert_eq!(
            found("10.244.2.0/24"),
            (kind::PEER_POD, identity::UNMANAGED)
        );
        assert_eq!(found("10.244.2.5/32"), (kind::PEER_POD, 2001));
        assert_eq!(
            found("10.244.2.1/32"),
            (kind::PEER_POD, identity::REMOTE_NODE)
        );
        assert_eq!(
            found("192.0.2.12/32"),
            (kind::PEER_NODE, identity::REMOTE_NODE)
        );
        assert_eq!(
            found("192.0.2.22/32"),
            (kind::PEER_NODE, identity::REMOTE_NODE)
        );
    }

    #[test]
    fn a_peer_is_found_again_by_its_prefixes() {
        let spec = PeerSpec {
            name: "n2".into(),
            address: "192.0.2.12".parse().unwrap(),
            node_addresses: vec!["192.0.2.22".parse().unwrap(), "10.244.2.1".parse().unwrap()],
            pod_cidrs: vec![
                "fd00:2::/64".parse().unwrap(),
                "10.244.2.0/24".parse().unwrap(),
                "10.9.9.9/32".parse().unwrap(),
                "10.9.9.8/32".parse().unwrap(),
            ],
            pods: [("10.244.2.5", 2001), ("10.9.9.9", 3), ("fd00:2::5", 2001)]
                .map(|(address, identity)| RemotePod::new(address.parse().unwrap(), Some(identity)))
                .to_vec(),
            uplink: Some("up1".into()),
            labels: BTreeMap::new(),
        };
        let entries: BTreeMap<_, _> = spec.prefixes(7).into_iter().collect();
        let found = PeerSpec::recover(
            spec.name.clone(),
            spec.address,
            spec.uplink.clone(),
            entries.iter(),
        );
        assert!(found.says_the_same(&spec), "{found:?}");
        let other = PeerSpec {
            uplink: None,
            ..spec.clone()
        };
        assert!(!found.says_the_same(&other));
    }

    #[test]
    fn what_cannot_be_a_peer_is_refused() {
        let spec = |pod: &str, identity| PeerSpec {
            name: "n2".into(),
            address: "192.0.2.12".parse().unwrap(),
            node_addresses: Vec::new(),
            pod_cidrs: vec!["10.244.2.0/24".parse().unwrap()],
            pods: vec![RemotePod::new(pod.parse().unwrap(), Some(identity))],
            uplink: None,
            labels: BTreeMap::new(),
        };
        assert!(spec("10.244.2.5", 2001).validate().is_ok());
        for (pod, identity) in [
            ("10.244.3.5", 2001),
            ("10.244.2.5", 1),
            ("10.244.2.5", 1 << 24),
        ] {
            assert!(
                matches!(spec(pod, identity).validate(), Err(Error::Invalid { .. })),
                "{pod}"
            );
        }
        for address in [
            "127.0.0.1",
            "0.0.0.0",
            "::1",
            "fe80::1",
            "224.0.0.1",
            "ff02::1",
        ] {
            let elsewhere = PeerSpec {
                address: address.parse().unwrap(),
                ..spec("10.244.2.5", 2001)
            };
            let said = elsewhere.validate().unwrap_err().to_string();
            assert!(said.contains(address), "{said}");
        }
        let named = PeerSpec {
            name: "../n2".into(),
            ..spec("10.244.2.5", 2001)
        };
        assert!(named.validate().unwrap_err().to_string().contains("../n2"));
    }
}
