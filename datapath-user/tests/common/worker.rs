//! A process that has a datapath, and is killed.
//!
//! It is the test binary itself, told by the environment to be the worker: the test that wants one
//! begins with [`work_if_told`] and starts itself again with [`Worker::start`].

use std::{
    env,
    io::{BufRead, BufReader, Lines, Write, stdout},
    process::{Child, ChildStdout, Command, Stdio},
    thread,
    time::Duration,
};

use datapath_user::{Config, Datapath, EndpointSpec, PeerSpec};
use serde::{Deserialize, Serialize};

const JOB: &str = "DATAPATH_TEST_JOB";
/// Begins a line of the worker's own among those of the test harness.
const MARK: &str = "worker:";

/// What a worker does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) config: Config,
    /// Added once it is open.
    pub(crate) endpoints: Vec<EndpointSpec>,
    /// Set once it is open.
    pub(crate) peers: Vec<PeerSpec>,
    /// Added and removed, again and again, until it is killed.
    pub(crate) churn: Vec<EndpointSpec>,
    /// Set and removed, likewise.
    pub(crate) churn_peers: Vec<PeerSpec>,
    /// Sweeps once it is ready, until it is killed.
    pub(crate) sweeps: bool,
    /// Closes the datapath in the end of a round, and opens it again.
    pub(crate) close: bool,
}

impl Job {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            config,
            endpoints: Vec::new(),
            peers: Vec::new(),
            churn: Vec::new(),
            churn_peers: Vec::new(),
            sweeps: false,
            close: false,
        }
    }
}

/// A worker, killed at the latest when it is dropped.
pub(crate) struct Worker {
    child: Child,
    said: Lines<BufReader<ChildStdout>>,
}

impl Worker {
    /// Starts the test with this name as a worker in the calling thread's namespaces.
    pub(crate) fn start(test: &str, job: &Job) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture", "--test-threads", "1"])
            .env(JOB, serde_json::to_string(job).unwrap())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, said }
    }

    /// Waits until it has come to a point: `begun`, `open`, or `ready`.
    pub(crate) fn wait(&mut self, point: &str) {
        let wanted = format!("{MARK} {point}");
        let come = self.said.any(|line| line.unwrap() == wanted);
        assert!(come, "it never was {point}");
    }

    /// Kills it, and waits until the kernel has let go of all that it had.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended long ago.
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// Is the worker, if this process was started to be one; returns in any other.
pub(crate) fn work_if_told() {
    let Ok(job) = env::var(JOB) else { return };
    let job: Job = serde_json::from_str(&job).unwrap();
    // Who starts it reads up to a point, and no further: a full pipe must not stop it.
    say("begun");
    let mut first = true;
    loop {
        let datapath = Datapath::open(job.config.clone()).unwrap();
        if first {
            say("open");
        }
        let known = |id: &str| datapath.endpoints().iter().any(|known| known.id == id);
        for endpoint in job.endpoints.iter().filter(|spec| !known(&spec.id)) {
            datapath.add_endpoint(endpoint).unwrap();
        }
        for peer in &job.peers {
            datapath.upsert_peer(peer).unwrap();
        }
        if first {
            say("ready");
        }
        first = false;
        if job.sweeps {
            loop {
                datapath.sweep_slice().unwrap();
            }
        }
        if job.churn.is_empty() && job.churn_peers.is_empty() && !job.close {
            loop {
                thread::sleep(Duration::from_mins(1));
            }
        }
        let rounds = if job.close { 1 } else { usize::MAX };
        for _ in 0..rounds {
            for endpoint in &job.churn {
                datapath.add_endpoint(endpoint).unwrap();
            }
            for peer in &job.churn_peers {
                datapath.upsert_peer(peer).unwrap();
                let mut less = peer.clone();
                less.pods.clear();
                datapath.upsert_peer(&less).unwrap();
            }
            for endpoint in &job.churn {
                datapath.remove_endpoint(&endpoint.id).unwrap();
            }
            for peer in &job.churn_peers {
                datapath.remove_peer(&peer.name).unwrap();
            }
        }
        datapath.close().unwrap();
    }
}

fn say(point: &str) {
    // The harness has begun a line of its own.
    let mut out = stdout().lock();
    write!(out, "\n{MARK} {point}\n").unwrap();
    out.flush().unwrap();
}
