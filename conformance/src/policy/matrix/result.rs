//! What a matrix found: every cell's verdict, for programs, and compared with what was expected.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::Serialize;

use crate::policy::case::{Case, CellId, Expected};

/// What happened to a case's cells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Matrix {
    format: &'static str,
    /// The case's name.
    pub case: String,
    implementation: String,
    /// The policies that were refused.
    pub rejected: Vec<Rejected>,
    /// The cells that were sent, or left out.
    pub cells: Vec<Cell>,
}

/// A policy that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rejected {
    /// What it is called: `Kind/namespace/name`, or `Kind/name`.
    pub object: String,
    /// Why.
    pub message: String,
}

/// A cell, and what happened to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cell {
    /// Which.
    #[serde(flatten)]
    pub id: CellId,
    /// What happened.
    pub verdict: Verdict,
    /// How that is known.
    pub detail: String,
    /// Whether it counts as denied by silence alone: nothing arrived, and no drop by policy was told
    /// either.
    #[serde(skip)]
    pub doubtful: bool,
}

/// What happens to a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The payload reached the server, and the answer came back.
    Allow,
    /// No payload reached the server.
    Deny,
    /// It was not sent.
    Skipped,
    /// Neither: it was refused, or only half of it went through.
    Error,
}

/// Something that is not as the case has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Line of the case's file; none where it is about no line.
    pub line: Option<u64>,
    /// What was expected, and what was seen.
    pub text: String,
}

impl Matrix {
    pub(super) fn new(case: &Case, rejected: Vec<Rejected>, cells: Vec<Cell>) -> Self {
        Self {
            format: "netmatrix/1",
            case: case.name.clone(),
            implementation: concat!("datapath ", env!("CARGO_PKG_VERSION")).to_owned(),
            rejected,
            cells,
        }
    }

    /// Returns what is not as the case has it: refused policies, and expectations of cells that were
    /// sent.
    #[must_use]
    pub fn mismatches(&self, case: &Case) -> Vec<Mismatch> {
        let mut found = self.wrongly_refused(case);
        let cells: BTreeMap<&CellId, &Cell> =
            self.cells.iter().map(|cell| (&cell.id, cell)).collect();
        for assertion in &case.assertions {
            let Some(cell) = cells.get(&assertion.cell) else {
                continue;
            };
            let expected = match assertion.expected {
                Expected::Allow => Verdict::Allow,
                Expected::Deny => Verdict::Deny,
                Expected::Unspecified => continue,
            };
            if cell.verdict != expected && cell.verdict != Verdict::Skipped {
                let Cell {
                    verdict, detail, ..
                } = cell;
                let text = &assertion.text;
                found.push(Mismatch {
                    line: Some(assertion.line),
                    text: format!("{text}: expected {expected}, seen {verdict} ({detail})"),
                });
            }
        }
        // What nobody expected anything of has to be one or the other all the same.
        let judged: BTreeSet<_> = case.assertions.iter().map(|it| &it.cell).collect();
        let odd = self.cells.iter().filter(|cell| {
            cell.doubtful || (cell.verdict == Verdict::Error && !judged.contains(&cell.id))
        });
        found.extend(odd.map(|cell| Mismatch {
            line: None,
            text: format!("{}: {} ({})", cell.id, cell.verdict, cell.detail),
        }));
        found
    }

    fn wrongly_refused(&self, case: &Case) -> Vec<Mismatch> {
        let seen: BTreeMap<_, _> = self
            .rejected
            .iter()
            .map(|one| (&one.object, &one.message))
            .collect();
        let line = |object: &String| {
            let mut policies = case.policies.iter();
            policies
                .find(|policy| &policy.object == object)
                .map(|policy| policy.line)
        };
        let missed = case.rejected.iter().filter(|it| !seen.contains_key(it));
        let missed = missed.map(|object| Mismatch {
            line: line(object),
            text: format!("{object}: expected to be refused, and was not"),
        });
        let refused = seen.iter().filter(|(it, _)| !case.rejected.contains(**it));
        let refused = refused.map(|(object, message)| Mismatch {
            line: line(object),
            text: format!("{object}: refused, and not expected to be: {message}"),
        });
        missed.chain(refused).collect()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Skipped => "skipped",
            Self::Error => "error",
        })
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        f.write_str(&self.text)
    }
}
