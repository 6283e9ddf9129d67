//! The directory of the pins: a BPF file system, and one owner.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::error::Error;

/// A directory for pins that is ours.
#[derive(Debug)]
pub(crate) struct Pins {
    root: PathBuf,
    mounted: bool,
    created: bool,
    /// Held while we live: one owner at a time. On the directory, and on what was mounted over it:
    /// a file beside it could not be made where it lies on a bpffs itself.
    locks: Vec<Flock<File>>,
}

impl Pins {
    /// Takes the directory, making and mounting what is missing.
    ///
    /// # Errors
    ///
    /// [`Error::InUse`] where someone holds it or left pins in it; what the kernel refuses.
    pub(crate) fn take(root: &Path) -> Result<Self, Error> {
        let created = !root.exists();
        if created {
            make(root)?;
        }
        let mut pins = Self {
            root: root.to_path_buf(),
            mounted: false,
            created,
            locks: vec![lock(root)?],
        };
        if !on_bpffs(root)? {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount(Some("bpf"), root, Some("bpf"), flags, Some("mode=0700"))
                .map_err(|errno| Error::file("mount bpffs on", root)(errno.into()))?;
            pins.mounted = true;
            pins.locks.push(lock(root)?);
        }
        for directory in [pins.maps(), pins.links()] {
            if directory.exists() {
                return Err(in_use(root));
            }
            make(&directory)?;
        }
        Ok(pins)
    }

    /// Where maps are pinned.
    pub(crate) fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    /// Where links are pinned.
    pub(crate) fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// Removes the pins, and what was made for them.
    pub(crate) fn release(&mut self) -> Vec<Error> {
        let mut errors = Vec::new();
        for directory in [self.links(), self.maps()] {
            errors.extend(remove(&directory).err());
        }
        // While a directory is open its file system stays: the mount's lock goes first.
        if self.mounted {
            self.locks.truncate(1);
            match umount2(&self.root, MntFlags::MNT_DETACH) {
                Ok(()) => self.mounted = false,
                Err(errno) => errors.push(Error::file("unmount", &self.root)(errno.into())),
            }
        }
        if self.created {
            errors.extend(
                fs::remove_dir(&self.root)
                    .map_err(Error::file("remove", &self.root))
                    .err(),
            );
        }
        self.locks.clear();
        errors
    }
}

fn in_use(root: &Path) -> Error {
    Error::InUse {
        path: root.to_path_buf(),
    }
}

fn lock(root: &Path) -> Result<Flock<File>, Error> {
    let directory = File::open(root).map_err(Error::file("open", root))?;
    Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|_| in_use(root))
}

/// Removes a directory of pins.
fn remove(directory: &Path) -> Result<(), Error> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::file("read", directory)(error)),
    };
    for entry in entries.flatten() {
        fs::remove_file(entry.path()).map_err(Error::file("unpin", entry.path()))?;
    }
    fs::remove_dir(directory).map_err(Error::file("remove", directory))
}

fn make(directory: &Path) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(Error::file("create", directory))
}

fn on_bpffs(path: &Path) -> Result<bool, Error> {
    let found = statfs(path).map_err(|errno| Error::file("look at", path)(errno.into()))?;
    Ok(found.filesystem_type() == BPF_FS_MAGIC)
}
