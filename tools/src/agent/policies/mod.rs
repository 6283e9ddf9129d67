//! The documents of a node: those of a directory that is followed, and those that came by the API.
//!
//! A file owns the names of its documents, also of those that cannot be used: what is applied under
//! such a name is refused, and what was applied before rests until the file lets go of the name.

mod applied;
mod book;
mod list;

use std::{
    collections::BTreeSet,
    fs,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use datapath_user::{
    Datapath,
    policy::{
        DocumentId, Reading,
        document::{Directory, Reader},
    },
};
use jiff::Timestamp;

use self::{
    applied::Applied,
    book::{Book, tell},
};
use super::stopped;
use crate::{
    api::{
        ApplyReport, ApplyRequest, DeleteReport, Failure, Followed, Kind, PolicyDetail, PolicyList,
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

fn unlisted(directory: &Directory) -> Error {
    let problem = directory.problem().unwrap_or("it says nothing");
    let error = format!("the directory of policies cannot be listed: {problem}");
    Failure::of(Kind::Internal, error).into()
}
