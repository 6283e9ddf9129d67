//! Putting right what endpoints are said to have of the established table.

use std::collections::BTreeMap;

use datapath_kern::abi::flow::{Flow, flags};

use crate::error::Error;
use crate::maps::Maps;

/// A count of every endpoint's established flows, made while going through the table.
///
/// The packet path counts promotions, and the flows that it removes itself; what is swept it does
/// not see, and two CPUs at once may lose one. So each sweep of the established table begins a
/// count, shows it every entry that stays, and finishes it. Flows that are promoted meanwhile count
/// in any case, seen or not: an endpoint has too many rather than too few, until the next sweep.
#[derive(Debug)]
pub(crate) struct Recount {
    endpoints: BTreeMap<u32, Counted>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    /// Flows.
    seen: u32,
    /// Those ever promoted, when the count began.
    promoted: u32,
}

impl Recount {
    /// Begins a count for this node and the endpoints that it has now.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub(crate) fn begin(maps: &Maps) -> Result<Self, Error> {
        let mut endpoints = BTreeMap::new();
        let slots = maps.endpoint_slots.iter();
        for slot in slots
            .filter_map(|entry| entry.ok().map(|(_, slot)| slot))
            .chain([0])
        {
            let quota = maps.quotas.get(&slot, 0);
            let promoted = quota.map_err(Error::map("read", "quotas"))?.promoted;
            endpoints.insert(slot, Counted { seen: 0, promoted });
        }
        Ok(Self { endpoints })
    }

    /// Counts an entry of the established table that stays there.
    pub(crate) fn count(&mut self, flow: &Flow) {
        // One of its two halves.
        if !flow.has(flags::REPLY)
            && let Some(counted) = self.endpoints.get_mut(&flow.charge().slot)
        {
            counted.seen += 1;
        }
    }

    /// Writes what was counted.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub(crate) fn finish(self, maps: &mut Maps) -> Result<(), Error> {
        for (slot, Counted { seen, promoted }) in self.endpoints {
            let mut quota = maps
                .quotas
                .get(&slot, 0)
                .map_err(Error::map("read", "quotas"))?;
            let established = seen.saturating_add(quota.promoted.wrapping_sub(promoted));
            if quota.established != established {
                quota.established = established;
                maps.quotas
                    .set(slot, quota, 0)
                    .map_err(Error::map("write to", "quotas"))?;
            }
        }
        Ok(())
    }
}
