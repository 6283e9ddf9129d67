//! The BPF programs. Real only for `bpfel-unknown-none`; elsewhere this is an empty program, so that
//! the workspace builds and tests as one.

#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", no_main)]

#[cfg(target_arch = "bpf")]
mod prog;

#[cfg(not(target_arch = "bpf"))]
fn main() {}
