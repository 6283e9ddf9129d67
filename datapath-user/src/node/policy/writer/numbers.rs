//! Numbers of rule sets and of classes.

use std::collections::BTreeSet;

/// Numbers that are handed out in turn, past those that are in use.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    last: u32,
    taken: BTreeSet<u32>,
}

impl Numbers {
    /// The next one up to `max` that is not in use; never zero.
    pub(super) fn take(&mut self, max: u32) -> u32 {
        loop {
            self.last = if self.last >= max { 1 } else { self.last + 1 };
            if self.taken.insert(self.last) {
                return self.last;
            }
        }
    }

    pub(super) fn give_back(&mut self, number: u32) {
        self.taken.remove(&number);
    }

    /// These are in use, by somebody else; others come behind them.
    pub(super) fn known(&mut self, numbers: BTreeSet<u32>) {
        self.last = numbers.last().copied().unwrap_or_default().max(self.last);
        self.taken.extend(numbers);
    }
}
