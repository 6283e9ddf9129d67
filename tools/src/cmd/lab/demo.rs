//! `dpctl lab demo`

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process,
    time::Instant,
};

use anyhow::Context as _;
use clap::Args;
use datapath_conformance::{
    paths,
    report::{Check, Outcome as CheckOutcome, Report},
    signals,
    topology::LabName,
};

use super::{Context, Name, Outcome, Size, describe, progress::Progress};
use crate::{
    cmd::Form,
    error::Error,
    lab::Lab,
    table::{self, words},
};

const EXAMPLES: &str = "\
Examples:
  dpctl lab demo
  dpctl lab demo --keep              and look around afterwards
  dpctl lab demo --json report.json

Exit code 1 if a check fails or cannot be done.";

/// Bring up a lab, send real traffic along every path, and show what came of it
///
/// The lab is taken down in the end, also by Ctrl-C.
#[derive(Debug, Args)]
#[command(
    after_help = EXAMPLES,
    mut_arg("plain", |lab| lab.help("Name of the lab [default: demo-<number of this process>]")),
)]
pub(in crate::cmd) struct Demo {
    #[command(flatten)]
    name: Name,

    #[command(flatten)]
    size: Size,

    /// Leave the lab running in the end (Ctrl-C before that takes it down)
    #[arg(long)]
    keep: bool,

    /// Write the report for programs to a file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Demo {
    pub(super) fn run(&self, context: &Context<'_>) -> anyhow::Result<Outcome> {
        if self.size.nodes < 2 || self.size.pods < 2 {
            let sentence = "the demo talks from pod to pod on one node and on two: give it \
                            --nodes 2 and --pods 2 at least";
            return Err(Error::Usage {
                sentence: sentence.to_owned(),
            }
            .into());
        }
        let name = match self.name.given() {
            Some(name) => name.clone(),
            None => format!("demo-{}", process::id())
                .parse::<LabName>()
                .map_err(Error::from)?,
        };
        // Before the work, so that a path that cannot be written does not waste it.
        let file = self.json.as_deref().map(create).transpose()?;
        signals::cleanup_on_signal().map_err(Error::from)?;
        let start = Instant::now();
        let mut progress = Progress::start();
        let lab = Lab::up(self.size.spec(name.clone())?, |step| {
            progress.step(&format!("lab {name}: {step}"));
        })?;
        let seconds = start.elapsed().as_secs_f64();
        progress.step(&format!(
            "lab {name} is up after {seconds:.1} s, sending traffic"
        ));
        let report = paths::run(&lab.site(), &lab, |check| progress.check(check));
        progress.finish();

        let who = describe::nodes(lab.nodes());
        let kept = self.keep.then(|| describe::what_to_try(&name, lab.nodes()));
        if self.keep {
            lab.leak();
        } else {
            lab.destroy()?;
        }
        let json = serde_json::to_string_pretty(&report.to_json())? + "\n";
        if let Some((mut file, path)) = file {
            let written = file.write_all(json.as_bytes());
            written.with_context(|| format!("write {}", path.display()))?;
        }
        let text = match context.form {
            Form::Json => json,
            Form::Table => {
                let kept = kept.map(|try_it| format!("The lab {name} is still up. {try_it}\n"));
                let kept = kept.unwrap_or_default();
                let (checks, sum) = (describe_checks(&report), sum(&report));
                format!("{who}\n{checks}\n{kept}{sum}\n")
            }
        };
        let all_passed = report
            .checks()
            .iter()
            .all(|check| check.outcome == CheckOutcome::Passed);
        Ok(Outcome {
            text,
            failed: report.checks().is_empty() || !all_passed,
            ..Outcome::default()
        })
    }
}

/// Says what a check is about: `pod to outside, IPv4 TCP`.
pub(super) fn subject(check: &Check) -> String {
    match kind(check) {
        kind if kind.is_empty() => check.path.clone(),
        kind => format!("{}, {kind}", check.path),
    }
}

fn create(path: &Path) -> anyhow::Result<(File, &Path)> {
    let file = File::create(path).with_context(|| format!("write {}", path.display()))?;
    Ok((file, path))
}

/// A table for each scenario, one row for each check with what was measured.
fn describe_checks(report: &Report) -> String {
    let scenarios = report.scenarios();
    let tables = scenarios.iter().map(|scenario| {
        let checks = report
            .checks()
            .iter()
            .filter(|check| check.scenario == scenario.name);
        let name = scenario.name.to_uppercase();
        let columns = [words(&name), words(""), words(""), words("MEASURED")];
        let mut last = "";
        let rows = checks.map(|check| {
            // Each path once, as in an outline.
            let path = if last == check.path { "" } else { &check.path };
            last = &check.path;
            let (result, measured) = match &check.outcome {
                CheckOutcome::Passed => ("ok", &check.detail),
                CheckOutcome::Failed { detail } => ("FAILED", detail),
                CheckOutcome::Skipped { reason } => ("skipped", reason),
            };
            vec![
                path.to_owned(),
                kind(check),
                result.to_owned(),
                measured.clone(),
            ]
        });
        table::render(&columns, rows.collect(), "no check was made")
    });
    tables.collect::<Vec<_>>().join("\n")
}

/// The family and protocol of a check.
fn kind(check: &Check) -> String {
    let family = check.family.map(|family| family.to_string());
    let protocol = check.protocol.map(|protocol| protocol.to_string());
    family
        .into_iter()
        .chain(protocol)
        .collect::<Vec<_>>()
        .join(" ")
}

fn sum(report: &Report) -> String {
    let count = |wanted: fn(&CheckOutcome) -> bool| {
        report
            .checks()
            .iter()
            .filter(|check| wanted(&check.outcome))
            .count()
    };
    let passed = count(|outcome| matches!(outcome, CheckOutcome::Passed));
    let failed = count(|outcome| matches!(outcome, CheckOutcome::Failed { .. }));
    let skipped = count(|outcome| matches!(outcome, CheckOutcome::Skipped { .. }));
    let also = if skipped > 0 {
        format!(", {skipped} skipped")
    } else {
        String::new()
    };
    format!("demo: {passed} checks passed, {failed} failed{also}")
}

#[cfg(test)]
mod tests {
    use datapath_conformance::family::{Family, Protocol};

    use super::*;

    fn check(scenario: &str, path: &str, family: Family, outcome: CheckOutcome) -> Check {
        Check {
            scenario: scenario.to_owned(),
            path: path.to_owned(),
            family: Some(family),
            protocol: (scenario == "paths").then_some(Protocol::Tcp),
            outcome,
            detail: "seen as 10.244.1.2".to_owned(),
            actions: 1,
            seconds: 0.1,
        }
    }

    #[test]
    fn checks_read_well() {
        let mut report = Report::new();
        let detail = "silence for 3s".to_owned();
        let reason = "no such kernel".to_owned();
        for check in [
            check("paths", "pod to pod", Family::Ipv4, CheckOutcome::Passed),
            check("paths", "pod to pod", Family::Ipv6, CheckOutcome::Passed),
            check(
                "paths",
                "pod to outside",
                Family::Ipv4,
                CheckOutcome::Failed { detail },
            ),
            check(
                "refused",
                "VLAN tags",
                Family::Ipv4,
                CheckOutcome::Skipped { reason },
            ),
        ] {
            report.add(check);
        }
        insta::assert_snapshot!(describe_checks(&report), @"
        PATHS                             MEASURED
        pod to pod      IPv4 TCP  ok      seen as 10.244.1.2
                        IPv6 TCP  ok      seen as 10.244.1.2
        pod to outside  IPv4 TCP  FAILED  silence for 3s

        REFUSED                   MEASURED
        VLAN tags  IPv4  skipped  no such kernel
        ");
        assert_eq!(sum(&report), "demo: 2 checks passed, 1 failed, 1 skipped");
    }
}
