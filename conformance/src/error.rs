//! What the lab can fail with.

use std::{fmt, io, net::SocketAddr, path::PathBuf};

use datapath_tunnel::netlink::NetlinkError;

use crate::{family::Protocol, probe::Failure};

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the lab could not be built, used or taken down, or what a probe met.
///
/// The message names the operation and its object; the reason is the
/// [source](std::error::Error::source), so print the chain ([`Error::chain`]).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The process may not make network namespaces.
    #[error(
        "the lab makes network namespaces and needs root for it (effective uid is {uid}): run it with sudo"
    )]
    NotRoot {
        /// The effective user of the process.
        uid: u32,
    },
    /// A value that the lab cannot work with.
    #[error("{what} {value:?}: {rule}")]
    Invalid {
        /// What the value is for.
        what: &'static str,
        /// The value.
        value: String,
        /// What is allowed.
        rule: &'static str,
    },
    /// The namespace to create is there already.
    #[error(
        "network namespace {name} is there already: choose another name, or delete it with `ip netns delete {name}`"
    )]
    NamespaceExists {
        /// Its name.
        name: String,
    },
    /// The namespace to open is not there.
    #[error("there is no network namespace {name} (`ip netns list` shows those there are)")]
    NamespaceMissing {
        /// Its name.
        name: String,
    },
    /// A lab of this name is up, or was left behind by a process that was killed.
    #[error(
        "lab {lab} is up already, or was left behind ({found}): take it down with `dpctl lab down {lab}`, or choose another name"
    )]
    LabExists {
        /// The lab's name.
        lab: String,
        /// What there is of it.
        found: String,
    },
    /// There is no such lab to work with.
    #[error("there is no lab {lab}")]
    LabMissing {
        /// The lab's name.
        lab: String,
    },
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
    /// Links, addresses or routes of a namespace could not be set up.
    #[error("in network namespace {namespace}")]
    Netlink {
        /// The namespace.
        namespace: String,
        /// What was tried there, and what the kernel says.
        #[source]
        source: NetlinkError,
    },
    /// An interface that should be there is not.
    #[error("network namespace {namespace} has no interface {interface}")]
    NoInterface {
        /// The namespace.
        namespace: String,
        /// The interface.
        interface: String,
    },
    /// A program that the lab runs is not installed.
    #[error("{program} is not installed: it comes with the package {package}")]
    ProgramMissing {
        /// The program.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// A program that the lab runs failed.
    #[error("`{command}` failed ({status}): {output}")]
    ProgramFailed {
        /// The program and its arguments.
        command: String,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// What it wrote to standard error, or to standard output if that was empty.
        output: String,
    },
    /// A program's output, or a file of the lab, does not have the form it should have.
    #[error("{what} does not read as it should")]
    Unreadable {
        /// Which output or file.
        what: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A policy case that cannot be run as it is written.
    #[error("{}:{line}: {problem}", file.display())]
    Case {
        /// Its file.
        file: PathBuf,
        /// The line, counted from one.
        line: u64,
        /// What is wrong, and what to do about it.
        problem: String,
    },
    /// An offload did not change as it was told to.
    #[error(
        "offload {offload} of {interface} in {namespace} stays {state}, the driver does not let it be changed"
    )]
    OffloadStuck {
        /// The namespace.
        namespace: String,
        /// The interface.
        interface: String,
        /// The offload, as ethtool spells it.
        offload: &'static str,
        /// Its state: `on`, `off`, or `unknown` where ethtool does not list it.
        state: &'static str,
    },
    /// A probe did not get what it should have got.
    #[error("{protocol} {from} -> {to}: {failure}")]
    Probe {
        /// The protocol.
        protocol: Protocol,
        /// The namespace it ran in.
        from: String,
        /// Where it went; port 0 for ICMP.
        to: Target,
        /// What came back instead.
        #[source]
        failure: Box<Failure>,
    },
    /// The datapath of a node failed, or did not answer.
    #[error("datapath of {node}")]
    View {
        /// The node.
        node: String,
        /// What it says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// This kernel refuses a program of the datapath.
    #[error("load program {program}")]
    Program {
        /// Its name.
        program: String,
        /// What the verifier says.
        #[source]
        source: Box<aya::EbpfError>,
    },
    /// A capture file could not be written.
    #[error("write the capture {}", path.display())]
    CaptureFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: pcap_file::PcapError,
    },
    /// A frame that cannot be made: the payload is too long for its headers.
    #[error("build a frame of {bytes} payload bytes: too long for its headers")]
    FrameTooLong {
        /// The length of the payload.
        bytes: usize,
    },
    /// Some of a lab could not be taken down; the rest was.
    #[error("take down the lab: {}", list(failures))]
    Teardown {
        /// What failed, in order. Never empty.
        failures: Vec<Error>,
    },
}

impl Error {
    /// Returns the error and all its sources in one line: "this: because of that: because".
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let sentence = error.to_string();
            // `Error::Probe` shows its failure in its own sentence.
            if !text.ends_with(&sentence) {
                text.push_str(": ");
                text.push_str(&sentence);
            }
            cause = error.source();
        }
        text
    }

    /// Returns what a probe met, if this is the error of a probe.
    #[must_use]
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Probe { failure, .. } => Some(failure),
            _ => None,
        }
    }

    /// Makes the function that turns an I/O error into [`Error::Os`], for `map_err`.
    pub(crate) fn os<S: Into<io::Error>>(
        operation: &'static str,
        object: impl fmt::Display,
    ) -> impl FnOnce(S) -> Self {
        move |source| Self::Os {
            operation,
            object: object.to_string(),
            source: source.into(),
        }
    }

    /// Returns the one error there is, or all of them together.
    pub(crate) fn collect(mut failures: Vec<Self>) -> Result<()> {
        match (failures.pop(), failures.is_empty()) {
            (None, _) => Ok(()),
            (Some(only), true) => Err(only),
            (Some(last), false) => {
                failures.push(last);
                Err(Self::Teardown { failures })
            }
        }
    }
}

/// Where a probe went: a socket address, shown without the port where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target(pub SocketAddr);

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.port() {
            0 => write!(f, "{}", self.0.ip()),
            _ => write!(f, "{}", self.0),
        }
    }
}

fn list(failures: &[Error]) -> String {
    let sentences: Vec<_> = failures.iter().map(Error::chain).collect();
    sentences.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(name: &str) -> Error {
        Error::NamespaceMissing {
            name: name.to_owned(),
        }
    }

    #[test]
    fn one_failure_stays_itself_and_several_are_listed() {
        assert!(Error::collect(vec![]).is_ok());
        let one = Error::collect(vec![missing("a")]).unwrap_err();
        assert!(matches!(one, Error::NamespaceMissing { .. }));
        let two = Error::collect(vec![missing("a"), missing("b")]).unwrap_err();
        let text = two.to_string();
        assert!(
            text.contains("namespace a ") && text.contains("namespace b "),
            "{text}"
        );
    }

    #[test]
    fn the_chain_holds_the_kernels_words() {
        let error = Error::os::<io::Error>("open", "/nowhere")(io::Error::from_raw_os_error(2));
        assert_eq!(
            error.chain(),
            "open /nowhere: No such file or directory (os error 2)"
        );
    }
}
