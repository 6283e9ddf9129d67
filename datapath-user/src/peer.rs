//! Peers: the other nodes and their pods.

use std::net::IpAddr;

use datapath_kern::abi::addr::Addr;
use datapath_kern::abi::endpoint::identity;
use datapath_kern::abi::ipcache::{IpEntry, flags, kind};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::endpoint::check_identity;
use crate::error::Error;
use crate::naming;

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
}

/// A pod of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemotePod {
    /// Its address.
    pub address: IpAddr,
    /// Its security identity.
    pub identity: u32,
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
            check_identity(pod.identity)?;
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
        spec.pods
            .sort_unstable_by_key(|pod| (pod.address, pod.identity));
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
            (prefix, entry(pod.identity, kind::PEER_POD, flags))
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
        };
        for (prefix, entry) in entries {
            if entry.flags & flags::RANGE != 0 {
                spec.pod_cidrs.push(*prefix);
            }
            let address = prefix.addr();
            if entry.flags & flags::POD != 0 {
                let identity = entry.identity;
                spec.pods.push(RemotePod { address, identity });
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
            pods: vec![RemotePod {
                address: "10.244.2.5".parse().unwrap(),
                identity: 2001,
            }],
            uplink: None,
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
                .map(|(address, identity)| RemotePod {
                    address: address.parse().unwrap(),
                    identity,
                })
                .to_vec(),
            uplink: Some("up1".into()),
        };
        let entries: std::collections::BTreeMap<_, _> = spec.prefixes(7).into_iter().collect();
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
            pods: vec![RemotePod {
                address: pod.parse().unwrap(),
                identity,
            }],
            uplink: None,
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
