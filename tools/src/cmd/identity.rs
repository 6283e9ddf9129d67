//! `dpctl identity`

use clap::{Args, Subcommand};

use super::{Context, Nothing, Outcome};
use crate::{
    api::{Failure, IdentityEntry, Kind},
    error::Error,
    table::{self, list, numbers, pairs, words},
};

const LIST_EXAMPLES: &str = "\
Pods of equal labels and named ports are one identity, and so is each prefix that a policy names.
REMOTE counts addresses of other nodes' pods.

Examples:
  dpctl identity list
  dpctl --output json identity list | jq '.[] | {number, labels}'";

const GET_EXAMPLES: &str = "\
Examples:
  dpctl identity get 256
  dpctl --output json identity get 256 | jq -r .endpoints[]";

/// Show what identities stand for, and who has them
#[derive(Debug, Subcommand)]
pub(super) enum Identity {
    /// List the identities that pods and prefixes have
    #[command(after_help = LIST_EXAMPLES)]
    List(Nothing),
    Get(Get),
}

/// Show an identity: a label on each line, and who has it
#[derive(Debug, Args)]
#[command(after_help = GET_EXAMPLES)]
pub(super) struct Get {
    /// Its number
    number: u32,
}

impl Identity {
    pub(super) fn run(&self, context: &Context<'_>) -> anyhow::Result<Outcome> {
        let identities = context.client()?.identities()?;
        match self {
            Self::List(_) => context.show(&identities, |identities| rows(identities)),
            Self::Get(Get { number }) => {
                let found = identities.into_iter().find(|entry| entry.number == *number);
                context.show(&found.ok_or_else(|| missing(*number))?, detail)
            }
        }
    }
}

fn missing(number: u32) -> Error {
    let remedy = "`dpctl identity list` shows those that pods and prefixes have";
    let error = match datapath_user::reserved_identity(number) {
        Some(name) => format!("identity {number} is reserved:{name}, and no pod's: {remedy}"),
        None => format!("nobody has the identity {number}: {remedy}"),
    };
    Failure::of(Kind::Missing, error).into()
}

fn rows(identities: &[IdentityEntry]) -> String {
    let columns = [
        numbers("IDENTITY"),
        words("ENDPOINTS"),
        numbers("REMOTE"),
        words("LABELS"),
    ];
    let rows = identities.iter().map(|entry| {
        vec![
            entry.number.to_string(),
            if entry.endpoints.is_empty() {
                "-".to_owned()
            } else {
                list(&entry.endpoints)
            },
            entry.remote.to_string(),
            labels(entry).join("\n"),
        ]
    });
    let none = "no pod has labels, and no policy names a prefix";
    table::render(&columns, rows.collect(), none)
}

/// Its labels; a dash where it has none.
fn labels(entry: &IdentityEntry) -> Vec<String> {
    if entry.labels.is_empty() {
        return vec!["-".to_owned()];
    }
    entry.labels.iter().map(|label| label.to_string()).collect()
}

fn detail(entry: &IdentityEntry) -> String {
    pairs(&[
        ("identity", entry.number.to_string()),
        (
            "prefix",
            entry
                .prefix
                .map(|prefix| prefix.to_string())
                .unwrap_or_default(),
        ),
        ("endpoints", list(&entry.endpoints)),
        (
            "remote",
            match entry.remote {
                0 => String::new(),
                count => format!("{count} addresses of other nodes' pods"),
            },
        ),
        ("labels", labels(entry).join("\n           ")),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::sample;

    #[test]
    fn identities_read_well() {
        let identities = sample::identities();
        insta::assert_snapshot!(rows(&identities), @"
        IDENTITY  ENDPOINTS     REMOTE  LABELS
             256  web-0, web-1       4  k8s:app=web
                                        k8s:io.kubernetes.pod.namespace=shop
        16777216  -                  0  cidr:192.0.2.0/24
                                        reserved:world-ipv4
        ");
        insta::assert_snapshot!(detail(&identities[0]), @"
        identity   256
        endpoints  web-0, web-1
        remote     4 addresses of other nodes' pods
        labels     k8s:app=web
                   k8s:io.kubernetes.pod.namespace=shop
        ");
        insta::assert_snapshot!(detail(&identities[1]), @"
        identity   16777216
        prefix     192.0.2.0/24
        labels     cidr:192.0.2.0/24
                   reserved:world-ipv4
        ");
        let said = missing(2).to_string();
        assert!(said.contains("reserved:world"), "{said}");
    }
}
