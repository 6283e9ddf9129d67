//! What the fuzzer does, without the fuzzer: its seeds, what once failed, and some inputs by
//! chance. `cargo xtask fuzz` looks for more.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod pipeline;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

use proptest::prelude::*;

/// Inputs of a directory under `fuzz`, by name.
fn inputs(directory: &str) -> Vec<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz")
        .join(directory);
    let entries = fs::read_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// Runs an input; where it fails, says which it was and what its bytes mean.
fn run(name: &str, data: &[u8]) {
    let outcome = catch_unwind(AssertUnwindSafe(|| pipeline::run(data)));
    if let Err(panic) = outcome {
        eprintln!("{name}:\n{}", pipeline::describe(data));
        resume_unwind(panic);
    }
}

#[test]
fn seeds_and_what_once_failed() {
    let mut count = 0;
    for directory in ["corpus/pipeline", "regressions/pipeline"] {
        for path in inputs(directory) {
            run(&path.display().to_string(), &fs::read(&path).unwrap());
            count += 1;
        }
    }
    assert!(count > 20, "{count} inputs: where are the seeds?");
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 4000, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn by_chance(data in proptest::collection::vec(any::<u8>(), 32..1500)) {
        run("by chance", &data);
    }
}
