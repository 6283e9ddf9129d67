//! The documents of both sources as one, and their way into force.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, mem,
    path::PathBuf,
};

use datapath_user::{
    Datapath,
    policy::{Document, DocumentId, PolicyReport, Reading, Refusal},
};
use jiff::Timestamp;

use super::applied::{self, Applied};
use crate::api::{AppliedDocument, ApplyReport, ApplyRequest, Change, DeleteReport, Failure, Kind};

/// What is known of documents.
#[derive(Debug)]
pub(super) struct Book {
    pub(super) applied: Applied,
    pub(super) directory: Option<PathBuf>,
    /// What the directory says.
    pub(super) reading: Reading,
    /// Why that is not in force.
    pub(super) problem: Option<String>,
    pub(super) changed: Option<Timestamp>,
}

impl Book {
    /// Takes what the directory says, if that is something else, and puts it in force.
    pub(super) fn hear(
        &mut self,
        datapath: &Datapath,
        says: Option<Reading>,
        problem: Option<String>,
    ) {
        let again = self.problem.is_some();
        if let Some(says) = says {
            tell(&says.refused, &self.reading.refused);
            self.reading = says;
        } else if problem.is_some() || !again {
            self.problem = problem;
            return;
        }
        match self.enforce(datapath) {
            Ok(report) => {
                self.problem = None;
                tracing::info!(
                    documents = report.documents,
                    changed = report.changed,
                    removed = report.removed,
                    refused = report.refused,
                    took_us = report.took_us,
                    "policies of the directory are in force"
                );
            }
            Err(error) => {
                let problem = Failure::from(error).to_string();
                if self.problem.as_ref() != Some(&problem) {
                    tracing::error!(problem, "policies: those before stay in force");
                    self.problem = Some(problem);
                }
            }
        }
    }

    pub(super) fn enforce(
        &mut self,
        datapath: &Datapath,
    ) -> Result<PolicyReport, datapath_user::Error> {
        let owned = self.owned();
        let mut all = self.applied.reading();
        all.documents
            .retain(|document| !owned.contains_key(&document.id));
        let rests = |refusal: &Refusal| {
            let id = refusal.id.as_ref();
            id.is_some_and(|id| owned.contains_key(id))
        };
        all.refused.retain(|refusal| !rests(refusal));
        all.documents.extend(self.reading.documents.iter().cloned());
        all.refused.extend(self.reading.refused.iter().cloned());
        let report = datapath.set_policies(all.documents, all.refused)?;
        if report.changed + report.removed > 0 || self.changed.is_none() {
            self.changed = Some(Timestamp::now());
        }
        Ok(report)
    }

    /// The names that files have, each with its file.
    pub(super) fn owned(&self) -> BTreeMap<DocumentId, PathBuf> {
        let Reading { documents, refused } = &self.reading;
        let good = documents
            .iter()
            .map(|doc| (Some(&doc.id), doc.file.as_ref()));
        let bad = refused
            .iter()
            .map(|refusal| (refusal.id.as_ref(), refusal.file.as_ref()));
        let named = good
            .chain(bad)
            .filter_map(|(id, file)| Some((id?.clone(), file?.clone())));
        named.collect()
    }

    pub(super) fn apply(
        &mut self,
        datapath: &Datapath,
        request: &ApplyRequest,
    ) -> Result<ApplyReport, Failure> {
        let Reading {
            documents,
            mut refused,
        } = applied::read(&request.texts);
        if documents.is_empty() && refused.is_empty() {
            let error = "there is no policy in what was given";
            return Err(Failure::of(Kind::Invalid, error));
        }
        let owned = self.owned();
        let (clashing, documents): (Vec<_>, Vec<_>) = documents
            .into_iter()
            .partition(|document| owned.contains_key(&document.id));
        refused.extend(clashing.iter().map(|doc| clash(doc, &owned)));
        let mut report = ApplyReport {
            refused,
            ..ApplyReport::default()
        };
        if documents.is_empty() || !report.refused.is_empty() && !request.partial {
            return Ok(report);
        }
        let before = self.applied.reading().documents;
        let applied = documents.iter().map(|new| AppliedDocument {
            id: new.id.clone(),
            change: change(&before, new),
        });
        report.applied = applied.collect();
        let mut wanted: BTreeSet<_> = documents.into_iter().map(|doc| doc.id).collect();
        let mut next = self.applied.clone();
        for text in &request.texts {
            next.add(text, &mut wanted);
        }
        report.took_us = self.switch(datapath, next)?;
        let count = report.applied.len();
        tracing::info!(
            documents = count,
            took_us = report.took_us,
            "policies applied"
        );
        Ok(report)
    }

    pub(super) fn delete(
        &mut self,
        datapath: &Datapath,
        ids: &[DocumentId],
    ) -> Result<DeleteReport, Failure> {
        let owned = self.owned();
        for id in ids {
            if self.applied.has(id) {
                continue;
            }
            return Err(match owned.get(id) {
                Some(file) => Failure::of(
                    Kind::Conflict,
                    format!(
                        "{id} comes from {}, which the agent follows: change or remove that file; \
                         nothing was deleted",
                        file.display()
                    ),
                ),
                None => missing(id, "; nothing was deleted"),
            });
        }
        let gone: BTreeSet<_> = ids.iter().cloned().collect();
        let mut next = self.applied.clone();
        next.remove(&gone);
        let took_us = self.switch(datapath, next)?;
        tracing::info!(documents = ids.len(), took_us, "policies deleted");
        Ok(DeleteReport {
            deleted: gone.into_iter().collect(),
            took_us,
        })
    }

    /// Goes over to other applied documents: written down first, so that what is in force is never
    /// forgotten.
    fn switch(&mut self, datapath: &Datapath, next: Applied) -> Result<u64, Failure> {
        next.save()?;
        let before = mem::replace(&mut self.applied, next);
        match self.enforce(datapath) {
            Ok(report) => Ok(report.took_us),
            Err(error) => {
                self.applied = before;
                self.applied.save()?;
                Err(error.into())
            }
        }
    }
}

/// Says that there is no document of a name.
pub(super) fn missing(id: &DocumentId, then: &str) -> Failure {
    let error = format!("there is no {id} here: `dpctl policy list` shows those there are{then}");
    Failure::of(Kind::Missing, error)
}

fn change(before: &[Document], new: &Document) -> Change {
    match before.iter().find(|old| old.id == new.id) {
        None => Change::Created,
        Some(old) if old == new => Change::Unchanged,
        Some(_) => Change::Changed,
    }
}

/// What is wrong with a document whose name is a file's.
fn clash(document: &Document, owned: &BTreeMap<DocumentId, PathBuf>) -> Refusal {
    let id = &document.id;
    let file = owned.get(id).map(|file| file.display().to_string());
    Refusal {
        kind: Some(id.kind.to_string()),
        namespace: id.namespace.clone(),
        file: document.file.clone(),
        line: 1,
        column: 1,
        problem: format!("{id} comes from {}", file.unwrap_or_default()),
        help: Some(
            "the agent follows that file: change it there, or give this one another name"
                .to_owned(),
        ),
        excerpt: None,
        subject: None,
        id: Some(id.clone()),
    }
}

/// Logs what is wrong, unless it was before.
pub(super) fn tell(refused: &[Refusal], before: &[Refusal]) {
    for refusal in refused.iter().filter(|refusal| !before.contains(refusal)) {
        tracing::warn!("policy refused: {refusal}");
    }
    if refused.is_empty() && !before.is_empty() {
        tracing::info!("policies: all files can be used again");
    }
}

/// The text of a document that is in force, if its file still says it.
pub(super) fn text_in_file(document: &DocumentId, reading: &Reading) -> Option<String> {
    let document = reading.documents.iter().find(|doc| doc.id == *document)?;
    let file = document.file.as_deref()?;
    applied::find_in(file, &fs::read_to_string(file).ok()?, document)
}
