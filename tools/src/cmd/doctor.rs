//! `dpctl doctor`

use clap::Args;
use datapath_user::doctor::{Diagnosis, Finding, Level, diagnose};
use serde::Serialize;

use super::{Context, Outcome};
use crate::table::{self, words};

const EXAMPLES: &str = "\
Every check tries what it is about, in network and mount namespaces that are thrown away. A check is
`ok`; or `warn`: the datapath runs with less, slower or less well guarded; or `missing`: it cannot run.

Exit codes:
  0  the datapath can run here
  1  it cannot

Examples:
  dpctl doctor
  dpctl doctor --uplink eth0 --uplink eth1
  dpctl --output json doctor | jq '.findings[] | select(.level != \"ok\")'";

/// Version of what `--output json` prints.
const FORMAT: &str = "doctor/1";

/// Say what works on this machine and what does not, and what to do about it
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Doctor {
    /// An interface that an agent would have as an uplink; may be given several times
    #[arg(long = "uplink", value_name = "IF")]
    uplinks: Vec<String>,
}

/// A diagnosis as programs get it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    format: &'static str,
    /// Whether the datapath can run here.
    runs: bool,
    #[serde(flatten)]
    diagnosis: Diagnosis,
}

impl Report {
    /// Looks at this machine.
    pub(super) fn take(uplinks: &[String]) -> Self {
        let diagnosis = diagnose(uplinks);
        Self {
            format: FORMAT,
            runs: diagnosis.runs(),
            diagnosis,
        }
    }
}

impl Doctor {
    pub(super) fn run(&self, context: &Context<'_>) -> anyhow::Result<Outcome> {
        let Self { uplinks } = self;
        context.target.refuse_for("this machine")?;
        let report = Report::take(uplinks);
        let shown = context.show(&report, |report| text(&report.diagnosis))?;
        Ok(Outcome {
            failed: !report.runs,
            ..shown
        })
    }
}

fn text(diagnosis: &Diagnosis) -> String {
    let columns = [words("CHECK"), words("RESULT"), words("WHAT IT MEANS")];
    let rows = diagnosis.findings.iter().map(|finding| {
        let Finding {
            check,
            level,
            found,
            remedy,
        } = finding;
        let meaning = if remedy.is_empty() {
            found.clone()
        } else {
            format!("{found}\n-> {remedy}")
        };
        vec![check.clone(), level.name().to_owned(), meaning]
    });
    let table = table::render(&columns, rows.collect(), "nothing was looked at");
    let count = |level| {
        let findings = diagnosis.findings.iter();
        findings.filter(|finding| finding.level == level).count()
    };
    let (missing, warnings) = (count(Level::Missing), count(Level::Warn));
    let kernel = &diagnosis.kernel;
    if missing == 0 {
        format!("{table}\nThe datapath runs here, on Linux {kernel}; warnings: {warnings}.\n")
    } else {
        format!("{table}\nThe datapath cannot run here, on Linux {kernel}; missing: {missing}.\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diagnosis_reads_well() {
        let finding = |check: &str, level, found: &str, remedy: &str| Finding {
            check: check.to_owned(),
            level,
            found: found.to_owned(),
            remedy: remedy.to_owned(),
        };
        let mut diagnosis = Diagnosis {
            kernel: "6.12.48".to_owned(),
            findings: vec![
                finding("root", Level::Ok, "runs as root", ""),
                finding("JIT compiler", Level::Warn, "off: slow", "sysctl -w x=1"),
            ],
        };
        insta::assert_snapshot!(text(&diagnosis), @"
        CHECK         RESULT  WHAT IT MEANS
        root          ok      runs as root
        JIT compiler  warn    off: slow
                              -> sysctl -w x=1

        The datapath runs here, on Linux 6.12.48; warnings: 1.
        ");
        let refused = finding("bpffs", Level::Missing, "cannot be mounted", "mount one");
        diagnosis.findings.push(refused);
        let said = text(&diagnosis);
        assert!(said.ends_with("missing: 1.\n"), "{said}");
    }
}
