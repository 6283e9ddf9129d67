//! Hearing when a file changes, however it is replaced.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// How long nothing may have changed before a file is read again. Who writes one in place empties it
/// first.
const QUIET: Duration = Duration::from_millis(200);
/// How long is waited for that at most.
const PATIENCE: Duration = Duration::from_secs(5);

/// Hears of changes in the directory of a file: that it is written, replaced by another one, comes
/// or goes, and that a symbolic link beside it is another one, as Kubernetes updates the files of a
/// `ConfigMap` (`..data`). What it cannot hear of, such as changes behind a link out of the
/// directory, is for who looks at the file from time to time.
#[derive(Debug)]
pub(crate) struct FileWatch {
    inotify: Inotify,
    directory: PathBuf,
    /// The file; none: whatever is in the directory.
    name: Option<OsString>,
}

impl FileWatch {
    /// Begins to listen; there is none where the kernel does not let it.
    pub(crate) fn new(file: &Path) -> Option<Self> {
        let (directory, name) = (file.parent()?, file.file_name()?);
        Self::listen(directory, Some(name.to_owned()))
    }

    /// Begins to listen for changes of any file of a directory.
    pub(crate) fn directory(directory: &Path) -> Option<Self> {
        Self::listen(directory, None)
    }

    fn listen(directory: &Path, name: Option<OsString>) -> Option<Self> {
        let opened = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC);
        let inotify = opened
            .inspect_err(|errno| {
                let (directory, name) = (directory.display(), &name);
                tracing::warn!(%directory, ?name, %errno, "cannot hear of changes: looked at by time");
            })
            .ok()?;
        let watch = Self {
            inotify,
            directory: directory.to_owned(),
            name,
        };
        watch.arm();
        Some(watch)
    }

    /// Listens at what the directory is now, also if it was made only now, or made again.
    pub(crate) fn arm(&self) {
        let heard = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        if let Err(errno) = self.inotify.add_watch(&self.directory, heard) {
            let directory = self.directory.display();
            tracing::debug!(%directory, %errno, "not listened at");
        }
    }

    /// Takes what was heard; returns whether the file, or one of the directory, may have changed.
    pub(crate) fn drain(&self) -> bool {
        let mut any = false;
        // Until there is nothing more to read.
        while let Ok(events) = self.inotify.read_events() {
            any |= events.iter().any(|event| match &event.name {
                Some(name) => {
                    self.name.as_ref().is_none_or(|known| known == name)
                        || name.as_bytes().starts_with(b"..")
                }
                // The directory itself, or more than there was room for.
                None => true,
            });
        }
        any
    }
}

/// A file that is followed, however it is replaced: by writing in it, by renaming another one to its
/// name, or as a kubelet replaces those of a `ConfigMap`.
#[derive(Debug)]
pub struct FollowedFile {
    path: PathBuf,
    /// None: the kernel does not tell, and only looking does.
    watch: Option<FileWatch>,
}

impl FollowedFile {
    /// Begins to follow a file, which may not be there yet.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            watch: FileWatch::new(path),
        }
    }

    /// Reads it. What changes from then on ends [`FollowedFile::wait`].
    ///
    /// # Errors
    ///
    /// What the file system says, also of what is no text.
    pub fn read(&self) -> io::Result<String> {
        // Armed before it is read: what comes after that is heard.
        if let Some(watch) = &self.watch {
            watch.arm();
            watch.drain();
        }
        fs::read_to_string(&self.path)
    }

    /// Waits until it may have changed, or a descriptor is ready to be read, or the time is over.
    /// After a change it waits on until nothing has changed for 200 ms, at most 5 s: who writes a
    /// file in place empties it first.
    ///
    /// # Errors
    ///
    /// What the kernel says of `wake`.
    pub fn wait(&self, wake: BorrowedFd<'_>, at_most: Duration) -> io::Result<()> {
        Ok(wait(self.watch.as_ref(), wake, at_most)?)
    }
}

/// Waits until something is heard, or `wake` is ready to be read, or the time is over; what was heard
/// is taken. After a change it waits on until nothing has changed for 200 ms, at most 5 s. Without a
/// watch only the others end it.
///
/// # Errors
///
/// What the kernel says of `wake`.
pub(crate) fn wait(
    watch: Option<&FileWatch>,
    wake: BorrowedFd<'_>,
    at_most: Duration,
) -> Result<(), Errno> {
    if !wait_once(watch, wake, at_most)? {
        return Ok(());
    }
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until && wait_once(watch, wake, QUIET)? {}
    Ok(())
}

/// Whether something was heard before the time was over.
fn wait_once(
    watch: Option<&FileWatch>,
    wake: BorrowedFd<'_>,
    at_most: Duration,
) -> Result<bool, Errno> {
    let until = Instant::now() + at_most;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        // Rounded up: nought would not wait at all.
        let millis = i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX);
        let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
        let mut polled = vec![PollFd::new(wake, PollFlags::POLLIN)];
        if let Some(watch) = watch {
            polled.push(PollFd::new(watch.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut polled, timeout) {
            Ok(0) => return Ok(false),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
            Ok(_) => {
                let woken = polled.first().and_then(PollFd::any).unwrap_or(false);
                if woken {
                    return Ok(false);
                }
                if watch.is_some_and(FileWatch::drain) {
                    return Ok(true);
                }
            }
        }
        if left.is_zero() {
            return Ok(false);
        }
    }
}

impl AsFd for FileWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn every_way_of_replacing_a_file_is_heard() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let watch = FileWatch::new(&at("masq")).unwrap();
        assert!(!watch.drain());
        fs::write(at("masq"), "a").unwrap();
        assert!(watch.drain(), "written");
        assert!(!watch.drain(), "heard once");
        fs::write(at("other"), "b").unwrap();
        assert!(!watch.drain(), "another file");
        fs::rename(at("other"), at("masq")).unwrap();
        assert!(watch.drain(), "replaced");
        fs::remove_file(at("masq")).unwrap();
        assert!(watch.drain(), "removed");

        // As a kubelet does.
        fs::create_dir(at("..1")).unwrap();
        fs::write(at("..1/masq"), "c").unwrap();
        symlink("..1", at("..data")).unwrap();
        symlink("..data/masq", at("masq")).unwrap();
        assert!(watch.drain());
        fs::create_dir(at("..2")).unwrap();
        fs::write(at("..2/masq"), "d").unwrap();
        symlink("..2", at("..new")).unwrap();
        watch.drain();
        fs::rename(at("..new"), at("..data")).unwrap();
        assert!(watch.drain(), "another ConfigMap");
        assert_eq!(fs::read_to_string(at("masq")).unwrap(), "d");
    }

    #[test]
    fn a_file_is_read_again_when_it_was_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cluster.toml");
        let file = FollowedFile::new(&path);
        let (wake, _waker) = std::os::unix::net::UnixStream::pair().unwrap();
        let missing = file.read().unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        fs::write(directory.path().join("new"), "a").unwrap();
        fs::rename(directory.path().join("new"), &path).unwrap();
        file.wait(wake.as_fd(), Duration::from_mins(5)).unwrap();
        assert_eq!(file.read().unwrap(), "a");
    }

    #[test]
    fn any_file_of_a_directory_is_heard() {
        let directory = tempfile::tempdir().unwrap();
        let watch = FileWatch::directory(directory.path()).unwrap();
        assert!(!watch.drain());
        for name in ["a", "b"] {
            fs::write(directory.path().join(name), name).unwrap();
            assert!(watch.drain(), "{name}");
        }
        assert!(!watch.drain());
    }

    #[test]
    fn a_directory_may_come_later() {
        let directory = tempfile::tempdir().unwrap();
        let inner = directory.path().join("etc");
        let watch = FileWatch::new(&inner.join("masq")).unwrap();
        fs::create_dir(&inner).unwrap();
        watch.arm();
        fs::write(inner.join("masq"), "a").unwrap();
        assert!(watch.drain());
        fs::remove_dir_all(&inner).unwrap();
        assert!(watch.drain());
        fs::create_dir(&inner).unwrap();
        watch.arm();
        fs::write(inner.join("masq"), "b").unwrap();
        assert!(watch.drain());
    }
}
