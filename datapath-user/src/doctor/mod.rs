//! What works on this machine and what does not: each thing that the datapath needs, or does
//! better with, is tried, in namespaces that are thrown away.
//!
//! ```no_run
//! use datapath_user::doctor::{self, Level};
//!
//! let diagnosis = doctor::diagnose(&["eth0".to_owned()]);
//! for finding in diagnosis.findings.iter().filter(|finding| finding.level != Level::Ok) {
//!     eprintln!("{}: {}; {}", finding.check, finding.found, finding.remedy);
//! }
//! assert!(diagnosis.runs(), "the datapath cannot run here");
//! ```

mod devices;
mod kernel;
mod netfilter;
mod privileges;
mod sandbox;
mod stack;
mod trial;
mod uplinks;

use std::error::Error as StdError;

use nix::sys::utsname::uname;
use serde::{Deserialize, Serialize};

use self::sandbox::Sandbox;

/// What was found out about a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// The kernel, as `uname -r` says.
    pub kernel: String,
    /// What was looked at, in this order.
    pub findings: Vec<Finding>,
}

impl Diagnosis {
    /// Whether the datapath can run: nothing is [`Level::Missing`].
    #[must_use]
    pub fn runs(&self) -> bool {
        let missing = |finding: &Finding| finding.level == Level::Missing;
        !self.findings.iter().any(missing)
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at, in a word or two.
    pub check: String,
    /// How it stands.
    pub level: Level,
    /// What was found, and what that means.
    pub found: String,
    /// What to do about it; empty where there is nothing to do.
    pub remedy: String,
}

/// How one thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// The datapath runs, but with less, slower or less well guarded.
    Warn,
    /// The datapath cannot run.
    Missing,
}

impl Level {
    /// The word for it in every output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Missing => "missing",
        }
    }
}

impl Finding {
    fn ok(check: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(check, Level::Ok, found, "")
    }

    fn warn(check: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(check, Level::Warn, found, remedy)
    }

    fn missing(
        check: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(check, Level::Missing, found, remedy)
    }

    fn new(
        check: impl Into<String>,
        level: Level,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            check: check.into(),
            level,
            found: found.into(),
            remedy: remedy.into(),
        }
    }
}

/// Looks at the calling process, its kernel, its network namespace and these uplinks.
///
/// What it makes to try things is in network and mount namespaces of its own, which are gone when
/// it returns. It takes a few seconds: among the rest it opens a whole datapath.
#[must_use]
pub fn diagnose(uplinks: &[String]) -> Diagnosis {
    let mut findings = privileges::findings();
    findings.extend(kernel::findings());
    findings.extend(Sandbox::try_out(|sandbox| {
        let mut tried = sandbox.findings();
        tried.extend(devices::findings());
        tried.push(netfilter::finding());
        tried.extend(trial::findings(sandbox));
        tried
    }));
    findings.extend(stack::findings(uplinks));
    findings.extend(uplinks::findings(uplinks));
    Diagnosis {
        kernel: uname()
            .map(|names| names.release().to_string_lossy().into_owned())
            .unwrap_or_default(),
        findings,
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
