//! Ways to slip past policy, none of which works: frames by hand between pods of two nodes, through
//! the programs in the kernel. Needs root.
//!
//! Every trick sends its lawful counterpart first, which must arrive: that something did not arrive
//! says nothing where it would not have arrived anyway.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "it is all tests; what was tried"
)]

mod cast;
mod flows;
mod fragments;
mod headers;
mod icmp;
#[allow(dead_code, reason = "every test binary uses its own part")]
#[path = "../../../datapath-kern/tests/support/fragments.rs"]
mod pieces;
mod replies;
mod scene;
mod spoof;
mod start;
#[path = "../util/mod.rs"]
mod util;
mod wire;

use datapath_user::{IdentityFrom, PodStart, Revoke};
use scene::Scene;

/// Identities that nodes did not agree on.
#[test]
fn tricks_where_the_address_says_who_it_is() {
    let mut scene = Scene::build("tricks", |config| {
        config.identity_from = IdentityFrom::Ipcache;
        config.tcp_loose = false;
    });
    scene.play(replies::TRICKS);
    scene.play(fragments::TRICKS);
    scene.play(headers::TRICKS);
    scene.play(icmp::TRICKS);
    scene.play(spoof::TRICKS);
    scene.play(spoof::BY_ADDRESS);
    scene.play(flows::TRICKS);
    scene.play(start::TRICKS);
}

/// Identities that nodes agreed on, and connections that are picked up in the middle.
#[test]
fn tricks_where_the_tunnel_says_who_it_is() {
    let mut scene = Scene::build("agreed", |config| {
        config.identity_from = IdentityFrom::Vni;
        config.tcp_loose = true;
    });
    scene.play(replies::TRICKS);
    scene.play(spoof::TRICKS);
    scene.play(flows::TRICKS);
}

/// Flows that policy does not allow any more may go on.
#[test]
fn tricks_where_flows_are_drained() {
    let mut scene = Scene::build("drained", |config| {
        config.policy.revoke = Revoke::Drain;
        config.tcp_loose = false;
    });
    scene.play(flows::DRAINED);
}

/// Pods that start before their rules: how long that takes.
#[test]
fn the_window_of_a_standard_start_is_measured_and_closes() {
    let mut scene = Scene::build("standard", |config| {
        config.policy.start = PodStart::Standard;
    });
    start::window(&mut scene);
}
