//! Takes down a lab that was left running, whoever started it.

use std::time::Instant;

use datapath_conformance::{
    netns,
    topology::{LabName, Plan, Remains},
};
use serde::Serialize;

use super::{
    agents::{END, process_file},
    node_directories,
    process::Process,
};
use crate::error::Result;

/// What there was of a lab, and is no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// The lab.
    pub lab: LabName,
    /// Nodes whose agents ended when they were asked to.
    pub ended: Vec<String>,
    /// Nodes whose agents were not there any more.
    pub gone: Vec<String>,
    /// Its namespaces.
    pub namespaces: Vec<String>,
    /// Processes in them that were killed, agents that did not end among them.
    pub killed: Vec<u32>,
    /// Its directory.
    pub directory: Option<std::path::PathBuf>,
}

impl Removed {
    /// Tells whether there was nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.namespaces.is_empty() && self.directory.is_none() && self.killed.is_empty()
    }
}

/// Takes a lab down: asks the agents to end, kills what still runs in its namespaces, and removes
/// those and its files. Where there is nothing it does nothing.
///
/// # Errors
///
/// What could not be taken down, after trying the rest.
pub fn down(lab: &LabName) -> Result<Removed> {
    netns::check_root()?;
    let directory = Plan::new(lab.clone()).run_directory();
    let mut asked = Vec::new();
    let mut gone = Vec::new();
    let mut failures = Vec::new();
    for (node, directory) in node_directories(&directory) {
        match Process::read(&process_file(&directory)) {
            Ok(Some(process)) if process.runs() => {
                failures.extend(process.terminate().err());
                asked.push((node, process));
            }
            Ok(_) => gone.push(node),
            // Then it is killed with all that runs in the node's namespace.
            Err(error) => failures.push(error),
        }
    }
    let deadline = Instant::now() + END;
    asked.retain(|(_, process)| process.wait_until(deadline));
    let remains = Remains::destroy(lab)?;
    if let Some(failure) = failures.into_iter().next() {
        return Err(failure);
    }
    Ok(Removed {
        lab: lab.clone(),
        ended: asked.into_iter().map(|(node, _)| node).collect(),
        gone,
        namespaces: remains.namespaces,
        killed: remains.processes,
        directory: remains.directory,
    })
}
