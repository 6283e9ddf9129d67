//! The directory of the pins: a BPF file system, and one owner.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{major, minor};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::error::Error;
use crate::journal::STATE;

/// What `/proc/self/mountinfo` shows as the source of a file system that was mounted for pins, on
/// a directory that was there.
const MOUNTED: &str = "datapath";
/// The same, on a directory that was made for it.
const MOUNTED_ON_MADE: &str = "datapath-directory";

/// Mounts of the calling thread's mount namespace.
const MOUNTS: &str = "/proc/thread-self/mountinfo";

/// A directory for pins that is ours.
#[derive(Debug)]
pub(crate) struct Pins {
    root: PathBuf,
    /// Whether the file system was mounted for the pins, by whichever process.
    mounted: bool,
    /// Whether the directory was made for them, by whichever process.
    made: bool,
    /// Held while we live: one owner at a time. On the directory, and on what was mounted over it:
    /// a file beside it could not be made where it lies on a bpffs itself.
    locks: Vec<Flock<File>>,
}

impl Pins {
    /// Takes the directory, making and mounting what is missing.
    ///
    /// # Errors
    ///
    /// [`Error::InUse`] where another process holds it, [`Error::Owner`] where others than root may
    /// change it; what the kernel refuses. Then nothing is left of it.
    pub(crate) fn take(root: &Path) -> Result<Self, Error> {
        let made = !root.exists();
        if made {
            make(root)?;
        }
        let mut pins = Self {
            root: root.to_path_buf(),
            mounted: false,
            made,
            locks: Vec::new(),
        };
        match pins.settle() {
            Ok(()) => Ok(pins),
            Err(error) => {
                if made {
                    let undone = pins.vacate();
                    tracing::debug!(?undone, "took back a directory that could not be used");
                }
                Err(error)
            }
        }
    }

    /// Takes a directory that is there; `None` where there is none, or none for pins.
    ///
    /// # Errors
    ///
    /// As [`Pins::take`].
    pub(crate) fn find(root: &Path) -> Result<Option<Self>, Error> {
        if !root.exists() || !on_bpffs(root)? {
            return Ok(None);
        }
        Self::take(root).map(Some)
    }

    fn settle(&mut self) -> Result<(), Error> {
        let root = &self.root;
        self.locks.push(lock(root)?);
        if on_bpffs(root)? {
            let source = mount_source(root)?;
            self.mounted = source.is_some();
            self.made |= source.as_deref() == Some(MOUNTED_ON_MADE);
        } else {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            let source = if self.made { MOUNTED_ON_MADE } else { MOUNTED };
            mount(Some(source), root, Some("bpf"), flags, Some("mode=0700")).map_err(|errno| {
                Error::Bpffs {
                    path: root.clone(),
                    source: errno.into(),
                }
            })?;
            self.mounted = true;
            self.locks.push(lock(root)?);
        }
        check_owner(root)
    }

    /// Makes the directories for maps, links and programs.
    ///
    /// # Errors
    ///
    /// [`Error::File`].
    pub(crate) fn prepare(&self) -> Result<(), Error> {
        make(&self.maps())?;
        make(&self.links())?;
        make(&self.programs())
    }

    /// The directory itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where maps are pinned.
    pub(crate) fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    /// Where links are pinned.
    pub(crate) fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// Where programs are pinned.
    pub(crate) fn programs(&self) -> PathBuf {
        self.root.join("programs")
    }

    /// Whether the file system was mounted, and the directory made, for the pins.
    pub(crate) fn made(&self) -> (bool, bool) {
        (self.mounted, self.made)
    }

    /// Whether the directory was made for the pins on a BPF file system that was there: what a
    /// mount does not tell a later process.
    pub(crate) fn made_unmounted(&self) -> bool {
        self.made && !self.mounted
    }

    /// Takes an earlier process's word that the directory was made for the pins.
    pub(crate) fn set_made(&mut self) {
        self.made = true;
    }

    /// Names in the directory that are neither ours nor the kernel's own.
    ///
    /// # Errors
    ///
    /// [`Error::File`].
    pub(crate) fn strangers(&self) -> Result<Vec<PathBuf>, Error> {
        let mut names = names(&self.root)?;
        // The kernel may fill a BPF file system with iterators of its own (kernel/bpf/preload).
        names.retain(|name| {
            !matches!(
                name.as_str(),
                "maps" | "links" | "programs" | "maps.debug" | "progs.debug"
            )
        });
        Ok(names.iter().map(|name| self.root.join(name)).collect())
    }

    /// Removes all pins, the links first and the state last; returns how many links and maps there
    /// were.
    ///
    /// # Errors
    ///
    /// [`Error::File`]; what is left is still ours.
    pub(crate) fn empty(&self) -> Result<(usize, usize), Error> {
        let (links, programs, maps) = (self.links(), self.programs(), self.maps());
        let count = (names(&links)?.len(), names(&maps)?.len());
        unpin(&links, |_| true)?;
        unpin(&programs, |_| true)?;
        unpin(&maps, |name| name != STATE)?;
        unpin(&maps, |_| true)?;
        for directory in [links, programs, maps] {
            if directory.exists() {
                fs::remove_dir(&directory).map_err(Error::file("remove", directory))?;
            }
        }
        Ok(count)
    }

    /// Removes the pins, and what was made for them.
    pub(crate) fn release(&mut self) -> Vec<Error> {
        match self.empty() {
            Ok(_) => self.vacate(),
            Err(error) => vec![error],
        }
    }

    /// Unmounts what was mounted, removes the directory that was made, and lets go.
    fn vacate(&mut self) -> Vec<Error> {
        let mut errors = Vec::new();
        // While a directory is open its file system stays, but not in its place: nobody can take
        // the lock of a directory that is about to go.
        if self.mounted {
            match umount2(&self.root, MntFlags::MNT_DETACH) {
                Ok(()) => self.mounted = false,
                Err(errno) => errors.push(Error::file("unmount", &self.root)(errno.into())),
            }
        }
        if self.made && !self.mounted {
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

/// Names in a directory; none where it does not exist.
///
/// # Errors
///
/// [`Error::File`].
pub(crate) fn names(directory: &Path) -> Result<BTreeSet<String>, Error> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(Error::file("read", directory)(error)),
    };
    entries
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_, _>>()
        .map_err(Error::file("read", directory))
}

fn unpin(directory: &Path, which: impl Fn(&str) -> bool) -> Result<(), Error> {
    for name in names(directory)?.iter().filter(|name| which(name)) {
        let path = directory.join(name);
        fs::remove_file(&path).map_err(Error::file("unpin", path))?;
    }
    Ok(())
}

/// Locks a directory, and makes sure that it is still the one at that path.
fn lock(root: &Path) -> Result<Flock<File>, Error> {
    let in_use = || Error::InUse {
        path: root.to_path_buf(),
        holder: holder(root),
    };
    let directory = File::open(root).map_err(Error::file("open", root))?;
    let lock = Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|_| in_use())?;
    let locked = lock.metadata().map_err(Error::file("look at", root))?;
    match fs::metadata(root) {
        Ok(now) if (now.dev(), now.ino()) == (locked.dev(), locked.ino()) => Ok(lock),
        _ => Err(in_use()),
    }
}

/// The process that has locked a directory, as far as the kernel tells: it may be in another pid
/// namespace.
///
/// A line of `/proc/locks` is `1: FLOCK  ADVISORY  WRITE 708 00:13:1234 0 EOF` (`lock_get_status`,
/// fs/locks.c).
fn holder(root: &Path) -> Option<u32> {
    let found = fs::metadata(root).ok()?;
    let (device, inode) = (found.dev(), found.ino());
    let file = format!("{:02x}:{:02x}:{inode}", major(device), minor(device));
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let flock = fields.next() == Some("FLOCK");
        let pid = fields.nth(2)?.parse().ok()?;
        (flock && fields.next() == Some(file.as_str())).then_some(pid)
    })
}

fn make(directory: &Path) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(Error::file("create", directory))
}

/// Whoever can make pins here could have us adopt maps of theirs.
fn check_owner(root: &Path) -> Result<(), Error> {
    let found = fs::metadata(root).map_err(Error::file("look at", root))?;
    let mode = found.mode() & 0o7777;
    // Nothing for group and others.
    if found.uid() == 0 && mode.trailing_zeros() >= 6 {
        return Ok(());
    }
    Err(Error::Owner {
        path: root.to_path_buf(),
        uid: found.uid(),
        mode,
    })
}

fn on_bpffs(path: &Path) -> Result<bool, Error> {
    let found = statfs(path).map_err(|errno| Error::file("look at", path)(errno.into()))?;
    Ok(found.filesystem_type() == BPF_FS_MAGIC)
}

/// Source of the file system that was mounted for pins at a path; `None` where that is not what
/// it is.
fn mount_source(root: &Path) -> Result<Option<String>, Error> {
    let root = root.canonicalize().map_err(Error::file("look at", root))?;
    let mounts = fs::read_to_string(MOUNTS).map_err(Error::file("read", MOUNTS))?;
    Ok(source_at(&mounts, &root.to_string_lossy()))
}

/// Finds the source of what is mounted at a path, if it is one of ours.
///
/// A line is `36 35 0:33 / /run/x rw - bpf datapath rw,mode=700`, with an octal number for a space
/// in a name (proc(5)). The last one at a path lies on top.
fn source_at(mounts: &str, root: &str) -> Option<String> {
    let escaped = root
        .replace('\\', "\\134")
        .replace(' ', "\\040")
        .replace('\t', "\\011")
        .replace('\n', "\\012");
    let last = mounts
        .lines()
        .rfind(|line| line.split(' ').nth(4) == Some(escaped.as_str()))?;
    let (_, behind) = last.split_once(" - ")?;
    let source = behind.split(' ').nth(1)?;
    [MOUNTED, MOUNTED_ON_MADE]
        .contains(&source)
        .then(|| source.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_of_our_own_are_ours() {
        let mounts = "\
36 35 0:33 / /sys/fs/bpf rw,nosuid shared:9 - bpf bpf rw,mode=700
37 35 0:34 / /run/a rw,nosuid - bpf datapath rw,mode=700
38 35 0:35 / /run/b rw - bpf datapath-directory rw
39 35 0:36 / /run/c rw - bpf datapath rw
40 35 0:37 / /run/c rw - bpf other rw
41 35 0:38 / /run/with\\040space rw - bpf datapath rw
";
        let at = |path| source_at(mounts, path);
        assert_eq!(at("/run/a").as_deref(), Some(MOUNTED));
        assert_eq!(at("/run/b").as_deref(), Some(MOUNTED_ON_MADE));
        assert_eq!(at("/run/with space").as_deref(), Some(MOUNTED));
        for other in ["/sys/fs/bpf", "/run/c", "/run", "/run/a/b"] {
            assert_eq!(at(other), None, "{other}");
        }
    }
}
