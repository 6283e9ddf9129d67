//! What a datapath says of itself.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::adoption::Adoption;
use crate::flows::SweepView;
use crate::masquerade::NonMasqueradeView;
use crate::tallies::Tallies;
use crate::uplink::UplinkView;

/// A datapath at a glance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The kernel, as `uname -r` says.
    pub kernel: String,
    /// Version of the layout shared with the kernel's side.
    pub abi_version: u32,
    /// How pods of other nodes are reached: `direct` or `native`.
    pub tunnel: String,
    /// Why that way.
    pub tunnel_why: String,
    /// Who cuts what sockets send by `UDP_SEGMENT` into datagrams: the senders' `stack`, or the
    /// first `interface` that has to.
    #[serde(default)]
    pub udp_segmentation: String,
    /// Why that one.
    #[serde(default)]
    pub udp_segmentation_why: String,
    /// What the interfaces of new pods are ends of: a pair of kind `veth` or `netkit`.
    #[serde(default)]
    pub pod_device: String,
    /// Why that kind.
    #[serde(default)]
    pub pod_device_why: String,
    /// The uplinks.
    pub uplinks: Vec<UplinkView>,
    /// The prefixes outside that pods reach under their own addresses.
    #[serde(default)]
    pub non_masquerade: NonMasqueradeView,
    /// The pods' gateway addresses.
    pub gateways: Vec<IpAddr>,
    /// The gateway's Ethernet address.
    pub gateway_mac: String,
    /// The prefixes of this node's pods.
    pub pod_cidrs: Vec<IpNet>,
    /// MTU of the pods' routes.
    pub pod_mtu_bytes: u32,
    /// Established flows.
    pub flows: TableUse,
    /// Flows not proven yet.
    pub pending: TableUse,
    /// How flows whose time is up were removed.
    #[serde(default)]
    pub sweeping: SweepView,
    /// Policy.
    #[serde(default)]
    pub policy: PolicyStatus,
    /// What has happened to flows and their entries, by reason.
    #[serde(default)]
    pub tallies: Tallies,
    /// Local endpoints.
    pub endpoints: usize,
    /// Peers.
    pub peers: usize,
    /// How often the network was looked at again.
    #[serde(default)]
    pub refreshes: u64,
    /// How many changes that has found.
    #[serde(default)]
    pub changes: u64,
    /// Where maps and links are pinned.
    pub bpffs: PathBuf,
    /// What was taken over from an earlier process; none where this one built it.
    #[serde(default)]
    pub adopted: Option<Adoption>,
}

/// How full a map is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapUsage {
    /// The map.
    pub map: String,
    /// Entries in it.
    pub used: u64,
    /// Room for.
    pub max: u64,
}

impl MapUsage {
    /// A map with so many entries.
    pub(crate) fn new(map: &str, used: impl TryInto<u64>, max: u32) -> Self {
        Self {
            map: map.to_owned(),
            used: used.try_into().unwrap_or(u64::MAX),
            max: max.into(),
        }
    }

    /// How full it is: 0 is empty, 1 is full.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "no map has 2^52 entries")]
    pub fn pressure(&self) -> f64 {
        self.used as f64 / self.max.max(1) as f64
    }
}

/// How full a table is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableUse {
    /// Entries; two per connection.
    pub used: u32,
    /// Room for.
    pub max: u32,
    /// Most entries that were ever seen in it since the datapath was opened: at the end of a sweep,
    /// or when it was asked.
    #[serde(default)]
    pub high_water: u32,
    /// Memory that it takes, whether it is full or not.
    #[serde(default)]
    pub memory_bytes: u64,
    /// Of those used, entries that are still in a table of another size: they move a few at a time.
    #[serde(default)]
    pub moving: u32,
}

/// Policy at a glance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyStatus {
    /// Whether the documents are known. They are not after a restart, until they were set: until
    /// then what an earlier process enforced is.
    pub known: bool,
    /// Documents in force.
    pub documents: usize,
    /// Documents that were refused.
    pub refused: usize,
    /// Rule sets in the kernel; endpoints of equal rules share one.
    pub rule_sets: usize,
    /// Classes in the kernel: different lists of ports.
    pub classes: usize,
    /// Entries in the kernel that lead from peers to classes, also those that are about to go.
    pub peer_entries: u64,
    /// Entries of classes, likewise.
    pub port_entries: u64,
    /// Changes of documents so far.
    pub updates: u64,
    /// How long the last one took until all endpoints were judged by it, microseconds.
    pub last_update_us: u64,
    /// The longest one.
    pub max_update_us: u64,
}
