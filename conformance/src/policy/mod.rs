//! Network policy on the real datapath, and what it is checked against.
//!
//! [`case`] reads policy cases: nodes, pods, hosts outside, policies, and who is expected to reach
//! whom. [`matrix`] builds a case in namespaces, sends real packets, and says what happened.
//! [`naive`] reads documents a second time, rule by rule, and [`second`] a case's; [`generate`] makes
//! random ones, and [`mix`] as many as there are in a large cluster.

pub mod case;
pub mod generate;
pub mod matrix;
pub mod mix;
pub mod naive;
pub mod second;
