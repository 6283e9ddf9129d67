//! An event on a line, as Hubble's compact form has it.

use std::net::{IpAddr, SocketAddr};

use jiff::{Timestamp, tz::TimeZone};

use crate::api::{EndKind, EventEnd, EventView, Item, Untold, Why};

/// Shows an item on a line, times in the machine's time zone.
pub(super) fn of(item: &Item) -> String {
    match item {
        Item::Event(event) => event_line(event, &TimeZone::system()),
        Item::Untold(untold) => untold_line(untold),
    }
}

fn event_line(event: &EventView, zone: &TimeZone) -> String {
    let time = time(event.time, zone);
    let (source, destination) = (end(&event.source), end(&event.destination));
    let EventView {
        reason,
        verdict,
        summary,
        ..
    } = event;
    let within = match &event.tunnel {
        Some(tunnel) => format!(" in tunnel from {} VNI {}", tunnel.source, tunnel.vni),
        None if event.tagged => " with a VLAN tag".to_owned(),
        None => String::new(),
    };
    format!("{time}: {source} <> {destination} {reason} {verdict} ({summary}){within}")
}

/// `Nov 21 06:30:00.123`.
pub(in crate::cmd) fn time(time: Timestamp, zone: &TimeZone) -> String {
    let zoned = time.to_zoned(zone.clone());
    zoned.strftime("%b %e %H:%M:%S.%3f").to_string()
}

/// `web-0:40000 (ID:1001)`, `198.51.100.10:80 (world)`.
fn end(end: &EventEnd) -> String {
    let pod = end.kind == Some(EndKind::Endpoint);
    let name = end.name.as_deref().filter(|_| pod);
    let place = match (name, end.address) {
        (Some(name), Some(address)) if end.claimed => port(format!("{name}[{address}]"), end.port),
        (Some(name), _) => port(name.to_owned(), end.port),
        (None, Some(address)) => socket(address, end.port),
        (None, None) => end.mac.clone().unwrap_or_else(|| "-".to_owned()),
    };
    let identity = match end.identity {
        _ if end.claimed && !pod => "unproven".to_owned(),
        Some(1) => "host".to_owned(),
        Some(2) => "world".to_owned(),
        Some(3) => "unmanaged".to_owned(),
        Some(6) => "remote-node".to_owned(),
        Some(number) => format!("ID:{number}"),
        None => "unknown".to_owned(),
    };
    format!("{place} ({identity})")
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

    fn line(event: &EventView) -> String {
        event_line(event, &TimeZone::UTC)
    }

    #[test]
    fn events_read_as_hubble_shows_them() {
        let event = sample::event();
        insta::assert_snapshot!(line(&event), @"Nov 21 06:30:00.123: web-0:40000 (ID:1001) <> 198.51.100.10:80 (world) Policy denied DROPPED (TCP Flags: SYN)");
        let mut forged = event.clone();
        forged.source.claimed = true;
        forged.source.address = "fd00::7".parse().ok();
        forged.reason = "Invalid source ip".to_owned();
        insta::assert_snapshot!(line(&forged), @"Nov 21 06:30:00.123: web-0[fd00::7]:40000 (ID:1001) <> 198.51.100.10:80 (world) Invalid source ip DROPPED (TCP Flags: SYN)");
        let mut arp = event.clone();
        arp.time = "2026-11-02T06:30:00Z".parse().unwrap();
        arp.source = EventEnd {
            mac: Some("02:11:22:33:44:55".to_owned()),
            ..EventEnd::default()
        };
        arp.destination = EventEnd::default();
        arp.summary = "ARP Request".to_owned();
        insta::assert_snapshot!(line(&arp), @"Nov  2 06:30:00.000: 02:11:22:33:44:55 (unknown) <> - (unknown) Policy denied DROPPED (ARP Request)");
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
        insta::assert_snapshot!(line(&tunnelled), @"Nov 21 06:30:00.123: [fd00:10:244:2::2]:7 (unproven) <> 198.51.100.10:80 (world) Policy denied DROPPED (TCP Flags: SYN) in tunnel from 192.0.2.12 VNI 1");
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
