//! What this library can fail with.

use std::{fmt, io, path::PathBuf, process::ExitStatus, time::Duration};

use crate::api::Failure;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the agent, a request to it or a lab failed.
///
/// The message names the operation and its object; the reason is the
/// [source](std::error::Error::source), so print the chain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("{operation} {object}")]
    Os {
        /// What was tried.
        operation: &'static str,
        /// On what.
        object: String,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// A configuration file is not as it should be. The source says where and how.
    #[error(
        "the configuration {} cannot be used (`dp-agent --help` shows one that can)",
        path.display()
    )]
    Config {
        /// The file.
        path: PathBuf,
        /// Line, key and what is wrong.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value in a configuration file cannot be used.
    #[error("the configuration {} cannot be used: {key}", path.display())]
    Setting {
        /// The file.
        path: PathBuf,
        /// The key, `endpoints[2].netns`.
        key: String,
        /// What is wrong with its value.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The cluster file is not as it should be.
    #[error("{}:{line}: {problem}", path.display())]
    Cluster {
        /// The file.
        path: PathBuf,
        /// Line of it, counted from one.
        line: usize,
        /// What is wrong there.
        problem: String,
    },
    /// A file that the agent keeps for itself is not as it left it.
    #[error(
        "{} is not what an agent wrote there: put the right one back, or remove it and say again \
         what it kept", path.display()
    )]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// Another agent listens at the socket.
    #[error(
        "{} belongs to another agent that is running{}: stop that one, or give this one another \
         `socket`", path.display(), Process(*process)
    )]
    SocketInUse {
        /// The socket.
        path: PathBuf,
        /// The process that listens, if the kernel tells.
        process: Option<i32>,
    },
    /// Where the socket should be, there is something else.
    #[error("{} is there already and no socket: move it away, or give another `socket`", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// No agent listens at the socket, or it may not be asked.
    #[error("no agent can be reached at {}", socket.display())]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The agent takes too long to answer.
    #[error("the agent at {} has not answered {request} for {patience:?}", socket.display())]
    Silent {
        /// The socket.
        socket: PathBuf,
        /// Method and path.
        request: String,
        /// How long it was waited for.
        patience: Duration,
    },
    /// The agent ended while it was listened to.
    #[error("the agent at {} has stopped, and its stream of events with it", socket.display())]
    Ended {
        /// The socket.
        socket: PathBuf,
    },
    /// The conversation with the agent broke off.
    #[error("{request} at {}", socket.display())]
    Conversation {
        /// The socket.
        socket: PathBuf,
        /// Method and path.
        request: String,
        /// What was wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The agent did not do what it was asked for.
    #[error(transparent)]
    Refused(#[from] Failure),
    /// The agent's answer does not read as it should.
    #[error(
        "the answer to {request} does not read as it should: `dpctl` and the agent must be of one \
         version"
    )]
    Answer {
        /// Method and path.
        request: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The agent of a lab's node ended before it was ready.
    #[error("the agent of node {node} ended ({status}); it said:\n{said}")]
    AgentEnded {
        /// The node.
        node: String,
        /// How it ended.
        status: ExitStatus,
        /// The last lines that it wrote.
        said: String,
    },
    /// The agent of a lab's node does not become ready.
    #[error("the agent of node {node} is not ready after {patience:?}; it said:\n{said}")]
    AgentNotReady {
        /// The node.
        node: String,
        /// How long it was waited for.
        patience: Duration,
        /// The last lines that it wrote.
        said: String,
    },
    /// The agent of a lab's node does not end.
    #[error("process {pid}, the agent of node {node}, does not end {patience:?} after SIGTERM")]
    AgentStays {
        /// The node.
        node: String,
        /// The process.
        pid: u32,
        /// How long it was waited for.
        patience: Duration,
    },
    /// There is no program to start as agent.
    #[error(
        "there is no agent at {}: build it (`cargo build --package datapath-tools`), or name it in \
         the environment variable DP_AGENT", path.display()
    )]
    NoAgentProgram {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// Requests to the agent go on although it is to end.
    #[error(
        "requests are still under way {patience:?} after the agent was to end: its datapath runs \
         on, for the next agent or for `dpctl cleanup`"
    )]
    Busy {
        /// How long they were waited for.
        patience: Duration,
    },
    /// There is no such lab.
    #[error(
        "there is no lab {lab}: `dpctl lab up {lab}` makes one, `dpctl lab status` lists those \
         there are"
    )]
    NoLab {
        /// The lab.
        lab: String,
    },
    /// A lab has no such node.
    #[error("lab {lab} has no node {node}, its nodes are {nodes}")]
    NoNode {
        /// The lab.
        lab: String,
        /// The node.
        node: String,
        /// The nodes that it has.
        nodes: String,
    },
    /// Arguments that do not go together.
    #[error("{sentence}")]
    Usage {
        /// Which, and what to write instead.
        sentence: String,
    },
    /// The datapath failed.
    #[error(transparent)]
    Datapath(#[from] datapath_user::Error),
    /// The address store failed.
    #[error(transparent)]
    Ipam(#[from] datapath_ipam::IpamError),
    /// The lab's network failed.
    #[error(transparent)]
    Lab(#[from] datapath_conformance::Error),
}

impl Error {
    /// Makes the function that turns an I/O error into [`Error::Os`], for `map_err`.
    pub(crate) fn os(
        operation: &'static str,
        object: impl fmt::Display,
    ) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Os {
            operation,
            object: object.to_string(),
            source,
        }
    }
}

struct Process(Option<i32>);

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |pid| write!(f, " (process {pid})"))
    }
}
