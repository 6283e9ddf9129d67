//! Whoever sends: one try at one cell, by a socket of its own.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
};

use nix::poll::PollFlags;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{
    message::{Nonce, icmp, sctp},
    server::{SCTP, receive, transport},
};
use crate::policy::case::{CellId, ProbeProtocol};

/// A try.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) nonce: Nonce,
    /// The source port, or the ICMP identifier; no other attempt of its time has it.
    pub(super) port: u16,
    to: IpAddr,
    state: State,
}

#[derive(Debug)]
enum State {
    Connecting {
        stream: TcpStream,
        request: String,
    },
    Asked {
        stream: TcpStream,
        answer: Vec<u8>,
    },
    Udp(UdpSocket),
    Icmp {
        socket: UdpSocket,
        reply: Option<u8>,
    },
    Sctp(UdpSocket),
    Over,
}

/// What became of a try, as far as its sender can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The answer to this very attempt.
    Right,
    /// A proxy's answer that it is forbidden.
    Forbidden,
    /// An error: nobody listens, or nothing leads there.
    Error(String),
}

/// Type of the message that answers an ICMP message; none where nobody answers.
fn reply_to(cell: &CellId) -> Option<u8> {
    match (cell.protocol, cell.port) {
        (ProbeProtocol::Icmp, 8) => Some(0),
        (ProbeProtocol::Icmpv6, 128) => Some(129),
        _ => None,
    }
}

/// Whether whoever sends it cannot expect an answer.
pub(super) fn is_one_way(cell: &CellId) -> bool {
    let icmp = matches!(cell.protocol, ProbeProtocol::Icmp | ProbeProtocol::Icmpv6);
    icmp && reply_to(cell).is_none()
}

impl Attempt {
    /// Sends, from inside the sender's namespace. Port zero of `from` is no port.
    ///
    /// # Errors
    ///
    /// What the kernel says at once.
    pub(super) fn start(
        cell: &CellId,
        from: SocketAddr,
        to: IpAddr,
        nonce: Nonce,
    ) -> io::Result<Self> {
        let domain = Domain::for_address(from);
        let port = from.port();
        let with_port = SocketAddr::new(to, cell.port);
        let state = match cell.protocol {
            ProbeProtocol::Tcp => {
                let socket = Socket::new(domain, Type::STREAM, None)?;
                socket.set_nonblocking(true)?;
                socket.set_reuse_address(true)?;
                socket.bind(&SockAddr::from(from))?;
                match socket.connect(&SockAddr::from(with_port)) {
                    Err(error) if error.raw_os_error() != Some(nix::libc::EINPROGRESS) => {
                        return Err(error);
                    }
                    _ => State::Connecting {
                        stream: socket.into(),
                        request: nonce.request(cell.http.as_ref()),
                    },
                }
            }
            ProbeProtocol::Udp => {
                let socket = Socket::new(domain, Type::DGRAM, None)?;
                socket.set_nonblocking(true)?;
                socket.bind(&SockAddr::from(from))?;
                socket.connect(&SockAddr::from(with_port))?;
                socket.send(nonce.request(None).as_bytes())?;
                State::Udp(socket.into())
            }
            ProbeProtocol::Icmp | ProbeProtocol::Icmpv6 => {
                let protocol = if to.is_ipv4() {
                    Protocol::ICMPV4
                } else {
                    Protocol::ICMPV6
                };
                let socket = raw(from, to, protocol)?;
                // The case's check keeps types to one byte.
                let kind = u8::try_from(cell.port).unwrap_or_default();
                handed_over(socket.send(&icmp::build(kind, port, nonce)))?;
                let reply = reply_to(cell);
                State::Icmp { socket, reply }
            }
            ProbeProtocol::Sctp => {
                let socket = raw(from, to, Protocol::from(SCTP))?;
                let tag = (nonce.0 & 0xffff_ffff) as u32;
                let init = sctp::Packet {
                    source: port,
                    destination: cell.port,
                    is_answer: false,
                    tag: 0,
                    own_tag: tag | 1,
                    nonce,
                };
                handed_over(socket.send(&init.build()))?;
                State::Sctp(socket)
            }
        };
        Ok(Self {
            nonce,
            port,
            to,
            state,
        })
    }

    /// What it waits for.
    pub(super) fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        match &self.state {
            State::Connecting { stream, .. } => Some((stream.as_fd(), PollFlags::POLLOUT)),
            State::Asked { stream, .. } => Some((stream.as_fd(), PollFlags::POLLIN)),
            State::Udp(socket) | State::Icmp { socket, .. } | State::Sctp(socket) => {
                Some((socket.as_fd(), PollFlags::POLLIN))
            }
            State::Over => None,
        }
    }

    /// Goes on as far as it can; the answer, once there is one.
    pub(super) fn go_on(&mut self) -> Option<Answer> {
        let state = std::mem::replace(&mut self.state, State::Over);
        let (state, answer) = match state {
            State::Connecting { stream, request } => connected(stream, request),
            State::Asked { stream, answer } => self.asked(stream, answer),
            State::Udp(socket) => {
                let answer = self.take(&socket, Nonce::of_answer);
                (State::Udp(socket), answer)
            }
            State::Icmp { socket, reply } => {
                let answer = self.take(&socket, |bytes| {
                    let (kind, nonce) = icmp::read(transport(bytes, self.to))?;
                    (Some(kind) == reply).then_some(nonce)
                });
                (State::Icmp { socket, reply }, answer)
            }
            State::Sctp(socket) => {
                let answer = self.take(&socket, |bytes| {
                    let packet = sctp::Packet::read(transport(bytes, self.to))?;
                    packet.is_answer.then_some(packet.nonce)
                });
                (State::Sctp(socket), answer)
            }
            State::Over => (State::Over, None),
        };
        self.state = state;
        answer
    }

    fn asked(&self, mut stream: TcpStream, mut answer: Vec<u8>) -> (State, Option<Answer>) {
        let mut buffer = [0; 4096];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => {
                    return (
                        State::Over,
                        Some(Answer::Error("closed by the server".into())),
                    );
                }
                Ok(length) => answer.extend_from_slice(buffer.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return (State::Over, Some(Answer::Error(error.to_string()))),
            }
            if Nonce::of_answer(&answer) == Some(self.nonce) {
                return (State::Over, Some(Answer::Right));
            }
            if answer.starts_with(b"HTTP/1.1 403") || answer.starts_with(b"HTTP/1.0 403") {
                return (State::Over, Some(Answer::Forbidden));
            }
        }
        (State::Asked { stream, answer }, None)
    }

    /// Takes what a socket without connections has.
    fn take(&self, socket: &UdpSocket, read: impl Fn(&[u8]) -> Option<Nonce>) -> Option<Answer> {
        let mut found = None;
        let error = receive(socket, |bytes, from| {
            if from.ip() == self.to && read(bytes) == Some(self.nonce) {
                found = Some(Answer::Right);
            }
        });
        found.or_else(|| error.map(|error| Answer::Error(error.to_string())))
    }
}

fn connected(mut stream: TcpStream, request: String) -> (State, Option<Answer>) {
    let failed = |error: io::Error| (State::Over, Some(Answer::Error(error.to_string())));
    match stream.take_error() {
        Ok(Some(error)) | Err(error) => return failed(error),
        Ok(None) => {}
    }
    match stream.write_all(request.as_bytes()) {
        Ok(()) => {
            let answer = Vec::new();
            (State::Asked { stream, answer }, None)
        }
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::NotConnected | ErrorKind::WouldBlock
            ) =>
        {
            (State::Connecting { stream, request }, None)
        }
        Err(error) => failed(error),
    }
}

/// What became of a packet that was sent by a raw socket.
///
/// Those of IPv6 say that there is no buffer space when a program drops their packet at a device's
/// egress (`ip6_send_skb` in `net/ipv6/ip6_output.c`; those of IPv4 keep it to themselves). That is
/// a drop as any other, and not an answer.
fn handed_over(sent: io::Result<usize>) -> io::Result<()> {
    match sent {
        Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => Ok(()),
        other => other.map(drop),
    }
}

fn raw(from: SocketAddr, to: IpAddr, protocol: Protocol) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(from), Type::RAW, Some(protocol))?;
    socket.set_nonblocking(true)?;
    // Raw sockets have no ports.
    socket.bind(&SockAddr::from(SocketAddr::new(from.ip(), 0)))?;
    socket.connect(&SockAddr::from(SocketAddr::new(to, 0)))?;
    Ok(socket.into())
}
