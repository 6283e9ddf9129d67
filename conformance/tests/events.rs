//! Drops as the kernel tells them: on a lab in this process, with frames made by hand. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "it is all tests"
)]

mod util;

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use datapath_conformance::{
    family::Family,
    frame::forge::{self, Place},
    paths::{self, InProcess},
    probe::RawPort,
    topology::{Fabric, Plan},
};
use datapath_user::{Config, Datapath, EndKind, Error, EventView, Events};
use util::{OrPanic, lab_name};

/// For what comes in milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);
/// The node's pod range, and no pod there.
const VACANT: &str = "Stale or unroutable IP";
/// Bytes that an event carries.
const CARRIED: usize = 128;

/// A lab, with a hand at the first pod of the first node.
struct Scene {
    fabric: Fabric,
    datapaths: InProcess,
}

impl Scene {
    fn new(what: &str, adjust: impl Fn(&mut Config)) -> Self {
        let fabric = Fabric::build(Plan::new(lab_name(what))).or_panic();
        let datapaths = InProcess::with(&fabric, Family::Ipv4, adjust).or_panic();
        Self { fabric, datapaths }
    }

    fn events(&self) -> Events {
        self.datapaths.inside(0, Datapath::events).or_panic()
    }

    fn pod_port(&self) -> RawPort {
        let pod = &self.fabric.node(1).or_panic().pods()[0];
        RawPort::open(pod, "eth0").or_panic()
    }

    /// A datagram of that port to an address, by way of the gateway.
    fn datagram(&self, port: &RawPort, source: IpAddr, to: IpAddr, payload: &[u8]) -> Vec<u8> {
        let status = self.datapaths.inside(0, Datapath::status).or_panic();
        let digits = status.gateway_mac.split(':');
        let mac: Vec<_> = digits
            .map(|byte| u8::from_str_radix(byte, 16).unwrap())
            .collect();
        let from = Place {
            mac: port.mac(),
            address: SocketAddr::new(source, 40_000),
        };
        let to = Place {
            mac: mac.try_into().unwrap(),
            address: SocketAddr::new(to, 53),
        };
        forge::udp(from, to, payload).or_panic()
    }

    fn dropped(&self, reason: &str) -> u64 {
        let metrics = self.datapaths.inside(0, Datapath::metrics).or_panic();
        let of_reason = metrics.iter().filter(|metric| metric.outcome == reason);
        of_reason.map(|metric| metric.packets).sum()
    }

    /// Events of a reason that were suppressed and lost.
    fn untold(&self, reason: &str) -> (u64, u64) {
        let untold = self.datapaths.inside(0, Datapath::untold_events);
        let untold = untold.or_panic();
        let of_reason = untold.iter().find(|untold| untold.reason == reason);
        of_reason.map_or((0, 0), |untold| (untold.suppressed, untold.lost))
    }
}

/// Waits for the event that is wanted; pods' stacks send all sorts of things that are dropped.
fn find(events: &mut Events, wanted: impl Fn(&EventView) -> bool) -> EventView {
    let deadline = Instant::now() + PATIENCE;
    let mut others = Vec::new();
    while Instant::now() < deadline {
        let read = events.read(64);
        match read.iter().find(|event| wanted(event)) {
            Some(found) => return found.clone(),
            None if read.is_empty() => {
                events.wait(Some(Duration::from_millis(100))).unwrap();
            }
            None => others.extend(read),
        }
    }
    panic!("no such event, but {others:#?}");
}

#[test]
fn a_drop_is_told_with_both_ends_and_the_bytes_that_were_sent() {
    let scene = Scene::new("ev-ends", |_| {});
    let mut events = scene.events();
    let again = scene.datapaths.inside(0, |node| Ok(node.events().err()));
    assert!(
        matches!(again.or_panic(), Some(Error::EventsTaken)),
        "one reader"
    );
    let mut port = scene.pod_port();
    for family in Family::ALL {
        let own = paths::pod_address(1, 1, family);
        let vacant = paths::pod_address(1, 200, family);
        for length in [0, 1, 90, 1200] {
            let payload: Vec<u8> = (0..251).cycle().take(length).collect();
            let frame = scene.datagram(&port, own, vacant, &payload);
            port.send(&frame).or_panic();
            let told = find(&mut events, |event| {
                event.reason == VACANT && event.length_bytes as usize == frame.len()
            });
            assert_eq!(told.frame, frame[..frame.len().min(CARRIED)]);
            let said = (
                told.kind.as_str(),
                told.verdict.as_str(),
                told.hook.as_str(),
            );
            assert_eq!(said, ("drop", "DROPPED", "from_pod"));
            let said = (told.direction.as_str(), told.endpoint.as_deref());
            assert_eq!(said, ("egress", Some("n1p1")));
            assert!(told.interface.starts_with("dp"), "{told:?}");
            assert_eq!((told.summary.as_str(), told.tagged), ("UDP", false));
            let source = &told.source;
            assert_eq!(source.name.as_deref(), Some("n1p1"));
            assert_eq!(
                (source.kind, source.identity),
                (Some(EndKind::Endpoint), Some(1001))
            );
            assert_eq!((source.address, source.port), (Some(own), Some(40_000)));
            assert!(!source.claimed);
            let destination = &told.destination;
            assert_eq!(
                (destination.address, destination.port),
                (Some(vacant), Some(53))
            );
            assert_eq!((destination.kind, &destination.name), (None, &None));
        }
        // In a neighbour's name.
        let neighbour = paths::pod_address(1, 2, family);
        let remote = paths::pod_address(2, 1, family);
        let frame = scene.datagram(&port, neighbour, remote, b"forged");
        port.send(&frame).or_panic();
        let told = find(&mut events, |event| event.frame == frame);
        assert_eq!(told.reason, "Invalid source ip");
        assert_eq!(told.source.name.as_deref(), Some("n1p1"));
        assert!(told.source.claimed && told.source.address == Some(neighbour));
        let destination = &told.destination;
        assert_eq!(destination.kind, Some(EndKind::Peer), "{told:?}");
        assert_eq!(destination.name.as_deref(), Some("n2"));
        assert_eq!(destination.identity, Some(2001));
    }
    drop(events);
    drop(scene.events());
    scene.datapaths.stop().or_panic();
}

#[test]
fn a_drop_inside_a_tunnel_packet_is_told_with_both_headers() {
    let scene = Scene::new("ev-tunnel", |_| {});
    let mut events = scene.events();
    let [here, there] = [1, 2].map(|number| scene.fabric.node(number).or_panic());
    let mut port = RawPort::open(there.namespace(), "eth0").or_panic();
    let target = here.namespace().link("eth0").or_panic().mac;
    let place = |mac, address, port| Place {
        mac,
        address: SocketAddr::new(address, port),
    };
    for family in Family::ALL {
        let (from, to) = (
            paths::pod_address(2, 1, family),
            paths::pod_address(1, 1, family),
        );
        let inner = forge::udp(place([2; 6], from, 7), place([4; 6], to, 9), b"inner").or_panic();
        // The identity of this node never comes out of a tunnel.
        let geneve = forge::geneve(1, &[], &inner);
        let outer = [there, here].map(|node| node.address(Family::Ipv4));
        let frame = forge::udp(
            place(port.mac(), outer[0], 50_000),
            place(target, outer[1], 6081),
            &geneve,
        )
        .or_panic();
        port.send(&frame).or_panic();
        let told = find(&mut events, |event| {
            event.frame == frame[..frame.len().min(CARRIED)]
        });
        assert_eq!(told.reason, "Invalid identity");
        assert_eq!(
            (told.hook.as_str(), told.interface.as_str()),
            ("from_uplink", "eth0")
        );
        let tunnel = told.tunnel.as_ref().unwrap();
        assert_eq!(
            (tunnel.source, tunnel.destination, tunnel.vni),
            (outer[0], outer[1], 1)
        );
        assert_eq!(
            (told.source.address, told.source.port),
            (Some(from), Some(7))
        );
        assert!(told.source.claimed, "{told:?}");
        assert_eq!(told.destination.name.as_deref(), Some("n1p1"));
    }
    scene.datapaths.stop().or_panic();
}

#[test]
fn a_flood_is_told_in_part_and_counted_in_full() {
    const FRAMES: u64 = 400;

    let scene = Scene::new("ev-flood", |config| config.events_per_s = 5);
    let mut events = scene.events();
    let mut port = scene.pod_port();
    let (own, vacant) = (
        paths::pod_address(1, 1, Family::Ipv4),
        paths::pod_address(1, 200, Family::Ipv4),
    );
    let frame = scene.datagram(&port, own, vacant, b"again");
    for _ in 0..FRAMES {
        port.send(&frame).or_panic();
    }
    let deadline = Instant::now() + PATIENCE;
    while scene.dropped(VACANT) < FRAMES && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(scene.dropped(VACANT), FRAMES);
    let told = events.read(usize::MAX);
    let told = told.iter().filter(|event| event.reason == VACANT).count() as u64;
    let (suppressed, lost) = scene.untold(VACANT);
    assert_eq!((told + suppressed, lost), (FRAMES, 0));
    assert!(told >= 5 && suppressed > 0, "{told} told, {suppressed} not");
    scene.datapaths.stop().or_panic();
}

#[test]
fn what_finds_no_room_in_the_ring_is_counted() {
    const FRAMES: u64 = 1000;

    let scene = Scene::new("ev-ring", |config| {
        config.events_per_s = u32::MAX;
        config.event_ring_bytes = 65_536;
    });
    let mut port = scene.pod_port();
    let (own, vacant) = (
        paths::pod_address(1, 1, Family::Ipv6),
        paths::pod_address(1, 200, Family::Ipv6),
    );
    let frame = scene.datagram(&port, own, vacant, b"again");
    for _ in 0..FRAMES {
        port.send(&frame).or_panic();
    }
    let deadline = Instant::now() + PATIENCE;
    while scene.dropped(VACANT) < FRAMES && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut events = scene.events();
    let read = events.read(usize::MAX);
    let told = read.iter().filter(|event| event.reason == VACANT).count() as u64;
    let (suppressed, lost) = scene.untold(VACANT);
    assert_eq!((told + lost, suppressed), (FRAMES, 0));
    // 65,536 bytes, 176 an event, and some are of what the pods' stacks send.
    assert!((100..=372).contains(&told), "{told} told, {lost} lost");
    // There is room again.
    port.send(&frame).or_panic();
    find(&mut events, |event| event.reason == VACANT);
    scene.datapaths.stop().or_panic();
}
