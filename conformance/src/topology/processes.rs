//! Processes that live in a lab's network namespaces.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    process, thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::error::{Error, Result};

/// How long a killed process may take to be gone.
const PATIENCE: Duration = Duration::from_secs(5);

/// Lists the processes, other than this one, in network namespaces with these numbers.
///
/// As `ip netns pids`, it looks at where a process's first thread is.
pub(super) fn inside(inodes: &BTreeSet<u64>) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    let entries = fs::read_dir("/proc").map_err(Error::os("list", "/proc"))?;
    for entry in entries.filter_map(std::result::Result::ok) {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        // A process that ended meanwhile, or is a zombie, has none: it is not inside.
        let namespace = fs::metadata(entry.path().join("ns/net")).map(|file| file.ino());
        if pid != process::id() && namespace.is_ok_and(|inode| inodes.contains(&inode)) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Kills the processes in these namespaces and waits until none is left.
///
/// SIGKILL at once: what should end in order has been told so by whoever started it.
pub(super) fn end(inodes: &BTreeSet<u64>) -> Result<Vec<u32>> {
    let deadline = Instant::now() + PATIENCE;
    let mut ended = Vec::new();
    loop {
        let pids = inside(inodes)?;
        if pids.is_empty() {
            return Ok(ended);
        }
        for pid in pids {
            let target = Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX));
            match kill(target, Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) if Instant::now() < deadline => {}
                Ok(()) | Err(Errno::ESRCH) => {
                    return Err(Error::os("wait for the end of process", pid)(
                        Errno::ETIMEDOUT,
                    ));
                }
                Err(errno) => return Err(Error::os("kill process", pid)(errno)),
            }
            if !ended.contains(&pid) {
                ended.push(pid);
            }
        }
        thread::sleep(Duration::from_millis(5));
    }
}
