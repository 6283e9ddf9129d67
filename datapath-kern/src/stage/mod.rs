//! What happens to a packet, a subject per file. `pipeline.rs` strings them together.

pub mod admit;
pub mod answer;
pub mod apart;
pub mod cut;
pub mod decap;
pub mod encap;
pub mod flow;
pub mod forward;
pub mod fragment;
pub mod nat;
pub mod neighbour;
pub mod nexthop;
pub mod observe;
pub mod origin;
pub mod parse;
pub mod path_mtu;
pub mod policy;
pub mod ports;
pub mod quota;
pub mod quoted;
pub mod refusal;
pub mod rewrite;
pub mod route;
pub mod tcp;
