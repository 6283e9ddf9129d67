//! Version of the store as a whole.
//!
//! There is one version so far. A later one adds a step that brings the one before it up to date,
//! inside the transaction of [`check`], so that a store is never half migrated.

use std::path::Path;

use redb::{ReadableTable, WriteTransaction};

use crate::error::IpamError;
use crate::fault::Fault;
use crate::record::{ADDRESSES, COOLING, META, OWNERS, RANGES};

/// The version that this crate writes.
pub(crate) const SCHEMA: u64 = 1;

const SCHEMA_KEY: &str = "schema";
const COOLDOWN_KEY: &str = "cooldown_s";

/// Makes the tables of an empty store.
pub(crate) fn create(txn: &WriteTransaction) -> Result<(), Fault> {
    txn.open_table(META)?.insert(SCHEMA_KEY, SCHEMA)?;
    txn.open_table(ADDRESSES)?;
    txn.open_table(OWNERS)?;
    txn.open_table(COOLING)?;
    txn.open_table(RANGES)?;
    Ok(())
}

/// Refuses a store of another version, or a database that is no store at all.
pub(crate) fn check(txn: &redb::ReadTransaction, path: &Path) -> Result<(), Fault> {
    let not_a_store = || IpamError::NotAStore {
        path: path.to_owned(),
        source: None,
    };
    let meta = match txn.open_table(META) {
        Ok(meta) => meta,
        Err(redb::TableError::Storage(source)) => return Err(source.into()),
        Err(_) => return Err(not_a_store().into()),
    };
    match meta.get(SCHEMA_KEY)?.map(|found| found.value()) {
        Some(SCHEMA) => Ok(()),
        Some(found) => Err(IpamError::UnknownSchema {
            path: path.to_owned(),
            found,
            supported: SCHEMA,
        }
        .into()),
        None => Err(not_a_store().into()),
    }
}

/// Reads the length of the cool-down, if one was ever set.
pub(crate) fn cooldown_s(txn: &redb::ReadTransaction) -> Result<Option<u64>, Fault> {
    let length_s = txn.open_table(META)?.get(COOLDOWN_KEY)?;
    Ok(length_s.map(|length_s| length_s.value()))
}

/// Writes the length of the cool-down. Returns whether it is another one than before.
pub(crate) fn set_cooldown_s(txn: &WriteTransaction, length_s: u64) -> Result<bool, Fault> {
    let mut meta = txn.open_table(META)?;
    let before = meta.get(COOLDOWN_KEY)?.map(|length_s| length_s.value());
    if before == Some(length_s) {
        return Ok(false);
    }
    meta.insert(COOLDOWN_KEY, length_s)?;
    Ok(true)
}
