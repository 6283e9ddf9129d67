//! The reference node agent: one node's datapath behind the [API](crate::api).

mod cluster;
mod config;
mod events;
mod failure;
mod file;
mod node;
mod policies;

use std::{
    io::{self, Write},
    os::fd::BorrowedFd,
    sync::Arc,
    thread,
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::{
    runtime,
    signal::unix::{Signal, SignalKind, signal},
    task, time,
};

pub use self::{
    config::{Config, OnStop, PolicySection},
    node::LocalNode,
};
use crate::{
    api::{self, Node, Socket},
    error::{Error, Result},
};

/// How long to leave the flows alone after they could not be swept.
const SWEEP_AGAIN: Duration = Duration::from_secs(5);
/// How long requests may go on after the last connection has ended.
const PATIENCE: Duration = Duration::from_secs(5);
/// Threads that requests run on. All but status and flows take microseconds.
const THREADS: usize = 8;

/// Runs an agent in the calling thread's network namespace until SIGTERM or SIGINT, then leaves its
/// datapath running or removes it, as [`Config::on_stop`] says. It prints one line when it is ready.
///
/// # Errors
///
/// Whatever keeps it from starting, [`Error::Os`] when the socket fails, or what could not be
/// removed in the end.
pub fn run(config: &Config) -> Result<()> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(THREADS)
        .build()
        .map_err(Error::os("start", "the runtime"))?;
    // From here on a signal ends the agent in order, also one that comes while it starts.
    let stop = runtime.block_on(async { Stop::new() })?;
    let socket = Socket::listen(&config.socket)?;
    let node = Arc::new(LocalNode::open(config)?);
    let following = Following::start(&node)?;
    let served = runtime.block_on(serve(&socket, &node, stop));
    tracing::info!("stopping");
    following.stop();
    // Sweeps and requests that still run have the node.
    runtime.shutdown_timeout(PATIENCE);
    let stopped = match (Arc::try_unwrap(node), config.on_stop) {
        (Ok(node), OnStop::Remove) => node.close(),
        (Ok(node), OnStop::Leave) => {
            node.leave();
            Ok(())
        }
        (Err(_), _) => Err(Error::Busy { patience: PATIENCE }),
    };
    served.and(stopped)
}

/// The threads that follow what changes: the node's network, policies, the cluster.
struct Following {
    stopper: io::PipeWriter,
    threads: Vec<(&'static str, thread::JoinHandle<()>)>,
}

/// Follows something until the other end of a pipe is closed.
type Follow = fn(&LocalNode, &io::PipeReader) -> Result<()>;

impl Following {
    /// Starts them in the calling thread's network namespace.
    fn start(node: &Arc<LocalNode>) -> Result<Self> {
        let (stop, stopper) = io::pipe().map_err(Error::os("make", "a pipe"))?;
        let mut following = Self {
            stopper,
            threads: Vec::new(),
        };
        let all: [(&str, Follow); 3] = [
            ("the network", |node, stop| node.follow(stop)),
            ("policies", |node, stop| node.follow_policies(stop)),
            ("the cluster file", |node, stop| node.follow_cluster(stop)),
        ];
        for (what, follow) in all {
            match spawn(node, &stop, what, follow) {
                Ok(thread) => following.threads.push((what, thread)),
                Err(error) => {
                    following.stop();
                    return Err(error);
                }
            }
        }
        Ok(following)
    }

    fn stop(self) {
        drop(self.stopper);
        for (what, thread) in self.threads {
            if thread.join().is_err() {
                tracing::error!("the thread that follows {what} panicked");
            }
        }
    }
}

fn spawn(
    node: &Arc<LocalNode>,
    stop: &io::PipeReader,
    what: &'static str,
    follow: Follow,
) -> Result<thread::JoinHandle<()>> {
    let stop = stop.try_clone().map_err(Error::os("copy", "a pipe"))?;
    let node = Arc::clone(node);
    let thread = thread::Builder::new().name("dp-follow".to_owned());
    let thread = thread.spawn(move || {
        if let Err(error) = follow(&node, &stop) {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "changes of {what} are not followed any more");
        }
    });
    thread.map_err(Error::os("start the thread that follows", what))
}

/// Whether a pipe's other end is closed.
fn stopped(stop: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(stop, PollFlags::POLLIN)];
    // One that cannot be polled would be waited for in vain.
    poll(&mut polled, PollTimeout::ZERO).is_err() || polled.iter().any(|fd| fd.any() == Some(true))
}

async fn serve(socket: &Socket, node: &Arc<LocalNode>, stop: Stop) -> Result<()> {
    let listener = socket.listener()?;
    let sweeps = task::spawn(sweep(Arc::clone(node)));
    announce(socket, node);
    let shared: Arc<dyn Node> = Arc::<LocalNode>::clone(node);
    let served = api::serve(listener, shared, stop.wait()).await;
    sweeps.abort();
    served.map_err(Error::os("serve", socket.path().display()))
}

async fn sweep(node: Arc<LocalNode>) {
    loop {
        let sweeping = Arc::clone(&node);
        let pause = match task::spawn_blocking(move || sweeping.sweep()).await {
            Ok(Ok(pause)) => pause,
            Ok(Err(error)) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "sweep of flows failed"
                );
                SWEEP_AGAIN
            }
            Err(panic) => {
                tracing::error!(%panic, "sweep of flows panicked");
                SWEEP_AGAIN
            }
        };
        time::sleep(pause).await;
    }
}

fn announce(socket: &Socket, node: &LocalNode) {
    let endpoints = node.endpoints().map_or(0, |endpoints| endpoints.len());
    let peers = node.peers().map_or(0, |peers| peers.len());
    let socket = socket.path().display();
    // Whoever started it may not listen; that is no reason to end.
    let _closed = writeln!(
        io::stdout(),
        "dp-agent ready at {socket}: {endpoints} endpoints, {peers} peers"
    );
}

/// The signals that end the agent.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn new() -> Result<Self> {
        let failed = || Error::os("install a handler for", "SIGTERM and SIGINT");
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(failed())?,
            interrupt: signal(SignalKind::interrupt()).map_err(failed())?,
        })
    }

    async fn wait(mut self) {
        let name = tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "asked to end");
    }
}
