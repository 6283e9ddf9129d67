//! Every lab bench works: one tiny round each, without a word about speed.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "it is all tests"
)]

use std::{collections::BTreeSet, net::SocketAddr};

use datapath_bench::{
    Error, Report, Result, cases,
    live::{Generator, Sink, Template},
    options::Options,
    rig::Rig,
    round::Fate,
    run,
};
use datapath_conformance::{
    family::Family, frame::forge::Place, paths::pod_address, topology::plan::UPLINK,
};

/// Runs one tiny round; everything that was sent has to arrive.
fn tiny(case: &str, options: &Options) -> Report {
    let mut rounds = Vec::new();
    let case = cases::named(case).unwrap();
    let report = run(case, options, |entry, _, round| {
        rounds.push((entry.clone(), round.clone()));
    });
    let report = report.unwrap_or_else(|error| panic!("{}", error.chain()));
    assert_eq!(rounds.len() * 2, report.results.len(), "one round each");
    for (entry, round) in &rounds {
        assert_eq!(round.fate, Fate::Counted, "{entry:?}: {round:?}");
        assert!(round.ours.sent > 0 && round.theirs.sent > 0, "{round:?}");
        assert!(round.ours.ns_per_unit() > 0.0 && round.theirs.ns_per_unit() > 0.0);
    }
    assert!(report.usable());
    for row in &report.results {
        assert!(row.loss <= 0.0, "{row:?}");
    }
    report
}

#[test]
fn stream_sends_whole_segments_through_the_tunnel() {
    for family in Family::ALL {
        let options = Options {
            family,
            ..Options::smoke()
        };
        let report = tiny("stream", &options);
        for row in &report.results {
            // Otherwise the round were void: this is that it was looked at.
            let mean = row.observed["mean frame on the underlay, bytes"];
            assert!(mean > 3000.0, "{row:?}");
        }
        assert!(report.results[0].ratio.contains_key("plain"));
    }
}

#[test]
fn masquerade_is_measured_against_everybody() {
    let report = tiny("masquerade", &Options::smoke());
    let others = ["iptables-nft", "iptables-legacy", "nftables", "plain"];
    let against = report.results.iter().map(|row| row.variant);
    let against: Vec<_> = against.filter(|variant| *variant != "datapath").collect();
    assert_eq!(against, others);
    for ours in report.results.iter().step_by(2) {
        assert!(
            ours.observed["program from_pod, ns per packet"] > 0.0,
            "{ours:?}"
        );
    }
}

#[test]
fn masquerade_has_patterns_of_traffic() {
    for pattern in ["unproven", "new", "one-destination", "exhausted"] {
        let options = Options {
            patterns: vec![pattern.to_owned()],
            against: vec!["nftables".to_owned()],
            ..Options::smoke()
        };
        let report = tiny("masquerade", &options);
        assert_eq!(report.results[0].params["pattern"], pattern);
    }
}

#[test]
fn who_is_not_known_is_not_measured_against() {
    let options = Options {
        flows: vec![7],
        against: vec!["ufw".to_owned()],
        ..Options::smoke()
    };
    let refused = run(cases::named("masquerade").unwrap(), &options, |_, _, _| {});
    assert!(refused.unwrap_err().to_string().contains("iptables-legacy"));
}

#[test]
fn pingpong_comes_back_right() {
    let report = tiny("pingpong", &Options::smoke());
    assert_eq!(report.results[0].variant, "datapath");
    assert_eq!(report.results[1].variant, "plain");
}

#[test]
fn every_path_delivers_made_up_frames_of_both_families() {
    let report = tiny("family", &Options::smoke());
    assert_eq!(report.results.len(), 12, "four paths, two again over IPv6");
}

#[test]
fn two_cpus_deliver_all_that_both_send() {
    tiny("cpus", &Options::smoke());
}

#[test]
fn frames_that_the_datapath_drops_are_not_delivered() {
    refused_and_taken().unwrap_or_else(|error| panic!("{}", error.chain()));
}

fn refused_and_taken() -> Result<()> {
    const FRAMES: u32 = 640;

    let rig = Rig::datapath(Family::Ipv4)?;
    let node = rig.node(1)?.namespace();
    let interface = rig.host_interface(1, 1)?;
    let address = |pod, port| SocketAddr::new(pod_address(1, pod, Family::Ipv4), port);
    let own = Place {
        mac: rig.pod(1, 1)?.link(UPLINK)?.mac,
        address: address(1, 20_000),
    };
    let to = Place {
        mac: node.link(&interface)?.mac,
        address: address(2, 7007),
    };
    let forged = Place { mac: [0; 6], ..own };
    for (from, delivered) in [(forged, 0), (own, FRAMES)] {
        let template = Template::udp(from, to, 3)?;
        let lengths = BTreeSet::from([template.len()]);
        let sink = Sink::attach(rig.pod(1, 2)?, UPLINK, &lengths)?;
        let generator = Generator::new(node, &interface, template)?;
        node.run(|| generator.send(FRAMES))??;
        assert_eq!(sink.taken()?, u64::from(delivered), "from {:?}", from.mac);
    }
    // Delivered, but nobody has answered: no established flow.
    let ports = own.address.port()..own.address.port() + 3;
    let checked = rig.check_established(1, "udp", (own.address.ip(), ports), to.address);
    let missing = Error::NotEstablished {
        found: 0,
        wanted: 3,
        protocol: "udp",
        from: own.address.ip().to_string(),
        to: to.address.to_string(),
        node: 1,
    };
    assert_eq!(checked.unwrap_err().to_string(), missing.to_string());
    Ok(())
}
