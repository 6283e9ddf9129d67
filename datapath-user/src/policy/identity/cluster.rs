//! Numbers that all nodes find by themselves, and find the same.

use std::collections::BTreeMap;

use datapath_kern::abi::endpoint::identity::{FIRST_ALLOCATED, MAX};

use super::IdentityAllocator;
use crate::error::Error;
use crate::policy::labels::Labels;
use crate::policy::numbering::fnv1a;

/// Numbers that are hashes of the labels: every node comes to the same ones without a word to the
/// others. Two sets of labels with one hash are refused, and one of them has to be given a number.
///
/// Among 1,000 identities, chances of one such pair are 3 %; among 100, 0.03 %.
#[derive(Debug, Default)]
pub struct ClusterIdentities {
    held: BTreeMap<u32, Labels>,
    /// Numbers that were given, by labels: they go before the hash.
    given: BTreeMap<Labels, u32>,
}

impl ClusterIdentities {
    /// Gives labels a number, in the place of their hash.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a number out of range, [`Error::IdentityCollision`] for one that other
    /// labels have.
    pub fn give(&mut self, number: u32, labels: &Labels) -> Result<(), Error> {
        if !(FIRST_ALLOCATED..=MAX).contains(&number) {
            return Err(Error::Invalid {
                what: "identity",
                value: number.to_string(),
                rule: "must be from 256 to 16777215",
            });
        }
        self.hold(number, labels)?;
        if let Some(other) = self.given.insert(labels.clone(), number)
            && other != number
        {
            self.held.remove(&other);
        }
        Ok(())
    }

    fn hold(&mut self, number: u32, labels: &Labels) -> Result<(), Error> {
        match self.held.get(&number) {
            Some(known) if known != labels => Err(Error::IdentityCollision {
                number,
                labels: labels.to_string(),
                known: known.to_string(),
            }),
            Some(_) => Ok(()),
            None => {
                self.held.insert(number, labels.clone());
                Ok(())
            }
        }
    }
}

impl IdentityAllocator for ClusterIdentities {
    /// # Errors
    ///
    /// [`Error::IdentityCollision`] where other labels have the number.
    fn allocate(&mut self, labels: &Labels) -> Result<u32, Error> {
        let given = self.given.get(labels).copied();
        let number = given.unwrap_or_else(|| hashed(labels));
        self.hold(number, labels)?;
        Ok(number)
    }

    fn release(&mut self, number: u32) {
        self.held.remove(&number);
        self.given.retain(|_, given| *given != number);
    }

    fn labels(&self, number: u32) -> Option<Labels> {
        self.held.get(&number).cloned()
    }
}

/// The number of some labels: FNV-1a of them, a line each in order, brought into the range.
fn hashed(labels: &Labels) -> u32 {
    let lines = Vec::<String>::from(labels.clone()).join("\n");
    FIRST_ALLOCATED + fnv1a(&lines) % (MAX - FIRST_ALLOCATED + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::source;

    fn labels(app: u32) -> Labels {
        Labels::default().with(source::K8S, "app", &app.to_string())
    }

    #[test]
    fn every_node_finds_the_same_numbers() {
        let mut one = ClusterIdentities::default();
        let mut other = ClusterIdentities::default();
        for app in 0..200 {
            let number = one.allocate(&labels(app)).unwrap();
            assert!((FIRST_ALLOCATED..=MAX).contains(&number));
            assert_eq!(one.labels(number), Some(labels(app)));
            assert_eq!(other.allocate(&labels(app)).unwrap(), number);
        }
        // Part of what nodes agree on: it must never change.
        assert_eq!(hashed(&labels(1)), 13_242_572);
    }

    #[test]
    fn two_labels_of_one_number_are_refused_by_name() {
        let mut seen = BTreeMap::new();
        let pair = (0..).find_map(|app| Some((seen.insert(hashed(&labels(app)), app)?, app)));
        let (first, second) = pair.unwrap();
        let mut all = ClusterIdentities::default();
        let number = all.allocate(&labels(first)).unwrap();
        let said = all.allocate(&labels(second)).unwrap_err().to_string();
        for wanted in [
            format!("app={first}]"),
            format!("app={second}]"),
            format!("identity {number} "),
            "`identity = N`".into(),
        ] {
            assert!(said.contains(&wanted), "{wanted} in {said}");
        }
        all.give(300, &labels(second)).unwrap();
        assert_eq!(all.allocate(&labels(second)).unwrap(), 300);
        let said = all.give(300, &labels(first)).unwrap_err().to_string();
        assert!(said.contains("identity 300 "), "{said}");
        assert!(all.give(255, &labels(9)).is_err());
        all.release(number);
        all.release(300);
        assert_eq!(all.allocate(&labels(second)).unwrap(), number);
    }
}
