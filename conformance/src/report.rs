//! What a run of scenarios found: for programs as JSON, for people as a table.

use std::{collections::BTreeSet, process::ExitCode};

use comfy_table::{Table, presets};
use serde::Serialize;

use crate::family::{Family, Protocol};

/// One thing that was looked at: a path through the lab, with one protocol.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    /// The scenario that it belongs to.
    pub scenario: String,
    /// Who talks to whom, "pod to pod, other node".
    pub path: String,
    /// The address family, if it is about one.
    pub family: Option<Family>,
    /// The protocol, if it is about one.
    pub protocol: Option<Protocol>,
    /// How it went.
    pub outcome: Outcome,
    /// What there is to say beside, such as a figure; may be empty.
    pub detail: String,
    /// How many things were done for it: packets forged, restarts, exchanges.
    pub actions: u64,
    /// How long it took.
    pub seconds: f64,
}

/// How a check went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it should.
    Passed,
    /// Not as it should.
    Failed {
        /// What went wrong.
        detail: String,
    },
    /// It could not be done.
    Skipped {
        /// Why, and what would be needed.
        reason: String,
    },
}

/// The checks of a run.
#[derive(Clone, Debug, Default)]
pub struct Report {
    checks: Vec<Check>,
}

/// How a scenario went, by its checks: failed if one did, else skipped if one was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Every check passed.
    Passed,
    /// A check was skipped.
    Skipped,
    /// A check failed.
    Failed,
}

/// A scenario in the form that [`Report::to_json`] writes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scenario {
    /// Its name.
    pub name: String,
    /// How it went.
    pub status: Status,
    /// How many things were done for it.
    pub actions: u64,
    /// How long its checks took together.
    pub seconds: f64,
    /// What went wrong or was skipped; else what there is to say beside.
    pub detail: String,
}

impl Report {
    /// Version of what [`Report::to_json`] writes.
    pub const FORMAT: &str = "conformance/1";

    /// Starts without checks.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a check.
    pub fn add(&mut self, check: Check) {
        self.checks.push(check);
    }

    /// Returns the checks in the order they were added.
    #[must_use]
    pub fn checks(&self) -> &[Check] {
        &self.checks
    }

    /// Sums up the checks by scenario, in the order in which the scenarios began.
    #[must_use]
    pub fn scenarios(&self) -> Vec<Scenario> {
        let names = in_order(self.checks.iter().map(|check| check.scenario.as_str()));
        let scenarios = names.into_iter().map(|name| {
            let checks = || {
                self.checks
                    .iter()
                    .filter(move |check| check.scenario == name)
            };
            let status = checks().map(Check::status).max().unwrap_or(Status::Passed);
            let telling = checks().filter(|check| check.status() == status);
            Scenario {
                name: name.to_owned(),
                status,
                actions: checks().map(|check| check.actions).sum(),
                seconds: checks().map(|check| check.seconds).sum(),
                detail: telling
                    .filter_map(Check::say)
                    .collect::<Vec<_>>()
                    .join("; "),
            }
        });
        scenarios.collect()
    }

    /// Writes the report for programs:
    ///
    /// ```json
    /// {"format": "conformance/1",
    ///  "scenarios": [{"name": "...", "status": "passed", "actions": 12, "seconds": 0.5, "detail": ""}],
    ///  "passed": 1, "failed": 0, "skipped": 0}
    /// ```
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let scenarios = self.scenarios();
        let count = |status| scenarios.iter().filter(|s| s.status == status).count();
        serde_json::json!({
            "format": Self::FORMAT,
            "passed": count(Status::Passed),
            "failed": count(Status::Failed),
            "skipped": count(Status::Skipped),
            "scenarios": scenarios,
        })
    }

    /// Writes the report for people: a row for each path, a column for each family and protocol,
    /// and at the end of a row why something in it failed or was skipped.
    #[must_use]
    pub fn to_table(&self) -> String {
        let columns: BTreeSet<_> = self.checks.iter().map(Check::column).collect();
        let place = |check: &Check| (check.scenario.clone(), check.path.clone());
        let rows = in_order(self.checks.iter().map(place));
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        let heads = columns.iter().map(|&column| head(column));
        let fixed = ["scenario", "path"].map(str::to_owned);
        table.set_header(fixed.into_iter().chain(heads).chain(["why".to_owned()]));
        for row in rows {
            let checks = || self.checks.iter().filter(|check| place(check) == row);
            let cells = columns.iter().map(|&column| {
                let checks = checks().filter(|check| check.column() == column);
                checks
                    .map(Check::status)
                    .max()
                    .map_or("", Status::word)
                    .to_owned()
            });
            let why: Vec<_> = checks().filter_map(Check::why).collect();
            let fixed = [&row.0, &row.1].map(String::clone);
            table.add_row(fixed.into_iter().chain(cells).chain([why.join("\n")]));
        }
        table.to_string()
    }

    /// Returns the exit code of the run: 0 if all is well, 1 if something failed, 3 if nothing
    /// failed but a scenario was skipped that `allowed` does not name.
    ///
    /// A run without a check is no success: 1.
    #[must_use]
    pub fn exit_code(&self, allowed: &[String]) -> ExitCode {
        ExitCode::from(self.exit_number(allowed))
    }

    fn exit_number(&self, allowed: &[String]) -> u8 {
        let scenarios = self.scenarios();
        let skipped = |s: &Scenario| s.status == Status::Skipped && !allowed.contains(&s.name);
        if scenarios.is_empty() || scenarios.iter().any(|s| s.status == Status::Failed) {
            1
        } else if scenarios.iter().any(skipped) {
            3
        } else {
            0
        }
    }
}

type Column = (Option<Family>, Option<Protocol>);

impl Check {
    fn status(&self) -> Status {
        match self.outcome {
            Outcome::Passed => Status::Passed,
            Outcome::Failed { .. } => Status::Failed,
            Outcome::Skipped { .. } => Status::Skipped,
        }
    }

    fn column(&self) -> Column {
        (self.family, self.protocol)
    }

    /// Says what to say of it in a line of its own, if there is anything.
    fn say(&self) -> Option<String> {
        let what = match self.complaint() {
            Some(complaint) => complaint,
            None if self.detail.is_empty() => return None,
            None => &self.detail,
        };
        Some(labelled(&[&self.path, &head(self.column())], what))
    }

    /// Says why it did not pass, for a row that names its path.
    fn why(&self) -> Option<String> {
        let complaint = self.complaint()?;
        Some(labelled(&[&head(self.column())], complaint))
    }

    fn complaint(&self) -> Option<&str> {
        match &self.outcome {
            Outcome::Passed => None,
            Outcome::Failed { detail } => Some(detail),
            Outcome::Skipped { reason } => Some(reason),
        }
    }
}

impl Status {
    fn word(self) -> &'static str {
        match self {
            Self::Passed => "ok",
            Self::Skipped => "skipped",
            Self::Failed => "FAILED",
        }
    }
}

fn labelled(labels: &[&str], what: &str) -> String {
    let labels: Vec<_> = labels
        .iter()
        .filter(|label| !label.is_empty())
        .copied()
        .collect();
    match labels.as_slice() {
        [] => what.to_owned(),
        labels => format!("{}: {what}", labels.join(" ")),
    }
}

/// Leaves out repetitions and keeps the order.
fn in_order<T: PartialEq>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut kept = Vec::new();
    for item in items {
        if !kept.contains(&item) {
            kept.push(item);
        }
    }
    kept
}

fn head((family, protocol): Column) -> String {
    let words = [
        family.map(|family| family.to_string()),
        protocol.map(|protocol| protocol.to_string()),
    ];
    words.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(scenario: &str, family: Family, outcome: Outcome) -> Check {
        Check {
            scenario: scenario.to_owned(),
            path: "pod to pod".to_owned(),
            family: Some(family),
            protocol: Some(Protocol::Tcp),
            outcome,
            detail: String::new(),
            actions: 2,
            seconds: 0.25,
        }
    }

    fn failed(detail: &str) -> Outcome {
        Outcome::Failed {
            detail: detail.to_owned(),
        }
    }

    fn skipped(reason: &str) -> Outcome {
        Outcome::Skipped {
            reason: reason.to_owned(),
        }
    }

    fn report(checks: Vec<Check>) -> Report {
        Report { checks }
    }

    #[test]
    fn json_is_as_published() {
        let report = report(vec![
            check("paths", Family::Ipv4, Outcome::Passed),
            check("paths", Family::Ipv6, failed("silence")),
            check("ovs", Family::Ipv4, skipped("no openvswitch")),
            check("ovs", Family::Ipv6, Outcome::Passed),
        ]);
        assert_eq!(
            report.to_json(),
            serde_json::json!({
                "format": "conformance/1",
                "scenarios": [
                    {"name": "paths", "status": "failed", "actions": 4, "seconds": 0.5,
                     "detail": "pod to pod IPv6 TCP: silence"},
                    {"name": "ovs", "status": "skipped", "actions": 4, "seconds": 0.5,
                     "detail": "pod to pod IPv4 TCP: no openvswitch"},
                ],
                "passed": 0, "failed": 1, "skipped": 1,
            })
        );
    }

    #[test]
    fn exit_codes_tell_failures_skips_and_nothing_apart() {
        let passed = check("a", Family::Ipv4, Outcome::Passed);
        let skipped = check("b", Family::Ipv4, skipped("no kernel"));
        let broken = check("c", Family::Ipv4, failed("silence"));
        let allowed = ["b".to_owned()];
        assert_eq!(report(vec![]).exit_number(&[]), 1);
        assert_eq!(report(vec![passed.clone()]).exit_number(&[]), 0);
        let some = report(vec![passed, skipped.clone()]);
        assert_eq!(some.exit_number(&[]), 3);
        assert_eq!(some.exit_number(&allowed), 0);
        assert_eq!(report(vec![skipped, broken]).exit_number(&allowed), 1);
    }

    #[test]
    fn the_table_has_a_row_for_a_path_and_names_reasons() {
        let report = report(vec![
            check("paths", Family::Ipv4, Outcome::Passed),
            check("paths", Family::Ipv6, failed("silence for 2s")),
        ]);
        let table = report.to_table();
        assert_eq!(table.matches("pod to pod").count(), 1, "{table}");
        for part in [
            "IPv4 TCP",
            "IPv6 TCP",
            "ok",
            "FAILED",
            "IPv6 TCP: silence for 2s",
        ] {
            assert!(table.contains(part), "no {part} in\n{table}");
        }
    }
}
