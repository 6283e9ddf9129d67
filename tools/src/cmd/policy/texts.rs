//! Files of documents, for an agent that may not see them.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use datapath_user::policy::document;

use crate::api::PolicyText;

/// Standard input among files.
const STDIN: &str = "-";

/// Reads files; of directories those that have documents, and standard input for `-`.
pub(super) fn read(files: &[PathBuf]) -> anyhow::Result<Vec<PolicyText>> {
    let mut texts = Vec::new();
    for file in files {
        if file == Path::new(STDIN) {
            let mut text = String::new();
            let read = io::stdin().lock().read_to_string(&mut text);
            read.context("read standard input")?;
            let file = Some("standard input".into());
            texts.push(PolicyText { file, text });
        } else if file.is_dir() {
            let files = document::files_of(file);
            for file in files.with_context(|| format!("list {}", file.display()))? {
                texts.push(read_file(&file)?);
            }
        } else {
            texts.push(read_file(file)?);
        }
    }
    Ok(texts)
}

fn read_file(file: &Path) -> anyhow::Result<PolicyText> {
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    // The agent may be in another directory.
    let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    Ok(PolicyText {
        file: Some(file),
        text,
    })
}
