//! Where Kubernetes and Cilium differ, and what a node chooses.

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// How policy is understood on a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct PolicySettings {
    /// Which pods need rules.
    pub mode: PolicyMode,
    /// What prefixes in policies stand for.
    pub cidr_match: CidrMatch,
    /// Whether a pod that a `NetworkPolicy` isolates for egress may reach its own node.
    pub own_node: OwnNode,
    /// Whether the node may reach its own pods.
    pub host_to_local: HostToLocal,
}

/// Which pods need rules. The node itself needs them where a document selects nodes, in every mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyMode {
    /// Those that a document isolates, in the directions in which it does.
    #[default]
    Default,
    /// All, in both directions.
    Always,
    /// None: everything is let through, deny rules and refused documents notwithstanding.
    Never,
}

/// What prefixes in policies stand for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CidrMatch {
    /// Addresses that are no pod's and no node's.
    #[default]
    External,
    /// All addresses. [`PolicySettings::check`] refuses it.
    Pods,
}

/// Whether a pod may reach its own node though a `NetworkPolicy` isolates it for egress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OwnNode {
    /// It may, unless a rule denies it. Documents of Cilium's kinds alone do not give it this.
    #[default]
    Allow,
    /// Only if a rule allows it.
    Policy,
}

/// Whether the node may reach its own pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostToLocal {
    /// It may, unless a rule denies it.
    #[default]
    Allow,
    /// Only if a rule allows it.
    Policy,
}

impl PolicySettings {
    /// Checks that this version can do what they say.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for [`CidrMatch::Pods`]: the kernel judges by identity, and the addresses
    /// of one identity may lie inside and outside one prefix.
    pub fn check(&self) -> Result<(), Error> {
        match self.cidr_match {
            CidrMatch::External => Ok(()),
            CidrMatch::Pods => Err(Error::Setting {
                field: "policy.cidr-match",
                value: "pods".into(),
                rule: "must be \"external\": pods and nodes are judged by identity, not by \
                       address; select them by labels or entities instead of a prefix",
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_strict_and_all_have_defaults() {
        let read = |text: &str| toml::from_str::<PolicySettings>(text);
        assert_eq!(read("").unwrap(), PolicySettings::default());
        let settings = read("mode = \"always\"\nown-node = \"policy\"").unwrap();
        assert_eq!(settings.mode, PolicyMode::Always);
        assert_eq!(settings.own_node, OwnNode::Policy);
        assert!(read("own_node = \"policy\"").is_err());
        settings.check().unwrap();
        let pods = read("cidr-match = \"pods\"").unwrap().check().unwrap_err();
        assert!(pods.to_string().contains("external"), "{pods}");
    }
}
