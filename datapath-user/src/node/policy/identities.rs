//! Which labels the identities of this node's and other nodes' pods stand for.

use std::collections::{BTreeMap, BTreeSet};

use datapath_kern::abi::endpoint::identity;

use crate::config::{IdentitySource, PolicyConfig};
use crate::error::Error;
use crate::policy::{ClusterIdentities, IdentityAllocator, Labels, LocalIdentities};

/// The identities that pods have.
pub(crate) struct Identities {
    source: Source,
    known: BTreeMap<u32, Known>,
}

/// Where numbers come from.
enum Source {
    /// The lowest that is free.
    Counting,
    Allocator(Box<dyn IdentityAllocator>),
}

/// An identity that somebody has.
#[derive(Clone, Debug)]
struct Known {
    labels: Labels,
    /// Pods of this node, and addresses of other nodes' pods.
    users: usize,
    /// Of those, the ones that the number was found for.
    allocated: usize,
}

/// A number for a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Given {
    pub(crate) number: u32,
    /// It was found for the labels.
    pub(crate) allocated: bool,
    /// Nobody had it before.
    pub(crate) fresh: bool,
    /// It stands for other labels than before, or for some at last.
    pub(crate) relabelled: bool,
}

/// Identities that came and went together.
#[derive(Debug, Default)]
pub(crate) struct Swap {
    /// Those that came, in the order asked for.
    pub(crate) given: Vec<Given>,
    /// Numbers that nobody had before.
    pub(crate) fresh: BTreeSet<u32>,
    /// Numbers that stand for other labels.
    pub(crate) relabelled: BTreeSet<u32>,
    /// Numbers that nobody has any more.
    pub(crate) gone: BTreeSet<u32>,
}

impl Identities {
    /// Nobody's yet.
    ///
    /// # Errors
    ///
    /// What [`LocalIdentities::open`] says of its file.
    pub(crate) fn of(config: &PolicyConfig) -> Result<Self, Error> {
        let source = match (config.identities, &config.identities_file) {
            (IdentitySource::Cluster, _) => {
                Source::Allocator(Box::new(ClusterIdentities::default()))
            }
            (IdentitySource::Local, Some(file)) => {
                Source::Allocator(Box::new(LocalIdentities::open(file)?))
            }
            (IdentitySource::Local, None) => Source::Counting,
        };
        Ok(Self {
            source,
            known: BTreeMap::new(),
        })
    }

    /// Gives a pod its identity: the number that is asked for, else one for its labels, else that of
    /// pods without any.
    ///
    /// # Errors
    ///
    /// [`Error::IdentityCollision`], or what the allocator says; then nothing is changed.
    pub(crate) fn take(&mut self, asked: Option<u32>, labels: &Labels) -> Result<Given, Error> {
        let allocated = asked.is_none() && !labels.is_empty();
        let number = match asked {
            Some(number) => number,
            None if labels.is_empty() => identity::UNMANAGED,
            None => self.allocate(labels)?,
        };
        if number == identity::UNMANAGED {
            return Ok(Given {
                number,
                allocated: false,
                fresh: false,
                relabelled: false,
            });
        }
        let known = self.known.get(&number);
        if let Some(known) = known
            && !known.labels.is_empty()
            && !labels.is_empty()
            && known.labels != *labels
        {
            let other = Error::IdentityCollision {
                number,
                labels: labels.to_string(),
                known: known.labels.to_string(),
            };
            if allocated {
                self.release(number);
            }
            return Err(other);
        }
        let fresh = known.is_none();
        let known = self.known.entry(number).or_insert_with(|| Known {
            labels: Labels::default(),
            users: 0,
            allocated: 0,
        });
        let relabelled = !labels.is_empty() && known.labels != *labels;
        if relabelled {
            known.labels = labels.clone();
        }
        known.users += 1;
        known.allocated += usize::from(allocated);
        Ok(Given {
            number,
            allocated,
            fresh,
            relabelled,
        })
    }

    /// Goes on with the identity that an earlier process gave a pod.
    pub(crate) fn resume(&mut self, number: u32, allocated: bool, labels: &Labels) {
        if number == identity::UNMANAGED {
            return;
        }
        if allocated && let Source::Allocator(allocator) = &mut self.source {
            match allocator.allocate(labels) {
                Ok(same) if same == number => {}
                Ok(other) => allocator.release(other),
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(number, error, "identity kept, though another may get it");
                }
            }
        }
        let known = self.known.entry(number).or_insert_with(|| Known {
            labels: labels.clone(),
            users: 0,
            allocated: 0,
        });
        known.users += 1;
        known.allocated += usize::from(allocated);
    }

    /// Gives pods other identities, or the same ones with other labels: those of `old` go, and all
    /// of `new` come.
    ///
    /// # Errors
    ///
    /// As [`Identities::take`]; then nothing is changed.
    pub(crate) fn swap(
        &mut self,
        old: &[(u32, bool)],
        new: &[(Option<u32>, Labels)],
    ) -> Result<Swap, Error> {
        let named = old.iter().map(|&(number, _)| number);
        let before: BTreeMap<u32, Labels> = named
            .filter_map(|number| Some((number, self.labels(number)?.clone())))
            .collect();
        let (found, said): (Vec<_>, Vec<_>) = old.iter().partition(|(_, allocated)| *allocated);
        for (number, _) in &said {
            self.give_back(*number, false);
        }
        let mut taken: Vec<Given> = Vec::with_capacity(new.len());
        for (asked, labels) in new {
            match self.take(*asked, labels) {
                Ok(given) => taken.push(given),
                Err(error) => {
                    for given in taken {
                        self.give_back(given.number, given.allocated);
                    }
                    for (number, _) in said {
                        let labels = before.get(&number).cloned().unwrap_or_default();
                        self.resume(number, false, &labels);
                    }
                    return Err(error);
                }
            }
        }
        for (number, _) in found {
            self.give_back(number, true);
        }
        let mut swap = Swap::default();
        for given in &taken {
            match before.get(&given.number) {
                None if given.fresh => {
                    swap.fresh.insert(given.number);
                }
                Some(before) if self.labels(given.number) != Some(before) => {
                    swap.relabelled.insert(given.number);
                }
                None if given.relabelled => {
                    swap.relabelled.insert(given.number);
                }
                _ => {}
            }
        }
        let gone = before
            .keys()
            .filter(|number| !self.known.contains_key(number));
        swap.gone = gone.copied().collect();
        swap.given = taken;
        Ok(swap)
    }

    /// A pod does not have it any more; true where nobody has.
    pub(crate) fn give_back(&mut self, number: u32, allocated: bool) -> bool {
        let Some(known) = self.known.get_mut(&number) else {
            return false;
        };
        known.users = known.users.saturating_sub(1);
        let (users, was) = (known.users, known.allocated);
        known.allocated = was.saturating_sub(usize::from(allocated));
        let released = was > 0 && known.allocated == 0;
        if users == 0 {
            self.known.remove(&number);
        }
        if released {
            self.release(number);
        }
        users == 0
    }

    /// The labels of an identity that somebody has.
    pub(crate) fn labels(&self, number: u32) -> Option<&Labels> {
        self.known.get(&number).map(|known| &known.labels)
    }

    /// All that somebody has: numbers, labels, and how many have them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Labels, usize)> {
        let all = self.known.iter();
        all.map(|(&number, known)| (number, &known.labels, known.users))
    }

    fn allocate(&mut self, labels: &Labels) -> Result<u32, Error> {
        match &mut self.source {
            Source::Allocator(allocator) => allocator.allocate(labels),
            Source::Counting => {
                let same = |(_, known): &(&u32, &Known)| known.labels == *labels;
                if let Some((&number, _)) = self.known.iter().find(same) {
                    return Ok(number);
                }
                (identity::FIRST_ALLOCATED..=identity::MAX)
                    .find(|number| !self.known.contains_key(number))
                    .ok_or(Error::Full {
                        what: "identity",
                        max: identity::MAX,
                    })
            }
        }
    }

    fn release(&mut self, number: u32) {
        if let Source::Allocator(allocator) = &mut self.source {
            allocator.release(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::source;

    fn labels(app: &str) -> Labels {
        Labels::default().with(source::K8S, "app", app)
    }

    #[test]
    fn labels_have_one_number_as_long_as_somebody_has_them() {
        let mut all = Identities::of(&PolicyConfig::default()).unwrap();
        let web = all.take(None, &labels("web")).unwrap();
        assert!(web.allocated && web.fresh && web.relabelled, "{web:?}");
        let again = all.take(None, &labels("web")).unwrap();
        assert_eq!((again.number, again.fresh), (web.number, false));
        let db = all.take(None, &labels("db")).unwrap();
        assert_ne!(db.number, web.number);
        assert!(!all.give_back(web.number, true));
        assert_eq!(all.labels(web.number), Some(&labels("web")));
        assert!(all.give_back(web.number, true));
        assert_eq!(all.labels(web.number), None);
    }

    #[test]
    fn a_number_that_is_given_stands_for_one_set_of_labels() {
        let mut all = Identities::of(&PolicyConfig::default()).unwrap();
        let none = Labels::default();
        assert_eq!(all.take(None, &none).unwrap().number, identity::UNMANAGED);
        let bare = all.take(Some(256), &none).unwrap();
        assert!(bare.fresh && !bare.relabelled && !bare.allocated);
        let web = all.take(Some(256), &labels("web")).unwrap();
        assert!(!web.fresh && web.relabelled);
        let said = all.take(Some(256), &labels("db")).unwrap_err().to_string();
        assert!(
            said.contains("app=web") && said.contains("app=db"),
            "{said}"
        );
        // A number that is found is another one.
        assert_eq!(all.take(None, &labels("db")).unwrap().number, 257);
    }
}
