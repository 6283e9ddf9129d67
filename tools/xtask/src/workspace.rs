//! Where things are.

use std::env;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::build::env::target_root;

/// The workspace that this program was built from.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// Its root directory.
    pub(crate) root: PathBuf,
    /// The target directory that this program itself was built into.
    pub(crate) target: PathBuf,
}

impl Workspace {
    /// Finds the workspace.
    ///
    /// # Errors
    ///
    /// If this program was moved out of its target directory.
    pub(crate) fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .nth(2)
            .context("xtask is not in tools/xtask of its workspace")?;
        let exe = env::current_exe().context("find this program's own path")?;
        let target = target_root(&exe).with_context(|| {
            format!(
                "{} is not in a target directory; run it as cargo xtask",
                exe.display()
            )
        })?;
        Ok(Self {
            root: root.to_owned(),
            target: target.to_owned(),
        })
    }

    /// A cargo of the toolchain that built this program, in the workspace's root.
    pub(crate) fn cargo(&self, args: &[&str]) -> Command {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.args(args).current_dir(&self.root);
        command
    }
}

/// Whether this process acts as root.
pub(crate) fn is_root() -> bool {
    // The owner of /proc/self is the effective user.
    std::fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}
