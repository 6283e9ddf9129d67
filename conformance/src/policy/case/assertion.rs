//! What a case expects of single cells.

use std::fmt;

use super::{CellId, EndpointId, Http, ProbeProtocol};
use crate::{
    error::{Error, Result},
    family::Family,
};

/// One line of `assert`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assertion {
    /// The line of the file.
    pub line: u64,
    /// As it is written.
    pub text: String,
    /// The cell.
    pub cell: CellId,
    /// What is expected of it.
    pub expected: Expected,
}

/// What is expected of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// It passes.
    Allow,
    /// It does not.
    Deny,
    /// Either: the specifications leave it open.
    Unspecified,
}

impl Assertion {
    /// Reads a line: `SRC > DST PROTO/PORT [v6] [METHOD PATH] = allow|deny|unspecified`.
    ///
    /// Without `v6` (or `v4`) it is about ICMPv6's own family, else about `family`.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] with the part that cannot be read.
    pub(super) fn parse(text: &str, line: u64, family: Family) -> Result<Self> {
        let wrong = |value: &str| Error::Invalid {
            what: "assertion",
            value: value.to_owned(),
            rule: "write SRC > DST PROTO/PORT [v6] [METHOD PATH] = allow|deny|unspecified",
        };
        // A path may have a `=` in it.
        let (what, expected) = text.rsplit_once('=').ok_or_else(|| wrong(text))?;
        let expected = match expected.trim() {
            "allow" => Expected::Allow,
            "deny" => Expected::Deny,
            "unspecified" => Expected::Unspecified,
            other => return Err(wrong(other)),
        };
        let words: Vec<_> = what.split_whitespace().collect();
        let [source, ">", destination, probe, rest @ ..] = words.as_slice() else {
            return Err(wrong(text));
        };
        let (protocol, port) = probe.split_once('/').ok_or_else(|| wrong(probe))?;
        let protocol: ProbeProtocol = protocol.parse()?;
        let (family, rest) = match rest {
            ["v4", rest @ ..] => (Family::Ipv4, rest),
            ["v6", rest @ ..] => (Family::Ipv6, rest),
            rest => match protocol {
                ProbeProtocol::Icmp => (Family::Ipv4, rest),
                ProbeProtocol::Icmpv6 => (Family::Ipv6, rest),
                _ => (family, rest),
            },
        };
        let http = match rest {
            [] => None,
            [method, path] => Some(Http {
                method: (*method).to_owned(),
                path: (*path).to_owned(),
            }),
            _ => return Err(wrong(&rest.join(" "))),
        };
        if !protocol.runs_on(family) {
            return Err(wrong(text));
        }
        Ok(Self {
            line,
            text: text.to_owned(),
            cell: CellId {
                source: source.parse::<EndpointId>()?,
                destination: destination.parse()?,
                family,
                protocol,
                port: port.parse().map_err(|_| wrong(port))?,
                http,
            },
            expected,
        })
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Unspecified => "unspecified",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Assertion> {
        Assertion::parse(text, 7, Family::Ipv4)
    }

    #[test]
    fn every_part_is_read() {
        let line = read("x/a > svc:x/web TCP/80 v6 GET /a?b=c = deny").unwrap();
        assert_eq!(
            line.cell.to_string(),
            "pod:x/a > svc:x/web TCP/80 IPv6 GET /a?b=c"
        );
        assert_eq!(line.expected, Expected::Deny);
        let plain = read("ext:far > node:n1 UDP/53 = unspecified").unwrap();
        assert_eq!(plain.cell.family, Family::Ipv4);
        let ping = read("x/a > x/b ICMPv6/128 = allow").unwrap();
        assert_eq!(ping.cell.family, Family::Ipv6);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (text, part) in [
            ("x/a > x/b TCP/80", "x/a > x/b TCP/80"),
            ("x/a > x/b TCP/80 = maybe", "maybe"),
            ("x/a - x/b TCP/80 = deny", "x/a - x/b"),
            ("x/a > x/b TCP = deny", "TCP"),
            ("x/a > x/b tcp/80 = deny", "tcp"),
            ("x/a > x/b TCP/http = deny", "http"),
            ("x/a > b TCP/80 = deny", "\"b\""),
            ("x/a > x/b TCP/80 v6 GET = deny", "GET"),
            ("x/a > x/b ICMP/8 v6 = deny", "ICMP/8 v6"),
        ] {
            let said = read(text).unwrap_err().to_string();
            assert!(said.contains(part), "{text}: {said}");
        }
    }
}
