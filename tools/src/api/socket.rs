//! The agent's socket in the file system.

use std::{
    fs::{self, File, Permissions},
    io::ErrorKind,
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{Flock, FlockArg},
    sys::socket::{getsockopt, sockopt::PeerCredentials},
};

use crate::error::{Error, Result};

/// Where an agent listens unless its configuration says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/datapath/agent.sock";

/// A listening socket, mode 0600. Dropping it removes the file, and the directories that were made
/// for it unless there is something else in them by then.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    /// Innermost first.
    made: Vec<PathBuf>,
    /// Tells our file from one that another agent has put in its place.
    inode: (u64, u64),
    listener: UnixListener,
}

impl Socket {
    /// Listens at a path. A socket that nobody listens at any more is removed first.
    ///
    /// # Errors
    ///
    /// [`Error::SocketInUse`] where an agent listens, [`Error::NotASocket`] where there is another
    /// file, [`Error::Os`].
    pub fn listen(path: &Path) -> Result<Self> {
        let directory = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        let directory = directory.unwrap_or(Path::new("."));
        let missing = directory.ancestors().take_while(|path| !path.exists());
        let missing: Vec<_> = missing.map(Path::to_owned).collect();
        let mut builder = fs::DirBuilder::new();
        let made = builder.recursive(true).mode(0o755).create(directory);
        made.map_err(Error::os("make the directory", directory.display()))?;
        // Two agents that both find a dead socket would remove each other's new one.
        let open = File::open(directory).map_err(Error::os("open", directory.display()))?;
        let _lock = Flock::lock(open, FlockArg::LockExclusive)
            .map_err(|(_, errno)| Error::os("lock", directory.display())(errno.into()))?;
        remove_dead(path)?;
        let listener = UnixListener::bind(path).map_err(Error::os("listen at", path.display()))?;
        let metadata = fs::symlink_metadata(path).map_err(Error::os("look at", path.display()))?;
        let socket = Self {
            path: path.to_owned(),
            made: missing,
            inode: (metadata.dev(), metadata.ino()),
            listener,
        };
        let restricted = fs::set_permissions(path, Permissions::from_mode(0o600))
            .and_then(|()| socket.listener.set_nonblocking(true));
        restricted.map_err(Error::os("restrict", path.display()))?;
        Ok(socket)
    }

    /// Returns where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a listener of it for the calling thread's tokio runtime.
    ///
    /// # Errors
    ///
    /// [`Error::Os`].
    ///
    /// # Panics
    ///
    /// Panics outside of a runtime with I/O.
    pub fn listener(&self) -> Result<tokio::net::UnixListener> {
        let listener = self.listener.try_clone();
        let listener = listener.and_then(tokio::net::UnixListener::from_std);
        listener.map_err(Error::os("listen at", self.path.display()))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "remove the socket");
        }
        for directory in &self.made {
            // One that is in use stays.
            if fs::remove_dir(directory).is_err() {
                break;
            }
        }
    }
}

/// Removes a socket that nobody listens at.
fn remove_dead(path: &Path) -> Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::os("look at", path.display())(error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(Error::NotASocket {
            path: path.to_owned(),
        });
    }
    match UnixStream::connect(path) {
        Ok(stream) => Err(Error::SocketInUse {
            path: path.to_owned(),
            process: process(&stream),
        }),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "removing the socket of an agent that is gone");
            fs::remove_file(path).map_err(Error::os("remove", path.display()))
        }
        Err(error) => Err(Error::os("connect to", path.display())(error)),
    }
}

/// Returns the process that listens at the other end.
fn process(stream: &UnixStream) -> Option<i32> {
    let credentials = getsockopt(stream, PeerCredentials);
    credentials
        .ok()
        .map(|credentials| credentials.pid())
        .filter(|pid| *pid > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_living_socket_is_refused_a_dead_one_replaced_and_none_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/agent.sock");
        let socket = Socket::listen(&path).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        match Socket::listen(&path) {
            Err(Error::SocketInUse { process, .. }) => {
                assert_eq!(process, i32::try_from(std::process::id()).ok());
            }
            other => panic!("{other:?}"),
        }
        drop(socket);
        assert!(!directory.path().join("run").exists());

        // The standard library leaves its file, as a killed agent does.
        fs::create_dir(directory.path().join("run")).unwrap();
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let socket = Socket::listen(&path).unwrap();
        assert!(UnixStream::connect(socket.path()).is_ok());
        drop(socket);
        // It was there before.
        assert!(directory.path().join("run").exists());
    }

    #[test]
    fn a_file_that_is_no_socket_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(
            Socket::listen(&path),
            Err(Error::NotASocket { .. })
        ));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn the_socket_of_a_successor_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let first = Socket::listen(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let second = Socket::listen(&path).unwrap();
        drop(first);
        assert!(second.path().exists());
    }
}
