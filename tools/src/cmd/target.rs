//! Which agent to ask.

use std::{io, path::PathBuf};

use clap::Args;
use datapath_conformance::topology::LabName;

use crate::{
    api::DEFAULT_SOCKET,
    error::{Error, Result},
    lab,
};

/// Which agent to ask.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Which agent")]
pub(super) struct Target {
    /// Socket of the agent [default: /run/datapath/agent.sock]
    #[arg(long, value_name = "PATH", global = true, conflicts_with_all = ["node", "lab"])]
    socket: Option<PathBuf>,

    /// Ask the agent of this node of a lab, such as n1
    #[arg(long, value_name = "NAME", global = true)]
    node: Option<String>,

    /// The lab of that node [default: dp-lab]
    #[arg(long, value_name = "NAME", global = true)]
    lab: Option<LabName>,
}

impl Target {
    /// Returns the socket of the agent.
    pub(super) fn socket(&self) -> Result<PathBuf> {
        match (&self.socket, &self.node, &self.lab) {
            (Some(socket), ..) => Ok(socket.clone()),
            (None, Some(node), lab) => lab::socket(&lab.clone().unwrap_or_default(), node),
            (None, None, None) => Ok(DEFAULT_SOCKET.into()),
            (None, None, Some(lab)) => Err(Error::Usage {
                sentence: format!(
                    "--lab {lab} names a lab, and not which of its nodes to ask: add --node n1"
                ),
            }),
        }
    }

    /// Returns the node of a lab that is meant; `None` where it is this machine.
    pub(super) fn node(&self) -> Result<Option<(LabName, &str)>> {
        match (&self.socket, &self.node, &self.lab) {
            (None, None, None) => Ok(None),
            (None, Some(node), lab) => Ok(Some((lab.clone().unwrap_or_default(), node))),
            (Some(_), ..) => Err(Error::Usage {
                sentence: "--socket says which agent to ask, and this is done without one: name \
                           its `bpffs` directory with --bpffs, or a node of a lab with --node n1"
                    .to_owned(),
            }),
            // It says which flag is missing.
            (None, None, Some(_)) => self.socket().map(|_socket| None),
        }
    }

    /// Returns the network namespace of the node of a lab that is meant; none where it is not one.
    pub(super) fn netns(&self) -> Option<PathBuf> {
        let node = self.node.as_ref()?;
        let lab = self.lab.clone().unwrap_or_default();
        Some(format!("/run/netns/{lab}-{node}").into())
    }

    /// Refuses what verbs about this machine, `what` of it, have no use for.
    pub(super) fn refuse_for(&self, what: &str) -> Result<()> {
        if self.socket.is_none() && self.node.is_none() && self.lab.is_none() {
            return Ok(());
        }
        Err(Error::Usage {
            sentence: format!(
                "this looks at {what}, and asks no agent: leave out --socket, --node and --lab"
            ),
        })
    }

    /// Refuses what verbs about labs as a whole have no use for.
    pub(super) fn refuse(&self) -> Result<()> {
        let given = [
            ("--socket", self.socket.is_some()),
            ("--node", self.node.is_some()),
            ("--lab", self.lab.is_some()),
        ];
        match given.into_iter().find(|(_, given)| *given) {
            None => Ok(()),
            Some((flag, _)) => Err(Error::Usage {
                sentence: format!(
                    "{flag} says which agent to ask, and this is about a lab as a whole: name the \
                     lab behind the verb, as in `dpctl lab status dp-lab`"
                ),
            }),
        }
    }
}

/// Says what to do when a socket cannot be connected to.
pub(super) fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "only root may ask an agent: run dpctl with sudo",
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            "start one with `dp-agent --config FILE`, or point to one that runs: \
             `--socket PATH`, or `--node n1` for a lab (`dpctl lab status` lists them)"
        }
        _ => "point to the socket of an agent with `--socket PATH`",
    }
}
