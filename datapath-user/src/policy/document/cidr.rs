//! Prefixes of addresses.

use std::net::IpAddr;

use ipnet::IpNet;

use super::node::Node;
use super::walk::Walk;
use crate::masquerade::file::is_mapped;

/// How much an exception may take away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Except {
    /// Less than all (Kubernetes).
    Part,
    /// All too (Cilium).
    All,
}

/// Reads a prefix. Bits behind its length are cleared, as the API server and Cilium do; anything
/// else that could be meant in two ways is wrong.
pub(super) fn read(walk: &Walk<'_>, node: &Node, name: &str) -> Option<IpNet> {
    let text = walk.text(node, name)?;
    let problem = format!("{name} cannot be `{text}`: ");
    if text
        .parse::<IpAddr>()
        .is_ok_and(|address| is_mapped(address.into()))
    {
        let help = "write the IPv4 address itself";
        walk.wrong_so(
            node.at,
            problem + "it is an IPv4 address in the form of IPv6",
            help,
        );
        return None;
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        let help = format!("write {}", IpNet::from(address));
        walk.wrong_so(node.at, problem + "it is an address, and no CIDR", help);
        return None;
    }
    // Other than addresses, prefixes are parsed with a `0` in front of their numbers.
    let canonical = text.split_once('/').is_some_and(|(address, length)| {
        address.parse::<IpAddr>().is_ok() && (length == "0" || !length.starts_with('0'))
    });
    match text.parse::<IpNet>() {
        Ok(prefix) if is_mapped(prefix) => {
            let help = "write the IPv4 prefix itself";
            walk.wrong_so(
                node.at,
                problem + "it is of IPv4 addresses in the form of IPv6",
                help,
            );
            None
        }
        Ok(prefix) if canonical => Some(prefix.trunc()),
        _ => {
            let (why, help) = why_not(text);
            walk.wrong_so(node.at, problem + why, help);
            None
        }
    }
}

/// Reads what a prefix leaves out.
pub(super) fn excepts(
    walk: &Walk<'_>,
    node: &Node,
    within: Option<IpNet>,
    most: Except,
) -> Vec<IpNet> {
    let mut excepts = Vec::new();
    for item in walk.list(node, "`except`").unwrap_or_default() {
        if item.is_null() {
            continue;
        }
        let Some(except) = read(walk, item, "an item of `except`") else {
            continue;
        };
        excepts.push(except);
        let Some(cidr) = within else {
            continue;
        };
        if !cidr.contains(&except) {
            let problem = format!("exception {except} is not inside {cidr}");
            walk.wrong_so(
                item.at,
                problem,
                "write a prefix inside of it, or leave the exception out",
            );
        } else if most == Except::Part && except == cidr {
            let problem = format!("exception {except} takes away all of {cidr}");
            walk.wrong_so(
                item.at,
                problem,
                "except a longer prefix, or leave the peer out",
            );
        }
    }
    excepts
}

/// Why a text is no prefix, and what may have been meant.
fn why_not(text: &str) -> (&'static str, String) {
    let (address, length) = text.split_once('/').unwrap_or((text, ""));
    let example = "write one such as 10.0.0.0/8 or fd00::/8".to_owned();
    if text.is_empty() {
        return ("it is empty", example);
    }
    if let Ok(address) = address.parse::<IpAddr>() {
        let most = if address.is_ipv4() { 32 } else { 128 };
        return (
            "its length is no number that fits its family",
            format!("write a number from 0 to {most} behind the `/`"),
        );
    }
    let parts: Vec<&str> = address.split('.').collect();
    let numbers = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if address.contains('.') && parts.iter().all(numbers) {
        if parts.len() != 4 {
            return (
                "an IPv4 address has four parts",
                format!("write all four parts before the `/{length}`; none is added for you"),
            );
        }
        if parts
            .iter()
            .any(|part| part.len() > 1 && part.starts_with('0'))
        {
            return (
                "a part with a 0 in front is octal for some readers",
                "write it without the 0 in front".to_owned(),
            );
        }
        return (
            "a part of its address is more than 255",
            "every part of an IPv4 address is from 0 to 255".to_owned(),
        );
    }
    ("it is no prefix of addresses", example)
}
