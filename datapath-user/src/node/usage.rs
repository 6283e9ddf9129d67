//! How full the maps are.

use aya::maps::{IterableMap, MapData, MapError};
use datapath_kern::abi::endpoint::MAX_ENDPOINTS;
use datapath_kern::abi::policy::{MAX_PEER_CLASSES, MAX_PORT_VERDICTS};
use datapath_kern::abi::tunnel::MAX_PEERS;

use super::Node;
use crate::error::Error;
use crate::flows::Which;
use crate::status::MapUsage;

impl Node {
    /// How full the maps are that can fill up: those with an entry for each flow, pod, node or
    /// prefix.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub(crate) fn map_usage(&mut self) -> Result<Vec<MapUsage>, Error> {
        let mut found = Vec::new();
        for (which, former) in [
            (Which::Flows, Which::FormerFlows),
            (Which::Pending, Which::FormerPending),
        ] {
            let used = self.table_use(which, former)?;
            found.push(MapUsage::new(which.map(), used.used, used.max));
        }
        // A slot is this node's own.
        found.push(MapUsage::new(
            "endpoints",
            self.endpoints.len(),
            MAX_ENDPOINTS - 1,
        ));
        found.push(MapUsage::new("peers", self.peers.len(), MAX_PEERS - 1));
        let ipcache = &self.maps.ipcache;
        let keys = ipcache
            .keys()
            .try_fold(0_u32, |count, key| key.map(|_| count + 1));
        let used = keys.map_err(Error::map("read", "ipcache"))?;
        let max = room(ipcache.map()).map_err(Error::map("look at", "ipcache"))?;
        found.push(MapUsage::new("ipcache", used, max));
        let (peers, ports) = self.policy.entries();
        found.push(MapUsage::new("policy_peers", peers, MAX_PEER_CLASSES));
        found.push(MapUsage::new("policy_ports", ports, MAX_PORT_VERDICTS));
        Ok(found)
    }
}

fn room(map: &MapData) -> Result<u32, MapError> {
    Ok(map.info()?.max_entries())
}
