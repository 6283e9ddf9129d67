//! Network namespaces for tests: each lives as long as the thread that made it.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::PathBuf,
    sync::mpsc::{Sender, channel},
    thread::{self, JoinHandle},
};

use datapath_tunnel::netlink::Netlink;
use nix::{
    sched::{CloneFlags, unshare},
    unistd::{getpid, gettid},
};

type Task = Box<dyn FnOnce() + Send>;

/// A fresh network namespace, held by a thread inside it. Nothing outside of it is touched, and
/// it is gone when this value is dropped, unless something else holds it.
pub(crate) struct Namespace {
    path: PathBuf,
    tasks: Option<Sender<Task>>,
    thread: Option<JoinHandle<()>>,
}

impl Namespace {
    pub(crate) fn new() -> Self {
        let (tasks, queue) = channel::<Task>();
        let (ready, entered) = channel();
        let thread = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap_or_else(|error| {
                panic!("these tests make network namespaces, run them as root: {error}")
            });
            ready.send((getpid(), gettid())).unwrap();
            for task in queue {
                task();
            }
        });
        let Ok((pid, tid)) = entered.recv() else {
            resume_unwind(thread.join().unwrap_err());
        };
        Self {
            path: PathBuf::from(format!("/proc/{pid}/task/{tid}/ns/net")),
            tasks: Some(tasks),
            thread: Some(thread),
        }
    }

    /// Where the namespace can be opened.
    pub(crate) fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// A handle to it, with loopback switched on.
    pub(crate) fn netlink(&self) -> Netlink {
        let netlink = Netlink::open_in(&self.path).unwrap();
        netlink.set_up(1, true).unwrap();
        netlink
    }

    /// Runs something inside it, on its thread. A panic is passed on.
    pub(crate) fn run<T: Send + 'static>(&self, task: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, outcome) = channel();
        let task = move || {
            let _ = done.send(catch_unwind(AssertUnwindSafe(task)));
        };
        self.tasks.as_ref().unwrap().send(Box::new(task)).unwrap();
        match outcome.recv().unwrap() {
            Ok(value) => value,
            Err(panic) => resume_unwind(panic),
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.tasks.take());
        let _ = self.thread.take().unwrap().join();
    }
}
