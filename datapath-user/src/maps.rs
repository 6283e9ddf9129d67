//! The maps of the object, typed as the ABI has them.

use std::path::Path;

use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use datapath_kern::abi::addr::Addr;
use datapath_kern::abi::endpoint::Endpoint;
use datapath_kern::abi::flow::{Flow, FlowKey};
use datapath_kern::abi::ipcache::IpEntry;
use datapath_kern::abi::metric::Counter;
use datapath_kern::abi::nexthop::NextHop;
use datapath_kern::abi::tunnel::{Peer, Uplink};
use ipnet::IpNet;

use crate::error::Error;

/// A flow table.
pub(crate) type FlowTable = HashMap<MapData, FlowKey, Flow>;

/// Every map that user space reads or writes.
pub(crate) struct Maps {
    pub(crate) flows: FlowTable,
    pub(crate) pending: FlowTable,
    pub(crate) endpoints: Array<MapData, Endpoint>,
    pub(crate) endpoint_slots: HashMap<MapData, u32, u32>,
    pub(crate) peers: Array<MapData, Peer>,
    pub(crate) peer_indices: HashMap<MapData, Addr, u32>,
    pub(crate) next_hops: Array<MapData, NextHop>,
    pub(crate) uplinks: HashMap<MapData, u32, Uplink>,
    pub(crate) ipcache: LpmTrie<MapData, Addr, IpEntry>,
    pub(crate) metrics: PerCpuArray<MapData, Counter>,
}

impl Maps {
    /// Takes the maps out of a loaded object and pins them in `directory`, each by its name.
    pub(crate) fn take(ebpf: &mut Ebpf, directory: &Path) -> Result<Self, Error> {
        // One is the programs' own business, but pinned with the rest.
        pin(ebpf.map("claims"), "claims", directory)?;
        Ok(Self {
            flows: typed(ebpf, "flows", directory)?,
            pending: typed(ebpf, "pending", directory)?,
            endpoints: typed(ebpf, "endpoints", directory)?,
            endpoint_slots: typed(ebpf, "endpoint_slots", directory)?,
            peers: typed(ebpf, "peers", directory)?,
            peer_indices: typed(ebpf, "peer_indices", directory)?,
            next_hops: typed(ebpf, "next_hops", directory)?,
            uplinks: typed(ebpf, "uplinks", directory)?,
            ipcache: typed(ebpf, "ipcache", directory)?,
            metrics: typed(ebpf, "metrics", directory)?,
        })
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

/// Takes one map out of the object.
fn typed<T>(ebpf: &mut Ebpf, name: &'static str, directory: &Path) -> Result<T, Error>
where
    T: TryFrom<Map, Error = MapError>,
{
    pin(ebpf.map(name), name, directory)?;
    let map = ebpf.take_map(name).ok_or_else(|| missing(name))?;
    T::try_from(map).map_err(Error::map("open", name))
}

fn pin(map: Option<&Map>, name: &'static str, directory: &Path) -> Result<(), Error> {
    let path = directory.join(name);
    map.ok_or_else(|| missing(name))?
        .pin(&path)
        .map_err(|error| Error::file("pin map at", path)(std::io::Error::other(error)))
}

fn missing(name: &str) -> Error {
    Error::Object {
        what: format!("map {name}"),
    }
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
