//! Every hook, under every setting, in every order: see `tests/fuzzed` of the packet path.

#![no_main]
#![allow(dead_code, reason = "the tests' support is for more than this")]

#[path = "../../tests/fuzzed/pipeline/mod.rs"]
mod pipeline;
#[path = "../../tests/support/mod.rs"]
mod support;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| pipeline::run(data));
