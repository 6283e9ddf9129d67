//! Being told when links, addresses or routes change.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use rtnetlink::{
    MulticastGroup,
    packet_core::NetlinkBuffer,
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};
use tokio::io::{Interest, unix::AsyncFd};

use super::{Netlink, NetlinkError, explain, worker::Failure};
use crate::error::KernelError;

/// What is listened to.
const GROUPS: [MulticastGroup; 5] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

/// What may have changed. It says where to look, not what is there now: what a message says may
/// have changed again before it is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are independent of each other"
)]
pub struct Changed {
    /// An interface came, went, or has another setting or state.
    pub links: bool,
    /// An address came or went.
    pub addresses: bool,
    /// A route came or went.
    pub routes: bool,
    /// Messages were lost, as there were more than the socket has room for (`ENOBUFS`,
    /// netlink(7)): all of the above are set.
    pub lost: bool,
}

impl Changed {
    /// Tells whether there is anything to look at.
    #[must_use]
    pub fn any(self) -> bool {
        self.links || self.addresses || self.routes || self.lost
    }

    /// Everything, as messages were lost.
    fn lost() -> Self {
        Self {
            links: true,
            addresses: true,
            routes: true,
            lost: true,
        }
    }

    /// Adds what a message of this type is about (`RTM_*`, include/uapi/linux/rtnetlink.h).
    fn add(&mut self, message_type: u16) {
        match message_type {
            16 | 17 => self.links = true,
            20 | 21 => self.addresses = true,
            24 | 25 => self.routes = true,
            _ => {}
        }
    }
}

/// A socket that hears of every change of links, addresses and routes in one namespace.
///
/// A plain thread calls [`Monitor::wait`], a tokio program awaits [`Monitor::changed`], and an
/// event loop of another kind polls the descriptor and calls [`Monitor::drain`].
///
/// ```no_run
/// # use datapath_tunnel::netlink::Netlink;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let netlink = Netlink::open()?;
/// // Before the first look: no change is missed.
/// let mut monitor = netlink.monitor()?;
/// loop {
///     println!("{:?}", netlink.addresses()?);
///     monitor.wait(None)?;
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Monitor {
    socket: Socket,
}

impl Netlink {
    /// Starts listening in this handle's namespace. The monitor may be used from any thread, in
    /// any namespace, and without this handle.
    ///
    /// # Errors
    ///
    /// The kernel's refusal; [`NetlinkError::Closed`].
    pub fn monitor(&self) -> Result<Monitor, NetlinkError> {
        let opened = self.worker.run(|| open().map_err(|error| of_io(&error)));
        match opened.and_then(|opened| opened) {
            Ok(socket) => Ok(Monitor { socket }),
            Err(failure) => Err(explain("listen for changes of the network", failure)),
        }
    }
}

impl Monitor {
    /// Waits until something changes, at most for `timeout`; for ever if there is none.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Kernel`] when the socket fails.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<Changed, NetlinkError> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let changed = self.drain()?;
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if changed.any() || left.is_some_and(|left| left.is_zero()) {
                return Ok(changed);
            }
            // Rounded up: what is left of a millisecond would be waited for in a busy loop.
            let left = left.map(|left| left + Duration::from_micros(999));
            let limit = left.map_or(PollTimeout::NONE, |left| {
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            });
            let mut watched = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut watched, limit) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(failed(&errno.into())),
            }
        }
    }

    /// Waits until something changes, inside a tokio runtime that drives I/O.
    ///
    /// Nothing is lost when the future is dropped.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Kernel`] when the socket fails, or cannot be registered with the runtime.
    ///
    /// # Panics
    ///
    /// Outside a runtime, or inside one that was built without `enable_io`.
    pub async fn changed(&mut self) -> Result<Changed, NetlinkError> {
        #[expect(
            deprecated,
            reason = "its successor is unsafe; this descriptor stays the same, and open, as long \
                      as it is registered: it is borrowed from `self`"
        )]
        let registered = AsyncFd::with_interest(self.socket.as_fd(), Interest::READABLE);
        let registered = registered.map_err(|error| failed(&error))?;
        loop {
            let ready = registered.readable().await;
            let mut ready = ready.map_err(|error| failed(&error))?;
            let changed = heard(&self.socket)?;
            if changed.any() {
                return Ok(changed);
            }
            ready.clear_ready();
        }
    }

    /// Takes what was heard so far, without waiting.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Kernel`] when the socket fails.
    pub fn drain(&mut self) -> Result<Changed, NetlinkError> {
        heard(&self.socket)
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Takes what a socket has, without waiting.
fn heard(socket: &Socket) -> Result<Changed, NetlinkError> {
    let mut changed = Changed::default();
    let mut buffer = Vec::with_capacity(BUFFER_LEN);
    loop {
        buffer.clear();
        match socket.recv_from(&mut buffer, 0) {
            // Others than the kernel could send here, too.
            Ok((_, sender)) if sender.port_number() == 0 => note(&buffer, &mut changed),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(changed),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                changed = Changed::lost();
            }
            Err(error) => return Err(failed(&error)),
        }
    }
}

/// Room for a datagram. Only the types of messages count: what is cut off of a longer one is none
/// the worse.
const BUFFER_LEN: usize = 32 * 1024;

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    // Groups up to 31 fit into the address (netlink(7)).
    let groups = GROUPS
        .into_iter()
        .fold(0, |groups, group| groups | 1 << (group as u32 - 1));
    socket.bind(&SocketAddr::new(0, groups))?;
    socket.set_non_blocking(true)?;
    Ok(socket)
}

/// Adds what the messages of a datagram are about.
fn note(datagram: &[u8], changed: &mut Changed) {
    let mut rest = datagram;
    while let Ok(message) = NetlinkBuffer::new_checked(rest) {
        changed.add(message.message_type());
        let length = usize::try_from(message.length()).unwrap_or(usize::MAX);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
}

fn failed(error: &io::Error) -> NetlinkError {
    explain("listen for changes of the network", of_io(error))
}

fn of_io(error: &io::Error) -> Failure {
    Failure::Kernel(KernelError {
        errno: error.raw_os_error().unwrap_or(Errno::EIO as i32),
        message: None,
    })
}
