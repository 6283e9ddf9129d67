//! The datapath from a shell: `dp-agent`, the reference node agent, and `dpctl`, which asks it.
//!
//! - [`api`]: what the two say to each other, with both sides of it;
//! - [`agent`]: a node's datapath behind that API.

#![forbid(unsafe_code)]

pub mod agent;
pub mod api;
pub mod error;
