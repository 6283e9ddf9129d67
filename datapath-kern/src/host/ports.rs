//! What classes say of ports, by longest prefix.

use std::vec::Vec;

use zerocopy::IntoBytes;

use crate::abi::policy::{PortKey, PortVerdict};

/// Verdicts by prefix of a [`PortKey`]: `BPF_MAP_TYPE_LPM_TRIE`.
#[derive(Clone, Debug, Default)]
pub struct Ports(Vec<(u32, PortKey, PortVerdict)>);

impl Ports {
    /// Sets the verdict of the prefix of so many `bits`, 64 at most.
    pub fn set(&mut self, bits: u32, key: PortKey, verdict: PortVerdict) {
        self.0
            .retain(|(other, at, _)| (*other, number(*at, bits)) != (bits, number(key, bits)));
        self.0.push((bits, key, verdict));
    }

    /// All there is, in no order: bits that count, key and verdict.
    pub fn entries(&self) -> impl Iterator<Item = &(u32, PortKey, PortVerdict)> {
        self.0.iter()
    }

    /// Verdict of the longest prefix that covers `key`.
    #[must_use]
    pub fn find(&self, key: &PortKey) -> Option<&PortVerdict> {
        let covering = self
            .0
            .iter()
            .filter(|(bits, at, _)| number(*at, *bits) == number(*key, *bits));
        covering
            .max_by_key(|(bits, ..)| *bits)
            .map(|(.., verdict)| verdict)
    }
}

/// The first `bits` of a key as they lie in memory, which is what the trie compares.
fn number(key: PortKey, bits: u32) -> u64 {
    let bytes = key.as_bytes().try_into().unwrap_or_default();
    let mask = u64::MAX.checked_shl(64 - bits.min(64)).unwrap_or(0);
    u64::from_be_bytes(bytes) & mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_wins_within_a_class() {
        let key = |class, protocol, port: u16| PortKey {
            class,
            protocol,
            port: port.into(),
            ..PortKey::default()
        };
        let rule = |rule_id| PortVerdict {
            rule_id,
            ..PortVerdict::default()
        };
        let mut ports = Ports::default();
        ports.set(PortKey::ANY_BITS, key(7, 0, 0), rule(1));
        ports.set(PortKey::PROTOCOL_BITS, key(7, 6, 0), rule(2));
        ports.set(PortKey::PORT_BITS - 4, key(7, 6, 80), rule(3));
        ports.set(PortKey::PORT_BITS, key(7, 6, 80), rule(4));
        ports.set(PortKey::PORT_BITS, key(8, 6, 80), rule(5));
        let find = |class, protocol, port| {
            let found = ports.find(&key(class, protocol, port));
            found.map(|verdict| verdict.rule_id)
        };
        assert_eq!(find(7, 6, 80), Some(4));
        assert_eq!(find(7, 6, 95), Some(3));
        assert_eq!(find(7, 6, 96), Some(2));
        assert_eq!(find(7, 17, 80), Some(1));
        assert_eq!((find(8, 6, 80), find(8, 6, 81)), (Some(5), None));
        let mut ports = ports.clone();
        ports.set(PortKey::PORT_BITS, key(8, 6, 80), rule(6));
        assert_eq!(ports.find(&key(8, 6, 80)), Some(&rule(6)));
        assert_eq!(ports.entries().count(), 5);
    }
}
