//! IP addresses as the maps hold them: sixteen bytes for either family.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An IPv4 or IPv6 address; IPv4 in its mapped form `::ffff:a.b.c.d` (RFC 4291, section 2.5.5.2).
///
/// Sixteen bytes in network order, kept as four words so that the kernel compares and copies
/// words, and aligned so that a copy on the kernel's stack may be of eight bytes at a time. One form for both families is what makes one packet path for both families.
#[derive(
    Clone, Copy, Default, PartialEq, Eq, Hash, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C, align(8))]
pub struct Addr {
    words: [u32; 4],
}
crate::abi!(Addr, size = 16, align = 8);

/// The third word of an IPv4-mapped address.
const MAPPED: u32 = 0x0000_ffff_u32.to_be();

impl Addr {
    /// No address: all zero, in neither family's use.
    pub const NONE: Self = Self { words: [0; 4] };

    /// Length of the IPv4-mapped prefix, in bits: an IPv4 prefix /n is this plus n.
    pub const MAPPED_PREFIX_BITS: u32 = 96;

    /// From the four bytes of an IPv4 header field.
    #[inline(always)]
    #[must_use]
    pub const fn from_v4_bytes(bytes: [u8; 4]) -> Self {
        Self {
            words: [0, 0, MAPPED, u32::from_ne_bytes(bytes)],
        }
    }

    /// From an IPv4 header field read as one word, without a change of byte order.
    #[inline(always)]
    #[must_use]
    pub const fn from_v4_word(word: u32) -> Self {
        Self {
            words: [0, 0, MAPPED, word],
        }
    }

    /// From the four words of an IPv6 header field, without a change of byte order.
    #[inline(always)]
    #[must_use]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self { words }
    }

    /// The four words, in memory order.
    #[inline(always)]
    #[must_use]
    pub const fn words(&self) -> [u32; 4] {
        self.words
    }

    /// The last word: the whole address where [`Addr::is_v4`].
    #[inline(always)]
    #[must_use]
    pub const fn v4_word(&self) -> u32 {
        let [_, _, _, last] = self.words;
        last
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(&self) -> bool {
        let [a, b, c, _] = self.words;
        a | b == 0 && c == MAPPED
    }

    /// Whether this is no address at all.
    #[inline(always)]
    #[must_use]
    pub const fn is_none(&self) -> bool {
        let [a, b, c, d] = self.words;
        a | b | c | d == 0
    }

    /// Whether packets to this address have more than one receiver: IPv4 224.0.0.0/4 and the
    /// limited broadcast (RFC 1112, RFC 919), IPv6 `ff00::/8` (RFC 4291, section 2.7).
    #[inline(always)]
    #[must_use]
    pub const fn is_multicast(&self) -> bool {
        if self.is_v4() {
            let [first, ..] = self.v4_word().to_ne_bytes();
            first >> 4 == 0xe || self.v4_word() == u32::MAX
        } else {
            let [first, ..] = self.words;
            let [high, ..] = first.to_ne_bytes();
            high == 0xff
        }
    }

    /// Whether the address can be neither source nor destination of a forwarded packet: loopback,
    /// unspecified, IPv6 link-local, IPv4 multicast or class E as a source is left to
    /// [`Addr::is_multicast`] (RFC 6890).
    #[inline(always)]
    #[must_use]
    pub const fn is_martian(&self) -> bool {
        if self.is_v4() {
            let [first, ..] = self.v4_word().to_ne_bytes();
            first == 127 || first == 0
        } else {
            let [a, b, c, d] = self.words;
            let [high, next, ..] = a.to_ne_bytes();
            let link_local = high == 0xfe && next & 0xc0 == 0x80;
            let low = a | b | c == 0 && (d == 0 || d == 1_u32.to_be());
            link_local || low
        }
    }

    /// The address in user space's terms.
    #[must_use]
    pub fn to_ip(self) -> IpAddr {
        let mut octets = [0_u8; 16];
        for (chunk, word) in octets.chunks_exact_mut(4).zip(self.words) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        let v6 = Ipv6Addr::from(octets);
        if self.is_v4() {
            IpAddr::V4(Ipv4Addr::from(self.v4_word().to_ne_bytes()))
        } else {
            IpAddr::V6(v6)
        }
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::from_v4_bytes(v4.octets()),
            IpAddr::V6(v6) => Self::from_words(zerocopy::transmute!(v6.octets())),
        }
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_none() {
            f.write_str("-")
        } else {
            self.to_ip().fmt(f)
        }
    }
}

impl fmt::Debug for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn an_address_survives_the_round_trip() {
        for text in [
            "10.244.1.5",
            "0.0.0.1",
            "255.255.255.255",
            "fd00:10:244:1::5",
            "::1",
        ] {
            assert_eq!(addr(text).to_ip().to_string(), text);
        }
    }

    #[test]
    fn the_families_do_not_meet() {
        assert!(addr("10.0.0.1").is_v4());
        assert!(!addr("fd00::a00:1").is_v4());
        assert!(
            !addr("::10.0.0.1").is_v4(),
            "an IPv4-compatible address is not a mapped one"
        );
    }

    #[test]
    fn kinds_of_addresses() {
        for text in ["224.0.0.1", "239.255.255.250", "255.255.255.255", "ff02::1"] {
            assert!(addr(text).is_multicast(), "{text}");
        }
        for text in ["127.0.0.1", "0.0.0.0", "::", "::1", "fe80::1", "febf::1"] {
            assert!(addr(text).is_martian(), "{text}");
        }
        for text in ["10.0.0.1", "192.0.2.1", "fd00::1", "2001:db8::1", "fec0::1"] {
            assert!(
                !addr(text).is_martian() && !addr(text).is_multicast(),
                "{text}"
            );
        }
    }
}
