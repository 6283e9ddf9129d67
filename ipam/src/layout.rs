//! The pools as configured, validated.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::error::IpamError;
use crate::pool::{AddressRange, Family};

/// A named list of prefixes that addresses are given from.
///
/// A pool may have several ranges of a family; they are used up in the order given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolSpec {
    /// Name: 1 to 63 letters, digits, `.`, `_` or `-`.
    pub name: String,
    /// Prefixes without host bits, such as `10.0.1.0/24` and `fd00:1::/64`.
    pub ranges: Vec<IpNet>,
}

/// Pools with unique names and disjoint ranges that pods can use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pools: Vec<Pool>,
}

/// One pool: a name and at least one range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pool {
    pub(crate) name: String,
    ranges: Vec<AddressRange>,
}

impl Layout {
    pub(crate) fn new(specs: &[PoolSpec]) -> Result<Self, IpamError> {
        let mut pools: Vec<Pool> = Vec::new();
        for spec in specs {
            let pool = Pool::new(spec)?;
            if pools.iter().any(|known| known.name == pool.name) {
                return Err(IpamError::DuplicatePool { pool: pool.name });
            }
            pools.push(pool);
        }
        if pools.is_empty() {
            return Err(IpamError::NoPools);
        }
        let layout = Self { pools };
        layout.refuse_overlaps()?;
        Ok(layout)
    }

    pub(crate) fn pool(&self, name: &str) -> Result<&Pool, IpamError> {
        self.pools
            .iter()
            .find(|pool| pool.name == name)
            .ok_or_else(|| IpamError::UnknownPool {
                pool: name.to_owned(),
                known: self.pools.iter().map(|pool| pool.name.clone()).collect(),
            })
    }

    /// Every range with its pool, in the order configured.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (&Pool, &AddressRange)> {
        self.pools
            .iter()
            .flat_map(|pool| pool.ranges.iter().map(move |range| (pool, range)))
    }

    /// Tells whether the address is usable in the pool of this name.
    pub(crate) fn covers(&self, pool: &str, address: IpAddr) -> bool {
        self.pool(pool).is_ok_and(|pool| pool.holds(address))
    }

    pub(crate) fn specs(&self) -> Vec<PoolSpec> {
        self.pools
            .iter()
            .map(|pool| PoolSpec {
                name: pool.name.clone(),
                ranges: pool.ranges.iter().map(AddressRange::net).collect(),
            })
            .collect()
    }

    fn refuse_overlaps(&self) -> Result<(), IpamError> {
        let mut seen: Vec<(&Pool, IpNet)> = Vec::new();
        for (pool, range) in self.ranges() {
            let net = range.net();
            for (other_pool, other) in &seen {
                // Whole prefixes, not usable addresses: 10.0.0.0/32 lies within 10.0.0.0/24.
                if net.contains(other) || other.contains(&net) {
                    return Err(IpamError::Overlap {
                        pool: pool.name.clone(),
                        range: net,
                        other_pool: other_pool.name.clone(),
                        other: *other,
                    });
                }
            }
            seen.push((pool, net));
        }
        Ok(())
    }
}

impl Pool {
    fn new(spec: &PoolSpec) -> Result<Self, IpamError> {
        let name = spec.name.clone();
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if name.is_empty() || name.len() > 63 || !name.chars().all(legal) {
            return Err(IpamError::InvalidName {
                what: "pool name",
                value: name,
                rule: "use 1 to 63 letters, digits, `.`, `_` or `-`",
            });
        }
        if spec.ranges.is_empty() {
            return Err(IpamError::EmptyPool { pool: name });
        }
        let ranges = spec
            .ranges
            .iter()
            .map(|net| usable_range(&name, *net))
            .collect::<Result<_, _>>()?;
        Ok(Self { name, ranges })
    }

    /// The families that the pool has ranges of, IPv4 first.
    pub(crate) fn families(&self) -> Vec<Family> {
        [Family::V4, Family::V6]
            .into_iter()
            .filter(|family| self.of_family(*family).next().is_some())
            .collect()
    }

    /// The ranges of one family, in the order in which they are used up.
    pub(crate) fn of_family(&self, family: Family) -> impl Iterator<Item = &AddressRange> {
        self.ranges
            .iter()
            .filter(move |range| range.family() == family)
    }

    /// Refuses an address that is none of the pool's usable ones.
    pub(crate) fn require(&self, address: IpAddr) -> Result<(), IpamError> {
        if self.holds(address) {
            return Ok(());
        }
        Err(IpamError::NotInPool {
            pool: self.name.clone(),
            address,
        })
    }

    fn holds(&self, address: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(address))
    }
}

fn usable_range(pool: &str, net: IpNet) -> Result<AddressRange, IpamError> {
    if net != net.trunc() {
        return Err(IpamError::HostBits {
            pool: pool.to_owned(),
            range: net,
        });
    }
    let range = AddressRange::new(net);
    match UNSUITABLE.iter().find(|(block, _)| range.meets(*block)) {
        None => Ok(range),
        Some((block, kind)) => Err(IpamError::UnsuitableRange {
            pool: pool.to_owned(),
            range: net,
            block: *block,
            kind,
        }),
    }
}

/// Blocks of the special-purpose registries (RFC 6890) that a pod cannot have an address of.
/// Private, shared and reserved (240.0.0.0/4) space is in use for pods and not listed.
const UNSUITABLE: [(IpNet, &str); 10] = [
    (v4(0, 0, 0, 0, 8), "this network"),
    (v4(127, 0, 0, 0, 8), "loopback"),
    (v4(169, 254, 0, 0, 16), "link-local"),
    (v4(224, 0, 0, 0, 4), "multicast"),
    (v4(255, 255, 255, 255, 32), "limited broadcast"),
    (v6(0, 128), "unspecified"),
    (v6(1, 128), "loopback"),
    (v6(0xffff << 32, 96), "IPv4-mapped"),
    (v6(0xfe80 << 112, 10), "link-local"),
    (v6(0xff00 << 112, 8), "multicast"),
];

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix_len: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix_len))
}

const fn v6(bits: u128, prefix_len: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::from_bits(bits), prefix_len))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn spec(name: &str, ranges: &[&str]) -> PoolSpec {
        PoolSpec {
            name: name.to_owned(),
            ranges: ranges.iter().map(|net| net.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn several_ranges_per_family_keep_their_order() {
        let given = [
            spec("default", &["10.0.9.0/24", "fd00:1::/64", "10.0.1.0/24"]),
            spec("big", &["240.0.0.0/4", "100.64.0.0/10"]),
        ];
        let layout = Layout::new(&given).unwrap();
        assert_eq!(layout.specs(), given);
        let pool = layout.pool("default").unwrap();
        assert_eq!(pool.families(), [Family::V4, Family::V6]);
        let v4: Vec<_> = pool
            .of_family(Family::V4)
            .map(|r| r.net().to_string())
            .collect();
        assert_eq!(v4, ["10.0.9.0/24", "10.0.1.0/24"]);
        assert_eq!(layout.pool("big").unwrap().families(), [Family::V4]);
    }

    #[rstest]
    #[case(&[], "no pool is configured")]
    #[case(&[spec("a", &[])], "pool `a` has no range")]
    #[case(&[spec("a b", &["10.0.0.0/24"])], "pool name \"a b\"")]
    #[case(&[spec("", &["10.0.0.0/24"])], "pool name \"\"")]
    #[case(&[spec("a", &["10.0.0.0/24"]), spec("a", &["10.0.1.0/24"])], "configured twice")]
    #[case(&[spec("a", &["10.0.0.5/24"])], "write 10.0.0.0/24")]
    #[case(&[spec("a", &["10.0.0.0/24"]), spec("b", &["10.0.0.128/25"])],
        "range 10.0.0.128/25 of pool `b` overlaps 10.0.0.0/24 of pool `a`")]
    #[case(&[spec("a", &["10.0.0.128/25", "10.0.0.0/16"])], "overlaps 10.0.0.128/25")]
    #[case(&[spec("a", &["10.0.0.0/24", "10.0.0.0/32"])], "overlaps")]
    #[case(&[spec("a", &["fd00::/64", "fd00::/64"])], "overlaps")]
    #[case(&[spec("a", &["0.0.0.0/0"])], "this network")]
    #[case(&[spec("a", &["127.1.0.0/16"])], "loopback")]
    #[case(&[spec("a", &["169.254.0.0/24"])], "link-local")]
    #[case(&[spec("a", &["239.0.0.0/8"])], "multicast")]
    #[case(&[spec("a", &["255.255.255.254/31"])], "limited broadcast")]
    #[case(&[spec("a", &["::/0"])], "loopback")]
    #[case(&[spec("a", &["::/128"])], "unspecified")]
    #[case(&[spec("a", &["::ffff:10.0.0.0/120"])], "IPv4-mapped")]
    #[case(&[spec("a", &["fe80::/64"])], "link-local")]
    #[case(&[spec("a", &["ff02::/64"])], "multicast")]
    fn unusable_configuration_is_refused_by_name(
        #[case] specs: &[PoolSpec],
        #[case] expected: &str,
    ) {
        let message = Layout::new(specs).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }

    #[test]
    fn an_unknown_pool_is_answered_with_the_known_ones() {
        let layout =
            Layout::new(&[spec("a", &["10.0.0.0/24"]), spec("b", &["fd00::/64"])]).unwrap();
        let message = layout.pool("c").unwrap_err().to_string();
        assert_eq!(message, "there is no pool `c`; the pools are: a, b");
    }
}
