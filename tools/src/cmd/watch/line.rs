//! An event in words, as Hubble's compact form has it.

use std::net::{IpAddr, SocketAddr};

use jiff::{Timestamp, tz::TimeZone};

use super::Style;
use crate::api::{EndKind, EventEnd, EventKind, EventVerdict, EventView, Item, Untold, Why};

/// Shows an item on a line.
pub(super) fn compact(item: &Item, zone: &TimeZone, style: Style) -> String {
    let event = match item {
        Item::Event(event) => event,
        Item::Untold(untold) => return untold_line(untold),
    };
    let time = stamp(event, zone, style);
    // Who began the flow stands first.
    let (first, arrow, second) = match is_reply(event) {
        Some(false) => (&event.source, "->", &event.destination),
        Some(true) => (&event.destination, "<-", &event.source),
        None => (&event.source, "<>", &event.destination),
    };
    let [first, second] = [first, second].map(|who| format!("{} {}", end(who), identity(who)));
    let (about, verdict) = (about(event), verdict(event, style));
    let (summary, within) = (&event.summary, within(event));
    format!("{time}: {first} {arrow} {second} {about} {verdict} ({summary}){within}")
}

/// Time, sender, receiver, what it is about, verdict, and the packet in short.
pub(super) fn fields(item: &Item, zone: &TimeZone, style: Style) -> [String; 6] {
    match item {
        Item::Event(event) => [
            stamp(event, zone, style),
            end(&event.source),
            end(&event.destination),
            about(event),
            verdict(event, style),
            format!("{}{}", event.summary, within(event)),
        ],
        Item::Untold(untold) => {
            let none = String::new;
            let about = "EVENTS LOST".to_owned();
            [none(), none(), none(), about, none(), untold_line(untold)]
        }
    }
}

/// Whether it is a packet that answers, where Hubble would say so: of what policy lets through.
pub(super) fn is_reply(event: &EventView) -> Option<bool> {
    event
        .reply
        .filter(|_| event.verdict != EventVerdict::Dropped)
}

fn stamp(event: &EventView, zone: &TimeZone, style: Style) -> String {
    let time = time(event.time, zone);
    if style.print_node_name && !event.node.is_empty() {
        return format!("{time} [{}]", event.node);
    }
    time
}

/// `Nov 21 06:30:00.123`.
pub(in crate::cmd) fn time(time: Timestamp, zone: &TimeZone) -> String {
    let zoned = time.to_zoned(zone.clone());
    zoned.strftime("%b %e %H:%M:%S.%3f").to_string()
}

/// The drop reason, or `policy-verdict:L3-L4 INGRESS`.
fn about(event: &EventView) -> String {
    match event.kind {
        EventKind::Drop => event.reason.clone(),
        EventKind::PolicyVerdict => {
            let matched = event.policy.as_ref().map(|policy| policy.matched.as_str());
            let direction = event.direction.to_uppercase();
            format!("policy-verdict:{} {direction}", matched.unwrap_or("none"))
        }
    }
}

fn verdict(event: &EventView, style: Style) -> String {
    let word = match (event.kind, event.verdict) {
        (EventKind::Drop, verdict) => verdict.as_str(),
        (EventKind::PolicyVerdict, EventVerdict::Forwarded) => "ALLOWED",
        (EventKind::PolicyVerdict, EventVerdict::Dropped) => "DENIED",
        (EventKind::PolicyVerdict, EventVerdict::Audit) => "AUDITED",
    };
    let judged = event.policy.as_ref().filter(|_| style.print_policy_names);
    let rule = judged.and_then(|policy| policy.rule.as_ref());
    match rule.and_then(|rule| rule.document.as_ref()) {
        Some(document) => format!("{word} BY {} ({})", document.name, document.kind),
        None => word.to_owned(),
    }
}

/// What the packet was in, for what Hubble has no words.
fn within(event: &EventView) -> String {
    match &event.tunnel {
        Some(tunnel) => format!(" in tunnel from {} VNI {}", tunnel.source, tunnel.vni),
        None if event.tagged => " with a VLAN tag".to_owned(),
        None => String::new(),
    }
}

/// `shop/web-0:40000`, `198.51.100.10:80`.
fn end(end: &EventEnd) -> String {
    let local = end.kind == Some(EndKind::Endpoint);
    let pod = match (&end.namespace, &end.pod) {
        (Some(namespace), Some(pod)) => Some(format!("{namespace}/{pod}")),
        (None, Some(pod)) => Some(pod.clone()),
        (_, None) => end.name.clone().filter(|_| local),
    };
    match (pod, end.address) {
        (Some(pod), Some(address)) if end.claimed => port(format!("{pod}[{address}]"), end.port),
        (Some(pod), _) => port(pod, end.port),
        (None, Some(address)) => socket(address, end.port),
        (None, None) => end.mac.clone().unwrap_or_else(|| "-".to_owned()),
    }
}

/// `(ID:1001)`, `(world-ipv4)`.
fn identity(end: &EventEnd) -> String {
    let pod = end.kind == Some(EndKind::Endpoint);
    if end.claimed && !pod {
        return "(unproven)".to_owned();
    }
    let Some(number) = end.identity else {
        return "(unknown)".to_owned();
    };
    match datapath_user::reserved_identity(number) {
        Some(name) => format!("({name})"),
        None => format!("(ID:{number})"),
    }
}

fn port(name: String, port: Option<u16>) -> String {
    match port {
        Some(port) => format!("{name}:{port}"),
        None => name,
    }
}

fn socket(address: IpAddr, port: Option<u16>) -> String {
    match port {
        Some(port) => SocketAddr::new(address, port).to_string(),
        None => address.to_string(),
    }
}

fn untold_line(untold: &Untold) -> String {
    let Untold { events, reason, .. } = untold;
    let what = match untold.why {
        Why::RateLimit => "events suppressed, too many in a second",
        Why::RingFull => "events lost, the ring buffer was full",
        Why::SlowClient => "events lost, this client reads too slowly",
    };
    let reason = reason.as_deref().map(|reason| format!(": {reason}"));
    format!("{events} {what}{}", reason.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{TunnelView, sample};

    fn styled(event: &EventView, style: Style) -> String {
        let item = Item::Event(Box::new(event.clone()));
        compact(&item, &TimeZone::UTC, style)
    }

    fn line(event: &EventView) -> String {
        styled(event, Style::default())
    }

    #[test]
    fn who_is_not_who_it_says_is_told() {
        let event = sample::event();
        let mut forged = event.clone();
        forged.source.claimed = true;
        forged.source.address = "fd00::7".parse().ok();
        forged.reason = "Invalid source ip".to_owned();
        insta::assert_snapshot!(line(&forged), @"Nov 21 06:30:00.123: shop/web-0[fd00::7]:40000 (ID:1001) <> 198.51.100.10:80 (world-ipv4) Invalid source ip DROPPED (TCP Flags: SYN)");
        let mut arp = event.clone();
        arp.time = "2026-11-02T06:30:00Z".parse().unwrap();
        arp.source = EventEnd {
            mac: Some("02:11:22:33:44:55".to_owned()),
            ..EventEnd::default()
        };
        arp.destination = EventEnd::default();
        arp.summary = "ARP Request".to_owned();
        insta::assert_snapshot!(line(&arp), @"Nov  2 06:30:00.000: 02:11:22:33:44:55 (unknown) <> - (unknown) Policy denied by denylist DROPPED (ARP Request)");
        let mut tunnelled = event;
        tunnelled.source = EventEnd {
            kind: Some(EndKind::Peer),
            address: "fd00:10:244:2::2".parse().ok(),
            port: Some(7),
            identity: Some(2001),
            claimed: true,
            ..EventEnd::default()
        };
        tunnelled.tunnel = Some(TunnelView {
            source: "192.0.2.12".parse().unwrap(),
            destination: "192.0.2.11".parse().unwrap(),
            vni: 1,
        });
        insta::assert_snapshot!(line(&tunnelled), @"Nov 21 06:30:00.123: [fd00:10:244:2::2]:7 (unproven) <> 198.51.100.10:80 (world-ipv4) Policy denied by denylist DROPPED (TCP Flags: SYN) in tunnel from 192.0.2.12 VNI 1");
    }

    #[test]
    fn an_answer_that_is_judged_points_back() {
        let mut event = sample::events().remove(0);
        event.reply = Some(true);
        std::mem::swap(&mut event.source, &mut event.destination);
        insta::assert_snapshot!(line(&event), @"Nov 21 06:30:00.123: default/client-1:43210 (ID:1234) <- default/server:80 (ID:5678) policy-verdict:L3-L4 INGRESS ALLOWED (TCP Flags: SYN)");
    }

    #[test]
    fn policies_and_nodes_are_named_when_asked_for() {
        let style = Style {
            print_policy_names: true,
            print_node_name: true,
        };
        let lines: Vec<_> = sample::events()
            .iter()
            .map(|event| styled(event, style))
            .collect();
        insta::assert_snapshot!(lines.join("\n"), @"
        Nov 21 06:30:00.123 [n1]: default/client-1:43210 (ID:1234) -> default/server:80 (ID:5678) policy-verdict:L3-L4 INGRESS ALLOWED BY web (NetworkPolicy) (TCP Flags: SYN)
        Nov 21 06:30:00.123 [n1]: default/client-1:43210 (ID:1234) <> default/server:80 (ID:5678) policy-verdict:none INGRESS DENIED (TCP Flags: SYN)
        Nov 21 06:30:00.123 [n1]: default/client-1:43210 (ID:1234) <> default/server:80 (ID:5678) Policy denied DROPPED (TCP Flags: SYN)
        Nov 21 06:30:00.123 [n1]: default/client-1:43210 (ID:1234) -> default/server:80 (ID:5678) policy-verdict:none EGRESS AUDITED (TCP Flags: SYN)
        Nov 21 06:30:00.123 [n1]: default/client-1 (ID:1234) <> 2001:db8::7 (world-ipv6) policy-verdict:L3-Proto EGRESS DENIED BY web (CiliumNetworkPolicy) (ICMPv6 EchoRequest)
        ");
    }

    #[test]
    fn what_is_missing_is_said() {
        let untold = |why, reason: Option<&str>| {
            untold_line(&Untold {
                why,
                reason: reason.map(str::to_owned),
                events: 37,
            })
        };
        insta::assert_snapshot!(untold(Why::RateLimit, Some("Multicast")), @"37 events suppressed, too many in a second: Multicast");
        insta::assert_snapshot!(untold(Why::RingFull, Some("Multicast")), @"37 events lost, the ring buffer was full: Multicast");
        insta::assert_snapshot!(untold(Why::SlowClient, None), @"37 events lost, this client reads too slowly");
    }
}
