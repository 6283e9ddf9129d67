//! Documents that came by the API: kept as they were written, over restarts.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use datapath_user::policy::{
    Document, DocumentId, Reading,
    document::{self, Reader},
};
use serde::{Deserialize, Serialize};

use super::super::file;
use crate::{api::PolicyText, error::Result};

/// The documents, in a file of JSON.
#[derive(Clone, Debug)]
pub(super) struct Applied {
    path: PathBuf,
    kept: Kept,
}

/// What is in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    texts: Vec<KeptText>,
}

/// A text of one document, or of one list of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct KeptText {
    /// Where it came from.
    file: Option<PathBuf>,
    /// Lines that were before it there.
    lines_before: u64,
    text: String,
    /// Those of its documents that count: others were replaced or deleted since.
    documents: BTreeSet<DocumentId>,
    /// What it says, all of it.
    #[serde(skip)]
    read: Reading,
}

impl Applied {
    /// Reads those of an earlier agent.
    ///
    /// # Errors
    ///
    /// [`Error::Os`](crate::error::Error::Os), [`Error::State`](crate::error::Error::State).
    pub(super) fn open(path: PathBuf) -> Result<Self> {
        let mut kept: Kept = file::read(&path)?;
        for text in &mut kept.texts {
            let file = text.file.as_deref();
            text.read = document::read_one(&text.text, file, text.lines_before);
        }
        Ok(Self { path, kept })
    }

    /// Writes them down.
    ///
    /// # Errors
    ///
    /// [`Error::Os`](crate::error::Error::Os).
    pub(super) fn save(&self) -> Result<()> {
        file::write(&self.path, &self.kept)
    }

    /// What they say. Those that this version cannot use any more are refused.
    pub(super) fn reading(&self) -> Reading {
        let mut all = Reading::default();
        for kept in &self.kept.texts {
            let read = kept.reading();
            all.documents.extend(read.documents);
            all.refused.extend(read.refused);
        }
        all
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.kept
            .texts
            .iter()
            .map(|kept| kept.documents.len())
            .sum()
    }

    /// Whether there is one of this name.
    pub(super) fn has(&self, id: &DocumentId) -> bool {
        let mut texts = self.kept.texts.iter();
        texts.any(|kept| kept.documents.contains(id))
    }

    /// The text that a document is in.
    pub(super) fn text_of(&self, id: &DocumentId) -> Option<&str> {
        let mut texts = self.kept.texts.iter();
        let kept = texts.find(|kept| kept.documents.contains(id))?;
        Some(&kept.text)
    }

    /// Adds those documents of a text that are among these, in the place of others of their names.
    pub(super) fn add(&mut self, text: &PolicyText, wanted: &mut BTreeSet<DocumentId>) {
        for piece in document::split(&text.text) {
            let read = document::read_one(piece.text, text.file.as_deref(), piece.lines_before);
            let ids = read.documents.iter().map(|document| &document.id);
            let documents: BTreeSet<_> = ids.filter(|id| wanted.remove(id)).cloned().collect();
            if documents.is_empty() {
                continue;
            }
            self.remove(&documents);
            self.kept.texts.push(KeptText {
                file: text.file.clone(),
                lines_before: piece.lines_before,
                text: piece.text.to_owned(),
                documents,
                read,
            });
        }
    }

    /// Forgets these.
    pub(super) fn remove(&mut self, ids: &BTreeSet<DocumentId>) {
        for kept in &mut self.kept.texts {
            kept.documents.retain(|id| !ids.contains(id));
        }
        self.kept.texts.retain(|kept| !kept.documents.is_empty());
    }
}

impl KeptText {
    /// What it says, as far as it counts.
    fn reading(&self) -> Reading {
        let mut read = self.read.clone();
        let counts = |document: &Document| self.documents.contains(&document.id);
        read.documents.retain(counts);
        let all = read.documents.len() == self.documents.len();
        read.refused.retain(|refusal| match &refusal.id {
            Some(id) => self.documents.contains(id),
            // It may be one that counts; where those are all there, it is not.
            None => !all,
        });
        read
    }
}

/// Reads texts as they are given, as one.
pub(super) fn read(texts: &[PolicyText]) -> Reading {
    let mut reader = Reader::default();
    for text in texts {
        reader.text(&text.text, text.file.as_deref());
    }
    reader.finish()
}

/// The text of a document in a file.
pub(super) fn find_in(file: &Path, text: &str, wanted: &Document) -> Option<String> {
    let mut pieces = document::split(text).into_iter();
    let piece = pieces.find(|piece| {
        let read = document::read_one(piece.text, Some(file), piece.lines_before);
        read.documents.contains(wanted)
    })?;
    Some(piece.text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(name: &str) -> String {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}}}\n\
             spec: {{podSelector: {{}}}}\n"
        )
    }

    fn text(file: &str, text: String) -> PolicyText {
        let file = Some(file.into());
        PolicyText { file, text }
    }

    fn names(applied: &Applied) -> Vec<String> {
        let documents = applied.reading().documents.into_iter();
        let file = |document: &Document| document.file.clone().unwrap().display().to_string();
        documents
            .map(|document| format!("{}:{}", file(&document), document.id.name))
            .collect()
    }

    #[test]
    fn documents_are_kept_replaced_and_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("policies.json");
        let mut applied = Applied::open(path.clone()).unwrap();
        let both = text("a.yaml", format!("{}---\n{}", policy("one"), policy("two")));
        let ids = |texts: &[PolicyText]| -> BTreeSet<DocumentId> {
            let documents = read(texts).documents.into_iter();
            documents.map(|document| document.id).collect()
        };
        applied.add(&both, &mut ids(std::slice::from_ref(&both)));
        let again = text("b.yaml", policy("one"));
        applied.add(&again, &mut ids(std::slice::from_ref(&again)));
        applied.save().unwrap();
        let mut applied = Applied::open(path).unwrap();
        assert_eq!(names(&applied), ["a.yaml:two", "b.yaml:one"]);
        assert_eq!(applied.count(), 2);
        let one = ids(&[again]).into_iter().next().unwrap();
        assert_eq!(applied.text_of(&one), Some(policy("one").as_str()));
        applied.remove(&[one.clone()].into());
        assert!(!applied.has(&one) && applied.count() == 1);
    }

    #[test]
    fn a_document_is_found_in_its_file() {
        let file = Path::new("a.yaml");
        let all = format!("# both\n{}---\n{}", policy("one"), policy("two"));
        let reading = document::read(&all, Some(file));
        let two = reading.documents.iter().find(|doc| doc.id.name == "two");
        let found = find_in(file, &all, two.unwrap()).unwrap();
        assert_eq!(found, format!("---\n{}", policy("two")));
        assert_eq!(find_in(file, &policy("one"), two.unwrap()), None);
    }
}
