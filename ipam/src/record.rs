//! Tables of the store, and how their keys and values are written.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | name | number: `schema`, `cooldown_s` |
//! | `addresses` | family (4 or 6), address as a number | [`AddressRecord`]: the one state of an address that is not free |
//! | `owners` | container id, interface name | [`LeaseRecord`] |
//! | `cooling` | release time in seconds, family, address | nothing: the order in which cool-downs end |
//! | `ranges` | family, network as a number, prefix length | [`RangeRecord`] |
//!
//! Values are JSON under their version, `{"1":{..}}`, so that a store can be read by eye and a
//! later form can stand beside this one.

use std::net::IpAddr;

use ipnet::IpNet;
use redb::TableDefinition;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::Inconsistency;
use crate::fault::Fault;
use crate::lease::{Lease, Owner};
use crate::pool::{Family, from_bits, to_bits};

pub(crate) type AddressKey = (u8, u128);
pub(crate) type OwnerKey = (&'static str, &'static str);
pub(crate) type CoolingKey = (u64, u8, u128);
pub(crate) type RangeKey = (u8, u128, u8);
pub(crate) type Bytes = &'static [u8];

pub(crate) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
pub(crate) const ADDRESSES: TableDefinition<'_, AddressKey, Bytes> =
    TableDefinition::new("addresses");
pub(crate) const OWNERS: TableDefinition<'_, OwnerKey, Bytes> = TableDefinition::new("owners");
pub(crate) const COOLING: TableDefinition<'_, CoolingKey, ()> = TableDefinition::new("cooling");
pub(crate) const RANGES: TableDefinition<'_, RangeKey, Bytes> = TableDefinition::new("ranges");

/// The state of an address that is not free. An address has one record, hence one state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum AddressRecord {
    Leased {
        pool: String,
        owner: Owner,
    },
    Reserved {
        pool: String,
        purpose: String,
    },
    Cooling {
        pool: String,
        released_s: u64,
        /// The last owner of a lease, who may have the address back at once.
        owner: Option<Owner>,
    },
}

impl AddressRecord {
    pub(crate) fn pool(&self) -> &str {
        match self {
            Self::Leased { pool, .. }
            | Self::Reserved { pool, .. }
            | Self::Cooling { pool, .. } => pool,
        }
    }
}

/// A lease without its owner, who is the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LeaseRecord {
    pool: String,
    addresses: Vec<IpAddr>,
    boot_id: String,
    created_s: u64,
}

impl LeaseRecord {
    pub(crate) fn new(lease: &Lease) -> Self {
        Self {
            pool: lease.pool.clone(),
            addresses: lease.addresses.clone(),
            boot_id: lease.boot_id.clone(),
            created_s: lease.created_s,
        }
    }

    pub(crate) fn of(self, owner: Owner) -> Lease {
        Lease {
            pool: self.pool,
            owner,
            addresses: self.addresses,
            boot_id: self.boot_id,
            created_s: self.created_s,
        }
    }
}

/// What is remembered of a range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RangeRecord {
    pub(crate) pool: String,
    /// Place in the configuration, counted over all pools.
    pub(crate) position: u64,
    /// The address handed out last; the next search starts behind it.
    pub(crate) last: Option<IpAddr>,
}

/// The versions a value may be written in.
#[derive(Serialize, Deserialize)]
enum Versioned<T> {
    #[serde(rename = "1")]
    V1(T),
}

/// Writes a value in the present version. `record` names it in errors.
pub(crate) fn encode(value: &impl Serialize, record: &str) -> Result<Vec<u8>, Fault> {
    serde_json::to_vec(&Versioned::V1(value)).map_err(|source| Fault::Record {
        record: record.to_owned(),
        source,
    })
}

/// Reads a value in any version. `record` names it in errors.
pub(crate) fn decode<T: DeserializeOwned>(
    bytes: &[u8],
    record: impl FnOnce() -> String,
) -> Result<T, Fault> {
    match serde_json::from_slice(bytes) {
        Ok(Versioned::V1(value)) => Ok(value),
        Err(source) => Err(Fault::Record {
            record: record(),
            source,
        }),
    }
}

pub(crate) fn family_tag(family: Family) -> u8 {
    match family {
        Family::V4 => 4,
        Family::V6 => 6,
    }
}

pub(crate) fn address_key(address: IpAddr) -> AddressKey {
    (family_tag(Family::of(address)), to_bits(address))
}

pub(crate) fn read_address(table: &'static str, key: AddressKey) -> Result<IpAddr, Inconsistency> {
    let address = match key.0 {
        4 => Some(from_bits(Family::V4, key.1)),
        6 => Some(from_bits(Family::V6, key.1)),
        _ => None,
    };
    address
        .filter(|address| to_bits(*address) == key.1)
        .ok_or_else(|| bad_key(table, &key))
}

pub(crate) fn cooling_key(released_s: u64, address: IpAddr) -> CoolingKey {
    let (family, bits) = address_key(address);
    (released_s, family, bits)
}

pub(crate) fn range_key(net: IpNet) -> RangeKey {
    let (family, bits) = address_key(net.network());
    (family, bits, net.prefix_len())
}

pub(crate) fn read_range(key: RangeKey) -> Result<IpNet, Inconsistency> {
    let network = read_address("ranges", (key.0, key.1))?;
    IpNet::new(network, key.2).map_err(|_| bad_key("ranges", &key))
}

fn bad_key(table: &'static str, key: &impl std::fmt::Debug) -> Inconsistency {
    Inconsistency::Key {
        table,
        key: format!("{key:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stores written by released versions must stay readable: these texts may not change.
    #[test]
    fn the_written_form_is_fixed() {
        let owner = Owner::new("c1", "eth0").unwrap();
        let pool = || "p".to_owned();
        let lease = Lease {
            pool: pool(),
            owner: owner.clone(),
            addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            boot_id: "b".to_owned(),
            created_s: 7,
        };
        let text = |value: Vec<u8>| String::from_utf8(value).unwrap();
        let address = |record: &AddressRecord| text(encode(record, "x").unwrap());

        assert_eq!(
            address(&AddressRecord::Leased {
                pool: pool(),
                owner: owner.clone()
            }),
            r#"{"1":{"leased":{"pool":"p","owner":{"container_id":"c1","ifname":"eth0"}}}}"#
        );
        assert_eq!(
            address(&AddressRecord::Reserved {
                pool: pool(),
                purpose: "gateway".to_owned()
            }),
            r#"{"1":{"reserved":{"pool":"p","purpose":"gateway"}}}"#
        );
        assert_eq!(
            address(&AddressRecord::Cooling {
                pool: pool(),
                released_s: 9,
                owner: None
            }),
            r#"{"1":{"cooling":{"pool":"p","released_s":9,"owner":null}}}"#
        );
        let record = LeaseRecord::new(&lease);
        let bytes = encode(&record, "x").unwrap();
        assert_eq!(
            text(bytes.clone()),
            r#"{"1":{"pool":"p","addresses":["10.0.0.1","fd00::1"],"boot_id":"b","created_s":7}}"#
        );
        assert_eq!(
            decode::<LeaseRecord>(&bytes, String::new)
                .unwrap()
                .of(owner),
            lease
        );
    }

    #[test]
    fn a_value_of_an_unknown_version_is_refused_with_its_name() {
        let refused = decode::<RangeRecord>(br#"{"2":{}}"#, || "ranges 10.0.0.0/24".to_owned());
        let Err(Fault::Record { record, source }) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(record, "ranges 10.0.0.0/24");
        assert!(
            source.to_string().contains("unknown variant `2`"),
            "{source}"
        );
    }

    #[test]
    fn keys_that_are_no_address_are_refused() {
        for key in [(5, 1), (4, 1 << 32), (0, 0)] {
            assert!(matches!(
                read_address("addresses", key),
                Err(Inconsistency::Key {
                    table: "addresses",
                    ..
                })
            ));
        }
        assert!(read_range((4, 0x0a00_0000, 33)).is_err());
        assert_eq!(
            read_range((4, 0x0a00_0000, 24)).unwrap(),
            "10.0.0.0/24".parse::<IpNet>().unwrap()
        );
    }
}
