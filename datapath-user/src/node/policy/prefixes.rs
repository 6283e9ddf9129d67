//! Identities of the prefixes that documents name: numbers of this node only.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use datapath_kern::abi::endpoint::identity;
use datapath_kern::abi::ipcache::{IpEntry, kind};
use ipnet::IpNet;

use crate::policy::{Document, Peer, Peers};

/// How long a number is not given out again.
const REST: Duration = Duration::from_secs(30);

/// The prefixes that have identities.
#[derive(Debug, Default)]
pub(crate) struct PolicyPrefixes {
    numbers: BTreeMap<IpNet, u32>,
    /// The numbers of those.
    taken: BTreeSet<u32>,
    resting: BTreeMap<u32, Instant>,
    last: u32,
}

impl PolicyPrefixes {
    /// Goes on with what an earlier process entered into the ipcache.
    pub(crate) fn adopt(&mut self, known: &BTreeMap<IpNet, IpEntry>) {
        let theirs = known.iter().filter(|(_, entry)| {
            entry.kind == kind::WORLD && entry.identity >= identity::FIRST_LOCAL
        });
        // One number may be of several entries: those outside that lie in the prefix have it too.
        let mut widest: BTreeMap<u32, IpNet> = BTreeMap::new();
        for (&prefix, entry) in theirs {
            let known = widest.entry(entry.identity).or_insert(prefix);
            if prefix.contains(&*known) {
                *known = prefix;
            }
        }
        for (number, prefix) in widest {
            self.last = self.last.max(number);
            self.numbers.insert(prefix, number);
            self.taken.insert(number);
        }
    }

    /// Gives numbers to those of these prefixes that have none; returns them.
    pub(super) fn add(&mut self, wanted: &BTreeSet<IpNet>) -> Vec<(IpNet, u32)> {
        let now = Instant::now();
        self.resting
            .retain(|_, since| now.saturating_duration_since(*since) < REST);
        let new: Vec<IpNet> = wanted
            .iter()
            .filter(|prefix| prefix.prefix_len() > 0 && !self.numbers.contains_key(*prefix))
            .copied()
            .collect();
        let numbered = |prefix| {
            let number = self.next();
            self.numbers.insert(prefix, number);
            self.taken.insert(number);
            (prefix, number)
        };
        new.into_iter().map(numbered).collect()
    }

    /// Forgets the prefixes that are not among these; returns them.
    pub(super) fn keep(&mut self, wanted: &BTreeSet<IpNet>) -> Vec<(IpNet, u32)> {
        let gone: Vec<_> = self
            .numbers
            .iter()
            .filter(|(prefix, _)| !wanted.contains(*prefix))
            .map(|(&prefix, &number)| (prefix, number))
            .collect();
        for (prefix, number) in &gone {
            self.numbers.remove(prefix);
            self.taken.remove(number);
            self.resting.insert(*number, Instant::now());
        }
        gone
    }

    /// The identity of an address or a prefix outside: that of the longest prefix around it, else
    /// the world's in its family.
    pub(crate) fn identity(&self, of: IpNet) -> u32 {
        let mut around = (0..=of.prefix_len())
            .rev()
            .filter_map(|bits| IpNet::new(of.addr(), bits).ok());
        let longest = around.find_map(|prefix| self.numbers.get(&prefix.trunc()));
        longest.copied().unwrap_or(match of {
            IpNet::V4(_) => identity::WORLD_IPV4,
            IpNet::V6(_) => identity::WORLD_IPV6,
        })
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (IpNet, u32)> {
        self.numbers
            .iter()
            .map(|(&prefix, &number)| (prefix, number))
    }

    /// The next number that nobody has, and nobody had a moment ago.
    fn next(&mut self) -> u32 {
        loop {
            self.last = self.last.checked_add(1).unwrap_or_default();
            self.last = self.last.max(identity::FIRST_LOCAL);
            if !self.taken.contains(&self.last) && !self.resting.contains_key(&self.last) {
                return self.last;
            }
        }
    }
}

/// The prefixes that documents name, their exceptions included.
pub(super) fn named<'a>(documents: impl Iterator<Item = &'a Document>) -> BTreeSet<IpNet> {
    let specs = documents.flat_map(|document| &document.specs);
    let sections = specs.flat_map(|spec| [&spec.ingress, &spec.egress]);
    let rules = sections.flat_map(|section| &section.rules);
    let peers = rules.flat_map(|rule| match &rule.peers {
        Peers::Any => &[],
        Peers::Of(peers) => peers.as_slice(),
    });
    peers
        .flat_map(|peer| match peer {
            Peer::Cidr { cidr, except } => std::iter::once(cidr).chain(except).collect(),
            _ => Vec::new(),
        })
        .map(IpNet::trunc)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(prefixes: &[&str]) -> BTreeSet<IpNet> {
        prefixes.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn the_longest_prefix_is_who_an_address_is() {
        let mut all = PolicyPrefixes::default();
        let added = all.add(&set(&[
            "10.0.0.0/8",
            "10.9.0.0/16",
            "0.0.0.0/0",
            "fd00::/8",
        ]));
        assert_eq!(added.len(), 3, "the world has a number");
        let of = |prefix: &str| all.identity(net(prefix));
        assert_eq!(of("10.9.9.9/32"), of("10.9.0.0/16"));
        assert_eq!(of("10.8.0.0/16"), of("10.0.0.0/8"));
        assert_ne!(of("10.8.0.0/16"), of("10.9.0.0/16"));
        assert_eq!(of("192.0.2.1/32"), identity::WORLD_IPV4);
        assert_eq!(of("2001:db8::/32"), identity::WORLD_IPV6);
        assert!(all.add(&set(&["10.0.0.0/8"])).is_empty());
    }

    #[test]
    fn a_number_rests_before_it_is_given_again() {
        let mut all = PolicyPrefixes::default();
        let first = all.add(&set(&["10.0.0.0/8"]));
        assert_eq!(all.keep(&BTreeSet::new()), first);
        all.last = identity::FIRST_LOCAL - 1;
        let second = all.add(&set(&["10.0.0.0/8"]));
        assert_ne!(first, second);
    }

    #[test]
    fn numbers_are_found_again_in_the_ipcache() {
        let mut all = PolicyPrefixes::default();
        all.add(&set(&["10.0.0.0/8", "10.9.0.0/16"]));
        let entries = ["10.0.0.0/8", "10.9.0.0/16", "10.9.1.0/24", "192.0.2.0/24"].map(|text| {
            let entry = IpEntry {
                identity: all.identity(net(text)),
                ..IpEntry::default()
            };
            (net(text), entry)
        });
        let mut again = PolicyPrefixes::default();
        again.adopt(&entries.into_iter().collect());
        assert_eq!(again.numbers, all.numbers);
        let more = again.add(&set(&["192.0.2.0/24"]));
        assert!(all.iter().all(|(_, number)| number != more[0].1));
    }
}
