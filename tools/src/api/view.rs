//! What the agent says of itself, beside what `datapath-user` says of the datapath.

use std::path::PathBuf;

use datapath_ipam::{Lease, PoolUsage, Reservation};
use serde::{Deserialize, Serialize};

use super::PolicySources;

/// What the agent is, and the datapath that it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The agent.
    pub agent: Agent,
    /// The datapath.
    pub datapath: datapath_user::Status,
}

/// A running agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agent {
    /// Version of this package.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// How long it runs, in seconds.
    pub uptime_s: u64,
    /// The file that its address leases are in.
    pub state: PathBuf,
    /// Where its policy comes from.
    #[serde(default)]
    pub policy: PolicySources,
}

/// The addresses of a node's pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// The figures of every prefix.
    pub usage: Vec<PoolUsage>,
    /// What pods hold.
    pub leases: Vec<Lease>,
    /// What is set aside for the node.
    pub reservations: Vec<Reservation>,
}
