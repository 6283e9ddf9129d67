//! What probes report when the right answer does not come.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use nix::libc;

use super::Options;
use crate::{
    error::{Error, Result, Target},
    family::Protocol,
    netns::Namespace,
};

/// What a probe met instead of the right answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// Nothing came, or nothing more.
    #[error("silence for {timeout:?} after {received} of {expected} bytes")]
    Silence {
        /// How long it was waited.
        timeout: Duration,
        /// What had come back before.
        received: usize,
        /// What should have come.
        expected: usize,
    },
    /// The other end says that nobody listens: a TCP reset, or an ICMP port unreachable.
    #[error("refused")]
    Refused,
    /// The connection was reset.
    #[error("reset after {received} of {expected} bytes")]
    Reset {
        /// What had come back before.
        received: usize,
        /// What should have come.
        expected: usize,
    },
    /// The other end closed the connection.
    #[error("closed after {received} of {expected} bytes")]
    Closed {
        /// What had come back before.
        received: usize,
        /// What should have come.
        expected: usize,
    },
    /// An ICMP error came back.
    #[error("{from} answers with ICMP error type {kind} code {code}{}", show_mtu(*mtu_bytes))]
    IcmpError {
        /// Who sent it.
        from: IpAddr,
        /// Its type, of ICMP or `ICMPv6`.
        kind: u8,
        /// Its code.
        code: u8,
        /// The MTU that it tells, if that is what it is about.
        mtu_bytes: Option<u32>,
    },
    /// The packet is larger than the path is known to take, and may not be fragmented.
    #[error("too large for the path ({bytes} bytes)")]
    TooLarge {
        /// Its payload.
        bytes: usize,
    },
    /// What came back is not what went out.
    #[error("corrupt at byte {offset} of {length}: {found:#04x} instead of {expected:#04x}")]
    Corrupt {
        /// Where the first wrong byte is.
        offset: usize,
        /// How long it was.
        length: usize,
        /// What went out.
        expected: u8,
        /// What came back.
        found: u8,
    },
    /// A datagram came back longer or shorter than it went out, or more than that on a connection.
    #[error("{received} bytes came back for {expected}")]
    Length {
        /// What went out.
        expected: usize,
        /// What came back.
        received: usize,
    },
    /// A datagram came back with a wrong checksum.
    #[error("an answer with a wrong checksum ({found:#06x})")]
    Checksum {
        /// What the field held.
        found: u16,
    },
    /// The server saw one client under two addresses.
    #[error("the server saw the client first as {first}, then as {then}")]
    SourceChanged {
        /// The first.
        first: SocketAddr,
        /// The other.
        then: SocketAddr,
    },
    /// Whoever answers is no [`EchoServer`](super::EchoServer).
    #[error("the answer is not one of an echo server of this lab")]
    Stranger,
    /// The kernel refused to send or receive: unreachable, not permitted, ...
    #[error("{0}")]
    Io(#[source] io::Error),
}

impl Failure {
    /// Tells whether there was no answer at all, as when a policy drops packets in silence.
    #[must_use]
    pub fn is_silence(&self) -> bool {
        matches!(self, Self::Silence { .. })
    }
}

/// From where to where, for errors.
#[derive(Clone, Debug)]
pub(super) struct Leg {
    pub(super) protocol: Protocol,
    pub(super) from: String,
    pub(super) to: SocketAddr,
    pub(super) timeout: Duration,
}

impl Leg {
    pub(super) fn new(
        protocol: Protocol,
        from: &Namespace,
        to: SocketAddr,
        options: &Options,
    ) -> Self {
        Self {
            protocol,
            from: from.name().to_owned(),
            to,
            timeout: options.timeout,
        }
    }

    pub(super) fn fail(&self, failure: Failure) -> Error {
        Error::Probe {
            protocol: self.protocol,
            from: self.from.clone(),
            to: Target(self.to),
            failure: Box::new(failure),
        }
    }

    /// Makes of an I/O error what it means for an exchange that has come this far.
    pub(super) fn stopped(&self, error: io::Error, received: usize, expected: usize) -> Error {
        use io::ErrorKind as Kind;
        self.fail(match error.kind() {
            Kind::WouldBlock | Kind::TimedOut => Failure::Silence {
                timeout: self.timeout,
                received,
                expected,
            },
            Kind::ConnectionRefused => Failure::Refused,
            Kind::ConnectionReset | Kind::BrokenPipe => Failure::Reset { received, expected },
            Kind::UnexpectedEof => Failure::Closed { received, expected },
            _ if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                Failure::TooLarge { bytes: expected }
            }
            _ => Failure::Io(error),
        })
    }

    /// Compares what came back, starting at `offset` of `length`, with what went out.
    pub(super) fn compare(
        &self,
        sent: &[u8],
        got: &[u8],
        offset: usize,
        length: usize,
    ) -> Result<()> {
        if sent == got {
            return Ok(());
        }
        let differs = sent.iter().zip(got).enumerate().find(|(_, (a, b))| a != b);
        Err(self.fail(match differs {
            Some((at, (&expected, &found))) => Failure::Corrupt {
                offset: offset + at,
                length,
                expected,
                found,
            },
            None => Failure::Length {
                expected: sent.len(),
                received: got.len(),
            },
        }))
    }
}

fn show_mtu(mtu_bytes: Option<u32>) -> String {
    mtu_bytes.map_or(String::new(), |mtu_bytes| format!(", MTU {mtu_bytes}"))
}
