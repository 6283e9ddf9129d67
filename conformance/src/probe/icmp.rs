//! Echo requests (pings) over raw sockets.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    process,
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use etherparse::{LaxSlicedPacket, TransportSlice, checksum::Sum16BitWords};
use socket2::{Protocol as IpProtocol, Type};

use super::{Failure, Leg, Options, pattern::pattern};
use crate::{error::Result, family::Protocol, netns::Namespace};

/// Pings one address under one identifier.
#[derive(Debug)]
pub struct IcmpSession {
    leg: Leg,
    // The standard library has no type for raw sockets; this one sends and receives with
    // addresses just the same, the port being 0.
    socket: UdpSocket,
    identifier: u16,
    sequence: u16,
    buffer: Vec<u8>,
}

impl IcmpSession {
    /// Opens a raw socket; nothing is sent yet.
    ///
    /// # Errors
    ///
    /// [`Error::Os`](crate::Error::Os) when the socket cannot be made.
    pub fn open(from: &Namespace, to: IpAddr, options: &Options) -> Result<Self> {
        let protocol = match to {
            IpAddr::V4(_) => IpProtocol::ICMPV4,
            IpAddr::V6(_) => IpProtocol::ICMPV6,
        };
        // Sockets without ports: a raw socket takes the port for a protocol number.
        let options = Options {
            source: options.source.map(|source| SocketAddr::new(source.ip(), 0)),
            ..*options
        };
        Ok(Self {
            leg: Leg::new(Protocol::Icmp, from, SocketAddr::new(to, 0), &options),
            socket: options.socket(from, to, Type::RAW, Some(protocol))?.into(),
            identifier: next_identifier(),
            sequence: 0,
            buffer: vec![0; 64 << 10],
        })
    }

    /// Sends an echo request with `size` bytes of payload, waits for the reply, and returns how
    /// long that took.
    ///
    /// # Errors
    ///
    /// [`Error::Probe`](crate::Error::Probe) with what came back instead: silence, an ICMP error
    /// for this very request, or a reply that differs.
    pub fn echo(&mut self, size: usize) -> Result<Duration> {
        self.sequence = self.sequence.wrapping_add(1);
        let seed = u64::from(self.identifier) << 16 | u64::from(self.sequence);
        let data = pattern(seed, size);
        let request = self.request(&data);
        let start = Instant::now();
        self.socket
            .send_to(&request, self.leg.to)
            .map_err(|error| self.leg.stopped(error, 0, size))?;
        let deadline = start + self.leg.timeout;
        loop {
            let (sender, length) = match self.receive(deadline) {
                Ok(received) => received,
                Err(error) => return Err(self.leg.stopped(error, 0, size)),
            };
            let received = self.buffer.get(..length).unwrap_or_default();
            let Some(message) = Message::parse(received, self.is_ipv4()) else {
                continue;
            };
            match self.judge(sender, &message) {
                Judgement::Reply => {
                    let elapsed = start.elapsed();
                    self.leg.compare(&data, message.body, 0, size)?;
                    return Ok(elapsed);
                }
                Judgement::Failure(failure) => return Err(self.leg.fail(failure)),
                Judgement::Foreign => {}
            }
        }
    }

    /// Returns the identifier that the requests carry.
    #[must_use]
    pub fn identifier(&self) -> u16 {
        self.identifier
    }

    fn is_ipv4(&self) -> bool {
        self.leg.to.is_ipv4()
    }

    /// Makes an echo request (RFC 792, RFC 4443 section 4.1):
    ///
    /// ```text
    /// type 8 | code 8 | checksum 16 | identifier 16 | sequence number 16 | data
    /// ```
    fn request(&self, data: &[u8]) -> Vec<u8> {
        let [i0, i1] = self.identifier.to_be_bytes();
        let [s0, s1] = self.sequence.to_be_bytes();
        let kind = if self.is_ipv4() { 8 } else { 128 };
        let mut header = [kind, 0, 0, 0, i0, i1, s0, s1];
        if self.is_ipv4() {
            let sum = Sum16BitWords::new().add_slice(&header).add_slice(data);
            let [c0, c1] = sum.ones_complement().to_ne_bytes();
            header = [kind, 0, c0, c1, i0, i1, s0, s1];
        }
        // The kernel fills in the checksum of ICMPv6 (RFC 3542 section 3.1).
        [&header, data].concat()
    }

    /// Waits for the next ICMP message to this namespace, whomever it is for; returns its sender
    /// and its length in the buffer.
    fn receive(&mut self, deadline: Instant) -> io::Result<(IpAddr, usize)> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.socket.set_read_timeout(Some(left))?;
        let (length, sender) = self.socket.recv_from(&mut self.buffer)?;
        Ok((sender.ip(), length))
    }

    fn judge(&self, sender: IpAddr, message: &Message<'_>) -> Judgement {
        let reply = if self.is_ipv4() { 0 } else { 129 };
        let [i0, i1, s0, s1] = message.rest;
        let ours = (u16::from_be_bytes([i0, i1]), u16::from_be_bytes([s0, s1]))
            == (self.identifier, self.sequence);
        if message.kind == reply {
            return match ours {
                false => Judgement::Foreign,
                true if sender != self.leg.to.ip() => Judgement::Foreign,
                // Of ICMPv6 the kernel passes on only what has a right checksum.
                true if self.is_ipv4() && !message.is_intact => {
                    Judgement::Failure(Failure::Checksum {
                        found: message.checksum,
                    })
                }
                true => Judgement::Reply,
            };
        }
        if message.is_error(self.is_ipv4()) && self.is_about_us(message.body) {
            return Judgement::Failure(Failure::IcmpError {
                from: sender,
                kind: message.kind,
                code: message.code,
                mtu_bytes: message.mtu_bytes(self.is_ipv4()),
            });
        }
        Judgement::Foreign
    }

    /// Tells whether the packet that an ICMP error quotes is the last request.
    fn is_about_us(&self, quoted: &[u8]) -> bool {
        let Ok(packet) = LaxSlicedPacket::from_ip(quoted) else {
            return false;
        };
        let rest = match &packet.transport {
            Some(TransportSlice::Icmpv4(icmp)) => icmp.bytes5to8(),
            Some(TransportSlice::Icmpv6(icmp)) => icmp.bytes5to8(),
            _ => return false,
        };
        let [i0, i1, s0, s1] = rest;
        u16::from_be_bytes([i0, i1]) == self.identifier
            && u16::from_be_bytes([s0, s1]) == self.sequence
    }
}

enum Judgement {
    Reply,
    Failure(Failure),
    Foreign,
}

/// An ICMP message of either family.
struct Message<'a> {
    kind: u8,
    code: u8,
    checksum: u16,
    rest: [u8; 4],
    body: &'a [u8],
    /// Whether the sum over the message alone is right, which is what counts for ICMP of IPv4.
    is_intact: bool,
}

impl<'a> Message<'a> {
    /// Reads what a raw socket hands out: for IPv4 the header comes with it.
    fn parse(packet: &'a [u8], ipv4: bool) -> Option<Self> {
        let bytes = if ipv4 { strip_ipv4(packet) } else { packet };
        let (header, body) = bytes.split_first_chunk::<8>()?;
        let [kind, code, c0, c1, rest @ ..] = *header;
        Some(Self {
            kind,
            code,
            checksum: u16::from_be_bytes([c0, c1]),
            rest,
            body,
            is_intact: Sum16BitWords::new().add_slice(bytes).ones_complement() == 0,
        })
    }

    /// Tells whether it is an error: unreachable, time exceeded, parameter problem (RFC 792), or
    /// one of the error half of `ICMPv6` (RFC 4443 section 2.1).
    fn is_error(&self, ipv4: bool) -> bool {
        if ipv4 {
            matches!(self.kind, 3 | 11 | 12)
        } else {
            self.kind < 128
        }
    }

    /// Reads the MTU of "fragmentation needed" (RFC 1191 section 4) and "packet too big"
    /// (RFC 4443 section 3.2).
    fn mtu_bytes(&self, ipv4: bool) -> Option<u32> {
        let [_, _, m2, m3] = self.rest;
        match (ipv4, self.kind, self.code) {
            (true, 3, 4) => Some(u16::from_be_bytes([m2, m3]).into()),
            (false, 2, _) => Some(u32::from_be_bytes(self.rest)),
            _ => None,
        }
    }
}

/// Cuts off the IPv4 header, which a raw socket hands out too; nothing is left of nonsense.
fn strip_ipv4(packet: &[u8]) -> &[u8] {
    let words = packet.first().map_or(0, |first| first & 0x0f);
    packet.get(usize::from(words) * 4..).unwrap_or_default()
}

/// Draws identifiers that no other session of this process has, and hardly one of another.
fn next_identifier() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let [.., p2, p3] = process::id().to_be_bytes();
    let base = u16::from_be_bytes([p2, p3]).wrapping_mul(0x9e37);
    base.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed))
}
