//! Every hook, under every setting, in every order: see `tests/fuzzed` of the packet path.
//!
//! The long run is `cargo xtask fuzz --runs 10000000`: 34 minutes of one processor. The last one, with
//! policy in it, found nothing.

#![no_main]
#![allow(dead_code, reason = "the tests' support is for more than this")]

#[path = "../../tests/fuzzed/pipeline/mod.rs"]
mod pipeline;
#[path = "../../tests/support/mod.rs"]
mod support;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| pipeline::run(data));
