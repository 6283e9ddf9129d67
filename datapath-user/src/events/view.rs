//! An event for people and programs.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use datapath_kern::abi::event::{Event, FRAME_BYTES, Head, Hook, flags, kind};
use datapath_kern::abi::flow::verdict;
use datapath_kern::abi::metric::Direction;
use datapath_kern::verdict::DropReason;
use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::ends::{self, Directory, EventEnd};
use super::labels::Shelf;
use super::packet;
use super::policy::PolicyDecision;
use crate::gateway;

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventView {
    /// When; in JSON as RFC 3339 has it.
    pub time: Timestamp,
    /// What happened.
    pub kind: EventKind,
    /// What became of the packet.
    pub verdict: EventVerdict,
    /// The drop reason; empty where it was not dropped.
    pub reason: String,
    /// What policy said, of a verdict and of a drop that policy asked for.
    #[serde(default)]
    pub policy: Option<PolicyDecision>,
    /// `ingress` or `egress`, seen from the pods.
    pub direction: String,
    /// Whether the packet goes against the direction in which its flow began; not known of drops.
    #[serde(default)]
    pub reply: Option<bool>,
    /// Name of the node that tells it: the machine's, as `hostname` says.
    #[serde(default)]
    pub node: String,
    /// Name of the program that told it.
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
    /// IP version, 4 or 6; none of what is no IP.
    #[serde(default)]
    pub ip_version: Option<u8>,
    /// Type and code, of ICMP.
    #[serde(default)]
    pub icmp: Option<IcmpView>,
    /// The packet in a few words, Hubble's where it has some: `TCP Flags: SYN`.
    pub summary: String,
    /// Whether it had a VLAN tag, which is not among its bytes.
    pub tagged: bool,
    /// The tunnel's own header, where the packet came inside a tunnel packet.
    pub tunnel: Option<TunnelView>,
    /// Length of the frame, bytes.
    pub length_bytes: u32,
    /// The first bytes of the frame, 128 at most; in JSON as hexadecimal digits.
    #[serde(serialize_with = "to_hex", deserialize_with = "from_hex")]
    pub frame: Vec<u8>,
}

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// A packet was dropped.
    Drop,
    /// Policy judged the first packet of a flow, or a flow again with another result.
    PolicyVerdict,
}

/// What became of a packet, in Hubble's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum EventVerdict {
    /// It went on.
    Forwarded,
    /// It went no further.
    Dropped,
    /// It went on although policy denies it: the endpoint is only audited.
    Audit,
}

/// Type and code of an ICMP message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IcmpView {
    /// The type.
    #[serde(rename = "type")]
    pub kind: u8,
    /// The code.
    pub code: u8,
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

impl EventKind {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Drop, Self::PolicyVerdict];

    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::PolicyVerdict => "policy-verdict",
        }
    }
}

impl EventVerdict {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Forwarded, Self::Dropped, Self::Audit];

    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Forwarded => "FORWARDED",
            Self::Dropped => "DROPPED",
            Self::Audit => "AUDIT",
        }
    }
}

/// Reads a record of the ring buffer; none for a kind that is not known here.
pub(super) fn decode(record: &[u8]) -> Option<Event> {
    let event = Event::from_bytes(record)?;
    matches!(event.head.kind, kind::DROP | kind::VERDICT).then_some(event)
}

/// When the machine was booted: what a time on `CLOCK_MONOTONIC` is added to.
pub(super) fn boot_time() -> Timestamp {
    let monotonic = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    let now = Timestamp::now();
    now.checked_sub(monotonic).unwrap_or(now)
}

impl EventView {
    /// An event, with ends and interface named by `directory` where there still is one.
    pub(super) fn new(
        event: &Event,
        boot: Timestamp,
        directory: Option<&dyn Directory>,
        copies: &mut Shelf,
        node: &str,
    ) -> Self {
        let head = &event.head;
        let captured = usize::from(head.captured).min(FRAME_BYTES);
        let frame = event.frame.get(..captured).unwrap_or_default().to_vec();
        let packet = packet::parse(&frame, head.l3);
        let hook = Hook::from_number(head.hook);
        let (source, destination) = ends::of(head, &packet, &frame, directory, copies);
        let direction = if head.direction == Direction::Egress as u8 {
            Direction::Egress
        } else {
            Direction::Ingress
        };
        let endpoint = directory.and_then(|directory| directory.endpoint_at(head.interface));
        let judged = head.kind == kind::VERDICT || head.rule_id != 0;
        let (kind, verdict, reason) = outcome(head);
        Self {
            time: boot
                .checked_add(Duration::from_nanos(head.time_ns))
                .unwrap_or(boot),
            kind,
            verdict,
            reason,
            policy: judged.then(|| PolicyDecision::of(head, directory)),
            direction: direction.name().to_owned(),
            reply: (kind == EventKind::PolicyVerdict).then_some(head.flags & flags::REPLY != 0),
            node: node.to_owned(),
            hook: hook.map_or_else(|| head.hook.to_string(), |hook| hook.name().to_owned()),
            interface: interface(head.interface, hook, directory),
            interface_index: head.interface,
            endpoint: endpoint.map(|(_, id)| id),
            source,
            destination,
            tunnel: packet::tunnel(&frame, head.l3),
            protocol: packet.protocol,
            tcp_flags: packet.tcp_flags,
            ip_version: packet.ip_version,
            icmp: packet.icmp.map(|(kind, code)| IcmpView { kind, code }),
            summary: packet.summary,
            tagged: head.flags & flags::TAGGED != 0,
            length_bytes: head.length,
            frame,
        }
    }
}

/// Kind, verdict, and drop reason in words.
fn outcome(head: &Head) -> (EventKind, EventVerdict, String) {
    if head.kind == kind::DROP {
        let reason = DropReason::from_code(head.outcome.into());
        let words = reason.map_or_else(
            || format!("reason {}", head.outcome),
            |reason| reason.label().to_owned(),
        );
        return (EventKind::Drop, EventVerdict::Dropped, words);
    }
    let (verdict, reason) = match head.outcome {
        verdict::ALLOW => (EventVerdict::Forwarded, None),
        verdict::AUDIT => (EventVerdict::Audit, None),
        // A rule that denies is named; that none allows has no rule to name.
        _ if head.rule_id != 0 => (EventVerdict::Dropped, Some(DropReason::PolicyDeniedByRule)),
        _ => (EventVerdict::Dropped, Some(DropReason::PolicyDenied)),
    };
    let words = reason.map_or("", DropReason::label);
    (EventKind::PolicyVerdict, verdict, words.to_owned())
}

fn interface(index: u32, hook: Option<Hook>, directory: Option<&dyn Directory>) -> String {
    let known = directory.and_then(|directory| directory.interface(index));
    match (known, hook) {
        (Some(name), _) => name,
        (None, Some(Hook::ToHost)) => gateway::HOST.to_owned(),
        (None, Some(Hook::FromHost)) => gateway::NET.to_owned(),
        (None, _) => format!("if{index}"),
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
