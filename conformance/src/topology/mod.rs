//! The lab's network: nodes on one bridge, an outside host behind a router, empty pods.
//!
//! [`Plan`] says what to build, [`Fabric`] builds it and takes it down, [`Remains`] deals with
//! labs that no process owns any more.

pub(crate) mod fabric;
pub(crate) mod files;
mod node;
pub mod plan;
mod processes;
mod remains;
mod uplink;

pub use self::{
    fabric::{Cable, Fabric},
    node::Node,
    plan::{LabName, NodePlan, Plan},
    remains::{Remains, labs},
    uplink::UplinkKind,
};
