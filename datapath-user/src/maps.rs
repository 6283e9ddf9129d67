//! The maps of the object, typed as the ABI has them.

use std::collections::BTreeMap;
use std::path::Path;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use datapath_kern::abi::addr::Addr;
use datapath_kern::abi::endpoint::Endpoint;
use datapath_kern::abi::event::Window;
use datapath_kern::abi::ipcache::IpEntry;
use datapath_kern::abi::metric::Counter;
use datapath_kern::abi::nexthop::NextHop;
use datapath_kern::abi::policy::{PeerKey, PortKey, PortVerdict};
use datapath_kern::abi::quota::Quota;
use datapath_kern::abi::search::{EXCLUDED_WORDS, PORTS_PER_WORD};
use datapath_kern::abi::tunnel::{Peer, Uplink};
use ipnet::IpNet;

use crate::config::Ports;
use crate::error::Error;
use crate::events::RING;
use crate::flows::Tables;

/// Every map that user space reads or writes.
pub(crate) struct Maps {
    pub(crate) tables: Tables,
    pub(crate) endpoints: Array<MapData, Endpoint>,
    pub(crate) endpoint_slots: HashMap<MapData, u32, u32>,
    pub(crate) peers: Array<MapData, Peer>,
    pub(crate) peer_indices: HashMap<MapData, Addr, u32>,
    pub(crate) next_hops: Array<MapData, NextHop>,
    pub(crate) excluded_ports: Array<MapData, u64>,
    pub(crate) uplinks: HashMap<MapData, u32, Uplink>,
    pub(crate) ipcache: LpmTrie<MapData, Addr, IpEntry>,
    pub(crate) policy_peers: HashMap<MapData, PeerKey, u32>,
    pub(crate) policy_ports: LpmTrie<MapData, PortKey, PortVerdict>,
    pub(crate) metrics: PerCpuArray<MapData, Counter>,
    pub(crate) event_windows: PerCpuArray<MapData, Window>,
    pub(crate) quotas: Array<MapData, Quota>,
    pub(crate) tally: PerCpuArray<MapData, u64>,
}

/// The maps that are pinned, and outlive the process.
pub(crate) const PINNED: [&str; 23] = [
    "flows",
    "pending",
    "endpoints",
    "endpoint_slots",
    "peers",
    "peer_indices",
    "next_hops",
    "excluded_ports",
    "uplinks",
    "ipcache",
    "policy_peers",
    "policy_ports",
    "metrics",
    "event_windows",
    "quotas",
    "tally",
    // Opened for each reader anew.
    RING,
    // The programs' own business, but what one load began another one ends.
    "claims",
    "fragments",
    "fragment_ids",
    "budgets",
    "port_searches",
    "refusals",
];

impl Maps {
    /// Opens the maps that are pinned in `directory`, each by its name.
    pub(crate) fn open(directory: &Path) -> Result<Self, Error> {
        Ok(Self {
            tables: Tables::open(directory)?,
            endpoints: pinned(directory, "endpoints")?,
            endpoint_slots: pinned(directory, "endpoint_slots")?,
            peers: pinned(directory, "peers")?,
            peer_indices: pinned(directory, "peer_indices")?,
            next_hops: pinned(directory, "next_hops")?,
            excluded_ports: pinned(directory, "excluded_ports")?,
            uplinks: pinned(directory, "uplinks")?,
            ipcache: pinned(directory, "ipcache")?,
            policy_peers: pinned(directory, "policy_peers")?,
            policy_ports: pinned(directory, "policy_ports")?,
            metrics: pinned(directory, "metrics")?,
            event_windows: pinned(directory, "event_windows")?,
            quotas: pinned(directory, "quotas")?,
            tally: pinned(directory, "tally")?,
        })
    }

    /// Excludes exactly these ports from masquerade.
    pub(crate) fn exclude_ports(&mut self, excluded: &[Ports]) -> Result<(), Error> {
        for (index, word) in (0..EXCLUDED_WORDS).zip(excluded_words(excluded)) {
            self.excluded_ports
                .set(index, word, 0)
                .map_err(Error::map("write to", "excluded_ports"))?;
        }
        Ok(())
    }

    /// All that the ipcache says.
    pub(crate) fn prefixes(&self) -> Result<BTreeMap<IpNet, IpEntry>, Error> {
        self.ipcache
            .iter()
            .map(|found| found.map(|(key, entry)| (prefix(&key), entry)))
            .collect::<Result<_, _>>()
            .map_err(Error::map("read", "ipcache"))
    }

    /// Enters a prefix into the ipcache, or replaces what it says.
    pub(crate) fn set_prefix(&mut self, prefix: IpNet, entry: IpEntry) -> Result<(), Error> {
        self.ipcache
            .insert(&key(prefix), entry, 0)
            .map_err(Error::map("insert into", "ipcache"))
    }

    /// Takes a prefix out of the ipcache; one that is not there is fine.
    pub(crate) fn remove_prefix(&mut self, prefix: IpNet) -> Result<(), Error> {
        gone(self.ipcache.remove(&key(prefix))).map_err(Error::map("remove from", "ipcache"))
    }
}

/// Opens a pinned map.
pub(crate) fn pinned<T>(directory: &Path, name: &'static str) -> Result<T, Error>
where
    T: TryFrom<Map, Error = MapError>,
{
    MapData::from_pin(directory.join(name))
        .and_then(Map::from_map_data)
        .and_then(T::try_from)
        .map_err(Error::map("open the pinned", name))
}

/// The excluded ports as the map has them.
fn excluded_words(excluded: &[Ports]) -> Vec<u64> {
    let mut words = vec![0; EXCLUDED_WORDS as usize];
    for port in excluded.iter().flat_map(|ports| ports.numbers()) {
        let port = u32::from(port);
        if let Some(word) = words.get_mut((port / PORTS_PER_WORD) as usize) {
            *word |= 1 << (port % PORTS_PER_WORD);
        }
    }
    words
}

/// Opens a pinned map that is not always there.
pub(crate) fn pinned_if_there<T>(directory: &Path, name: &'static str) -> Result<Option<T>, Error>
where
    T: TryFrom<Map, Error = MapError>,
{
    if !directory.join(name).exists() {
        return Ok(None);
    }
    pinned(directory, name).map(Some)
}

/// The ipcache's key of a prefix: both families in one trie, IPv4 as mapped addresses.
fn key(prefix: IpNet) -> Key<Addr> {
    let bits = u32::from(prefix.prefix_len());
    let offset = if prefix.addr().is_ipv4() {
        Addr::MAPPED_PREFIX_BITS
    } else {
        0
    };
    Key::new(bits + offset, prefix.network().into())
}

/// The prefix of a key of the ipcache.
fn prefix(key: &Key<Addr>) -> IpNet {
    let (address, bits) = (key.data(), key.prefix_len());
    let of_v4 = bits.checked_sub(Addr::MAPPED_PREFIX_BITS);
    let bits = match of_v4 {
        Some(bits) if address.is_v4() => bits,
        _ => bits,
    };
    let bits = u8::try_from(bits).unwrap_or(u8::MAX);
    let address = address.to_ip();
    IpNet::new(address, bits).unwrap_or_else(|_| address.into())
}

/// Not being there is what removing is for.
pub(crate) fn gone(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PortRange;

    #[test]
    fn a_key_says_which_prefix_it_is_of() {
        for text in [
            "0.0.0.0/0",
            "10.244.1.0/24",
            "10.244.1.5/32",
            "::/0",
            "fd00:244:1::/64",
            "fd00:244:1::5/128",
        ] {
            let net: IpNet = text.parse().unwrap();
            assert_eq!(prefix(&key(net)), net);
        }
    }

    #[test]
    fn excluded_ports_are_bits() {
        let range = PortRange {
            first: 127,
            last: 128,
        };
        let words = excluded_words(&[Ports::One(65_535), Ports::Range(range), Ports::One(128)]);
        let set: Vec<_> = (0..).zip(&words).filter(|(_, word)| **word != 0).collect();
        assert_eq!(set, [(1, &(1 << 63)), (2, &1), (1023, &(1 << 63))]);
    }
}
