//! A table of records of the ring buffer, and what is made of them.

use std::net::IpAddr;

use datapath_kern::abi::event::{Event, FRAME_BYTES, Head, Hook, flags, kind};
use datapath_kern::abi::flow::{End, verdict};
use datapath_kern::abi::metric::Direction;
use datapath_kern::abi::policy::matched;
use datapath_kern::verdict::DropReason;
use etherparse::PacketBuilder;
use jiff::Timestamp;

use super::ends::{Directory, EventEnd};
use super::labels::Shelf;
use super::policy::EventRule;
use super::view::{EventView, decode};
use crate::policy::{DocumentId, DocumentKind, Labels, reserved, source};

const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 244, 1, 5));
const RULE: u32 = 77;

/// A node with one pod, one peer, and one rule.
struct Known;

impl Directory for Known {
    fn interface(&self, index: u32) -> Option<String> {
        (index == 7).then(|| "dp7".to_owned())
    }

    fn endpoint_at(&self, interface: u32) -> Option<(u16, String)> {
        (interface == 7).then(|| (3, "c-1".to_owned()))
    }

    fn owns(&self, slot: u16, address: IpAddr) -> bool {
        slot == 3 && address == CLIENT
    }

    fn holder(&self, address: IpAddr) -> Option<(End, u32)> {
        match address.to_string().as_str() {
            "10.244.1.5" => Some((End::endpoint(3), 1001)),
            "10.244.2.9" => Some((End::peer(1), 2001)),
            "198.51.100.10" => Some((End::WORLD, 0x0100_0002)),
            _ if address.is_ipv4() => Some((End::WORLD, 9)),
            _ => Some((End::WORLD, 10)),
        }
    }

    fn name(&self, end: End) -> String {
        format!("end {:#x}", end.raw())
    }

    fn identity(&self, slot: u16) -> Option<u32> {
        (slot == 3).then_some(1001)
    }

    fn pod(&self, end: End, address: Option<IpAddr>) -> (Option<String>, Option<String>) {
        let pod = |name: &str| (Some("default".to_owned()), Some(name.to_owned()));
        match (end, address.map(|address| address.to_string()).as_deref()) {
            (end, _) if end == End::endpoint(3) => pod("client-1"),
            (_, Some("10.244.2.9")) => pod("server"),
            _ => (None, None),
        }
    }

    fn labels(&self, identity: u32) -> Option<Labels> {
        match identity {
            1001 => Some(Labels::default().with(source::K8S, "app", "client")),
            0x0100_0002 => Some(Labels::cidr("198.51.100.0/24".parse().unwrap())),
            _ => reserved::labels(identity),
        }
    }

    fn rule(&self, number: u32) -> Option<EventRule> {
        (number == RULE).then(|| EventRule {
            document: Some(DocumentId {
                kind: DocumentKind::NetworkPolicy,
                namespace: Some("default".to_owned()),
                name: "web".to_owned(),
            }),
            path: "spec.egress[0]".to_owned(),
            file: Some("web.yaml".into()),
            line: 12,
        })
    }
}

/// What is written when a SYN of the client is judged.
fn verdict_head(outcome: u8, rule_id: u32, matched: u8) -> Head {
    Head {
        time_ns: 1_500_000_000,
        kind: kind::VERDICT,
        outcome,
        hook: Hook::FromPod as u8,
        direction: Direction::Egress as u8,
        flags: flags::SOURCE | flags::DESTINATION,
        l3: 14,
        interface: 7,
        source_identity: 1001,
        source: End::endpoint(3).raw(),
        destination_identity: 2001,
        destination: End::peer(1).raw(),
        matched,
        rule_id,
        ..Head::default()
    }
}

fn tcp(to: [u8; 4]) -> Vec<u8> {
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([10, 244, 1, 5], to, 64)
        .tcp(43_210, 80, 1, 1000)
        .syn()
        .write(&mut bytes, &[])
        .unwrap();
    bytes
}

fn echo() -> Vec<u8> {
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv6([0xfd; 16], [0x20; 16], 64)
        .icmpv6_echo_request(7, 1)
        .write(&mut bytes, b"hi")
        .unwrap();
    bytes
}

fn view(head: Head, bytes: &[u8]) -> EventView {
    let mut frame = [0; FRAME_BYTES];
    frame[..bytes.len()].copy_from_slice(bytes);
    let head = Head {
        captured: bytes.len().try_into().unwrap(),
        length: bytes.len().try_into().unwrap(),
        ..head
    };
    let record = zerocopy::IntoBytes::as_bytes(&Event { head, frame }).to_vec();
    let event = decode(&record).unwrap();
    let boot: Timestamp = "2026-11-21T14:00:00Z".parse().unwrap();
    EventView::new(&event, boot, Some(&Known), &mut Shelf::default(), "n1")
}

/// What happened, to whom, and why, of an event.
fn essence(event: &EventView) -> String {
    let json = serde_json::to_string(event).unwrap();
    let back: EventView = serde_json::from_str(&json).unwrap();
    assert_eq!(&back, event, "it survives the wire");
    let policy = event.policy.as_ref().map_or_else(String::new, |policy| {
        let rule = policy.rule.as_ref();
        let rule = rule.map(|rule| {
            let document = rule.document.as_ref().unwrap();
            format!(" {document} {}", rule.path)
        });
        format!(" | {}{}", policy.matched.as_str(), rule.unwrap_or_default())
    });
    format!(
        "{} {} {:?} {} | {} > {} | {} v{} {:?}{policy}",
        event.kind.as_str(),
        event.verdict.as_str(),
        event.reason,
        event.direction,
        end(&event.source),
        end(&event.destination),
        event.summary,
        event.ip_version.unwrap(),
        event.icmp.map(|icmp| (icmp.kind, icmp.code)),
    )
}

fn end(end: &EventEnd) -> String {
    let name = match (&end.namespace, &end.pod) {
        (Some(namespace), Some(pod)) => format!("{namespace}/{pod}"),
        _ => end.name.clone().unwrap(),
    };
    let kind = end.kind.unwrap();
    format!("{kind:?} {name} {} [{}]", end.identity.unwrap(), end.labels)
}

fn lines(events: &[EventView]) -> String {
    let lines = events.iter().map(|event| essence(event) + "\n");
    lines.collect()
}

#[test]
fn verdicts_tell_who_what_and_by_which_rule() {
    let peer = tcp([10, 244, 2, 9]);
    let allowed = view(verdict_head(verdict::ALLOW, RULE, matched::L3_L4), &peer);
    assert_eq!(allowed.time.to_string(), "2026-11-21T14:00:01.5Z");
    let rule = allowed.policy.clone().unwrap().rule.unwrap();
    assert_eq!((rule.line, rule.file), (12, Some("web.yaml".into())));
    let by_none = view(verdict_head(verdict::DENY, 0, matched::NONE), &peer);
    let by_rule = view(verdict_head(verdict::DENY, RULE, matched::L4_ONLY), &peer);
    let audited = view(verdict_head(verdict::AUDIT, 0, matched::NONE), &peer);
    // The rule went with its document.
    let gone = view(verdict_head(verdict::ALLOW, 5, matched::ALL), &peer);
    insta::assert_snapshot!(lines(&[allowed, by_none, by_rule, audited, gone]), @r#"
    policy-verdict FORWARDED "" egress | Endpoint default/client-1 1001 [k8s:app=client] > Peer default/server 2001 [] | TCP Flags: SYN v4 None | L3-L4 NetworkPolicy/default/web spec.egress[0]
    policy-verdict DROPPED "Policy denied" egress | Endpoint default/client-1 1001 [k8s:app=client] > Peer default/server 2001 [] | TCP Flags: SYN v4 None | none
    policy-verdict DROPPED "Policy denied by denylist" egress | Endpoint default/client-1 1001 [k8s:app=client] > Peer default/server 2001 [] | TCP Flags: SYN v4 None | L4-Only NetworkPolicy/default/web spec.egress[0]
    policy-verdict AUDIT "" egress | Endpoint default/client-1 1001 [k8s:app=client] > Peer default/server 2001 [] | TCP Flags: SYN v4 None | none
    policy-verdict FORWARDED "" egress | Endpoint default/client-1 1001 [k8s:app=client] > Peer default/server 2001 [] | TCP Flags: SYN v4 None | all
    "#);
}

#[test]
fn drops_are_told_by_the_packet_where_the_kernel_has_proven_nothing() {
    let head = |reason: DropReason, hook: Hook| Head {
        kind: kind::DROP,
        outcome: reason as u8,
        hook: hook as u8,
        interface: if hook == Hook::FromPod { 7 } else { 2 },
        l3: 14,
        ..Head::default()
    };
    let by_policy = Head {
        rule_id: RULE,
        matched: matched::L4_ONLY,
        ..head(DropReason::PolicyDeniedByRule, Hook::FromPod)
    };
    let world = tcp([198, 51, 100, 10]);
    let events = [
        view(head(DropReason::NoRoute, Hook::FromPod), &world),
        view(by_policy, &tcp([192, 0, 2, 1])),
        view(head(DropReason::IcmpUnrelated, Hook::FromUplink), &echo()),
    ];
    insta::assert_snapshot!(lines(&events), @r#"
    drop DROPPED "FIB lookup failed" ingress | Endpoint default/client-1 1001 [k8s:app=client] > World end 0x8000 16777218 [cidr:198.51.100.0/24,reserved:world-ipv4] | TCP Flags: SYN v4 None
    drop DROPPED "Policy denied by denylist" ingress | Endpoint default/client-1 1001 [k8s:app=client] > World end 0x8000 9 [reserved:world-ipv4] | TCP Flags: SYN v4 None | L4-Only NetworkPolicy/default/web spec.egress[0]
    drop DROPPED "ICMP without a flow" ingress | World end 0x8000 10 [reserved:world-ipv6] > World end 0x8000 10 [reserved:world-ipv6] | ICMPv6 EchoRequest v6 Some((128, 0))
    "#);
}

#[test]
fn a_kind_of_a_later_version_is_passed_over() {
    let head = Head {
        kind: 9,
        ..Head::default()
    };
    let frame = [0; FRAME_BYTES];
    assert_eq!(
        decode(zerocopy::IntoBytes::as_bytes(&Event { head, frame })),
        None
    );
}
