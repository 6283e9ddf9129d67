//! Taking over what an earlier process left: first its tables are made to say what is really there,
//! then its programs are replaced.
//!
//! Every step may be the last one of this process too: what it did stands, and the next process
//! does the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;

use aya::maps::{Array, MapData};
use datapath_kern::abi::addr::Addr;
use datapath_kern::abi::endpoint::Endpoint;
use datapath_kern::abi::ipcache::{IpEntry, kind};
use datapath_kern::abi::tunnel::{Peer, Uplink};
use datapath_tunnel::netlink::{Address, Route};
use ipnet::IpNet;

use super::{Node, Site, address_or_none, prefixes, resize};
use crate::adoption::Adoption;
use crate::bpffs::Pins;
use crate::config::{Config, Tunnel};
use crate::error::Error;
use crate::flows::{self, Which};
use crate::gateway::{self, Gateway};
use crate::journal::Journal;
use crate::maps::{Maps, gone, pinned};
use crate::programs::{self, Programs};
use crate::uplink;

/// What the ipcache says.
pub(super) type Prefixes = BTreeMap<IpNet, IpEntry>;

impl Node {
    /// Takes over a whole datapath.
    ///
    /// Where that fails it stays, and runs on.
    pub(super) fn adopt(
        config: &Config,
        mut site: Site,
        pins: Pins,
        journal: Journal,
    ) -> Result<Self, Error> {
        check_gateways(config, &pins)?;
        let mtu_bytes = uplink::device_mtu_bytes(&site.uplinks);
        let gateway = Gateway::adopt(&site.netlink, &config.gateways, mtu_bytes)?;
        let maps = Maps::open(&pins.maps())?;
        let programs = Programs::new(&pins, site.kernel.tcx, mem::take(&mut site.object));
        let mut node = Self::assemble(site, pins, gateway, programs, maps, journal);
        let mut adoption = Adoption::default();
        // At once: what is below takes the kernel a second.
        node.adopt_tables(config, &mut adoption)?;
        node.adopt_routes(config, &mut adoption)?;
        node.replace_programs(config, &mut adoption)?;
        node.forget_masqueraded()?;
        adoption.endpoints_kept = node.endpoints.len();
        adoption.peers_kept = node.peers.len();
        for which in [Which::Flows, Which::FormerFlows] {
            adoption.flows_kept += flows::count(&node.maps.tables, which)?;
        }
        // By programs that know how.
        node.judge_all(config)?;
        node.adoption = Some(adoption);
        Ok(node)
    }

    /// Makes the tables say what is there.
    fn adopt_tables(&mut self, config: &Config, adoption: &mut Adoption) -> Result<(), Error> {
        // After the gateway pair was mended: its addresses count.
        let addresses = self
            .netlink
            .addresses()
            .map_err(Error::network("this namespace"))?;
        self.adopt_uplinks(config, &addresses)?;
        self.begin_watch(config, &addresses);
        self.adopt_host(config)?;
        self.maps.exclude_ports(&config.nat_excluded_ports)?;
        let known = self.maps.prefixes()?;
        self.outside.go_on(&known);
        self.policy.prefixes.adopt(&known);
        self.adopt_endpoints(config, adoption)?;
        self.adopt_peers(config, &known, adoption)?;
        self.forget_vacant()?;
        self.adopt_policy(config)?;
        self.adopt_prefixes(config, &addresses, adoption)
    }

    /// Puts new programs in the place of the old ones, which run until these have been found good.
    fn replace_programs(&mut self, config: &Config, adoption: &mut Adoption) -> Result<(), Error> {
        self.begin_resize()?;
        self.renew_programs(config, resize::bits(&self.pins.maps()))?;
        self.reopen_tables()?;
        self.programs.detach_others()?;
        let changes = self.programs.changes();
        adoption.links_replaced = changes.replaced;
        adoption.links_attached = changes.attached;
        adoption.links_removed = changes.removed;
        // Not before: the old programs would judge by what they were loaded with.
        self.adopt_settings(config, adoption)
    }

    /// Loads programs that look into former flow tables as the bits of `resizing` say, and puts them
    /// in the place of those that run.
    pub(super) fn renew_programs(&mut self, config: &Config, resizing: u32) -> Result<(), Error> {
        let seed = self.journal.state().seed;
        let settings = self.settings(config, seed);
        let Self {
            programs,
            pins,
            journal,
            sizes,
            ..
        } = self;
        let tables = programs::Tables {
            sizes: *sizes,
            resizing,
        };
        programs.load(config, tables, &settings, pins, journal)?;
        self.attach_node()?;
        let pods: Vec<_> = self
            .endpoints
            .values()
            .map(|local| local.wire.clone())
            .collect();
        for wire in &pods {
            self.attach_pod(wire)?;
            self.netlink
                .set_up(wire.host_index, true)
                .map_err(Error::network(&wire.host_interface))?;
        }
        Ok(())
    }

    fn adopt_host(&mut self, config: &Config) -> Result<(), Error> {
        let read = Error::map("read", "endpoints");
        let old = self.maps.endpoints.get(&0, 0).map_err(read)?;
        let mut new = Endpoint {
            // It is judged as before until its rules are known.
            policy: old.policy,
            ..self.host_entry(config, old.generation)
        };
        if new != old {
            new.generation = self.next_generation()?;
            self.maps
                .endpoints
                .set(0, new, 0)
                .map_err(Error::map("write to", "endpoints"))?;
        }
        Ok(())
    }

    /// Goes on with the addresses that pods are masqueraded behind, where the rule has it so.
    fn adopt_uplinks(&mut self, config: &Config, addresses: &[Address]) -> Result<(), Error> {
        let known = self
            .maps
            .uplinks
            .iter()
            .collect::<Result<BTreeMap<_, _>, _>>();
        let known = known.map_err(Error::map("read", "uplinks"))?;
        for uplink in &self.uplinks {
            let entry = known.get(&uplink.index).copied().unwrap_or_default();
            for v4 in [true, false] {
                let behind = entry.masquerade(v4);
                if !behind.is_none() && behind != Uplink::NO_ADDRESS {
                    let place = (uplink.name.clone(), v4);
                    self.watch.behind.insert(place, behind.to_ip());
                }
            }
        }
        self.uplinks = self.look_at_uplinks(config, addresses)?;
        for uplink in &self.uplinks {
            self.maps
                .uplinks
                .insert(uplink.index, uplink.entry(), 0)
                .map_err(Error::map("insert into", "uplinks"))?;
        }
        for index in known.keys() {
            if !self.uplinks.iter().any(|uplink| uplink.index == *index) {
                gone(self.maps.uplinks.remove(index))
                    .map_err(Error::map("remove from", "uplinks"))?;
            }
        }
        Ok(())
    }

    /// Makes the ipcache say what it should, and nothing else.
    fn adopt_prefixes(
        &mut self,
        config: &Config,
        addresses: &[Address],
        adoption: &mut Adoption,
    ) -> Result<(), Error> {
        let mut wanted: Prefixes = prefixes::own(config, addresses).into_iter().collect();
        let known = self.maps.prefixes()?;
        wanted.extend(self.enter_outside(config));
        for remote in self.peers.values() {
            wanted.extend(self.prefixes_of(&remote.spec, remote.view.index));
        }
        for local in self.endpoints.values() {
            let entry = IpEntry {
                identity: local.view.identity,
                index: local.view.slot,
                kind: kind::ENDPOINT,
                flags: 0,
            };
            let own = local.view.addresses.iter();
            wanted.extend(own.map(|&address| (IpNet::from(address), entry)));
        }
        for (prefix, entry) in &wanted {
            if known.get(prefix) != Some(entry) {
                self.maps.set_prefix(*prefix, *entry)?;
                adoption.prefixes_changed += 1;
            }
        }
        for prefix in known.keys().filter(|prefix| !wanted.contains_key(*prefix)) {
            self.maps.remove_prefix(*prefix)?;
            adoption.prefixes_changed += 1;
        }
        if adoption.prefixes_changed > 0 {
            self.renew_world()?;
        }
        Ok(())
    }

    /// Has all flows judged again where that is to be done otherwise than before.
    fn adopt_settings(&mut self, config: &Config, adoption: &mut Adoption) -> Result<(), Error> {
        let settings = self.settings_digest(config);
        if settings == self.journal.state().settings {
            return Ok(());
        }
        adoption.flows_judged_again = true;
        let slots = self
            .endpoints
            .values()
            .map(|local| u32::from(local.view.slot));
        for slot in std::iter::once(0).chain(slots).collect::<Vec<_>>() {
            let read = Error::map("read", "endpoints");
            let entry = self.maps.endpoints.get(&slot, 0).map_err(read)?;
            let generation = self.next_generation()?;
            let entry = Endpoint {
                generation,
                ..entry
            };
            self.maps
                .endpoints
                .set(slot, entry, 0)
                .map_err(Error::map("write to", "endpoints"))?;
        }
        let indices = self
            .peers
            .values()
            .map(|remote| u32::from(remote.view.index));
        for index in std::iter::once(0).chain(indices).collect::<Vec<_>>() {
            let read = Error::map("read", "peers");
            let entry = self.maps.peers.get(&index, 0).map_err(read)?;
            let generation = self.next_generation()?;
            let entry = Peer {
                generation,
                ..entry
            };
            self.maps
                .peers
                .set(index, entry, 0)
                .map_err(Error::map("write to", "peers"))?;
            let is_it = |remote: &&mut super::Remote| u32::from(remote.view.index) == index;
            if let Some(remote) = self.peers.values_mut().find(is_it) {
                remote.view.generation = generation;
            }
        }
        self.journal.change(|state| state.settings = settings)
    }

    /// Routes pods to the gateway pair, and no others.
    fn adopt_routes(&mut self, config: &Config, adoption: &mut Adoption) -> Result<(), Error> {
        let mut wanted: BTreeSet<IpNet> = config.pod_cidrs.iter().copied().collect();
        if config.tunnel == Tunnel::Direct {
            let peers = self.peers.values();
            wanted.extend(peers.flat_map(|remote| remote.spec.pod_cidrs.iter().copied()));
        }
        for &prefix in &wanted {
            self.add_route(config, prefix)?;
        }
        let routes = self
            .netlink
            .routes()
            .map_err(Error::network(gateway::HOST))?;
        for route in routes {
            let stale = route.index == Some(self.gateway.index)
                && route.protocol == Route::STATIC
                && !wanted.contains(&route.destination);
            if stale {
                self.netlink
                    .delete_route(&route)
                    .map_err(Error::network(gateway::HOST))?;
                adoption.routes_removed += 1;
            }
        }
        Ok(())
    }
}

/// Refuses other gateways than pods have.
fn check_gateways(config: &Config, pins: &Pins) -> Result<(), Error> {
    let endpoints: Array<MapData, Endpoint> = pinned(&pins.maps(), "endpoints")?;
    let host = endpoints
        .get(&0, 0)
        .map_err(Error::map("read", "endpoints"))?;
    let now = [true, false].map(|v4| config.gateway(v4));
    if now.map(address_or_none) == [host.ipv4, host.ipv6] {
        return Ok(());
    }
    let was = [host.ipv4, host.ipv6]
        .into_iter()
        .filter(|address| !address.is_none())
        .map(Addr::to_ip);
    Err(Error::Changed {
        field: "gateways",
        was: format!("{:?}", was.collect::<Vec<_>>()),
        now: format!("{:?}", config.gateways),
        path: pins.root().to_path_buf(),
    })
}
