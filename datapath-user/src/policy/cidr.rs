//! Prefixes: which lie inside which, and which ones policies name.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// All IPv4 addresses.
pub(super) const ALL_IPV4: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0));

/// All IPv6 addresses.
pub(super) const ALL_IPV6: IpNet = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0));

/// How many rules name each prefix.
#[derive(Debug, Default)]
pub(super) struct NamedPrefixes(BTreeMap<IpNet, usize>);

impl NamedPrefixes {
    /// Counts one more. Returns whether it is the first.
    pub(super) fn add(&mut self, prefix: IpNet) -> bool {
        let count = self.0.entry(prefix.trunc()).or_default();
        *count += 1;
        *count == 1
    }

    /// Counts one less. Returns whether it was the last.
    pub(super) fn remove(&mut self, prefix: IpNet) -> bool {
        let prefix = prefix.trunc();
        let Some(count) = self.0.get_mut(&prefix) else {
            return false;
        };
        *count -= 1;
        let last = *count == 0;
        if last {
            self.0.remove(&prefix);
        }
        last
    }

    /// Those that need an identity: all but the two that the world has.
    pub(super) fn needed(&self) -> BTreeSet<IpNet> {
        let named = self.0.keys().copied();
        named.filter(|prefix| prefix.prefix_len() > 0).collect()
    }

    /// The longest prefix around an address: the world of its family if none is named.
    pub(super) fn around(&self, address: IpAddr) -> IpNet {
        let host = IpNet::from(address);
        supernets(host)
            .find(|prefix| self.0.contains_key(prefix))
            .unwrap_or(if address.is_ipv4() {
                ALL_IPV4
            } else {
                ALL_IPV6
            })
    }
}

/// Whether all addresses of a prefix are inside another one and none is in the exceptions.
///
/// The prefix is one that addresses were found under by longest match, among prefixes with `cidr`
/// and `except` themselves: so it is never partly inside any of them.
pub(super) fn fits(prefix: IpNet, cidr: IpNet, except: &[IpNet]) -> bool {
    let inside = |outer: &IpNet| outer.contains(&prefix);
    inside(&cidr) && !except.iter().any(inside)
}

/// The prefix, and all around it, longest first.
pub(super) fn supernets(prefix: IpNet) -> impl Iterator<Item = IpNet> {
    std::iter::successors(Some(prefix.trunc()), IpNet::supernet)
}

/// Where the prefixes inside one are found in a set that is ordered by prefix and number.
///
/// Prefixes are ordered by network address, shorter ones first; so those inside one follow it up
/// to its last address.
pub(super) fn range_inside(prefix: IpNet) -> RangeInclusive<(IpNet, u32)> {
    let last = IpNet::from(prefix.broadcast());
    (prefix.trunc(), 0)..=(last, u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn a_range_holds_exactly_the_prefixes_inside() {
        let texts = [
            "0.0.0.0/0",
            "10.0.0.0/7",
            "10.0.0.0/8",
            "10.0.0.0/9",
            "10.255.255.255/32",
            "11.0.0.0/8",
            "9.255.255.255/32",
            "::/0",
            "fd00::/8",
            "fd00::1/128",
            "fe00::/8",
        ];
        let all: BTreeSet<(IpNet, u32)> = texts.iter().map(|text| (net(text), 7)).collect();
        for outer in texts.map(net) {
            let found: Vec<IpNet> = all.range(range_inside(outer)).map(|(p, _)| *p).collect();
            let wanted: Vec<IpNet> = all
                .iter()
                .map(|(p, _)| *p)
                .filter(|p| outer.contains(p))
                .collect();
            assert_eq!(found, wanted, "inside {outer}");
        }
    }

    #[test]
    fn an_address_is_found_under_the_longest_prefix_that_is_named() {
        let mut named = NamedPrefixes::default();
        for text in ["10.0.0.0/8", "10.1.0.0/16", "10.1.0.7/16"] {
            named.add(net(text));
        }
        let around = |text: &str| named.around(text.parse().unwrap()).to_string();
        assert_eq!(around("10.1.2.3"), "10.1.0.0/16");
        assert_eq!(around("10.2.2.3"), "10.0.0.0/8");
        assert_eq!(around("11.0.0.1"), "0.0.0.0/0");
        assert_eq!(around("fd00::1"), "::/0");
        assert!(!named.remove(net("10.1.0.0/16")) && named.remove(net("10.1.0.0/16")));
        assert_eq!(named.needed(), BTreeSet::from([net("10.0.0.0/8")]));
    }
}
