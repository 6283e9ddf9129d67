//! The hops of a path, as traceroute finds them.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd},
    time::Instant,
};

use nix::{
    cmsg_space,
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt,
        sockopt::{Ipv4RecvErr, Ipv6RecvErr},
    },
};
use socket2::{SockAddr, Socket, Type};

use super::{Failure, Options, icmp_echo};
use crate::{
    error::{Error, Result},
    family::Protocol,
    netns::Namespace,
};

/// Longest path that is followed.
const MOST_HOPS: u8 = 16;
/// First of the ports that nobody listens on; each hop has one of its own.
const FIRST_PORT: u16 = 33_434;

/// What lies on a path at a distance of some hops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// TTL or hop limit of the packet that got there, from 1.
    pub hop_limit: u8,
    /// Who answered; nobody within the time.
    pub from: Option<IpAddr>,
    /// Whether it is the end of the path.
    pub reached: bool,
}

/// Follows the path to an address by one UDP datagram or echo request for each hop, of `size` bytes
/// of payload, until its end answers, 16 hops at most.
///
/// What answers is heard by the socket itself: the error queue (`IP_RECVERR`, ip(7)) for UDP. A
/// hop that stays silent for the time that `options` gives is in the list without an address.
///
/// # Errors
///
/// [`Error::Invalid`] for TCP, [`Error::Probe`] or [`Error::Os`] when a packet cannot be sent.
pub fn trace(
    from: &Namespace,
    to: IpAddr,
    protocol: Protocol,
    size: usize,
    options: &Options,
) -> Result<Vec<Hop>> {
    let ask = match protocol {
        Protocol::Udp => by_udp,
        Protocol::Icmp => by_echo,
        Protocol::Tcp => {
            return Err(Error::Invalid {
                what: "protocol to trace a path by",
                value: protocol.to_string(),
                rule: "UDP or ICMP",
            });
        }
    };
    let mut hops = Vec::new();
    for hop_limit in 1..=MOST_HOPS {
        let hop = ask(from, to, size, &options.with_hop_limit(hop_limit))?;
        let (from, reached) = hop.map_or((None, false), |(from, reached)| (Some(from), reached));
        hops.push(Hop {
            hop_limit,
            from,
            reached,
        });
        if reached {
            break;
        }
    }
    Ok(hops)
}

/// Who answered a packet, and whether as its receiver.
type Answer = Option<(IpAddr, bool)>;

fn by_echo(from: &Namespace, to: IpAddr, size: usize, options: &Options) -> Result<Answer> {
    let Err(error) = icmp_echo(from, to, 1, size, options) else {
        return Ok(Some((to, true)));
    };
    match error.failure() {
        Some(Failure::IcmpError {
            from, kind, code, ..
        }) => Ok(Some((*from, !is_expired(to, *kind, *code)))),
        Some(failure) if failure.is_silence() => Ok(None),
        _ => Err(error),
    }
}

fn by_udp(from: &Namespace, to: IpAddr, size: usize, options: &Options) -> Result<Answer> {
    let os = || Error::os::<io::Error>("trace a path by UDP from", from.name());
    let socket = options.socket(from, to, Type::DGRAM, None)?;
    let hears = match to {
        IpAddr::V4(_) => setsockopt(&socket, Ipv4RecvErr, &true),
        IpAddr::V6(_) => setsockopt(&socket, Ipv6RecvErr, &true),
    };
    hears.map_err(io::Error::from).map_err(os())?;
    let port = FIRST_PORT + u16::from(options.hop_limit.unwrap_or_default());
    let to_port = SockAddr::from(SocketAddr::new(to, port));
    socket.send_to(&vec![0; size], &to_port).map_err(os())?;
    let deadline = Instant::now() + options.timeout;
    Ok(next_error(&socket, deadline)
        .map_err(os())?
        .map(|(from, kind, code)| (from, !is_expired(to, kind, code))))
}

/// Whether an error says that a packet had no hop left (RFC 792; RFC 4443, section 3.3).
fn is_expired(to: IpAddr, kind: u8, code: u8) -> bool {
    code == 0 && kind == if to.is_ipv4() { 11 } else { 3 }
}

/// Waits for an ICMP error about what the socket sent: from whom, type and code.
fn next_error(socket: &Socket, deadline: Instant) -> io::Result<Option<(IpAddr, u8, u8)>> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Never zero milliseconds too early.
        let wait = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
        // That there are errors is always told.
        let mut waiting = [PollFd::new(socket.as_fd(), PollFlags::empty())];
        match poll(&mut waiting, wait) {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        if let Some(error) = queued_error(socket)? {
            return Ok(Some(error));
        }
    }
}

/// Takes an error from the socket's queue; none where there is none of ICMP.
fn queued_error(socket: &Socket) -> io::Result<Option<(IpAddr, u8, u8)>> {
    let mut data = [0; 64];
    let mut buffers = [IoSliceMut::new(&mut data)];
    let mut control = cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
    let message = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut buffers,
        Some(&mut control),
        MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT,
    );
    let message = match message {
        Ok(message) => message,
        Err(Errno::EAGAIN) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    for part in message.cmsgs()? {
        let (error, from) = match part {
            ControlMessageOwned::Ipv4RecvErr(error, Some(from)) => {
                let address = Ipv4Addr::from_bits(u32::from_be(from.sin_addr.s_addr));
                (error, IpAddr::from(address))
            }
            ControlMessageOwned::Ipv6RecvErr(error, Some(from)) => {
                (error, Ipv6Addr::from(from.sin6_addr.s6_addr).into())
            }
            _ => continue,
        };
        if matches!(
            error.ee_origin,
            libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6
        ) {
            return Ok(Some((from, error.ee_type, error.ee_code)));
        }
    }
    Ok(None)
}
