//! What opening a store does: verify it, then fit it to the configuration.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use redb::ReadableTable;

use crate::error::{Inconsistency, IpamError};
use crate::fault::Fault;
use crate::layout::{Layout, PoolSpec};
use crate::lease::Lease;
use crate::ledger::Ledger;
use crate::query::{self, read_entry};
use crate::record::{AddressRecord, Bytes, RangeKey, RangeRecord, cooling_key, decode, read_range};

impl Ledger<'_> {
    /// Verifies that the tables agree with one another.
    pub(crate) fn audit(&self) -> Result<(), Fault> {
        let leases: BTreeMap<_, _> = query::leases(&self.owners)?
            .into_iter()
            .map(|lease| (lease.owner.clone(), lease))
            .collect();
        for lease in leases.values() {
            for address in &lease.addresses {
                self.audit_leased(*address, lease)?;
            }
        }
        for entry in self.addresses.iter()? {
            match read_entry(&entry?)? {
                (address, AddressRecord::Leased { owner, .. })
                    if !leases
                        .get(&owner)
                        .is_some_and(|lease| lease.addresses.contains(&address)) =>
                {
                    return Err(Inconsistency::AddressWithoutLease { address, owner }.into());
                }
                (address, AddressRecord::Cooling { released_s, .. })
                    if self
                        .cooling
                        .get(cooling_key(released_s, address))?
                        .is_none() =>
                {
                    return Err(Inconsistency::CoolingWithoutEnd { address }.into());
                }
                _ => {}
            }
        }
        self.audit_cooling()
    }

    fn audit_leased(&self, address: IpAddr, lease: &Lease) -> Result<(), Fault> {
        let expected = AddressRecord::Leased {
            pool: lease.pool.clone(),
            owner: lease.owner.clone(),
        };
        if query::state(&self.addresses, address)? == Some(expected) {
            return Ok(());
        }
        Err(Inconsistency::LeaseWithoutAddress {
            address,
            owner: lease.owner.clone(),
        }
        .into())
    }

    fn audit_cooling(&self) -> Result<(), Fault> {
        for (time_s, address) in self.cooling_within(..)? {
            match query::state(&self.addresses, address)? {
                Some(AddressRecord::Cooling { released_s, .. }) if released_s == time_s => {}
                _ => return Err(Inconsistency::EndWithoutCooling { address }.into()),
            }
        }
        Ok(())
    }

    /// Fits the store to the configured pools.
    ///
    /// Ranges may come and go, but no leased address may be left outside the pool it is from.
    /// Reservations and cool-downs go with their range. A range that stays keeps its place in the
    /// round.
    pub(crate) fn adopt(&mut self, layout: &Layout) -> Result<(), Fault> {
        let stored = stored_ranges(&self.ranges)?;
        let mut stranded: BTreeMap<(String, IpNet), u64> = BTreeMap::new();
        let mut dropped = Vec::new();
        for entry in self.addresses.iter()? {
            let (address, record) = read_entry(&entry?)?;
            if layout.covers(record.pool(), address) {
                continue;
            }
            if matches!(record, AddressRecord::Leased { .. }) {
                let home = home(&stored, address);
                *stranded
                    .entry((record.pool().to_owned(), home))
                    .or_default() += 1;
            } else {
                dropped.push(address);
            }
        }
        if let Some(((pool, range), leases)) = stranded.pop_first() {
            return Err(IpamError::RangeInUse {
                pool,
                range,
                leases,
            }
            .into());
        }
        for address in dropped {
            self.put(address, None)?;
        }
        self.store_ranges(&stored, layout)
    }

    fn store_ranges(
        &mut self,
        stored: &[(IpNet, RangeRecord)],
        layout: &Layout,
    ) -> Result<(), Fault> {
        let mut gone: BTreeMap<IpNet, &RangeRecord> =
            stored.iter().map(|(net, record)| (*net, record)).collect();
        for (position, (pool, range)) in (0..).zip(layout.ranges()) {
            let before = gone.remove(&range.net());
            let record = RangeRecord {
                pool: pool.name.clone(),
                position,
                last: before.and_then(|before| before.last),
            };
            if before != Some(&record) {
                self.put_range(range.net(), &record)?;
            }
        }
        for net in gone.into_keys() {
            self.remove_range(net)?;
        }
        Ok(())
    }
}

/// The pools that the store was last opened with, in the order they were given.
pub(crate) fn stored_pools(
    ranges: &impl ReadableTable<RangeKey, Bytes>,
) -> Result<Vec<PoolSpec>, Fault> {
    let mut pools: Vec<PoolSpec> = Vec::new();
    for (net, record) in stored_ranges(ranges)? {
        match pools.iter_mut().find(|pool| pool.name == record.pool) {
            Some(pool) => pool.ranges.push(net),
            None => pools.push(PoolSpec {
                name: record.pool,
                ranges: vec![net],
            }),
        }
    }
    Ok(pools)
}

/// The stored ranges, in the order they were configured.
fn stored_ranges(
    ranges: &impl ReadableTable<RangeKey, Bytes>,
) -> Result<Vec<(IpNet, RangeRecord)>, Fault> {
    let mut stored: Vec<(IpNet, RangeRecord)> = Vec::new();
    for entry in ranges.iter()? {
        let (key, bytes) = entry?;
        let net = read_range(key.value())?;
        stored.push((net, decode(bytes.value(), || format!("ranges {net}"))?));
    }
    stored.sort_by_key(|(_, record)| record.position);
    Ok(stored)
}

/// The stored range that an address is from. Without one, the address stands for itself.
fn home(stored: &[(IpNet, RangeRecord)], address: IpAddr) -> IpNet {
    stored
        .iter()
        .map(|(net, _)| *net)
        .find(|net| net.contains(&address))
        .unwrap_or_else(|| address.into())
}
