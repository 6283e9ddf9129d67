//! The policy cases there are, and how their nodes reach each other.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
};

use datapath_conformance::policy::case::Case;
use datapath_user::Tunnel;

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

/// How nodes reach each other's pods: what `DATAPATH_CASES_TUNNEL` says, `direct` without it.
pub fn chosen_tunnel() -> Tunnel {
    const VARIABLE: &str = "DATAPATH_CASES_TUNNEL";
    match env::var(VARIABLE).as_deref() {
        Ok("native") => Tunnel::Native,
        Ok("direct") | Err(_) => Tunnel::Direct,
        Ok(other) => panic!("{VARIABLE}={other}: write direct or native"),
    }
}
