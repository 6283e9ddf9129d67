//! One direction of a flow as people read it.

use std::net::IpAddr;

use datapath_kern::abi::flow::{Flow, FlowKey, flags, state, verdict};
use serde::{Deserialize, Serialize};

/// One direction of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowView {
    /// `established` or `pending`.
    pub table: String,
    /// `tcp`, `udp`, `icmp`, `icmpv6`, or the protocol's number.
    pub protocol: String,
    /// Source address, before translation.
    pub source: IpAddr,
    /// Source port, or identifier of an echo request.
    pub source_port: u16,
    /// Destination address, before translation.
    pub destination: IpAddr,
    /// Destination port, or identifier of an echo reply.
    pub destination_port: u16,
    /// Whether this is the direction of the answers.
    pub reply: bool,
    /// Who sends: `host`, `world`, an endpoint or a peer.
    pub from: String,
    /// Who receives.
    pub to: String,
    /// How its packets come in: `pod`, `tunnel`, `uplink` or `host`.
    pub arrival: String,
    /// Where they go, in the same words.
    pub target: String,
    /// What is known of its state: `replied`, `established`, `closing`, `closed`, `reset`.
    pub state: Vec<String>,
    /// `allow` or `deny`.
    pub verdict: String,
    /// The translation.
    pub nat: Option<NatView>,
    /// Whether the host's stack translated the flow and gets its answers.
    pub via_stack: bool,
    /// Frames seen.
    pub packets: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// Seconds left to live.
    pub expires_in_s: u32,
    /// Identity of the sender.
    pub source_identity: u32,
    /// Same number in both directions of one flow.
    pub pair: u32,
}

/// A translation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatView {
    /// `snat` or `dnat`.
    pub kind: String,
    /// The address put in.
    pub address: IpAddr,
    /// The port, or identifier of an echo, put in.
    pub port: u16,
}

impl FlowView {
    /// An entry for people; `name` names an end.
    pub(crate) fn new(
        table: &str,
        key: &FlowKey,
        flow: &Flow,
        now_s: u32,
        name: impl Fn(u16) -> String,
    ) -> Self {
        let nat = if flow.has(flags::SNAT) {
            Some("snat")
        } else if flow.has(flags::DNAT) {
            Some("dnat")
        } else {
            None
        };
        Self {
            table: table.to_owned(),
            protocol: protocol(key.protocol),
            source: key.source.to_ip(),
            source_port: key.source_port.get(),
            destination: key.destination.to_ip(),
            destination_port: key.destination_port.get(),
            reply: flow.has(flags::REPLY),
            from: name(flow.from),
            to: name(flow.to),
            // Arrivals are numbered as targets are, further up.
            arrival: way(flow.arrival() >> 3),
            target: way(flow.target()),
            state: states(flow.state),
            verdict: match flow.verdict {
                verdict::ALLOW => "allow".into(),
                verdict::DENY => "deny".into(),
                other => other.to_string(),
            },
            nat: nat.map(|kind| NatView {
                kind: kind.to_owned(),
                address: flow.nat_address.to_ip(),
                port: flow.nat_port.get(),
            }),
            via_stack: flow.has(flags::VIA_STACK),
            packets: flow.packets,
            bytes: flow.bytes,
            expires_in_s: flow.expires_s.saturating_sub(now_s),
            source_identity: flow.source_identity,
            pair: flow.pair,
        }
    }
}

fn way(target: u16) -> String {
    let word = match target {
        flags::TARGET_POD => "pod",
        flags::TARGET_TUNNEL => "tunnel",
        flags::TARGET_UPLINK => "uplink",
        flags::TARGET_HOST => "host",
        _ => "unknown",
    };
    word.to_owned()
}

/// The word for an IP protocol in every output.
pub(crate) fn protocol(number: u8) -> String {
    use datapath_kern::wire::ip::protocol;
    match number {
        protocol::ICMP => "icmp".into(),
        protocol::TCP => "tcp".into(),
        protocol::UDP => "udp".into(),
        protocol::ICMPV6 => "icmpv6".into(),
        protocol::SCTP => "sctp".into(),
        other => other.to_string(),
    }
}

fn states(bits: u8) -> Vec<String> {
    let closed = bits & state::CLOSED;
    [
        (bits & state::REPLIED != 0, "replied"),
        (bits & state::ESTABLISHED != 0, "established"),
        (closed != 0 && closed != state::CLOSED, "closing"),
        (closed == state::CLOSED, "closed"),
        (bits & state::RESET != 0, "reset"),
    ]
    .into_iter()
    .filter(|(set, _)| *set)
    .map(|(_, word)| word.to_owned())
    .collect()
}
