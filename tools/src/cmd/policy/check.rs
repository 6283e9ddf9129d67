//! `dpctl policy check`

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::Args;
use datapath_user::policy::{
    Document, DocumentId, Peers, Reading, Refusal, RuleVerdict, Section, Subject, document::Reader,
};
use serde::Serialize;

use super::{Context, Outcome};
use crate::table::{self, words};

const EXAMPLES: &str = "\
Documents are NetworkPolicy of networking.k8s.io/v1, CiliumNetworkPolicy and
CiliumClusterwideNetworkPolicy of cilium.io/v2, and lists of them; a file may have several. They are
checked as an API server would, and more strictly where a mistake would open a pod. No agent is
asked, and nothing is applied.

Exit codes:
  0  all of them can be used
  1  at least one cannot

Examples:
  dpctl policy check web.yaml db.yaml
  dpctl policy check /etc/datapath/policies
  helm template shop | dpctl policy check -
  dpctl --output json policy check policies | jq '.refused[] | {file, line, problem}'";

/// Version of what `--output json` prints.
const FORMAT: &str = "policy-check/1";

/// Check policy documents without applying them
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::cmd) struct Check {
    /// Files, directories of files that end in .yaml, .yml or .json, or - for standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// What was found, as programs get it.
#[derive(Debug, Serialize)]
struct Report {
    format: &'static str,
    /// The documents that can be used.
    documents: Vec<Accepted>,
    /// What is wrong with the others.
    refused: Vec<Refusal>,
}

/// A document that can be used, as programs get it.
#[derive(Debug, Serialize)]
struct Accepted {
    #[serde(flatten)]
    id: DocumentId,
    file: Option<PathBuf>,
    specs: Vec<Specification>,
}

/// A specification of it.
#[derive(Debug, Serialize)]
struct Specification {
    /// `endpoints` or `nodes`.
    of: &'static str,
    /// The labels that they have.
    selector: String,
    ingress: Direction,
    egress: Direction,
}

/// A direction of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Direction {
    /// Whether what no rule allows is denied.
    isolates: bool,
    /// Rules that allow somebody something.
    allow: usize,
    /// Rules that deny somebody something.
    deny: usize,
}

impl Check {
    pub(in crate::cmd) fn run(&self, context: &Context<'_>) -> anyhow::Result<Outcome> {
        context.target.refuse_for("files")?;
        let mut reader = Reader::default();
        for file in &self.files {
            if file == Path::new("-") {
                let mut text = String::new();
                let read = io::stdin().lock().read_to_string(&mut text);
                read.context("read standard input")?;
                reader.text(&text, Some(Path::new("standard input")));
            } else {
                reader.path(file);
            }
        }
        let report = Report::of(reader.finish());
        let shown = context.show(&report, text)?;
        Ok(Outcome {
            failed: !report.refused.is_empty(),
            ..shown
        })
    }
}

impl Report {
    fn of(reading: Reading) -> Self {
        let Reading { documents, refused } = reading;
        Self {
            format: FORMAT,
            documents: documents.into_iter().map(Accepted::of).collect(),
            refused,
        }
    }
}

impl Accepted {
    fn of(document: Document) -> Self {
        let specs = document.specs.into_iter().map(|spec| {
            let (of, selector) = match spec.subject {
                Subject::Endpoints(selector) => ("endpoints", selector),
                Subject::Nodes(selector) => ("nodes", selector),
            };
            Specification {
                of,
                selector: selector.to_string(),
                ingress: Direction::of(&spec.ingress),
                egress: Direction::of(&spec.egress),
            }
        });
        Self {
            id: document.id,
            file: document.file,
            specs: specs.collect(),
        }
    }
}

impl Direction {
    fn of(section: &Section) -> Self {
        let count = |verdict: RuleVerdict| {
            let rules = section.rules.iter();
            let nobody = Peers::Of(Vec::new());
            rules
                .filter(|rule| rule.verdict == verdict && rule.peers != nobody)
                .count()
        };
        Self {
            isolates: section.isolates,
            allow: count(RuleVerdict::Allow),
            deny: count(RuleVerdict::Deny),
        }
    }

    /// What it does, in few words.
    fn words(self) -> String {
        let Self {
            isolates,
            allow,
            deny,
        } = self;
        let mut words = Vec::new();
        match (allow, isolates) {
            (0, true) => words.push("allows nothing".to_owned()),
            (0, false) => {}
            (_, true) => words.push(format!("allows by {}", rules(allow))),
            (_, false) => words.push(format!("adds {}", rules(allow))),
        }
        if deny > 0 {
            words.push(format!("denies by {}", rules(deny)));
        }
        if words.is_empty() {
            return "-".to_owned();
        }
        words.join(", ")
    }
}

fn rules(count: usize) -> String {
    match count {
        1 => "1 rule".to_owned(),
        count => format!("{count} rules"),
    }
}

fn text(report: &Report) -> String {
    let columns = [
        words("DOCUMENT"),
        words("FOR"),
        words("INGRESS"),
        words("EGRESS"),
    ];
    let rows = report.documents.iter().flat_map(|document| {
        document.specs.iter().map(|spec| {
            vec![
                document.id.to_string(),
                format!("{} of {}", spec.of, spec.selector),
                spec.ingress.words(),
                spec.egress.words(),
            ]
        })
    });
    let rows: Vec<Vec<String>> = rows.collect();
    let mut text = if rows.is_empty() && !report.refused.is_empty() {
        String::new()
    } else {
        table::render(&columns, rows, "there is no policy")
    };
    for refusal in &report.refused {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&refusal.to_string());
        text.push('\n');
    }
    if !report.refused.is_empty() {
        let mistakes = match report.refused.len() {
            1 => "1 mistake".to_owned(),
            count => format!("{count} mistakes"),
        };
        let good = report.documents.len();
        let told = format!("\n{mistakes}; documents that can be used: {good}.\n");
        text.push_str(&told);
    }
    text
}

#[cfg(test)]
mod tests {
    use datapath_user::policy::document::read;

    use super::*;

    const GOOD: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress, Egress]
  ingress: [{}]
---
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: base}
specs:
- endpointSelector: {}
  enableDefaultDeny: {egress: false}
  egress: [{toEntities: [host]}, {toEntities: [cluster]}]
  egressDeny: [{toCIDR: [169.254.169.254/32]}]
- nodeSelector: {}
  ingress: [{}]
";

    fn report(text: &str) -> Report {
        Report::of(read(text, Some(Path::new("a.yaml"))))
    }

    #[test]
    fn a_check_reads_well() {
        insta::assert_snapshot!(text(&report(GOOD)), @"
        DOCUMENT                             FOR                                                             INGRESS           EGRESS
        NetworkPolicy/shop/web               endpoints of k8s:app=web, k8s:io.kubernetes.pod.namespace=shop  allows by 1 rule  allows nothing
        CiliumClusterwideNetworkPolicy/base  endpoints of any labels                                         -                 adds 2 rules, denies by 1 rule
        CiliumClusterwideNetworkPolicy/base  nodes of any labels                                             allows nothing    -
        ");
        let bad = GOOD.replace("podSelector", "PodSelector");
        insta::assert_snapshot!(text(&report(&bad)), @"
        DOCUMENT                             FOR                      INGRESS         EGRESS
        CiliumClusterwideNetworkPolicy/base  endpoints of any labels  -               adds 2 rules, denies by 1 rule
        CiliumClusterwideNetworkPolicy/base  nodes of any labels      allows nothing  -

        a.yaml:5:3: unknown key `PodSelector` in `spec`
          5 |   PodSelector: {matchLabels: {app: web}}
            |   ^
          help: did you mean `podSelector`?

        1 mistake; documents that can be used: 1.
        ");
        assert_eq!(text(&report("")), "there is no policy\n");
        assert!(text(&report("kind: x")).starts_with("a.yaml:1:1: "));
    }

    #[test]
    fn programs_get_the_same() {
        let bad = GOOD.replace("169.254.169.254/32", "169.254.169/32");
        let value = serde_json::to_value(report(&bad)).unwrap();
        insta::assert_snapshot!(serde_json::to_string_pretty(&value).unwrap(), @r#"
        {
          "documents": [
            {
              "file": "a.yaml",
              "kind": "NetworkPolicy",
              "name": "web",
              "namespace": "shop",
              "specs": [
                {
                  "egress": {
                    "allow": 0,
                    "deny": 0,
                    "isolates": true
                  },
                  "ingress": {
                    "allow": 1,
                    "deny": 0,
                    "isolates": true
                  },
                  "of": "endpoints",
                  "selector": "k8s:app=web, k8s:io.kubernetes.pod.namespace=shop"
                }
              ]
            }
          ],
          "format": "policy-check/1",
          "refused": [
            {
              "column": 26,
              "excerpt": "  egressDeny: [{toCIDR: [169.254.169/32]}]",
              "file": "a.yaml",
              "help": "write all four parts before the `/32`; none is added for you",
              "id": {
                "kind": "CiliumClusterwideNetworkPolicy",
                "name": "base",
                "namespace": null
              },
              "kind": "CiliumClusterwideNetworkPolicy",
              "line": 16,
              "namespace": null,
              "problem": "an item of `toCIDR` cannot be `169.254.169/32`: an IPv4 address has four parts"
            }
          ]
        }
        "#);
    }
}
