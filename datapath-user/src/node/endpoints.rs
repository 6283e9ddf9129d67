//! Endpoints into the kernel, and out of it again.

use std::time::Instant;

use aya::programs::TcAttachType;
use datapath_kern::abi::endpoint::{Endpoint, MAX_ENDPOINTS};
use datapath_kern::abi::flow::{End, Flow};
use datapath_kern::abi::ipcache::{self, IpEntry};
use datapath_kern::abi::nexthop::{self, NextHop};
use datapath_kern::abi::quota::Quota;
use datapath_kern::abi::state::{Record, phase};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Node, address_or_none, with_more};
use crate::config::{Config, PodStart};
use crate::datapath::{free_number, of_family};
use crate::endpoint::{self, EndpointPolicy, EndpointSpec, EndpointView, Wire};
use crate::error::Error;
use crate::flows;
use crate::journal;
use crate::maps::gone;
use crate::naming;
use crate::pair::Pair;
use crate::policy::SubjectKey;
use crate::programs::Place;
use crate::uplink;

/// An endpoint and what was made for it.
pub(crate) struct Local {
    pub(crate) view: EndpointView,
    pub(super) wire: Wire,
}

/// What the next process is to know of an endpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) spec: EndpointSpec,
    pub(super) allocated: bool,
    pub(super) audit: bool,
}

impl Node {
    pub(crate) fn add_endpoint(
        &mut self,
        config: &Config,
        spec: &EndpointSpec,
    ) -> Result<EndpointView, Error> {
        if self.endpoints.contains_key(&spec.id) {
            return Err(Error::Exists {
                what: "endpoint",
                name: spec.id.clone(),
            });
        }
        for address in &spec.addresses {
            let holder = self
                .endpoints
                .values()
                .find(|e| e.view.addresses.contains(address));
            if let Some(holder) = holder {
                let owner = format!("endpoint {}", holder.view.id);
                return Err(Error::AddressInUse {
                    address: IpNet::from(*address),
                    owner,
                });
            }
        }
        endpoint::check_netns(&spec.netns)?;
        let used = self.endpoints.values().map(|endpoint| endpoint.view.slot);
        let slot = free_number(used, MAX_ENDPOINTS, "endpoint")?;
        let asked = [(spec.identity, spec.identity_labels())];
        let swap = self.identify(config, &[], &asked)?;
        let given = swap.given.first().copied().unwrap_or_default();
        // Before there is anything to forget.
        let known = self
            .journal
            .put(End::endpoint(slot), &record_of(spec, phase::PARTIAL));
        if let Err(error) = known {
            self.forget_identity(config, given.number, given.allocated)?;
            return Err(error);
        }
        let made = endpoint::wire(
            &self.netlink,
            self.pairs.pair,
            spec,
            self.gateway.mac,
            uplink::device_mtu_bytes(&self.uplinks),
        );
        let wire = match made {
            Ok(wire) => wire,
            Err(error) => {
                let undone = self.journal.remove(End::endpoint(slot)).err();
                self.forget_identity(config, given.number, given.allocated)?;
                return Err(with_more(error, undone.into_iter().collect()));
            }
        };
        let view = EndpointView {
            id: spec.id.clone(),
            slot,
            netns: spec.netns.clone(),
            interface: spec.interface.clone(),
            host_interface: wire.host_interface.clone(),
            host_index: wire.host_index,
            mac: naming::display_mac(wire.mac),
            addresses: spec.addresses.clone(),
            identity: given.number,
            identity_allocated: given.allocated,
            namespace: spec.namespace.clone(),
            name: spec.name.clone(),
            labels: spec.labels.clone(),
            namespace_labels: spec.namespace_labels.clone(),
            service_account: spec.service_account.clone(),
            ports: spec.ports.clone(),
            policy: EndpointPolicy::default(),
        };
        self.endpoints.insert(
            spec.id.clone(),
            Local {
                view: view.clone(),
                wire: wire.clone(),
            },
        );
        match self.install(config, spec, &view, &wire) {
            Ok(()) => Ok(self.view(&spec.id).unwrap_or(view)),
            Err(error) => {
                let undone = self.remove_endpoint(config, &spec.id).err();
                Err(with_more(error, undone.into_iter().collect()))
            }
        }
    }

    /// Tells the datapath of an endpoint, then lets its traffic in.
    fn install(
        &mut self,
        config: &Config,
        spec: &EndpointSpec,
        view: &EndpointView,
        wire: &Wire,
    ) -> Result<(), Error> {
        let slot = view.slot;
        let number = u32::from(slot);
        self.keep_details(view)?;
        let word = self.first_word(config, slot, view.identity)?;
        let entry = Endpoint {
            ipv4: address_or_none(of_family(&spec.addresses, true)),
            ipv6: address_or_none(of_family(&spec.addresses, false)),
            interface: wire.host_index,
            generation: self.next_generation()?,
            identity: view.identity,
            mac: wire.mac,
            policy: word,
            ..Endpoint::default()
        };
        // What the one had that was in this slot before is not this one's.
        self.maps
            .quotas
            .set(number, Quota::default(), 0)
            .map_err(Error::map("write to", "quotas"))?;
        self.maps
            .endpoints
            .set(number, entry, 0)
            .map_err(Error::map("write to", "endpoints"))?;
        self.set_next_hop(
            number,
            NextHop {
                interface: wire.host_index,
                kind: nexthop::kind::POD,
                destination_mac: wire.mac,
                source_mac: self.gateway.mac,
                ..NextHop::default()
            },
        )?;
        self.maps
            .endpoint_slots
            .insert(wire.host_index, number, 0)
            .map_err(Error::map("insert into", "endpoint_slots"))?;
        for &address in &spec.addresses {
            let entry = IpEntry {
                identity: view.identity,
                index: slot,
                kind: ipcache::kind::ENDPOINT,
                flags: 0,
            };
            self.maps.set_prefix(IpNet::from(address), entry)?;
        }
        self.attach_pod(wire)?;
        let up = Instant::now();
        self.netlink
            .set_up(wire.host_index, true)
            .map_err(Error::network(&wire.host_interface))?;
        let (pod, index) = endpoint::furnish(spec, config, self.gateway.mac, |v4| {
            uplink::mtu_bytes(self.mtu, v4)
        })?;
        self.watch.udp.set_up(&pod, index, &spec.id);
        if config.policy.start == PodStart::Standard {
            self.judge_subject(config, SubjectKey::Identity(view.identity))?;
            let window_us = u64::try_from(up.elapsed().as_micros()).unwrap_or(u64::MAX);
            if let Some(local) = self.endpoints.get_mut(&spec.id) {
                local.view.policy.window_us = Some(window_us);
            }
        }
        self.journal
            .put(End::endpoint(slot), &record_of(spec, phase::WHOLE))
    }

    pub(super) fn attach_pod(&mut self, wire: &Wire) -> Result<(), Error> {
        let interface = &wire.host_interface;
        let from_pod = match wire.pair {
            Pair::Veth => Place::Tc(TcAttachType::Ingress),
            Pair::Netkit => Place::NetkitPeer,
        };
        self.programs.attach("from_pod", interface, from_pod)?;
        self.programs
            .attach("to_pod", interface, TcAttachType::Egress)
    }

    /// What an endpoint is to be called and labelled from now on. Its flows are judged again.
    pub(crate) fn set_endpoint_labels(
        &mut self,
        config: &Config,
        id: &str,
        spec: &EndpointSpec,
    ) -> Result<EndpointView, Error> {
        let not_found = || Error::NotFound {
            what: "endpoint",
            name: id.to_owned(),
        };
        let old = self.view(id).ok_or_else(not_found)?;
        let asked = [(spec.identity, spec.identity_labels())];
        let former = (old.identity, old.identity_allocated);
        let swap = self.identify(config, &[former], &asked)?;
        let given = swap.given.first().copied().unwrap_or_default();
        let view = EndpointView {
            identity: given.number,
            identity_allocated: given.allocated,
            namespace: spec.namespace.clone(),
            name: spec.name.clone(),
            labels: spec.labels.clone(),
            namespace_labels: spec.namespace_labels.clone(),
            service_account: spec.service_account.clone(),
            ports: spec.ports.clone(),
            ..old.clone()
        };
        self.keep_details(&view)?;
        if let Some(local) = self.endpoints.get_mut(id) {
            local.view = view.clone();
        }
        if view.identity != old.identity {
            self.move_identity(config, &view)?;
        }
        self.forget_identities(config, &swap.gone)?;
        Ok(self.view(id).unwrap_or(view))
    }

    /// Has an endpoint be another identity: its rules come first, then who it is to others.
    fn move_identity(&mut self, config: &Config, view: &EndpointView) -> Result<(), Error> {
        let number = u32::from(view.slot);
        self.judge_subject(config, SubjectKey::Identity(view.identity))?;
        let read = Error::map("read", "endpoints");
        let entry = self.maps.endpoints.get(&number, 0).map_err(read)?;
        for &address in &view.addresses {
            let entry = IpEntry {
                identity: view.identity,
                index: view.slot,
                kind: ipcache::kind::ENDPOINT,
                flags: 0,
            };
            self.maps.set_prefix(IpNet::from(address), entry)?;
        }
        let moved = Endpoint {
            identity: view.identity,
            ..entry
        };
        let newer = Endpoint {
            generation: self.next_generation()?,
            ..moved
        };
        for entry in [moved, newer] {
            self.maps
                .endpoints
                .set(number, entry, 0)
                .map_err(Error::map("write to", "endpoints"))?;
        }
        Ok(())
    }

    /// Writes down what an endpoint is, for the next process.
    pub(super) fn keep_details(&mut self, view: &EndpointView) -> Result<(), Error> {
        let kept = Kept {
            spec: view.spec(),
            allocated: view.identity_allocated,
            audit: view.policy.audit,
        };
        self.journal.details.put(End::endpoint(view.slot), &kept)
    }

    pub(super) fn view(&self, id: &str) -> Option<EndpointView> {
        self.endpoints.get(id).map(|local| local.view.clone())
    }

    pub(crate) fn remove_endpoint(&mut self, config: &Config, id: &str) -> Result<(), Error> {
        let not_found = || Error::NotFound {
            what: "endpoint",
            name: id.to_owned(),
        };
        let Local { view, wire } = self.endpoints.remove(id).ok_or_else(not_found)?;
        let slot = u32::from(view.slot);
        let mut errors = Vec::new();
        // From here on it is to be removed, whoever does it.
        let end = End::endpoint(view.slot);
        errors.extend(self.journal.set_phase(end, phase::PARTIAL).err());
        // Its interface goes first, and with it what it sends. Without programs while the pod still
        // sends, the kernel would take that for the node's own to forward: as the pod wrote it.
        errors.extend(self.unwire(&wire).err());
        for program in ["from_pod", "to_pod"] {
            errors.extend(self.programs.detach(program, &wire.host_interface).err());
        }
        for &address in &view.addresses {
            errors.extend(self.maps.remove_prefix(IpNet::from(address)).err());
        }
        errors.extend(
            gone(self.maps.endpoint_slots.remove(&wire.host_index))
                .map_err(Error::map("remove from", "endpoint_slots"))
                .err(),
        );
        errors.extend(self.vacate_slot(slot).err());
        errors.extend(self.set_next_hop(slot, NextHop::default()).err());
        let its = |flow: &Flow| flow.from == end.raw() || flow.to == end.raw();
        errors.extend(flows::sweep(&mut self.maps, its).err());
        self.acquit(view.slot);
        let forgotten = self.forget_identity(config, view.identity, view.identity_allocated);
        errors.extend(forgotten.err());
        // The slot is free for another one when nothing of this one is left.
        if errors.is_empty() {
            errors.extend(self.journal.remove(end).err());
        }
        Error::collect(errors)
    }

    pub(super) fn vacate_slot(&mut self, slot: u32) -> Result<(), Error> {
        let vacated = Endpoint {
            generation: self.next_generation()?,
            ..Endpoint::default()
        };
        self.maps
            .endpoints
            .set(slot, vacated, 0)
            .map_err(Error::map("write to", "endpoints"))
    }
}

fn record_of(spec: &EndpointSpec, phase: u32) -> Record {
    journal::record(phase, &spec.id, &spec.interface, &spec.netns)
}
