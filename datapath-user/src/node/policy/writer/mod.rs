//! Rule sets in the kernel's maps: classes and peers, written beside what is there, and removed when
//! nobody can be looking any more.

mod lines;
mod numbers;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use datapath_kern::abi::policy::{PeerKey, word};

use self::lines::{Line, difference, lines, place};
use self::numbers::Numbers;
use super::store::{PortEntry, Store};
use crate::error::Error;
use crate::policy::{Class, RuleSet};

/// How long a rule set stays after the switch to another one: a program that has read the old word
/// has long ended by then.
pub(super) const GRACE: Duration = Duration::from_secs(1);

/// What there is of rule sets in the maps, and to whom it belongs.
#[derive(Debug, Default)]
pub(super) struct Writer {
    sets: BTreeMap<u32, Set>,
    /// Sets by what they say.
    alike: HashMap<u64, Vec<u32>>,
    hasher: RandomState,
    /// Classes by where they are in memory: there is one of each.
    classes: HashMap<usize, ClassUse>,
    retired: Vec<Retired>,
    /// Numbers that are in the maps.
    set_numbers: Numbers,
    class_numbers: Numbers,
    /// Entries in the maps.
    used: Used,
}

/// How many entries there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Used {
    pub(super) peers: usize,
    pub(super) ports: usize,
}

#[derive(Debug)]
struct Set {
    rules: Arc<RuleSet>,
    /// Endpoints that have it.
    users: usize,
    print: u64,
}

#[derive(Debug)]
struct ClassUse {
    /// Keeps its place in memory its own.
    class: Arc<Class>,
    number: u32,
    /// Entries of sets that lead to it.
    users: usize,
}

/// What nobody is led to any more.
#[derive(Debug)]
struct Retired {
    since: Instant,
    sets: Vec<u32>,
    peers: Vec<PeerKey>,
    classes: Vec<u32>,
    ports: Vec<PortEntry>,
}

impl Writer {
    /// Enters a rule set, unless it is there; it has one user more then. Zero for one that needs no
    /// entries.
    ///
    /// # Errors
    ///
    /// [`Error::PolicyFull`], [`Error::Map`]; then nothing is changed.
    pub(super) fn enter(
        &mut self,
        store: &mut Store<'_>,
        rules: &Arc<RuleSet>,
    ) -> Result<u32, Error> {
        if lines(rules).next().is_none() {
            return Ok(0);
        }
        let print = self.print(rules);
        let same = self.alike.get(&print).into_iter().flatten();
        let same = same.copied().find(|number| {
            let set = self.sets.get(number);
            set.is_some_and(|set| Arc::ptr_eq(&set.rules, rules) || set.rules == *rules)
        });
        if let Some(number) = same {
            if let Some(set) = self.sets.get_mut(&number) {
                set.users += 1;
            }
            return Ok(number);
        }
        let lines: Vec<_> = lines(rules).collect();
        let number = self.set_numbers.take(word::SET);
        let written = self.write_lines(store, number, &lines);
        if let Err(error) = written {
            self.set_numbers.give_back(number);
            return Err(error);
        }
        let set = Set {
            rules: Arc::clone(rules),
            users: 1,
            print,
        };
        self.sets.insert(number, set);
        self.alike.entry(print).or_default().push(number);
        Ok(number)
    }

    /// The set has one user less; without any it is retired.
    pub(super) fn leave(&mut self, number: u32) {
        let Some(set) = self.sets.get_mut(&number) else {
            return;
        };
        set.users = set.users.saturating_sub(1);
        if set.users > 0 {
            return;
        }
        if let Some(set) = self.forget(number) {
            let keys = lines(&set.rules).map(|line| line.key(number)).collect();
            let classes = self.drop_classes(lines(&set.rules).map(|line| line.class));
            self.retire(vec![number], keys, &classes);
        }
    }

    /// What a set says.
    pub(super) fn rules(&self, number: u32) -> Option<&Arc<RuleSet>> {
        self.sets.get(&number).map(|set| &set.rules)
    }

    /// How many endpoints have a set.
    pub(super) fn users(&self, number: u32) -> usize {
        self.sets.get(&number).map_or(0, |set| set.users)
    }

    /// Has a set say something else about `numbers`, identities that nobody has yet or any more, in
    /// place; false where that is not all that is to be changed. New entries come before old ones go.
    ///
    /// # Errors
    ///
    /// As [`Writer::enter`].
    pub(super) fn amend(
        &mut self,
        store: &mut Store<'_>,
        number: u32,
        rules: &Arc<RuleSet>,
        numbers: &BTreeSet<u32>,
    ) -> Result<bool, Error> {
        let Some(before) = self.rules(number).cloned() else {
            return Ok(false);
        };
        let Some(change) = difference(&before, rules, numbers) else {
            return Ok(false);
        };
        self.write_lines(store, number, &change.added)?;
        if let Some(set) = self.forget(number) {
            let print = self.print(rules);
            let rules = Arc::clone(rules);
            self.alike.entry(print).or_default().push(number);
            self.sets.insert(
                number,
                Set {
                    rules,
                    print,
                    ..set
                },
            );
        }
        // At once: nobody is asking for them, and a number may be given out again.
        let gone: Vec<_> = change.removed.iter().map(|line| line.key(number)).collect();
        store.remove_peers(&gone)?;
        self.used.peers = self.used.peers.saturating_sub(gone.len());
        let classes = self.drop_classes(change.removed.iter().map(|line| line.class));
        self.retire(Vec::new(), Vec::new(), &classes);
        Ok(true)
    }

    /// Removes what has been retired for long enough; returns how many entries that were.
    ///
    /// # Errors
    ///
    /// [`Error::Map`]; what could not be removed is tried again the next time.
    pub(super) fn reap(&mut self, store: &mut Store<'_>, now: Instant) -> Result<usize, Error> {
        let due = |retired: &Retired| now.saturating_duration_since(retired.since) >= GRACE;
        let mut removed = 0;
        while let Some(at) = self.retired.iter().position(due) {
            let Some(retired) = self.retired.get(at) else {
                break;
            };
            store.remove_peers(&retired.peers)?;
            store.remove_ports(&retired.ports)?;
            let retired = self.retired.swap_remove(at);
            self.used.peers = self.used.peers.saturating_sub(retired.peers.len());
            self.used.ports = self.used.ports.saturating_sub(retired.ports.len());
            removed += retired.peers.len() + retired.ports.len();
            retired
                .sets
                .iter()
                .for_each(|&set| self.set_numbers.give_back(set));
            let classes = retired.classes.iter();
            classes.for_each(|&class| self.class_numbers.give_back(class));
        }
        Ok(removed)
    }

    /// Takes note of what an earlier process left: it stays until [`Writer::disown`].
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub(super) fn adopt(&mut self, store: &mut Store<'_>) -> Result<Leftover, Error> {
        let (peers, ports) = (store.peers()?, store.ports()?);
        self.used.peers += peers.len();
        self.used.ports += ports.len();
        let sets: BTreeSet<u32> = peers.iter().map(|(key, _)| key.set >> 1).collect();
        let classes: BTreeSet<u32> = ports.iter().map(PortEntry::class).collect();
        self.set_numbers.known(sets);
        self.class_numbers.known(classes);
        Ok(Leftover { peers, ports })
    }

    /// Has what an earlier process left go: everyone has rules of this one.
    pub(super) fn disown(&mut self, leftover: Leftover) {
        let Leftover { peers, ports } = leftover;
        let sets: BTreeSet<u32> = peers.iter().map(|(key, _)| key.set >> 1).collect();
        let classes: BTreeSet<u32> = ports.iter().map(PortEntry::class).collect();
        self.retired.push(Retired {
            since: Instant::now(),
            sets: sets.into_iter().collect(),
            peers: peers.into_iter().map(|(key, _)| key).collect(),
            classes: classes.into_iter().collect(),
            ports,
        });
    }

    /// Entries in both maps, those that are retired included.
    pub(super) fn used(&self) -> Used {
        self.used
    }

    /// Rule sets and classes in use.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.sets.len(), self.classes.len())
    }

    /// Notes entries that were written without it, as of a leftover that grew.
    pub(super) fn note_peers(&mut self, count: usize) {
        self.used.peers += count;
    }

    fn write_lines(
        &mut self,
        store: &mut Store<'_>,
        number: u32,
        lines: &[Line<'_>],
    ) -> Result<(), Error> {
        let mut fresh: BTreeMap<usize, (u32, &Arc<Class>)> = BTreeMap::new();
        let mut entries = 0;
        for line in lines {
            let place = place(line.class);
            if !self.classes.contains_key(&place) && !fresh.contains_key(&place) {
                entries += line.class.entries.len();
                fresh.insert(place, (0, line.class));
            }
        }
        self.make_room(store, lines.len(), entries)?;
        for (taken, _) in fresh.values_mut() {
            *taken = self.class_numbers.take(u32::MAX);
        }
        let ports: Vec<PortEntry> = fresh
            .values()
            .flat_map(|(class, of)| PortEntry::of(*class, of))
            .collect();
        let written = store.write_ports(&ports).and_then(|()| {
            let class_of = |line: &Line<'_>| {
                let place = place(line.class);
                let known = self.classes.get(&place).map(|class| class.number);
                known.or_else(|| fresh.get(&place).map(|(class, _)| *class))
            };
            let peers: Vec<(PeerKey, u32)> = lines
                .iter()
                .map(|line| (line.key(number), class_of(line).unwrap_or_default()))
                .collect();
            store.write_peers(&peers)
        });
        if let Err(error) = written {
            // Nobody was led there: it may go at once.
            let keys: Vec<PeerKey> = lines.iter().map(|line| line.key(number)).collect();
            let undone = store
                .remove_peers(&keys)
                .and_then(|()| store.remove_ports(&ports));
            if let Err(error) = undone {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(
                    error,
                    "entries of a rule set that could not be written stay"
                );
            }
            for (class, _) in fresh.values() {
                self.class_numbers.give_back(*class);
            }
            return Err(error);
        }
        self.used.peers += lines.len();
        self.used.ports += ports.len();
        for (place, (number, class)) in fresh {
            let class = ClassUse {
                class: Arc::clone(class),
                number,
                users: 0,
            };
            self.classes.insert(place, class);
        }
        for line in lines {
            if let Some(class) = self.classes.get_mut(&place(line.class)) {
                class.users += 1;
            }
        }
        Ok(())
    }

    /// Sees to it that so many entries fit, by removing what is retired; waits for its time where
    /// that helps.
    fn make_room(
        &mut self,
        store: &mut Store<'_>,
        peers: usize,
        ports: usize,
    ) -> Result<(), Error> {
        let room = store.room;
        let full = |used: Used| {
            let of = |used: usize, more: usize, max: u32| used + more > max as usize;
            if of(used.peers, peers, room.peers) {
                return Some(("policy_peers", peers, used.peers, room.peers));
            }
            let over = of(used.ports, ports, room.ports);
            over.then_some(("policy_ports", ports, used.ports, room.ports))
        };
        if full(self.used).is_none() {
            return Ok(());
        }
        self.reap(store, Instant::now())?;
        let retired = self
            .retired
            .iter()
            .fold(Used::default(), |sum, retired| Used {
                peers: sum.peers + retired.peers.len(),
                ports: sum.ports + retired.ports.len(),
            });
        let then = Used {
            peers: self.used.peers.saturating_sub(retired.peers),
            ports: self.used.ports.saturating_sub(retired.ports),
        };
        if full(self.used).is_some() && full(then).is_none() {
            std::thread::sleep(GRACE);
            self.reap(store, Instant::now())?;
        }
        match full(self.used) {
            None => Ok(()),
            Some((map, needed, used, max)) => Err(Error::PolicyFull {
                map,
                needed,
                used,
                max,
            }),
        }
    }

    fn forget(&mut self, number: u32) -> Option<Set> {
        let set = self.sets.remove(&number)?;
        if let Some(same) = self.alike.get_mut(&set.print) {
            same.retain(|other| *other != number);
            if same.is_empty() {
                self.alike.remove(&set.print);
            }
        }
        Some(set)
    }

    /// Each of these classes has one user less; returns those that have none left.
    fn drop_classes<'a>(&mut self, classes: impl Iterator<Item = &'a Arc<Class>>) -> Vec<ClassUse> {
        let mut unused = Vec::new();
        for class in classes {
            let place = place(class);
            let Some(known) = self.classes.get_mut(&place) else {
                continue;
            };
            known.users = known.users.saturating_sub(1);
            if known.users == 0 {
                unused.extend(self.classes.remove(&place));
            }
        }
        unused
    }

    fn retire(&mut self, sets: Vec<u32>, peers: Vec<PeerKey>, classes: &[ClassUse]) {
        if sets.is_empty() && peers.is_empty() && classes.is_empty() {
            return;
        }
        let ports = classes.iter();
        let ports = ports.flat_map(|class| PortEntry::of(class.number, &class.class));
        self.retired.push(Retired {
            since: Instant::now(),
            sets,
            peers,
            ports: ports.collect(),
            classes: classes.iter().map(|class| class.number).collect(),
        });
    }

    /// The same for sets that say the same.
    fn print(&self, rules: &RuleSet) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        for line in lines(rules) {
            (line.direction as u32, line.identity, place(line.class)).hash(&mut hasher);
        }
        // One that needs no rules and one that has none are judged otherwise, by the word.
        hasher.finish()
    }
}

/// What an earlier process left.
#[derive(Debug, Default)]
pub(super) struct Leftover {
    pub(super) peers: Vec<(PeerKey, u32)>,
    ports: Vec<PortEntry>,
}

impl Leftover {
    /// Whether there is nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.peers.is_empty() && self.ports.is_empty()
    }
}

#[cfg(test)]
mod tests;
