//! The cluster file.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::Range,
    path::Path,
};

use datapath_user::policy::NamedPort;
use ipnet::IpNet;
use serde::Deserialize;
use toml::Spanned;

use crate::{
    api::{PeerSpec, RemotePod},
    error::{Error, Result},
};

/// What a cluster consists of, see [`PolicySection`](crate::agent::PolicySection).
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClusterFile {
    #[serde(default)]
    nodes: Vec<Spanned<ClusterNode>>,
}

/// A node of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClusterNode {
    name: String,
    address: IpAddr,
    #[serde(default)]
    node_addresses: Vec<IpAddr>,
    #[serde(default)]
    pod_cidrs: Vec<IpNet>,
    uplink: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    pods: Vec<Spanned<ClusterPod>>,
}

/// A pod of that.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClusterPod {
    addresses: Vec<IpAddr>,
    identity: Option<u32>,
    namespace: Option<String>,
    name: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    namespace_labels: BTreeMap<String, String>,
    service_account: Option<String>,
    #[serde(default)]
    ports: Vec<NamedPort>,
}

/// Reads the text of a cluster file: its nodes, with their pods. Those of the agent's configuration,
/// `configured`, must not be among them.
///
/// # Errors
///
/// [`Error::Cluster`] with the line, for the first thing that cannot be used.
pub(super) fn read(
    path: &Path,
    text: &str,
    configured: &BTreeSet<String>,
) -> Result<Vec<PeerSpec>> {
    let refuse = |at: Option<Range<usize>>, problem: String| {
        let before = text.get(..at.map_or(0, |at| at.start)).unwrap_or_default();
        Error::Cluster {
            path: path.to_owned(),
            line: before.matches('\n').count() + 1,
            problem,
        }
    };
    let file: ClusterFile =
        toml::from_str(text).map_err(|error| refuse(error.span(), error.message().to_owned()))?;
    let mut names = BTreeSet::new();
    let mut taken: BTreeMap<IpAddr, String> = BTreeMap::new();
    let mut prefixes: Vec<(IpNet, String)> = Vec::new();
    let mut specs = Vec::new();
    for node in file.nodes {
        let at = node.span();
        let node = node.into_inner();
        let name = node.name.clone();
        if !names.insert(name.clone()) {
            let problem = format!("there are two nodes {name:?}: name each once");
            return Err(refuse(Some(at), problem));
        }
        if configured.contains(&name) {
            let problem = format!(
                "node {name} is among the `peers` of the agent's configuration: name it in one of the \
                 two files only"
            );
            return Err(refuse(Some(at), problem));
        }
        for cidr in &node.pod_cidrs {
            let clash = prefixes.iter().find(|(other, _)| overlap(*cidr, *other));
            if let Some((other, owner)) = clash {
                let problem = format!(
                    "node {name}: the pod prefix {cidr} overlaps {other} of node {owner}: give each \
                     node its own"
                );
                return Err(refuse(Some(at), problem));
            }
        }
        prefixes.extend(node.pod_cidrs.iter().map(|cidr| (*cidr, name.clone())));
        let mut take = |address: IpAddr, owner: String, at: &Range<usize>| match taken
            .insert(address, owner.clone())
        {
            Some(other) => Err(refuse(
                Some(at.clone()),
                format!("{owner}: the address {address} is that of {other} already"),
            )),
            None => Ok(()),
        };
        for address in std::iter::once(&node.address).chain(&node.node_addresses) {
            take(*address, format!("node {name}"), &at)?;
        }
        let spec = node.spec();
        spec.validate()
            .map_err(|error| refuse(Some(at), format!("node {name}: {error}")))?;
        let mut pods = Vec::new();
        for pod in node.pods {
            let at = pod.span();
            let pod = pod.into_inner();
            let called = format!("{} of node {name}", pod.called());
            if pod.addresses.is_empty() {
                let problem = format!("{called} has no address: `addresses` needs one");
                return Err(refuse(Some(at), problem));
            }
            for address in &pod.addresses {
                take(*address, called.clone(), &at)?;
            }
            let alone = PeerSpec {
                pods: pod.remote(),
                ..spec.clone()
            };
            alone
                .validate()
                .map_err(|error| refuse(Some(at), format!("{called}: {error}")))?;
            pods.extend(alone.pods);
        }
        specs.push(PeerSpec { pods, ..spec });
    }
    Ok(specs)
}

impl ClusterNode {
    /// The peer that it is, without its pods.
    fn spec(&self) -> PeerSpec {
        PeerSpec {
            name: self.name.clone(),
            address: self.address,
            node_addresses: self.node_addresses.clone(),
            pod_cidrs: self.pod_cidrs.clone(),
            pods: Vec::new(),
            uplink: self.uplink.clone(),
            labels: self.labels.clone(),
        }
    }
}

impl ClusterPod {
    fn called(&self) -> String {
        match (&self.namespace, &self.name) {
            (Some(namespace), Some(name)) => format!("pod {namespace}/{name}"),
            (None, Some(name)) => format!("pod {name}"),
            _ => "a pod".to_owned(),
        }
    }

    /// The pod, once for each of its addresses.
    fn remote(&self) -> Vec<RemotePod> {
        let of = |address: &IpAddr| RemotePod {
            address: *address,
            identity: self.identity,
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            labels: self.labels.clone(),
            namespace_labels: self.namespace_labels.clone(),
            service_account: self.service_account.clone(),
            ports: self.ports.clone(),
        };
        self.addresses.iter().map(of).collect()
    }
}

/// Whether two prefixes have an address in common.
pub(super) fn overlap(one: IpNet, other: IpNet) -> bool {
    one.contains(&other) || other.contains(&one)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[[nodes]]
name = "n1"
address = "192.0.2.11"
pod_cidrs = ["10.244.1.0/24"]

[[nodes]]
name = "n2"
address = "192.0.2.12"
node_addresses = ["10.244.2.1"]
pod_cidrs = ["10.244.2.0/24", "fd00:10:244:2::/64"]
labels = { zone = "a" }

[[nodes.pods]]
addresses = ["10.244.2.5", "fd00:10:244:2::5"]
namespace = "shop"
name = "db-0"
labels = { app = "db" }
ports = [{ name = "sql", port = 5432, protocol = "TCP" }]
"#;

    fn read_here(text: &str) -> Result<Vec<PeerSpec>> {
        read(
            Path::new("/etc/cluster.toml"),
            text,
            &["n9".to_owned()].into(),
        )
    }

    #[test]
    fn nodes_are_peers_and_a_pod_is_one_for_each_address() {
        let specs = read_here(GOOD).unwrap();
        assert_eq!(specs.len(), 2);
        assert!(specs[0].pods.is_empty());
        assert_eq!(specs[1].labels["zone"], "a");
        let [v4, v6] = &specs[1].pods[..] else {
            panic!("{:?}", specs[1].pods);
        };
        assert!(v4.address.is_ipv4() && v6.address.is_ipv6());
        assert_eq!(v4.identity_labels(), v6.identity_labels());
        assert_eq!(v4.identity_labels().namespace(), Some("shop"));
        assert!(read_here("").unwrap().is_empty());
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
        for (right, wrong, line, why) in [
            (
                "pod_cidrs = [\"10.244.1",
                "pod_cidr = [\"10.244.1",
                5,
                "unknown field `pod_cidr`",
            ),
            ("\"192.0.2.12\"", "\"192.0.2\"", 9, "invalid IP address"),
            ("name = \"n2\"", "name = \"n1\"", 7, "two nodes \"n1\""),
            (
                "name = \"n2\"",
                "name = \"n9\"",
                7,
                "`peers` of the agent's configuration",
            ),
            (
                "\"192.0.2.12\"",
                "\"192.0.2.11\"",
                7,
                "that of node n1 already",
            ),
            (
                "10.244.2.0/24",
                "10.244.0.0/16",
                7,
                "overlaps 10.244.1.0/24 of node n1",
            ),
            (
                "10.244.2.0/24",
                "10.244.2.7/24",
                7,
                "no bits behind the prefix",
            ),
            (
                "\"10.244.2.5\"",
                "\"10.244.3.5\"",
                14,
                "pod shop/db-0 of node n2",
            ),
            ("app = \"db\"", "\"a=b\" = \"db\"", 14, "label"),
            (
                "\"10.244.2.5\", \"fd00:10:244:2::5\"",
                "",
                14,
                "has no address",
            ),
        ] {
            assert!(GOOD.contains(right), "{right}");
            let said = read_here(&GOOD.replace(right, wrong))
                .unwrap_err()
                .to_string();
            let place = format!("/etc/cluster.toml:{line}: ");
            assert!(
                said.starts_with(&place) && said.contains(why),
                "{wrong}: {said}"
            );
        }
    }
}
