//! Why a document cannot be used.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::selector;
use crate::policy::{DocumentId, DocumentKind, Selector, Subject};

/// Columns of a line that are shown.
const WIDE: usize = 120;

/// One thing that is wrong with a document, which can then not be used. A document may have
/// several.
///
/// Displays as `file:line:column: problem`, with the line itself, a mark under the column, and
/// what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What the document is called, where that can be read.
    pub id: Option<DocumentId>,
    /// The kind that it says it has.
    pub kind: Option<String>,
    /// Its namespace, where that can be read.
    pub namespace: Option<String>,
    /// The file that it is from; none if it came another way.
    pub file: Option<PathBuf>,
    /// Line of the file, counted from one.
    pub line: u64,
    /// Column of the line, in characters, counted from one.
    pub column: u64,
    /// What is wrong.
    pub problem: String,
    /// What to write instead.
    pub help: Option<String>,
    /// The line itself, without what is more than a screen wide.
    pub excerpt: Option<String>,
    /// For whom it would have been, where that can be read.
    #[serde(skip)]
    pub subject: Option<Subject>,
}

impl Refusal {
    /// Whom the refusal of the document concerns: those whom it selects; where its selector cannot
    /// be read, its namespace; where that cannot be read either, or it has none, all endpoints.
    /// None if it is no policy at all.
    #[must_use]
    pub fn concerns(&self) -> Option<Subject> {
        if self.subject.is_some() {
            return self.subject.clone();
        }
        let kind = self.kind.as_deref()?;
        let is = |policy: DocumentKind| policy.to_string().eq_ignore_ascii_case(kind);
        let of_all = is(DocumentKind::CiliumClusterwideNetworkPolicy);
        if !of_all && !is(DocumentKind::NetworkPolicy) && !is(DocumentKind::CiliumNetworkPolicy) {
            return None;
        }
        let namespace = self.namespace.as_deref().filter(|_| !of_all);
        let everyone = Selector::default();
        Some(Subject::Endpoints(match namespace {
            Some(namespace) => selector::in_namespace(everyone, namespace),
            None => everyone,
        }))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, column, .. } = self;
        match &self.file {
            Some(file) => write!(f, "{}:{line}:{column}: ", file.display())?,
            None => write!(f, "line {line}, column {column}: ")?,
        }
        f.write_str(&self.problem)?;
        if let Some(excerpt) = &self.excerpt {
            let number = line.to_string();
            write!(f, "\n  {number} | {excerpt}\n  {:>1$} | ", "", number.len())?;
            // Tabs stay, so that the mark stands under its character.
            let before = usize::try_from(*column).unwrap_or(1).saturating_sub(1);
            let space = |c| if c == '\t' { '\t' } else { ' ' };
            let gap: String = excerpt.chars().take(before).map(space).collect();
            write!(f, "{gap}^")?;
        }
        if let Some(help) = &self.help {
            write!(f, "\n  help: {help}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {}

/// The line that is shown: none where the column is further right than a screen is wide.
pub(super) fn excerpt(line: &str, column: u64) -> Option<String> {
    let column = usize::try_from(column).ok()?;
    (column <= WIDE).then(|| {
        let line = line.trim_end();
        // It may come from anywhere, and is for a terminal.
        let shown = line.chars().filter(|c| *c == '\t' || !c.is_control());
        shown.take(WIDE).collect()
    })
}
