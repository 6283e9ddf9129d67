//! Classes: what a list of rules says of every port, resolved.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Weak};

use datapath_kern::abi::policy::{PortKey, PortVerdict};

use super::claim::{self, Claim};

/// What the rules that fit a peer say of every port.
///
/// There is one of each: rule sets that say the same of two peers hold the same `Arc`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Class {
    /// Of the entries whose prefix a port lies in, the longest counts; a port in none is allowed
    /// by no rule. No two have the same prefix.
    pub entries: Vec<ClassEntry>,
}

/// What is said of some ports: those of a prefix of [`PortKey`] behind its class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClassEntry {
    /// Length of the prefix of [`PortKey`], in bits: the 32 of the class included.
    pub prefix_bits: u32,
    /// IP protocol number; zero where the prefix does not reach it.
    pub protocol: u8,
    /// Port, or type of an ICMP message; zero in the bits that the prefix does not reach.
    pub port: u16,
    /// What is decided.
    pub verdict: PortVerdict,
}

/// The classes that are in use, found by the rules that they come from and by what they say.
///
/// It keeps none alive.
#[derive(Debug, Default)]
pub(super) struct Classes {
    by_rules: HashMap<Box<[u64]>, Weak<Class>>,
    by_content: HashMap<u64, Vec<Weak<Class>>>,
    /// How many entries `by_rules` may have before dead ones are looked for.
    sweep_at: usize,
    hasher: RandomState,
}

/// Fewer entries than this are not worth looking for dead ones.
const SWEEP_LEAST: usize = 1024;

impl Class {
    /// What it says of a port of a protocol: the answer of the kernel's longest-prefix map.
    #[must_use]
    pub fn verdict(&self, protocol: u8, port: u16) -> Option<PortVerdict> {
        let covering = self
            .entries
            .iter()
            .filter(|entry| entry.covers(protocol, port));
        let longest = covering.max_by_key(|entry| entry.prefix_bits)?;
        Some(longest.verdict)
    }
}

impl ClassEntry {
    /// Whether a port of a protocol lies in its prefix.
    #[must_use]
    pub fn covers(&self, protocol: u8, port: u16) -> bool {
        let bits = self.prefix_bits;
        if bits <= PortKey::ANY_BITS {
            return true;
        }
        let beyond = PortKey::PORT_BITS.saturating_sub(bits);
        let differs = u32::from(self.port ^ port) >> beyond;
        self.protocol == protocol && differs == 0
    }
}

impl Classes {
    /// The class of a list of rules, each by the number of its meaning, made of their claims if
    /// need be. None if they claim nothing.
    pub(super) fn get(
        &mut self,
        rules: Vec<u64>,
        claims: impl FnOnce() -> Vec<Claim>,
    ) -> Option<Arc<Class>> {
        if let Some(class) = self.by_rules.get(rules.as_slice()).and_then(Weak::upgrade) {
            return Some(class);
        }
        let entries = claim::resolve(claims().iter());
        if entries.is_empty() {
            return None;
        }
        let class = self.intern(Class { entries });
        self.sweep();
        self.by_rules.insert(rules.into(), Arc::downgrade(&class));
        Some(class)
    }

    /// The one class that says the same.
    fn intern(&mut self, class: Class) -> Arc<Class> {
        let same = self
            .by_content
            .entry(self.hasher.hash_one(&class))
            .or_default();
        let found = same
            .iter()
            .filter_map(Weak::upgrade)
            .find(|other| **other == class);
        if let Some(found) = found {
            return found;
        }
        let class = Arc::new(class);
        same.push(Arc::downgrade(&class));
        class
    }

    /// Gives back the memory of classes that are no longer used, once there are as many again.
    fn sweep(&mut self) {
        if self.by_rules.len() < self.sweep_at.max(SWEEP_LEAST) {
            return;
        }
        self.by_rules.retain(|_, class| class.strong_count() > 0);
        self.by_content.retain(|_, same| {
            same.retain(|class| class.strong_count() > 0);
            !same.is_empty()
        });
        self.sweep_at = self.by_rules.len() * 2;
    }

    /// How many classes are in use, and the entries in them.
    pub(super) fn count(&self) -> (usize, usize) {
        let live = self.by_content.values().flatten().filter_map(Weak::upgrade);
        live.fold((0, 0), |(classes, entries), class| {
            (classes + 1, entries + class.entries.len())
        })
    }
}
