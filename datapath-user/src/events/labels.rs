//! Labels of identities, as events carry them.

use std::collections::HashSet;
use std::sync::Arc;

use crate::policy::Labels;

/// Most label sets that are kept for sharing: more than a node has identities at work at a time.
const KEPT: usize = 4096;

/// One copy of each set of labels, for all events that carry it.
#[derive(Debug, Default)]
pub(super) struct Shelf(HashSet<Arc<Labels>>);

impl Shelf {
    /// The copy of these labels.
    pub(super) fn put(&mut self, labels: Labels) -> Arc<Labels> {
        if let Some(known) = self.0.get(&labels) {
            return Arc::clone(known);
        }
        if self.0.len() >= KEPT {
            self.0.clear();
        }
        let labels = Arc::new(labels);
        self.0.insert(Arc::clone(&labels));
        labels
    }
}

/// Serialises labels that are shared as labels.
pub(super) mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Labels;

    pub(in crate::events) fn serialize<S: Serializer>(
        labels: &Arc<Labels>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        labels.as_ref().serialize(serializer)
    }

    pub(in crate::events) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Arc<Labels>, D::Error> {
        Labels::deserialize(deserializer).map(Arc::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_labels_are_kept_once() {
        let mut shelf = Shelf::default();
        let one = shelf.put(Labels::reserved("host"));
        let same = shelf.put(Labels::reserved("host"));
        assert!(Arc::ptr_eq(&one, &same));
        assert_ne!(one, shelf.put(Labels::reserved("world")));
        for number in 0..2 * KEPT {
            shelf.put(Labels::reserved(&number.to_string()));
        }
        assert!(shelf.0.len() <= KEPT);
    }
}
