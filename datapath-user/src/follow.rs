//! Refreshing whenever the kernel says that the network changed.

use std::os::fd::{AsFd, BorrowedFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::datapath::Datapath;
use crate::error::Error;
use crate::watch::FileWatch;

/// How long to wait for more after a change: what changes an uplink changes several things.
const GATHER: Duration = Duration::from_millis(50);
/// A refresh may take this share of the time, however often the network changes.
const SHARE: u32 = 10;
/// When to try again what could not be done: at first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(32));

impl Datapath {
    /// [Refreshes](Datapath::refresh) at once, and from then on whenever links, addresses, routes
    /// or the [file of prefixes outside](crate::Config::non_masquerade_file) change, until `stop` can be read from or its other end is closed. Call it on a
    /// thread of its own, in the node's network namespace.
    ///
    /// Changes that come within 50 ms are followed together. What could not be done is logged and
    /// tried again after a second, two, and so on up to half a minute.
    ///
    /// ```no_run
    /// # use datapath_user::{Config, Datapath};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let datapath = Datapath::open(Config::new("/run/datapath/bpffs", ["eth0"]))?;
    /// let (stop, stopper) = std::io::pipe()?;
    /// std::thread::scope(|scope| {
    ///     scope.spawn(|| datapath.follow(&stop));
    ///     // ...
    ///     drop(stopper);
    /// });
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Network`] where it cannot listen, [`Error::NotFound`] once the datapath is closed.
    pub fn follow(&self, stop: impl AsFd) -> Result<(), Error> {
        // Before the first look: no change is missed.
        let mut monitor = self.monitor()?;
        let file = self.watch_file();
        let mut retry = RETRY.0;
        loop {
            file.iter().for_each(FileWatch::arm);
            let started = Instant::now();
            let failed = match self.refresh() {
                Ok(_) => false,
                Err(
                    error @ Error::NotFound {
                        what: "datapath", ..
                    },
                ) => return Err(error),
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "refresh");
                    true
                }
            };
            let rest = GATHER.max(started.elapsed() * SHARE);
            retry = if failed {
                (retry * 2).min(RETRY.1)
            } else {
                RETRY.0
            };
            let again = failed
                .then_some(retry)
                .into_iter()
                .chain(self.resync())
                .min();
            let deadline = again.map(|again| Instant::now() + again);
            // Those that a refresh made itself are among them: it will find nothing to do.
            while !monitor
                .drain()
                .map_err(Error::network("this namespace"))?
                .any()
                && !file.as_ref().is_some_and(FileWatch::drain)
            {
                let limit = deadline.map(|at| at.saturating_duration_since(Instant::now()));
                if limit.is_some_and(|limit| limit.is_zero()) {
                    break;
                }
                let heard = file.as_ref().map(AsFd::as_fd);
                let heard: Vec<_> = heard.into_iter().chain([monitor.as_fd()]).collect();
                if wait(&stop, &heard, limit)? {
                    return Ok(());
                }
            }
            if wait(&stop, &[], Some(rest))? {
                return Ok(());
            }
            if let Some(file) = &file {
                file.drain();
            }
            monitor.drain().map_err(Error::network("this namespace"))?;
        }
    }
}

/// Waits until there is something to hear, or `limit` is over; says whether to stop.
fn wait(
    stop: &impl AsFd,
    heard: &[BorrowedFd<'_>],
    limit: Option<Duration>,
) -> Result<bool, Error> {
    // Rounded up: the rest of a millisecond would be waited for in a busy loop.
    let limit = limit.map(|limit| limit + Duration::from_micros(999));
    let limit = limit.map_or(PollTimeout::NONE, |limit| {
        PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX)
    });
    let mut watched = vec![PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
    watched.extend(
        heard
            .iter()
            .map(|&heard| PollFd::new(heard, PollFlags::POLLIN)),
    );
    match poll(&mut watched, limit) {
        Ok(_) => {}
        Err(Errno::EINTR) => thread::yield_now(),
        Err(errno) => return Err(Error::file("wait for", "the end")(errno.into())),
    }
    Ok(watched.first().is_some_and(|stop| stop.any() == Some(true)))
}
