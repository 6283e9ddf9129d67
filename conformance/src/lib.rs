//! The lab: network namespaces in which real sockets and real tools meet the datapath, and what
//! is needed to say afterwards what happened.
//!
//! - [`netns`], [`topology`]: namespaces, and the network of nodes, pods and an outside host;
//! - [`probe`]: traffic with every byte checked; [`frame`]: frames, forged or captured, and
//!   their checksums; [`offload`]: what interfaces do about checksums and segments;
//! - [`policy`]: policy cases, and the matrix of who reaches whom;
//! - [`capture`], [`report`]: what is kept of a run;
//! - [`snapshot`], [`signals`]: that nothing else is.
//!
//! It needs root, and touches nothing of the machine's own network.
//!
//! ```no_run
//! use datapath_conformance::{
//!     family::Family,
//!     probe::{EchoServer, Options, tcp_echo},
//!     topology::{Fabric, Plan, plan},
//! };
//!
//! # fn main() -> datapath_conformance::Result<()> {
//! let fabric = Fabric::build(Plan::new("mine".parse()?))?;
//! let _server = EchoServer::start(fabric.outside(), &[80], &[])?;
//! let node = fabric.node(1)?;
//! let to = (plan::outside_address(Family::Ipv6), 80).into();
//! let report = tcp_echo(node.namespace(), to, 2 << 20, &Options::default())?;
//! assert_eq!(report.seen_source.map(|seen| seen.ip()), Some(node.address(Family::Ipv6)));
//! // Dropping the fabric takes it down.
//! # Ok(())
//! # }
//! ```
#![deny(unsafe_code)]

pub mod capture;
pub mod error;
pub mod family;
pub mod frame;
pub mod kernel;
pub mod netns;
pub mod offload;
pub mod paths;
pub mod patience;
pub mod pcapng;
pub mod policy;
pub mod probe;
pub mod program;
pub mod report;
pub mod signals;
pub mod snapshot;
pub mod topology;

pub use error::{Error, Result};
