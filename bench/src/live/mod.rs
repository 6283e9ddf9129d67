//! Made-up frames at the speed of the kernel, and where they end.
//!
//! A [`Generator`] is an XDP program run by `BPF_PROG_TEST_RUN` with live frames
//! (`BPF_F_TEST_XDP_LIVE_FRAMES`, Linux 5.18, `Documentation/bpf/bpf_prog_run.rst`): each frame
//! enters the network stack as if it had arrived on an interface, on the CPU of the thread that
//! asks. A [`Sink`] is a tcx program that counts and drops them, a [`Reflector`] one that answers
//! them. All are a few instructions, put
//! together here: what they cost is known, and no compiler is needed.

mod assembly;
mod classifier;
mod generator;
mod reflector;
mod sink;
mod template;

pub use self::{
    generator::{Generator, Order},
    reflector::Reflector,
    sink::Sink,
    template::{Content, Template},
};
