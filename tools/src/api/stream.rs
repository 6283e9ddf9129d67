//! The client's side of streams: events, flows, and what becomes of flows.

use std::io::{self, Write};

use datapath_user::{FlowChange, FlowPair};

use super::{Item, client::Client, lines::Lines};
use crate::error::Result;

/// A stream of events, to be iterated over outside of asynchronous code.
///
/// It ends where the agent ends it: after what was kept, or when the agent stops; and with SIGINT
/// or SIGTERM if [`EventStream::until_signal`] was asked for.
#[derive(Debug)]
pub struct EventStream(Lines);

impl EventStream {
    /// Asks for a stream.
    ///
    /// # Errors
    ///
    /// As [`Client::health`].
    pub(super) fn open(client: &Client, path: &str) -> Result<Self> {
        Lines::open(client, path).map(Self)
    }

    /// Has the stream end when the process is asked to, by SIGINT or SIGTERM.
    ///
    /// # Errors
    ///
    /// [`Error::Os`](crate::error::Error::Os) when there is no handler for signals to be had.
    pub fn until_signal(self) -> Result<Self> {
        self.0.until_signal().map(Self)
    }

    /// Whether it was a signal that ended the stream.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        self.0.is_interrupted()
    }
}

impl Iterator for EventStream {
    type Item = Result<Item>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next(serde_json::from_str)
    }
}

/// Flows as the agent reads them from its tables, to be read outside of asynchronous code.
#[derive(Debug)]
pub struct FlowStream(Lines);

impl FlowStream {
    /// Asks for a stream.
    ///
    /// # Errors
    ///
    /// As [`Client::health`].
    pub(super) fn open(client: &Client, path: &str) -> Result<Self> {
        Lines::open(client, path).map(Self)
    }

    /// Returns the next flow, which is there until the one after it is asked for.
    ///
    /// # Errors
    ///
    /// As [`Client::health`].
    pub fn next_flow(&mut self) -> Option<Result<FlowPair<'_>>> {
        self.0.next(serde_json::from_str)
    }

    /// Writes all that is left, a line of JSON for each flow; the reader going away (`| head`) ends
    /// it.
    ///
    /// # Errors
    ///
    /// As [`Client::health`], or what `out` failed with.
    pub fn copy_to(mut self, out: &mut dyn Write) -> Result<io::Result<()>> {
        while let Some(frame) = self.0.receive() {
            match out.write_all(&frame?) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Ok(())),
                Err(error) => return Ok(Err(error)),
                Ok(()) => {}
            }
        }
        Ok(out.flush())
    }
}

/// What becomes of flows, as the agent sees it, to be read outside of asynchronous code.
///
/// It ends when the agent stops; and with SIGINT or SIGTERM if [`ChangeStream::until_signal`] was
/// asked for.
#[derive(Debug)]
pub struct ChangeStream(Lines);

impl ChangeStream {
    /// Asks for a stream. What is there by the time that this returns is no change.
    ///
    /// # Errors
    ///
    /// As [`Client::health`].
    pub(super) fn open(client: &Client, path: &str) -> Result<Self> {
        Lines::open(client, path).map(Self)
    }

    /// Has the stream end when the process is asked to, by SIGINT or SIGTERM.
    ///
    /// # Errors
    ///
    /// [`Error::Os`](crate::error::Error::Os) when there is no handler for signals to be had.
    pub fn until_signal(self) -> Result<Self> {
        self.0.until_signal().map(Self)
    }

    /// Whether it was a signal that ended the stream.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        self.0.is_interrupted()
    }

    /// Waits for the next change, which is there until the one after it is asked for.
    ///
    /// # Errors
    ///
    /// As [`Client::health`].
    pub fn next_change(&mut self) -> Option<Result<FlowChange<'_>>> {
        self.0.next(serde_json::from_str)
    }
}
