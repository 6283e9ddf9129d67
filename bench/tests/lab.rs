//! Every lab bench works: one tiny round each, without a word about speed.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "it is all tests"
)]

use datapath_bench::{Report, cases, options::Options, round::Fate, run};
use datapath_conformance::family::Family;

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
