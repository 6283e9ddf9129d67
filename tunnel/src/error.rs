//! What the managers can fail with.

use std::{fmt, io, path::PathBuf};

use nix::errno::Errno;

/// Why a netlink operation failed.
///
/// The message names the operation and its object ("add route 10.0.2.0/24 via 10.0.0.2 on
/// interface 7"); the reason is the [source](std::error::Error::source), so print the chain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetlinkError {
    /// The network namespace cannot be opened or entered.
    #[error("enter the network namespace {}", path.display())]
    OpenNamespace {
        /// The path that was given.
        path: PathBuf,
        /// What the kernel says; `EINVAL` when the path is no network namespace.
        #[source]
        source: io::Error,
    },
    /// The netlink thread, its runtime or its socket cannot be made.
    #[error("start the netlink thread")]
    Thread {
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The netlink thread has lost its socket, so this operation has no answer.
    #[error("{operation}: the netlink socket has closed, open a new one and look what took effect")]
    Closed {
        /// What was asked for.
        operation: String,
    },
    /// The kernel refuses the operation.
    #[error("{operation}")]
    Kernel {
        /// What was asked for, and of what.
        operation: String,
        /// The error number and the kernel's own sentence.
        #[source]
        source: KernelError,
    },
    /// This kernel does not have what the operation needs.
    #[error("{operation}: {what}; {remedy}")]
    Unsupported {
        /// What was asked for, and of what.
        operation: String,
        /// What is missing.
        what: &'static str,
        /// What to do about it.
        remedy: &'static str,
        /// The kernel's answer.
        #[source]
        source: KernelError,
    },
    /// A value that the kernel would refuse, or misunderstand.
    #[error("{operation}: {reason}")]
    Invalid {
        /// What was asked for, and of what.
        operation: String,
        /// What is wrong with the value, and what is allowed.
        reason: String,
    },
    /// The kernel's table changed under every attempt to list it, for two seconds.
    #[error("{operation}: the list keeps changing while it is read, try again")]
    Interrupted {
        /// What was asked for.
        operation: String,
    },
    /// The kernel's answer lacks what was asked for.
    #[error("{operation}: the kernel's answer has no {missing}")]
    Answer {
        /// What was asked for.
        operation: String,
        /// What is missing from the answer.
        missing: &'static str,
    },
}

impl NetlinkError {
    /// Returns the error number behind this error, where the kernel gave one.
    ///
    /// Positive, as in `errno.h`: 17 is `EEXIST`.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::OpenNamespace { source, .. } | Self::Thread { source } => source.raw_os_error(),
            Self::Kernel { source, .. } | Self::Unsupported { source, .. } => Some(source.errno),
            Self::Closed { .. }
            | Self::Invalid { .. }
            | Self::Interrupted { .. }
            | Self::Answer { .. } => None,
        }
    }
}

/// The kernel's refusal of a netlink request (`struct nlmsgerr`, include/uapi/linux/netlink.h).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelError {
    /// The error number, positive.
    pub errno: i32,
    /// The sentence that came with it (`NLMSGERR_ATTR_MSG`), where the kernel has one.
    pub message: Option<String>,
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Errno::from_raw(self.errno) {
            Errno::UnknownErrno => write!(f, "error {}", self.errno)?,
            // "EEXIST: File exists"
            known => write!(f, "{known}")?,
        }
        match &self.message {
            Some(message) => write!(f, " ({message})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for KernelError {}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    #[test]
    fn the_chain_names_operation_number_and_reason() {
        let error = NetlinkError::Kernel {
            operation: "add route 10.0.2.0/24 via 10.0.0.2 on interface 7".to_owned(),
            source: KernelError {
                errno: Errno::ENETUNREACH as i32,
                message: Some("Nexthop has invalid gateway".to_owned()),
            },
        };
        assert_eq!(error.errno(), Some(101));
        assert_eq!(
            format!("{error}: {}", error.source().unwrap()),
            "add route 10.0.2.0/24 via 10.0.0.2 on interface 7: \
             ENETUNREACH: Network is unreachable (Nexthop has invalid gateway)"
        );
    }

    #[test]
    fn an_unknown_number_is_still_shown() {
        let error = KernelError {
            errno: 4711,
            message: None,
        };
        assert_eq!(error.to_string(), "error 4711");
    }
}
