//! What is compiled: rule sets of subjects, and what the numbers of rules mean.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use datapath_kern::abi::metric::Direction;
use serde::{Deserialize, Serialize};

use super::class::Class;
use super::model::{DocumentId, RuleVerdict};

/// Whom a rule set is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SubjectKey {
    /// The node itself.
    Node,
    /// All endpoints of an identity.
    Identity(u32),
}

/// What a subject may begin with others, and they with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleSet {
    /// What others may begin; none: they need no rule.
    pub ingress: Option<DirectionRules>,
    /// What it may begin; none: it needs no rule.
    pub egress: Option<DirectionRules>,
}

/// One direction of a rule set: whose entry leads to which class.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirectionRules {
    /// The class of every identity that is not in `peers`; none: nothing is allowed.
    pub any: Option<Arc<Class>>,
    /// Identities that rules name, each with its class, in which those of `any` are contained.
    pub peers: BTreeMap<u32, Arc<Class>>,
}

/// Where a rule comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleRef {
    /// Number of the rule, as flows and events have it.
    pub id: u32,
    /// The document; none of a refused one whose name could not be read.
    pub document: Option<DocumentId>,
    /// Where it stands in the document; [`RuleRef::REFUSED`] for the rule that keeps the subjects
    /// of a refused one closed.
    pub path: String,
    /// File of the document; none if it came another way.
    pub file: Option<PathBuf>,
    /// Line where the rule begins, counted from one; zero where that is not known.
    pub line: u64,
    /// What it does.
    pub verdict: RuleVerdict,
}

/// Subjects whose rule sets may differ from what they were.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "rule sets of these subjects are to be fetched anew"]
pub struct Changed {
    /// Whether it may be any subject.
    all: bool,
    /// Whether [`prefixes`](super::PolicyEngine::prefixes) may differ.
    prefixes: bool,
    /// Which subjects, if not any.
    subjects: BTreeSet<SubjectKey>,
}

impl RuleSet {
    /// The rules of one direction; none: it needs no rule.
    #[must_use]
    pub fn direction(&self, direction: Direction) -> Option<&DirectionRules> {
        match direction {
            Direction::Ingress => self.ingress.as_ref(),
            Direction::Egress => self.egress.as_ref(),
        }
    }
}

impl DirectionRules {
    /// The class that counts for an identity; none: nothing is allowed.
    #[must_use]
    pub fn class_of(&self, identity: u32) -> Option<&Arc<Class>> {
        self.peers.get(&identity).or(self.any.as_ref())
    }
}

impl RuleRef {
    /// Path of the rule that keeps the subjects of a refused document closed.
    pub const REFUSED: &str = "refused";
}

impl Changed {
    /// Nobody.
    pub fn none() -> Self {
        Self::default()
    }

    /// All.
    pub fn all() -> Self {
        Self {
            all: true,
            prefixes: true,
            subjects: BTreeSet::new(),
        }
    }

    /// Whether there is nobody.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.all && self.subjects.is_empty()
    }

    /// Whether it may be any subject.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.all
    }

    /// Whether a subject is among them.
    #[must_use]
    pub fn contains(&self, subject: SubjectKey) -> bool {
        self.all || self.subjects.contains(&subject)
    }

    /// Which they are; nothing to be gone by if [`Changed::is_all`].
    #[must_use]
    pub fn subjects(&self) -> &BTreeSet<SubjectKey> {
        &self.subjects
    }

    /// Whether [`prefixes`](super::PolicyEngine::prefixes) may differ.
    #[must_use]
    pub fn prefixes(&self) -> bool {
        self.prefixes
    }

    /// Adds those of another change.
    pub fn merge(&mut self, other: Self) {
        self.all |= other.all;
        self.prefixes |= other.prefixes;
        self.subjects.extend(other.subjects);
    }

    /// Adds a subject.
    pub(super) fn add(&mut self, subject: SubjectKey) {
        self.subjects.insert(subject);
    }

    /// Notes that the prefixes may differ.
    pub(super) fn with_prefixes(mut self, differ: bool) -> Self {
        self.prefixes |= differ;
        self
    }
}

impl fmt::Display for RuleRef {
    /// `Kind/namespace/name spec.ingress[0] (file:line)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.document {
            Some(document) => write!(f, "{document} {}", self.path)?,
            None => write!(f, "a document without a name, {}", self.path)?,
        }
        match &self.file {
            Some(file) => write!(f, " ({}:{})", file.display(), self.line),
            None if self.line > 0 => write!(f, " (line {})", self.line),
            None => Ok(()),
        }
    }
}
