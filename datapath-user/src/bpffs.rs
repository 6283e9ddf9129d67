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
    lock_path: PathBuf,
    /// Held while we live: one owner at a time.
    lock: Option<Flock<File>>,
}

impl Pins {
    /// Takes the directory, making and mounting what is missing.
    ///
    /// # Errors
    ///
    /// [`Error::InUse`] where someone holds it or left pins in it; what the kernel refuses.
    pub(crate) fn take(root: &Path) -> Result<Self, Error> {
        let in_use = || Error::InUse {
            path: root.to_path_buf(),
        };
        let created = !root.exists();
        if created {
            make(root)?;
        }
        let lock_path = root.with_extension("lock");
        let file = File::create(&lock_path).map_err(Error::file("create", &lock_path))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| in_use())?;
        let mut pins = Self {
            root: root.to_path_buf(),
            mounted: false,
            created,
            lock_path,
            lock: Some(lock),
        };
        if !on_bpffs(root)? {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount(Some("bpf"), root, Some("bpf"), flags, Some("mode=0700"))
                .map_err(|errno| Error::file("mount bpffs on", root)(errno.into()))?;
            pins.mounted = true;
        }
        for directory in [pins.maps(), pins.links()] {
            if directory.exists() {
                return Err(in_use());
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
        if self.mounted {
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
        // The file goes before the lock on it does: nobody can take a lock on a file that is gone.
        errors.extend(
            fs::remove_file(&self.lock_path)
                .map_err(Error::file("remove", &self.lock_path))
                .err(),
        );
        self.lock = None;
        errors
    }
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
