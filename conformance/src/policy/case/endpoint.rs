//! What endpoints of a case are called.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// An endpoint of a case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum EndpointId {
    /// `pod:NAMESPACE/NAME`.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// `ext:NAME`: a host outside.
    External(String),
    /// `node:NAME`.
    Node(String),
    /// `svc:NAMESPACE/NAME`.
    Service {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

impl EndpointId {
    /// Whether it is a pod.
    #[must_use]
    pub fn is_pod(&self) -> bool {
        matches!(self, Self::Pod { .. })
    }

    /// Whether it is a service, which never sends.
    #[must_use]
    pub fn is_service(&self) -> bool {
        matches!(self, Self::Service { .. })
    }
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod { namespace, name } => write!(f, "pod:{namespace}/{name}"),
            Self::External(name) => write!(f, "ext:{name}"),
            Self::Node(name) => write!(f, "node:{name}"),
            Self::Service { namespace, name } => write!(f, "svc:{namespace}/{name}"),
        }
    }
}

impl FromStr for EndpointId {
    type Err = Error;

    /// Reads an id; `NAMESPACE/NAME` alone is a pod.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::Invalid {
            what: "endpoint",
            value: text.to_owned(),
            rule: "write pod:NAMESPACE/NAME, ext:NAME, node:NAME or svc:NAMESPACE/NAME",
        };
        let two = |rest: &str| match rest.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
                Ok((namespace.to_owned(), name.to_owned()))
            }
            _ => Err(wrong()),
        };
        let (kind, rest) = text.split_once(':').unwrap_or(("pod", text));
        match kind {
            "pod" => two(rest).map(|(namespace, name)| Self::Pod { namespace, name }),
            "svc" => two(rest).map(|(namespace, name)| Self::Service { namespace, name }),
            "ext" if !rest.is_empty() => Ok(Self::External(rest.to_owned())),
            "node" if !rest.is_empty() => Ok(Self::Node(rest.to_owned())),
            _ => Err(wrong()),
        }
    }
}

impl TryFrom<String> for EndpointId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<EndpointId> for String {
    fn from(id: EndpointId) -> Self {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_as_they_are_written() {
        for text in ["pod:x/a", "ext:far", "node:n1", "svc:x/web"] {
            assert_eq!(text.parse::<EndpointId>().unwrap().to_string(), text);
        }
        assert_eq!("x/a".parse::<EndpointId>().unwrap().to_string(), "pod:x/a");
        for wrong in ["", "a", "pod:a", "svc:x", "ext:", "host:n1", "/a"] {
            let said = wrong.parse::<EndpointId>().unwrap_err().to_string();
            assert!(said.contains("ext:NAME"), "{said}");
        }
    }
}
