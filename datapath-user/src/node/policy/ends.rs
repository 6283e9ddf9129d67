//! Who somebody means, and what would become of a flow between two.

use std::net::IpAddr;

use datapath_kern::abi::endpoint::identity;

use crate::config::Config;
use crate::error::Error;
use crate::node::Node;
use crate::policy::{ExplainEnd, ExplainQuery, Explanation, Label, Labels};

/// Identities that have a name instead of labels.
const RESERVED: &str = "reserved:";

impl Node {
    /// Whether a flow would be let through, and why.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchEnd`].
    pub(crate) fn explain(&self, query: &ExplainQuery) -> Result<Explanation, Error> {
        for end in [&query.from, &query.to] {
            if let ExplainEnd::Identity(number) = end {
                self.check_identity(*number)?;
            }
        }
        Ok(self.policy.engine.explain(query))
    }

    /// Who somebody means.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchEnd`], [`Error::Invalid`].
    pub(crate) fn find_end(&self, config: &Config, text: &str) -> Result<ExplainEnd, Error> {
        if let Ok(address) = text.parse() {
            return self.end_of_address(config, address);
        }
        if let Some(name) = text.strip_prefix(RESERVED) {
            return reserved(name).ok_or_else(|| Error::NoSuchEnd {
                what: "reserved identity",
                name: text.to_owned(),
                remedy: "they are reserved:host, remote-node, world, world-ipv4, world-ipv6, \
                         unmanaged, health, init, kube-apiserver and ingress",
            });
        }
        if let Ok(number) = text.parse() {
            self.check_identity(number)?;
            return Ok(ExplainEnd::Identity(number));
        }
        if text.contains('=') {
            let labels = text.split(',').map(str::parse::<Label>);
            let labels = labels.collect::<Result<Labels, Error>>()?;
            return Ok(ExplainEnd::Labels(labels));
        }
        match text.split_once('/') {
            Some((namespace, name)) => self.end_of_pod(namespace, name),
            None => self.end_of_name(text),
        }
    }

    fn check_identity(&self, number: u32) -> Result<(), Error> {
        let known = self.policy.engine.labels(number).is_some();
        known.then_some(()).ok_or_else(|| Error::NoSuchEnd {
            what: "identity",
            name: number.to_string(),
            remedy: "`dpctl identity list` shows those that pods and prefixes have",
        })
    }

    fn end_of_address(&self, config: &Config, address: IpAddr) -> Result<ExplainEnd, Error> {
        let local = self.endpoints.values().map(|local| &local.view);
        if let Some(pod) = local
            .into_iter()
            .find(|pod| pod.addresses.contains(&address))
        {
            return Ok(ExplainEnd::Identity(pod.identity));
        }
        let of_uplink = self.uplinks.iter().flat_map(|uplink| &uplink.addresses);
        if of_uplink.chain(&config.gateways).any(|own| *own == address) {
            return Ok(ExplainEnd::Identity(identity::HOST));
        }
        for remote in self.peers.values() {
            let spec = &remote.spec;
            if let Some(pod) = spec.pods.iter().find(|pod| pod.address == address) {
                return Ok(ExplainEnd::Identity(pod.number()));
            }
            if spec.address == address || spec.node_addresses.contains(&address) {
                return Ok(ExplainEnd::Identity(identity::REMOTE_NODE));
            }
            if spec.pod_cidrs.iter().any(|cidr| cidr.contains(&address)) {
                return Ok(ExplainEnd::Identity(identity::UNMANAGED));
            }
        }
        if config.pod_cidrs.iter().any(|cidr| cidr.contains(&address)) {
            return Err(Error::NoSuchEnd {
                what: "pod of this node with the address",
                name: address.to_string(),
                remedy: "`dpctl endpoint list` shows those there are",
            });
        }
        Ok(ExplainEnd::Address(address))
    }

    fn end_of_pod(&self, namespace: &str, name: &str) -> Result<ExplainEnd, Error> {
        let is_it =
            |of: Option<&str>, called: Option<&str>| of == Some(namespace) && called == Some(name);
        let local = self.endpoints.values().map(|local| &local.view);
        let local = local.filter(|pod| is_it(pod.namespace.as_deref(), pod.name.as_deref()));
        let remote = self.peers.values().flat_map(|remote| &remote.spec.pods);
        let remote = remote.filter(|pod| is_it(pod.namespace.as_deref(), pod.name.as_deref()));
        let mut found = local
            .map(|pod| pod.identity)
            .chain(remote.map(crate::RemotePod::number));
        found.next().map(ExplainEnd::Identity).ok_or_else(|| Error::NoSuchEnd {
            what: "pod",
            name: format!("{namespace}/{name}"),
            remedy: "`dpctl endpoint list` shows those of this node; those of other nodes are known \
                     by the name that the cluster file gives them",
        })
    }

    fn end_of_name(&self, name: &str) -> Result<ExplainEnd, Error> {
        if let Some(local) = self.endpoints.get(name) {
            return Ok(ExplainEnd::Identity(local.view.identity));
        }
        if self.peers.contains_key(name) {
            return Ok(ExplainEnd::Identity(identity::REMOTE_NODE));
        }
        let word = ["host", "world"].contains(&name).then(|| reserved(name));
        word.flatten().ok_or_else(|| Error::NoSuchEnd {
            what: "endpoint or peer",
            name: name.to_owned(),
            remedy: "`dpctl endpoint list` and `dpctl peers` show those there are; an end may also \
                     be NAMESPACE/POD, an address, an identity, labels or reserved:world",
        })
    }
}

/// A reserved identity by its name; that of the world is the one of IPv4: no packet has the other.
fn reserved(name: &str) -> Option<ExplainEnd> {
    let name = if name == "world" { "world-ipv4" } else { name };
    let number = (1..identity::FIRST_ALLOCATED)
        .find(|number| crate::reserved_identity(*number) == Some(name))?;
    Some(ExplainEnd::Identity(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_identities_have_names() {
        let of = reserved;
        assert_eq!(of("host"), Some(ExplainEnd::Identity(identity::HOST)));
        assert_eq!(
            of("world"),
            Some(ExplainEnd::Identity(identity::WORLD_IPV4))
        );
        assert_eq!(of("nobody"), None);
    }
}
