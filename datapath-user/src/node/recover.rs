//! Finding an earlier process's endpoints and peers again, and forgetting those that are no more.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use datapath_kern::abi::addr::Addr;
use datapath_kern::abi::endpoint::{Endpoint, MAX_ENDPOINTS};
use datapath_kern::abi::flow::End;
use datapath_kern::abi::ipcache::{IpEntry, kind};
use datapath_kern::abi::state::{Record, phase};
use datapath_kern::abi::tunnel::{MAX_PEERS, Peer};
use datapath_tunnel::netlink::Link;

use super::adopt::Prefixes;
use super::endpoints::Kept;
use super::{Local, Node, Remote, peers};
use crate::adoption::Adoption;
use crate::config::Config;
use crate::details;
use crate::endpoint::{self, EndpointPolicy, EndpointSpec, EndpointView, PodSide, Wire};
use crate::error::Error;
use crate::journal;
use crate::maps::gone;
use crate::naming;
use crate::pair::Pair;
use crate::peer::PeerSpec;
use crate::remains;
use crate::uplink::{self, UplinkView};

impl Node {
    /// Takes over the endpoints whose pods are there, and removes the others and what is left of
    /// them.
    pub(super) fn adopt_endpoints(
        &mut self,
        config: &Config,
        adoption: &mut Adoption,
    ) -> Result<(), Error> {
        let links = self.links()?;
        for (end, record) in self.journal.records()? {
            if end.is_remote() {
                continue;
            }
            let read = Error::map("read", "endpoints");
            let entry = self.maps.endpoints.get(&end.slot(), 0).map_err(read)?;
            let kept = self.journal.recovered.remove(&end.raw());
            let kept = kept.and_then(|text| details::read::<Kept>(&text));
            let local = recover(end, &record, &entry, &links, kept);
            let id = local.view.id.clone();
            let stays = record.phase == phase::WHOLE && is_there(&local, &entry);
            if stays {
                self.check_pod(config, &local)?;
            }
            let view = &local.view;
            let (number, allocated) = (view.identity, view.identity_allocated);
            let labels = view.identity_labels();
            self.policy.identities.resume(number, allocated, &labels);
            self.endpoints.insert(id.clone(), local);
            if !stays {
                tracing::info!(
                    id,
                    "endpoint has gone with its pod, or was half added or removed"
                );
                self.remove_endpoint(config, &id)?;
                adoption.endpoints_removed.push(id);
            }
        }
        for link in self.links()? {
            let known = |local: &Local| local.wire.host_index == link.index;
            if remains::is_of_a_pod(&link) && !self.endpoints.values().any(known) {
                self.netlink
                    .delete_link(link.index)
                    .map_err(Error::network(&link.name))?;
                adoption.interfaces_removed.push(link.name);
            }
        }
        let pods: Vec<_> = self
            .endpoints
            .values()
            .map(|local| local.view.clone())
            .collect();
        for view in pods {
            self.mend_pod(config, &view);
        }
        Ok(())
    }

    /// Whether a pod's addresses are still this node's to give.
    fn check_pod(&self, config: &Config, local: &Local) -> Result<(), Error> {
        let outside = |address: &&IpAddr| {
            let address = *address;
            !config.pod_cidrs.iter().any(|cidr| cidr.contains(address))
        };
        match local.view.addresses.iter().find(outside) {
            None => Ok(()),
            Some(address) => Err(Error::Changed {
                field: "pod_cidrs",
                was: format!("a range with {address} of endpoint {}", local.view.id),
                now: format!("{:?}", config.pod_cidrs),
                path: self.pins.root().to_path_buf(),
            }),
        }
    }

    /// Gives a pod back what it lost. That a pod cannot be mended is no reason to leave the others
    /// alone.
    fn mend_pod(&mut self, config: &Config, view: &EndpointView) {
        let furnished = endpoint::furnish(&view.spec(), config, self.gateway.mac, |v4| {
            uplink::mtu_bytes(self.mtu, v4)
        });
        match furnished {
            Ok((pod, index)) => self.watch.udp.set_up(&pod, index, &view.id),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(id = %view.id, error, "pod left as it is");
            }
        }
    }

    pub(super) fn adopt_peers(
        &mut self,
        config: &Config,
        known: &Prefixes,
        adoption: &mut Adoption,
    ) -> Result<(), Error> {
        for (end, record) in self.journal.records()? {
            if !end.is_remote() {
                continue;
            }
            let index = end.raw() & !End::WORLD.raw();
            let read = Error::map("read", "peers");
            let entry = self.maps.peers.get(&end.slot(), 0).map_err(read)?;
            let name = journal::name(&record);
            let uplink = Some(journal::interface(&record)).filter(|uplink| !uplink.is_empty());
            let own = |entry: &IpEntry| {
                entry.index == index && matches!(entry.kind, kind::PEER_POD | kind::PEER_NODE)
            };
            let entries = known.iter().filter(|(_, entry)| own(entry));
            let kept = self.journal.recovered.remove(&end.raw());
            let kept = kept.and_then(|text| details::read::<PeerSpec>(&text));
            let known = kept.filter(|kept| kept.name == name && record.phase == phase::WHOLE);
            let spec = known.unwrap_or_else(|| {
                PeerSpec::recover(name.clone(), entry.address.to_ip(), uplink, entries)
            });
            let adopted = self.adopt_peer(config, &spec, index, entry);
            let why = match (&adopted, record.phase) {
                (Ok(()), phase::WHOLE) => continue,
                (Ok(()), _) => "it was half added or removed".to_owned(),
                (Err(error), _) => error.to_string(),
            };
            tracing::warn!(name, why, "peer removed");
            self.remove_peer(config, &name)?;
            adoption.peers_removed.push(name);
        }
        Ok(())
    }

    /// Empties slots of endpoints and peers that nobody has, and what leads there.
    pub(super) fn forget_vacant(&mut self) -> Result<(), Error> {
        let slots: BTreeMap<u32, u32> = self
            .endpoints
            .values()
            .map(|local| (local.wire.host_index, u32::from(local.view.slot)))
            .collect();
        let known = self
            .maps
            .endpoint_slots
            .keys()
            .collect::<Result<Vec<_>, _>>();
        for interface in known.map_err(Error::map("read", "endpoint_slots"))? {
            if !slots.contains_key(&interface) {
                gone(self.maps.endpoint_slots.remove(&interface))
                    .map_err(Error::map("remove from", "endpoint_slots"))?;
            }
        }
        for (interface, slot) in &slots {
            self.maps
                .endpoint_slots
                .insert(interface, slot, 0)
                .map_err(Error::map("insert into", "endpoint_slots"))?;
        }
        let used: BTreeSet<_> = slots.into_values().collect();
        for slot in (1..MAX_ENDPOINTS).filter(|slot| !used.contains(slot)) {
            let read = Error::map("read", "endpoints");
            if self.maps.endpoints.get(&slot, 0).map_err(read)?.interface != 0 {
                self.vacate_slot(slot)?;
            }
        }
        self.forget_peers()
    }

    fn forget_peers(&mut self) -> Result<(), Error> {
        let indices: BTreeMap<u32, _> = self
            .peers
            .values()
            .map(|remote| (u32::from(remote.view.index), remote.spec.address))
            .collect();
        let known = self.maps.peer_indices.iter().collect::<Result<Vec<_>, _>>();
        for (address, index) in known.map_err(Error::map("read", "peer_indices"))? {
            if indices.get(&index) != Some(&address.to_ip()) {
                gone(self.maps.peer_indices.remove(&address))
                    .map_err(Error::map("remove from", "peer_indices"))?;
            }
        }
        for index in (1..MAX_PEERS).filter(|index| !indices.contains_key(index)) {
            let read = Error::map("read", "peers");
            if self.maps.peers.get(&index, 0).map_err(read)?.interface != 0 {
                self.vacate_index(index)?;
            }
        }
        Ok(())
    }

    /// Takes over a peer of an earlier process, its specification found again and its prefixes
    /// still to be looked at. Its flows are judged again only if the way to it is another one.
    ///
    /// # Errors
    ///
    /// As [`Node::upsert_peer`]; then the peer is known, and can be removed.
    fn adopt_peer(
        &mut self,
        config: &Config,
        spec: &PeerSpec,
        index: u16,
        old: Peer,
    ) -> Result<(), Error> {
        let remote = Remote {
            view: peers::view(
                spec,
                index,
                spec.address,
                &UplinkView::default(),
                old.generation,
            ),
            spec: spec.clone(),
            identities: spec.pods.iter().map(|pod| (pod.number(), false)).collect(),
        };
        for pod in &spec.pods {
            let labels = pod.identity_labels();
            self.policy.identities.resume(pod.number(), false, &labels);
        }
        self.peers.insert(spec.name.clone(), remote);
        spec.validate()?;
        self.check_prefixes(config, spec)?;
        let (uplink, local) = self.way_to(config, spec)?;
        let number = u32::from(index);
        let mut new = peers::entry(spec, local, &uplink, old.generation);
        if new != old {
            new.generation = self.next_generation()?;
            self.renew_peer_hop(index, &new)?;
            self.maps
                .peers
                .set(number, new, 0)
                .map_err(Error::map("write to", "peers"))?;
        }
        self.maps
            .peer_indices
            .insert(Addr::from(spec.address), number, 0)
            .map_err(Error::map("insert into", "peer_indices"))?;
        if let Some(remote) = self.peers.get_mut(&spec.name) {
            remote.view = peers::view(spec, index, local, &uplink, new.generation);
        }
        Ok(())
    }

    fn links(&self) -> Result<Vec<Link>, Error> {
        self.netlink
            .links()
            .map_err(Error::network("this namespace"))
    }
}

/// An endpoint as its record and its entry have it, and its interface, if there is one.
fn recover(
    end: End,
    record: &Record,
    entry: &Endpoint,
    links: &[Link],
    kept: Option<Kept>,
) -> Local {
    let id = journal::name(record);
    let host_interface = naming::host_interface(&id);
    let found = links.iter().find_map(|link| {
        let pair = Pair::of_kind(link.kind.as_deref())?;
        (link.name == host_interface).then_some((pair, link.index))
    });
    let (pair, host_index) = found.unwrap_or((Pair::Veth, 0));
    let wire = Wire {
        pair,
        host_index,
        host_interface,
        mac: entry.mac,
    };
    let addresses = [entry.ipv4, entry.ipv6];
    let addresses = addresses.into_iter().filter(|address| !address.is_none());
    let (spec, allocated, audit) = kept.map_or_else(
        || (EndpointSpec::default(), false, false),
        |kept| (kept.spec, kept.allocated, kept.audit),
    );
    Local {
        view: EndpointView {
            id,
            slot: end.raw(),
            netns: journal::path(record),
            interface: journal::interface(record),
            host_interface: wire.host_interface.clone(),
            host_index: wire.host_index,
            mac: naming::display_mac(entry.mac),
            addresses: addresses.map(Addr::to_ip).collect(),
            identity: entry.identity,
            identity_allocated: allocated,
            namespace: spec.namespace,
            name: spec.name,
            labels: spec.labels,
            namespace_labels: spec.namespace_labels,
            service_account: spec.service_account,
            ports: spec.ports,
            policy: EndpointPolicy {
                audit,
                ..EndpointPolicy::default()
            },
        },
        wire,
    }
}

/// Whether an endpoint's pod is there: its interface is the one that the datapath knows, and leads
/// to the pod that it was made for.
fn is_there(local: &Local, entry: &Endpoint) -> bool {
    let Local { view, wire } = local;
    entry.interface != 0
        && entry.interface == wire.host_index
        && endpoint::pod_side(&view.netns, &view.interface, wire) != PodSide::Elsewhere
}
