//! The address manager itself: one method per operation, each one transaction.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, info};

use crate::adopt;
use crate::clock::{self, Clock, SystemClock};
use crate::error::IpamError;
use crate::layout::{Layout, Pool, PoolSpec};
use crate::lease::{Families, Lease, Owner, PoolUsage, Reservation};
use crate::pool::AddressRange;
use crate::query::{self, Cooldown, Tally};
use crate::store::Store;

/// Cool-down of [`Options::new`].
pub const DEFAULT_COOLDOWN: Duration = Duration::from_mins(1);

/// How to open a store.
#[derive(Clone, Debug)]
pub struct Options {
    /// The pools. They replace what the store was opened with before; a range that still has
    /// leases must stay.
    pub pools: Vec<PoolSpec>,
    /// How long an address rests after its release. Rounded up to whole seconds.
    pub cooldown: Duration,
    /// Where the time comes from.
    pub clock: Arc<dyn Clock>,
    /// Id of this boot, written into leases. `None` reads it from the kernel.
    pub boot_id: Option<String>,
}

impl Options {
    /// Takes the pools; the rest is [`DEFAULT_COOLDOWN`], the system's clock and the kernel's
    /// boot id.
    #[must_use]
    pub fn new(pools: Vec<PoolSpec>) -> Self {
        Self {
            pools,
            cooldown: DEFAULT_COOLDOWN,
            clock: Arc::new(SystemClock),
            boot_id: None,
        }
    }
}

/// A node's addresses, and who has them.
///
/// Shared by reference between threads; writers take turns. What a method reports as done is on
/// disk. There is no state in memory beside the configuration, so there is none to lose.
pub struct Ipam {
    store: Store,
    layout: Layout,
    cooldown_s: u64,
    clock: Arc<dyn Clock>,
    boot_id: String,
}

impl Ipam {
    /// Opens the store at `path`, or makes it, readable by its owner only. The directory must
    /// exist. Verifies what is in the store, then fits it to the pools given.
    ///
    /// Ranges may be added, dropped, moved between pools and resized as long as every leased
    /// address stays a usable one of the pool it is from. Reservations and cool-downs of a dropped
    /// range go with it.
    ///
    /// # Errors
    ///
    /// - [`Locked`](IpamError::Locked): another process, or this one, has the store open;
    /// - [`RangeInUse`](IpamError::RangeInUse): the pools leave out a leased address;
    /// - [`NoPools`](IpamError::NoPools), [`EmptyPool`](IpamError::EmptyPool),
    ///   [`DuplicatePool`](IpamError::DuplicatePool), [`InvalidName`](IpamError::InvalidName),
    ///   [`HostBits`](IpamError::HostBits), [`UnsuitableRange`](IpamError::UnsuitableRange),
    ///   [`Overlap`](IpamError::Overlap): the pools cannot be used;
    /// - [`NotAStore`](IpamError::NotAStore), [`UnknownSchema`](IpamError::UnknownSchema),
    ///   [`Record`](IpamError::Record), [`Inconsistent`](IpamError::Inconsistent): the file cannot;
    /// - [`File`](IpamError::File), [`Storage`](IpamError::Storage): the system failed.
    pub fn open(path: impl AsRef<Path>, options: Options) -> Result<Self, IpamError> {
        let layout = Layout::new(&options.pools)?;
        Self::over(
            Store::open_or_create(path.as_ref())?,
            layout,
            whole_seconds(options.cooldown),
            options,
        )
    }

    /// Opens a store with the pools and the cool-down it was last opened with. For tools that must
    /// work while the agent, who knows the configuration, is stopped.
    ///
    /// # Errors
    ///
    /// [`NoStore`](IpamError::NoStore) if there is none, and those of [`open`](Self::open).
    pub fn open_existing(path: impl AsRef<Path>) -> Result<Self, IpamError> {
        let store = Store::open(path.as_ref())?;
        let pools = store.read("read the pools from", |tables| {
            adopt::stored_pools(&tables.ranges)
        })?;
        let layout = Layout::new(&pools)?;
        let cooldown_s = store
            .cooldown_s()?
            .unwrap_or_else(|| whole_seconds(DEFAULT_COOLDOWN));
        Self::over(store, layout, cooldown_s, Options::new(pools))
    }

    fn over(
        store: Store,
        layout: Layout,
        cooldown_s: u64,
        options: Options,
    ) -> Result<Self, IpamError> {
        let boot_id = match options.boot_id {
            Some(boot_id) => boot_id,
            None => clock::boot_id()?,
        };
        let ipam = Self {
            store,
            layout,
            cooldown_s,
            clock: options.clock,
            boot_id,
        };
        let leases = ipam.store.write(
            "open",
            || ipam.cooldown(),
            |ledger| {
                ledger.audit()?;
                ledger.adopt(&ipam.layout)?;
                Ok(query::leases(&ledger.owners)?.len())
            },
        )?;
        ipam.store.set_cooldown_s(cooldown_s)?;
        info!(path = %ipam.path().display(), leases, "address store opened");
        Ok(ipam)
    }

    #[cfg(test)]
    pub(crate) fn on(
        backend: impl redb::StorageBackend,
        path: &Path,
        options: Options,
    ) -> Result<Self, IpamError> {
        let layout = Layout::new(&options.pools)?;
        let cooldown_s = whole_seconds(options.cooldown);
        Self::over(Store::on(backend, path)?, layout, cooldown_s, options)
    }

    /// Leases one address of each family asked for, all or none.
    ///
    /// The address is the first one that is not leased, reserved or cooling down behind the one
    /// handed out last, in the first range of the pool that has one.
    ///
    /// # Errors
    ///
    /// - [`UnknownPool`](IpamError::UnknownPool), [`NoSuchFamily`](IpamError::NoSuchFamily);
    /// - [`AlreadyAllocated`](IpamError::AlreadyAllocated), with the lease that the owner has;
    /// - [`Exhausted`](IpamError::Exhausted): a family has no address, or none that has rested;
    /// - [`Storage`](IpamError::Storage), [`Record`](IpamError::Record): the store failed.
    pub fn allocate(
        &self,
        pool: &str,
        owner: &Owner,
        families: Families,
    ) -> Result<Lease, IpamError> {
        let pool = self.layout.pool(pool)?;
        let lease = self.store.write(
            "allocate",
            || self.cooldown(),
            |ledger| ledger.allocate(pool, owner, families, &self.boot_id),
        )?;
        debug!(%owner, pool = %lease.pool, addresses = ?lease.addresses, "allocated");
        Ok(lease)
    }

    /// Leases the addresses given, at most one per family, all or none. An address that is still
    /// cooling down goes only to the owner who released it.
    ///
    /// # Errors
    ///
    /// - [`UnknownPool`](IpamError::UnknownPool), [`RequestShape`](IpamError::RequestShape);
    /// - [`NotInPool`](IpamError::NotInPool), [`InUse`](IpamError::InUse),
    ///   [`Reserved`](IpamError::Reserved), [`CoolingDown`](IpamError::CoolingDown);
    /// - [`AlreadyAllocated`](IpamError::AlreadyAllocated), with the lease that the owner has;
    /// - [`Storage`](IpamError::Storage), [`Record`](IpamError::Record): the store failed.
    pub fn allocate_specific(
        &self,
        pool: &str,
        owner: &Owner,
        addresses: &[IpAddr],
    ) -> Result<Lease, IpamError> {
        let pool = self.layout.pool(pool)?;
        let lease = self.store.write(
            "allocate specific",
            || self.cooldown(),
            |ledger| ledger.allocate_specific(pool, owner, addresses, &self.boot_id),
        )?;
        debug!(%owner, pool = %lease.pool, addresses = ?lease.addresses, "allocated");
        Ok(lease)
    }

    /// Sets an address aside for the node. Again for the same purpose, it changes nothing. An
    /// address that is cooling down may be reserved.
    ///
    /// # Errors
    ///
    /// - [`UnknownPool`](IpamError::UnknownPool), [`NotInPool`](IpamError::NotInPool);
    /// - [`InvalidName`](IpamError::InvalidName) unless the purpose is 1 to 255 bytes without
    ///   control characters;
    /// - [`InUse`](IpamError::InUse), or [`Reserved`](IpamError::Reserved) for another purpose;
    /// - [`Storage`](IpamError::Storage), [`Record`](IpamError::Record): the store failed.
    pub fn reserve(&self, pool: &str, address: IpAddr, purpose: &str) -> Result<(), IpamError> {
        let pool = self.layout.pool(pool)?;
        if purpose.is_empty() || purpose.len() > 255 || purpose.contains(char::is_control) {
            return Err(IpamError::InvalidName {
                what: "purpose",
                value: purpose.to_owned(),
                rule: "use 1 to 255 bytes without control characters",
            });
        }
        self.store.write(
            "reserve",
            || self.cooldown(),
            |ledger| ledger.reserve(pool, address, purpose),
        )?;
        debug!(pool = %pool.name, %address, purpose, "reserved");
        Ok(())
    }

    /// Ends a reservation and lets the address cool down. Returns whether there was one.
    ///
    /// # Errors
    ///
    /// - [`UnknownPool`](IpamError::UnknownPool), [`NotInPool`](IpamError::NotInPool);
    /// - [`Storage`](IpamError::Storage), [`Record`](IpamError::Record): the store failed.
    pub fn unreserve(&self, pool: &str, address: IpAddr) -> Result<bool, IpamError> {
        let pool = self.layout.pool(pool)?;
        let ended = self.store.write(
            "unreserve",
            || self.cooldown(),
            |ledger| ledger.unreserve(pool, address),
        )?;
        debug!(pool = %pool.name, %address, ended, "unreserved");
        Ok(ended)
    }

    /// Ends the owner's lease and lets its addresses cool down. Returns the lease, or `None` if
    /// there was none, which is no error: a release may be repeated.
    ///
    /// # Errors
    ///
    /// [`Storage`](IpamError::Storage), [`Record`](IpamError::Record): the store failed.
    pub fn release(&self, owner: &Owner) -> Result<Option<Lease>, IpamError> {
        let lease = self.store.write(
            "release",
            || self.cooldown(),
            |ledger| ledger.release(owner),
        )?;
        debug!(%owner, addresses = ?lease.as_ref().map(|lease| &lease.addresses), "released");
        Ok(lease)
    }

    /// Releases every lease that `is_live` disowns, in one transaction, and returns them.
    ///
    /// `is_live` sees the leases as they were when this was called, by container id. It may call
    /// back into this object; a lease that is changed meanwhile is left alone.
    ///
    /// # Errors
    ///
    /// [`Storage`](IpamError::Storage), [`Record`](IpamError::Record): the store failed. Then no
    /// lease is released.
    pub fn reconcile(
        &self,
        mut is_live: impl FnMut(&Lease) -> bool,
    ) -> Result<Vec<Lease>, IpamError> {
        let mut doomed = self.leases()?;
        doomed.retain(|lease| !is_live(lease));
        if doomed.is_empty() {
            return Ok(doomed);
        }
        let released = self.store.write(
            "reconcile",
            || self.cooldown(),
            |ledger| ledger.release_unchanged(doomed),
        )?;
        info!(
            leases = released.len(),
            "leases without a live owner released"
        );
        Ok(released)
    }

    /// Returns the owner's lease.
    ///
    /// # Errors
    ///
    /// [`Storage`](IpamError::Storage), [`Record`](IpamError::Record): the store failed.
    pub fn lease(&self, owner: &Owner) -> Result<Option<Lease>, IpamError> {
        self.store.read("look up a lease", |tables| {
            query::lease(&tables.owners, owner)
        })
    }

    /// Returns every lease, by container id and interface name.
    ///
    /// # Errors
    ///
    /// [`Storage`](IpamError::Storage), [`Record`](IpamError::Record): the store failed.
    pub fn leases(&self) -> Result<Vec<Lease>, IpamError> {
        self.store
            .read("list leases", |tables| query::leases(&tables.owners))
    }

    /// Returns every reservation, IPv4 first, by address.
    ///
    /// # Errors
    ///
    /// [`Storage`](IpamError::Storage), [`Record`](IpamError::Record): the store failed.
    pub fn reservations(&self) -> Result<Vec<Reservation>, IpamError> {
        self.store.read("list reservations", |tables| {
            query::reservations(&tables.addresses)
        })
    }

    /// Counts the addresses of every range, in the order configured, at one moment.
    ///
    /// # Errors
    ///
    /// [`Storage`](IpamError::Storage), [`Record`](IpamError::Record): the store failed.
    pub fn usage(&self) -> Result<Vec<PoolUsage>, IpamError> {
        let cooldown = self.cooldown();
        self.store.read("count addresses", |tables| {
            let usage = |(pool, range): (&Pool, &AddressRange)| {
                let tally = Tally::default().count(&tables.addresses, range, cooldown)?;
                let held = tally.used + tally.reserved + tally.cooling;
                Ok(PoolUsage {
                    pool: pool.name.clone(),
                    range: range.net(),
                    capacity: range.capacity(),
                    used: tally.used,
                    reserved: tally.reserved,
                    cooling: tally.cooling,
                    free: range.capacity() - u128::from(held),
                })
            };
            self.layout.ranges().map(usage).collect()
        })
    }

    /// Returns the pools in force.
    #[must_use]
    pub fn pools(&self) -> Vec<PoolSpec> {
        self.layout.specs()
    }

    /// Returns the id of this boot, as written into new leases.
    #[must_use]
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// Returns the path of the store.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.store.path()
    }

    fn cooldown(&self) -> Cooldown {
        Cooldown {
            now_s: self.clock.now_s(),
            length_s: self.cooldown_s,
        }
    }
}

impl fmt::Debug for Ipam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ipam")
            .field("path", &self.path())
            .field("pools", &self.pools())
            .finish_non_exhaustive()
    }
}

fn whole_seconds(duration: Duration) -> u64 {
    duration
        .as_secs()
        .saturating_add(u64::from(duration.subsec_nanos() > 0))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(Duration::ZERO, 0)]
    #[case(Duration::from_nanos(1), 1)]
    #[case(Duration::from_secs(7), 7)]
    #[case(Duration::from_millis(7_001), 8)]
    #[case(Duration::MAX, u64::MAX)]
    fn cooldowns_are_rounded_up(#[case] cooldown: Duration, #[case] seconds: u64) {
        assert_eq!(whole_seconds(cooldown), seconds);
    }
}
