//! Numbers of rules: the same on every node and after every restart.

use std::collections::HashMap;

use super::rules::RuleRef;

/// Which number stands for which rule.
///
/// A rule's number is a hash of its name. Where two hashes are equal, the name that comes later in
/// the order of documents takes the next free number: so the numbers depend on the documents only,
/// not on the order in which they came.
#[derive(Debug)]
pub(super) struct Numbering {
    hash: fn(&str) -> u32,
    refs: HashMap<u32, (String, RuleRef)>,
    /// How many have another number than their hash.
    moved: usize,
}

/// A rule that is to have a number.
#[derive(Clone, Debug)]
pub(super) struct Named {
    /// `Kind/namespace/name#path`.
    pub(super) name: String,
    /// Where it comes from, but for the number.
    pub(super) rule: RuleRef,
}

/// Not all hashes were free: everything has to be numbered anew, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Collision;

impl Default for Numbering {
    fn default() -> Self {
        Self::new(fnv1a)
    }
}

impl Numbering {
    /// Numbers by a hash.
    pub(super) fn new(hash: fn(&str) -> u32) -> Self {
        Self {
            hash,
            refs: HashMap::new(),
            moved: 0,
        }
    }

    /// The number of a name: to be asked of numbered ones only.
    pub(super) fn of(&self, name: &str) -> u32 {
        let mut number = self.start(name);
        while let Some((holder, _)) = self.refs.get(&number) {
            if holder == name {
                return number;
            }
            number = after(number);
        }
        number
    }

    /// What a number stands for.
    pub(super) fn rule(&self, number: u32) -> Option<&RuleRef> {
        self.refs.get(&number).map(|(_, rule)| rule)
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.refs.len()
    }

    /// Gives numbers to more rules.
    pub(super) fn add(&mut self, rules: &[Named]) -> Result<(), Collision> {
        let free = |named: &Named| {
            let holder = self.refs.get(&self.start(&named.name));
            holder.is_none_or(|(name, _)| *name == named.name)
        };
        if self.moved > 0 || !rules.iter().all(free) {
            return Err(Collision);
        }
        for named in rules {
            self.place(named);
        }
        if self.moved > 0 {
            Err(Collision)
        } else {
            Ok(())
        }
    }

    /// Takes the numbers of some back.
    pub(super) fn remove(&mut self, rules: &[Named]) -> Result<(), Collision> {
        if self.moved > 0 {
            return Err(Collision);
        }
        for named in rules {
            let number = self.of(&named.name);
            self.refs.remove(&number);
        }
        Ok(())
    }

    /// Numbers all rules anew, which are in order.
    pub(super) fn renumber<'a>(&mut self, rules: impl Iterator<Item = &'a Named>) {
        self.refs.clear();
        self.moved = 0;
        for named in rules {
            self.place(named);
        }
    }

    /// Names that occur twice are one rule, and keep the first reference.
    fn place(&mut self, named: &Named) {
        let number = self.of(&named.name);
        if self.refs.contains_key(&number) {
            return;
        }
        self.moved += usize::from(number != self.start(&named.name));
        let rule = RuleRef {
            id: number,
            ..named.rule.clone()
        };
        self.refs.insert(number, (named.name.clone(), rule));
    }

    fn start(&self, name: &str) -> u32 {
        (self.hash)(name).max(1)
    }
}

/// The number after one; zero is none.
fn after(number: u32) -> u32 {
    number.wrapping_add(1).max(1)
}

/// FNV-1a, 32 bits (the Internet draft `draft-eastlake-fnv`, section 2).
pub(crate) fn fnv1a(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use super::super::model::RuleVerdict;
    use super::*;

    fn named(name: &str) -> Named {
        Named {
            name: name.into(),
            rule: RuleRef {
                id: 0,
                document: None,
                path: name.into(),
                file: None,
                line: 0,
                verdict: RuleVerdict::Allow,
            },
        }
    }

    #[test]
    fn the_hash_is_the_published_one() {
        assert_eq!(fnv1a(""), 0x811c_9dc5);
        assert_eq!(fnv1a("a"), 0xe40c_292c);
        assert_eq!(fnv1a("foobar"), 0xbf9c_f968);
    }

    #[test]
    fn numbers_depend_on_the_order_of_names_and_not_on_that_of_coming() {
        let narrow: fn(&str) -> u32 = |name| u32::try_from(name.len()).unwrap() % 4;
        let all: Vec<Named> = ["a", "b", "cc", "dd", "eeee"].map(named).to_vec();
        let mut whole = Numbering::new(narrow);
        whole.renumber(all.iter());
        let numbers = |numbering: &Numbering| -> Vec<u32> {
            all.iter().map(|named| numbering.of(&named.name)).collect()
        };
        assert_eq!(numbers(&whole), [1, 2, 3, 4, 5]);
        for (at, one) in all.iter().enumerate() {
            assert_eq!(whole.rule(numbers(&whole)[at]).unwrap().path, one.name);
        }

        let mut late = Numbering::new(narrow);
        late.add(&all[2..3]).unwrap();
        assert_eq!(late.add(&all[3..4]), Err(Collision));
        late.renumber(all.iter());
        assert_eq!(numbers(&late), numbers(&whole));
        assert_eq!(late.remove(&all[..1]), Err(Collision));
    }

    #[test]
    fn what_does_not_collide_comes_and_goes_alone() {
        let mut numbering = Numbering::default();
        let (a, b) = (named("a"), named("b"));
        numbering.add(&[a.clone(), b.clone()]).unwrap();
        let number = numbering.of("b");
        numbering.remove(&[a]).unwrap();
        assert_eq!(numbering.of("b"), number);
        assert_eq!(numbering.len(), 1);
    }
}
