//! Links, addresses, routes and neighbours of one network namespace (rtnetlink(7)), and the
//! features of its links.
//!
//! [`Netlink`] is a handle to a thread that holds one netlink socket. Every call blocks until the
//! kernel has answered, about a tenth of a millisecond, and may be made from any thread, inside or
//! outside a tokio runtime.
//!
//! Objects that may or may not be there are handled without a race: what adds says whether it was
//! there, what deletes says whether it was there, neither fails for it.
//!
//! ```no_run
//! use datapath_tunnel::netlink::{Netlink, Route, VethEnd};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let node = Netlink::open()?;
//! let pod_netns = std::path::Path::new("/run/netns/pod1");
//! let near = node.add_veth(
//!     VethEnd::new("dp1234"),
//!     VethEnd { netns: Some(pod_netns), ..VethEnd::new("eth0") },
//! )?;
//! node.set_up(near.index, true)?;
//! node.add_route(&Route::to("10.0.1.5/32".parse()?).dev(near.index))?;
//!
//! let pod = Netlink::open_in(pod_netns)?;
//! if let Some(eth0) = pod.link("eth0")? {
//!     pod.add_address(eth0.index, "10.0.1.5/32".parse()?)?;
//! }
//! # Ok(())
//! # }
//! ```

mod address;
mod create;
mod feature;
mod kind;
mod link;
mod monitor;
mod neighbour;
mod qdisc;
mod route;
mod route_wire;
mod worker;

use std::{
    fmt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
};

use self::worker::{Failure, Message, Worker};
pub use self::{
    address::{Address, Scope},
    create::{DRIVER_REMEDY, TunnelLink, VethEnd},
    feature::{TX_CHECKSUM, TX_UDP_SEGMENTATION},
    link::Link,
    monitor::{Changed, Monitor},
    neighbour::Neighbour,
    route::{NextHop, Route, RouteKind},
};
pub use crate::error::{KernelError, NetlinkError};

/// An Ethernet address, in the order of the wire.
pub type Mac = [u8; 6];

/// A handle to the network configuration of one namespace.
///
/// Clones share the thread and the socket. When the last one is dropped the thread ends, and
/// with it the hold on the namespace.
#[derive(Clone, Debug)]
pub struct Netlink {
    worker: Arc<Worker>,
}

impl Netlink {
    /// Opens the namespace of the calling thread.
    ///
    /// It stays that one, whatever namespace the thread enters later.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Thread`] when the thread or its socket cannot be made.
    pub fn open() -> Result<Self, NetlinkError> {
        Self::start(None)
    }

    /// Opens the namespace at a path: a bind mount, or `/proc/<pid>/ns/net`.
    ///
    /// The calling thread stays in its own namespace. Needs `CAP_SYS_ADMIN`, see setns(2).
    ///
    /// # Errors
    ///
    /// [`NetlinkError::OpenNamespace`] when there is no network namespace at this path or it may
    /// not be entered, [`NetlinkError::Thread`] as in [`Netlink::open`].
    pub fn open_in(netns: &Path) -> Result<Self, NetlinkError> {
        Self::start(Some(netns))
    }

    fn start(netns: Option<&Path>) -> Result<Self, NetlinkError> {
        let worker = Arc::new(Worker::start(netns)?);
        Ok(Self { worker })
    }

    /// Asks for a list, again when the kernel says that it changed underneath.
    fn list(
        &self,
        operation: impl fmt::Display,
        request: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        /// A list takes a millisecond per thousand entries: this is many attempts.
        const PATIENCE: Duration = Duration::from_secs(2);

        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.exchange(request.clone(), NLM_F_DUMP) {
                Err(Failure::Interrupted) if Instant::now() < deadline => {}
                outcome => return outcome.map_err(|failure| explain(operation, failure)),
            }
        }
    }

    /// Asks for one object.
    fn get(
        &self,
        operation: impl fmt::Display,
        request: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        // The acknowledgement ends the exchange even if the object itself cannot be decoded.
        self.exchange(request, NLM_F_ACK)
            .map_err(|failure| explain(operation, failure))
    }

    /// Asks for a change.
    fn change(
        &self,
        operation: impl fmt::Display,
        how: Change,
        request: RouteNetlinkMessage,
    ) -> Result<(), NetlinkError> {
        let outcome = self.exchange(request, NLM_F_ACK | how.flags());
        tracing::debug!(%operation, refused = outcome.is_err(), "netlink");
        match outcome {
            Ok(_) => Ok(()),
            Err(failure) => Err(explain(operation, failure)),
        }
    }

    fn exchange(
        &self,
        request: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, Failure> {
        let mut request = Message::from(request);
        request.header.flags = NLM_F_REQUEST | flags;
        self.worker.exchange(request)
    }
}

/// What a change does about an object that is there already, or is not.
#[derive(Clone, Copy, Debug)]
enum Change {
    /// Makes it; an error if it is there.
    Create,
    /// Makes it, or puts it in the place of the one that is there.
    Replace,
    /// Alters or deletes it; an error if it is not there.
    Existing,
}

impl Change {
    fn flags(self) -> u16 {
        match self {
            Self::Create => NLM_F_CREATE | NLM_F_EXCL,
            Self::Replace => NLM_F_CREATE | NLM_F_REPLACE,
            Self::Existing => 0,
        }
    }
}

fn explain(operation: impl fmt::Display, failure: Failure) -> NetlinkError {
    let operation = operation.to_string();
    match failure {
        Failure::Kernel(source) => NetlinkError::Kernel { operation, source },
        Failure::Interrupted => NetlinkError::Interrupted { operation },
        Failure::Closed => NetlinkError::Closed { operation },
    }
}

/// Turns "it is not there", in the errors the kernel has for it, into `false`.
fn was_there(outcome: Result<(), NetlinkError>, absent: &[Errno]) -> Result<bool, NetlinkError> {
    match outcome {
        Ok(()) => Ok(true),
        Err(error) if absent.iter().any(|&e| error.errno() == Some(e as i32)) => Ok(false),
        Err(error) => Err(error),
    }
}
