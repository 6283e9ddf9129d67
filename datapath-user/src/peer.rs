//! Peers: the other nodes and their pods.

use std::net::IpAddr;

use datapath_kern::abi::endpoint::identity;
use datapath_kern::abi::ipcache::{IpEntry, kind};
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
    /// Its other addresses.
    #[serde(default)]
    pub node_addresses: Vec<IpAddr>,
    /// The prefixes of its pods; its gateway addresses lie in there.
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

    /// What the ipcache says of this peer.
    pub(crate) fn prefixes(&self, index: u16) -> Vec<(IpNet, IpEntry)> {
        let entry = |identity, kind| IpEntry {
            identity,
            index,
            kind,
            flags: 0,
        };
        let ranges = self
            .pod_cidrs
            .iter()
            .map(|&cidr| (cidr, entry(identity::UNMANAGED, kind::PEER_POD)));
        let pods = self.pods.iter().map(|pod| {
            (
                IpNet::from(pod.address),
                entry(pod.identity, kind::PEER_POD),
            )
        });
        let node = std::iter::once(&self.address)
            .chain(&self.node_addresses)
            .map(|&address| {
                (
                    IpNet::from(address),
                    entry(identity::REMOTE_NODE, kind::PEER_NODE),
                )
            });
        ranges.chain(pods).chain(node).collect()
    }
}
