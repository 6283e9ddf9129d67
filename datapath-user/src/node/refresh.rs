//! Following the node's network: maps, links and routes as interfaces and addresses are now.
//!
//! What did not change is not touched, so that a refresh may be asked for at any time. Flows are
//! kept wherever what they were decided on is still there; the others are removed, and the next
//! packet decides them anew.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use aya::programs::TcAttachType;
use datapath_tunnel::netlink::{Address, Monitor};
use ipnet::IpNet;

use super::{Node, prefixes};
use crate::changes::{Change, Changes};
use crate::config::{Config, Tunnel};
use crate::endpoint;
use crate::error::Error;
use crate::gateway;
use crate::maps::gone;
use crate::segmentation::UdpSegmentation;
use crate::uplink::{self, Behind, Look, UplinkState, UplinkView};

/// How long routes may take to come back after an uplink has.
const SETTLE: Duration = Duration::from_secs(30);

/// What refreshes remember.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// The addresses that the ipcache has as this node's.
    pub(super) hosts: BTreeSet<IpAddr>,
    pub(super) behind: Behind,
    /// Who cuts UDP into datagrams.
    pub(crate) udp: UdpSegmentation,
    /// Refreshes so far.
    pub(crate) refreshes: u64,
    /// Changes that they found.
    pub(crate) changes: u64,
    /// When an uplink or an address came back last.
    came_back: Option<Instant>,
}

impl Watch {
    /// Remembers what an uplink masquerades pods behind, for when it has no address for a while.
    pub(super) fn remember(&mut self, uplink: &UplinkView) {
        for &address in &uplink.masquerade {
            let place = (uplink.name.clone(), address.is_ipv4());
            self.behind.insert(place, address);
        }
    }

    /// Whether flows behind an address of the node have ended: it has gone, and is none that pods
    /// would be masqueraded behind again if it came back.
    pub(super) fn is_over(&self, behind: IpAddr) -> bool {
        !self.hosts.contains(&behind) && !self.behind.values().any(|&last| last == behind)
    }
}

/// What one refresh has found, and what it could not do about it.
#[derive(Default)]
pub(super) struct Outcome {
    changes: Vec<Change>,
    errors: Vec<Error>,
    /// Addresses that became this node's, or ceased to be.
    pub(super) moved: BTreeSet<IpAddr>,
    /// Indices of interfaces whose next hops must be looked up again.
    stale: BTreeSet<u32>,
    came_back: bool,
}

impl Outcome {
    fn keep<T>(&mut self, result: Result<T, Error>) -> Option<T> {
        result.map_err(|error| self.errors.push(error)).ok()
    }
}

impl Node {
    /// Makes everything as the network is now.
    ///
    /// # Errors
    ///
    /// All that could not be done; the rest is done, and a later refresh tries again where that
    /// can help.
    pub(crate) fn refresh(&mut self, config: &Config) -> Result<Changes, Error> {
        let addresses = self
            .netlink
            .addresses()
            .map_err(Error::network("this namespace"))?;
        let seen = self.look_at_uplinks(config, &addresses)?;
        let mut outcome = Outcome::default();
        self.follow_uplinks(seen, &mut outcome);
        self.follow_addresses(config, &addresses, &mut outcome);
        self.follow_peers(config, &mut outcome);
        self.follow_mtu(config, &mut outcome);
        let renewed = self.renew_next_hops(&outcome.stale);
        outcome.keep(renewed);
        if outcome.came_back {
            self.watch.came_back = Some(Instant::now());
        }
        let settled = self.watch.came_back.is_none_or(|at| at.elapsed() > SETTLE);
        if !outcome.changes.is_empty() || !settled {
            let removed = self.forget_flows(&outcome, settled);
            if let Some(flows @ 1..) = outcome.keep(removed) {
                outcome.changes.push(Change::Flows { removed: flows });
            }
        }
        for change in &outcome.changes {
            tracing::info!(%change, "network");
        }
        self.watch.refreshes += 1;
        self.watch.changes += outcome.changes.len() as u64;
        Error::collect(outcome.errors).map(|()| Changes(outcome.changes))
    }

    /// Remembers what is there when the datapath begins, or is taken over.
    pub(super) fn begin_watch(&mut self, config: &Config, addresses: &[Address]) {
        self.watch.hosts = prefixes::hosts(config, addresses).collect();
        for uplink in &self.uplinks {
            self.watch.remember(uplink);
        }
        self.watch.udp = UdpSegmentation::of(config.tunnel);
        self.watch
            .udp
            .set_up(&self.netlink, self.gateway.index, gateway::HOST);
    }

    /// Starts to listen for changes of the network.
    pub(crate) fn monitor(&self) -> Result<Monitor, Error> {
        let failed = Error::network("this namespace");
        self.netlink.monitor().map_err(failed)
    }

    /// Links and map entries of the uplinks.
    fn follow_uplinks(&mut self, seen: Vec<UplinkView>, outcome: &mut Outcome) {
        let before = std::mem::take(&mut self.uplinks);
        for known in before.iter().filter(|known| known.is_present()) {
            let now = seen.iter().find(|uplink| uplink.name == known.name);
            if now.is_none_or(|now| now.index != known.index) {
                let left = self.leave_uplink(known);
                outcome.keep(left);
                outcome.stale.insert(known.index);
            }
        }
        for mut uplink in seen {
            let known = before.iter().find(|known| known.name == uplink.name);
            let entered = self.enter_uplink(&uplink, known);
            if outcome.keep(entered).is_none() {
                // The next refresh tries again.
                let left = self.leave_uplink(&uplink);
                outcome.keep(left);
                uplink.index = 0;
                uplink.state = UplinkState::Missing;
            }
            compare(&uplink, known, outcome);
            self.compare_masquerade(&uplink, known, outcome);
            self.uplinks.push(uplink);
        }
    }

    /// What pods are masqueraded behind.
    fn compare_masquerade(
        &mut self,
        uplink: &UplinkView,
        known: Option<&UplinkView>,
        outcome: &mut Outcome,
    ) {
        let former = known.map_or(&[][..], |known| &known.masquerade);
        if former == uplink.masquerade {
            return;
        }
        outcome.changes.push(Change::Masquerade {
            uplink: uplink.name.clone(),
            behind: uplink.masquerade.clone(),
        });
        outcome.stale.insert(uplink.index);
        self.watch.remember(uplink);
    }

    /// The uplinks as they are now.
    pub(super) fn look_at_uplinks(
        &self,
        config: &Config,
        addresses: &[Address],
    ) -> Result<Vec<UplinkView>, Error> {
        uplink::look(&Look {
            netlink: &self.netlink,
            config,
            addresses,
            before: &self.uplinks,
            behind: &self.watch.behind,
        })
    }

    /// Tells the datapath of an uplink, and attaches to it where it is another interface.
    fn enter_uplink(
        &mut self,
        uplink: &UplinkView,
        known: Option<&UplinkView>,
    ) -> Result<(), Error> {
        if !uplink.is_present() {
            return Ok(());
        }
        let same = known.filter(|known| known.index == uplink.index);
        if same.is_none_or(|known| known.entry() != uplink.entry()) {
            self.maps
                .uplinks
                .insert(uplink.index, uplink.entry(), 0)
                .map_err(Error::map("insert into", "uplinks"))?;
        }
        if same.is_some() {
            return Ok(());
        }
        self.programs
            .attach("from_uplink", &uplink.interface, TcAttachType::Ingress)?;
        self.programs
            .attach("to_uplink", &uplink.interface, TcAttachType::Egress)
    }

    /// Detaches from an interface that is no uplink any more, or is gone.
    fn leave_uplink(&mut self, known: &UplinkView) -> Result<(), Error> {
        let mut errors = Vec::new();
        // Links are called by the name that the interface had when they were made.
        for interface in [&known.interface, &known.name] {
            for program in ["from_uplink", "to_uplink"] {
                errors.extend(self.programs.detach(program, interface).err());
            }
        }
        errors.extend(
            gone(self.maps.uplinks.remove(&known.index))
                .map_err(Error::map("remove from", "uplinks"))
                .err(),
        );
        Error::collect(errors)
    }

    /// What the ipcache says of this node's own addresses.
    fn follow_addresses(&mut self, config: &Config, addresses: &[Address], outcome: &mut Outcome) {
        let now: BTreeSet<IpAddr> = prefixes::hosts(config, addresses).collect();
        let before = std::mem::take(&mut self.watch.hosts);
        let mut lost = false;
        for &address in before.difference(&now) {
            let forgotten = self.forget_host(address);
            if outcome.keep(forgotten).is_none() {
                self.watch.hosts.insert(address);
                continue;
            }
            lost = true;
            outcome.moved.insert(address);
            outcome.changes.push(Change::AddressRemoved { address });
        }
        for &address in &now {
            if !before.contains(&address) {
                let entered = self.maps.set_prefix(IpNet::from(address), prefixes::HOST);
                if outcome.keep(entered).is_none() {
                    continue;
                }
                outcome.came_back = true;
                outcome.moved.insert(address);
                outcome.changes.push(Change::AddressAdded { address });
            }
            self.watch.hosts.insert(address);
        }
        // Also what could not be written the last time.
        let followed = self.follow_outside(config);
        if let Some(change) = outcome.keep(followed) {
            outcome.changes.extend(change);
        }
        if lost {
            let renewed = self.renew_host(config);
            outcome.keep(renewed);
        }
    }

    /// An address is not this node's any more. It may have gone to a peer.
    fn forget_host(&mut self, address: IpAddr) -> Result<(), Error> {
        let prefix = IpNet::from(address);
        match self.beneath(prefix) {
            Some(entry) => self.maps.set_prefix(prefix, entry),
            None => self.maps.remove_prefix(prefix),
        }
    }

    /// Has flows with this node judged again.
    fn renew_host(&mut self, config: &Config) -> Result<(), Error> {
        let generation = self.next_generation()?;
        let host = self.host_entry(config, generation);
        self.maps
            .endpoints
            .set(0, host, 0)
            .map_err(Error::map("write to", "endpoints"))
    }

    /// The uplinks that peers are behind, and this node's ends of the tunnels.
    fn follow_peers(&mut self, config: &Config, outcome: &mut Outcome) {
        let names: Vec<String> = self.peers.keys().cloned().collect();
        for name in names {
            let followed = self.follow_peer(config, &name, &outcome.stale);
            if let Some(changes) = outcome.keep(followed) {
                outcome.changes.extend(changes);
            }
        }
    }

    /// MTUs of pods, of the gateway pair, and of the routes to pods.
    fn follow_mtu(&mut self, config: &Config, outcome: &mut Outcome) {
        if !self
            .uplinks
            .iter()
            .any(|uplink| !uplink.addresses.is_empty())
        {
            // What the tunnel would add is not known.
            return;
        }
        let Some(mtu) = outcome.keep(uplink::mtu(&self.uplinks, config)) else {
            return;
        };
        let device = uplink::device_mtu_bytes(&self.uplinks);
        if mtu == self.mtu {
            return;
        }
        let change = Change::PodMtu {
            from: self.mtu.ipv4_bytes(),
            to: mtu.ipv4_bytes(),
        };
        outcome.changes.push(change);
        self.mtu = mtu;
        let resized = self.gateway.set_mtu(&self.netlink, device);
        outcome.keep(resized);
        for cidr in self.routed(config) {
            let routed = self.add_route(config, cidr);
            outcome.keep(routed);
        }
        for local in self.endpoints.values() {
            let resized = endpoint::resize(&self.netlink, &local.view, config, device, |v4| {
                uplink::mtu_bytes(mtu, v4)
            });
            outcome.keep(resized);
        }
    }

    /// The prefixes that the node's stack reaches by the gateway pair.
    fn routed(&self, config: &Config) -> Vec<IpNet> {
        let of_peers = self
            .peers
            .values()
            .filter(|_| config.tunnel == Tunnel::Direct)
            .flat_map(|peer| peer.view.pod_cidrs.iter());
        config.pod_cidrs.iter().chain(of_peers).copied().collect()
    }
}

/// What is another uplink, or another way of being one.
fn compare(uplink: &UplinkView, known: Option<&UplinkView>, outcome: &mut Outcome) {
    let name = || uplink.name.clone();
    let state = known.map_or(UplinkState::Missing, |known| known.state);
    if state != uplink.state {
        outcome.changes.push(Change::UplinkState {
            uplink: name(),
            from: state,
            to: uplink.state,
        });
        outcome.stale.insert(uplink.index);
        outcome.came_back |= uplink.state == UplinkState::Up;
    }
    let Some(known) = known else {
        return;
    };
    let both = known.is_present() && uplink.is_present();
    if both && known.index != uplink.index {
        outcome.changes.push(Change::UplinkIndex {
            uplink: name(),
            from: known.index,
            to: uplink.index,
        });
        outcome.stale.insert(uplink.index);
        outcome.came_back = true;
    }
    if both && known.interface != uplink.interface {
        outcome.changes.push(Change::UplinkRenamed {
            uplink: name(),
            interface: uplink.interface.clone(),
        });
    }
    if known.mtu_bytes != uplink.mtu_bytes {
        outcome.changes.push(Change::UplinkMtu {
            uplink: name(),
            from: known.mtu_bytes,
            to: uplink.mtu_bytes,
        });
    }
}
