//! What a pod is called and labelled, on a command line.

use std::{collections::BTreeMap, str::FromStr};

use clap::Args;
use datapath_user::policy::{NamedPort, PortProtocol};

use crate::api::EndpointSpec;

/// What a pod is called and labelled.
#[derive(Debug, Args)]
pub(super) struct Pod {
    /// The pod's namespace, in the sense of Kubernetes
    #[arg(long, value_name = "NAMESPACE")]
    namespace: Option<String>,

    /// The pod's name there
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// A label of its namespace
    #[arg(long = "namespace-label", value_name = "KEY=VALUE", value_parser = pair)]
    namespace_labels: Vec<(String, String)>,

    /// Its service account
    #[arg(long, value_name = "NAME")]
    service_account: Option<String>,

    /// A port of its containers that has a name
    #[arg(long = "port", value_name = "NAME=PORT/PROTOCOL", value_parser = named_port)]
    ports: Vec<NamedPort>,

    /// Its security identity [default: one is found for its labels]
    #[arg(long, value_name = "NUMBER")]
    identity: Option<u32>,
}

impl Pod {
    /// Takes over what was given; of the rest it stays as it is.
    pub(super) fn set(&self, spec: &mut EndpointSpec) {
        let ours = [
            (&self.namespace, &mut spec.namespace),
            (&self.name, &mut spec.name),
            (&self.service_account, &mut spec.service_account),
        ];
        for (given, known) in ours {
            if given.is_some() {
                known.clone_from(given);
            }
        }
        spec.namespace_labels
            .extend(self.namespace_labels.iter().cloned());
        if !self.ports.is_empty() {
            spec.ports.clone_from(&self.ports);
        }
        spec.identity = self.identity.or(spec.identity);
    }

    /// Whether nothing was given.
    pub(super) fn is_empty(&self) -> bool {
        let mut spec = EndpointSpec::default();
        self.set(&mut spec);
        spec == EndpointSpec::default()
    }
}

/// A pod as it is called: `namespace/name`.
pub(super) fn called(namespace: Option<&str>, name: Option<&str>) -> String {
    match (namespace, name) {
        (None, None) => "-".to_owned(),
        (namespace, name) => format!("{}/{}", namespace.unwrap_or("-"), name.unwrap_or("-")),
    }
}

/// Reads a label.
pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE, as in app=web".to_owned()),
    }
}

fn named_port(text: &str) -> Result<NamedPort, String> {
    let remedy = "write NAME=PORT/PROTOCOL, as in http=80/TCP";
    let (name, rest) = text.split_once('=').ok_or(remedy)?;
    let (port, protocol) = rest.split_once('/').unwrap_or((rest, "TCP"));
    let known = PortProtocol::ALL
        .into_iter()
        .find(|known| known.to_string().eq_ignore_ascii_case(protocol));
    let protocol = known.ok_or_else(|| format!("there is no protocol {protocol:?}: {remedy}"))?;
    match u16::from_str(port) {
        Ok(0) | Err(_) => Err(format!("{port:?} is no port from 1 to 65535: {remedy}")),
        Ok(port) => Ok(NamedPort {
            name: name.to_owned(),
            port,
            protocol,
        }),
    }
}

/// Sets labels, and takes those away whose value is none.
pub(super) fn change(labels: &mut BTreeMap<String, String>, changes: &[(String, Option<String>)]) {
    for (key, value) in changes {
        match value {
            Some(value) => labels.insert(key.clone(), value.clone()),
            None => labels.remove(key),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_labels_are_read_strictly() {
        let http = named_port("http=80/tcp").unwrap();
        assert_eq!((http.port, http.protocol), (80, PortProtocol::Tcp));
        for (bad, why) in [
            ("80/TCP", "NAME=PORT/PROTOCOL"),
            ("http=80/HTTP", "no protocol \"HTTP\""),
            ("http=0/TCP", "\"0\" is no port"),
        ] {
            let said = named_port(bad).unwrap_err();
            assert!(said.contains(why), "{bad}: {said}");
        }
        assert_eq!(pair("a=b=c").unwrap(), ("a".to_owned(), "b=c".to_owned()));
        assert!(pair("=b").is_err() && pair("a").is_err());
    }

    #[test]
    fn labels_come_and_go() {
        let mut labels = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
        let changes = [
            ("a".to_owned(), None),
            ("b".to_owned(), Some("2".to_owned())),
        ];
        change(&mut labels, &changes);
        assert_eq!(labels, BTreeMap::from([("b".to_owned(), "2".to_owned())]));
        assert_eq!(called(Some("shop"), Some("web")), "shop/web");
        assert_eq!(called(None, Some("web")), "-/web");
        assert_eq!(called(None, None), "-");
    }
}
