//! Peers into the kernel, and out of it again.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use datapath_kern::abi::addr::Addr;
use datapath_kern::abi::flow::{End, Flow};
use datapath_kern::abi::nexthop::{self, NextHop, PEERS_BASE};
use datapath_kern::abi::state::{Record, phase};
use datapath_kern::abi::tunnel::{MAX_PEERS, Peer};
use ipnet::IpNet;

use super::policy::identities::Swap;
use super::{Node, with_more};
use crate::changes::Change;
use crate::config::{Config, IdentitySource, Tunnel};
use crate::datapath::{free_number, of_family};
use crate::error::Error;
use crate::flows;
use crate::gateway;
use crate::journal;
use crate::maps::gone;
use crate::naming;
use crate::peer::{PeerSpec, PeerView, RemotePod};
use crate::policy::Labels;
use crate::uplink::{self, UplinkView};

/// A peer and what was said of it.
pub(crate) struct Remote {
    pub(crate) view: PeerView,
    /// Its pods with the numbers that they have.
    pub(crate) spec: PeerSpec,
    /// The identities of its pods, in their order, and whether they were found for their labels.
    pub(super) identities: Vec<(u32, bool)>,
}

impl Node {
    pub(crate) fn upsert_peer(
        &mut self,
        config: &Config,
        spec: &PeerSpec,
    ) -> Result<PeerView, Error> {
        let old = self
            .peers
            .get(&spec.name)
            .map(|peer| (peer.view.clone(), peer.spec.clone()));
        if let Some((view, old_spec)) = &old
            && old_spec.says_the_same(spec)
        {
            return Ok(view.clone());
        }
        self.check_prefixes(config, spec)?;
        let (uplink, local) = self.way_to(config, spec)?;
        let (spec, swap) = self.identify_peer(config, spec)?;
        let spec = &spec;
        let identities: Vec<_> = swap
            .given
            .iter()
            .map(|given| (given.number, given.allocated))
            .collect();
        if let Some((view, old_spec)) = &old
            && old_spec.says_the_same(spec)
        {
            // Numbers were found that it had.
            if let Some(remote) = self.peers.get_mut(&spec.name) {
                remote.identities = identities;
            }
            return Ok(view.clone());
        }
        let used = self.peers.values().map(|peer| peer.view.index);
        let index = match &old {
            Some((view, _)) => view.index,
            None => free_number(used, MAX_PEERS, "peer")?,
        };
        let end = End::peer(index);
        if old.is_none() {
            // Before there is anything to forget.
            self.journal.put(end, &record_of(spec, phase::PARTIAL))?;
        }
        let generation = self.next_generation()?;
        let view = view(spec, index, local, &uplink, generation);
        if let Some((_, old_spec)) = &old {
            self.forget_prefixes(old_spec, spec, index)?;
            self.forget_routes(config, old_spec, spec)?;
        }
        let entry = entry(spec, local, &uplink, generation);
        self.peers.insert(
            spec.name.clone(),
            Remote {
                view: view.clone(),
                spec: spec.clone(),
                identities,
            },
        );
        let installed = self
            .journal
            .details
            .put(end, spec)
            .and_then(|()| self.name_nodes(config))
            .and_then(|()| self.install_peer(config, spec, index, entry))
            .and_then(|()| self.forget_identities(config, &swap.gone))
            .and_then(|()| self.journal.put(end, &record_of(spec, phase::WHOLE)));
        match installed {
            Ok(()) => Ok(view),
            Err(error) => {
                let undone = self.remove_peer(config, &spec.name).err();
                Err(with_more(error, undone.into_iter().collect()))
            }
        }
    }

    /// Gives a peer's pods their identities; returns it with the numbers.
    fn identify_peer(
        &mut self,
        config: &Config,
        spec: &PeerSpec,
    ) -> Result<(PeerSpec, Swap), Error> {
        let labels = |pod: &RemotePod| (pod.identity, pod.identity_labels());
        let asked: Vec<_> = spec.pods.iter().map(labels).collect();
        let nameless =
            |(asked, labels): &(Option<u32>, Labels)| asked.is_none() && !labels.is_empty();
        if config.policy.identities == IdentitySource::Local
            && let Some((pod, _)) = spec
                .pods
                .iter()
                .zip(&asked)
                .find(|(_, asked)| nameless(asked))
        {
            return Err(Error::NoIdentity {
                peer: spec.name.clone(),
                address: pod.address,
            });
        }
        let old = self.peers.get(&spec.name);
        let old = old.map_or_else(Vec::new, |remote| remote.identities.clone());
        let swap = self.identify(config, &old, &asked)?;
        let mut spec = spec.clone();
        for (pod, given) in spec.pods.iter_mut().zip(&swap.given) {
            pod.identity = Some(given.number);
        }
        Ok((spec, swap))
    }

    fn install_peer(
        &mut self,
        config: &Config,
        spec: &PeerSpec,
        index: u16,
        entry: Peer,
    ) -> Result<(), Error> {
        let number = u32::from(index);
        self.renew_peer_hop(index, &entry)?;
        // What flows are judged by comes before the generation that has them judged again.
        for (prefix, entry) in self.prefixes_of(spec, index) {
            self.maps.set_prefix(prefix, entry)?;
        }
        // What it has now, and what it had, may be listed.
        self.settle_outside(config)?;
        self.maps
            .peers
            .set(number, entry, 0)
            .map_err(Error::map("write to", "peers"))?;
        self.maps
            .peer_indices
            .insert(Addr::from(spec.address), number, 0)
            .map_err(Error::map("insert into", "peer_indices"))?;
        if config.tunnel == Tunnel::Direct {
            for &cidr in &spec.pod_cidrs {
                self.add_route(config, cidr)?;
            }
        }
        self.renew_world()
    }

    /// Has the next packet to a peer ask the kernel for the way. Flows go on pointing to the slot,
    /// which is the peer's for good: its tag stays.
    pub(super) fn renew_peer_hop(&mut self, index: u16, entry: &Peer) -> Result<(), Error> {
        let slot = PEERS_BASE + u32::from(index);
        let old = self
            .maps
            .next_hops
            .get(&slot, 0)
            .map_err(Error::map("read", "next_hops"))?;
        let hop = NextHop {
            gateway: entry.address,
            interface: entry.interface,
            kind: nexthop::kind::UNRESOLVED,
            refreshed_s: 0,
            path_mtu_until_s: if old.gateway == entry.address {
                old.path_mtu_until_s
            } else {
                0
            },
            ..old
        };
        self.maps
            .next_hops
            .set(slot, hop, 0)
            .map_err(Error::map("write to", "next_hops"))
    }

    /// Has a peer be behind its uplink as that is now; next hops by the `stale` interfaces are
    /// looked up again.
    ///
    /// No flow is judged again for it: tunnel packets are checked against the peer's entry each.
    pub(super) fn follow_peer(
        &mut self,
        config: &Config,
        name: &str,
        stale: &BTreeSet<u32>,
    ) -> Result<Option<Change>, Error> {
        let Some(Remote { view, spec, .. }) = self.peers.get(name) else {
            return Ok(None);
        };
        let uplink = self.uplink_of(spec)?;
        let mut view = view.clone();
        let number = u32::from(view.index);
        let former = view.local;
        // As long as there is no other one, it may come back.
        if let Some(local) = local_end(config, view.address, &uplink, Some(former)) {
            view.local = local;
        }
        let old = self
            .maps
            .peers
            .get(&number, 0)
            .map_err(Error::map("read", "peers"))?;
        let new = entry(spec, view.local, &uplink, view.generation);
        if new != old {
            self.maps
                .peers
                .set(number, new, 0)
                .map_err(Error::map("write to", "peers"))?;
        }
        if new != old || stale.contains(&new.interface) {
            self.renew_peer_hop(view.index, &new)?;
        }
        let local = view.local;
        if let Some(remote) = self.peers.get_mut(name) {
            remote.view = view;
        }
        Ok((local != former).then(|| Change::PeerLocal {
            peer: name.to_owned(),
            local,
        }))
    }

    pub(crate) fn remove_peer(&mut self, config: &Config, name: &str) -> Result<(), Error> {
        let not_found = || Error::NotFound {
            what: "peer",
            name: name.to_owned(),
        };
        let Remote {
            view,
            spec,
            identities,
        } = self.peers.remove(name).ok_or_else(not_found)?;
        let number = u32::from(view.index);
        let mut errors = Vec::new();
        // From here on it is to be removed, whoever does it.
        let end = End::peer(view.index);
        errors.extend(self.journal.set_phase(end, phase::PARTIAL).err());
        errors.extend(
            gone(self.maps.peer_indices.remove(&Addr::from(spec.address)))
                .map_err(Error::map("remove from", "peer_indices"))
                .err(),
        );
        if config.tunnel == Tunnel::Direct {
            for &cidr in &spec.pod_cidrs {
                errors.extend(self.delete_route(config, cidr).err());
            }
        }
        for (prefix, _) in spec.prefixes(view.index) {
            errors.extend(self.maps.remove_prefix(prefix).err());
        }
        errors.extend(self.settle_outside(config).err());
        errors.extend(self.vacate_index(number).err());
        errors.extend(
            self.set_next_hop(PEERS_BASE + number, NextHop::default())
                .err(),
        );
        errors.extend(self.renew_world().err());
        let its = |flow: &Flow| flow.from == end.raw() || flow.to == end.raw();
        errors.extend(flows::sweep(&mut self.maps, its).err());
        for (number, allocated) in identities {
            errors.extend(self.forget_identity(config, number, allocated).err());
        }
        errors.extend(self.name_nodes(config).err());
        // The index is free for another one when nothing of this one is left.
        if errors.is_empty() {
            errors.extend(self.journal.remove(end).err());
        }
        Error::collect(errors)
    }

    pub(super) fn vacate_index(&mut self, number: u32) -> Result<(), Error> {
        let vacated = Peer {
            generation: self.next_generation()?,
            ..Peer::default()
        };
        self.maps
            .peers
            .set(number, vacated, 0)
            .map_err(Error::map("write to", "peers"))
    }

    /// The uplink that a peer is behind, and this node's address towards it.
    pub(super) fn way_to(
        &self,
        config: &Config,
        spec: &PeerSpec,
    ) -> Result<(UplinkView, IpAddr), Error> {
        let uplink = self.uplink_of(spec)?;
        let before = self.peers.get(&spec.name).map(|peer| peer.view.local);
        let local = local_end(config, spec.address, &uplink, before).ok_or(Error::Invalid {
            what: "peer address",
            value: spec.address.to_string(),
            rule: "this node has no underlay address of its family",
        })?;
        Ok((uplink, local))
    }

    fn delete_route(&self, config: &Config, pods: IpNet) -> Result<(), Error> {
        let v4 = pods.addr().is_ipv4();
        let mtu_bytes = uplink::mtu_bytes(self.mtu, v4)?;
        let route = self.gateway.route(pods, config.gateway(v4), mtu_bytes);
        self.netlink
            .delete_route(&route)
            .map(drop)
            .map_err(Error::network(gateway::HOST))
    }

    /// Takes out what a peer had and has no more.
    fn forget_prefixes(&mut self, old: &PeerSpec, new: &PeerSpec, index: u16) -> Result<(), Error> {
        let kept: Vec<_> = new
            .prefixes(index)
            .into_iter()
            .map(|(prefix, _)| prefix)
            .collect();
        for (prefix, _) in old.prefixes(index) {
            if !kept.contains(&prefix) {
                self.maps.remove_prefix(prefix)?;
            }
        }
        if old.address != new.address {
            gone(self.maps.peer_indices.remove(&Addr::from(old.address)))
                .map_err(Error::map("remove from", "peer_indices"))?;
        }
        Ok(())
    }

    /// Deletes the routes to ranges that a peer has no more.
    fn forget_routes(&self, config: &Config, old: &PeerSpec, new: &PeerSpec) -> Result<(), Error> {
        if config.tunnel == Tunnel::Direct {
            for &cidr in old
                .pod_cidrs
                .iter()
                .filter(|cidr| !new.pod_cidrs.contains(cidr))
            {
                self.delete_route(config, cidr)?;
            }
        }
        Ok(())
    }

    /// Whether all that a peer claims is free, or its own already.
    pub(super) fn check_prefixes(&self, config: &Config, spec: &PeerSpec) -> Result<(), Error> {
        let overlap = |a: &IpNet, b: &IpNet| a.contains(b) || b.contains(a);
        for cidr in &spec.pod_cidrs {
            if config.pod_cidrs.iter().any(|own| overlap(own, cidr)) {
                return Err(Error::AddressInUse {
                    address: *cidr,
                    owner: "this node".into(),
                });
            }
            for other in self
                .peers
                .values()
                .filter(|other| other.spec.name != spec.name)
            {
                if other
                    .spec
                    .pod_cidrs
                    .iter()
                    .any(|theirs| overlap(theirs, cidr))
                {
                    let owner = format!("peer {}", other.spec.name);
                    return Err(Error::AddressInUse {
                        address: *cidr,
                        owner,
                    });
                }
            }
        }
        self.check_node_addresses(config, spec)
    }

    /// Whether no address of a node, this one included, is another's or in a range of pods: the
    /// longer prefix would take it away from whoever has it.
    fn check_node_addresses(&self, config: &Config, spec: &PeerSpec) -> Result<(), Error> {
        let in_use = |address: IpNet, owner: String| Err(Error::AddressInUse { address, owner });
        let listed = self
            .netlink
            .addresses()
            .map_err(Error::network("this namespace"))?;
        let own: Vec<IpAddr> = listed
            .iter()
            .map(|address| address.net.addr())
            .chain(config.gateways.iter().copied())
            .collect();
        let covered =
            |cidrs: &[IpNet], address: &IpAddr| cidrs.iter().any(|cidr| cidr.contains(address));
        for address in node_addresses(spec) {
            if own.contains(&address) || covered(&config.pod_cidrs, &address) {
                return in_use(address.into(), "this node".into());
            }
        }
        // Its gateways lie among its pods, its end of the tunnel must not: packets to it would
        // have to go through the tunnel.
        if covered(&spec.pod_cidrs, &spec.address) {
            return in_use(
                spec.address.into(),
                format!("the pods of peer {}", spec.name),
            );
        }
        for &cidr in &spec.pod_cidrs {
            if own.iter().any(|address| cidr.contains(address)) {
                return in_use(cidr, "this node".into());
            }
        }
        for other in self
            .peers
            .values()
            .map(|peer| &peer.spec)
            .filter(|other| other.name != spec.name)
        {
            let owner = || format!("peer {}", other.name);
            for address in node_addresses(spec) {
                let theirs = node_addresses(other).any(|their| their == address);
                if theirs || covered(&other.pod_cidrs, &address) {
                    return in_use(address.into(), owner());
                }
            }
            for &cidr in &spec.pod_cidrs {
                if node_addresses(other).any(|address| cidr.contains(&address)) {
                    return in_use(cidr, owner());
                }
            }
        }
        Ok(())
    }

    fn uplink_of(&self, spec: &PeerSpec) -> Result<UplinkView, Error> {
        let found = match &spec.uplink {
            Some(name) => self.uplinks.iter().find(|uplink| uplink.name == *name),
            None => self.uplinks.first(),
        };
        let name = spec.uplink.clone().unwrap_or_default();
        found.cloned().ok_or(Error::NotFound {
            what: "uplink",
            name,
        })
    }
}

pub(super) fn view(
    spec: &PeerSpec,
    index: u16,
    local: IpAddr,
    uplink: &UplinkView,
    generation: u32,
) -> PeerView {
    PeerView {
        name: spec.name.clone(),
        index,
        address: spec.address,
        local,
        node_addresses: spec.node_addresses.clone(),
        pod_cidrs: spec.pod_cidrs.clone(),
        pods: spec.pods.len(),
        interface: uplink.name.clone(),
        generation,
    }
}

pub(super) fn entry(spec: &PeerSpec, local: IpAddr, uplink: &UplinkView, generation: u32) -> Peer {
    Peer {
        address: spec.address.into(),
        local: local.into(),
        generation,
        interface: uplink.index,
        mac: naming::mac("peer", &spec.address.to_string()),
        ..Peer::default()
    }
}

/// This node's end of the tunnel to `peer`: as configured, else what it was before while the uplink
/// has it, else the uplink's first address.
fn local_end(
    config: &Config,
    peer: IpAddr,
    uplink: &UplinkView,
    before: Option<IpAddr>,
) -> Option<IpAddr> {
    let v4 = peer.is_ipv4();
    let still = |local: &IpAddr| local.is_ipv4() == v4 && uplink.addresses.contains(local);
    of_family(&config.underlay, v4)
        .or(before.filter(still))
        .or_else(|| uplink.address(v4))
}

fn record_of(spec: &PeerSpec, phase: u32) -> Record {
    let uplink = spec.uplink.as_deref().unwrap_or_default();
    journal::record(phase, &spec.name, uplink, Path::new(""))
}

/// All addresses of a peer itself.
fn node_addresses(spec: &PeerSpec) -> impl Iterator<Item = IpAddr> {
    std::iter::once(spec.address).chain(spec.node_addresses.iter().copied())
}
