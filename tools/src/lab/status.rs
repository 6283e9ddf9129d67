//! Labs that are up.

use std::{path::PathBuf, time::Duration};

use datapath_conformance::{
    netns,
    topology::{LabName, Plan, Remains, labs},
};
use serde::Serialize;

use super::{SOCKET, agents::process_file, node_directories, process::Process};
use crate::{
    api::Client,
    error::{Error, Result},
};

/// How long an agent may take to tell its status.
const PATIENCE: Duration = Duration::from_secs(2);

/// A lab that is up, or what is left of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LabStatus {
    /// Its name.
    pub lab: LabName,
    /// Its namespaces.
    pub namespaces: Vec<String>,
    /// Its directory.
    pub directory: Option<PathBuf>,
    /// Its nodes.
    pub nodes: Vec<NodeStatus>,
}

/// A node of a lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeStatus {
    /// Its name.
    pub node: String,
    /// The process of its agent, if that runs.
    pub pid: Option<u32>,
    /// Where its agent listens.
    pub socket: PathBuf,
    /// How many pods are connected, and how many other nodes are known, if the agent answers.
    pub endpoints: Option<usize>,
    /// How many other nodes are known.
    pub peers: Option<usize>,
    /// Why the agent does not answer.
    pub trouble: Option<String>,
}

/// Looks at a lab, or at all of them.
///
/// # Errors
///
/// [`Error::NoLab`] when there is nothing of the lab, [`Error::Lab`] when this is not root, or
/// namespaces or directories cannot be listed.
pub fn status(lab: Option<&LabName>) -> Result<Vec<LabStatus>> {
    netns::check_root()?;
    let names = match lab {
        Some(lab) => vec![lab.clone()],
        None => labs()?,
    };
    let mut found = Vec::new();
    for lab in names {
        let remains = Remains::find(&lab)?;
        if remains.is_empty() {
            continue;
        }
        let directories = node_directories(&Plan::new(lab.clone()).run_directory());
        let nodes = directories
            .into_iter()
            .map(|(node, directory)| look(node, &directory));
        found.push(LabStatus {
            nodes: nodes.collect(),
            lab,
            namespaces: remains.namespaces,
            directory: remains.directory,
        });
    }
    match lab {
        Some(lab) if found.is_empty() => Err(Error::NoLab {
            lab: lab.to_string(),
        }),
        _ => Ok(found),
    }
}

fn look(node: String, directory: &std::path::Path) -> NodeStatus {
    let socket = directory.join(SOCKET);
    let process = Process::read(&process_file(directory)).ok().flatten();
    let pid = process.filter(Process::runs).map(|process| process.pid);
    let asked = Client::new(&socket).with_patience(PATIENCE).status();
    let (endpoints, peers, trouble) = match asked {
        Ok(status) => (
            Some(status.datapath.endpoints),
            Some(status.datapath.peers),
            None,
        ),
        Err(error) => (
            None,
            None,
            Some(format!("{:#}", anyhow::Error::from(error))),
        ),
    };
    NodeStatus {
        node,
        pid,
        socket,
        endpoints,
        peers,
        trouble,
    }
}
