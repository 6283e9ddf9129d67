//! `dpctl policy get`

use clap::Args;
use datapath_user::policy::DocumentId;

use super::{Context, Outcome, delete::id, list::state};
use crate::{
    api::{PolicyDetail, PolicySource},
    table::{lines, list, pairs},
};

const EXAMPLES: &str = "\
Examples:
  dpctl policy get NetworkPolicy/shop/web
  dpctl policy get netpol/shop/web > web.yaml
  dpctl --output json policy get ccnp/base | jq -r .pods[]";

/// Show a policy document: its text, and whom it is for
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::cmd) struct Get {
    /// What it is called: KIND/NAMESPACE/NAME, or KIND/NAME
    #[arg(value_name = "DOCUMENT", value_parser = id)]
    document: DocumentId,
}

impl Get {
    pub(in crate::cmd) fn run(&self, context: &Context<'_>) -> anyhow::Result<Outcome> {
        context.show(&context.client()?.policy(&self.document)?, text)
    }
}

/// The text, behind comments: it stays a document.
fn text(detail: &PolicyDetail) -> String {
    let PolicyDetail { entry, pods, text } = detail;
    let file = entry.file.as_ref();
    let file = file.map(|file| file.display().to_string());
    let file = file.unwrap_or_else(|| "nowhere".to_owned());
    let mut whom = pods.clone();
    if entry.node {
        whom.push("this node".to_owned());
    }
    let head = pairs(&[
        (
            "# document",
            entry
                .id
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
        ),
        ("# state", state(entry.state).to_owned()),
        (
            "# from",
            match entry.source {
                PolicySource::Directory => file,
                PolicySource::Applied => format!("{file}, applied"),
            },
        ),
        (
            "# for",
            if whom.is_empty() {
                "nobody here".to_owned()
            } else {
                list(&whom)
            },
        ),
    ]);
    let problems = entry.problems.iter().flat_map(|problem| problem.lines());
    let problems = lines(problems.map(|line| format!("# {line}")));
    let text = match text {
        Some(text) => lines(text.lines().map(ToOwned::to_owned)),
        None => "# its file says something else by now: this is no longer its text\n".to_owned(),
    };
    head + &problems + &text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::sample;

    #[test]
    fn a_document_reads_well_and_stays_one() {
        let entry = sample::policies().documents.remove(0);
        let mut detail = PolicyDetail {
            entry,
            pods: vec!["web-0".to_owned(), "web-1".to_owned()],
            text: Some("kind: NetworkPolicy\n".to_owned()),
        };
        insta::assert_snapshot!(text(&detail), @"
        # document  NetworkPolicy/shop/web
        # state     enforced
        # from      /etc/datapath/policy.d/web.yaml
        # for       web-0, web-1
        kind: NetworkPolicy
        ");
        detail.text = None;
        assert!(text(&detail).ends_with("no longer its text\n"));
    }
}
