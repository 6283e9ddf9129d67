//! What can go wrong, as data.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;

use crate::lease::{Lease, Owner};
use crate::pool::Family;

/// Every failure of this crate.
///
/// An operation that returns an error has changed nothing, with one exception: after
/// [`Storage`](Self::Storage) from a failed commit, only a reopened store can tell whether the
/// change was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IpamError {
    /// The pool has no address to give in this family.
    #[error(
        "pool `{pool}` has no free {family} address: {used} leased, {reserved} reserved, \
         {cooling} cooling down{}; add a range to the pool or remove pods",
        NextFree(*next_free_in_s)
    )]
    Exhausted {
        /// Pool that was asked.
        pool: String,
        /// Family that ran out.
        family: Family,
        /// Addresses held by leases.
        used: u64,
        /// Addresses held by reservations.
        reserved: u64,
        /// Addresses released too recently to be given again.
        cooling: u64,
        /// Seconds until the first of the cooling addresses may be given again.
        next_free_in_s: Option<u64>,
    },

    /// The owner holds a lease already. Whether that is a repeat or a mistake, the caller decides.
    #[error("{} already holds {} from pool `{}`; release it first", lease.owner, Addresses(&lease.addresses), lease.pool)]
    AlreadyAllocated {
        /// The lease held.
        lease: Box<Lease>,
    },

    /// The address is none of the pool's usable ones.
    #[error(
        "{address} is not a usable address of pool `{pool}`; the network and broadcast addresses \
         of a range are not usable"
    )]
    NotInPool {
        /// Pool that was asked.
        pool: String,
        /// Address that was asked for.
        address: IpAddr,
    },

    /// The address is leased.
    #[error("{address} is leased to {owner}; release that lease first")]
    InUse {
        /// Address that was asked for.
        address: IpAddr,
        /// Who holds it.
        owner: Owner,
    },

    /// The address is reserved.
    #[error("{address} is reserved for `{purpose}`; unreserve it first")]
    Reserved {
        /// Address that was asked for.
        address: IpAddr,
        /// What it is reserved for.
        purpose: String,
    },

    /// The address was released too recently, and by someone else.
    #[error("{address} was released a moment ago and is free again in {free_in_s} s")]
    CoolingDown {
        /// Address that was asked for.
        address: IpAddr,
        /// Seconds until it may be given again.
        free_in_s: u64,
    },

    /// No pool has this name.
    #[error("there is no pool `{pool}`; the pools are: {}", known.join(", "))]
    UnknownPool {
        /// Name that was asked for.
        pool: String,
        /// Names that exist.
        known: Vec<String>,
    },

    /// The pool has no range of a family that was asked for.
    #[error("pool `{pool}` has no {family} range; add one, or ask for the other family only")]
    NoSuchFamily {
        /// Pool that was asked.
        pool: String,
        /// Family it lacks.
        family: Family,
    },

    /// A request for specific addresses named none of them, or several of one family.
    #[error(
        "{count} {family} addresses asked for; a lease holds one or two, of different families"
    )]
    RequestShape {
        /// Family with too many or too few addresses.
        family: Family,
        /// How many were named.
        count: usize,
    },

    /// A name does not follow its rule.
    #[error("{what} {value:?} is not usable: {rule}")]
    InvalidName {
        /// Which name: `container id`, `interface name`, `pool name` or `purpose`.
        what: &'static str,
        /// The text as given.
        value: String,
        /// The rule it breaks.
        rule: &'static str,
    },

    /// The options name no pool.
    #[error("no pool is configured; name at least one pool with one range")]
    NoPools,

    /// Two pools have one name.
    #[error("pool `{pool}` is configured twice; list all of its ranges under one entry")]
    DuplicatePool {
        /// The name.
        pool: String,
    },

    /// A pool has no range.
    #[error("pool `{pool}` has no range; give it at least one, or remove it")]
    EmptyPool {
        /// The pool.
        pool: String,
    },

    /// A range has bits set beyond its prefix.
    #[error("range {range} of pool `{pool}` has host bits set; write {}", range.trunc())]
    HostBits {
        /// The pool.
        pool: String,
        /// The range as given.
        range: IpNet,
    },

    /// A range holds addresses that no pod can use.
    #[error(
        "range {range} of pool `{pool}` holds {block} addresses ({}); choose another",
        kind
    )]
    UnsuitableRange {
        /// The pool.
        pool: String,
        /// The range as given.
        range: IpNet,
        /// Special block that it meets.
        block: IpNet,
        /// What that block is for.
        kind: &'static str,
    },

    /// Two ranges share addresses.
    #[error(
        "range {range} of pool `{pool}` overlaps {other} of pool `{other_pool}`; every address \
         belongs to one range"
    )]
    Overlap {
        /// The pool.
        pool: String,
        /// The range as given.
        range: IpNet,
        /// Pool of the other range.
        other_pool: String,
        /// The other range.
        other: IpNet,
    },

    /// The options drop a range, or move it to another pool, while it has leases.
    #[error(
        "range {range} of pool `{pool}` still has {leases} leased address(es) that the new \
         configuration leaves out; keep the range until they are released"
    )]
    RangeInUse {
        /// Pool that has the range on disk.
        pool: String,
        /// Range on disk.
        range: IpNet,
        /// Leased addresses that would be left outside.
        leases: u64,
    },

    /// Another process, or another handle of this one, has the store open.
    #[error(
        "address store {} is open in {}; it has one owner at a time, normally the node agent: \
         ask through the agent's socket, or stop the agent first",
        path.display(),
        Held(holder.as_ref())
    )]
    Locked {
        /// The store.
        path: PathBuf,
        /// Who has it, where the kernel tells.
        holder: Option<Holder>,
    },

    /// There is no store at the path, and none was to be made.
    #[error(
        "there is no address store at {}; it is made when the agent starts with its pools",
        path.display()
    )]
    NoStore {
        /// Path that was given.
        path: PathBuf,
    },

    /// The file is something else than an address store.
    #[error("{} is not an address store; give another path, or move that file away", path.display())]
    NotAStore {
        /// The file.
        path: PathBuf,
        /// What the storage engine said, if it was the one to refuse.
        #[source]
        source: Option<Box<redb::Error>>,
    },

    /// The store was written by a version of this crate that this one does not know.
    #[error(
        "address store {} has schema {found}, and this version reads schema {supported}; run the \
         version that wrote it, or move the file away and let the agent rebuild it from the live \
         pods",
        path.display()
    )]
    UnknownSchema {
        /// The store.
        path: PathBuf,
        /// Schema on disk.
        found: u64,
        /// Schema of this version.
        supported: u64,
    },

    /// A stored record cannot be read.
    #[error(
        "address store {}: record {record} is unreadable; move the file away and let the agent \
         rebuild it from the live pods",
        path.display()
    )]
    Record {
        /// The store.
        path: PathBuf,
        /// Table and key of the record.
        record: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },

    /// Two records of the store contradict one another.
    #[error(
        "address store {} contradicts itself: {inconsistency}; move the file away and let the \
         agent rebuild it from the live pods",
        path.display()
    )]
    Inconsistent {
        /// The store.
        path: PathBuf,
        /// The contradiction.
        inconsistency: Inconsistency,
    },

    /// The storage engine failed. After an input or output error the store must be reopened.
    #[error("{operation}: address store {} failed; check the disk, then reopen it", path.display())]
    Storage {
        /// What was being done.
        operation: &'static str,
        /// The store.
        path: PathBuf,
        /// The engine's error.
        #[source]
        source: Box<redb::Error>,
    },

    /// A file operation around the store failed.
    #[error("{operation} {}", path.display())]
    File {
        /// What was being done.
        operation: &'static str,
        /// File or directory concerned.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// A contradiction between records, which only a foreign writer or a defect can bring about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Inconsistency {
    /// An address names an owner whose lease does not name the address.
    #[error("{address} is marked as leased to {owner}, who has no such lease")]
    AddressWithoutLease {
        /// The address.
        address: IpAddr,
        /// The owner it names.
        owner: Owner,
    },
    /// A lease names an address that is not marked as its owner's.
    #[error("the lease of {owner} names {address}, which is not marked as theirs")]
    LeaseWithoutAddress {
        /// The address.
        address: IpAddr,
        /// The owner of the lease.
        owner: Owner,
    },
    /// An address is cooling down, but nothing will end that.
    #[error("{address} is cooling down without an end")]
    CoolingWithoutEnd {
        /// The address.
        address: IpAddr,
    },
    /// A cool-down is to end for an address that is not cooling down.
    #[error("{address} has the end of a cool-down and is not cooling down")]
    EndWithoutCooling {
        /// The address.
        address: IpAddr,
    },
    /// A configured range has no record.
    #[error("range {range} is configured and has no record")]
    RangeWithoutRecord {
        /// The range.
        range: IpNet,
    },
    /// A key is no address or prefix.
    #[error("key {key} of table `{table}` is no address")]
    Key {
        /// Table.
        table: &'static str,
        /// The key, in the engine's terms.
        key: String,
    },
}

/// The process that has a store open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Process id, as seen in this pid namespace.
    pub pid: u32,
    /// Name of the process, where `/proc` tells.
    pub name: Option<String>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "process {} ({name})", self.pid),
            None => write!(f, "process {}", self.pid),
        }
    }
}

struct NextFree(Option<u64>);

impl fmt::Display for NextFree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(seconds) => write!(f, ", the next of them free in {seconds} s"),
            None => Ok(()),
        }
    }
}

struct Addresses<'a>(&'a [IpAddr]);

impl fmt::Display for Addresses<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, address) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(" and ")?;
            }
            address.fmt(f)?;
        }
        Ok(())
    }
}

struct Held<'a>(Option<&'a Holder>);

impl fmt::Display for Held<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(holder) => holder.fmt(f),
            None => f.write_str("another process"),
        }
    }
}
