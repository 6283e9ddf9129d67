//! A lab's directory: its plan, and a file system for BPF pins.
//!
//! ```text
//! /run/datapath-lab/<lab>/plan.json    what was built, for a process that adopts it
//! /run/datapath-lab/<lab>/bpf/         a bpffs of the lab's own, mode 0700
//! /run/datapath-lab/<lab>/bpf/n1/      node 1's pins
//! /run/datapath-lab/<lab>/n1/          node 1's other files
//! ```
//!
//! When the bpffs is unmounted its pins go with it, and with them links and maps that no process
//! holds: whatever a killed process leaves behind is gone with the lab.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
};

use super::plan::{LabName, Plan, RUN_DIRECTORY};
use crate::error::{Error, Result};

/// Makes the directory of a lab. A failure on the way leaves nothing.
pub(crate) fn make(plan: &Plan) -> Result<()> {
    let directory = plan.run_directory();
    let made = fill(plan, &directory);
    if made.is_err()
        && let Err(error) = remove(&directory)
    {
        tracing::warn!(error = error.chain(), "half-made lab directory");
    }
    made
}

/// Removes the directory of a lab and what is mounted in it. That it is gone is no failure.
pub(crate) fn remove(directory: &Path) -> Result<()> {
    let bpf = directory.join("bpf");
    match umount2(&bpf, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(errno) => return Err(Error::os("unmount", bpf.display())(errno)),
    }
    match fs::remove_dir_all(directory) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::os("remove", directory.display())(error)),
    }
    // The parent stays while another lab is in it.
    match fs::remove_dir(RUN_DIRECTORY) {
        Err(error)
            if !matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
            ) =>
        {
            Err(Error::os("remove", RUN_DIRECTORY)(error))
        }
        _ => Ok(()),
    }
}

/// Reads the plan of a lab that is up.
pub(super) fn read_plan(lab: &LabName) -> Result<Plan> {
    let path = Plan::new(lab.clone()).run_directory().join("plan.json");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::LabMissing {
                lab: lab.to_string(),
            });
        }
        Err(error) => return Err(Error::os("read", path.display())(error)),
    };
    serde_json::from_str(&text).map_err(|source| Error::Unreadable {
        what: path.display().to_string(),
        source,
    })
}

/// Returns the directory for a node's pins.
pub(crate) fn node_bpffs(plan: &Plan, node: u8) -> PathBuf {
    plan.run_directory().join("bpf").join(format!("n{node}"))
}

/// Returns the directory for a node's other files.
pub(crate) fn node_directory(plan: &Plan, node: u8) -> PathBuf {
    plan.run_directory().join(format!("n{node}"))
}

fn fill(plan: &Plan, directory: &Path) -> Result<()> {
    let bpf = directory.join("bpf");
    // Another lab that ends just now may take the empty parent away in between: make it again.
    for attempt in 0_u8.. {
        match fs::create_dir_all(&bpf) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && attempt < 10 => {}
            outcome => {
                outcome.map_err(Error::os("create", bpf.display()))?;
                break;
            }
        }
    }
    restrict(directory)?;
    mount(
        Some("bpf"),
        &bpf,
        Some("bpf"),
        MsFlags::empty(),
        Some("mode=0700"),
    )
    .map_err(Error::os("mount a bpffs on", bpf.display()))?;
    for node in (1_u8..).take(plan.nodes.len()) {
        for path in [node_bpffs(plan, node), node_directory(plan, node)] {
            fs::create_dir(&path).map_err(Error::os("create", path.display()))?;
            restrict(&path)?;
        }
    }
    let path = directory.join("plan.json");
    let text = serde_json::to_string_pretty(plan).map_err(|source| Error::Unreadable {
        what: "the plan".to_owned(),
        source,
    })?;
    fs::write(&path, text).map_err(Error::os("write", path.display()))
}

fn restrict(path: &Path) -> Result<()> {
    let permissions = fs::Permissions::from_mode(0o700);
    fs::set_permissions(path, permissions).map_err(Error::os("set the mode of", path.display()))
}
