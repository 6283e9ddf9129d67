//! Host-scope IP address management: a node hands out the addresses of its own prefixes.
//!
//! Pools of IPv4 and IPv6 ranges, leases held by a container's interface, addresses reserved for
//! the node, and a rest for every address between two owners. All of it lives in one file, and
//! every operation is one durable transaction: after a `kill -9` or a power cut at any instant,
//! what was reported as done is there, no address has two owners, and at most the one operation
//! that was under way has happened unreported. [`Ipam::reconcile`] finds that one, and whatever
//! else was left behind, by asking which owners are alive.
//!
//! The file has one owner, who keeps it open: the node agent. Others ask the agent. A second
//! opener gets [`IpamError::Locked`], which names the process that has it.
//!
//! ```
//! use datapath_ipam::{Families, Ipam, IpamError, Options, Owner, PoolSpec};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("ipam.redb");
//! let ranges = vec!["10.0.1.0/24".parse()?, "fd00:1::/64".parse()?];
//! let pools = vec![PoolSpec { name: "default".to_owned(), ranges }];
//! let ipam = Ipam::open(&path, Options::new(pools))?;
//! ipam.reserve("default", "10.0.1.1".parse()?, "gateway")?;
//!
//! let owner = Owner::new("3f1c9a", "eth0")?;
//! let lease = match ipam.allocate("default", &owner, Families::OfPool) {
//!     Err(IpamError::AlreadyAllocated { lease }) => *lease, // CNI ADD was repeated
//!     outcome => outcome?,
//! };
//! assert_eq!(lease.addresses, ["10.0.1.2".parse::<std::net::IpAddr>()?, "fd00:1::1".parse()?]);
//!
//! ipam.reconcile(|lease| lease.boot_id == ipam.boot_id())?; // and its namespace still exists
//! ipam.release(&owner)?;
//! # Ok(())
//! # }
//! ```
//!
//! Where to read on: `ops.rs` is what an allocation does, `record.rs` is what the file holds.

#![forbid(unsafe_code)]

mod adopt;
mod clock;
mod error;
mod fault;
mod holder;
mod ipam;
mod layout;
mod lease;
mod ledger;
mod ops;
mod pool;
#[cfg(test)]
mod power_loss;
mod query;
mod record;
mod schema;
mod snapshot;
mod store;

pub use clock::{Clock, SystemClock};
pub use error::{Holder, Inconsistency, IpamError};
pub use ipam::{DEFAULT_COOLDOWN, Ipam, Options};
pub use layout::PoolSpec;
pub use lease::{Families, Lease, Owner, PoolUsage, Reservation};
pub use pool::{AddressRange, Family};
