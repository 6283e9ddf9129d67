//! `dpctl policy list`

use clap::Args;

use super::{Context, Outcome};
use crate::{
    api::{PolicyEntry, PolicyList, PolicySource, PolicyState},
    table::{self, numbers, words},
};

const EXAMPLES: &str = "\
PODS are the pods of this node that a document is for; `node` where it is for the node itself.

States:
  enforced     in force
  refused      it cannot be used: RULES are those of the last good one, which stays in force
  quarantined  it cannot be used, and there was no good one: whom it is for is closed until it is
               mended
  shadowed     applied, but a file of the directory has its name, and counts

Examples:
  dpctl policy list
  dpctl --output json policy list | jq '.documents[] | select(.state != \"enforced\")'";

/// List the policy documents, and what is wrong with those that cannot be used
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::cmd) struct List {}

impl List {
    pub(in crate::cmd) fn run(&self, context: &Context<'_>) -> anyhow::Result<Outcome> {
        let Self {} = self;
        context.show(&context.client()?.policies()?, text)
    }
}

fn text(list: &PolicyList) -> String {
    let columns = [
        words("KIND"),
        words("NAMESPACE"),
        words("NAME"),
        numbers("RULES"),
        numbers("PODS"),
        words("STATE"),
        words("FILE"),
    ];
    let rows = list.documents.iter().map(row).collect();
    let mut text = table::render(&columns, rows, "there is no policy: nobody needs a rule");
    let problems = list
        .documents
        .iter()
        .flat_map(|document| &document.problems);
    for problem in problems {
        text.push('\n');
        text.push_str(problem);
        text.push('\n');
    }
    text
}

fn row(document: &PolicyEntry) -> Vec<String> {
    let none = || "-".to_owned();
    let id = document.id.as_ref();
    let file = document.file.as_ref();
    let file = file.map_or_else(none, |file| file.display().to_string());
    vec![
        id.map_or_else(none, |id| id.kind.to_string()),
        id.and_then(|id| id.namespace.clone()).unwrap_or_else(none),
        id.map_or_else(none, |id| id.name.clone()),
        document.rules.to_string(),
        pods(document),
        state(document.state).to_owned(),
        match document.source {
            PolicySource::Directory => file,
            PolicySource::Applied => format!("applied: {file}"),
        },
    ]
}

fn pods(document: &PolicyEntry) -> String {
    match (document.endpoints, document.node) {
        (0, true) => "node".to_owned(),
        (count, true) => format!("{count}, node"),
        (count, false) => count.to_string(),
    }
}

pub(super) const fn state(state: PolicyState) -> &'static str {
    match state {
        PolicyState::Enforced => "enforced",
        PolicyState::Refused => "refused",
        PolicyState::Quarantined => "quarantined",
        PolicyState::Shadowed => "shadowed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::sample;

    #[test]
    fn documents_read_well() {
        insta::assert_snapshot!(text(&sample::policies()), @"
        KIND                            NAMESPACE  NAME   RULES  PODS  STATE        FILE
        NetworkPolicy                   shop       web        2     3  enforced     /etc/datapath/policy.d/web.yaml
        CiliumNetworkPolicy             shop       db         0     0  quarantined  /etc/datapath/policy.d/db.yaml
        CiliumClusterwideNetworkPolicy  -          nodes      2  node  enforced     applied: /root/nodes.yaml

        /etc/datapath/policy.d/db.yaml:5:7: there is no key `PodSelector`
        ");
        let none = text(&PolicyList::default());
        assert_eq!(none, "there is no policy: nobody needs a rule\n");
    }
}
