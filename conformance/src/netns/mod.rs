//! Network namespaces by name, as `ip netns` keeps them.
//!
//! A named namespace is a file in `/run/netns` with the namespace bind-mounted on it, so that it
//! lives without a process and `ip netns` sees it. Only the *network* namespace is entered,
//! never a mount namespace: what is mounted or pinned outside stays visible inside, which
//! `ip netns exec` with its fresh `/sys` does not offer.
//!
//! Sockets belong to the namespace they were made in, whichever thread uses them. So most work
//! needs no thread inside: [`Namespace::socket`] makes the socket there, the rest is ordinary
//! code. [`Namespace::run`] and [`Namespace::command`] are for what must run inside.

// The only unsafe code of this crate: `CommandExt::pre_exec`.
#![allow(
    unsafe_code,
    reason = "a child enters its namespace between fork and exec"
)]

mod named;

use std::{
    fs::{self, File},
    io,
    os::unix::{fs::MetadataExt, process::CommandExt},
    panic,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
};

use datapath_tunnel::netlink::{Link, Netlink, NetlinkError};
use nix::{
    sched::{CloneFlags, setns},
    unistd::geteuid,
};
use socket2::{Domain, Protocol, Socket, Type};

pub use self::named::names;
use self::named::{delete, make, path_of};
use crate::{
    error::{Error, Result},
    signals::{self, Teardown},
};

/// A named network namespace.
///
/// One that was [created](Self::create) or [adopted](Self::adopt) is deleted when it is dropped,
/// also by a panic, and by the signals that [`signals::cleanup_on_signal`] handles. One that was
/// only [opened](Self::open) stays.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    path: PathBuf,
    file: Arc<File>,
    inode: u64,
    teardown: Option<Teardown>,
}

impl Namespace {
    /// Creates a namespace with its loopback interface switched on.
    ///
    /// `name` has 1 to 64 letters, digits, `-`, `_` or `.`.
    ///
    /// # Errors
    ///
    /// [`Error::NotRoot`], [`Error::Invalid`] for the name, [`Error::NamespaceExists`], or
    /// [`Error::Os`] with what the kernel refused.
    pub fn create(name: &str) -> Result<Self> {
        check_root()?;
        let path = path_of(name)?;
        let undo_path = path.clone();
        let undo = move || delete(&undo_path);
        let (file, teardown) = signals::guarded(|| make(name, &path), undo)?;
        let mut namespace = Self::from_file(name, path, file)?;
        namespace.teardown = Some(teardown);
        let netlink = namespace.netlink()?;
        let loopback = namespace.link_of(&netlink, "lo")?;
        namespace.netlink_result(netlink.set_up(loopback.index, true))?;
        Ok(namespace)
    }

    /// Opens a namespace that is there. Dropping it leaves it there.
    ///
    /// # Errors
    ///
    /// [`Error::NamespaceMissing`], [`Error::Invalid`] for the name, [`Error::Os`].
    pub fn open(name: &str) -> Result<Self> {
        let path = path_of(name)?;
        match File::open(&path) {
            Ok(file) => Self::from_file(name, path, file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::NamespaceMissing {
                name: name.to_owned(),
            }),
            Err(error) => Err(Error::os("open", path.display())(error)),
        }
    }

    /// Opens a namespace that is there and takes charge of it: dropping it deletes it.
    ///
    /// # Errors
    ///
    /// As [`Namespace::open`].
    pub fn adopt(name: &str) -> Result<Self> {
        let path = path_of(name)?;
        let mut namespace = Self::open(name)?;
        namespace.teardown = Some(signals::on_teardown(move || delete(&path)));
        Ok(namespace)
    }

    /// Leaves the namespace there for good: neither dropping it nor a signal deletes it.
    pub fn leak(&mut self) {
        if let Some(teardown) = self.teardown.take() {
            teardown.forget();
        }
    }

    /// Deletes the name now; the namespace itself ends with the last process and socket in it.
    ///
    /// One that was only opened is left alone.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] when it cannot be unmounted or unlinked.
    pub fn delete(mut self) -> Result<()> {
        self.teardown.take().map_or(Ok(()), Teardown::run)
    }

    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the file that stands for it, for `setns(2)` and for
    /// [`VethEnd::netns`](datapath_tunnel::netlink::VethEnd::netns).
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the namespace's number (the inode in `nsfs`), as `/proc/<pid>/ns/net` shows it.
    #[must_use]
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Runs `work` inside, on a thread of its own, and returns what it returns.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] when the thread cannot be started or cannot enter.
    ///
    /// # Panics
    ///
    /// Panics if `work` does, with the same payload.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> Result<R> {
        thread::scope(|scope| {
            let thread = thread::Builder::new()
                .name(self.name.clone())
                .spawn_scoped(scope, || {
                    enter(&self.file).map_err(Error::os("enter network namespace", &self.name))?;
                    Ok(work())
                })
                .map_err(Error::os("start a thread for", &self.name))?;
            thread
                .join()
                .unwrap_or_else(|payload| panic::resume_unwind(payload))
        })
    }

    /// Makes a command that runs inside.
    ///
    /// It shares every other namespace with this process, mounts included.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let file = Arc::clone(&self.file);
        let mut command = Command::new(program);
        // SAFETY: between fork and exec only async-signal-safe calls are allowed. The closure
        // makes one system call on a descriptor that it owns; turning the error number into an
        // `io::Error` stores an integer. Nothing allocates or takes a lock.
        unsafe {
            command.pre_exec(move || enter(&file).map_err(io::Error::from));
        }
        command
    }

    /// Makes a socket that belongs to this namespace.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] with what the kernel refused.
    pub fn socket(&self, domain: Domain, kind: Type, protocol: Option<Protocol>) -> Result<Socket> {
        self.run(|| Socket::new(domain, kind, protocol))?
            .map_err(Error::os("make a socket in", &self.name))
    }

    /// Opens the namespace's links, addresses and routes.
    ///
    /// # Errors
    ///
    /// [`Error::Netlink`] when the socket cannot be made.
    pub fn netlink(&self) -> Result<Netlink> {
        self.netlink_result(Netlink::open_in(&self.path))
    }

    /// Finds an interface by name.
    ///
    /// # Errors
    ///
    /// [`Error::NoInterface`], or [`Error::Netlink`] when it cannot be looked up.
    pub fn link(&self, interface: &str) -> Result<Link> {
        self.link_of(&self.netlink()?, interface)
    }

    /// Reads a setting of the namespace's network stack, without the line's end.
    ///
    /// `key` as in sysctl(8): dots between the parts (`net.ipv4.ip_forward`), or slashes where a
    /// part has a dot in it (`net/ipv4/conf/eth0.5/forwarding`).
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a key that is not under `net`, [`Error::Os`] when it is not there.
    pub fn sysctl(&self, key: &str) -> Result<String> {
        let path = sysctl_path(key)?;
        let text = self
            .run(|| fs::read_to_string(&path))?
            .map_err(Error::os("read", path.display()))?;
        Ok(text.trim_end().to_owned())
    }

    /// Writes a setting of the namespace's network stack; `key` as in [`Namespace::sysctl`].
    ///
    /// What `/proc/sys/net` shows and takes is that of the thread that looks, and in a namespace
    /// other than the first the kernel refuses writes to the few keys that are global.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a key that is not under `net`, or if this namespace is the
    /// machine's own; [`Error::Os`] when the kernel refuses.
    pub fn set_sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = sysctl_path(key)?;
        let own = "/proc/self/ns/net";
        let own = fs::metadata(own).map_err(Error::os("look at", own))?;
        // Where this may not be looked at, as in some containers, one's own is all there is.
        let first = fs::metadata("/proc/1/ns/net").ok();
        if first
            .into_iter()
            .chain([own])
            .any(|machine| machine.ino() == self.inode)
        {
            return Err(Error::Invalid {
                what: "namespace of a sysctl to write",
                value: self.name.clone(),
                rule: "the lab never changes the machine's own settings",
            });
        }
        self.run(|| fs::write(&path, value))?.map_err(Error::os(
            "write",
            format_args!("{value} to {}", path.display()),
        ))
    }

    pub(crate) fn link_of(&self, netlink: &Netlink, interface: &str) -> Result<Link> {
        self.netlink_result(netlink.link(interface))?
            .ok_or_else(|| Error::NoInterface {
                namespace: self.name.clone(),
                interface: interface.to_owned(),
            })
    }

    pub(crate) fn netlink_result<T>(&self, outcome: Result<T, NetlinkError>) -> Result<T> {
        outcome.map_err(|source| Error::Netlink {
            namespace: self.name.clone(),
            source,
        })
    }

    fn from_file(name: &str, path: PathBuf, file: File) -> Result<Self> {
        let metadata = file
            .metadata()
            .map_err(Error::os("look at network namespace", name))?;
        Ok(Self {
            name: name.to_owned(),
            path,
            file: Arc::new(file),
            inode: metadata.ino(),
            teardown: None,
        })
    }
}

/// Fails with a sentence that says what to do unless the process is root.
///
/// # Errors
///
/// [`Error::NotRoot`].
pub fn check_root() -> Result<()> {
    let uid = geteuid();
    if uid.is_root() {
        Ok(())
    } else {
        Err(Error::NotRoot { uid: uid.as_raw() })
    }
}

fn enter(file: &File) -> nix::Result<()> {
    setns(file, CloneFlags::CLONE_NEWNET)
}

fn sysctl_path(key: &str) -> Result<PathBuf> {
    let separator = if key.contains('/') { '/' } else { '.' };
    let mut parts = key.split(separator);
    let bad = |part: &str| part.is_empty() || part == "." || part == "..";
    if parts.next() != Some("net") || parts.clone().count() == 0 || parts.clone().any(bad) {
        return Err(Error::Invalid {
            what: "sysctl",
            value: key.to_owned(),
            rule: "only keys under net belong to a network namespace, such as net.ipv4.ip_forward",
        });
    }
    let mut path = PathBuf::from("/proc/sys/net");
    path.extend(parts);
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_network_sysctls_have_a_path() {
        let forward = Path::new("/proc/sys/net/ipv4/ip_forward");
        assert_eq!(sysctl_path("net.ipv4.ip_forward").unwrap(), forward);
        assert_eq!(sysctl_path("net/ipv4/ip_forward").unwrap(), forward);
        assert_eq!(
            sysctl_path("net/ipv4/conf/eth0.5/forwarding").unwrap(),
            Path::new("/proc/sys/net/ipv4/conf/eth0.5/forwarding")
        );
        for bad in [
            "",
            "net",
            "net.",
            "kernel.panic",
            "net/../kernel/panic",
            "net//ipv4",
            "network.x",
        ] {
            assert!(sysctl_path(bad).is_err(), "{bad:?}");
        }
    }
}
