//! The server that probes talk to.
//!
//! TCP: it greets every connection with the client's address, then sends back what comes. UDP:
//! it sends back every datagram as it is, but answers [`WHO_AM_I`] with the client's address.
//! Addresses are 18 bytes: 16 of IPv6, IPv4 as mapped addresses, and the port in network order.

use std::{
    collections::BTreeMap,
    io::{self, IoSlice, IoSliceMut, PipeReader, PipeWriter, Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream},
    os::fd::{AsFd, AsRawFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use nix::{
    cmsg_space,
    errno::Errno,
    libc::{in6_addr, in6_pktinfo},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, sendmsg, setsockopt,
        sockopt::Ipv6RecvPacketInfo,
    },
};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::{
    error::{Error, Result},
    family::Protocol,
    netns::Namespace,
};

/// A datagram that asks who it comes from.
pub(super) const WHO_AM_I: &[u8; 16] = b"lab: who am I?\r\n";
/// The start of the answer to it; the address follows.
pub(super) const YOU_ARE: &[u8; 16] = b"lab: you are\r\n\r\n";
/// Length of an address on the wire.
pub(super) const ADDRESS_BYTES: usize = 18;

/// An echo server on TCP and UDP ports of a namespace, on all its addresses of both families.
/// Dropping it stops it and closes its connections.
#[derive(Debug)]
pub struct EchoServer {
    // Its end wakes every thread.
    stop: Option<PipeWriter>,
    threads: Vec<JoinHandle<()>>,
    seen: Arc<Journal>,
}

/// A client that an [`EchoServer`] has heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// The protocol.
    pub protocol: Protocol,
    /// The port of the server.
    pub port: u16,
    /// The client as the server sees it.
    pub client: SocketAddr,
}

impl EchoServer {
    /// Starts a server. When this returns, it answers.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] when a port is taken or a thread cannot be started.
    pub fn start(namespace: &Namespace, tcp: &[u16], udp: &[u16]) -> Result<Self> {
        let (stopped, stop) =
            io::pipe().map_err(Error::os("make a pipe for the server in", namespace.name()))?;
        let stopped = Arc::new(stopped);
        let mut server = Self {
            stop: Some(stop),
            threads: Vec::new(),
            seen: Arc::default(),
        };
        let tcp = tcp.iter().map(|&port| (Type::STREAM, port));
        let udp = udp.iter().map(|&port| (Type::DGRAM, port));
        for (kind, port) in tcp.chain(udp) {
            let socket = bind(namespace, kind, port)?;
            let worker = Worker {
                socket,
                port,
                stopped: Arc::clone(&stopped),
                seen: Arc::clone(&server.seen),
            };
            let thread = thread::Builder::new()
                .name(format!("echo {port}"))
                .spawn(move || worker.run(kind))
                .map_err(Error::os("start an echo server in", namespace.name()))?;
            server.threads.push(thread);
        }
        Ok(server)
    }

    /// Lists the clients heard of so far, with the number of TCP connections or UDP datagrams.
    #[must_use]
    pub fn seen(&self) -> BTreeMap<Seen, u64> {
        self.seen.lock().clone()
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.stop.take();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("an echo server's thread has panicked");
            }
        }
    }
}

/// Writes an address as it goes over the wire.
pub(super) fn write_address(address: SocketAddr) -> [u8; ADDRESS_BYTES] {
    let mapped = match address.ip() {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    let mut bytes = [0; ADDRESS_BYTES];
    let (ip, port) = bytes.split_at_mut(16);
    ip.copy_from_slice(&mapped.octets());
    port.copy_from_slice(&address.port().to_be_bytes());
    bytes
}

/// Reads an address as it comes over the wire.
pub(super) fn read_address(bytes: [u8; ADDRESS_BYTES]) -> SocketAddr {
    let [ip @ .., p0, p1] = bytes;
    let ip = Ipv6Addr::from(ip).to_canonical();
    SocketAddr::new(ip, u16::from_be_bytes([p0, p1]))
}

#[derive(Debug, Default)]
struct Journal(Mutex<BTreeMap<Seen, u64>>);

impl Journal {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Seen, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, protocol: Protocol, port: u16, client: SocketAddr) {
        let seen = Seen {
            protocol,
            port,
            client,
        };
        *self.lock().entry(seen).or_default() += 1;
    }
}

fn bind(namespace: &Namespace, kind: Type, port: u16) -> Result<Socket> {
    let socket = namespace.socket(Domain::IPV6, kind, None)?;
    let set_up = || {
        socket.set_only_v6(false)?;
        if kind == Type::STREAM {
            // The port may be in TIME_WAIT from a server before.
            socket.set_reuse_address(true)?;
        } else {
            setsockopt(&socket, Ipv6RecvPacketInfo, &true)?;
        }
        socket.bind(&SockAddr::from(SocketAddr::from((
            Ipv6Addr::UNSPECIFIED,
            port,
        ))))?;
        if kind == Type::STREAM {
            socket.listen(128)?;
        }
        socket.set_nonblocking(true)
    };
    set_up().map_err(Error::os(
        "listen in",
        format_args!("{} on port {port}", namespace.name()),
    ))?;
    Ok(socket)
}

/// What serves one port.
struct Worker {
    socket: Socket,
    port: u16,
    stopped: Arc<PipeReader>,
    seen: Arc<Journal>,
}

impl Worker {
    fn run(self, kind: Type) {
        let outcome = match kind {
            Type::STREAM => self.serve_tcp(),
            _ => self.serve_udp(),
        };
        if let Err(error) = outcome {
            tracing::error!(port = self.port, %error, "echo server");
        }
    }

    fn serve_tcp(&self) -> io::Result<()> {
        thread::scope(|scope| {
            while ready(&self.socket, PollFlags::POLLIN, &self.stopped)? {
                let (stream, client) = match self.socket.accept() {
                    Ok(accepted) => accepted,
                    // The client has gone again, or another wake-up took it.
                    Err(error) if is_passing(&error) => continue,
                    Err(error) => return Err(error),
                };
                let Some(client) = client.as_socket().map(canonical) else {
                    continue;
                };
                self.seen.note(Protocol::Tcp, self.port, client);
                thread::Builder::new()
                    .name(format!("echo {client}"))
                    .spawn_scoped(scope, move || {
                        // The client learns of it, and says so better than this end could.
                        if let Err(error) = self.converse(stream.into(), client) {
                            tracing::debug!(%client, %error, "echo connection");
                        }
                    })?;
            }
            Ok(())
        })
    }

    fn converse(&self, mut stream: TcpStream, client: SocketAddr) -> io::Result<()> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        self.send(&mut stream, &write_address(client))?;
        let mut buffer = vec![0; 64 << 10];
        while ready(&stream, PollFlags::POLLIN, &self.stopped)? {
            match stream.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(length) => {
                    let received = buffer.get(..length).unwrap_or_default();
                    self.send(&mut stream, received)?;
                }
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn send(&self, stream: &mut TcpStream, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() && ready(stream, PollFlags::POLLOUT, &self.stopped)? {
            match stream.write(bytes) {
                Ok(length) => bytes = bytes.get(length..).unwrap_or_default(),
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn serve_udp(&self) -> io::Result<()> {
        let mut buffer = vec![0; 64 << 10];
        let mut control = cmsg_space!(in6_pktinfo);
        while ready(&self.socket, PollFlags::POLLIN, &self.stopped)? {
            // An ICMP error for an earlier answer, or no route back: the client hears nothing,
            // which is what it will report.
            if let Err(errno) = self.answer(&mut buffer, &mut control) {
                tracing::debug!(port = self.port, %errno, "echo datagram");
            }
        }
        Ok(())
    }

    /// Receives one datagram and answers it from the address that it was sent to: on a host with
    /// several addresses the kernel would choose another.
    fn answer(&self, buffer: &mut [u8], control: &mut [u8]) -> Result<(), Errno> {
        let descriptor = self.socket.as_raw_fd();
        let mut parts = [IoSliceMut::new(buffer)];
        let message =
            recvmsg::<SockaddrIn6>(descriptor, &mut parts, Some(control), MsgFlags::empty())?;
        let Some(address) = message.address else {
            return Ok(());
        };
        let local = message.cmsgs()?.find_map(|part| match part {
            ControlMessageOwned::Ipv6PacketInfo(info) => Some(info),
            _ => None,
        });
        let length = message.bytes;
        let client = canonical(SocketAddr::V6(address.into()));
        self.seen.note(Protocol::Udp, self.port, client);
        let received = buffer.get(..length).unwrap_or_default();
        let answer = if received == WHO_AM_I {
            [YOU_ARE.as_slice(), &write_address(client)].concat()
        } else {
            received.to_vec()
        };
        let from = local.map(|info| reply_from(&info));
        let from = from.as_ref().map(ControlMessage::Ipv6PacketInfo);
        let flags = MsgFlags::empty();
        let answer = [IoSlice::new(&answer)];
        sendmsg(descriptor, &answer, from.as_slice(), flags, Some(&address))?;
        Ok(())
    }
}

/// Keeps the address that a datagram was sent to; the way back is the routes' choice, unless the
/// address means nothing without an interface.
fn reply_from(info: &in6_pktinfo) -> in6_pktinfo {
    let in6_addr { s6_addr } = info.ipi6_addr;
    let link_local = Ipv6Addr::from(s6_addr).is_unicast_link_local();
    in6_pktinfo {
        ipi6_addr: in6_addr { s6_addr },
        ipi6_ifindex: if link_local { info.ipi6_ifindex } else { 0 },
    }
}

/// Waits until a socket is ready, or has failed; `false` when the server is to stop.
fn ready(socket: &impl AsFd, events: PollFlags, stopped: &PipeReader) -> io::Result<bool> {
    loop {
        let mut wanted = [
            PollFd::new(stopped.as_fd(), PollFlags::empty()),
            PollFd::new(socket.as_fd(), events),
        ];
        match poll(&mut wanted, PollTimeout::NONE) {
            Ok(_) => {
                let [stopped, _] = wanted;
                return Ok(stopped.revents().is_none_or(|events| events.is_empty()));
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::WouldBlock | Kind::Interrupted | Kind::ConnectionAborted
    )
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_wire() {
        for text in ["192.0.2.1:80", "[2001:db8::1]:65535"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(read_address(write_address(address)), address);
        }
    }
}
