//! The flow tables as people read them, and their sweeping.

use std::net::IpAddr;

use datapath_kern::abi::flow::{Flow, FlowKey, flags, state, verdict};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::maps::{FlowTable, Maps, gone};

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
    /// What is known of its state: `replied`, `established`, `closing`, `closed`.
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

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweepReport {
    /// Entries looked at.
    pub examined: usize,
    /// Entries removed: both halves of flows whose time was up.
    pub removed: usize,
}

/// Seconds on the clock that entries expire by.
pub(crate) fn now_s() -> u32 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| time.tv_sec());
    u32::try_from(now).unwrap_or(u32::MAX)
}

/// All entries of a table. One that changes meanwhile may be missed, or seen twice.
pub(crate) fn entries(
    table: &FlowTable,
    name: &'static str,
) -> Result<Vec<(FlowKey, Flow)>, Error> {
    table
        .iter()
        .filter(|entry| !matches!(entry, Err(aya::maps::MapError::KeyNotFound)))
        .collect::<Result<_, _>>()
        .map_err(Error::map("read", name))
}

/// Removes flows both halves of which are `due`, given the second that it is.
///
/// # Errors
///
/// [`Error::Map`].
pub(crate) fn sweep(
    maps: &mut Maps,
    due: impl Fn(&Flow, u32) -> bool,
) -> Result<SweepReport, Error> {
    let mut report = SweepReport::default();
    let now_s = now_s();
    for of_pending in [false, true] {
        let (table, name) = table_of(maps, of_pending);
        for (key, flow) in entries(table, name)? {
            report.examined += 1;
            if !due(&flow, now_s) {
                continue;
            }
            // Looked at again just before: the packets that came meanwhile count.
            let Some((_, half)) = find(maps, &key, flow.pair) else {
                continue;
            };
            let partner_key = flow.partner_key(&key);
            let partner = find(maps, &partner_key, flow.pair);
            if !due(&half, now_s) || partner.is_some_and(|(_, partner)| !due(&partner, now_s)) {
                continue;
            }
            let partner = partner.map(|(of_pending, _)| (of_pending, partner_key));
            report.removed += remove_halves(maps, [Some((of_pending, key)), partner])?;
        }
    }
    Ok(report)
}

/// Removes flows one half of which is `due`; returns how many entries that were.
///
/// # Errors
///
/// [`Error::Map`].
pub(crate) fn remove(
    maps: &mut Maps,
    due: impl Fn(&FlowKey, &Flow) -> bool,
) -> Result<usize, Error> {
    let mut removed = 0;
    for of_pending in [false, true] {
        let (table, name) = table_of(maps, of_pending);
        for (key, flow) in entries(table, name)? {
            if due(&key, &flow) {
                let partner_key = flow.partner_key(&key);
                let halves = [key, partner_key].map(|key| {
                    let (of_pending, _) = find(maps, &key, flow.pair)?;
                    Some((of_pending, key))
                });
                removed += remove_halves(maps, halves)?;
            }
        }
    }
    Ok(removed)
}

/// Removes the halves of a flow that are there, each given by its table (true: pending) and key.
fn remove_halves(maps: &mut Maps, halves: [Option<(bool, FlowKey)>; 2]) -> Result<usize, Error> {
    let mut removed = 0;
    for (of_pending, key) in halves.into_iter().flatten() {
        let (table, name) = table_of(maps, of_pending);
        gone(table.remove(&key)).map_err(Error::map("remove from", name))?;
        removed += 1;
    }
    Ok(removed)
}

/// One of the tables, with its name.
fn table_of(maps: &mut Maps, pending: bool) -> (&mut FlowTable, &'static str) {
    if pending {
        (&mut maps.pending, "pending")
    } else {
        (&mut maps.flows, "flows")
    }
}

/// One half of an incarnation of a flow, and whether it is a pending one: while a flow is being
/// promoted its halves are in different tables.
fn find(maps: &Maps, key: &FlowKey, pair: u32) -> Option<(bool, Flow)> {
    [(&maps.flows, false), (&maps.pending, true)]
        .into_iter()
        .find_map(|(table, pending)| {
            let half = table.get(key, 0).ok()?;
            (half.pair == pair).then_some((pending, half))
        })
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
    ]
    .into_iter()
    .filter(|(set, _)| *set)
    .map(|(_, word)| word.to_owned())
    .collect()
}
