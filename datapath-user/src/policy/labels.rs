//! Labels: what an identity is made of, and what policies select by.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Where labels come from: the part before the colon.
pub mod source {
    /// Kubernetes: pods, namespaces, service accounts, nodes.
    pub const K8S: &str = "k8s";
    /// The datapath's own names for what is no pod.
    pub const RESERVED: &str = "reserved";
    /// A prefix that a policy names.
    pub const CIDR: &str = "cidr";
    /// A named port of a pod's containers.
    pub const PORT: &str = "port";
    /// In selectors: any of them.
    pub const ANY: &str = "any";
}

/// One label: `source:key=value`, or `source:key` where the value is empty.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label {
    /// One of [`source`], or another.
    pub source: String,
    /// The key.
    pub key: String,
    /// The value, which may be empty.
    pub value: String,
}

/// A set of labels, one value to a source and key, in order. Pods of equal labels are one identity.
///
/// Serialises as a list of strings, as Cilium writes labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Labels(BTreeMap<(String, String), String>);

impl Labels {
    /// Key of a pod's namespace.
    pub const NAMESPACE: &str = "io.kubernetes.pod.namespace";
    /// What the keys of a namespace's own labels begin with.
    pub const NAMESPACE_LABELS: &str = "io.cilium.k8s.namespace.labels.";
    /// Key of a pod's service account.
    pub const SERVICE_ACCOUNT: &str = "io.cilium.k8s.policy.serviceaccount";

    /// Labels of what is no pod: `reserved:<name>`.
    #[must_use]
    pub fn reserved(name: &str) -> Self {
        Self::default().with(source::RESERVED, name, "")
    }

    /// Labels of a prefix: `cidr:<prefix>`, and those of the world in its family.
    #[must_use]
    pub fn cidr(prefix: IpNet) -> Self {
        let world = if prefix.addr().is_ipv4() {
            "world-ipv4"
        } else {
            "world-ipv6"
        };
        Self::reserved(world).with(source::CIDR, &prefix.to_string(), "")
    }

    /// The same, and one more; it takes the place of one with the same source and key.
    #[must_use]
    pub fn with(mut self, source: &str, key: &str, value: &str) -> Self {
        self.0.insert((source.into(), key.into()), value.into());
        self
    }

    /// Value under a source and key; any source for [`source::ANY`], in their order.
    #[must_use]
    pub fn get(&self, source: &str, key: &str) -> Option<&str> {
        if source == source::ANY {
            return self
                .0
                .iter()
                .find(|((_, other), _)| other == key)
                .map(|(_, value)| value.as_str());
        }
        self.0
            .get(&(source.to_owned(), key.to_owned()))
            .map(String::as_str)
    }

    /// The namespace, of a pod's labels.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        self.get(source::K8S, Self::NAMESPACE)
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = Label> + '_ {
        self.0.iter().map(|((source, key), value)| Label {
            source: source.clone(),
            key: key.clone(),
            value: value.clone(),
        })
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<Label> for Labels {
    fn from_iter<I: IntoIterator<Item = Label>>(labels: I) -> Self {
        let pairs = labels.into_iter().map(|label| {
            let Label { source, key, value } = label;
            ((source, key), value)
        });
        Self(pairs.collect())
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.source, self.key)?;
        if self.value.is_empty() {
            Ok(())
        } else {
            write!(f, "={}", self.value)
        }
    }
}

impl FromStr for Label {
    type Err = Error;

    /// Reads `source:key=value`; without a source it is one of Kubernetes.
    fn from_str(text: &str) -> Result<Self, Error> {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        let (source, key) = name.split_once(':').unwrap_or((source::K8S, name));
        if source.is_empty() || key.is_empty() {
            return Err(Error::Invalid {
                what: "label",
                value: text.into(),
                rule: "must be written as key=value or source:key=value",
            });
        }
        Ok(Self {
            source: source.into(),
            key: key.into(),
            value: value.into(),
        })
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, label) in self.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{label}")?;
        }
        Ok(())
    }
}

impl TryFrom<Vec<String>> for Labels {
    type Error = Error;

    fn try_from(texts: Vec<String>) -> Result<Self, Error> {
        texts.iter().map(|text| text.parse()).collect()
    }
}

impl From<Labels> for Vec<String> {
    fn from(labels: Labels) -> Self {
        labels.iter().map(|label| label.to_string()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read_as_they_are_written() {
        let texts = [
            "cidr:fd00::/8",
            "k8s:app=web",
            "k8s:empty",
            "reserved:world-ipv6",
        ];
        let labels = Labels::try_from(texts.map(String::from).to_vec()).unwrap();
        assert_eq!(Vec::<String>::from(labels.clone()), texts);
        assert_eq!(labels.get(source::ANY, "app"), Some("web"));
        assert_eq!(labels.get(source::K8S, "empty"), Some(""));
        assert_eq!(labels.get(source::CIDR, "app"), None);
        assert_eq!(
            "app=web".parse::<Label>().unwrap().to_string(),
            "k8s:app=web"
        );
        let said = "=web".parse::<Label>().unwrap_err().to_string();
        assert!(said.contains("=web"), "{said}");
    }
}
