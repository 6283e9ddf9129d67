//! The flow tables: all entries of one, and one half of a flow wherever it is.

use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

#[cfg(test)]
use aya::maps::Map;
use aya::maps::{HashMap, IterableMap, MapData, MapError};
use datapath_kern::abi::flow::{Flow, FlowKey};
use nix::time::{ClockId, clock_gettime};

use crate::batch::Cursor;
use crate::error::Error;
use crate::maps::{pinned, pinned_if_there};

/// A flow table.
pub(crate) type FlowTable = HashMap<MapData, FlowKey, Flow>;

/// A flow table, by what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Which {
    /// Established flows.
    Flows,
    /// Flows not proven yet.
    Pending,
    /// Established flows of the time before a change of size that is going on.
    FormerFlows,
    /// The same of those not proven.
    FormerPending,
}

impl Which {
    /// All of them, in the order that programs look into them.
    pub(crate) const ALL: [Self; 4] = [
        Self::Flows,
        Self::FormerFlows,
        Self::Pending,
        Self::FormerPending,
    ];

    /// Name of the map.
    pub(crate) const fn map(self) -> &'static str {
        match self {
            Self::Flows => "flows",
            Self::Pending => "pending",
            Self::FormerFlows => "flows_before",
            Self::FormerPending => "pending_before",
        }
    }

    /// The table of the wanted size for what is in it: for all but former ones that is itself.
    pub(crate) const fn successor(self) -> Self {
        match self {
            Self::Flows | Self::FormerFlows => Self::Flows,
            Self::Pending | Self::FormerPending => Self::Pending,
        }
    }

    /// The table that it may be filled from.
    pub(crate) const fn former(self) -> Self {
        match self.successor() {
            Self::Pending => Self::FormerPending,
            _ => Self::FormerFlows,
        }
    }

    /// The word for what is in it.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Flows | Self::FormerFlows => "established",
            Self::Pending | Self::FormerPending => "pending",
        }
    }
}

/// The flow tables.
pub(crate) struct Tables {
    flows: FlowTable,
    pending: FlowTable,
    /// Those of another size, that are being emptied into the two above.
    former_flows: Option<FlowTable>,
    former_pending: Option<FlowTable>,
}

impl Tables {
    /// Opens those that are pinned in `directory`.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub(crate) fn open(directory: &Path) -> Result<Self, Error> {
        Ok(Self {
            flows: pinned(directory, Which::Flows.map())?,
            pending: pinned(directory, Which::Pending.map())?,
            former_flows: pinned_if_there(directory, Which::FormerFlows.map())?,
            former_pending: pinned_if_there(directory, Which::FormerPending.map())?,
        })
    }

    /// Makes new ones that are not pinned.
    #[cfg(test)]
    pub(crate) fn create(max_flows: u32, max_pending: u32) -> Result<Self, MapError> {
        // The hash of the pending ones is an LRU one in the object; what is done to it is the same.
        Ok(Self {
            flows: FlowTable::create(max_flows, 0)?,
            pending: FlowTable::create(max_pending, 0)?,
            former_flows: None,
            former_pending: None,
        })
    }

    /// The same, with empty former tables.
    #[cfg(test)]
    pub(crate) fn filled_from(self, entries: u32) -> Result<Self, MapError> {
        Ok(Self {
            former_flows: Some(FlowTable::create(entries, 0)?),
            former_pending: Some(FlowTable::create(entries, 0)?),
            ..self
        })
    }

    /// Opens the same ones once more.
    #[cfg(test)]
    pub(crate) fn again(&self) -> Result<Self, MapError> {
        let again = |table: &FlowTable| {
            let id = table.map().info()?.id();
            Map::from_map_data(MapData::from_id(id)?)?.try_into()
        };
        Ok(Self {
            flows: again(&self.flows)?,
            pending: again(&self.pending)?,
            former_flows: self.former_flows.as_ref().map(again).transpose()?,
            former_pending: self.former_pending.as_ref().map(again).transpose()?,
        })
    }

    /// Whether any of them is being filled from another one.
    pub(crate) const fn are_filled(&self) -> bool {
        self.former_flows.is_some() || self.former_pending.is_some()
    }

    /// One of them, if there is that one.
    pub(crate) const fn get(&self, which: Which) -> Option<&FlowTable> {
        match which {
            Which::Flows => Some(&self.flows),
            Which::Pending => Some(&self.pending),
            Which::FormerFlows => self.former_flows.as_ref(),
            Which::FormerPending => self.former_pending.as_ref(),
        }
    }

    /// The same, to be changed.
    pub(crate) const fn get_mut(&mut self, which: Which) -> Option<&mut FlowTable> {
        match which {
            Which::Flows => Some(&mut self.flows),
            Which::Pending => Some(&mut self.pending),
            Which::FormerFlows => self.former_flows.as_mut(),
            Which::FormerPending => self.former_pending.as_mut(),
        }
    }
}

/// Entries that a flow table has room for.
pub(crate) fn capacity(table: &FlowTable) -> Result<u32, MapError> {
    Ok(table.map().info()?.max_entries())
}

/// Memory that a flow table takes, bytes, as the kernel reckons (`bpf_map_show_fdinfo`,
/// kernel/bpf/syscall.c); none where it does not say.
pub(crate) fn memory_bytes(table: &FlowTable) -> Option<u64> {
    let fd = table.map().fd().as_fd().as_raw_fd();
    let said = std::fs::read_to_string(format!("/proc/thread-self/fdinfo/{fd}")).ok()?;
    let line = said
        .lines()
        .find_map(|line| line.strip_prefix("memlock:"))?;
    line.trim().parse().ok()
}

/// Seconds on the clock that entries expire by.
pub(crate) fn now_s() -> u32 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| time.tv_sec());
    u32::try_from(now).unwrap_or(u32::MAX)
}

/// All entries of a table; none where there is no such table. One that is entered or removed
/// meanwhile may be missed.
pub(crate) fn entries(tables: &Tables, which: Which) -> Result<Vec<(FlowKey, Flow)>, Error> {
    let mut entries = Vec::new();
    if let Some(table) = tables.get(which) {
        let mut cursor = Cursor::new();
        while read(&mut cursor, table, which, &mut entries)? {}
    }
    Ok(entries)
}

/// Counts the entries of a table.
pub(crate) fn count(tables: &Tables, which: Which) -> Result<usize, Error> {
    let mut count = 0;
    if let Some(table) = tables.get(which) {
        let (mut cursor, mut entries) = (Cursor::new(), Vec::new());
        while read(&mut cursor, table, which, &mut entries)? {
            count += entries.len();
            entries.clear();
        }
    }
    Ok(count)
}

/// Reads on in a table; false when there is no more to read.
pub(super) fn read(
    cursor: &mut Cursor<FlowKey, Flow>,
    table: &FlowTable,
    which: Which,
    entries: &mut Vec<(FlowKey, Flow)>,
) -> Result<bool, Error> {
    cursor
        .read(table, entries)
        .map_err(Error::map("read", which.map()))
}

/// One half of an incarnation of a flow, and where it is: while a flow is being promoted, or moved
/// to a table of another size, its halves are in different tables.
pub(super) fn find(tables: &Tables, key: &FlowKey, pair: u32) -> Option<(Which, Flow)> {
    Which::ALL.into_iter().find_map(|which| {
        let half = tables.get(which)?.get(key, 0).ok()?;
        (half.pair == pair).then_some((which, half))
    })
}
