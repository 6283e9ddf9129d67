//! What probes are made of. Each carries a number of its own, by which it is known wherever it comes
//! out.

use etherparse::checksum::Sum16BitWords;

use crate::policy::case::Http;

/// The number of one attempt; no two of a process have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Nonce(pub(super) u64);

const REQUEST: &str = "probe=";
const ANSWER: &str = "answer=";

impl Nonce {
    /// What a client sends over TCP and UDP.
    pub(super) fn request(self, http: Option<&Http>) -> String {
        let Self(number) = self;
        match http {
            None => format!("{REQUEST}{number:016x}\n"),
            Some(Http { method, path }) => format!(
                "{method} {path} HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\
                 X-Probe: {REQUEST}{number:016x}\r\n\r\n"
            ),
        }
    }

    /// What a server answers to `request`.
    pub(super) fn answer(self, request: &[u8]) -> String {
        let body = format!("{ANSWER}{:016x}\n", self.0);
        if find(request, b"HTTP/1.").is_none() {
            return body;
        }
        let length = body.len();
        format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")
    }

    /// Finds the number in what a client sent.
    pub(super) fn of_request(bytes: &[u8]) -> Option<Self> {
        Self::after(bytes, REQUEST)
    }

    /// Finds the number in what a server answered.
    pub(super) fn of_answer(bytes: &[u8]) -> Option<Self> {
        Self::after(bytes, ANSWER)
    }

    /// Whether the beginning of a frame holds it, in one of the forms in which it is sent.
    pub(super) fn is_in(self, frame: &[u8]) -> bool {
        let text = format!("{REQUEST}{:016x}", self.0);
        find(frame, text.as_bytes()).is_some() || find(frame, &self.0.to_be_bytes()).is_some()
    }

    /// Finds the number after the last such word.
    fn after(bytes: &[u8], word: &str) -> Option<Self> {
        let starts = bytes.windows(word.len()).enumerate();
        let mut starts = starts.filter(|(_, window)| *window == word.as_bytes());
        let (start, _) = starts.next_back()?;
        let digits = bytes.get(start + word.len()..start + word.len() + 16)?;
        let digits = std::str::from_utf8(digits).ok()?;
        u64::from_str_radix(digits, 16).ok().map(Self)
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
}

/// ICMP messages of any type:
///
/// ```text
/// type 8 | code 8 | checksum 16 | identifier 16 | sequence number 16 | number 64
/// ```
pub(super) mod icmp {
    use super::{Nonce, Sum16BitWords};

    /// Builds a message. The kernel fills in the checksum of ICMPv6 (RFC 3542 section 3.1).
    pub(in super::super) fn build(kind: u8, identifier: u16, nonce: Nonce) -> [u8; 16] {
        let mut message = [0; 16];
        let [i0, i1] = identifier.to_be_bytes();
        let [n0, n1, n2, n3, n4, n5, n6, n7] = nonce.0.to_be_bytes();
        message.copy_from_slice(&[kind, 0, 0, 0, i0, i1, 0, 1, n0, n1, n2, n3, n4, n5, n6, n7]);
        let sum = Sum16BitWords::new().add_slice(&message).ones_complement();
        let [c0, c1] = sum.to_ne_bytes();
        let [_, _, high, low, ..] = &mut message;
        (*high, *low) = (c0, c1);
        message
    }

    /// Reads the type and the number.
    pub(in super::super) fn read(message: &[u8]) -> Option<(u8, Nonce)> {
        let kind = *message.first()?;
        let number = message.get(8..16)?.try_into().ok()?;
        Some((kind, Nonce(u64::from_be_bytes(number))))
    }
}

/// The first two packets of an SCTP association (RFC 9260 sections 3.1, 3.3.2 and 3.3.3), for kernels
/// that have no SCTP:
///
/// ```text
/// source port 16 | destination port 16 | verification tag 32 | checksum 32
/// type 8 | flags 8 | length 16 | tag 32 | window 32 | streams 16 + 16 | TSN 32
/// parameter 16 | length 16 | number 64
/// ```
///
/// The number is in a parameter that a receiver skips without a word (INIT), and in the cookie
/// (INIT ACK).
pub(super) mod sctp {
    use super::Nonce;

    const INIT: u8 = 1;
    const INIT_ACK: u8 = 2;
    const CHUNK: usize = 12;
    const PARAMETER: usize = CHUNK + 20;
    const LENGTH: usize = PARAMETER + 12;
    /// The two highest bits say what one does who does not know it: skip it, and say nothing.
    const UNKNOWN: u16 = 0x8000 | 0x0da7;
    const COOKIE: u16 = 7;

    /// A packet, as far as probes go.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(in super::super) struct Packet {
        pub(in super::super) source: u16,
        pub(in super::super) destination: u16,
        /// Whether it is an INIT ACK, and not an INIT.
        pub(in super::super) is_answer: bool,
        /// The verification tag, which of an INIT is zero.
        pub(in super::super) tag: u32,
        /// The sender's own tag.
        pub(in super::super) own_tag: u32,
        pub(in super::super) nonce: Nonce,
    }

    impl Packet {
        pub(in super::super) fn build(&self) -> Vec<u8> {
            let (kind, parameter) = if self.is_answer {
                (INIT_ACK, COOKIE)
            } else {
                (INIT, UNKNOWN)
            };
            let mut packet = Vec::with_capacity(LENGTH);
            packet.extend(self.source.to_be_bytes());
            packet.extend(self.destination.to_be_bytes());
            packet.extend(self.tag.to_be_bytes());
            packet.extend([0; 4]);
            packet.extend([kind, 0, 0, 32]);
            packet.extend(self.own_tag.to_be_bytes());
            packet.extend(65_536_u32.to_be_bytes());
            packet.extend([0, 1, 0, 1]);
            packet.extend(1_u32.to_be_bytes());
            packet.extend(parameter.to_be_bytes());
            packet.extend([0, 12]);
            packet.extend(self.nonce.0.to_be_bytes());
            let checksum = crc32c(&packet).to_le_bytes();
            if let Some(place) = packet.get_mut(8..12) {
                place.copy_from_slice(&checksum);
            }
            packet
        }

        /// Reads a packet that came as it was sent.
        pub(in super::super) fn read(bytes: &[u8]) -> Option<Self> {
            let mut blank = bytes.to_vec();
            let checksum = blank.get_mut(8..12)?;
            let claimed = u32::from_le_bytes(checksum.try_into().ok()?);
            checksum.fill(0);
            if bytes.len() != LENGTH || crc32c(&blank) != claimed {
                return None;
            }
            let word =
                |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
            let long =
                |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
            let number = bytes.get(PARAMETER + 4..LENGTH)?.try_into().ok()?;
            Some(Self {
                source: word(0)?,
                destination: word(2)?,
                is_answer: match *bytes.get(CHUNK)? {
                    INIT => false,
                    INIT_ACK => true,
                    _ => return None,
                },
                tag: long(4)?,
                own_tag: long(CHUNK + 4)?,
                nonce: Nonce(u64::from_be_bytes(number)),
            })
        }
    }

    /// The checksum of SCTP (RFC 9260 appendix A).
    fn crc32c(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| {
                (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
            })
        })
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn the_checksum_is_castagnolis() {
            // RFC 3720 appendix B.4.
            assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
            assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        }

        #[test]
        fn packets_are_read_as_they_are_built() {
            let packet = Packet {
                source: 40_000,
                destination: 9999,
                is_answer: true,
                tag: 7,
                own_tag: 8,
                nonce: Nonce(0x0123_4567_89ab_cdef),
            };
            let mut bytes = packet.build();
            assert_eq!(Packet::read(&bytes), Some(packet));
            bytes[0] ^= 1;
            assert_eq!(
                Packet::read(&bytes),
                None,
                "a port was rewritten, not the checksum"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_in_every_form() {
        let nonce = Nonce(0xfeed);
        let http = Http {
            method: "GET".into(),
            path: "/?probe=00000000000000aa".into(),
        };
        for request in [nonce.request(None), nonce.request(Some(&http))] {
            let request = request.as_bytes();
            assert_eq!(Nonce::of_request(request), Some(nonce));
            assert_eq!(Nonce::of_answer(request), None);
            let answer = nonce.answer(request);
            assert_eq!(Nonce::of_answer(answer.as_bytes()), Some(nonce));
            assert!(nonce.is_in(request));
        }
        assert!(
            nonce
                .answer(nonce.request(Some(&http)).as_bytes())
                .starts_with("HTTP/1.1 200")
        );
        let ping = icmp::build(8, 3, nonce);
        assert_eq!(icmp::read(&ping), Some((8, nonce)));
        assert!(nonce.is_in(&ping) && !Nonce(1).is_in(&ping));
        let sum = Sum16BitWords::new().add_slice(&ping).ones_complement();
        assert_eq!(sum, 0, "the checksum fits");
    }
}
