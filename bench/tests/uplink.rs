//! Measuring on a network card: one end of a veth pair, in a namespace that stands for the machine.
#![allow(clippy::unwrap_used, reason = "it is all tests")]

use std::process;

use datapath_bench::{Error, Report, cases, options::Options, round::Fate, run, uplink::Uplink};
use datapath_conformance::netns::Namespace;
use datapath_tunnel::netlink::{Link, Netlink, VethEnd};

/// The card, and what it is wired to.
const CARD: &str = "card0";
const WIRE: &str = "wire0";
const NEXT_HOP: &str = "02:00:00:00:00:99";

/// A namespace with a card and a wire, both on.
fn machine(name: &str) -> (Namespace, Netlink) {
    let machine = Namespace::create(&format!("uplink-{name}-{}", process::id())).unwrap();
    let netlink = machine.netlink().unwrap();
    let near = VethEnd::new(WIRE);
    let wire = netlink.add_veth(near, VethEnd::new(CARD)).unwrap();
    netlink.set_up(wire.index, true).unwrap();
    netlink.set_up(card(&machine).index, true).unwrap();
    (machine, netlink)
}

fn card(machine: &Namespace) -> Link {
    machine.link(CARD).unwrap()
}

fn options() -> Options {
    Options {
        against: vec!["nftables".to_owned()],
        uplink: Some(Uplink::parse(CARD, NEXT_HOP).unwrap()),
        ..Options::smoke()
    }
}

/// Runs a case as on that machine.
fn measure(machine: &Namespace, case: &str, options: &Options) -> Result<Report, Error> {
    let measured = machine.run(|| {
        run(cases::named(case).unwrap(), options, |entry, _, round| {
            assert_eq!(round.fate, Fate::Counted, "{entry:?}: {round:?}");
        })
    });
    measured.unwrap()
}

fn refusal(machine: &Namespace, case: &str) -> String {
    let refused = measure(machine, case, &options()).unwrap_err();
    let Error::Invalid { what, .. } = refused else {
        panic!("{}", refused.chain());
    };
    assert_eq!(what, "uplink");
    refused.to_string()
}

/// Frames that have come out of the card.
fn received(machine: &Namespace) -> u64 {
    let path = "/proc/thread-self/net/dev";
    let table = machine.run(|| std::fs::read_to_string(path)).unwrap();
    let table = table.unwrap();
    let line = table.lines().find(|line| line.trim().starts_with(WIRE));
    let (_, columns) = line.unwrap().split_once(':').unwrap();
    columns.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn masquerade_is_measured_on_a_card_that_comes_back() {
    let (machine, _) = machine("run");
    let before = card(&machine);
    for pattern in ["established", "new", "exhausted"] {
        let sent_before = received(&machine);
        let options = Options {
            patterns: vec![pattern.to_owned()],
            ..options()
        };
        let report = measure(&machine, "masquerade", &options);
        let report = report.unwrap_or_else(|error| panic!("{pattern}: {}", error.chain()));
        assert!(report.usable());
        let [ours, theirs] = report.results.as_slice() else {
            panic!("two variants: {report:?}");
        };
        for row in [ours, theirs] {
            assert!(row.loss <= 0.0, "{row:?}");
            let sent = row.observed.get("frames sent by the card").copied();
            // Packets that there is no port for go nowhere.
            if row.params.get("packets").is_none_or(|of| of != "refused") {
                assert!(sent.unwrap() >= 2048.0, "{row:?}");
            }
        }
        // They did leave, to where nobody was asked for.
        assert!(received(&machine) >= sent_before + 2048);
        let told = report.machine.uplink.as_ref().unwrap();
        assert_eq!(
            (told.interface.as_str(), told.next_hop.as_str()),
            (CARD, NEXT_HOP)
        );
        assert_eq!(told.driver.as_deref(), Some("veth"));
        assert!(report.table().contains("uplink card0: driver veth"));
        let after = card(&machine);
        assert_eq!(
            (after.mac, after.mtu_bytes, after.up),
            (before.mac, before.mtu_bytes, true)
        );
    }
}

#[test]
fn a_card_without_carrier_is_refused_and_comes_back() {
    let (machine, netlink) = machine("down");
    netlink.set_up(card(&machine).index, false).unwrap();
    let wire = machine.link(WIRE).unwrap();
    netlink.set_up(wire.index, false).unwrap();
    let refused = measure(&machine, "masquerade", &options()).unwrap_err();
    assert!(
        matches!(&refused, Error::NoCarrier { interface } if interface == CARD),
        "{refused:?}"
    );
    assert!(!card(&machine).up, "it was off before");
}

#[test]
fn what_the_machine_needs_is_not_taken() {
    let (machine, netlink) = machine("busy");
    let index = card(&machine).index;
    assert!(refusal(&machine, "stream").contains("masquerade"));

    // Not every kernel has VLANs.
    if let Ok(vlan) = netlink.add_vlan("card0.5", index, 5) {
        assert!(refusal(&machine, "masquerade").contains("VLANs"));
        netlink.delete_link(vlan.index).unwrap();
    }

    let bridge = netlink.add_bridge("br0").unwrap();
    netlink.set_master(index, Some(bridge.index)).unwrap();
    assert!(refusal(&machine, "masquerade").contains("nomaster"));
    netlink.set_master(index, None).unwrap();

    netlink
        .add_address(index, "10.9.0.1/24".parse().unwrap())
        .unwrap();
    assert!(refusal(&machine, "masquerade").contains("ip addr flush"));
    let default = datapath_tunnel::netlink::Route::to("0.0.0.0/0".parse().unwrap());
    netlink.add_route(&default.dev(index)).unwrap();
    assert!(refusal(&machine, "masquerade").contains("default route"));

    netlink.rename(index, "other0").unwrap();
    assert!(refusal(&machine, "masquerade").contains("no such interface"));
    let loopback = Uplink::parse("lo", NEXT_HOP).unwrap();
    let refused = machine.run(|| loopback.check()).unwrap().unwrap_err();
    assert!(refused.to_string().contains("loopback"), "{refused}");
    assert_eq!(
        machine.link("other0").unwrap().index,
        index,
        "it never went away"
    );
}
