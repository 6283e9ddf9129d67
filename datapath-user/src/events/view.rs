//! An event for people and programs.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use aya::maps::lpm_trie::Key;
use datapath_kern::abi::addr::Addr;
use datapath_kern::abi::endpoint::identity;
use datapath_kern::abi::event::{Event, FRAME_BYTES, Head, Hook, flags, kind};
use datapath_kern::abi::flow::End;
use datapath_kern::abi::ipcache;
use datapath_kern::abi::metric::Direction;
use datapath_kern::stage::origin::who;
use datapath_kern::verdict::DropReason;
use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::packet::{self, Packet};
use crate::gateway;
use crate::naming;
use crate::node::Node;

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventView {
    /// When; in JSON as RFC 3339 has it.
    pub time: Timestamp,
    /// What happened: `drop`.
    pub kind: String,
    /// The verdict in Hubble's words: `DROPPED`.
    pub verdict: String,
    /// The drop reason.
    pub reason: String,
    /// `ingress` or `egress`, seen from the pods.
    pub direction: String,
    /// Name of the program that dropped it.
    pub hook: String,
    /// The interface that it was at.
    pub interface: String,
    /// Index of that.
    pub interface_index: u32,
    /// The endpoint behind that interface.
    pub endpoint: Option<String>,
    /// Who sent it.
    pub source: EventEnd,
    /// Whom it was for.
    pub destination: EventEnd,
    /// `tcp`, `udp`, `icmp`, `icmpv6`, `sctp`, `arp`, the IP protocol's number, or the `EtherType`
    /// in hexadecimal. Empty where not even that could be read.
    pub protocol: String,
    /// TCP flags, `SYN, ACK`; empty for other protocols.
    pub tcp_flags: String,
    /// The packet in a few words, Hubble's where it has some: `TCP Flags: SYN`.
    pub summary: String,
    /// Whether it had a VLAN tag, which is not among its bytes.
    pub tagged: bool,
    /// The tunnel's own header, where the packet was dropped inside a tunnel packet.
    pub tunnel: Option<TunnelView>,
    /// Length of the frame, bytes.
    pub length_bytes: u32,
    /// The first bytes of the frame, 128 at most; in JSON as hexadecimal digits.
    #[serde(serialize_with = "to_hex", deserialize_with = "from_hex")]
    pub frame: Vec<u8>,
}

/// One end of a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventEnd {
    /// What it is, if that is known.
    pub kind: Option<EndKind>,
    /// Its name: an endpoint's id, a peer's name, `host` or `world`.
    pub name: Option<String>,
    /// Its security identity.
    pub identity: Option<u32>,
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

/// The outer header of a tunnel packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelView {
    /// Outer source address.
    pub source: IpAddr,
    /// Outer destination address.
    pub destination: IpAddr,
    /// The VNI, which is the source identity where the nodes agreed on numbers.
    pub vni: u32,
}

/// Reads a record of the ring buffer; none for a kind that is not known here.
pub(super) fn decode(record: &[u8]) -> Option<Event> {
    let event = Event::from_bytes(record)?;
    (event.head.kind == kind::DROP).then_some(event)
}

/// When the machine was booted: what a time on `CLOCK_MONOTONIC` is added to.
pub(super) fn boot_time() -> Timestamp {
    let monotonic = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    let now = Timestamp::now();
    now.checked_sub(monotonic).unwrap_or(now)
}

impl EventView {
    /// An event, with ends and interface named by `node` where it is still there.
    pub(super) fn new(event: &Event, boot: Timestamp, node: Option<&Node>) -> Self {
        let head = &event.head;
        let captured = usize::from(head.captured).min(FRAME_BYTES);
        let frame = event.frame.get(..captured).unwrap_or_default().to_vec();
        let packet = packet::parse(&frame, head.l3);
        let hook = Hook::from_number(head.hook);
        let (source, destination) = ends(head, hook, &packet, &frame, node);
        let direction = if head.direction == Direction::Egress as u8 {
            Direction::Egress
        } else {
            Direction::Ingress
        };
        Self {
            time: boot
                .checked_add(Duration::from_nanos(head.time_ns))
                .unwrap_or(boot),
            kind: "drop".to_owned(),
            verdict: "DROPPED".to_owned(),
            reason: reason(head.outcome),
            direction: direction.name().to_owned(),
            hook: hook.map_or_else(|| head.hook.to_string(), |hook| hook.name().to_owned()),
            interface: interface(head.interface, hook, node),
            interface_index: head.interface,
            endpoint: node.and_then(|node| endpoint_at(node, head.interface)),
            source,
            destination,
            tunnel: packet::tunnel(&frame, head.l3),
            protocol: packet.protocol,
            tcp_flags: packet.tcp_flags,
            summary: packet.summary,
            tagged: head.flags & flags::TAGGED != 0,
            length_bytes: head.length,
            frame,
        }
    }
}

fn reason(code: u8) -> String {
    DropReason::from_code(code.into()).map_or_else(
        || format!("reason {code}"),
        |reason| reason.label().to_owned(),
    )
}

fn interface(index: u32, hook: Option<Hook>, node: Option<&Node>) -> String {
    let known = node.and_then(|node| {
        let uplinks = node.uplinks.iter().map(|link| (link.index, &link.name));
        let pods = node
            .endpoints
            .values()
            .map(|local| (local.view.host_index, &local.view.host_interface));
        let mut all = uplinks.chain(pods);
        all.find(|(known, _)| *known == index)
            .map(|(_, name)| name.clone())
    });
    match (known, hook) {
        (Some(name), _) => name,
        (None, Some(Hook::ToHost)) => gateway::HOST.to_owned(),
        (None, Some(Hook::FromHost)) => gateway::NET.to_owned(),
        (None, _) => format!("if{index}"),
    }
}

fn endpoint_at(node: &Node, interface: u32) -> Option<String> {
    let mut locals = node.endpoints.values();
    locals
        .find(|local| local.view.host_index == interface)
        .map(|local| local.view.id.clone())
}

/// Both ends: as the kernel has proven them, else who the addresses belong to. What came out of a
/// pod was sent by that pod, whatever address it claims.
fn ends(
    head: &Head,
    hook: Option<Hook>,
    packet: &Packet,
    frame: &[u8],
    node: Option<&Node>,
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
    let Some(node) = node else {
        return (source, destination);
    };
    if head.flags & flags::SOURCE != 0 {
        source.fill(node, End::from_raw(head.source), head.source_identity);
    } else if let (Some(Hook::FromPod), Some(slot)) = (hook, slot_at(node, head.interface)) {
        source.fill(node, End::endpoint(slot), 0);
        source.claimed = packet
            .source
            .is_some_and(|address| !owns(node, slot, address));
    } else if let Some((end, identity)) = packet.source.and_then(|ip| holder(node, ip)) {
        source.fill(node, end, identity);
        source.claimed = true;
    }
    if head.flags & flags::DESTINATION != 0 {
        let end = End::from_raw(head.destination);
        destination.fill(node, end, head.destination_identity);
    } else if let Some((end, identity)) = packet.destination.and_then(|ip| holder(node, ip)) {
        destination.fill(node, end, identity);
    }
    (source, destination)
}

fn slot_at(node: &Node, interface: u32) -> Option<u16> {
    let mut locals = node.endpoints.values();
    locals
        .find(|local| local.view.host_index == interface)
        .map(|local| local.view.slot)
}

fn owns(node: &Node, slot: u16, address: IpAddr) -> bool {
    let mut locals = node.endpoints.values();
    locals.any(|local| local.view.slot == slot && local.view.addresses.contains(&address))
}

/// Who an address belongs to, as the datapath would find it; nobody for a group's, and for one of
/// the pod range that no pod has.
fn holder(node: &Node, address: IpAddr) -> Option<(End, u32)> {
    if address.is_multicast() {
        return None;
    }
    let key = Key::new(128, Addr::from(address));
    let entry = node.maps.ipcache.get(&key, 0).unwrap_or_default();
    (entry.kind != ipcache::kind::VACANT).then(|| who(entry))
}

impl EventEnd {
    /// Fills in who it is; `identity` zero where the kernel did not say.
    fn fill(&mut self, node: &Node, end: End, identity: u32) {
        let kind = match (end.is_remote(), end.slot()) {
            (false, 0) => EndKind::Host,
            (false, _) => EndKind::Endpoint,
            (true, 0) => EndKind::World,
            (true, _) => EndKind::Peer,
        };
        let known = match kind {
            EndKind::Host => Some(identity::HOST),
            EndKind::World => Some(identity::WORLD),
            EndKind::Endpoint => node
                .endpoints
                .values()
                .find(|local| u32::from(local.view.slot) == end.slot())
                .map(|local| local.view.identity),
            EndKind::Peer => self
                .address
                .and_then(|address| holder(node, address))
                .map(|(_, identity)| identity),
        };
        self.kind = Some(kind);
        self.name = Some(node.name_of(end.raw()));
        self.identity = if identity == 0 { known } else { Some(identity) };
    }
}

fn to_hex<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    let mut digits = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(digits, "{byte:02x}");
    }
    serializer.serialize_str(&digits)
}

fn from_hex<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let digits = String::deserialize(deserializer)?;
    let byte = |at: usize| {
        let pair = digits.get(at..at + 2)?;
        u8::from_str_radix(pair, 16).ok()
    };
    let bytes: Option<Vec<u8>> = (0..digits.len()).step_by(2).map(byte).collect();
    bytes.ok_or_else(|| de::Error::custom("the frame is not a row of hexadecimal digits"))
}
