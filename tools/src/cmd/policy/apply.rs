//! `dpctl policy apply`

use std::path::PathBuf;

use clap::Args;

use super::{Context, Outcome, texts};
use crate::{
    api::{ApplyReport, ApplyRequest, Change},
    table::{self, words},
};

const EXAMPLES: &str = "\
Documents are put in force at once, in the place of those of the same names, and kept by the agent
over restarts. Where one of them cannot be used, or is one of a file that the agent follows, none is
put in force; with --partial the others are. `dpctl policy check` checks them without an agent.

Exit codes:
  0  all of them are in force
  1  at least one was refused
  3  no agent can be reached

Examples:
  dpctl policy apply web.yaml db.yaml
  dpctl policy apply policies            # the files of a directory
  helm template shop | dpctl policy apply -
  dpctl --output json policy apply web.yaml | jq '.applied[] | {name, change}'";

/// Put policy documents in force
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::cmd) struct Apply {
    /// Files, directories of files that end in .yaml, .yml or .json, or - for standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Put those in force that can be used though others cannot
    #[arg(long)]
    partial: bool,
}

impl Apply {
    pub(in crate::cmd) fn run(&self, context: &Context<'_>) -> anyhow::Result<Outcome> {
        let request = ApplyRequest {
            texts: texts::read(&self.files)?,
            partial: self.partial,
        };
        let report = context.client()?.apply_policies(&request)?;
        let shown = context.show(&report, text)?;
        Ok(Outcome {
            failed: !report.refused.is_empty(),
            ..shown
        })
    }
}

fn text(report: &ApplyReport) -> String {
    let columns = [words("DOCUMENT"), words("CHANGE")];
    let rows = report.applied.iter().map(|document| {
        let change = match document.change {
            Change::Created => "created",
            Change::Changed => "changed",
            Change::Unchanged => "unchanged",
        };
        vec![document.id.to_string(), change.to_owned()]
    });
    let rows: Vec<_> = rows.collect();
    let mut text = if rows.is_empty() {
        String::new()
    } else {
        table::render(&columns, rows, "")
    };
    for refusal in &report.refused {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&refusal.to_string());
        text.push('\n');
    }
    match (report.refused.is_empty(), report.applied.is_empty()) {
        (true, _) => {}
        (false, true) => text.push_str("\nnothing was applied\n"),
        (false, false) => text.push_str("\nthe others were applied\n"),
    }
    text
}

#[cfg(test)]
mod tests {
    use datapath_user::policy::document;

    use super::*;
    use crate::api::{AppliedDocument, parse_document_id};

    #[test]
    fn what_was_applied_and_what_not_reads_well() {
        let wrong = "kind: NetworkPolicy\napiVersion: networking.k8s.io/v1\nmetadata: {name: db}\n\
                     spec: {PodSelector: {}}\n";
        let refused = document::read(wrong, Some("db.yaml".as_ref())).refused;
        let mut report = ApplyReport {
            applied: vec![AppliedDocument {
                id: parse_document_id("netpol/shop/web").unwrap(),
                change: Change::Created,
            }],
            refused,
            took_us: 7,
        };
        insta::assert_snapshot!(text(&report), @"
        DOCUMENT                CHANGE
        NetworkPolicy/shop/web  created

        db.yaml:4:8: unknown key `PodSelector` in `spec`
          4 | spec: {PodSelector: {}}
            |        ^
          help: did you mean `podSelector`?

        the others were applied
        ");
        report.refused.clear();
        insta::assert_snapshot!(text(&report), @"
        DOCUMENT                CHANGE
        NetworkPolicy/shop/web  created
        ");
    }
}
