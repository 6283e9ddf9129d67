//! Namespaces to try things in, gone with their thread.

use std::path::PathBuf;
use std::{env, thread};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::Finding;
use crate::error::BPFFS_REMEDY;

/// A thread in network and mount namespaces of its own.
pub(super) struct Sandbox {
    /// A directory that nobody else sees, and what the kernel said to a bpffs in it.
    directory: PathBuf,
    bpffs: Result<(), Errno>,
}

impl Sandbox {
    /// Has findings made inside; or says why there is no inside.
    pub(super) fn try_out(work: impl FnOnce(&Self) -> Vec<Finding> + Send) -> Vec<Finding> {
        let inside = || match Self::enter() {
            Ok(sandbox) => work(&sandbox),
            Err((doing, errno)) => vec![Finding::missing(
                "namespaces",
                format!("{doing}: {errno}; nothing else could be tried"),
                "run as root, or give the process CAP_SYS_ADMIN; in a container also let its \
                 seccomp profile allow unshare(2) and mount(2)",
            )],
        };
        thread::scope(|scope| {
            let thread = thread::Builder::new()
                .name("dp-doctor".into())
                .spawn_scoped(scope, inside);
            thread
                .ok()
                .and_then(|thread| thread.join().ok())
                .unwrap_or_else(|| {
                    let found = "the thread to try things in did not start, or broke off";
                    let remedy = "report this, with what was printed before";
                    vec![Finding::missing("namespaces", found, remedy)]
                })
        })
    }

    fn enter() -> Result<Self, (&'static str, Errno)> {
        let failed = |doing| move |errno| (doing, errno);
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
            .map_err(failed("make namespaces"))?;
        // What is mounted from here on stays here.
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
            .map_err(failed("make mounts private"))?;
        let directory = env::temp_dir();
        let mode = Some("mode=0700");
        let flags = MsFlags::empty();
        mount(Some("doctor"), &directory, Some("tmpfs"), flags, mode)
            .map_err(failed("mount a tmpfs"))?;
        let mut sandbox = Self {
            bpffs: Ok(()),
            directory,
        };
        let bpffs = sandbox.directory.join("bpffs");
        sandbox.bpffs = std::fs::create_dir(&bpffs)
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))
            .and_then(|()| mount(Some("bpf"), &bpffs, Some("bpf"), flags, mode));
        Ok(sandbox)
    }

    /// What came of making it.
    pub(super) fn findings(&self) -> Vec<Finding> {
        let namespaces = Finding::ok("namespaces", "network and mount namespaces can be made");
        let bpffs = match self.bpffs {
            Ok(()) => Finding::ok("bpffs", "can be mounted, for pins"),
            Err(errno) => {
                Finding::missing("bpffs", format!("cannot be mounted: {errno}"), BPFFS_REMEDY)
            }
        };
        vec![namespaces, bpffs]
    }

    /// A directory that there is not yet, on a tmpfs.
    pub(super) fn pins(&self) -> PathBuf {
        self.directory.join("pins")
    }
}
