//! One check: a subject, what was done about it, and how it went.

use std::{
    fmt::{self, Write as _},
    path::{Path, PathBuf},
    time::Instant,
};

use crate::{
    error::Error,
    family::{Family, Protocol},
    report::{Check, Outcome, Report},
};

/// What a check is about.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    pub(super) scenario: &'static str,
    pub(super) path: String,
    pub(super) family: Option<Family>,
    pub(super) protocol: Option<Protocol>,
}

impl Subject {
    pub(super) fn new(scenario: &'static str, path: impl Into<String>) -> Self {
        Self {
            scenario,
            path: path.into(),
            family: None,
            protocol: None,
        }
    }

    pub(super) fn family(mut self, family: Family) -> Self {
        self.family = Some(family);
        self
    }

    pub(super) fn protocol(mut self, protocol: Protocol) -> Self {
        self.protocol = Some(protocol);
        self
    }

    /// Says why it cannot be done.
    pub(super) fn skipped(self, reason: String) -> Check {
        Check {
            outcome: Outcome::Skipped { reason },
            ..self.check(|| Err(Complaint::new("")))
        }
    }

    /// Does the work and says how it went.
    pub(super) fn check(self, work: impl FnOnce() -> Result<Found, Complaint>) -> Check {
        let start = Instant::now();
        let result = work();
        let seconds = start.elapsed().as_secs_f64();
        let (outcome, detail, actions) = match result {
            Ok(found) => (Outcome::Passed, found.detail, found.actions),
            Err(Complaint(detail)) => (Outcome::Failed { detail }, String::new(), 0),
        };
        Check {
            scenario: self.scenario.to_owned(),
            path: self.path,
            family: self.family,
            protocol: self.protocol,
            outcome,
            detail,
            actions,
            seconds,
        }
    }
}

/// What was measured by a check that went well.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) detail: String,
    /// How many exchanges or frames it took.
    pub(super) actions: u64,
}

/// What came instead of what should have.
#[derive(Debug)]
pub(super) struct Complaint(String);

impl Complaint {
    pub(super) fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

impl From<Error> for Complaint {
    fn from(error: Error) -> Self {
        Self(error.chain())
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Fails with what was found, unless it is what was wanted.
pub(super) fn expect<T: PartialEq + fmt::Debug>(
    what: &str,
    wanted: &T,
    found: &T,
) -> Result<(), Complaint> {
    if wanted == found {
        return Ok(());
    }
    Err(Complaint(format!(
        "{what}: {found:?} instead of {wanted:?}"
    )))
}

/// Collects checks, and tells each as soon as it is there.
pub(super) struct Journal<'f> {
    report: Report,
    tell: &'f mut dyn FnMut(&Check),
    /// Where there is more to see of what fails.
    evidence: Option<PathBuf>,
}

impl<'f> Journal<'f> {
    pub(super) fn new(tell: &'f mut dyn FnMut(&Check)) -> Self {
        Self {
            report: Report::new(),
            tell,
            evidence: None,
        }
    }

    /// Has every check that fails from now on say where there is more to see.
    pub(super) fn point_to(&mut self, evidence: &Path) {
        self.evidence = Some(evidence.to_owned());
    }

    pub(super) fn add(&mut self, mut check: Check) {
        if let (Outcome::Failed { detail }, Some(evidence)) = (&mut check.outcome, &self.evidence) {
            // Writing to a string does not fail.
            let _ = write!(detail, " (captured in {})", evidence.display());
        }
        (self.tell)(&check);
        self.report.add(check);
    }

    pub(super) fn finish(self) -> Report {
        self.report
    }
}

impl Extend<Check> for Journal<'_> {
    fn extend<T: IntoIterator<Item = Check>>(&mut self, checks: T) {
        checks.into_iter().for_each(|check| self.add(check));
    }
}
