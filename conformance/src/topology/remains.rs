//! Labs that are up without a process that owns them: left running, or left behind.

use std::{collections::BTreeSet, fmt, fs, path::Path, path::PathBuf};

use super::{
    files,
    plan::{LabName, Plan, RUN_DIRECTORY},
    processes,
};
use crate::{
    error::{Error, Result},
    netns::{self, Namespace},
};

/// What there is of a lab.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remains {
    /// Its namespaces.
    pub namespaces: Vec<String>,
    /// Its directory, if it is there.
    pub directory: Option<PathBuf>,
    /// Processes in its namespaces, other than this one.
    pub processes: Vec<u32>,
}

impl Remains {
    /// Finds what there is of a lab, whoever made it.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] when namespaces or processes cannot be listed.
    pub fn find(lab: &LabName) -> Result<Self> {
        let mut namespaces = netns::names()?;
        namespaces.retain(|name| lab.owns(name));
        let directory = Plan::new(lab.clone()).run_directory();
        Ok(Self {
            processes: processes::inside(&inodes(&namespaces))?,
            directory: directory.exists().then_some(directory),
            namespaces,
        })
    }

    /// Tells whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.namespaces.is_empty() && self.directory.is_none() && self.processes.is_empty()
    }

    /// Takes down a lab by its name, whoever made it, and returns what there was of it.
    ///
    /// Processes in its namespaces are killed. Nothing there is no failure.
    ///
    /// # Errors
    ///
    /// What could not be taken down, after trying the rest: [`Error::Teardown`] if it is several.
    pub fn destroy(lab: &LabName) -> Result<Self> {
        netns::check_root()?;
        let remains = Self::find(lab)?;
        let mut failures = Vec::new();
        failures.extend(processes::end(&inodes(&remains.namespaces)).err());
        for name in &remains.namespaces {
            failures.extend(Namespace::adopt(name).and_then(Namespace::delete).err());
        }
        if let Some(directory) = &remains.directory {
            failures.extend(files::remove(directory).err());
        }
        Error::collect(failures).map(|()| remains)
    }
}

impl fmt::Display for Remains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let namespaces = self.namespaces.len();
        let processes = self.processes.len();
        write!(f, "{namespaces} namespaces, {processes} processes")?;
        match &self.directory {
            Some(directory) => write!(f, ", {}", directory.display()),
            None => Ok(()),
        }
    }
}

/// Lists the labs that are up on this machine, sorted by name.
///
/// # Errors
///
/// [`Error::Os`] when the directory of the labs cannot be read.
pub fn labs() -> Result<Vec<LabName>> {
    let mut names = BTreeSet::new();
    if Path::new(RUN_DIRECTORY).exists() {
        let refused = || Error::os("list", RUN_DIRECTORY);
        for entry in fs::read_dir(RUN_DIRECTORY).map_err(refused())? {
            let name = entry.map_err(refused())?.file_name();
            names.extend(name.to_str().and_then(|name| name.parse::<LabName>().ok()));
        }
    }
    Ok(names.into_iter().collect())
}

/// Returns the numbers of those namespaces that can still be opened.
fn inodes(namespaces: &[String]) -> BTreeSet<u64> {
    namespaces
        .iter()
        .filter_map(|name| Namespace::open(name).ok())
        .map(|namespace| namespace.inode())
        .collect()
}
