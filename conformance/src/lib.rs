//! The lab: network namespaces in which real sockets and real tools meet the datapath, and what
//! is needed to say afterwards what happened.
//!
//! It needs root, and touches nothing of the machine's own network.
#![deny(unsafe_code)]

pub mod capture;
pub mod error;
pub mod family;
pub mod frame;
pub mod netns;
pub mod offload;
pub mod probe;
mod program;
pub mod report;
pub mod signals;
pub mod topology;

pub use error::{Error, Result};
