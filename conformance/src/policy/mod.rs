//! Network policy on the real datapath.
//!
//! [`case`] reads policy cases: nodes, pods, hosts outside, policies, and who is expected to reach
//! whom. [`matrix`] builds a case in namespaces, sends real packets, and says what happened.

pub mod case;
pub mod matrix;
