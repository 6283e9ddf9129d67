//! Whoever is sent something: sockets that note what arrives, and answer.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::message::{Nonce, icmp, sctp};
use crate::{
    error::{Error, Result},
    family::Family,
    netns::Namespace,
    policy::case::ProbeProtocol,
};

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 512;
/// Longest request.
const LONGEST: usize = 64 << 10;

/// Which attempts have arrived, and at whom.
pub(super) type Seen = BTreeMap<Nonce, IpAddr>;

/// All sockets that are sent something.
#[derive(Debug, Default)]
pub(super) struct Servers {
    sockets: Vec<Server>,
    connections: Vec<Connection>,
}

#[derive(Debug)]
struct Server {
    address: IpAddr,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Tcp(TcpListener),
    Udp(UdpSocket),
    // The standard library has no type for raw sockets; these send and receive with addresses just
    // the same, the port being 0.
    Icmp(UdpSocket),
    Sctp(UdpSocket),
}

#[derive(Debug)]
struct Connection {
    address: IpAddr,
    stream: TcpStream,
    request: Vec<u8>,
    is_over: bool,
}

impl Servers {
    /// Listens in a namespace on one of its addresses.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] when the kernel refuses a socket.
    pub(super) fn listen(
        &mut self,
        namespace: &Namespace,
        address: IpAddr,
        ports: &[(ProbeProtocol, u16)],
    ) -> Result<()> {
        let family = Family::of(address);
        let mut wanted: Vec<_> = ports.to_vec();
        wanted.retain(|(protocol, _)| protocol.runs_on(family));
        // One raw socket sees all types, or ports.
        for (protocol, port) in &mut wanted {
            if !matches!(protocol, ProbeProtocol::Tcp | ProbeProtocol::Udp) {
                *port = 0;
            }
        }
        wanted.sort_unstable();
        wanted.dedup();
        let opened = namespace.run(|| {
            let all = wanted.iter();
            all.map(|&(protocol, port)| {
                let to = SocketAddr::new(address, port);
                open(protocol, to).map_err(Error::os(
                    "listen at",
                    format_args!("{to} by {protocol} in {}", namespace.name()),
                ))
            })
            .collect::<Result<Vec<_>>>()
        })??;
        let servers = opened.into_iter().map(|kind| Server { address, kind });
        self.sockets.extend(servers);
        Ok(())
    }

    /// The sockets that something may arrive at.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let sockets = self.sockets.iter().map(|server| match &server.kind {
            Kind::Tcp(listener) => listener.as_fd(),
            Kind::Udp(socket) | Kind::Icmp(socket) | Kind::Sctp(socket) => socket.as_fd(),
        });
        let connections = self.connections.iter();
        sockets.chain(connections.map(|connection| connection.stream.as_fd()))
    }

    /// Takes what has arrived, at the sockets whose place among the descriptors is marked.
    ///
    /// `is_sent` tells whether a number was sent, and as which ICMP type where it was by ICMP.
    pub(super) fn serve(
        &mut self,
        ready: &[bool],
        seen: &mut Seen,
        is_sent: impl Fn(Nonce) -> Option<Option<u8>>,
    ) {
        let mut note = |nonce, address, kind: Option<u8>| {
            let known = is_sent(nonce) == Some(kind);
            if known {
                seen.entry(nonce).or_insert(address);
            }
            known
        };
        let is_ready = |place: usize| ready.get(place).copied().unwrap_or(false);
        let count = self.sockets.len();
        let mut accepted = Vec::new();
        for (place, server) in self.sockets.iter().enumerate() {
            if is_ready(place) {
                server.serve(&mut accepted, &mut note);
            }
        }
        for (place, connection) in self.connections.iter_mut().enumerate() {
            if is_ready(count + place) {
                connection.serve(&mut note);
            }
        }
        self.connections.retain(|connection| !connection.is_over);
        self.connections.extend(accepted);
    }
}

fn open(protocol: ProbeProtocol, to: SocketAddr) -> io::Result<Kind> {
    let domain = Domain::for_address(to);
    let raw = |protocol| Socket::new(domain, Type::RAW, Some(protocol));
    let socket = match protocol {
        ProbeProtocol::Tcp => Socket::new(domain, Type::STREAM, None)?,
        ProbeProtocol::Udp => Socket::new(domain, Type::DGRAM, None)?,
        ProbeProtocol::Icmp => raw(Protocol::ICMPV4)?,
        ProbeProtocol::Icmpv6 => raw(Protocol::ICMPV6)?,
        ProbeProtocol::Sctp => raw(Protocol::from(SCTP))?,
    };
    socket.set_nonblocking(true)?;
    if protocol == ProbeProtocol::Tcp {
        // A case before may have left connections in TIME_WAIT.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&SockAddr::from(to))?;
    Ok(match protocol {
        ProbeProtocol::Tcp => {
            socket.listen(BACKLOG)?;
            Kind::Tcp(socket.into())
        }
        ProbeProtocol::Udp => Kind::Udp(socket.into()),
        ProbeProtocol::Icmp | ProbeProtocol::Icmpv6 => Kind::Icmp(socket.into()),
        ProbeProtocol::Sctp => Kind::Sctp(socket.into()),
    })
}

/// IP protocol number of SCTP.
pub(super) const SCTP: i32 = 132;

impl Server {
    fn serve(
        &self,
        accepted: &mut Vec<Connection>,
        note: &mut impl FnMut(Nonce, IpAddr, Option<u8>) -> bool,
    ) {
        let address = self.address;
        let error = match &self.kind {
            Kind::Tcp(listener) => {
                while let Ok((stream, _)) = listener.accept() {
                    if stream.set_nonblocking(true).is_ok() {
                        accepted.push(Connection {
                            address,
                            stream,
                            request: Vec::new(),
                            is_over: false,
                        });
                    }
                }
                None
            }
            Kind::Udp(socket) => receive(socket, |bytes, from| {
                if let Some(nonce) = Nonce::of_request(bytes)
                    && note(nonce, address, None)
                {
                    answer(socket, nonce.answer(bytes).as_bytes(), from);
                }
            }),
            // The kernel answers echo requests.
            Kind::Icmp(socket) => receive(socket, |bytes, _| {
                if let Some((kind, nonce)) = icmp::read(transport(bytes, address)) {
                    note(nonce, address, Some(kind));
                }
            }),
            Kind::Sctp(socket) => receive(socket, |bytes, from| {
                if let Some(init) = sctp::Packet::read(transport(bytes, address))
                    && !init.is_answer
                    && note(init.nonce, address, None)
                {
                    let back = sctp::Packet {
                        source: init.destination,
                        destination: init.source,
                        is_answer: true,
                        tag: init.own_tag,
                        ..init
                    };
                    answer(socket, &back.build(), from);
                }
            }),
        };
        // An ICMP error for an answer, mostly: whoever asked has gone. What is left comes next time.
        if let Some(error) = error {
            tracing::debug!(%error, %address, "receive a probe");
        }
    }
}

impl Connection {
    fn serve(&mut self, note: &mut impl FnMut(Nonce, IpAddr, Option<u8>) -> bool) {
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => self.is_over = true,
                Ok(length) => self
                    .request
                    .extend_from_slice(buffer.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.is_over = true,
            }
            if self.is_over || self.request.len() > LONGEST {
                self.is_over = true;
                break;
            }
        }
        if let Some(nonce) = Nonce::of_request(&self.request)
            && note(nonce, self.address, None)
        {
            let text = nonce.answer(&self.request);
            self.request.clear();
            // It fits into the socket's buffer, or the client has gone.
            self.is_over |= self.stream.write_all(text.as_bytes()).is_err();
        }
    }
}

/// Takes all that a socket has; returns what ended it, if that was an error.
pub(super) fn receive(
    socket: &UdpSocket,
    mut take: impl FnMut(&[u8], SocketAddr),
) -> Option<io::Error> {
    let mut buffer = [0; 2048];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => take(buffer.get(..length).unwrap_or_default(), from),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
            Err(error) => return Some(error),
        }
    }
}

/// What a raw socket received, without the IP header that those of IPv4 show.
pub(super) fn transport(bytes: &[u8], address: IpAddr) -> &[u8] {
    let header = match (address, bytes.first()) {
        (IpAddr::V4(_), Some(first)) => usize::from(first & 0xf) * 4,
        _ => 0,
    };
    bytes.get(header..).unwrap_or_default()
}

fn answer(socket: &UdpSocket, bytes: &[u8], mut to: SocketAddr) {
    if let Err(error) = socket.send_to(bytes, to) {
        // A raw socket of IPv6 takes the port for a protocol number.
        to.set_port(0);
        if let Err(again) = socket.send_to(bytes, to) {
            tracing::debug!(%error, %again, %to, "answer a probe");
        }
    }
}
