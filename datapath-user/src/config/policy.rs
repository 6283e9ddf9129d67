//! How policy is enforced.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::pod::check_labels;
use crate::policy::{CidrMatch, HostToLocal, OwnNode, PolicyMode, PolicySettings};

/// How policy is enforced on a node.
///
/// ```toml
/// [policy]
/// mode = "default"            # or "always", "never"
/// cidr_match = "external"     # or "pods"
/// own_node = "allow"          # or "policy"
/// host_to_local = "allow"     # or "policy"
/// start = "strict"            # or "standard"
/// revoke = "cut"              # or "drain"
/// identities = "local"        # or "cluster"
/// audit = false
/// host_firewall = false
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyConfig {
    /// Who needs rules: those that a document selects, everyone, or nobody.
    pub mode: PolicyMode,
    /// What a prefix in a document stands for.
    pub cidr_match: CidrMatch,
    /// Whether a pod may always begin flows with its own node.
    pub own_node: OwnNode,
    /// Whether a node may always begin flows with its own pods.
    pub host_to_local: HostToLocal,
    /// Whether what would be denied is let through, and told, for all endpoints.
    pub audit: bool,
    /// Whether the node itself is judged by the documents that select nodes.
    pub host_firewall: bool,
    /// What a new pod may do before its rules are in force.
    pub start: PodStart,
    /// What becomes of established flows that the rules do not allow any more.
    pub revoke: Revoke,
    /// Labels of this node, for rules and for documents that select nodes.
    pub node_labels: BTreeMap<String, String>,
    /// Where the numbers of identities come from that are not given.
    pub identities: IdentitySource,
    /// File in which [`IdentitySource::Local`] keeps the numbers that it gave, so that labels have
    /// the same number again whenever they come back. Without one, numbers are kept as long as a
    /// pod of this node has them, also over restarts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identities_file: Option<PathBuf>,
}

/// What a new pod may do before its rules are in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PodStart {
    /// Nothing: its rules are there before its interface is up. While the rules cannot be known,
    /// after a restart and before the first
    /// [`Datapath::set_policies`](crate::Datapath::set_policies), it may begin nothing and nothing
    /// may be begun with it.
    #[default]
    Strict,
    /// Everything. Its rules follow as soon as it is up; flows that began before are judged again
    /// then. [`EndpointPolicy::window_us`](crate::EndpointPolicy::window_us) says how long that took:
    /// of 20 pods on a busy machine with two cores 1.6 ms at least, 1.8 ms in the median and 10.3 ms
    /// at most (`conformance/tests/bypass/start.rs`).
    Standard,
}

/// What becomes of established flows that the rules do not allow any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Revoke {
    /// Their next packet is dropped, in either direction.
    #[default]
    Cut,
    /// They go on until they end, as long as both ends are who they were: those of a pod that has
    /// other labels, or whose address another pod has, are cut.
    Drain,
}

/// Where the numbers of identities come from that are not given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IdentitySource {
    /// This node counts. Other nodes know nothing of these numbers: pods of other nodes need theirs
    /// given.
    #[default]
    Local,
    /// They follow from the labels: the same on all nodes, without a word between them.
    Cluster,
}

impl PolicyConfig {
    /// What of it decides how documents are compiled.
    #[must_use]
    pub fn settings(&self) -> PolicySettings {
        PolicySettings {
            mode: self.mode,
            cidr_match: self.cidr_match,
            own_node: self.own_node,
            host_to_local: self.host_to_local,
        }
    }

    /// Checks what can be checked without a kernel.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`].
    pub(super) fn validate(&self) -> Result<(), Error> {
        self.settings().check()?;
        check_labels(&self.node_labels)?;
        let wrong = |path: &PathBuf, rule| {
            let value = path.display().to_string();
            let field = "policy.identities_file";
            Err(Error::Setting { field, value, rule })
        };
        match &self.identities_file {
            Some(path) if !path.is_absolute() => wrong(path, "must be an absolute path"),
            Some(path) if self.identities == IdentitySource::Cluster => wrong(
                path,
                "is for policy.identities = \"local\" only: leave it out",
            ),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_has_a_default_and_nothing_else_is_taken() {
        let read = toml::from_str::<PolicyConfig>;
        assert_eq!(read("").unwrap(), PolicyConfig::default());
        let text = "mode = \"always\"\nstart = \"standard\"\nrevoke = \"drain\"\n\
                    identities = \"cluster\"\naudit = true\n";
        let config = read(text).unwrap();
        assert_eq!(config.settings().mode, PolicyMode::Always);
        assert_eq!(config.start, PodStart::Standard);
        assert_eq!(config.revoke, Revoke::Drain);
        for wrong in ["mode = \"sometimes\"", "startup = \"strict\""] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_file_of_identities_has_a_place() {
        let file = |path: &str, identities| PolicyConfig {
            identities_file: Some(path.into()),
            identities,
            ..PolicyConfig::default()
        };
        assert!(file("/x/y", IdentitySource::Local).validate().is_ok());
        for bad in [
            file("y", IdentitySource::Local),
            file("/x/y", IdentitySource::Cluster),
        ] {
            let said = bad.validate().unwrap_err().to_string();
            assert!(said.contains("identities_file"), "{said}");
        }
    }
}
