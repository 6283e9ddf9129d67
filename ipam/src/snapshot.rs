//! The tables open for reading.

use redb::{ReadOnlyTable, ReadTransaction};

use crate::fault::Fault;
use crate::record::{ADDRESSES, AddressKey, Bytes, OWNERS, OwnerKey, RANGES, RangeKey};

/// One consistent state of the tables, which later transactions do not change.
pub(crate) struct Snapshot {
    pub(crate) addresses: ReadOnlyTable<AddressKey, Bytes>,
    pub(crate) owners: ReadOnlyTable<OwnerKey, Bytes>,
    pub(crate) ranges: ReadOnlyTable<RangeKey, Bytes>,
}

impl Snapshot {
    pub(crate) fn open(txn: &ReadTransaction) -> Result<Self, Fault> {
        Ok(Self {
            addresses: txn.open_table(ADDRESSES)?,
            owners: txn.open_table(OWNERS)?,
            ranges: txn.open_table(RANGES)?,
        })
    }
}
