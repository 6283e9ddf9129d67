//! `cargo xtask deny`: the dependencies, judged by cargo-deny.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::build::process::capture;
use crate::workspace::Workspace;

/// Checks licences, sources and bans by the rules in `.cargo/deny.toml`.
///
/// # Errors
///
/// If cargo-deny is not installed or cannot be started.
pub(crate) fn run(workspace: &Workspace) -> Result<ExitCode> {
    if capture(Command::new("cargo").args(["deny", "--version"])).is_err() {
        bail!("cargo-deny is not installed: cargo install cargo-deny --locked");
    }
    let checks = ["bans", "licenses", "sources"];
    let mut command = workspace.cargo(&["deny", "--config", ".cargo/deny.toml", "check"]);
    let status = command.args(checks).status().context("start cargo deny")?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
