//! Arithmetic over one prefix.
//!
//! Nothing here is proportional to the size of a prefix: an IPv6 /64 costs what a /30 does.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Returns the family of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// A prefix seen as the addresses that may be given from it.
///
/// Of a prefix with more than two addresses, the first (network, subnet-router anycast) and the
/// last (broadcast) are left out, in both families, as in cilium's host-scope allocator: a /24 has
/// 254. Of a /31, /32, /127 or /128 every address is usable (RFC 3021, RFC 6164).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    net: IpNet,
}

impl AddressRange {
    /// Takes a prefix; host bits are cleared.
    #[must_use]
    pub fn new(net: IpNet) -> Self {
        Self { net: net.trunc() }
    }

    /// Returns the prefix.
    #[must_use]
    pub const fn net(&self) -> IpNet {
        self.net
    }

    /// Returns the family of the prefix.
    #[must_use]
    pub const fn family(&self) -> Family {
        match self.net {
            IpNet::V4(_) => Family::V4,
            IpNet::V6(_) => Family::V6,
        }
    }

    /// Returns the first usable address, by custom the gateway's.
    #[must_use]
    pub fn first(&self) -> IpAddr {
        from_bits(self.family(), *self.span().start())
    }

    /// Returns the last usable address.
    #[must_use]
    pub fn last(&self) -> IpAddr {
        from_bits(self.family(), *self.span().end())
    }

    /// Counts the usable addresses.
    #[must_use]
    pub fn capacity(&self) -> u128 {
        let span = self.span();
        // The whole of IPv6 lacks its first and last address, so the count still fits.
        span.end() - span.start() + 1
    }

    /// Tells whether an address is one of the usable ones.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.family() == Family::of(address) && self.span().contains(&to_bits(address))
    }

    /// Tells whether any usable address lies within `block`, all of which counts.
    pub(crate) fn meets(&self, block: IpNet) -> bool {
        let span = self.span();
        self.family() == Family::of(block.network())
            && *span.start() <= to_bits(block.broadcast())
            && to_bits(block.network()) <= *span.end()
    }

    /// The usable addresses as numbers.
    pub(crate) fn span(&self) -> RangeInclusive<u128> {
        let (first, last) = (to_bits(self.net.network()), to_bits(self.net.broadcast()));
        if last - first < 2 {
            first..=last
        } else {
            first + 1..=last - 1
        }
    }

    /// The usable addresses in the order in which they are tried: from the one after `last` to the
    /// end, then from the start up to `last` itself. Either part may be empty.
    pub(crate) fn round_from(&self, last: Option<IpAddr>) -> [RangeInclusive<u128>; 2] {
        let span = self.span();
        // An empty part, whatever the bounds.
        let nothing = RangeInclusive::new(1, 0);
        match last.filter(|last| self.contains(*last)).map(to_bits) {
            None => [span, nothing],
            Some(last) if last == *span.end() => [span, nothing],
            Some(last) => [last + 1..=*span.end(), *span.start()..=last],
        }
    }
}

/// Finds the first number of `span` that is not in `taken`, which must ascend within the span.
pub(crate) fn first_gap<E>(
    span: &RangeInclusive<u128>,
    taken: impl IntoIterator<Item = Result<u128, E>>,
) -> Result<Option<u128>, E> {
    if span.is_empty() {
        return Ok(None);
    }
    let mut candidate = *span.start();
    for number in taken {
        if number? != candidate {
            break;
        }
        if candidate == *span.end() {
            return Ok(None);
        }
        candidate += 1;
    }
    Ok(Some(candidate))
}

/// Reads an address as a number; IPv4 takes the low 32 bits.
pub(crate) fn to_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The reverse of [`to_bits`]; for IPv4 the high 96 bits are not looked at.
pub(crate) fn from_bits(family: Family, bits: u128) -> IpAddr {
    match family {
        Family::V4 => {
            let [.., a, b, c, d] = bits.to_be_bytes();
            Ipv4Addr::new(a, b, c, d).into()
        }
        Family::V6 => Ipv6Addr::from_bits(bits).into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn range(net: &str) -> AddressRange {
        AddressRange::new(net.parse().unwrap())
    }

    #[rstest]
    #[case("10.0.0.0/24", "10.0.0.1", "10.0.0.254", 254)]
    #[case("10.0.0.0/30", "10.0.0.1", "10.0.0.2", 2)]
    #[case("10.0.0.2/31", "10.0.0.2", "10.0.0.3", 2)]
    #[case("10.0.0.7/32", "10.0.0.7", "10.0.0.7", 1)]
    #[case("0.0.0.0/0", "0.0.0.1", "255.255.255.254", (1 << 32) - 2)]
    #[case("fd00::/64", "fd00::1", "fd00::ffff:ffff:ffff:fffe", (1 << 64) - 2)]
    #[case("fd00::/126", "fd00::1", "fd00::2", 2)]
    #[case("fd00::2/127", "fd00::2", "fd00::3", 2)]
    #[case("fd00::7/128", "fd00::7", "fd00::7", 1)]
    #[case("::/0", "::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe", u128::MAX - 1)]
    fn usable_addresses(
        #[case] net: &str,
        #[case] first: IpAddr,
        #[case] last: IpAddr,
        #[case] capacity: u128,
    ) {
        let range = range(net);
        assert_eq!(range.first(), first);
        assert_eq!(range.last(), last);
        assert_eq!(range.capacity(), capacity);
    }

    #[rstest]
    #[case("10.0.0.0", false)]
    #[case("10.0.0.1", true)]
    #[case("10.0.0.254", true)]
    #[case("10.0.0.255", false)]
    #[case("10.0.1.1", false)]
    #[case("::a00:1", false)]
    fn membership(#[case] address: IpAddr, #[case] expected: bool) {
        assert_eq!(range("10.0.0.0/24").contains(address), expected);
    }

    #[rstest]
    #[case(None, &[1, 2, 3, 4, 5, 6])]
    #[case(Some("10.0.0.1"), &[2, 3, 4, 5, 6, 1])]
    #[case(Some("10.0.0.4"), &[5, 6, 1, 2, 3, 4])]
    #[case(Some("10.0.0.6"), &[1, 2, 3, 4, 5, 6])]
    #[case(Some("10.9.9.9"), &[1, 2, 3, 4, 5, 6])]
    fn round_robin_order(#[case] last: Option<&str>, #[case] order: &[u128]) {
        let base = to_bits("10.0.0.0".parse().unwrap());
        let last = last.map(|last| last.parse().unwrap());
        let tried: Vec<u128> = range("10.0.0.0/29")
            .round_from(last)
            .into_iter()
            .flatten()
            .map(|bits| bits - base)
            .collect();
        assert_eq!(tried, order);
    }

    #[test]
    fn a_gap_at_the_top_of_the_number_space_is_found_without_overflow() {
        let span = u128::MAX - 1..=u128::MAX;
        let gap = |taken: &[u128]| first_gap(&span, taken.iter().map(|n| Ok::<_, ()>(*n)));
        assert_eq!(gap(&[]), Ok(Some(u128::MAX - 1)));
        assert_eq!(gap(&[u128::MAX - 1]), Ok(Some(u128::MAX)));
        assert_eq!(gap(&[u128::MAX - 1, u128::MAX]), Ok(None));
    }

    proptest! {
        #[test]
        fn the_gap_is_the_least_number_not_taken(
            start in 0_u128..20,
            len in 0_u128..20,
            taken in proptest::collection::btree_set(0_u128..40, 0..40),
        ) {
            let span = start..=start + len;
            let within: Vec<u128> = taken.iter().copied().filter(|n| span.contains(n)).collect();
            let expected = span.clone().find(|n| !taken.contains(n));
            prop_assert_eq!(first_gap(&span, within.into_iter().map(Ok::<_, ()>)), Ok(expected));
        }

        #[test]
        fn numbers_and_addresses_convert_back(v4: u32, v6: u128) {
            let (v4, v6) = (IpAddr::from(Ipv4Addr::from_bits(v4)), IpAddr::from(Ipv6Addr::from_bits(v6)));
            prop_assert_eq!(from_bits(Family::V4, to_bits(v4)), v4);
            prop_assert_eq!(from_bits(Family::V6, to_bits(v6)), v6);
        }
    }
}
