//! `dpctl policy delete`

use std::{collections::BTreeSet, path::PathBuf};

use clap::Args;
use datapath_user::policy::{DocumentId, document};

use super::{Context, Outcome, texts};
use crate::{
    api::{Failure, parse_document_id},
    error::Error,
    table,
};

const EXAMPLES: &str = "\
Only documents that were applied can be deleted; those of files that the agent follows go with their
files. Either all of them are deleted, or none.

Exit codes:
  0  they are out of force
  1  one of them is not there, or is a file's: nothing was deleted
  2  the command line makes no sense
  3  no agent can be reached

Examples:
  dpctl policy delete NetworkPolicy/shop/web
  dpctl policy delete netpol/shop/web cnp/shop/db ccnp/base
  dpctl policy delete -f web.yaml";

/// Take policy documents out of force that were applied
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::cmd) struct Delete {
    /// What they are called: KIND/NAMESPACE/NAME, or KIND/NAME
    #[arg(value_name = "DOCUMENT", value_parser = id, required_unless_present = "files")]
    documents: Vec<DocumentId>,

    /// Those of a file, of a directory, or of standard input with -
    #[arg(
        long = "file",
        short,
        value_name = "FILE",
        conflicts_with = "documents"
    )]
    files: Vec<PathBuf>,
}

impl Delete {
    pub(in crate::cmd) fn run(&self, context: &Context<'_>) -> anyhow::Result<Outcome> {
        let mut documents: BTreeSet<_> = self.documents.iter().cloned().collect();
        for text in texts::read(&self.files)? {
            let reading = document::read(&text.text, text.file.as_deref());
            // Also of those that cannot be used any more, if they have a name.
            let refused = reading.refused.into_iter().filter_map(|refusal| refusal.id);
            documents.extend(reading.documents.into_iter().map(|document| document.id));
            documents.extend(refused);
        }
        if documents.is_empty() {
            let sentence = "there is no policy in what was given".to_owned();
            return Err(Error::Usage { sentence }.into());
        }
        let documents = documents.into_iter().collect();
        let report = context.client()?.delete_policies(documents)?;
        context.show(&report, |report| {
            table::lines(report.deleted.iter().map(|id| format!("{id} deleted")))
        })
    }
}

pub(super) fn id(text: &str) -> Result<DocumentId, Failure> {
    parse_document_id(text)
}
