//! [`Table`] over a vector and over a hash map, bounded as BPF maps are.

use core::cell::{Cell, RefCell};
use core::hash::Hash as Hashed;
use std::collections::{BTreeMap, HashMap};
use std::vec::Vec;

use crate::env::{InsertError, Table};

/// `BPF_MAP_TYPE_ARRAY`: every element exists, zero at first.
///
/// Only what was written is kept, so that a [`Host`](super::Host) costs next to nothing to make.
#[derive(Clone, Debug)]
pub struct Array<V> {
    length: u32,
    written: RefCell<BTreeMap<u32, V>>,
}

impl<V: Copy + Default> Array<V> {
    /// `length` elements.
    #[must_use]
    pub fn new(length: u32) -> Self {
        Self {
            length,
            written: RefCell::default(),
        }
    }
}

impl<V: Copy + Default> Table<u32, V> for Array<V> {
    fn get(&self, key: &u32) -> Option<V> {
        let there = *key < self.length;
        there.then(|| self.written.borrow().get(key).copied().unwrap_or_default())
    }

    fn update<R>(&self, key: &u32, change: impl FnOnce(&mut V) -> R) -> Option<R> {
        let there = *key < self.length;
        there.then(|| change(self.written.borrow_mut().entry(*key).or_default()))
    }

    fn insert(&self, _: &u32, _: &V) -> Result<(), InsertError> {
        Err(InsertError::Exists)
    }

    fn remove(&self, _: &u32) -> bool {
        false
    }
}

/// `BPF_MAP_TYPE_HASH`, or `BPF_MAP_TYPE_LRU_HASH` where it evicts.
///
/// The kernel's evicts *about* the least recently used, a batch at a time; this one exactly that
/// one, so that a test can say which.
#[derive(Clone, Debug)]
pub struct Hash<K, V> {
    capacity: usize,
    evicts: Evicts,
    refused: Cell<u32>,
    inner: RefCell<Inner<K, V>>,
}

/// What a full table does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Evicts {
    Nothing,
    Oldest,
    /// Whichever comes first in the table's own order, which is another one in every table.
    Any,
}

#[derive(Clone, Debug)]
struct Inner<K, V> {
    entries: HashMap<K, Entry<V>>,
    /// Counts accesses: the time that `Entry::used` is in.
    accesses: u64,
}

#[derive(Clone, Debug)]
struct Entry<V> {
    value: V,
    used: u64,
}

impl<K: Copy + Eq + Hashed, V: Copy> Hash<K, V> {
    /// One that refuses when it is full.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let inner = Inner {
            entries: HashMap::new(),
            accesses: 0,
        };
        Self {
            capacity,
            evicts: Evicts::Nothing,
            refused: Cell::new(0),
            inner: RefCell::new(inner),
        }
    }

    /// One that lets go of the least recently used entry when it is full.
    #[must_use]
    pub fn evicting(capacity: usize) -> Self {
        Self {
            evicts: Evicts::Oldest,
            ..Self::new(capacity)
        }
    }

    /// One that lets go of whichever entry it likes when it is full: the kernel's evicts what has
    /// not been used *of late*, by CPU, which may be the entry that was made just now.
    #[must_use]
    pub fn evicting_any(capacity: usize) -> Self {
        Self {
            evicts: Evicts::Any,
            ..Self::new(capacity)
        }
    }

    /// Has the next `count` new keys refused as for want of room, as the kernel does where it
    /// cannot lock a bucket or has no free element on this CPU.
    pub fn refuse(&self, count: u32) {
        self.refused.set(count);
    }

    /// Writes a value whether or not its key has one, as user space does.
    ///
    /// # Errors
    ///
    /// [`InsertError::Full`] where there is no room for another key.
    pub fn set(&self, key: K, value: V) -> Result<(), InsertError> {
        match self.update(&key, |old| *old = value) {
            Some(()) => Ok(()),
            None => self.insert(&key, &value),
        }
    }

    /// All there is, in no order.
    #[must_use]
    pub fn entries(&self) -> Vec<(K, V)> {
        self.inner
            .borrow()
            .entries
            .iter()
            .map(|(key, entry)| (*key, entry.value))
            .collect()
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.borrow().entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<K: Copy + Eq + Hashed, V: Copy> Table<K, V> for Hash<K, V> {
    fn get(&self, key: &K) -> Option<V> {
        self.update(key, |value| *value)
    }

    fn update<R>(&self, key: &K, change: impl FnOnce(&mut V) -> R) -> Option<R> {
        let inner = &mut *self.inner.borrow_mut();
        inner.accesses += 1;
        let entry = inner.entries.get_mut(key)?;
        entry.used = inner.accesses;
        Some(change(&mut entry.value))
    }

    fn insert(&self, key: &K, value: &V) -> Result<(), InsertError> {
        let inner = &mut *self.inner.borrow_mut();
        inner.accesses += 1;
        if inner.entries.contains_key(key) {
            return Err(InsertError::Exists);
        }
        if let Some(left) = self.refused.get().checked_sub(1) {
            self.refused.set(left);
            return Err(InsertError::Full);
        }
        if inner.entries.len() >= self.capacity {
            let mut entries = inner.entries.iter();
            let victim = match self.evicts {
                Evicts::Nothing => None,
                Evicts::Oldest => entries.min_by_key(|(_, entry)| entry.used),
                Evicts::Any => entries.next(),
            };
            let Some(victim) = victim.map(|(key, _)| *key) else {
                return Err(InsertError::Full);
            };
            inner.entries.remove(&victim);
        }
        inner.entries.insert(
            *key,
            Entry {
                value: *value,
                used: inner.accesses,
            },
        );
        Ok(())
    }

    fn remove(&self, key: &K) -> bool {
        self.inner.borrow_mut().entries.remove(key).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_table_refuses() {
        let table = Hash::new(2);
        assert_eq!(
            (table.insert(&1, &'a'), table.insert(&2, &'b')),
            (Ok(()), Ok(()))
        );
        assert_eq!(table.insert(&2, &'c'), Err(InsertError::Exists));
        assert_eq!(table.insert(&3, &'c'), Err(InsertError::Full));
        assert_eq!(table.set(2, 'd'), Ok(()));
        assert_eq!(table.set(3, 'd'), Err(InsertError::Full));
        assert_eq!(table.get(&2), Some('d'));
        assert!(table.remove(&1) && !table.remove(&1));
        assert_eq!(table.insert(&3, &'c'), Ok(()));
    }

    #[test]
    fn an_evicting_table_lets_go_of_the_least_recently_used() {
        let table = Hash::evicting(2);
        assert_eq!(
            (table.insert(&1, &'a'), table.insert(&2, &'b')),
            (Ok(()), Ok(()))
        );
        assert_eq!(table.get(&1), Some('a'));
        assert_eq!(table.insert(&3, &'c'), Ok(()));
        assert_eq!(
            (table.get(&1), table.get(&2), table.len()),
            (Some('a'), None, 2)
        );
    }

    #[test]
    fn a_refusal_is_for_new_keys_and_ends() {
        let table = Hash::evicting(2);
        assert_eq!(table.insert(&1, &'a'), Ok(()));
        table.refuse(1);
        assert_eq!(table.insert(&1, &'b'), Err(InsertError::Exists));
        assert_eq!(table.insert(&2, &'b'), Err(InsertError::Full));
        assert_eq!(table.insert(&2, &'b'), Ok(()));
    }

    #[test]
    fn an_array_has_all_its_elements_and_no_more() {
        let array = Array::<u32>::new(4);
        assert_eq!(array.update(&3, |value| *value = 7), Some(()));
        assert_eq!(
            (array.get(&0), array.get(&3), array.get(&4)),
            (Some(0), Some(7), None)
        );
        assert_eq!(array.insert(&0, &1), Err(InsertError::Exists));
        assert!(!array.remove(&0));
    }
}
