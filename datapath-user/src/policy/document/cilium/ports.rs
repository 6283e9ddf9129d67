//! `toPorts`.

use super::super::node::Node;
use super::super::syntax;
use super::super::walk::Walk;
use super::Reader;
use crate::policy::{PortProtocol, PortRule, PortValue};

/// Ports that one item may have, as the schema has it.
const MOST_PORTS: usize = 40;
/// What would narrow a rule and is not built yet.
const LATER: [(&str, &str); 5] = [
    ("listener", "traffic is not led through a proxy yet"),
    ("originatingTLS", "TLS is not looked into yet"),
    ("rules", "rules about HTTP, Kafka and DNS are not built yet"),
    (
        "serverNames",
        "rules by the name of a TLS server are not built yet",
    ),
    ("terminatingTLS", "TLS is not looked into yet"),
];
const PROTOCOLS: [&str; 4] = ["TCP", "UDP", "SCTP", "ANY"];

impl Reader<'_, '_> {
    pub(super) fn ports(&self, node: &Node, denies: bool) -> Vec<PortRule> {
        let walk = self.walk;
        let items = walk.list(node, "`toPorts`").unwrap_or_default();
        let mut rules = Vec::new();
        for item in items.iter().filter(|item| !item.is_null()) {
            let mut known = vec!["ports"];
            if !denies {
                known.extend(LATER.map(|(key, _)| key));
            }
            let Some(fields) = walk.map(item, "an item of `toPorts`", &known) else {
                continue;
            };
            for (key, why) in LATER.into_iter().filter(|_| !denies) {
                let Some(node) = fields.get(key) else {
                    continue;
                };
                if key == "rules" && says_nothing(node) {
                    continue;
                }
                let help =
                    format!("{why}: without `{key}` this rule would allow more than it says");
                walk.wrong_so(
                    fields.place(key),
                    format!("`{key}` cannot be enforced"),
                    help,
                );
            }
            let Some(list) = fields.get("ports") else {
                continue;
            };
            let ports = walk.list(list, "`ports`").unwrap_or_default();
            if ports.len() > MOST_PORTS {
                let count = ports.len();
                let problem = format!("`ports` has {count} items, and {MOST_PORTS} are allowed");
                walk.wrong_so(
                    list.at,
                    problem,
                    "write ranges with `endPort`, or several items",
                );
            }
            let ports = ports.iter().filter(|port| !port.is_null());
            rules.extend(ports.filter_map(|item| port(walk, item)));
        }
        rules
    }
}

/// Whether it is a mapping without keys.
fn says_nothing(node: &Node) -> bool {
    matches!(&node.value, super::super::node::Value::Map(entries) if entries.is_empty())
}

fn port(walk: &Walk<'_>, node: &Node) -> Option<PortRule> {
    let fields = walk.map(node, "an item of `ports`", &["port", "endPort", "protocol"])?;
    let protocol = fields.get("protocol").and_then(|node| protocol(walk, node));
    let Some(said) = fields.get("port") else {
        walk.wrong_so(
            node.at,
            "`port` is missing",
            "write `port: \"0\"` for all ports of the protocol",
        );
        return None;
    };
    let port = number_or_name(walk, said);
    // Nought is the same as none, in the schema.
    let end = fields.get("endPort").and_then(|node| {
        let number = walk.integer_of::<u16>(node, "`endPort`", 0..=65_535)?;
        (number != 0).then_some((node.at, number))
    });
    let port = match (port?, end) {
        (port, None) => port,
        (PortValue::Range(range), Some((at, end))) => {
            let from = *range.start();
            if end < from {
                let problem = format!("`endPort` {end} is below `port` {from}");
                walk.wrong_so(at, problem, "write the smaller one as `port`");
            }
            PortValue::Range(from..=end)
        }
        // A name is one port, whatever the end says: so does Cilium have it.
        (PortValue::Named(name), Some(_)) => PortValue::Named(name),
        (PortValue::All, Some((at, _))) => {
            walk.wrong_so(
                at,
                "`endPort` cannot be beside a `port` that is 0, which stands for all",
                "write the first port of the range as `port`",
            );
            PortValue::All
        }
    };
    Some(PortRule::Port { protocol, port })
}

/// Reads a protocol; none is any that has ports.
fn protocol(walk: &Walk<'_>, node: &Node) -> Option<PortProtocol> {
    let said = node.text().unwrap_or_default();
    if ["ICMP", "ICMPv6", "IGMP", "VRRP"].contains(&said) {
        let help = if said.starts_with("ICMP") {
            "write it under `icmps`, in a rule of its own"
        } else {
            "protocols with ports are `TCP`, `UDP` and `SCTP`"
        };
        walk.wrong_so(node.at, format!("`{said}` has no ports"), help);
        return None;
    }
    let word = walk.word(node, "`protocol`", &PROTOCOLS)?;
    let mut all = PortProtocol::ALL.into_iter();
    all.find(|protocol| protocol.to_string() == word)
}

/// Reads a port: a number in quotes, or a name, whose capitals mean nothing.
fn number_or_name(walk: &Walk<'_>, node: &Node) -> Option<PortValue> {
    let text = walk.text(node, "`port`")?;
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        let number = text.parse::<u16>().ok();
        let written = number.filter(|number| number.to_string() == text);
        if written.is_none() {
            let help = match number {
                Some(number) => format!("write \"{number}\""),
                None => "ports are from 0 to 65535".to_owned(),
            };
            walk.wrong_so(node.at, format!("`{text}` is no number of a port"), help);
        }
        return written.map(|number| match number {
            0 => PortValue::All,
            number => PortValue::Range(number..=number),
        });
    }
    if let Some(why) = syntax::port_name(text, true) {
        let problem = format!("`{text}` is no name of a port: {why}");
        let range = text
            .split_once('-')
            .is_some_and(|(from, to)| from.parse::<u16>().is_ok() && to.parse::<u16>().is_ok());
        if range {
            walk.wrong_so(node.at, problem, "write the end of a range as `endPort`");
        } else {
            walk.wrong(node.at, problem);
        }
        return None;
    }
    Some(PortValue::Named(text.to_ascii_lowercase()))
}
