//! Explanations in words.

use std::fmt;

use super::{Explanation, Judgement, NearRule, Otherwise, Reason};
use crate::policy::model::{
    IcmpFamily, Peer, Peers, PortProtocol, PortRule, PortValue, Ports, RuleVerdict,
};

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.allowed { "allowed" } else { "denied" };
        let Self {
            from,
            to,
            protocol,
            port,
            ..
        } = self;
        write!(f, "{verdict}: [{from}] -> [{to}] {port}/{protocol}")?;
        for (direction, judgement) in [("egress", &self.egress), ("ingress", &self.ingress)] {
            write!(f, "\n  {direction}: {judgement}")?;
            for near in &judgement.near {
                write!(f, "\n    {near}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let isolated_by = self.isolated_by.iter().map(ToString::to_string);
        let isolated_by = isolated_by.collect::<Vec<_>>().join(", ");
        match (self.reason, &self.rule) {
            (Reason::NoEndpoint, _) => {
                f.write_str("not judged: it is no pod, and not this node")
            }
            (Reason::ModeNever, _) => f.write_str("allowed: policy is off (mode = \"never\")"),
            (Reason::NotIsolated, _) => {
                f.write_str("allowed: no document isolates it in this direction")
            }
            (Reason::OwnNode, _) => f.write_str(
                "allowed: a pod may reach its own node (own-node = \"allow\"), and no rule denies it",
            ),
            (Reason::HostToLocal, _) => f.write_str(
                "allowed: the node may reach its own pods (host-to-local = \"allow\"), and no rule \
                 denies it",
            ),
            (Reason::Rule | Reason::Refused, Some(rule)) => {
                let word = match rule.verdict {
                    RuleVerdict::Allow => "allowed",
                    RuleVerdict::Deny => "denied",
                };
                write!(f, "{word} by {rule}")?;
                if self.reason == Reason::Refused {
                    f.write_str(": the document cannot be used, and keeps them closed until it is mended")?;
                }
                Ok(())
            }
            (Reason::NoRule, _) if isolated_by.is_empty() => f.write_str(
                "denied: every pod needs a rule (mode = \"always\"), and no document selects it with \
                 one that fits",
            ),
            _ => write!(f, "denied: no rule allows it, and {isolated_by} isolates it"),
        }
    }
}

impl fmt::Display for NearRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rule,
            otherwise,
            says,
        } = self;
        match otherwise {
            Otherwise::Peer => write!(f, "near: {rule} allows this port, but only with {says}"),
            Otherwise::Port => write!(f, "near: {rule} allows this peer, but only {says}"),
        }
    }
}

/// Name of a protocol, or its number.
pub(super) fn protocol(number: u8) -> String {
    let known = PortProtocol::ALL
        .into_iter()
        .find(|known| known.number() == number);
    match known {
        Some(known) => known.to_string(),
        None if number == IcmpFamily::V4.number() => "ICMP".into(),
        None if number == IcmpFamily::V6.number() => "ICMPv6".into(),
        None => number.to_string(),
    }
}

/// What ports a rule is about.
pub(super) fn ports(ports: &Ports) -> String {
    match ports {
        Ports::Any => "any port".into(),
        Ports::Of(ports) if ports.is_empty() => "no port".into(),
        Ports::Of(ports) => ports.iter().map(port).collect::<Vec<_>>().join(", "),
    }
}

fn port(port: &PortRule) -> String {
    match port {
        PortRule::Icmp { family, kind } => {
            format!("type {kind} of {}", protocol(family.number()))
        }
        PortRule::Port { protocol, port } => {
            let protocol = protocol.map_or("any".into(), |protocol| protocol.to_string());
            match port {
                PortValue::All => format!("all ports/{protocol}"),
                PortValue::Range(range) if range.start() == range.end() => {
                    format!("{}/{protocol}", range.start())
                }
                PortValue::Range(range) => {
                    format!("{}-{}/{protocol}", range.start(), range.end())
                }
                PortValue::Named(name) => format!("the port called {name:?}/{protocol}"),
            }
        }
    }
}

/// Whom a rule is about.
pub(super) fn peers(peers: &Peers) -> String {
    match peers {
        Peers::Any => "anyone".into(),
        Peers::Of(peers) if peers.is_empty() => "nobody".into(),
        Peers::Of(peers) => peers.iter().map(peer).collect::<Vec<_>>().join(", or "),
    }
}

fn peer(peer: &Peer) -> String {
    match peer {
        Peer::Labelled(selector) => format!("[{selector}]"),
        Peer::Cidr { cidr, except } if except.is_empty() => cidr.to_string(),
        Peer::Cidr { cidr, except } => {
            let except: Vec<String> = except.iter().map(ToString::to_string).collect();
            format!("{cidr} except {}", except.join(", "))
        }
        Peer::Entity(entity) => format!("the entity {}", entity.name()),
    }
}
