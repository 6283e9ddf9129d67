//! The documents of a node: those of a directory that is followed, and those that came by the API.
//!
//! A file owns the names of its documents, also of those that cannot be used: what is applied under
//! such a name is refused, and what was applied before rests until the file lets go of the name.

mod applied;
mod list;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use datapath_user::{
    Datapath,
    policy::{
        Document, DocumentId, PolicyReport, Reading, Refusal,
        document::{Directory, Reader},
    },
};
use jiff::Timestamp;

use self::applied::Applied;
use super::stopped;
use crate::{
    api::{
        AppliedDocument, ApplyReport, ApplyRequest, Change, DeleteReport, Failure, Followed, Kind,
        PolicyDetail, PolicyList,
    },
    error::{Error, Result},
    table::counted,
};

/// How often the directory is looked at though nothing is heard of it, and what could not be put in
/// force is tried again.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// The documents of a node, and where they come from.
#[derive(Debug)]
pub(super) struct Policies {
    book: Mutex<Book>,
    /// Taken by the thread that follows it.
    directory: Mutex<Option<Directory>>,
}

/// What is known of documents.
#[derive(Debug)]
struct Book {
    applied: Applied,
    directory: Option<PathBuf>,
    /// What the directory says.
    reading: Reading,
    /// Why that is not in force.
    problem: Option<String>,
    changed: Option<Timestamp>,
}

impl Policies {
    /// Reads what an earlier agent was told, and what is in the directory.
    ///
    /// # Errors
    ///
    /// [`Error::Datapath`] for a directory that cannot be listed, [`Error::Os`] and [`Error::State`]
    /// for the file of what was applied.
    pub(super) fn open(directory: Option<&Path>, applied: PathBuf) -> Result<Self> {
        let applied = Applied::open(applied)?;
        let mut followed = directory.map(Directory::follow).transpose()?;
        let says = match &mut followed {
            None => Reading::default(),
            // Never taken for empty: that would open everyone.
            Some(followed) => match followed.look().cloned() {
                Some(says) => says,
                None => return Err(unlisted(followed)),
            },
        };
        let book = Book {
            applied,
            directory: directory.map(Path::to_owned),
            reading: says,
            problem: None,
            changed: None,
        };
        tell(&book.reading.refused, &[]);
        Ok(Self {
            book: Mutex::new(book),
            directory: Mutex::new(followed),
        })
    }

    /// Checks the documents of a directory.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] for one that cannot be listed, [`Error::Refused`] with what is wrong.
    pub(super) fn check(directory: &Path) -> Result<()> {
        fs::read_dir(directory).map_err(Error::os("list", directory.display()))?;
        let mut reader = Reader::default();
        reader.directory(directory);
        let wrong = reader.finish().refused;
        if wrong.is_empty() {
            return Ok(());
        }
        let wrong: Vec<_> = wrong.iter().map(ToString::to_string).collect();
        let error = format!(
            "policies of {} cannot be used:\n{}",
            directory.display(),
            wrong.join("\n")
        );
        Err(Failure::of(Kind::Invalid, error).into())
    }

    /// Puts all of them in force.
    ///
    /// # Errors
    ///
    /// What the datapath says; then those are in force that were.
    pub(super) fn enforce(&self, datapath: &Datapath) -> Result<()> {
        self.book().enforce(datapath)?;
        Ok(())
    }

    /// Follows the directory until `stop` is closed.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] when it cannot wait.
    pub(super) fn follow(&self, datapath: &Datapath, stop: impl AsFd) -> Result<()> {
        let taken = self.directory.lock();
        let taken = taken.unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut directory) = taken else {
            return Ok(());
        };
        while !stopped(stop.as_fd()) {
            let waited = directory.wait(stop.as_fd(), LOOK_EVERY);
            waited.map_err(|errno| Error::os("wait for changes of", "policies")(errno.into()))?;
            let says = directory.look().cloned();
            let problem = directory.problem().map(ToOwned::to_owned);
            self.book().hear(datapath, says, problem);
        }
        Ok(())
    }

    /// Puts documents in force, and keeps them.
    ///
    /// # Errors
    ///
    /// [`Kind::Invalid`] for a request without a document, or what the datapath says; then nothing is
    /// changed.
    pub(super) fn apply(
        &self,
        datapath: &Datapath,
        request: &ApplyRequest,
    ) -> Result<ApplyReport, Failure> {
        self.book().apply(datapath, request)
    }

    /// Takes documents out of force that were applied.
    ///
    /// # Errors
    ///
    /// [`Kind::Missing`] for one that there is not, [`Kind::Conflict`] for one that is a file's; then
    /// nothing is changed.
    pub(super) fn delete(
        &self,
        datapath: &Datapath,
        ids: &[DocumentId],
    ) -> Result<DeleteReport, Failure> {
        self.book().delete(datapath, ids)
    }

    /// All documents.
    pub(super) fn list(&self, datapath: &Datapath) -> PolicyList {
        list::list(&self.book(), datapath)
    }

    /// One of them, with its text.
    ///
    /// # Errors
    ///
    /// [`Kind::Missing`].
    pub(super) fn get(
        &self,
        datapath: &Datapath,
        id: &DocumentId,
    ) -> Result<PolicyDetail, Failure> {
        list::get(&self.book(), datapath, id)
    }

    /// When the documents in force last changed.
    pub(super) fn changed(&self) -> Option<Timestamp> {
        self.book().changed
    }

    /// How many came by the API.
    pub(super) fn applied(&self) -> usize {
        self.book().applied.count()
    }

    /// The directory, if there is one.
    pub(super) fn directory(&self) -> Option<Followed> {
        let book = self.book();
        let refused: BTreeSet<_> = book.reading.refused.iter().map(list::name_of).collect();
        Some(Followed {
            path: book.directory.clone()?,
            says: format!(
                "{}, {} refused",
                counted(book.reading.documents.len(), "document", "documents"),
                refused.len()
            ),
            problem: book.problem.clone(),
        })
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // What a panicking thread left is what the documents were, or are.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    /// Takes what the directory says, if that is something else, and puts it in force.
    fn hear(&mut self, datapath: &Datapath, says: Option<Reading>, problem: Option<String>) {
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

    fn enforce(&mut self, datapath: &Datapath) -> Result<PolicyReport, datapath_user::Error> {
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
    fn owned(&self) -> BTreeMap<DocumentId, PathBuf> {
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

    fn apply(
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

    fn delete(&mut self, datapath: &Datapath, ids: &[DocumentId]) -> Result<DeleteReport, Failure> {
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
        let before = std::mem::replace(&mut self.applied, next);
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

fn unlisted(directory: &Directory) -> Error {
    let problem = directory.problem().unwrap_or("it says nothing");
    let error = format!("the directory of policies cannot be listed: {problem}");
    Failure::of(Kind::Internal, error).into()
}

/// Says that there is no document of a name.
fn missing(id: &DocumentId, then: &str) -> Failure {
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
fn tell(refused: &[Refusal], before: &[Refusal]) {
    for refusal in refused.iter().filter(|refusal| !before.contains(refusal)) {
        tracing::warn!("policy refused: {refusal}");
    }
    if refused.is_empty() && !before.is_empty() {
        tracing::info!("policies: all files can be used again");
    }
}

/// The text of a document that is in force, if its file still says it.
fn text_in_file(document: &DocumentId, reading: &Reading) -> Option<String> {
    let document = reading.documents.iter().find(|doc| doc.id == *document)?;
    let file = document.file.as_deref()?;
    applied::find_in(file, &fs::read_to_string(file).ok()?, document)
}
