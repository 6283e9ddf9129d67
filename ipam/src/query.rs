//! Questions to the tables, the same for a snapshot and inside a write transaction.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use redb::ReadableTable;

use crate::error::IpamError;
use crate::fault::Fault;
use crate::lease::{Lease, Owner, Reservation};
use crate::pool::{AddressRange, Family};
use crate::record::{
    AddressKey, AddressRecord, Bytes, LeaseRecord, OwnerKey, address_key, decode, family_tag,
    read_address,
};

/// How long an address rests after its release, seen from one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cooldown {
    pub(crate) now_s: u64,
    pub(crate) length_s: u64,
}

impl Cooldown {
    /// Seconds until an address released at `released_s` is free; `None` once it is.
    pub(crate) fn left_s(self, released_s: u64) -> Option<u64> {
        match self.now_s.checked_sub(released_s) {
            Some(rested_s) => self.length_s.checked_sub(rested_s).filter(|left| *left > 0),
            // The clock was set back since. The rest starts over, rather than last until the
            // clock has caught up, which may take years.
            None => Some(self.length_s).filter(|left| *left > 0),
        }
    }

    /// Releases up to this moment have rested long enough; `None` if there is no such moment.
    pub(crate) fn over_since_s(self) -> Option<u64> {
        self.now_s.checked_sub(self.length_s)
    }
}

/// The states of the addresses of one or several ranges, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) used: u64,
    pub(crate) reserved: u64,
    pub(crate) cooling: u64,
    /// Seconds until the first of the cooling addresses is free.
    pub(crate) next_free_in_s: Option<u64>,
}

impl Tally {
    /// Counts the addresses of a range by state.
    pub(crate) fn count(
        mut self,
        addresses: &impl ReadableTable<AddressKey, Bytes>,
        range: &AddressRange,
        cooldown: Cooldown,
    ) -> Result<Self, Fault> {
        let (first, last) = (address_key(range.first()), address_key(range.last()));
        for entry in addresses.range(first..=last)? {
            let (_, record) = read_entry(&entry?)?;
            match record {
                AddressRecord::Leased { .. } => self.used += 1,
                AddressRecord::Reserved { .. } => self.reserved += 1,
                AddressRecord::Cooling { released_s, .. } => {
                    if let Some(left_s) = cooldown.left_s(released_s) {
                        self.cooling += 1;
                        let next = self.next_free_in_s.map_or(left_s, |next| next.min(left_s));
                        self.next_free_in_s = Some(next);
                    }
                }
            }
        }
        Ok(self)
    }
}

/// One entry of the `addresses` table as the engine hands it out.
pub(crate) type Entry<'a> = (
    redb::AccessGuard<'a, AddressKey>,
    redb::AccessGuard<'a, Bytes>,
);

pub(crate) fn read_entry(entry: &Entry<'_>) -> Result<(IpAddr, AddressRecord), Fault> {
    let address = read_address("addresses", entry.0.value())?;
    let record = decode(entry.1.value(), || format!("addresses {address}"))?;
    Ok((address, record))
}

pub(crate) fn state(
    addresses: &impl ReadableTable<AddressKey, Bytes>,
    address: IpAddr,
) -> Result<Option<AddressRecord>, Fault> {
    let Some(bytes) = addresses.get(address_key(address))? else {
        return Ok(None);
    };
    decode(bytes.value(), || format!("addresses {address}")).map(Some)
}

/// The numbers of the addresses in `span` that are not free, ascending. No value is read.
pub(crate) fn taken(
    addresses: &impl ReadableTable<AddressKey, Bytes>,
    family: Family,
    span: &RangeInclusive<u128>,
) -> Result<impl Iterator<Item = Result<u128, Fault>>, Fault> {
    let tag = family_tag(family);
    // The engine refuses bounds that are the wrong way round; an empty span is answered with
    // nothing by the caller, who looks for a gap in it.
    let end = *span.end().max(span.start());
    let entries = addresses.range((tag, *span.start())..=(tag, end))?;
    Ok(entries.map(|entry| Ok(entry?.0.value().1)))
}

pub(crate) fn lease(
    owners: &impl ReadableTable<OwnerKey, Bytes>,
    owner: &Owner,
) -> Result<Option<Lease>, Fault> {
    let Some(bytes) = owners.get((owner.container_id(), owner.ifname()))? else {
        return Ok(None);
    };
    let record: LeaseRecord = decode(bytes.value(), || format!("owners {owner}"))?;
    Ok(Some(record.of(owner.clone())))
}

/// Every lease, by container id and interface name.
pub(crate) fn leases(owners: &impl ReadableTable<OwnerKey, Bytes>) -> Result<Vec<Lease>, Fault> {
    let mut leases = Vec::new();
    for entry in owners.iter()? {
        let (key, bytes) = entry?;
        let (container_id, ifname) = key.value();
        let owner = Owner::new(container_id, ifname)?;
        let record: LeaseRecord = decode(bytes.value(), || format!("owners {owner}"))?;
        leases.push(record.of(owner));
    }
    Ok(leases)
}

/// Every reservation, by family and address.
pub(crate) fn reservations(
    addresses: &impl ReadableTable<AddressKey, Bytes>,
) -> Result<Vec<Reservation>, Fault> {
    let mut reservations = Vec::new();
    for entry in addresses.iter()? {
        if let (address, AddressRecord::Reserved { pool, purpose }) = read_entry(&entry?)? {
            reservations.push(Reservation {
                pool,
                address,
                purpose,
            });
        }
    }
    Ok(reservations)
}

/// Turns the state of an address that stands in the way into the refusal it is.
pub(crate) fn refusal(address: IpAddr, record: AddressRecord, cooldown: Cooldown) -> IpamError {
    match record {
        AddressRecord::Leased { owner, .. } => IpamError::InUse { address, owner },
        AddressRecord::Reserved { purpose, .. } => IpamError::Reserved { address, purpose },
        AddressRecord::Cooling { released_s, .. } => IpamError::CoolingDown {
            address,
            free_in_s: cooldown.left_s(released_s).unwrap_or(0),
        },
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::just_released(100, 60, 100, Some(60))]
    #[case::last_second(159, 60, 100, Some(1))]
    #[case::over(160, 60, 100, None)]
    #[case::long_over(u64::MAX, 60, 100, None)]
    #[case::none_wanted(100, 0, 100, None)]
    #[case::clock_set_back(10, 60, 100, Some(60))]
    #[case::clock_set_back_none_wanted(10, 0, 100, None)]
    #[case::without_end(100, u64::MAX, 100, Some(u64::MAX))]
    fn cooldown_left(
        #[case] now_s: u64,
        #[case] length_s: u64,
        #[case] released_s: u64,
        #[case] left_s: Option<u64>,
    ) {
        assert_eq!(Cooldown { now_s, length_s }.left_s(released_s), left_s);
    }
}
