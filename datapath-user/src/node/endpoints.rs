//! Endpoints into the kernel, and out of it again.

use aya::programs::TcAttachType;
use datapath_kern::abi::endpoint::{Endpoint, MAX_ENDPOINTS};
use datapath_kern::abi::flow::{End, Flow};
use datapath_kern::abi::ipcache::{self, IpEntry};
use datapath_kern::abi::nexthop::{self, NextHop};
use datapath_kern::abi::quota::Quota;
use datapath_kern::abi::state::{Record, phase};
use ipnet::IpNet;

use super::{Node, address_or_none, with_more};
use crate::config::Config;
use crate::datapath::{free_number, of_family};
use crate::endpoint::{self, EndpointSpec, EndpointView, Wire};
use crate::error::Error;
use crate::flows;
use crate::journal;
use crate::maps::gone;
use crate::naming;
use crate::pair::Pair;
use crate::programs::Place;
use crate::uplink;

/// An endpoint and what was made for it.
pub(crate) struct Local {
    pub(crate) view: EndpointView,
    pub(super) wire: Wire,
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
        // Before there is anything to forget.
        self.journal
            .put(End::endpoint(slot), &record_of(spec, phase::PARTIAL))?;
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
            identity: spec.identity,
        };
        self.endpoints.insert(
            spec.id.clone(),
            Local {
                view: view.clone(),
                wire: wire.clone(),
            },
        );
        match self.install(config, spec, slot, &wire) {
            Ok(()) => Ok(view),
            Err(error) => {
                let undone = self.remove_endpoint(&spec.id).err();
                Err(with_more(error, undone.into_iter().collect()))
            }
        }
    }

    /// Tells the datapath of an endpoint, then lets its traffic in.
    fn install(
        &mut self,
        config: &Config,
        spec: &EndpointSpec,
        slot: u16,
        wire: &Wire,
    ) -> Result<(), Error> {
        let number = u32::from(slot);
        let entry = Endpoint {
            ipv4: address_or_none(of_family(&spec.addresses, true)),
            ipv6: address_or_none(of_family(&spec.addresses, false)),
            interface: wire.host_index,
            generation: self.next_generation()?,
            identity: spec.identity,
            mac: wire.mac,
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
                identity: spec.identity,
                index: slot,
                kind: ipcache::kind::ENDPOINT,
                flags: 0,
            };
            self.maps.set_prefix(IpNet::from(address), entry)?;
        }
        self.attach_pod(wire)?;
        self.netlink
            .set_up(wire.host_index, true)
            .map_err(Error::network(&wire.host_interface))?;
        let (pod, index) = endpoint::furnish(spec, config, self.gateway.mac, |v4| {
            uplink::mtu_bytes(self.mtu, v4)
        })?;
        self.watch.udp.set_up(&pod, index, &spec.id);
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

    pub(crate) fn remove_endpoint(&mut self, id: &str) -> Result<(), Error> {
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
