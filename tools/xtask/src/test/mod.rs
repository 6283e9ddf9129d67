//! `cargo xtask test`: every test there is, tier by tier.

mod report;
mod scan;
mod step;

use std::process::ExitCode;
use std::str::FromStr;
use std::time::Instant;

use anyhow::{Result, anyhow};

use crate::setup;
use crate::workspace::{Workspace, is_root};
use report::{Report, Verdict};

/// A group of tests that need the same things.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Tier {
    /// What can be said without running the code.
    Lint,
    /// Everything that runs in a process of its own.
    Unit,
    /// The conformance suite, in network namespaces.
    Lab,
    /// All policy cases, random ones, policies replaced under load, and ways past them.
    Policy,
}

impl Tier {
    /// The tiers that run where none is named, in this order.
    pub(crate) const USUAL: [Self; 3] = [Self::Lint, Self::Unit, Self::Lab];
    /// All tiers.
    const ALL: [Self; 4] = [Self::Lint, Self::Unit, Self::Lab, Self::Policy];

    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Lint => "lint",
            Self::Unit => "unit",
            Self::Lab => "lab",
            Self::Policy => "policy",
        }
    }

    fn about(self) -> &'static str {
        match self {
            Self::Lint => "formatting, clippy, documentation, unfinished code",
            Self::Unit => "every package but the conformance suite",
            Self::Lab => "the conformance suite, in network namespaces",
            Self::Policy => {
                "all policy cases, random policies, policies under load, ways past them, in namespaces"
            }
        }
    }

    /// Why it cannot run here, if it cannot.
    fn obstacle(self) -> Option<&'static str> {
        let is_lab = matches!(self, Self::Lab | Self::Policy);
        (is_lab && !is_root()).then_some("needs root")
    }
}

impl FromStr for Tier {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = Self::ALL.into_iter().find(|tier| tier.name() == name);
        known.ok_or_else(|| anyhow!("unknown tier {name:?}; there are: lint, unit, lab, policy"))
    }
}

/// Runs `tiers`, all of them even if one fails, and reports.
///
/// What fails is in the report and in the exit code.
pub(crate) fn run(workspace: &Workspace, tiers: &[Tier], allow_skip: &[Tier]) -> ExitCode {
    for tier in tiers {
        if let Some(obstacle) = tier.obstacle() {
            println!("The tier {} {obstacle} and will be skipped.", tier.name());
        }
    }
    let mut report = Report::default();
    // Tiers that cannot run need no tools either.
    if tiers.iter().any(|tier| tier.obstacle().is_none())
        && let Some(verdict) = set_up()
    {
        report.add("setup", verdict, 0.0);
    }
    for &tier in tiers {
        let started = Instant::now();
        let verdict = match tier.obstacle() {
            Some(obstacle) => Verdict::Skipped {
                why: obstacle,
                allowed: allow_skip.contains(&tier),
            },
            None => run_tier(workspace, tier),
        };
        report.add(tier.name(), verdict, started.elapsed().as_secs_f32());
    }
    print!("\n{report}");
    if report.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Sets up what is missing. Without it the other tiers may still tell something.
fn set_up() -> Option<Verdict> {
    let err = setup::ensure().err()?;
    println!("error: {err:#}");
    Some(Verdict::Failed(vec!["cargo xtask setup".to_owned()]))
}

fn run_tier(workspace: &Workspace, tier: Tier) -> Verdict {
    println!("\n== {}: {}", tier.name(), tier.about());
    let mut failed = Vec::new();
    for step in step::of(tier) {
        println!("-- {}", step.name());
        let started = Instant::now();
        let outcome = step.run(workspace);
        let seconds = started.elapsed().as_secs_f32();
        match outcome {
            Ok(()) => println!("-- passed in {seconds:.1} s"),
            Err(err) => {
                println!("-- FAILED in {seconds:.1} s: {err:#}");
                failed.push(step.name());
            }
        }
    }
    if failed.is_empty() {
        Verdict::Passed
    } else {
        Verdict::Failed(failed)
    }
}
