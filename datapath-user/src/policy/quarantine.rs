//! Refused documents: whoever they would have been for stays closed until they are mended.

use std::path::PathBuf;

use super::installed::InstalledRule;
use super::matcher::SubjectMatcher;
use super::model::{DocumentId, RuleVerdict, Subject};
use super::numbering::Named;
use super::rules::RuleRef;

/// What a refused document is known by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QuarantineKey {
    /// Its name.
    Document(DocumentId),
    /// A text of the caller's, where the name could not be read: the file, and which of its
    /// documents.
    Unnamed(String),
}

/// Where a refused document is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Its file; none if it came another way.
    pub file: Option<PathBuf>,
    /// Line of what it was refused for, counted from one; zero where that is not known.
    pub line: u64,
}

/// A refused document.
#[derive(Debug)]
pub(super) struct Quarantined {
    /// For whom it would have been.
    pub(super) subject: SubjectMatcher,
    /// The same, as it was told.
    pub(super) subject_of: Subject,
    /// What keeps them closed.
    pub(super) rule: InstalledRule,
    /// The name of that rule.
    pub(super) named: Named,
}

impl From<DocumentId> for QuarantineKey {
    fn from(id: DocumentId) -> Self {
        Self::Document(id)
    }
}

impl QuarantineKey {
    /// The rule that keeps the subjects closed.
    pub(super) fn named(&self, place: Place) -> Named {
        let (name, document) = match self {
            Self::Document(id) => (id.to_string(), Some(id.clone())),
            Self::Unnamed(text) => (text.clone(), None),
        };
        Named {
            name: format!("{name}#{}", RuleRef::REFUSED),
            rule: RuleRef {
                id: 0,
                document,
                path: RuleRef::REFUSED.into(),
                file: place.file,
                line: place.line,
                verdict: RuleVerdict::Deny,
            },
        }
    }
}
