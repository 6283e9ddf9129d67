//! What the public operations do inside their one transaction.
//!
//! Each checks everything before it writes anything, so a refusal leaves nothing to undo.

use std::net::IpAddr;

use crate::error::IpamError;
use crate::fault::Fault;
use crate::layout::Pool;
use crate::lease::{Families, Lease, Owner};
use crate::ledger::Ledger;
use crate::pool::{AddressRange, Family, first_gap, from_bits};
use crate::query::{self, Tally};
use crate::record::{AddressRecord, RangeRecord};

impl Ledger<'_> {
    pub(crate) fn allocate(
        &mut self,
        pool: &Pool,
        owner: &Owner,
        families: Families,
        boot_id: &str,
    ) -> Result<Lease, Fault> {
        self.refuse_second_lease(owner)?;
        let mut picks = Vec::new();
        for family in wanted(pool, families)? {
            picks.push(self.pick(pool, family)?);
        }
        let addresses = picks.iter().map(|(_, _, address)| *address).collect();
        let lease = self.lease(pool, owner, addresses, boot_id);
        self.put_lease(&lease)?;
        for (range, mut record, address) in picks {
            record.last = Some(address);
            self.put_range(range.net(), &record)?;
        }
        Ok(lease)
    }

    pub(crate) fn allocate_specific(
        &mut self,
        pool: &Pool,
        owner: &Owner,
        addresses: &[IpAddr],
        boot_id: &str,
    ) -> Result<Lease, Fault> {
        let addresses = one_per_family(addresses)?;
        for address in &addresses {
            pool.require(*address)?;
        }
        self.refuse_second_lease(owner)?;
        for address in &addresses {
            match query::state(&self.addresses, *address)? {
                None => {}
                // Nobody else's traffic can still be under way to it.
                Some(AddressRecord::Cooling {
                    owner: Some(last), ..
                }) if last == *owner => {}
                Some(record) => {
                    return Err(query::refusal(*address, record, self.cooldown).into());
                }
            }
        }
        let lease = self.lease(pool, owner, addresses, boot_id);
        self.put_lease(&lease)?;
        Ok(lease)
    }

    pub(crate) fn reserve(
        &mut self,
        pool: &Pool,
        address: IpAddr,
        purpose: &str,
    ) -> Result<(), Fault> {
        pool.require(address)?;
        match query::state(&self.addresses, address)? {
            Some(AddressRecord::Reserved { purpose: held, .. }) if held == purpose => Ok(()),
            // The node may take an address that is cooling down: it knows what it is about.
            None | Some(AddressRecord::Cooling { .. }) => {
                let record = AddressRecord::Reserved {
                    pool: pool.name.clone(),
                    purpose: purpose.to_owned(),
                };
                self.put(address, Some(&record))
            }
            Some(record) => Err(query::refusal(address, record, self.cooldown).into()),
        }
    }

    pub(crate) fn unreserve(&mut self, pool: &Pool, address: IpAddr) -> Result<bool, Fault> {
        pool.require(address)?;
        match query::state(&self.addresses, address)? {
            Some(AddressRecord::Reserved { .. }) => {
                self.cool(address, &pool.name, None)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    pub(crate) fn release(&mut self, owner: &Owner) -> Result<Option<Lease>, Fault> {
        let lease = query::lease(&self.owners, owner)?;
        if let Some(lease) = &lease {
            self.remove_lease(lease)?;
        }
        Ok(lease)
    }

    /// Releases those of the leases that are still as given, and returns them.
    pub(crate) fn release_unchanged(&mut self, doomed: Vec<Lease>) -> Result<Vec<Lease>, Fault> {
        let mut released = Vec::new();
        for lease in doomed {
            if query::lease(&self.owners, &lease.owner)?.as_ref() == Some(&lease) {
                self.remove_lease(&lease)?;
                released.push(lease);
            }
        }
        Ok(released)
    }

    fn refuse_second_lease(&self, owner: &Owner) -> Result<(), Fault> {
        match query::lease(&self.owners, owner)? {
            None => Ok(()),
            Some(lease) => Err(IpamError::AlreadyAllocated {
                lease: Box::new(lease),
            }
            .into()),
        }
    }

    /// Finds the next free address of a family, in the first range that has one.
    fn pick(
        &self,
        pool: &Pool,
        family: Family,
    ) -> Result<(AddressRange, RangeRecord, IpAddr), Fault> {
        for range in pool.of_family(family) {
            let record = self.range(range)?;
            for span in range.round_from(record.last) {
                let taken = query::taken(&self.addresses, family, &span)?;
                if let Some(bits) = first_gap(&span, taken)? {
                    return Ok((*range, record, from_bits(family, bits)));
                }
            }
        }
        let mut tally = Tally::default();
        for range in pool.of_family(family) {
            tally = tally.count(&self.addresses, range, self.cooldown)?;
        }
        Err(IpamError::Exhausted {
            pool: pool.name.clone(),
            family,
            used: tally.used,
            reserved: tally.reserved,
            cooling: tally.cooling,
            next_free_in_s: tally.next_free_in_s,
        }
        .into())
    }

    fn lease(&self, pool: &Pool, owner: &Owner, addresses: Vec<IpAddr>, boot_id: &str) -> Lease {
        Lease {
            pool: pool.name.clone(),
            owner: owner.clone(),
            addresses,
            boot_id: boot_id.to_owned(),
            created_s: self.cooldown.now_s,
        }
    }
}

/// The families asked for, IPv4 first. The pool must have ranges of each.
fn wanted(pool: &Pool, families: Families) -> Result<Vec<Family>, IpamError> {
    let present = pool.families();
    let wanted = match families {
        Families::V4 => vec![Family::V4],
        Families::V6 => vec![Family::V6],
        Families::Dual => vec![Family::V4, Family::V6],
        Families::OfPool => present.clone(),
    };
    match wanted.iter().find(|family| !present.contains(family)) {
        None => Ok(wanted),
        Some(family) => Err(IpamError::NoSuchFamily {
            pool: pool.name.clone(),
            family: *family,
        }),
    }
}

/// Puts IPv4 first. Repeats of one address are refused too: they are a mistake of the caller.
fn one_per_family(addresses: &[IpAddr]) -> Result<Vec<IpAddr>, IpamError> {
    let count = |family| {
        addresses
            .iter()
            .filter(|address| Family::of(**address) == family)
            .count()
    };
    for family in [Family::V4, Family::V6] {
        let count = count(family);
        if count > 1 || addresses.is_empty() {
            return Err(IpamError::RequestShape { family, count });
        }
    }
    let mut addresses = addresses.to_vec();
    addresses.sort_by_key(|address| Family::of(*address));
    Ok(addresses)
}
