//! `cargo xtask demo`: from a fresh checkout to the datapath at work.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, anyhow, bail};

use crate::setup;
use crate::workspace::{Workspace, is_root};

/// Sets up what is missing, builds `dpctl` and becomes `dpctl lab demo`.
///
/// # Errors
///
/// If this is not root, or something cannot be set up, built or started.
pub(crate) fn run(workspace: &Workspace, keep: bool) -> Result<ExitCode> {
    if !is_root() {
        bail!(
            "the demo makes network namespaces and loads eBPF programs, which needs root: \
             sudo env \"PATH=$PATH\" \"HOME=$HOME\" cargo xtask demo"
        );
    }
    setup::ensure()?;
    println!("Building dpctl.");
    let status = workspace
        .cargo(&["build", "--package", "datapath-tools"])
        .status()
        .context("start cargo")?;
    if !status.success() {
        bail!("dpctl does not build; see above");
    }
    let dpctl = workspace.target.join("debug/dpctl");
    let mut command = Command::new(&dpctl);
    command.args(["lab", "demo"]);
    if keep {
        command.arg("--keep");
    }
    // Returns only if it fails: from here on this process is dpctl, with its exit code.
    let err = command.exec();
    Err(anyhow!(err).context(format!("start {}", dpctl.display())))
}
