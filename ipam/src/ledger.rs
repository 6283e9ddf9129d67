//! The tables open for writing. Every change of an address goes through [`Ledger::put`].

use std::net::IpAddr;
use std::ops::{Bound, RangeBounds};

use ipnet::IpNet;
use redb::{ReadableTable, Table, WriteTransaction};

use crate::error::Inconsistency;
use crate::fault::Fault;
use crate::lease::{Lease, Owner};
use crate::pool::AddressRange;
use crate::query::{self, Cooldown};
use crate::record::{
    ADDRESSES, AddressKey, AddressRecord, Bytes, COOLING, CoolingKey, LeaseRecord, OWNERS,
    OwnerKey, RANGES, RangeKey, RangeRecord, address_key, cooling_key, decode, encode, range_key,
    read_address,
};

/// The tables of one write transaction.
pub(crate) struct Ledger<'txn> {
    pub(crate) addresses: Table<'txn, AddressKey, Bytes>,
    pub(crate) owners: Table<'txn, OwnerKey, Bytes>,
    pub(crate) cooling: Table<'txn, CoolingKey, ()>,
    pub(crate) ranges: Table<'txn, RangeKey, Bytes>,
    pub(crate) cooldown: Cooldown,
    changed: bool,
}

impl<'txn> Ledger<'txn> {
    pub(crate) fn open(txn: &'txn WriteTransaction, cooldown: Cooldown) -> Result<Self, Fault> {
        Ok(Self {
            addresses: txn.open_table(ADDRESSES)?,
            owners: txn.open_table(OWNERS)?,
            cooling: txn.open_table(COOLING)?,
            ranges: txn.open_table(RANGES)?,
            cooldown,
            changed: false,
        })
    }

    /// Whether there is something to commit.
    pub(crate) fn changed(&self) -> bool {
        self.changed
    }

    /// Starts over the cool-downs from before the clock was set back, and ends those that are
    /// over. Returns whether there was one of the former.
    ///
    /// Ended cool-downs alone are not worth a commit: the next transaction finds them again.
    pub(crate) fn sweep(&mut self) -> Result<bool, Fault> {
        let now_s = self.cooldown.now_s;
        let ahead = Bound::Excluded((now_s, u8::MAX, u128::MAX));
        let ahead = self.cooling_within((ahead, Bound::Unbounded))?;
        for (_, address) in &ahead {
            if let Some(AddressRecord::Cooling { pool, owner, .. }) =
                query::state(&self.addresses, *address)?
            {
                self.cool(*address, &pool, owner)?;
            }
        }
        if let Some(over_s) = self.cooldown.over_since_s() {
            for (_, address) in self.cooling_within(..=(over_s, u8::MAX, u128::MAX))? {
                self.put(address, None)?;
            }
        }
        self.changed = !ahead.is_empty();
        Ok(self.changed)
    }

    /// Gives an address its new state; `None` is free. Keeps the order of cool-downs in step.
    pub(crate) fn put(
        &mut self,
        address: IpAddr,
        record: Option<&AddressRecord>,
    ) -> Result<(), Fault> {
        self.changed = true;
        let (key, name) = (address_key(address), format!("addresses {address}"));
        let previous = match record {
            None => self.addresses.remove(key)?,
            Some(record) => {
                let bytes = encode(record, &name)?;
                self.addresses.insert(key, bytes.as_slice())?
            }
        };
        if let Some(previous) = previous {
            let previous = decode(previous.value(), || name)?;
            if let AddressRecord::Cooling { released_s, .. } = previous {
                self.cooling.remove(cooling_key(released_s, address))?;
            }
        }
        if let Some(AddressRecord::Cooling { released_s, .. }) = record {
            self.cooling.insert(cooling_key(*released_s, address), ())?;
        }
        Ok(())
    }

    /// Writes a lease and marks its addresses.
    pub(crate) fn put_lease(&mut self, lease: &Lease) -> Result<(), Fault> {
        let record = AddressRecord::Leased {
            pool: lease.pool.clone(),
            owner: lease.owner.clone(),
        };
        for address in &lease.addresses {
            self.put(*address, Some(&record))?;
        }
        let bytes = encode(&LeaseRecord::new(lease), &format!("owners {}", lease.owner))?;
        self.owners
            .insert(owner_key(&lease.owner), bytes.as_slice())?;
        Ok(())
    }

    /// Removes a lease and lets its addresses cool down.
    pub(crate) fn remove_lease(&mut self, lease: &Lease) -> Result<(), Fault> {
        self.owners.remove(owner_key(&lease.owner))?;
        for address in &lease.addresses {
            self.cool(*address, &lease.pool, Some(lease.owner.clone()))?;
        }
        Ok(())
    }

    /// Lets an address cool down from now on.
    pub(crate) fn cool(
        &mut self,
        address: IpAddr,
        pool: &str,
        owner: Option<Owner>,
    ) -> Result<(), Fault> {
        let record = AddressRecord::Cooling {
            pool: pool.to_owned(),
            released_s: self.cooldown.now_s,
            owner,
        };
        self.put(address, Some(&record))
    }

    /// What is remembered of a configured range.
    pub(crate) fn range(&self, range: &AddressRange) -> Result<RangeRecord, Fault> {
        let net = range.net();
        match self.ranges.get(range_key(net))? {
            Some(bytes) => decode(bytes.value(), || format!("ranges {net}")),
            None => Err(Inconsistency::RangeWithoutRecord { range: net }.into()),
        }
    }

    pub(crate) fn put_range(&mut self, net: IpNet, record: &RangeRecord) -> Result<(), Fault> {
        self.changed = true;
        let bytes = encode(record, &format!("ranges {net}"))?;
        self.ranges.insert(range_key(net), bytes.as_slice())?;
        Ok(())
    }

    pub(crate) fn remove_range(&mut self, net: IpNet) -> Result<(), Fault> {
        self.changed = true;
        self.ranges.remove(range_key(net))?;
        Ok(())
    }

    /// Times of release and addresses of the cool-downs within the bounds, oldest first.
    pub(crate) fn cooling_within(
        &self,
        bounds: impl RangeBounds<CoolingKey>,
    ) -> Result<Vec<(u64, IpAddr)>, Fault> {
        let mut found = Vec::new();
        for entry in self.cooling.range(bounds)? {
            let (released_s, family, bits) = entry?.0.value();
            found.push((released_s, read_address("cooling", (family, bits))?));
        }
        Ok(found)
    }
}

fn owner_key(owner: &Owner) -> (&str, &str) {
    (owner.container_id(), owner.ifname())
}
