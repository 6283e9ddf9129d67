//! Which identities the selectors, prefixes and entities of documents fit: each is asked once of
//! each identity, and the answer kept.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ipnet::IpNet;

use super::cidr;
use super::model::{Entity, Peer};
use super::selector::{Operator, Selector};
use super::universe::{Known, Universe};

/// Number of a matcher.
pub(super) type MatcherId = u32;

/// What rules name identities by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Matcher {
    /// Labels.
    Labelled(Selector),
    /// A prefix, less some.
    Cidr { cidr: IpNet, except: Vec<IpNet> },
    /// A word.
    Entity(Entity),
}

/// Whom a specification is for: identities that a matcher fits, if they are endpoints, or the node
/// if it fits that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SubjectMatcher {
    /// The matcher.
    pub(super) matcher: MatcherId,
    /// Whether it is for nodes.
    pub(super) nodes: bool,
}

/// All matchers in use.
#[derive(Debug, Default)]
pub(super) struct Matchers {
    ids: HashMap<Matcher, MatcherId>,
    slots: BTreeMap<MatcherId, Slot>,
    next: MatcherId,
    /// Selectors that ask for a key with one of some values: by key and value.
    anchored: HashMap<(String, String), BTreeSet<MatcherId>>,
    /// Those that have to be asked of every identity: other selectors, and entities.
    loose: BTreeSet<MatcherId>,
    /// Those of prefixes.
    cidrs: HashMap<IpNet, BTreeSet<MatcherId>>,
}

/// A matcher in use.
#[derive(Debug)]
struct Slot {
    matcher: Matcher,
    members: BTreeSet<u32>,
    /// Of how many specifications it is the subject, apart from their being for nodes.
    subject_of: BTreeMap<SubjectMatcher, usize>,
    /// In how many rules of which subjects it is a peer.
    peer_of: BTreeMap<SubjectMatcher, usize>,
}

/// What a matcher is to those who use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// It selects subjects.
    Subject {
        /// Whether nodes.
        nodes: bool,
    },
    /// It selects peers in a rule for these subjects.
    Peer(SubjectMatcher),
}

impl Matcher {
    /// What a peer is matched by.
    pub(super) fn of(peer: &Peer) -> Self {
        match peer {
            Peer::Labelled(selector) => Self::Labelled(selector.clone()),
            Peer::Cidr { cidr, except } => Self::Cidr {
                cidr: cidr.trunc(),
                except: except.iter().map(IpNet::trunc).collect(),
            },
            Peer::Entity(entity) => Self::Entity(*entity),
        }
    }

    /// Whether it fits what is known of an identity.
    pub(super) fn fits(&self, known: &Known) -> bool {
        known.told && self.fits_told(known)
    }

    fn fits_told(&self, known: &Known) -> bool {
        match self {
            Self::Labelled(selector) => selector.matches(&known.labels),
            Self::Cidr { cidr, except } => known
                .prefix
                .is_some_and(|prefix| cidr::fits(prefix, *cidr, except)),
            Self::Entity(entity) => known.is(*entity),
        }
    }

    /// A key and values of which an identity must have one, where there is such a thing: its
    /// namespace by preference, which splits identities well.
    fn anchor(&self) -> Option<(&str, &[String])> {
        let Self::Labelled(selector) = self else {
            return None;
        };
        let mut best: Option<(&str, &[String])> = None;
        for requirement in &selector.requirements {
            if let Operator::In(values) = &requirement.operator {
                let is_namespace = requirement.key == super::labels::Labels::NAMESPACE;
                if best.is_none() || is_namespace {
                    best = Some((&requirement.key, values));
                }
            }
        }
        best
    }
}

impl Matchers {
    /// Uses a matcher, also again; it is there from then on.
    pub(super) fn acquire(
        &mut self,
        matcher: &Matcher,
        used: Use,
        universe: &Universe,
    ) -> MatcherId {
        let id = match self.ids.get(matcher) {
            Some(&id) => id,
            None => self.insert(matcher, universe),
        };
        if let Some(slot) = self.slots.get_mut(&id) {
            *slot.count(id, used) += 1;
        }
        id
    }

    /// Ends a use. The last one removes the matcher.
    pub(super) fn release(&mut self, id: MatcherId, used: Use) {
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        let count = slot.count(id, used);
        *count = count.saturating_sub(1);
        slot.subject_of.retain(|_, count| *count > 0);
        slot.peer_of.retain(|_, count| *count > 0);
        if !slot.subject_of.is_empty() || !slot.peer_of.is_empty() {
            return;
        }
        if let Some(slot) = self.slots.remove(&id) {
            self.unfile(id, &slot.matcher);
            self.ids.remove(&slot.matcher);
        }
    }

    /// The identities that it fits.
    pub(super) fn members(&self, id: MatcherId) -> impl Iterator<Item = u32> + '_ {
        let slot = self.slots.get(&id);
        slot.into_iter()
            .flat_map(|slot| slot.members.iter().copied())
    }

    /// Whether it fits an identity.
    pub(super) fn fits(&self, id: MatcherId, identity: u32) -> bool {
        let slot = self.slots.get(&id);
        slot.is_some_and(|slot| slot.members.contains(&identity))
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Asks those that may have another answer for an identity, which was `old` and is `new`.
    /// Returns whose rules name it now and did not, or the other way round; and whether the
    /// documents for it itself may be others.
    pub(super) fn refresh(
        &mut self,
        identity: u32,
        old: Option<&Known>,
        new: Option<&Known>,
    ) -> BTreeSet<SubjectMatcher> {
        let mut affected = BTreeSet::new();
        for id in self.candidates(old.into_iter().chain(new)) {
            let Some(slot) = self.slots.get_mut(&id) else {
                continue;
            };
            let fits = new.is_some_and(|known| slot.matcher.fits(known));
            let changed = if fits {
                slot.members.insert(identity)
            } else {
                slot.members.remove(&identity)
            };
            if changed {
                affected.extend(slot.peer_of.keys());
            }
        }
        affected
    }

    /// Matchers that may fit one of these.
    fn candidates<'a>(&self, known: impl Iterator<Item = &'a Known>) -> BTreeSet<MatcherId> {
        let mut found = self.loose.clone();
        for known in known {
            for label in known.labels.iter() {
                let anchored = self.anchored.get(&(label.key, label.value));
                found.extend(anchored.into_iter().flatten());
            }
            let around = known.prefix.into_iter().flat_map(cidr::supernets);
            for cidr in around {
                found.extend(self.cidrs.get(&cidr).into_iter().flatten());
            }
        }
        found
    }

    fn insert(&mut self, matcher: &Matcher, universe: &Universe) -> MatcherId {
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        let members = match (matcher, matcher.anchor()) {
            (_, Some((key, values))) => universe
                .with_label(key, values)
                .into_iter()
                .filter(|&identity| matcher.fits(universe.get(identity)))
                .collect(),
            (Matcher::Cidr { cidr, except }, None) => universe
                .inside(*cidr)
                .filter(|(prefix, _)| cidr::fits(*prefix, *cidr, except))
                .map(|(_, identity)| identity)
                .collect(),
            _ => universe
                .iter()
                .filter(|(_, known)| matcher.fits(known))
                .map(|(identity, _)| identity)
                .collect(),
        };
        self.file(id, matcher);
        self.ids.insert(matcher.clone(), id);
        self.slots.insert(
            id,
            Slot {
                matcher: matcher.clone(),
                members,
                subject_of: BTreeMap::new(),
                peer_of: BTreeMap::new(),
            },
        );
        id
    }

    fn file(&mut self, id: MatcherId, matcher: &Matcher) {
        if let Some((key, values)) = matcher.anchor() {
            for value in values {
                let anchor = (key.to_owned(), value.clone());
                self.anchored.entry(anchor).or_default().insert(id);
            }
        } else if let Matcher::Cidr { cidr, .. } = matcher {
            self.cidrs.entry(*cidr).or_default().insert(id);
        } else {
            self.loose.insert(id);
        }
    }

    fn unfile(&mut self, id: MatcherId, matcher: &Matcher) {
        if let Some((key, values)) = matcher.anchor() {
            for value in values {
                remove_from(&mut self.anchored, &(key.to_owned(), value.clone()), id);
            }
        } else if let Matcher::Cidr { cidr, .. } = matcher {
            remove_from(&mut self.cidrs, cidr, id);
        } else {
            self.loose.remove(&id);
        }
    }
}

impl Slot {
    fn count(&mut self, id: MatcherId, used: Use) -> &mut usize {
        match used {
            Use::Subject { nodes } => {
                let subject = SubjectMatcher { matcher: id, nodes };
                self.subject_of.entry(subject).or_default()
            }
            Use::Peer(subject) => self.peer_of.entry(subject).or_default(),
        }
    }
}

fn remove_from<K: Eq + std::hash::Hash>(
    sets: &mut HashMap<K, BTreeSet<MatcherId>>,
    key: &K,
    id: MatcherId,
) {
    if let Some(set) = sets.get_mut(key) {
        set.remove(&id);
        if set.is_empty() {
            sets.remove(key);
        }
    }
}
