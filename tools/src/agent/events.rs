//! Hands the datapath's events on.

use std::{
    collections::BTreeMap,
    io,
    os::{fd::AsFd, unix::net::UnixStream},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use datapath_user::{Error as DatapathError, Events, UntoldView};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use crate::{
    api::{Feed, Item, Untold, Why},
    error::{Error, Result},
};

/// How many events are handed on at a time.
const BATCH: usize = 256;
/// How often is looked for events that were not told.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The thread that reads the events. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Reading {
    /// Closing it ends the thread.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Reading {
    /// Begins to read.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] when there is no thread or descriptor left.
    pub(super) fn start(events: Events, feed: Arc<Feed>) -> Result<Self> {
        let failed = || Error::os("start", "the reader of events");
        let (stop, stopped) = UnixStream::pair().map_err(failed())?;
        let thread = thread::Builder::new()
            .name("events".to_owned())
            .spawn(move || {
                if let Err(error) = read(events, &feed, &stopped) {
                    tracing::error!(%error, "no more events are read");
                }
            })
            .map_err(failed())?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the reader of events panicked");
        }
    }
}

fn read(mut events: Events, feed: &Feed, stopped: &UnixStream) -> io::Result<()> {
    let mut known = Counts::default();
    let mut look_at = Instant::now();
    loop {
        if Instant::now() >= look_at {
            look_at = Instant::now() + LOOK_EVERY;
            match events.untold() {
                Ok(counts) => feed.publish(known.moved(&counts)),
                Err(error) => warn(&error),
            }
        }
        let read = events.read(BATCH);
        if !read.is_empty() {
            feed.publish(read.into_iter().map(|event| Item::Event(Box::new(event))));
        }
        let patience = look_at.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        let mut ready = [
            PollFd::new(events.as_fd(), PollFlags::POLLIN),
            PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut ready, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let [_, stop] = ready;
        if stop.any().unwrap_or(false) {
            return Ok(());
        }
    }
}

fn warn(error: &DatapathError) {
    let error = error as &dyn std::error::Error;
    tracing::warn!(error, "counts of untold events cannot be read");
}

/// Counts of events not told, by reason: suppressed and lost.
#[derive(Debug, Default)]
struct Counts(BTreeMap<String, (u64, u64)>);

impl Counts {
    /// Takes over what is counted now; says what has moved.
    fn moved(&mut self, now: &[UntoldView]) -> Vec<Item> {
        let mut items = Vec::new();
        for view in now {
            let known = self.0.entry(view.reason.clone()).or_default();
            let moved = [
                (Why::RateLimit, view.suppressed.saturating_sub(known.0)),
                (Why::RingFull, view.lost.saturating_sub(known.1)),
            ];
            for (why, events) in moved.into_iter().filter(|(_, events)| *events > 0) {
                items.push(Item::Untold(Untold {
                    why,
                    reason: Some(view.reason.clone()),
                    events,
                }));
            }
            *known = (view.suppressed, view.lost);
        }
        items
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_moved_is_said() {
        let view = |suppressed, lost| UntoldView {
            reason: "Multicast".to_owned(),
            suppressed,
            lost,
        };
        let item = |why, events| {
            Item::Untold(Untold {
                why,
                reason: Some("Multicast".to_owned()),
                events,
            })
        };
        let mut counts = Counts::default();
        assert_eq!(counts.moved(&[view(7, 0)]), [item(Why::RateLimit, 7)]);
        assert_eq!(counts.moved(&[view(7, 0)]), []);
        let both = [item(Why::RateLimit, 2), item(Why::RingFull, 3)];
        assert_eq!(counts.moved(&[view(9, 3)]), both);
    }
}
