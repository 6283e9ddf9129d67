//! The managers against the running kernel, in namespaces of their own. Needs root.
#![cfg(feature = "std")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that panics has failed"
)]

mod addresses;
mod features;
mod handle;
mod lab;
mod links;
mod monitor;
mod namespace;
mod refusals;
mod routes;
