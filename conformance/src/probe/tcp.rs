//! TCP to an echo server.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use socket2::{SockAddr, Type};

use super::{
    Failure, Leg, Options,
    echo::{ADDRESS_BYTES, read_address},
    pattern::pattern,
};
use crate::{
    error::{Error, Result},
    family::Protocol,
    netns::Namespace,
};

/// A connection to an [`EchoServer`](super::EchoServer), open until it is closed or dropped.
#[derive(Debug)]
pub struct TcpSession {
    leg: Leg,
    stream: TcpStream,
    seen_source: SocketAddr,
    handshake: Duration,
    exchanges: u64,
    longest_pause: Duration,
}

impl TcpSession {
    /// Connects and waits for the server's greeting.
    ///
    /// # Errors
    ///
    /// [`Error::Probe`] with what came back instead, [`Error::Os`] when the socket cannot be made.
    pub fn connect(from: &Namespace, to: SocketAddr, options: &Options) -> Result<Self> {
        let leg = Leg::new(Protocol::Tcp, from, to, options);
        let socket = options.socket(from, to.ip(), Type::STREAM, None)?;
        let start = Instant::now();
        socket
            .connect_timeout(&SockAddr::from(to), options.timeout)
            .map_err(|error| leg.stopped(error, 0, ADDRESS_BYTES))?;
        let handshake = start.elapsed();
        let mut stream = TcpStream::from(socket);
        let set_up = stream
            .set_nodelay(true)
            .and_then(|()| stream.set_read_timeout(Some(options.timeout)))
            .and_then(|()| stream.set_write_timeout(Some(options.timeout)));
        set_up.map_err(Error::os("set up a socket in", from.name()))?;
        let mut greeting = [0; ADDRESS_BYTES];
        stream
            .read_exact(&mut greeting)
            .map_err(|error| leg.stopped(error, 0, ADDRESS_BYTES))?;
        let seen_source = read_address(greeting);
        if seen_source.is_ipv4() != to.is_ipv4() {
            return Err(leg.fail(Failure::Stranger));
        }
        Ok(Self {
            leg,
            stream,
            seen_source,
            handshake,
            exchanges: 0,
            longest_pause: Duration::ZERO,
        })
    }

    /// Sends `bytes` bytes while they come back, checks each, and returns how long it took.
    ///
    /// After an error the connection is shut down.
    ///
    /// # Errors
    ///
    /// [`Error::Probe`] with what came back instead.
    pub fn echo(&mut self, bytes: usize) -> Result<Duration> {
        self.exchanges += 1;
        let seed = u64::from(self.seen_source.port()) << 32 | self.exchanges;
        let data = pattern(seed, bytes);
        let start = Instant::now();
        let received = thread::scope(|scope| {
            // Both ways at once: the server sends back what it gets, and stops reading when the
            // way back is full.
            let sender = thread::Builder::new()
                .spawn_scoped(scope, || (&self.stream).write_all(&data))
                .map_err(Error::os("start a thread for", &self.leg.from))?;
            let received = self.receive(start, &data);
            if received.is_err() {
                // Wakes the sender; that it fails, or that the other end is gone, adds nothing.
                let _ = self.stream.shutdown(Shutdown::Both);
            }
            let sent = sender.join().unwrap_or(Ok(()));
            let pause = received?;
            sent.map_err(|error| self.leg.stopped(error, bytes, bytes))?;
            Ok(pause)
        });
        self.longest_pause = received?;
        Ok(start.elapsed())
    }

    /// Closes the connection in order, first this end and then the other, and makes sure that
    /// nothing more has come. After that the same source port can be used again.
    ///
    /// # Errors
    ///
    /// [`Error::Probe`] when the other end does not close, or has sent too much.
    pub fn close(mut self) -> Result<()> {
        let closed = self.stream.shutdown(Shutdown::Write);
        let surplus = closed.and_then(|()| self.stream.read(&mut [0; 1024]));
        match surplus {
            Ok(0) => Ok(()),
            Ok(received) => Err(self.leg.fail(Failure::Length {
                expected: 0,
                received,
            })),
            Err(error) => Err(self.leg.stopped(error, 0, 0)),
        }
    }

    /// Returns the address that the server saw the client under.
    #[must_use]
    pub fn seen_source(&self) -> SocketAddr {
        self.seen_source
    }

    /// Returns how long the handshake took: one round trip.
    #[must_use]
    pub fn handshake(&self) -> Duration {
        self.handshake
    }

    /// Returns the longest time for which nothing came during the last [`echo`](Self::echo), the
    /// wait for its first byte included.
    #[must_use]
    pub fn longest_pause(&self) -> Duration {
        self.longest_pause
    }

    /// Returns the client's own address and port.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] when the kernel does not tell.
    pub fn local_address(&self) -> Result<SocketAddr> {
        self.stream.local_addr().map_err(Error::os(
            "ask for the address of a socket in",
            &self.leg.from,
        ))
    }

    /// Receives what was sent since `start`; returns the longest pause.
    fn receive(&self, start: Instant, data: &[u8]) -> Result<Duration> {
        let mut buffer = vec![0; 64 << 10];
        let mut received = 0;
        let (mut last, mut longest) = (start, Duration::ZERO);
        while received < data.len() {
            let length = match (&self.stream).read(&mut buffer) {
                Ok(0) => {
                    let expected = data.len();
                    return Err(self.leg.fail(Failure::Closed { received, expected }));
                }
                Ok(length) => length,
                Err(error) => return Err(self.leg.stopped(error, received, data.len())),
            };
            let now = Instant::now();
            longest = longest.max(now - last);
            last = now;
            let got = buffer.get(..length).unwrap_or_default();
            let end = data.len().min(received + length);
            let sent = data.get(received..end).unwrap_or_default();
            self.leg.compare(sent, got, received, data.len())?;
            received = end;
        }
        Ok(longest)
    }
}
