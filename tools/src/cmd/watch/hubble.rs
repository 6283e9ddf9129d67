//! An event in JSON, with the names that Hubble's API has (`flow.proto`, `observer.proto`).

use std::net::IpAddr;

use jiff::Timestamp;
use serde::Serialize;

use super::line::is_reply;
use crate::api::{
    EndKind, EventEnd, EventKind, EventRule, EventVerdict, EventView, Item, Untold, Why,
};

/// A flow, as `hubble observe --output json` had it, or the events that are missing.
///
/// # Errors
///
/// [`serde_json::Error`], which does not happen.
pub(super) fn flow(item: &Item) -> serde_json::Result<String> {
    match item {
        Item::Event(event) => serde_json::to_string(&Flow::of(event)),
        Item::Untold(untold) => serde_json::to_string(&LostEvents::of(untold)),
    }
}

/// The same as a `GetFlowsResponse`.
///
/// # Errors
///
/// As [`flow`].
pub(super) fn response(item: &Item) -> serde_json::Result<String> {
    serde_json::to_string(&match item {
        Item::Event(event) => Response::Flow {
            flow: Box::new(Flow::of(event)),
            node_name: &event.node,
            time: event.time,
        },
        Item::Untold(untold) => Response::Lost {
            lost_events: LostEvents::of(untold),
        },
    })
}

/// `observer.GetFlowsResponse`.
#[derive(Serialize)]
#[serde(untagged)]
enum Response<'a> {
    Flow {
        flow: Box<Flow<'a>>,
        #[serde(skip_serializing_if = "str::is_empty")]
        node_name: &'a str,
        time: Timestamp,
    },
    Lost {
        lost_events: LostEvents<'a>,
    },
}

/// `flow.LostEvents`, and in what they have in common.
#[derive(Serialize)]
struct LostEvents<'a> {
    source: &'static str,
    /// A number of 64 bits is a string in the JSON of protocol buffers.
    num_events_lost: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

/// `flow.Flow`.
#[derive(Serialize)]
struct Flow<'a> {
    time: Timestamp,
    verdict: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    drop_reason: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    ethernet: Option<Ethernet<'a>>,
    #[serde(rename = "IP", skip_serializing_if = "Option::is_none")]
    ip: Option<Ip>,
    #[serde(skip_serializing_if = "Option::is_none")]
    l4: Option<Layer4>,
    source: Endpoint<'a>,
    destination: Endpoint<'a>,
    #[serde(rename = "Type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    node_name: &'a str,
    event_type: EventType,
    traffic_direction: String,
    #[serde(skip_serializing_if = "is_zero")]
    policy_match_type: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    drop_reason_desc: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    is_reply: Option<bool>,
    interface: Interface<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tunnel: Option<Tunnel>,
    #[serde(flatten)]
    policies: Policies<'a>,
    #[serde(rename = "Summary")]
    summary: &'a str,
}

#[derive(Serialize)]
struct Ethernet<'a> {
    source: &'a str,
    destination: &'a str,
}

#[derive(Serialize)]
struct Ip {
    source: IpAddr,
    destination: IpAddr,
    #[serde(rename = "ipVersion")]
    version: &'static str,
}

#[derive(Serialize)]
enum Layer4 {
    #[serde(rename = "TCP")]
    Tcp {
        source_port: u16,
        destination_port: u16,
        #[serde(skip_serializing_if = "TcpFlags::is_empty")]
        flags: TcpFlags,
    },
    #[serde(rename = "UDP")]
    Udp {
        source_port: u16,
        destination_port: u16,
    },
    #[serde(rename = "SCTP")]
    Sctp {
        source_port: u16,
        destination_port: u16,
    },
    #[serde(rename = "ICMPv4")]
    IcmpV4 {
        #[serde(rename = "type", skip_serializing_if = "is_zero_byte")]
        kind: u8,
        #[serde(skip_serializing_if = "is_zero_byte")]
        code: u8,
    },
    #[serde(rename = "ICMPv6")]
    IcmpV6 {
        #[serde(rename = "type", skip_serializing_if = "is_zero_byte")]
        kind: u8,
        #[serde(skip_serializing_if = "is_zero_byte")]
        code: u8,
    },
}

/// Those that are set, with `true`.
struct TcpFlags(Vec<String>);

#[derive(Serialize)]
struct Endpoint<'a> {
    #[serde(skip_serializing_if = "is_zero")]
    identity: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    labels: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod_name: Option<&'a str>,
}

#[derive(Serialize)]
struct EventType {
    #[serde(rename = "type")]
    kind: u32,
    #[serde(skip_serializing_if = "is_zero")]
    sub_type: u32,
}

#[derive(Serialize)]
struct Interface<'a> {
    index: u32,
    name: &'a str,
}

#[derive(Serialize)]
struct Tunnel {
    protocol: &'static str,
    #[serde(rename = "IP")]
    ip: Ip,
    vni: u32,
}

/// The policy that decided, under the name of what it decided.
#[derive(Default, Serialize)]
struct Policies<'a> {
    #[serde(rename = "egress_allowed_by", skip_serializing_if = "Option::is_none")]
    egress_allowed: Option<[Policy<'a>; 1]>,
    #[serde(rename = "ingress_allowed_by", skip_serializing_if = "Option::is_none")]
    ingress_allowed: Option<[Policy<'a>; 1]>,
    #[serde(rename = "egress_denied_by", skip_serializing_if = "Option::is_none")]
    egress_denied: Option<[Policy<'a>; 1]>,
    #[serde(rename = "ingress_denied_by", skip_serializing_if = "Option::is_none")]
    ingress_denied: Option<[Policy<'a>; 1]>,
}

#[derive(Serialize)]
struct Policy<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
    /// Cilium's labels of the rule, and where in the document it stands.
    labels: Vec<String>,
    kind: String,
}

impl<'a> Flow<'a> {
    fn of(event: &'a EventView) -> Self {
        let cilium = cilium_reason(&event.reason);
        let number = cilium.map_or(0, |(number, _)| number);
        let dropped = event.verdict == EventVerdict::Dropped;
        let kind = match event.kind {
            EventKind::Drop => 1,
            EventKind::PolicyVerdict => 5,
        };
        let of_drop = event.kind == EventKind::Drop;
        let matched = event.policy.as_ref().map(|policy| policy.matched.number());
        Self {
            time: event.time,
            verdict: event.verdict.as_str(),
            drop_reason: number,
            ethernet: ethernet(event),
            ip: ip(event),
            l4: layer_4(event),
            source: Endpoint::of(&event.source),
            destination: Endpoint::of(&event.destination),
            kind: "L3_L4",
            node_name: &event.node,
            event_type: EventType {
                kind,
                sub_type: if of_drop { number } else { 0 },
            },
            traffic_direction: event.direction.to_uppercase(),
            policy_match_type: matched.unwrap_or(0).into(),
            drop_reason_desc: dropped
                .then(|| cilium.map_or("DROP_REASON_UNKNOWN", |(_, name)| name)),
            is_reply: is_reply(event),
            interface: Interface {
                index: event.interface_index,
                name: &event.interface,
            },
            tunnel: event.tunnel.as_ref().map(|tunnel| Tunnel {
                protocol: "GENEVE",
                ip: Ip::of(tunnel.source, tunnel.destination),
                vni: tunnel.vni,
            }),
            policies: Policies::of(event),
            summary: &event.summary,
        }
    }
}

impl Ip {
    fn of(source: IpAddr, destination: IpAddr) -> Self {
        Self {
            source,
            destination,
            version: if source.is_ipv4() { "IPv4" } else { "IPv6" },
        }
    }
}

impl<'a> Endpoint<'a> {
    /// An endpoint that is called by no pod's name has its id for one.
    fn of(end: &'a EventEnd) -> Self {
        let local = end.kind == Some(EndKind::Endpoint);
        let id = end.name.as_deref().filter(|_| local);
        Self {
            identity: end.identity.unwrap_or(0),
            namespace: end.namespace.as_deref(),
            labels: end.labels.iter().map(|label| label.to_string()).collect(),
            pod_name: end.pod.as_deref().or(id),
        }
    }
}

impl<'a> Policies<'a> {
    fn of(event: &'a EventView) -> Self {
        let rule = event
            .policy
            .as_ref()
            .and_then(|policy| policy.rule.as_ref());
        let by = rule.and_then(Policy::of).map(|policy| [policy]);
        let allowed = event.verdict == EventVerdict::Forwarded;
        let mut policies = Self::default();
        match (event.direction.as_str(), allowed) {
            ("egress", true) => policies.egress_allowed = by,
            ("egress", false) => policies.egress_denied = by,
            (_, true) => policies.ingress_allowed = by,
            (_, false) => policies.ingress_denied = by,
        }
        policies
    }
}

impl<'a> Policy<'a> {
    /// None of a document that has no name.
    fn of(rule: &'a EventRule) -> Option<Self> {
        let document = rule.document.as_ref()?;
        let label = |key: &str, value: &str| format!("k8s:io.cilium.k8s.policy.{key}={value}");
        let mut labels = vec![
            label("derived-from", &document.kind.to_string()),
            label("name", &document.name),
        ];
        labels.extend(
            document
                .namespace
                .iter()
                .map(|name| label("namespace", name)),
        );
        labels.push(format!("datapath:rule={}", rule.path));
        Some(Self {
            name: &document.name,
            namespace: document.namespace.as_deref(),
            labels,
            kind: document.kind.to_string(),
        })
    }
}

impl<'a> LostEvents<'a> {
    fn of(untold: &'a Untold) -> Self {
        Self {
            source: match untold.why {
                Why::RateLimit => "UNKNOWN_LOST_EVENT_SOURCE",
                Why::RingFull => "PERF_EVENT_RING_BUFFER",
                Why::SlowClient => "HUBBLE_RING_BUFFER",
            },
            num_events_lost: untold.events.to_string(),
            reason: untold.reason.as_deref(),
        }
    }
}

impl TcpFlags {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for TcpFlags {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|flag| (flag, true)))
    }
}

fn ethernet(event: &EventView) -> Option<Ethernet<'_>> {
    Some(Ethernet {
        source: event.source.mac.as_deref()?,
        destination: event.destination.mac.as_deref()?,
    })
}

fn ip(event: &EventView) -> Option<Ip> {
    event.ip_version?;
    Some(Ip::of(event.source.address?, event.destination.address?))
}

fn layer_4(event: &EventView) -> Option<Layer4> {
    let ports = event.source.port.zip(event.destination.port);
    match event.protocol.as_str() {
        "tcp" => ports.map(|(source_port, destination_port)| {
            let flags = event.tcp_flags.split(", ").filter(|flag| !flag.is_empty());
            Layer4::Tcp {
                source_port,
                destination_port,
                flags: TcpFlags(flags.map(str::to_owned).collect()),
            }
        }),
        "udp" => ports.map(|(source_port, destination_port)| Layer4::Udp {
            source_port,
            destination_port,
        }),
        "sctp" => ports.map(|(source_port, destination_port)| Layer4::Sctp {
            source_port,
            destination_port,
        }),
        "icmp" => event.icmp.map(|icmp| Layer4::IcmpV4 {
            kind: icmp.kind,
            code: icmp.code,
        }),
        "icmpv6" => event.icmp.map(|icmp| Layer4::IcmpV6 {
            kind: icmp.kind,
            code: icmp.code,
        }),
        _ => None,
    }
}

/// Drop reasons for which Cilium has a number and a name (`DropReason` of `flow.proto`).
const CILIUM: [(&str, u32, &str); 20] = [
    ("Invalid source mac", 130, "INVALID_SOURCE_MAC"),
    ("Invalid source ip", 132, "INVALID_SOURCE_IP"),
    ("Policy denied", 133, "POLICY_DENIED"),
    ("Invalid packet", 134, "INVALID_PACKET_DROPPED"),
    ("Error writing to packet", 141, "ERROR_WRITING_TO_PACKET"),
    ("Unknown L4 protocol", 142, "UNKNOWN_L4_PROTOCOL"),
    (
        "Unknown critical tunnel option",
        149,
        "INVALID_GENEVE_OPTION",
    ),
    ("Stale or unroutable IP", 151, "STALE_OR_UNROUTABLE_IP"),
    ("CT: Map insertion failed", 155, "CT_MAP_INSERTION_FAILED"),
    (
        "IP fragmentation not supported",
        157,
        "IP_FRAGMENTATION_NOT_SUPPORTED",
    ),
    ("Unsupported L2 protocol", 166, "UNSUPPORTED_L2_PROTOCOL"),
    (
        "No mapping for NAT masquerade",
        167,
        "NO_MAPPING_FOR_NAT_MASQUERADE",
    ),
    (
        "Unsupported protocol for NAT masquerade",
        168,
        "UNSUPPORTED_PROTOCOL_FOR_NAT_MASQUERADE",
    ),
    ("FIB lookup failed", 169, "FIB_LOOKUP_FAILED"),
    (
        "Encapsulation traffic is prohibited",
        170,
        "ENCAPSULATION_TRAFFIC_IS_PROHIBITED",
    ),
    ("Invalid identity", 171, "INVALID_IDENTITY"),
    (
        "First logical datagram fragment not found",
        175,
        "FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND",
    ),
    ("Forbidden ICMPv6 message", 176, "FORBIDDEN_ICMPV6_MESSAGE"),
    ("Policy denied by denylist", 181, "POLICY_DENY"),
    ("TTL exceeded", 196, "TTL_EXCEEDED"),
];

fn cilium_reason(reason: &str) -> Option<(u32, &'static str)> {
    let found = CILIUM.iter().find(|(label, _, _)| *label == reason);
    found.map(|(_, number, name)| (*number, *name))
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
const fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
const fn is_zero_byte(number: &u8) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_of_cilium_is_one_of_ours() {
        let ours: Vec<_> = datapath_user::drop_reasons().collect();
        for (label, _, _) in CILIUM {
            assert!(ours.contains(&label), "{label}");
        }
        assert!(CILIUM.is_sorted_by_key(|(_, number, _)| *number));
        assert_eq!(cilium_reason("Policy denied"), Some((133, "POLICY_DENIED")));
        assert_eq!(cilium_reason("Multicast"), None);
    }
}
