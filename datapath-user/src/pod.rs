//! What a pod is called and labelled, here and on other nodes: its labels as policies see them.

use std::collections::BTreeMap;

use datapath_kern::abi::endpoint::identity;

use crate::error::Error;
use crate::policy::{Labels, NamedPort, source};

/// Label of a namespace that Kubernetes sets itself: the namespace's name.
const METADATA_NAME: &str = "kubernetes.io/metadata.name";

/// What the keys begin with that are made of a pod's namespace, service account and cluster.
const DERIVED: &str = "io.cilium.k8s.";

/// What a specification says of a pod, as far as policies go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pod<'a> {
    pub(crate) namespace: Option<&'a str>,
    pub(crate) name: Option<&'a str>,
    pub(crate) labels: &'a BTreeMap<String, String>,
    pub(crate) namespace_labels: &'a BTreeMap<String, String>,
    pub(crate) service_account: Option<&'a str>,
    pub(crate) ports: &'a [NamedPort],
}

impl Pod<'_> {
    /// Its labels: its own, those of its namespace, its service account, and its named ports.
    ///
    /// A label of its own under a key that is derived ([`is_derived`]) is left out: whoever may
    /// label a pod may not say by it which namespace or service account it belongs to. The pod is
    /// what it would be without that label, as with Cilium (`SanitizePodLabels` in
    /// `pkg/k8s/utils`). A namespace always has its own name as `kubernetes.io/metadata.name`,
    /// whatever its labels say.
    ///
    /// A named port is `port:<name>=<port>/<protocol>`, several of one name as
    /// `80/TCP,80/UDP`: pods that give a name to different ports are told apart by it.
    pub(crate) fn labels(&self) -> Labels {
        let mut labels = Labels::default();
        let own = self.labels.iter();
        for (key, value) in own.filter(|(key, _)| !is_derived(key)) {
            labels = labels.with(source::K8S, key, value);
        }
        if let Some(namespace) = self.namespace {
            let of_namespace = |key: &str| format!("{}{key}", Labels::NAMESPACE_LABELS);
            for (key, value) in self.namespace_labels {
                labels = labels.with(source::K8S, &of_namespace(key), value);
            }
            labels = labels
                .with(source::K8S, &of_namespace(METADATA_NAME), namespace)
                .with(source::K8S, Labels::NAMESPACE, namespace);
        }
        if let Some(account) = self.service_account {
            labels = labels.with(source::K8S, Labels::SERVICE_ACCOUNT, account);
        }
        let mut ports: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for port in self.ports {
            let number = format!("{}/{}", port.port, port.protocol);
            ports.entry(&port.name).or_default().push(number);
        }
        for (name, mut numbers) in ports {
            numbers.sort_unstable();
            numbers.dedup();
            labels = labels.with(source::PORT, name, &numbers.join(","));
        }
        labels
    }

    /// Checks that labels can be made of it.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for the first thing that cannot be used.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let names = [
            ("namespace", self.namespace),
            ("pod name", self.name),
            ("service account", self.service_account),
        ];
        for (what, name) in names {
            if let Some(name) = name {
                check_name(what, name)?;
            }
        }
        if self.namespace.is_none() && !self.namespace_labels.is_empty() {
            return Err(Error::Invalid {
                what: "namespace_labels",
                value: format!("{:?}", self.namespace_labels),
                rule: "are of a namespace: say which one with `namespace`",
            });
        }
        check_labels(self.labels)?;
        check_labels(self.namespace_labels)?;
        for port in self.ports {
            check_name("port name", &port.name)?;
            if port.port == 0 {
                return Err(Error::Invalid {
                    what: "port",
                    value: format!("{} = 0", port.name),
                    rule: "must be from 1 to 65535",
                });
            }
        }
        Ok(())
    }
}

/// Whether a key is one that says where a pod belongs, and not what it calls itself.
fn is_derived(key: &str) -> bool {
    key == Labels::NAMESPACE || key.starts_with(DERIVED)
}

/// Checks that labels have keys, and nothing in them that would be read as something else.
///
/// # Errors
///
/// [`Error::Invalid`].
pub(crate) fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), Error> {
    // A prefix of 253 bytes, a slash, and 63 more; values of 63
    // (k8s.io/apimachinery/pkg/util/validation, IsQualifiedName and IsValidLabelValue).
    const LONGEST: (usize, usize) = (317, 63);
    let strange = |c: char| c.is_control() || c.is_whitespace() || c == ',';
    for (key, value) in labels {
        let bad_key = key.is_empty()
            || key.len() > LONGEST.0
            || key.chars().any(|c| strange(c) || c == '=' || c == ':');
        if bad_key || value.len() > LONGEST.1 || value.chars().any(strange) {
            return Err(Error::Invalid {
                what: "label",
                value: format!("{key}={value}"),
                rule: "needs a key of 1 to 317 bytes without `=` and `:`, and a value of at most \
                       63, both without blanks and commas",
            });
        }
    }
    Ok(())
}

fn check_name(what: &'static str, name: &str) -> Result<(), Error> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    if !name.is_empty() && name.len() <= 253 && name.chars().all(fits) {
        return Ok(());
    }
    Err(Error::Invalid {
        what,
        value: name.to_owned(),
        rule: "must be 1 to 253 lower-case letters, digits, `-` or `.`",
    })
}

/// Checks that an identity may be a pod's.
///
/// # Errors
///
/// [`Error::Invalid`].
pub(crate) fn check_identity(number: u32) -> Result<(), Error> {
    let allocated = (identity::FIRST_ALLOCATED..=identity::MAX).contains(&number);
    if allocated || number == identity::UNMANAGED {
        return Ok(());
    }
    let rule = "must be 3 (unmanaged) or from 256 to 16777215";
    Err(Error::Invalid {
        what: "identity",
        value: number.to_string(),
        rule,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::PortProtocol;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let pairs = pairs.iter();
        pairs
            .map(|&(key, value)| (key.into(), value.into()))
            .collect()
    }

    fn port(name: &str, port: u16, protocol: PortProtocol) -> NamedPort {
        NamedPort {
            name: name.into(),
            port,
            protocol,
        }
    }

    #[test]
    fn labels_are_what_policies_select_by() {
        let (labels, of_namespace) = (map(&[("app", "web")]), map(&[("team", "a")]));
        let ports = [
            port("dns", 53, PortProtocol::Udp),
            port("dns", 53, PortProtocol::Tcp),
            port("http", 8080, PortProtocol::Tcp),
        ];
        let pod = Pod {
            namespace: Some("shop"),
            name: Some("web-0"),
            labels: &labels,
            namespace_labels: &of_namespace,
            service_account: Some("front"),
            ports: &ports,
        };
        pod.check().unwrap();
        assert_eq!(
            pod.labels().to_string(),
            "k8s:app=web,\
             k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop,\
             k8s:io.cilium.k8s.namespace.labels.team=a,\
             k8s:io.cilium.k8s.policy.serviceaccount=front,\
             k8s:io.kubernetes.pod.namespace=shop,\
             port:dns=53/TCP,53/UDP,port:http=8080/TCP"
        );
    }

    fn pod<'a>(
        labels: &'a BTreeMap<String, String>,
        namespace_labels: &'a BTreeMap<String, String>,
    ) -> Pod<'a> {
        Pod {
            namespace: None,
            name: None,
            labels,
            namespace_labels,
            service_account: None,
            ports: &[],
        }
    }

    #[test]
    fn no_label_of_its_own_says_where_a_pod_belongs() {
        let claims = map(&[
            ("app", "web"),
            (Labels::NAMESPACE, "trusted"),
            (Labels::SERVICE_ACCOUNT, "admin"),
            ("io.cilium.k8s.policy.cluster", "other"),
            ("io.cilium.k8s.namespace.labels.team", "trusted"),
            (METADATA_NAME, "trusted"),
        ]);
        let of_namespace = map(&[(METADATA_NAME, "trusted")]);
        let nowhere = pod(&claims, &of_namespace);
        let somewhere = Pod {
            namespace: Some("evil"),
            ..nowhere
        };
        somewhere.check().unwrap();
        // The last one is an ordinary label of the pod, which says nothing of its namespace.
        let own = "k8s:app=web";
        let of_pod = "k8s:kubernetes.io/metadata.name=trusted";
        assert_eq!(
            somewhere.labels().to_string(),
            format!(
                "{own},k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=evil,\
                 k8s:io.kubernetes.pod.namespace=evil,{of_pod}"
            )
        );
        assert_eq!(nowhere.labels().to_string(), format!("{own},{of_pod}"));
    }

    #[test]
    fn what_cannot_be_a_label_is_named() {
        let none = BTreeMap::new();
        for (key, value) in [("", "x"), ("a=b", "x"), ("k8s:app", "x"), ("app", "a b")] {
            let labels = map(&[(key, value)]);
            let said = pod(&labels, &none).check().unwrap_err().to_string();
            assert!(said.contains(value), "{said}");
        }
        let odd = Pod {
            namespace: Some("No"),
            ..pod(&none, &none)
        };
        assert!(odd.check().unwrap_err().to_string().contains("No"));
        let of_none = map(&[("team", "a")]);
        let odd = pod(&none, &of_none);
        assert!(odd.check().unwrap_err().to_string().contains("namespace"));
    }
}
