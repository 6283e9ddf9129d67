//! Longest-prefix match.

use core::net::IpAddr;
use std::vec::Vec;

use crate::abi::addr::Addr;

/// A prefix of either family: the key of `BPF_MAP_TYPE_LPM_TRIE` over [`Addr`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// First address of it.
    address: u128,
    /// Bits of `address` that count, of 128.
    bits: u32,
}

impl Prefix {
    /// `address/length`, the length as it is written for the address's family.
    #[must_use]
    pub fn new(address: IpAddr, length: u32) -> Self {
        let family_bits = if address.is_ipv4() {
            Addr::MAPPED_PREFIX_BITS
        } else {
            0
        };
        let bits = (family_bits + length).min(128);
        Self {
            address: number(&address.into()) & mask(bits),
            bits,
        }
    }

    /// The one address.
    #[must_use]
    pub fn host(address: IpAddr) -> Self {
        Self {
            address: number(&address.into()),
            bits: 128,
        }
    }

    /// Bits that count and first address: the two parts of the kernel's key.
    #[must_use]
    pub fn parts(&self) -> (u32, Addr) {
        let words = zerocopy::transmute!(self.address.to_be_bytes());
        (self.bits, Addr::from_words(words))
    }

    /// Whether all it covers are IPv4 addresses.
    pub(super) fn is_v4(&self) -> bool {
        self.bits >= Addr::MAPPED_PREFIX_BITS && self.address >> 32 == 0xffff
    }

    fn covers(&self, address: &Addr) -> bool {
        number(address) & mask(self.bits) == self.address
    }
}

const fn mask(bits: u32) -> u128 {
    if bits == 0 {
        0
    } else {
        u128::MAX << (128 - bits)
    }
}

fn number(address: &Addr) -> u128 {
    u128::from_be_bytes(zerocopy::transmute!(address.words()))
}

/// Values by prefix. As in the kernel's trie, `::/0` covers the IPv4 addresses too.
#[derive(Clone, Debug)]
pub struct Prefixes<V>(Vec<(Prefix, V)>);

impl<V> Default for Prefixes<V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<V> Prefixes<V> {
    /// Sets the value of a prefix.
    pub fn set(&mut self, prefix: Prefix, value: V) {
        self.remove(prefix);
        self.0.push((prefix, value));
    }

    /// Takes a prefix out.
    pub fn remove(&mut self, prefix: Prefix) {
        self.0.retain(|(other, _)| *other != prefix);
    }

    /// All there is, in no order.
    pub fn entries(&self) -> impl Iterator<Item = &(Prefix, V)> {
        self.0.iter()
    }

    /// Value of the longest prefix that covers `address`.
    #[must_use]
    pub fn find(&self, address: &Addr) -> Option<&V> {
        let covering = self.0.iter().filter(|(prefix, _)| prefix.covers(address));
        covering
            .max_by_key(|(prefix, _)| prefix.bits)
            .map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_longest_prefix_wins_and_families_stay_apart() {
        let mut table = Prefixes::default();
        table.set(Prefix::new(ip("0.0.0.0"), 0), "v4");
        table.set(Prefix::new(ip("10.244.1.99"), 24), "range");
        table.set(Prefix::host(ip("10.244.1.5")), "pod");
        table.set(Prefix::new(ip("fd00::"), 8), "v6");
        let find = |address: &str| table.find(&ip(address).into()).copied();
        assert_eq!(find("10.244.1.5"), Some("pod"));
        assert_eq!(find("10.244.1.6"), Some("range"));
        assert_eq!(find("10.244.2.5"), Some("v4"));
        assert_eq!(find("fd00::1"), Some("v6"));
        assert_eq!(find("2001:db8::1"), None);
        let parts: Vec<_> = table.entries().map(|(prefix, _)| prefix.parts()).collect();
        let range = (96 + 24, ip("10.244.1.0").into());
        assert!(parts.len() == 4 && parts.contains(&range), "{parts:?}");
        let mut table = table.clone();
        table.set(Prefix::host(ip("10.244.1.5")), "other");
        assert_eq!(table.find(&ip("10.244.1.5").into()), Some(&"other"));
        table.remove(Prefix::host(ip("10.244.1.5")));
        assert_eq!(table.find(&ip("10.244.1.5").into()), Some(&"range"));
    }
}
