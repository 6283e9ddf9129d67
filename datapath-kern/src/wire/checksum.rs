//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! Sums are of sixteen-bit words as they lie in memory: ones' complement addition does not mind
//! the byte order, so nothing is swapped. Differences are folded to sixteen bits.

use crate::abi::addr::Addr;

/// Folds a sum to sixteen bits.
#[inline(always)]
#[must_use]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    #[allow(
        clippy::cast_possible_truncation,
        reason = "two folds leave sixteen bits"
    )]
    {
        sum as u16
    }
}

/// Sum of the two halves of a word.
#[inline(always)]
const fn halves(word: u32) -> u32 {
    (word & 0xffff) + (word >> 16)
}

/// Sum of an address. What an IPv4 address is mapped by adds up to nothing, so that it need not be
/// told from an IPv6 address.
#[inline(always)]
#[must_use]
const fn sum(address: &Addr) -> u32 {
    let [a, b, c, d] = address.words();
    halves(a) + halves(b) + halves(c) + halves(d)
}

/// What replacing `old` by `new` adds to a sum.
#[inline(always)]
#[must_use]
pub const fn address_delta(old: &Addr, new: &Addr) -> u16 {
    fold(sum(new) + !fold(sum(old)) as u32)
}

/// What replacing the big-endian `old` by `new` adds to a sum.
#[inline(always)]
#[must_use]
pub const fn port_delta(old: u16, new: u16) -> u16 {
    fold(new.to_be() as u32 + !old.to_be() as u32)
}

/// A checksum field (in memory order) after `delta` was added to what it covers.
///
/// Equation 3 of RFC 1624: `~(~HC + m)`.
#[inline(always)]
#[must_use]
pub const fn adjust(checksum: u16, delta: u16) -> u16 {
    !fold(!checksum as u32 + delta as u32)
}

/// A checksum field after two differences of what it covers, of which either may be nothing.
#[inline(always)]
#[must_use]
pub const fn changed(checksum: u16, addresses: u16, rest: u16) -> u16 {
    let mut new = checksum;
    if !is_nothing(addresses) {
        new = adjust(new, addresses);
    }
    if !is_nothing(rest) {
        new = adjust(new, rest);
    }
    new
}

/// A checksum as it is written where zero stands for none (RFC 768).
#[inline(always)]
#[must_use]
pub const fn mangled(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

/// Whether a difference changes no sum: zero has two forms in ones' complement.
#[inline(always)]
#[must_use]
pub const fn is_nothing(delta: u16) -> bool {
    delta == 0 || delta == 0xffff
}

/// Whether a transport checksum is left to hardware, so that its field holds the sum of the pseudo
/// header as it is: `before` the kernel made up for a difference of the addresses, and `after`.
///
/// What the kernel adds to a sum, it takes from a checksum. Modulo 65535, which is odd, the two
/// outcomes differ for every `delta` that is not [nothing](is_nothing).
#[inline(always)]
#[must_use]
pub const fn is_seed(before: u16, after: u16, delta: u16) -> bool {
    are_same(after, fold(before as u32 + delta as u32))
}

/// Whether two sums are the same.
#[inline(always)]
#[must_use]
pub const fn are_same(left: u16, right: u16) -> bool {
    left == right || is_nothing(left) && is_nothing(right)
}

/// Checksum over `words` (in memory order) and a sum to begin with.
#[inline(always)]
#[must_use]
pub fn over<const N: usize>(words: &[u16; N], seed: u32) -> u16 {
    let mut sum = seed;
    for word in words {
        sum += u32::from(*word);
    }
    !fold(sum)
}

/// Sum of the pseudo header of a transport over IPv4 (RFC 9293, section 3.1) or IPv6 (RFC 8200,
/// section 8.1), which add up to the same.
#[inline(always)]
#[must_use]
pub const fn pseudo(source: &Addr, destination: &Addr, length: u16, protocol: u8) -> u32 {
    fold(sum(source) + sum(destination)) as u32
        + length.to_be() as u32
        + (protocol as u16).to_be() as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;
    use proptest::prelude::*;

    fn full(bytes: &[u8]) -> u16 {
        let sum: u32 = bytes
            .chunks(2)
            .map(|c| u32::from(u16::from_ne_bytes([c[0], c[1]])))
            .sum();
        !fold(sum)
    }

    proptest! {
        #[test]
        fn an_update_equals_a_new_sum(
            mut bytes in proptest::collection::vec(any::<u8>(), 40..=40),
            to in any::<[u8; 4]>(),
            port in any::<u16>(),
        ) {
            let before = full(&bytes);
            let old = Addr::from_v4_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]);
            let old_port = u16::from_be_bytes([bytes[20], bytes[21]]);
            let new = Addr::from_v4_bytes(to);
            bytes[12..16].copy_from_slice(&to);
            bytes[20..22].copy_from_slice(&port.to_be_bytes());
            let updated = adjust(adjust(before, address_delta(&old, &new)), port_delta(old_port, port));
            let after = full(&bytes);
            // All ones and all zeros are the same sum.
            prop_assert!(updated == after || updated == !after && (after == 0 || after == 0xffff));
        }

        #[test]
        fn a_seed_is_told_from_a_checksum(before in any::<u16>(), delta in 1..0xffff_u16) {
            let seed = fold(u32::from(before) + u32::from(delta));
            let checksum = adjust(before, delta);
            // Where none is not to be made, all zeros are written as all ones.
            for (seed, checksum) in [(seed, checksum), (mangled(seed), mangled(checksum))] {
                prop_assert!(is_seed(before, seed, delta));
                prop_assert!(!is_seed(before, checksum, delta));
            }
        }

        #[test]
        fn ipv6_addresses_count_in_full(old in any::<[u8; 16]>(), new in any::<[u8; 16]>()) {
            let (old_addr, new_addr) = (Addr::from(IpAddr::from(old)), Addr::from(IpAddr::from(new)));
            prop_assume!(!old_addr.is_v4() && !new_addr.is_v4());
            let updated = adjust(full(&old), address_delta(&old_addr, &new_addr));
            let after = full(&new);
            prop_assert!(updated == after || updated == !after && (after == 0 || after == 0xffff));
        }
    }
}
