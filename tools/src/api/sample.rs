//! Views as an agent gives them, for tests of what is made of them.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use datapath_ipam::{Lease, Owner, PoolUsage, Reservation};
use datapath_user::{
    FlowEnd, FlowFormat, FlowHalf, FlowNat, FlowState, FlowTableName, FlowVerdict, FlowWay, Listed,
    ListedBy, MasqueradeRule, NatKind, NonMasqueradeView, Protocol, UplinkState, UplinkView,
};

use datapath_user::policy::{DocumentId, DocumentKind, Labels, PolicyMode};

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn status() -> Status {
    Status {
        agent: Agent {
            version: "0.1.0".to_owned(),
            pid: 4711,
            uptime_s: 133,
            state: "/var/lib/datapath/ipam.redb".into(),
            policy: policy_sources(),
        },
        datapath: datapath_user::Status {
            kernel: "6.12.48".to_owned(),
            abi_version: 1,
            tunnel: "direct".to_owned(),
            tunnel_why: "as configured".to_owned(),
            udp_segmentation: "stack".to_owned(),
            udp_segmentation_why: "the tunnel cannot carry frames of several datagrams".to_owned(),
            pod_device: "netkit".to_owned(),
            pod_device_why: "this kernel has it".to_owned(),
            uplinks: vec![UplinkView {
                name: "eth0".to_owned(),
                interface: "eth0".to_owned(),
                index: 2,
                kind: None,
                state: UplinkState::Up,
                mtu_bytes: 1500,
                addresses: vec![ip("192.0.2.11"), ip("2001:db8:0:1::11")],
                masquerade: vec![ip("192.0.2.11")],
                masquerade_rules: vec![MasqueradeRule::Route],
                unmasqueraded: vec!["ipv6".to_owned()],
            }],
            non_masquerade: NonMasqueradeView {
                prefixes: [
                    ("10.0.0.0/8", ListedBy::File),
                    ("172.16.0.0/12", ListedBy::Config),
                ]
                .map(|(prefix, by)| Listed {
                    prefix: prefix.parse().unwrap(),
                    by,
                })
                .to_vec(),
                file: Some("/etc/datapath/masq.yaml".into()),
                problem: None,
            },
            gateways: vec![ip("10.244.1.1"), ip("fd00:10:244:1::1")],
            gateway_mac: "02:00:00:00:00:01".to_owned(),
            pod_cidrs: ["10.244.1.0/24", "fd00:10:244:1::/64"]
                .map(|net| net.parse().unwrap())
                .to_vec(),
            pod_mtu_bytes: 1450,
            flows: TableUse {
                used: 1500,
                max: 131_072,
                high_water: 60_211,
                memory_bytes: 24_118_272,
                moving: 0,
            },
            pending: TableUse {
                used: 0,
                max: 32_768,
                high_water: 412,
                memory_bytes: 6_029_312,
                moving: 0,
            },
            tallies: Tallies {
                pending: TableTally {
                    evicted: 12,
                    refused_full: 3,
                    refused_busy: 1,
                    ..TableTally::default()
                },
                quota_pending: 5,
                ..Tallies::default()
            },
            sweeping: datapath_user::SweepView {
                passes: 14,
                slices: 30,
                examined: 21_400,
                removed: 2_650,
                put_back: 1,
                displaced: 0,
                cpu_us: 23_400,
                longest_slice_us: 3_050,
                last_cpu_us: 1_600,
                last_elapsed_ms: 2,
                interval_ms: 10_000,
            },
            policy: policy_status(),
            endpoints: 2,
            peers: 1,
            refreshes: 3,
            changes: 1,
            bpffs: "/run/datapath/bpffs".into(),
            adopted: Some(adoption()),
        },
    }
}

fn adoption() -> datapath_user::Adoption {
    datapath_user::Adoption {
        endpoints_kept: 2,
        endpoints_removed: vec!["web-7".to_owned()],
        peers_kept: 1,
        links_replaced: 8,
        flows_kept: 1498,
        ..datapath_user::Adoption::default()
    }
}

fn policy_sources() -> PolicySources {
    PolicySources {
        mode: PolicyMode::Default,
        audit: false,
        changed: Some("2026-03-04T05:06:07Z".parse().unwrap()),
        applied: 2,
        directory: Some(Followed {
            path: "/etc/datapath/policy.d".into(),
            says: "10 documents, 1 refused".to_owned(),
            problem: None,
        }),
        cluster: Some(Followed {
            path: "/etc/datapath/cluster.toml".into(),
            says: "3 other nodes, 40 addresses of pods".to_owned(),
            problem: Some("/etc/datapath/cluster.toml:7: there are two nodes".to_owned()),
        }),
    }
}

fn policy_status() -> datapath_user::PolicyStatus {
    datapath_user::PolicyStatus {
        known: true,
        documents: 12,
        refused: 1,
        rule_sets: 5,
        classes: 17,
        peer_entries: 230,
        port_entries: 96,
        updates: 4,
        last_update_us: 2_150,
        max_update_us: 8_400,
    }
}

pub(crate) fn policies() -> PolicyList {
    let entry = |id: &str, state, source, file: &str| PolicyEntry {
        id: parse_document_id(id).ok(),
        rules: 2,
        endpoints: 3,
        node: false,
        state,
        source,
        file: Some(file.into()),
        problems: Vec::new(),
    };
    let (directory, applied) = (PolicySource::Directory, PolicySource::Applied);
    let problem = "/etc/datapath/policy.d/db.yaml:5:7: there is no key `PodSelector`";
    PolicyList {
        documents: vec![
            entry(
                "netpol/shop/web",
                PolicyState::Enforced,
                directory,
                "/etc/datapath/policy.d/web.yaml",
            ),
            PolicyEntry {
                problems: vec![problem.to_owned()],
                rules: 0,
                endpoints: 0,
                ..entry(
                    "cnp/shop/db",
                    PolicyState::Quarantined,
                    directory,
                    "/etc/datapath/policy.d/db.yaml",
                )
            },
            PolicyEntry {
                node: true,
                endpoints: 0,
                ..entry(
                    "ccnp/nodes",
                    PolicyState::Enforced,
                    applied,
                    "/root/nodes.yaml",
                )
            },
        ],
    }
}

pub(crate) fn identities() -> Vec<IdentityEntry> {
    let labels = |labels: &[&str]| {
        let labels: Vec<String> = labels.iter().map(|label| (*label).to_owned()).collect();
        Labels::try_from(labels).unwrap()
    };
    let prefix: ipnet::IpNet = "192.0.2.0/24".parse().unwrap();
    vec![
        IdentityEntry {
            number: 256,
            labels: labels(&["k8s:app=web", "k8s:io.kubernetes.pod.namespace=shop"]),
            prefix: None,
            endpoints: vec!["web-0".to_owned(), "web-1".to_owned()],
            remote: 4,
        },
        IdentityEntry {
            number: 16_777_216,
            labels: Labels::cidr(prefix),
            prefix: Some(prefix),
            endpoints: Vec::new(),
            remote: 0,
        },
    ]
}

pub(crate) fn endpoint() -> EndpointView {
    EndpointView {
        id: "web-0".to_owned(),
        slot: 1,
        netns: "/run/netns/web-0".into(),
        interface: "eth0".to_owned(),
        host_interface: "dp0123456789a".to_owned(),
        host_index: 7,
        mac: "02:11:22:33:44:55".to_owned(),
        addresses: vec![ip("10.244.1.2"), ip("fd00:10:244:1::2")],
        identity: 1001,
        identity_allocated: false,
        namespace: None,
        name: None,
        labels: BTreeMap::new(),
        namespace_labels: BTreeMap::new(),
        service_account: None,
        ports: Vec::new(),
        policy: datapath_user::EndpointPolicy::default(),
    }
}

pub(crate) fn peer() -> PeerView {
    PeerView {
        name: "n2".to_owned(),
        index: 1,
        address: ip("192.0.2.12"),
        local: ip("192.0.2.11"),
        node_addresses: vec![ip("2001:db8:0:1::12")],
        pod_cidrs: ["10.244.2.0/24", "fd00:10:244:2::/64"]
            .map(|net| net.parse().unwrap())
            .to_vec(),
        pods: 4,
        interface: "eth0".to_owned(),
        generation: 3,
    }
}

/// A masqueraded connection, a denied one of which a half is missing, and an unanswered echo request
/// to another node's pod.
pub(crate) fn flows() -> Vec<FlowPair<'static>> {
    let end = |kind, name: &'static str, identity, address, port| FlowEnd {
        kind,
        name: name.into(),
        identity,
        address: ip(address),
        port,
    };
    let masqueraded = FlowPair {
        format: FlowFormat,
        protocol: Protocol(6),
        source: end(EndKind::Endpoint, "web-0", 1001, "10.244.1.2", 40_000),
        destination: end(EndKind::World, "world", 2, "198.51.100.10", 80),
        nat: Some(FlowNat {
            kind: NatKind::Source,
            address: ip("192.0.2.11"),
            port: 40_000,
        }),
        state: FlowState::Established,
        verdict: FlowVerdict::Allow,
        table: FlowTableName::Established,
        arrival: FlowWay::Pod,
        target: FlowWay::Uplink,
        via_stack: false,
        packets: 12,
        bytes: 3456,
        reply_packets: 10,
        reply_bytes: 123_456,
        expires_in_s: 7980,
        rule_id: 0,
        pair: 9,
        missing: None,
    };
    let denied = FlowPair {
        destination: end(EndKind::World, "world", 0, "198.51.100.10", 8443),
        nat: None,
        state: FlowState::Syn,
        verdict: FlowVerdict::Deny,
        table: FlowTableName::Pending,
        packets: 1,
        bytes: 74,
        reply_packets: 0,
        reply_bytes: 0,
        expires_in_s: 59,
        rule_id: 3,
        pair: 11,
        missing: Some(FlowHalf::Reply),
        ..masqueraded.clone()
    };
    let echo = FlowPair {
        protocol: Protocol(58),
        source: end(EndKind::Endpoint, "web-0", 1001, "fd00:10:244:1::2", 7),
        destination: end(EndKind::Peer, "n2", 2001, "fd00:10:244:2::2", 0),
        state: FlowState::Unreplied,
        verdict: FlowVerdict::Allow,
        target: FlowWay::Tunnel,
        bytes: 118,
        rule_id: 0,
        pair: 10,
        missing: None,
        ..denied.clone()
    };
    vec![masqueraded, denied, echo]
}

pub(crate) fn metrics() -> Vec<MetricView> {
    let metric = |direction: &str, outcome: &str, dropped, packets, bytes| MetricView {
        direction: direction.to_owned(),
        outcome: outcome.to_owned(),
        dropped,
        packets,
        bytes,
    };
    vec![
        metric("egress", "Invalid source ip", true, 3, 294),
        metric("ingress", "Multicast", true, 12, 1080),
        metric("ingress", "to-endpoint", false, 123_456, 98_765_432),
    ]
}

fn labels(texts: &[&str]) -> Arc<Labels> {
    let texts: Vec<_> = texts.iter().map(|&text| text.to_owned()).collect();
    Arc::new(Labels::try_from(texts).unwrap())
}

/// A segment from a pod to the world that a rule denies.
pub(crate) fn event() -> EventView {
    let frame: Vec<u8> = (0..74).collect();
    EventView {
        time: "2026-11-21T06:30:00.123456789Z".parse().unwrap(),
        kind: EventKind::Drop,
        verdict: EventVerdict::Dropped,
        reason: "Policy denied by denylist".to_owned(),
        policy: Some(PolicyDecision {
            matched: PolicyMatch::L3L4,
            rule_id: 77,
            rule: Some(EventRule {
                document: Some(DocumentId {
                    kind: DocumentKind::CiliumNetworkPolicy,
                    namespace: Some("shop".to_owned()),
                    name: "web".to_owned(),
                }),
                path: "spec.egressDeny[0]".to_owned(),
                file: Some("web.yaml".into()),
                line: 12,
            }),
        }),
        direction: "egress".to_owned(),
        reply: None,
        node: "n1".to_owned(),
        hook: "from_pod".to_owned(),
        interface: "dp0123456789a".to_owned(),
        interface_index: 7,
        endpoint: Some("web-0".to_owned()),
        source: EventEnd {
            kind: Some(EndKind::Endpoint),
            name: Some("web-0".to_owned()),
            namespace: Some("shop".to_owned()),
            pod: Some("web-0".to_owned()),
            labels: labels(&["k8s:app=web", "k8s:io.kubernetes.pod.namespace=shop"]),
            identity: Some(1001),
            address: Some(ip("10.244.1.2")),
            port: Some(40_000),
            mac: Some("02:11:22:33:44:55".to_owned()),
            claimed: false,
        },
        destination: EventEnd {
            kind: Some(EndKind::World),
            name: Some("world".to_owned()),
            identity: Some(9),
            labels: labels(&["reserved:world-ipv4"]),
            address: Some(ip("198.51.100.10")),
            port: Some(80),
            mac: Some("02:00:00:00:00:01".to_owned()),
            claimed: false,
            ..EventEnd::default()
        },
        ip_version: Some(4),
        icmp: None,
        protocol: "tcp".to_owned(),
        tcp_flags: "SYN".to_owned(),
        summary: "TCP Flags: SYN".to_owned(),
        tagged: false,
        tunnel: None,
        length_bytes: 1514,
        frame,
    }
}

/// A connection that policy lets begin, one that nothing allows with its drop, one of an audited
/// pod, and an echo request that a rule denies.
pub(crate) fn events() -> Vec<EventView> {
    let pod = |name: &str, address, identity, port| EventEnd {
        kind: Some(EndKind::Endpoint),
        name: Some(name.to_owned()),
        namespace: Some("default".to_owned()),
        pod: Some(name.to_owned()),
        identity: Some(identity),
        labels: labels(&["k8s:io.kubernetes.pod.namespace=default"]),
        address: Some(ip(address)),
        port,
        mac: Some("02:11:22:33:44:55".to_owned()),
        claimed: false,
    };
    let denied = event();
    let mut rule = denied.policy.clone().unwrap().rule.unwrap();
    rule.document.as_mut().unwrap().kind = DocumentKind::NetworkPolicy;
    "spec.ingress[0]".clone_into(&mut rule.path);
    let decided = |matched, rule: Option<EventRule>| {
        Some(PolicyDecision {
            matched,
            rule_id: rule.as_ref().map_or(0, |_| 78),
            rule,
        })
    };
    let allowed = EventView {
        kind: EventKind::PolicyVerdict,
        reply: Some(false),
        verdict: EventVerdict::Forwarded,
        reason: String::new(),
        policy: decided(PolicyMatch::L3L4, Some(rule)),
        direction: "ingress".to_owned(),
        source: pod("client-1", "10.244.1.2", 1234, Some(43_210)),
        destination: pod("server", "10.244.1.3", 5678, Some(80)),
        ..denied.clone()
    };
    let unmatched = EventView {
        verdict: EventVerdict::Dropped,
        reason: "Policy denied".to_owned(),
        policy: decided(PolicyMatch::None, None),
        ..allowed.clone()
    };
    let dropped = EventView {
        kind: EventKind::Drop,
        reply: None,
        policy: None,
        ..unmatched.clone()
    };
    let audited = EventView {
        verdict: EventVerdict::Audit,
        reason: String::new(),
        direction: "egress".to_owned(),
        ..unmatched.clone()
    };
    let echo = EventView {
        kind: EventKind::PolicyVerdict,
        policy: decided(PolicyMatch::L3Proto, denied.policy.clone().unwrap().rule),
        source: pod("client-1", "fd00:10:244:1::2", 1234, None),
        destination: EventEnd {
            identity: Some(10),
            address: Some(ip("2001:db8::7")),
            labels: labels(&["reserved:world-ipv6"]),
            port: None,
            ..denied.destination.clone()
        },
        protocol: "icmpv6".to_owned(),
        tcp_flags: String::new(),
        ip_version: Some(6),
        icmp: Some(IcmpView { kind: 128, code: 0 }),
        summary: "ICMPv6 EchoRequest".to_owned(),
        ..denied
    };
    vec![allowed, unmatched, dropped, audited, echo]
}

pub(crate) fn untold() -> Item {
    Item::Untold(Untold {
        why: Why::RateLimit,
        reason: Some("Multicast".to_owned()),
        events: 37,
    })
}

pub(crate) fn addresses() -> Addresses {
    let usage = |range: &str, capacity: u128| PoolUsage {
        pool: "default".to_owned(),
        range: range.parse().unwrap(),
        capacity,
        used: 1,
        reserved: 1,
        cooling: 2,
        free: capacity - 4,
    };
    Addresses {
        usage: vec![
            usage("10.244.1.0/24", 254),
            usage("fd00:10:244:1::/64", u128::from(u64::MAX)),
        ],
        leases: vec![Lease {
            pool: "default".to_owned(),
            owner: Owner::new("web-0", "eth0").unwrap(),
            addresses: vec![ip("10.244.1.2"), ip("fd00:10:244:1::2")],
            boot_id: "0".to_owned(),
            created_s: 1_700_000_000,
        }],
        reservations: vec![Reservation {
            pool: "default".to_owned(),
            address: ip("10.244.1.1"),
            purpose: "gateway".to_owned(),
        }],
    }
}
