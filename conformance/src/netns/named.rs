//! Named namespaces as files, the way iproute2 keeps them.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    panic,
    path::{Path, PathBuf},
    thread,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};

use crate::error::{Error, Result};

/// Where named namespaces live.
const DIRECTORY: &str = "/run/netns";

/// Lists the named namespaces of this machine, sorted, as `ip netns` does.
///
/// # Errors
///
/// [`Error::Os`] when the directory is there but cannot be read.
pub fn names() -> Result<Vec<String>> {
    let entries = match fs::read_dir(DIRECTORY) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::os("list", DIRECTORY)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::os("list", DIRECTORY))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Returns the file of a name that may be one.
pub(super) fn path_of(name: &str) -> Result<PathBuf> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 64 || name.starts_with('.') || !name.chars().all(good) {
        return Err(Error::Invalid {
            what: "name of a network namespace",
            value: name.to_owned(),
            rule: "1 to 64 letters, digits, '-', '_' or '.', not starting with '.'",
        });
    }
    Ok(Path::new(DIRECTORY).join(name))
}

/// Makes the file, and on it the namespace of a thread that has just got a new one.
pub(super) fn make(name: &str, path: &Path) -> Result<File> {
    prepare_directory()?;
    let created = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o444)
        .open(path);
    match created {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(Error::NamespaceExists {
                name: name.to_owned(),
            });
        }
        Err(error) => return Err(Error::os("create", path.display())(error)),
    }
    let mounted = thread::scope(|scope| {
        thread::Builder::new()
            .spawn_scoped(scope, || unshare_onto(path))
            .map_err(Error::os("start a thread for", name))?
            .join()
            .unwrap_or_else(|payload| panic::resume_unwind(payload))
    });
    let opened = mounted.and_then(|()| File::open(path).map_err(Error::os("open", path.display())));
    if opened.is_err()
        && let Err(error) = delete(path)
    {
        tracing::warn!(name, error = error.chain(), "half-made namespace");
    }
    opened
}

/// Gives the calling thread a new namespace and mounts that on `path`.
fn unshare_onto(path: &Path) -> Result<()> {
    const NONE: Option<&str> = None;

    unshare(CloneFlags::CLONE_NEWNET)
        .map_err(Error::os("make a network namespace for", path.display()))?;
    mount(
        Some("/proc/thread-self/ns/net"),
        path,
        NONE,
        MsFlags::MS_BIND,
        NONE,
    )
    .map_err(Error::os("mount a network namespace on", path.display()))
}

/// Does for the directory what `ip netns add` does (iproute2, ip/ipnetns.c): it becomes a shared
/// mount, so that deleting a name here also unmounts it in other mount namespaces, which would
/// otherwise keep the network namespace alive.
fn prepare_directory() -> Result<()> {
    const NONE: Option<&str> = None;
    let shared = MsFlags::MS_SHARED | MsFlags::MS_REC;
    let share = || mount(NONE, DIRECTORY, NONE, shared, NONE);
    let refused = |errno| Error::os("make a shared mount of", DIRECTORY)(errno);

    fs::create_dir_all(DIRECTORY).map_err(Error::os("create", DIRECTORY))?;
    let directory = File::open(DIRECTORY).map_err(Error::os("open", DIRECTORY))?;
    // Two processes that both find it unshared would mount it twice, one over the other.
    let _lock = Flock::lock(directory, FlockArg::LockExclusive)
        .map_err(|(_, errno)| Error::os("lock", DIRECTORY)(errno))?;
    match share() {
        Ok(()) => Ok(()),
        // It is no mount yet.
        Err(Errno::EINVAL) => {
            let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(DIRECTORY), DIRECTORY, NONE, bind, NONE).map_err(refused)?;
            share().map_err(refused)
        }
        Err(errno) => Err(refused(errno)),
    }
}

/// Deletes a name, mounted or not. One that is gone already is no failure.
pub(super) fn delete(path: &Path) -> Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        // EINVAL: a file without a namespace on it, left by a process that was killed in between.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(errno) => return Err(Error::os("unmount", path.display())(errno)),
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::os("delete", path.display())(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_the_directory() {
        assert_eq!(path_of("lab-n1").unwrap(), Path::new("/run/netns/lab-n1"));
        for bad in ["", ".", "..", "a/b", "a b", "ü", ".hidden", &"x".repeat(65)] {
            assert!(path_of(bad).is_err(), "{bad:?}");
        }
    }
}
