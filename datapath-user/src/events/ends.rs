//! The two ends of a packet, and what the node knows of them.

use std::net::IpAddr;
use std::sync::Arc;

use aya::maps::lpm_trie::Key;
use datapath_kern::abi::addr::Addr;
use datapath_kern::abi::endpoint::identity;
use datapath_kern::abi::event::{Head, Hook, flags};
use datapath_kern::abi::flow::End;
use datapath_kern::abi::ipcache;
use datapath_kern::stage::origin::who;
use serde::{Deserialize, Serialize};

use super::labels::{self, Shelf};
use super::packet::Packet;
use super::policy::EventRule;
use crate::naming;
use crate::node::Node;
use crate::policy::{Labels, reserved};

/// One end of a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventEnd {
    /// What it is, if that is known.
    pub kind: Option<EndKind>,
    /// Its name: an endpoint's id, a peer's name, `host` or `world`.
    pub name: Option<String>,
    /// The pod's namespace, of a pod that has one.
    #[serde(default)]
    pub namespace: Option<String>,
    /// The pod's name, of a pod that has one.
    #[serde(default)]
    pub pod: Option<String>,
    /// Its security identity.
    pub identity: Option<u32>,
    /// The labels that the identity stands for; none where they are not known.
    #[serde(default, with = "labels::shared")]
    pub labels: Arc<Labels>,
    /// The address in the packet.
    pub address: Option<IpAddr>,
    /// The port in the packet.
    pub port: Option<u16>,
    /// The Ethernet address in the frame.
    pub mac: Option<String>,
    /// Whether the address is only what the packet says, and not one that its sender may use: the
    /// name is who sent it all the same.
    pub claimed: bool,
}

/// Kinds of ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndKind {
    /// A pod of this node.
    Endpoint,
    /// This node.
    Host,
    /// Another node, or one of its pods.
    Peer,
    /// Anyone else.
    World,
}

/// What a node knows of those that talk.
pub(super) trait Directory {
    /// Name of an interface.
    fn interface(&self, index: u32) -> Option<String>;
    /// Slot and id of the endpoint behind an interface.
    fn endpoint_at(&self, interface: u32) -> Option<(u16, String)>;
    /// Whether an address is the endpoint's in this slot.
    fn owns(&self, slot: u16, address: IpAddr) -> bool;
    /// Who an address belongs to, and its identity.
    fn holder(&self, address: IpAddr) -> Option<(End, u32)>;
    /// Name of an end.
    fn name(&self, end: End) -> String;
    /// Identity of the endpoint in a slot.
    fn identity(&self, slot: u16) -> Option<u32>;
    /// Namespace and name of the pod at an end, where it is called by such.
    fn pod(&self, end: End, address: Option<IpAddr>) -> (Option<String>, Option<String>);
    /// What an identity stands for.
    fn labels(&self, identity: u32) -> Option<Labels>;
    /// The rule of this number.
    fn rule(&self, number: u32) -> Option<EventRule>;
}

/// Both ends: as the kernel has proven them, else who the addresses belong to. What came out of a
/// pod was sent by that pod, whatever address it claims.
pub(super) fn of(
    head: &Head,
    packet: &Packet,
    frame: &[u8],
    directory: Option<&dyn Directory>,
    copies: &mut Shelf,
) -> (EventEnd, EventEnd) {
    let mac = |at| {
        let bytes = frame.get(at..at + 6)?;
        <[u8; 6]>::try_from(bytes).ok().map(naming::display_mac)
    };
    let mut source = EventEnd {
        address: packet.source,
        port: packet.source_port,
        mac: mac(6),
        ..EventEnd::default()
    };
    let mut destination = EventEnd {
        address: packet.destination,
        port: packet.destination_port,
        mac: mac(0),
        ..EventEnd::default()
    };
    let Some(directory) = directory else {
        return (source, destination);
    };
    let from_pod = Hook::from_number(head.hook) == Some(Hook::FromPod);
    let sender = directory.endpoint_at(head.interface);
    let mut fill = |end: &mut EventEnd, who, identity| end.fill(directory, copies, who, identity);
    if head.flags & flags::SOURCE != 0 {
        let end = End::from_raw(head.source);
        fill(&mut source, end, head.source_identity);
    } else if let (true, Some((slot, _))) = (from_pod, sender) {
        fill(&mut source, End::endpoint(slot), 0);
        source.claimed = packet
            .source
            .is_some_and(|address| !directory.owns(slot, address));
    } else if let Some((end, identity)) = packet.source.and_then(|ip| directory.holder(ip)) {
        fill(&mut source, end, identity);
        source.claimed = true;
    }
    if head.flags & flags::DESTINATION != 0 {
        let end = End::from_raw(head.destination);
        fill(&mut destination, end, head.destination_identity);
    } else if let Some((end, identity)) = packet.destination.and_then(|ip| directory.holder(ip)) {
        fill(&mut destination, end, identity);
    }
    (source, destination)
}

impl EventEnd {
    /// Fills in who it is; `identity` zero where the kernel did not say.
    fn fill(&mut self, directory: &dyn Directory, copies: &mut Shelf, end: End, identity: u32) {
        let held = || self.address.and_then(|address| directory.holder(address));
        let (kind, known) = match (end.is_remote(), end.slot()) {
            (false, 0) => (EndKind::Host, Some(identity::HOST)),
            (false, slot) => {
                let slot = u16::try_from(slot).unwrap_or(0);
                (EndKind::Endpoint, directory.identity(slot))
            }
            (true, 0) => {
                let held = held().filter(|(end, _)| *end == End::WORLD);
                let number = held.map_or(identity::WORLD, |(_, number)| number);
                (EndKind::World, Some(number))
            }
            (true, _) => (EndKind::Peer, held().map(|(_, number)| number)),
        };
        self.kind = Some(kind);
        self.name = Some(directory.name(end));
        (self.namespace, self.pod) = directory.pod(end, self.address);
        self.identity = if identity == 0 { known } else { Some(identity) };
        let labels = self.identity.and_then(|number| directory.labels(number));
        self.labels = copies.put(labels.unwrap_or_default());
    }
}

impl Directory for Node {
    fn interface(&self, index: u32) -> Option<String> {
        let uplinks = self.uplinks.iter().map(|link| (link.index, &link.name));
        let pods = self
            .endpoints
            .values()
            .map(|local| (local.view.host_index, &local.view.host_interface));
        let mut all = uplinks.chain(pods);
        all.find(|(known, _)| *known == index)
            .map(|(_, name)| name.clone())
    }

    fn endpoint_at(&self, interface: u32) -> Option<(u16, String)> {
        let mut locals = self.endpoints.values();
        locals
            .find(|local| local.view.host_index == interface)
            .map(|local| (local.view.slot, local.view.id.clone()))
    }

    fn owns(&self, slot: u16, address: IpAddr) -> bool {
        let mut locals = self.endpoints.values();
        locals.any(|local| local.view.slot == slot && local.view.addresses.contains(&address))
    }

    /// As the datapath would find it; nobody for a group's address, and for one of the pod range
    /// that no pod has.
    fn holder(&self, address: IpAddr) -> Option<(End, u32)> {
        if address.is_multicast() {
            return None;
        }
        let key = Key::new(128, Addr::from(address));
        let entry = self.maps.ipcache.get(&key, 0).unwrap_or_default();
        (entry.kind != ipcache::kind::VACANT).then(|| who(entry))
    }

    fn name(&self, end: End) -> String {
        self.name_of(end.raw())
    }

    fn identity(&self, slot: u16) -> Option<u32> {
        let mut locals = self.endpoints.values();
        locals
            .find(|local| local.view.slot == slot)
            .map(|local| local.view.identity)
    }

    fn pod(&self, end: End, address: Option<IpAddr>) -> (Option<String>, Option<String>) {
        let slot = end.slot();
        let called = if end.is_remote() {
            let mut peers = self.peers.values();
            let peer = peers.find(|peer| u32::from(peer.view.index) == slot);
            let mut pods = peer.into_iter().flat_map(|peer| &peer.spec.pods);
            pods.find(|pod| Some(pod.address) == address)
                .map(|pod| (&pod.namespace, &pod.name))
        } else {
            let mut locals = self.endpoints.values();
            locals
                .find(|local| u32::from(local.view.slot) == slot)
                .map(|local| (&local.view.namespace, &local.view.name))
        };
        called.map_or((None, None), |(namespace, name)| {
            (namespace.clone(), name.clone())
        })
    }

    fn labels(&self, identity: u32) -> Option<Labels> {
        self.policy
            .labels(identity)
            .or_else(|| reserved::labels(identity))
    }

    fn rule(&self, number: u32) -> Option<EventRule> {
        let rule = self.policy.rule(number)?;
        Some(EventRule {
            document: rule.document.clone(),
            path: rule.path.clone(),
            file: rule.file.clone(),
            line: rule.line,
        })
    }
}
