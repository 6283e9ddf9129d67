//! The policy cases there are.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use datapath_conformance::policy::case::Case;

use super::OrPanic;

/// All cases, in the order of their names.
pub fn all_cases() -> Vec<Case> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
    let files =
        fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let files: BTreeSet<PathBuf> = files.map(|entry| entry.unwrap().path()).collect();
    let cases = files
        .iter()
        .filter(|file| file.extension() == Some("yaml".as_ref()));
    cases.map(|file| Case::read(file).or_panic()).collect()
}
