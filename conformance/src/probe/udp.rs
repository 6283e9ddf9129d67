//! UDP to an echo server.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use nix::sys::socket::{
    getsockopt, setsockopt,
    sockopt::{IpMtu, UdpGsoSegment},
};
use socket2::{SockAddr, Type};

use super::{
    Failure, Leg, MtuIpv6, Options,
    echo::{ADDRESS_BYTES, WHO_AM_I, YOU_ARE, read_address},
    pattern::pattern,
};
use crate::{
    error::{Error, Result},
    family::Protocol,
    netns::Namespace,
};

/// A socket that exchanges datagrams with one [`EchoServer`](super::EchoServer).
#[derive(Debug)]
pub struct UdpSession {
    leg: Leg,
    socket: UdpSocket,
    seen_source: Option<SocketAddr>,
    exchanges: u64,
    buffer: Vec<u8>,
}

impl UdpSession {
    /// Opens a socket; nothing is sent yet.
    ///
    /// # Errors
    ///
    /// [`Error::Probe`] when there is no route, [`Error::Os`] when the socket cannot be made.
    pub fn open(from: &Namespace, to: SocketAddr, options: &Options) -> Result<Self> {
        let leg = Leg::new(Protocol::Udp, from, to, options);
        let socket = options.socket(from, to.ip(), Type::DGRAM, None)?;
        socket
            .connect(&SockAddr::from(to))
            .map_err(|error| leg.stopped(error, 0, 0))?;
        let socket = UdpSocket::from(socket);
        socket
            .set_read_timeout(Some(options.timeout))
            .map_err(Error::os("set up a socket in", from.name()))?;
        Ok(Self {
            leg,
            socket,
            seen_source: None,
            exchanges: 0,
            buffer: vec![0; 64 << 10],
        })
    }

    /// Sends a datagram of `size` bytes of payload, waits for it to come back, and returns how
    /// long that took.
    ///
    /// # Errors
    ///
    /// [`Error::Probe`] with what came back instead.
    pub fn echo(&mut self, size: usize) -> Result<Duration> {
        let data = self.payload(size);
        let start = Instant::now();
        let answer = self.exchange(&data)?;
        let elapsed = start.elapsed();
        let (leg, answer) = answer;
        leg.compare(&data, answer, 0, size)?;
        Ok(elapsed)
    }

    /// Sends `count` datagrams of `size` bytes in one go, to be cut apart by the kernel or the
    /// interface (`UDP_SEGMENT`, as QUIC does), and waits for all of them to come back, in any
    /// order.
    ///
    /// `count` is at most 64, and all of them together at most 65,487 bytes (`UDP_MAX_SEGMENTS`,
    /// include/net/udp.h).
    ///
    /// # Errors
    ///
    /// [`Error::Probe`] with what came back instead, [`Error::Invalid`] for a size of 0 or above
    /// 65,487.
    pub fn echo_segmented(&mut self, size: u16, count: usize) -> Result<Duration> {
        if size == 0 {
            return Err(Error::Invalid {
                what: "size of a segment",
                value: size.to_string(),
                rule: "at least one byte",
            });
        }
        let data = self.payload(usize::from(size) * count);
        self.set_segment(i32::from(size))?;
        let start = Instant::now();
        let sent = self.socket.send(&data);
        self.set_segment(0)?;
        sent.map_err(|error| self.leg.stopped(error, 0, data.len()))?;
        let mut missing: Vec<_> = data.chunks(usize::from(size)).collect();
        while let Some(&first) = missing.first() {
            let received = data.len() - missing.iter().map(|chunk| chunk.len()).sum::<usize>();
            let length = self
                .socket
                .recv(&mut self.buffer)
                .map_err(|error| self.leg.stopped(error, received, data.len()))?;
            let got = self.buffer.get(..length).unwrap_or_default();
            match missing.iter().position(|&chunk| chunk == got) {
                Some(index) => drop(missing.remove(index)),
                None => self.leg.compare(first, got, received, data.len())?,
            }
        }
        Ok(start.elapsed())
    }

    /// Asks the server for the address that it sees the client under.
    ///
    /// # Errors
    ///
    /// [`Error::Probe`] with what came back instead, or when the address is another one than the
    /// last time.
    pub fn seen_source(&mut self) -> Result<SocketAddr> {
        let (leg, answer) = self.exchange(WHO_AM_I)?;
        let address = answer
            .strip_prefix(YOU_ARE.as_slice())
            .and_then(|rest| <[u8; ADDRESS_BYTES]>::try_from(rest).ok())
            .map(read_address);
        let Some(then) = address else {
            return Err(leg.fail(Failure::Stranger));
        };
        match self.seen_source.replace(then) {
            Some(first) if first != then => {
                Err(self.leg.fail(Failure::SourceChanged { first, then }))
            }
            _ => Ok(then),
        }
    }

    /// Returns the client's own address and port.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] when the kernel does not tell.
    pub fn local_address(&self) -> Result<SocketAddr> {
        self.socket.local_addr().map_err(Error::os(
            "ask for the address of a socket in",
            &self.leg.from,
        ))
    }

    /// Returns the longest packet that the path is known to take, bytes, from the IP header on:
    /// the MTU of the route until an ICMP error says less.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] when the kernel does not tell.
    pub fn path_mtu_bytes(&self) -> Result<u32> {
        let told = match self.leg.to {
            SocketAddr::V4(_) => getsockopt(&self.socket, IpMtu),
            SocketAddr::V6(_) => getsockopt(&self.socket, MtuIpv6),
        };
        told.map(i32::cast_unsigned).map_err(Error::os(
            "ask for the path MTU of a socket in",
            &self.leg.from,
        ))
    }

    fn payload(&mut self, size: usize) -> Vec<u8> {
        self.exchanges += 1;
        pattern(self.exchanges, size)
    }

    /// Sends a datagram and waits for one; returns the leg too, as both borrow the session.
    fn exchange(&mut self, data: &[u8]) -> Result<(&Leg, &[u8])> {
        let leg = &self.leg;
        let stopped = |error: io::Error| leg.stopped(error, 0, data.len());
        self.socket.send(data).map_err(stopped)?;
        let length = self.socket.recv(&mut self.buffer).map_err(stopped)?;
        Ok((leg, self.buffer.get(..length).unwrap_or_default()))
    }

    fn set_segment(&self, size: i32) -> Result<()> {
        setsockopt(&self.socket, UdpGsoSegment, &size)
            .map_err(Error::os("set UDP_SEGMENT on a socket in", &self.leg.from))
    }
}
