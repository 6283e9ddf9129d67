//! Builds the eBPF object.
//!
//! Included by `datapath-user/build.rs` and by `cargo xtask`, so that both build the same
//! object in the same way. Nothing but the standard library is used: a build script that
//! compiles in a second is worth more than a shorter one.

pub(crate) mod diagnose;
pub(crate) mod ebpf;
pub(crate) mod elf;
pub(crate) mod env;
pub(crate) mod process;
pub(crate) mod toolchain;
