//! An agent that is killed at random moments, and whose programs are replaced, under load. Needs
//! root.
//!
//! `CHAOS_KILLS` says how often, for a longer run; `CHAOS_SEED` repeats the moments of a run;
//! `CHAOS_OBJECT` names a rebuilt object to replace the built-in one by.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests, outside of what clippy takes for one"
)]

mod agent;
mod chance;
mod flows;
mod forger;
mod object;
mod pods;
#[allow(dead_code, reason = "shared with the tests of labs")]
#[path = "../lab/rig.rs"]
mod rig;
mod storm;
mod tale;
mod traffic;
mod watch;

use std::{env, time::Duration};

use storm::Storm;
use traffic::Traffic;

/// How often the agent is killed, unless `CHAOS_KILLS` says otherwise.
const KILLS: usize = 50;

#[test]
fn no_flow_is_lost_and_no_rule_is_broken_when_agents_are_killed_and_programs_replaced() {
    let kills = env::var("CHAOS_KILLS").map_or(KILLS, |text| text.parse().unwrap());
    let mut storm = Storm::gather();
    let traffic = Traffic::start(&storm);
    while storm.kills() < kills {
        storm.strike();
        assert!(!traffic.broken(), "a flow has ended: see below");
    }
    // What was under way when the last one came goes on.
    std::thread::sleep(Duration::from_millis(200));
    traffic.end();
    storm.settle();
}
