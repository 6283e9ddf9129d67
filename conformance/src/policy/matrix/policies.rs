//! The policies of a case: what an API server would take, and what it would refuse.

use datapath_user::policy::{Document, document};

use super::result::Rejected;
use crate::policy::case::Case;

/// The policies of a case.
#[derive(Debug, Default)]
pub(super) struct Policies {
    /// Those that can be used.
    pub(super) documents: Vec<Document>,
    /// The others.
    pub(super) rejected: Vec<Rejected>,
}

/// Returns the policies of a case that are refused, each with all that is wrong with it.
#[must_use]
pub fn refused(case: &Case) -> Vec<Rejected> {
    read(case).rejected
}

/// Returns the policies of a case that are not refused.
#[must_use]
pub fn documents(case: &Case) -> Vec<Document> {
    read(case).documents
}

/// Reads them, each on its own: what is wrong with one leaves the others as they are.
pub(super) fn read(case: &Case) -> Policies {
    let mut policies = Policies::default();
    for text in &case.policies {
        let before = text.line.saturating_sub(1);
        let mut reading = document::read_one(&text.text, Some(&case.file), before);
        if reading.refused.is_empty() {
            // As with `kubectl apply`, a later one of the same name takes the place of the first.
            for document in reading.documents {
                policies.documents.retain(|known| known.id != document.id);
                policies.documents.push(document);
            }
            continue;
        }
        let problems = reading.refused.drain(..).map(|refusal| {
            let help = refusal
                .help
                .map_or_else(String::new, |help| format!(" ({help})"));
            format!("line {}: {}{help}", refusal.line, refusal.problem)
        });
        policies.rejected.push(Rejected {
            object: text.object.clone(),
            message: problems.collect::<Vec<_>>().join("; "),
        });
    }
    policies
}
