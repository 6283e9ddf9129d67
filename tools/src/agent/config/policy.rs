//! Policy in the agent's configuration.

use std::path::PathBuf;

use datapath_user::PolicyConfig;
use serde::{Deserialize, Serialize};

/// Policy in the agent's configuration.
///
/// Documents that come by the API are kept in `policies.json` beside the file of the leases. A file
/// of the directory owns the names of its documents: what is applied under such a name is refused.
///
/// The [cluster file](Self::cluster) is in TOML, and the same on all nodes:
///
/// ```toml
/// [[nodes]]
/// name = "n2"
/// address = "192.0.2.12"                  # its end of the tunnel
/// node_addresses = ["10.244.2.1"]         # its others, such as its gateways
/// pod_cidrs = ["10.244.2.0/24", "fd00:10:244:2::/64"]
/// labels = { zone = "a" }
///
/// [[nodes.pods]]
/// addresses = ["10.244.2.5", "fd00:10:244:2::5"]
/// namespace = "shop"
/// name = "db-0"
/// labels = { app = "db" }
/// namespace_labels = { team = "a" }
/// service_account = "db"
/// ports = [{ name = "sql", port = 5432, protocol = "TCP" }]
/// ```
///
/// The node that reads it knows itself by its pod prefixes or its address, and takes its own labels
/// from it when it starts; its pods are those that were connected there, whatever the file says of
/// them. Nodes that the file named once and does not name any more are forgotten; without a file
/// they stay, until `dpctl peers remove` removes them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicySection {
    /// Directory of policy documents. It is followed: a file that is written, replaced, added or
    /// removed counts at once. One that cannot be used is told with line and column; of its
    /// documents the last good ones stay in force, and where there is none, whom it is for is closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
    /// The cluster file: the other nodes with their pods. It is followed; what cannot be used is
    /// told, and what it said before stays in force. Numbers of identities follow from the labels
    /// then, the same on all nodes: `identities` is `cluster`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<PathBuf>,
    /// How policy is enforced.
    #[serde(flatten)]
    pub settings: PolicyConfig,
}
