//! Beside others on one node: address translation and a firewall in the host's stack, and other
//! people's programs on the same interfaces.
//!
//! What these tests measure is what the table in `README.md`, "The host's firewall", says.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "it is all tests"
)]

mod dnat;
mod firewall;
mod foreign;
mod node;
mod portmap;
#[path = "../util/mod.rs"]
mod util;
