//! Traffic by real sockets, with every byte checked on its way back.
//!
//! An [`EchoServer`] answers TCP and UDP in one namespace; sessions ([`TcpSession`],
//! [`UdpSession`], [`IcmpSession`]) are opened in another and stay open as long as a scenario
//! needs. [`tcp_echo`], [`udp_echo`] and [`icmp_echo`] are one exchange on a fresh session.
//! [`trace`] finds the hops of a path. [`RawPort`] sends and receives whole Ethernet frames.

mod echo;
mod failure;
mod icmp;
mod pattern;
mod raw;
mod tcp;
mod trace;
mod udp;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use nix::{getsockopt_impl, libc, setsockopt_impl, sockopt_impl, sys::socket::setsockopt};
use socket2::{Domain, SockAddr, Socket, Type};

use self::failure::Leg;
pub use self::{
    echo::{EchoServer, Seen},
    failure::Failure,
    icmp::IcmpSession,
    raw::RawPort,
    tcp::TcpSession,
    trace::{Hop, trace},
    udp::UdpSession,
};
use crate::{
    error::{Error, Result},
    netns::Namespace,
    patience::scaled,
};

/// Connects, sends `bytes` bytes to an [`EchoServer`] while it sends them back, checks each, and
/// closes the connection in order.
///
/// # Errors
///
/// [`Error::Probe`] with what came back instead, [`Error::Os`] when the socket cannot be made.
pub fn tcp_echo(
    from: &Namespace,
    to: SocketAddr,
    bytes: usize,
    options: &Options,
) -> Result<Report> {
    let mut session = TcpSession::connect(from, to, options)?;
    let elapsed = session.echo(bytes)?;
    let report = Report {
        rtt: session.handshake(),
        elapsed,
        bytes,
        seen_source: Some(session.seen_source()),
    };
    session.close()?;
    Ok(report)
}

/// Sends one datagram of each size to an [`EchoServer`], each after the answer to the one before.
///
/// # Errors
///
/// [`Error::Probe`] with what came back instead, [`Error::Os`] when the socket cannot be made.
pub fn udp_echo(
    from: &Namespace,
    to: SocketAddr,
    sizes: &[usize],
    options: &Options,
) -> Result<Report> {
    let mut session = UdpSession::open(from, to, options)?;
    let mut elapsed = Duration::ZERO;
    let mut rtt = Duration::MAX;
    for &size in sizes {
        let once = session.echo(size)?;
        elapsed += once;
        rtt = rtt.min(once);
    }
    Ok(Report {
        rtt: rtt.min(elapsed),
        elapsed,
        bytes: sizes.iter().sum(),
        seen_source: Some(session.seen_source()?),
    })
}

/// Sends echo requests (pings) with `size` bytes of payload, each after the answer to the one
/// before.
///
/// # Errors
///
/// [`Error::Probe`] with what came back instead, [`Error::Os`] when the socket cannot be made.
pub fn icmp_echo(
    from: &Namespace,
    to: IpAddr,
    count: usize,
    size: usize,
    options: &Options,
) -> Result<Report> {
    let mut session = IcmpSession::open(from, to, options)?;
    let mut elapsed = Duration::ZERO;
    let mut rtt = Duration::MAX;
    for _ in 0..count {
        let once = session.echo(size)?;
        elapsed += once;
        rtt = rtt.min(once);
    }
    Ok(Report {
        rtt: rtt.min(elapsed),
        elapsed,
        bytes: size.saturating_mul(count),
        seen_source: None,
    })
}

/// How a probe goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// How long silence may last, at any point.
    pub timeout: Duration,
    /// Address and port to send from; the kernel's choice if there is none. Port 0 leaves the
    /// port to the kernel. ICMP has no use for the port.
    pub source: Option<SocketAddr>,
    /// TTL or hop limit; the kernel's choice, 64, if there is none.
    pub hop_limit: Option<u8>,
    /// Whether to forbid fragments on the way and at the source (`IP_PMTUDISC_DO`, as
    /// `ping -M do`). For UDP and ICMP; TCP never makes any.
    pub dont_fragment: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timeout: scaled(Duration::from_secs(2)),
            source: None,
            hop_limit: None,
            dont_fragment: false,
        }
    }
}

impl Options {
    /// Sets how long silence may last.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets the address and port to send from.
    #[must_use]
    pub fn with_source(mut self, source: SocketAddr) -> Self {
        self.source = Some(source);
        self
    }

    /// Sets the TTL or hop limit.
    #[must_use]
    pub fn with_hop_limit(mut self, hop_limit: u8) -> Self {
        self.hop_limit = Some(hop_limit);
        self
    }

    /// Forbids fragments.
    #[must_use]
    pub fn with_dont_fragment(mut self) -> Self {
        self.dont_fragment = true;
        self
    }

    /// Makes a socket in a namespace, set up by these options and bound.
    fn socket(
        &self,
        namespace: &Namespace,
        to: IpAddr,
        kind: Type,
        protocol: Option<socket2::Protocol>,
    ) -> Result<Socket> {
        let domain = if to.is_ipv4() {
            Domain::IPV4
        } else {
            Domain::IPV6
        };
        let socket = namespace.socket(domain, kind, protocol)?;
        self.set_up(&socket, to)
            .map_err(Error::os("set up a socket in", namespace.name()))?;
        Ok(socket)
    }

    fn set_up(&self, socket: &Socket, to: IpAddr) -> io::Result<()> {
        if let Some(hop_limit) = self.hop_limit {
            match to {
                IpAddr::V4(_) => socket.set_ttl_v4(hop_limit.into())?,
                IpAddr::V6(_) => socket.set_unicast_hops_v6(hop_limit.into())?,
            }
        }
        if self.dont_fragment {
            forbid_fragments(socket, to)?;
        }
        if let Some(source) = self.source {
            // A fixed port is wanted again while the last connection is in TIME_WAIT.
            socket.set_reuse_address(true)?;
            socket.bind(&SockAddr::from(source))?;
        }
        Ok(())
    }
}

/// What an exchange brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Round trip: of the handshake for TCP, the shortest one for UDP and ICMP.
    pub rtt: Duration,
    /// Time from the first byte out to the last byte back.
    pub elapsed: Duration,
    /// How many bytes went out, and came back right.
    pub bytes: usize,
    /// The address that the server saw the client under: another one than the client's own where
    /// something masquerades. `None` for ICMP.
    pub seen_source: Option<SocketAddr>,
}

sockopt_impl!(
    /// Whether packets may be fragmented (ip(7)).
    MtuDiscoverIpv4,
    SetOnly,
    libc::IPPROTO_IP,
    libc::IP_MTU_DISCOVER,
    libc::c_int
);
sockopt_impl!(
    /// What the path of a connected socket is known to take (ipv6(7)).
    MtuIpv6,
    GetOnly,
    libc::IPPROTO_IPV6,
    libc::IPV6_MTU,
    libc::c_int
);
sockopt_impl!(
    /// Whether packets may be fragmented (ipv6(7)).
    MtuDiscoverIpv6,
    SetOnly,
    libc::IPPROTO_IPV6,
    libc::IPV6_MTU_DISCOVER,
    libc::c_int
);

fn forbid_fragments(socket: &Socket, to: IpAddr) -> io::Result<()> {
    match to {
        IpAddr::V4(_) => setsockopt(socket, MtuDiscoverIpv4, &libc::IP_PMTUDISC_DO)?,
        IpAddr::V6(_) => setsockopt(socket, MtuDiscoverIpv6, &libc::IPV6_PMTUDISC_DO)?,
    }
    Ok(())
}
