//! `cargo xtask fuzz`: inputs that nobody thought of, through the packet path.

use std::fs;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};

use crate::setup;
use crate::workspace::Workspace;

/// Where the fuzz target, its seeds and what once failed are, from the workspace's root.
const DIRECTORY: &str = "datapath-kern/fuzz";
const TARGET: &str = "pipeline";
/// Longer inputs say nothing that shorter ones do not.
const MAX_INPUT_BYTES: u32 = 1024;
/// How long it runs where nothing else is said.
const SECONDS: u64 = 60;

/// When to end: at whichever comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Budget {
    /// Inputs.
    pub(crate) runs: Option<u64>,
    /// Seconds, the build not among them.
    pub(crate) seconds: Option<u64>,
}

/// Runs `cargo xtask fuzz`.
///
/// # Errors
///
/// If cargo-fuzz is missing and cannot be installed, or an input fails.
pub(crate) fn run(workspace: &Workspace, budget: Budget) -> Result<ExitCode> {
    look_for_failures(workspace, budget)?;
    Ok(ExitCode::SUCCESS)
}

/// Builds the fuzz target and runs it.
///
/// # Errors
///
/// As [`run`].
pub(crate) fn look_for_failures(workspace: &Workspace, budget: Budget) -> Result<()> {
    setup::ensure_fuzzer()?;
    let mut command = command(workspace, budget)?;
    let status = command
        .stdin(Stdio::null())
        .status()
        .context("start cargo fuzz")?;
    if !status.success() {
        bail!(
            "cargo fuzz: {status}. An input that fails is in {DIRECTORY}/artifacts/{TARGET}; \
             cargo xtask fuzz --help tells what to do with it"
        );
    }
    Ok(())
}

fn command(workspace: &Workspace, budget: Budget) -> Result<Command> {
    // What is found goes to the first directory of the two.
    let target_dir = workspace.target.join("fuzz");
    let found = target_dir.join("corpus").join(TARGET);
    fs::create_dir_all(&found).with_context(|| format!("create {}", found.display()))?;
    let seeds = workspace.root.join(DIRECTORY).join("corpus").join(TARGET);
    // Sanitizers want a nightly compiler, and the packet path has no unsafe code.
    let mut command = workspace.cargo(&["fuzz", "run", "--sanitizer", "none"]);
    command
        .arg("--fuzz-dir")
        .arg(workspace.root.join(DIRECTORY))
        .arg("--target-dir")
        .arg(&target_dir)
        .arg(TARGET)
        .args([&found, &seeds])
        .arg("--")
        .args(limits(budget));
    Ok(command)
}

/// What libFuzzer is told.
fn limits(budget: Budget) -> Vec<String> {
    let seconds = budget.seconds.or(budget.runs.is_none().then_some(SECONDS));
    let mut limits = vec![
        format!("-max_len={MAX_INPUT_BYTES}"),
        "-print_final_stats=1".to_owned(),
        "-verbosity=0".to_owned(),
    ];
    limits.extend(seconds.map(|seconds| format!("-max_total_time={seconds}")));
    limits.extend(budget.runs.map(|runs| format!("-runs={runs}")));
    limits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_always_ends() {
        let ends = |runs, seconds| {
            let limits = limits(Budget { runs, seconds });
            let ends = |limit: &&String| limit.contains("time=") || limit.contains("runs=");
            limits.iter().filter(ends).cloned().collect::<Vec<_>>()
        };
        assert_eq!(ends(None, None), ["-max_total_time=60"]);
        assert_eq!(ends(Some(7), None), ["-runs=7"]);
        assert_eq!(ends(Some(7), Some(8)), ["-max_total_time=8", "-runs=7"]);
    }
}
