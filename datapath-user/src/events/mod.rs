//! Events: what became of single packets, as it happens.

mod ends;
mod labels;
mod packet;
mod policy;
#[cfg(test)]
mod table;
mod view;

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aya::maps::{Map, MapData, RingBuf};
use datapath_kern::abi::event::{Event, VERDICTS};
use datapath_kern::verdict::DropReason;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use self::ends::Directory;
pub use self::ends::{EndKind, EventEnd};
use self::labels::Shelf;
pub use self::policy::{EventRule, PolicyDecision, PolicyMatch};
pub use self::view::{EventKind, EventVerdict, EventView, IcmpView, TunnelView};
use crate::error::Error;
use crate::maps::Maps;
use crate::node::Node;

/// Name of the ring buffer.
pub(crate) const RING: &str = "events";

/// Where the kernel has the machine's name.
const HOSTNAME: &str = "/proc/sys/kernel/hostname";

/// The one reader of a datapath's events.
///
/// Made by [`Datapath::events`](crate::Datapath::events). [`Events::read`] returns what is there;
/// [`Events::wait`] waits for more in a plain thread. For an event loop its descriptor
/// ([`AsFd`]) becomes readable when there is more: register it with mio, or put it into tokio's
/// `AsyncFd` and clear readiness once `read` returns nothing.
///
/// ```no_run
/// # use datapath_user::{Datapath, Error};
/// fn watch(datapath: &Datapath) -> Result<(), Error> {
///     let mut events = datapath.events()?;
///     while events.wait(None)? {
///         for event in events.read(256) {
///             println!("{} {} at {}", event.verdict.as_str(), event.summary, event.interface);
///         }
///     }
///     Ok(())
/// }
/// ```
///
/// While nobody reads, the ring buffer fills up, and what finds no room is counted
/// ([`Datapath::untold_events`](crate::Datapath::untold_events)).
pub struct Events {
    ring: RingBuf<MapData>,
    node: Arc<Mutex<Option<Node>>>,
    copies: Shelf,
    /// Name of this node.
    name: String,
    _only: Reader,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

impl Events {
    /// Opens the ring buffer that is pinned in `directory`.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub(crate) fn open(
        directory: &Path,
        node: Arc<Mutex<Option<Node>>>,
        only: Reader,
    ) -> Result<Self, Error> {
        let data = MapData::from_pin(directory.join(RING)).map_err(Error::map("open", RING))?;
        let map = Map::from_map_data(data).map_err(Error::map("open", RING))?;
        let ring = RingBuf::try_from(map).map_err(Error::map("open", RING))?;
        Ok(Self {
            ring,
            node,
            copies: Shelf::default(),
            // A machine without a name is none that others would have to be told from.
            name: fs::read_to_string(HOSTNAME)
                .map_or_else(|_| String::new(), |name| name.trim().to_owned()),
            _only: only,
        })
    }

    /// Takes the events that are there, oldest first, at most `most`. Does not wait.
    ///
    /// Ends and interfaces are named as the datapath knows them now; after it was closed, none is.
    pub fn read(&mut self, most: usize) -> Vec<EventView> {
        let mut found = Vec::new();
        while found.len() < most {
            let Some(record) = self.ring.next() else {
                break;
            };
            // Kinds that a later version tells are not understood, and not an error.
            found.extend(view::decode(&record));
        }
        if found.is_empty() {
            return Vec::new();
        }
        let since_boot = view::boot_time();
        let node = self.node.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = node.as_ref().map(|node| node as &dyn Directory);
        let (copies, name) = (&mut self.copies, &self.name);
        let view = |event: &Event| EventView::new(event, since_boot, directory, copies, name);
        found.iter().map(view).collect()
    }

    /// Counts of events that were not told, as
    /// [`Datapath::untold_events`](crate::Datapath::untold_events) has them; none once the
    /// datapath is closed.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub fn untold(&self) -> Result<Vec<UntoldView>, Error> {
        let node = self.node.lock().unwrap_or_else(PoisonError::into_inner);
        node.as_ref()
            .map_or_else(|| Ok(Vec::new()), |node| untold(&node.maps))
    }

    /// Waits until there are events, for `patience` at most; without one, for as long as it takes.
    /// Whether there are some. A signal ends the wait.
    ///
    /// # Errors
    ///
    /// [`Error::File`] when the kernel refuses to wait.
    pub fn wait(&self, patience: Option<Duration>) -> Result<bool, Error> {
        let timeout = patience.map_or(PollTimeout::NONE, |patience| {
            PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX)
        });
        let mut ring = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ring, timeout) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::EINTR) => Ok(false),
            Err(errno) => Err(Error::file("wait for", RING)(errno.into())),
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

/// Held by the one reader: two would take events from each other.
#[derive(Debug)]
pub(crate) struct Reader(Arc<AtomicBool>);

impl Reader {
    /// Takes the place of the reader.
    ///
    /// # Errors
    ///
    /// [`Error::EventsTaken`].
    pub(crate) fn take(taken: &Arc<AtomicBool>) -> Result<Self, Error> {
        if taken.swap(true, Ordering::Relaxed) {
            return Err(Error::EventsTaken);
        }
        Ok(Self(Arc::clone(taken)))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// The drop reasons, in the words of every output.
pub fn drop_reasons() -> impl Iterator<Item = &'static str> {
    DropReason::ALL.iter().map(|reason| reason.label())
}

/// How many events of a drop reason, or verdicts of policy, were not told, since the datapath was
/// made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UntoldView {
    /// The drop reason; `policy-verdict` of verdicts.
    pub reason: String,
    /// Suppressed: there were more than `events_per_s`, of verdicts `verdicts_per_s`, in a second on
    /// one CPU.
    pub suppressed: u64,
    /// Lost: the ring buffer was full, as nobody read it fast enough.
    pub lost: u64,
}

/// Reads the counts of events not told, where they are not zero.
///
/// # Errors
///
/// [`Error::Map`].
pub(crate) fn untold(maps: &Maps) -> Result<Vec<UntoldView>, Error> {
    let mut found = Vec::new();
    let drops = DropReason::ALL
        .iter()
        .map(|reason| (reason.code(), reason.label()));
    let verdicts = (VERDICTS, EventKind::PolicyVerdict.as_str());
    for (code, name) in drops.chain([verdicts]) {
        let windows = maps
            .event_windows
            .get(&code, 0)
            .map_err(Error::map("read", "event_windows"))?;
        let view = UntoldView {
            reason: name.to_owned(),
            suppressed: windows.iter().map(|window| window.suppressed).sum(),
            lost: windows.iter().map(|window| window.lost).sum(),
        };
        if view.suppressed != 0 || view.lost != 0 {
            found.push(view);
        }
    }
    Ok(found)
}
