//! The archive, and what did not get into it.

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use flate2::{Compression, write::GzEncoder};
use serde::Serialize;
use tar::{Builder, Header};

use super::{Dump, FORMAT, Problem, now_s};
use crate::table;

/// The directory that everything is in.
const ROOT: &str = "datapath-sysdump";

/// An archive that is being written.
pub(super) struct Archive {
    file: PathBuf,
    builder: Builder<GzEncoder<File>>,
    parts: Vec<String>,
    errors: Vec<Problem>,
}

impl Archive {
    /// Begins a file that only its owner may read: it names addresses and policies.
    pub(super) fn create(file: &Path) -> anyhow::Result<Self> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let opened = options.open(file);
        let opened = opened.with_context(|| format!("write {}", file.display()))?;
        let packed = GzEncoder::new(opened, Compression::default());
        Ok(Self {
            file: file.to_owned(),
            builder: Builder::new(packed),
            parts: Vec::new(),
            errors: Vec::new(),
        })
    }

    /// Adds a text, or notes why there is none.
    pub(super) fn text(&mut self, part: &str, text: anyhow::Result<String>) -> anyhow::Result<()> {
        match text {
            Ok(text) => self.append(part, text.as_bytes()),
            Err(error) => {
                self.failed(part, &error);
                Ok(())
            }
        }
    }

    /// Adds a value as JSON, or notes why there is none.
    pub(super) fn json<T: Serialize>(
        &mut self,
        part: &str,
        value: anyhow::Result<T>,
    ) -> anyhow::Result<()> {
        let text = value.and_then(|value| Ok(serde_json::to_string_pretty(&value)? + "\n"));
        self.text(part, text)
    }

    /// Notes that a part is missing.
    pub(super) fn failed(&mut self, part: &str, error: &anyhow::Error) {
        self.errors.push(Problem {
            part: part.to_owned(),
            error: format!("{error:#}"),
        });
    }

    /// Adds what is missing, and ends the file.
    pub(super) fn finish(mut self) -> anyhow::Result<Dump> {
        if !self.errors.is_empty() {
            let lines = self
                .errors
                .iter()
                .map(|Problem { part, error }| format!("{part}: {error}"));
            let text = table::lines(lines);
            self.append("errors.txt", text.as_bytes())?;
        }
        let Self {
            file,
            builder,
            parts,
            errors,
        } = self;
        let writing = || format!("write {}", file.display());
        let packed = builder.into_inner().with_context(writing)?;
        let mut written = packed.finish().with_context(writing)?;
        written.flush().with_context(writing)?;
        let bytes = written.metadata().with_context(writing)?.len();
        Ok(Dump {
            format: FORMAT,
            file,
            bytes,
            parts,
            errors,
        })
    }

    fn append(&mut self, part: &str, contents: &[u8]) -> anyhow::Result<()> {
        let mut header = Header::new_gnu();
        header.set_size(contents.len().try_into()?);
        header.set_mode(0o600);
        header.set_mtime(now_s());
        self.builder
            .append_data(&mut header, format!("{ROOT}/{part}"), contents)
            .with_context(|| format!("write {}", self.file.display()))?;
        self.parts.push(part.to_owned());
        Ok(())
    }
}
