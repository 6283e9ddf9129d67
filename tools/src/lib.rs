//! The datapath from a shell: `dp-agent`, the reference node agent, and `dpctl`, which asks it.
//!
//! - [`api`]: what the two say to each other, with both sides of it;
//! - [`agent`]: a node's datapath behind that API;
//! - [`lab`]: nodes in network namespaces, each with an agent;
//! - [`sysdump`]: everything that a bug report needs, in one file;
//! - [`cmd`]: the verbs of `dpctl`; [`table`]: what they print.

#![forbid(unsafe_code)]

pub mod agent;
pub mod api;
pub mod cmd;
pub mod error;
pub mod lab;
pub mod sysdump;
pub mod table;
