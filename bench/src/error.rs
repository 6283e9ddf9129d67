//! What a bench can fail with.

use std::io;

use aya::{EbpfError, maps::MapError, programs::ProgramError};
use datapath_tunnel::netlink::NetlinkError;

/// The result of everything that measures.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a bench could not be run. A figure that is worth nothing is no error: it is marked in the
/// [report](crate::report::Report).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The lab, or a probe in it.
    #[error("lab")]
    Lab(#[from] datapath_conformance::Error),
    /// Something could not be done with the interface that is to be measured on.
    #[error("{operation} the uplink {interface}")]
    Uplink {
        /// What was tried.
        operation: &'static str,
        /// The interface, as the machine calls it.
        interface: String,
        /// What the kernel says.
        #[source]
        source: Box<NetlinkError>,
    },
    /// The interface that is to be measured on has no carrier.
    #[error(
        "the uplink {interface} has no carrier: connect it to a switch or another card that is on"
    )]
    NoCarrier {
        /// The interface, as the machine calls it.
        interface: String,
    },
    /// An option that cannot be used.
    #[error("{what} {value:?}: {rule}")]
    Invalid {
        /// What the value is for.
        what: &'static str,
        /// The value.
        value: String,
        /// What is allowed.
        rule: &'static str,
    },
    /// The file of a small BPF program could not be written.
    #[error("write the ELF file of BPF program {program}")]
    Assemble {
        /// The program.
        program: &'static str,
        /// Why.
        #[source]
        source: object::write::Error,
    },
    /// A frame could not be written.
    #[error("write a frame")]
    Frame {
        /// Why.
        #[source]
        source: Box<etherparse::err::packet::BuildWriteError>,
    },
    /// The kernel did not take the file of a small BPF program.
    #[error("load BPF program {program}")]
    Load {
        /// The program.
        program: &'static str,
        /// What aya or the kernel says.
        #[source]
        source: Box<EbpfError>,
    },
    /// A file does not have what was put into it.
    #[error("BPF program {program} has no {missing}")]
    Incomplete {
        /// The program.
        program: &'static str,
        /// What is not there.
        missing: &'static str,
    },
    /// A small BPF program could not be verified, attached or run.
    #[error("{operation} BPF program {program} on {interface}")]
    Program {
        /// What was tried.
        operation: &'static str,
        /// The program.
        program: &'static str,
        /// The interface it is for.
        interface: String,
        /// What the kernel says.
        #[source]
        source: Box<ProgramError>,
    },
    /// The counter of a sink could not be read, or that of a generator set.
    #[error("use the counter of the program on {interface}")]
    Counter {
        /// The interface.
        interface: String,
        /// What the kernel says.
        #[source]
        source: Box<MapError>,
    },
    /// A flow table of the datapath could not be read.
    #[error("read the flow table {table}")]
    Table {
        /// The table.
        table: &'static str,
        /// What the kernel says.
        #[source]
        source: Box<MapError>,
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
    /// Flows that were to be measured as established ones are not.
    #[error(
        "{found} of {wanted} {protocol} flows from {from} to {to} are in the established table of n{node}: what would be measured is something else"
    )]
    NotEstablished {
        /// How many are.
        found: usize,
        /// How many should be.
        wanted: usize,
        /// Their protocol.
        protocol: &'static str,
        /// Their source.
        from: String,
        /// Their destination.
        to: String,
        /// The node, counted from 1.
        node: usize,
    },
    /// What is to be measured does not even forward right.
    #[error("{variant} spoils packets, its figures would mean nothing: {what}")]
    Spoilt {
        /// Who.
        variant: &'static str,
        /// What was seen.
        what: String,
    },
    /// The machine as it is set up does not allow a contest.
    #[error("{what} is {value} on this machine, {wanted} is needed: {remedy}")]
    Unfit {
        /// What is in the way.
        what: &'static str,
        /// What it is.
        value: String,
        /// What it would have to be.
        wanted: String,
        /// What to do about it.
        remedy: String,
    },
    /// The report could not be written as JSON.
    #[error("write the report as JSON")]
    Json(#[from] serde_json::Error),
}

impl Error {
    /// The error and all its sources in one line.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }

    /// Makes the function that turns an I/O error into [`Error::Os`], for `map_err`.
    pub(crate) fn os<S: Into<io::Error>>(
        operation: &'static str,
        object: impl ToString,
    ) -> impl FnOnce(S) -> Self {
        move |source| Self::Os {
            operation,
            object: object.to_string(),
            source: source.into(),
        }
    }

    /// Makes the function that turns an aya error into [`Error::Program`], for `map_err`.
    pub(crate) fn program(
        operation: &'static str,
        program: &'static str,
        interface: &str,
    ) -> impl FnOnce(ProgramError) -> Self {
        let interface = interface.to_owned();
        move |source| Self::Program {
            operation,
            program,
            interface,
            source: Box::new(source),
        }
    }
}
