//! The agent that is killed and started again.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{BufRead, BufReader},
    os::fd::AsFd,
    path::PathBuf,
    process::{ChildStdout, Stdio},
    time::{Duration, Instant},
};

use datapath_conformance::netns::Namespace;
use datapath_tools::lab::Process;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::Signal,
};

use crate::rig::{AGENT, Lab, Running};

/// How long one may take until it is ready, on a machine that others use too.
const PATIENCE: Duration = Duration::from_secs(30);

/// An agent, killed at the latest when it is dropped.
pub(crate) struct Agent {
    running: Running,
    said: BufReader<ChildStdout>,
    log: PathBuf,
    begun: Instant,
}

impl Agent {
    /// Starts the agent of a node.
    pub(crate) fn start(lab: &Lab, node: &Namespace, name: &str) -> Self {
        let directory = lab.directory(name);
        let log = directory.join("agent.log");
        let begun = Instant::now();
        let child = node
            .command(AGENT)
            .arg("--config")
            .arg(directory.join("agent.toml"))
            .stdout(Stdio::piped())
            .stderr(File::create(&log).unwrap())
            .spawn();
        let mut running = Running(child.unwrap());
        let said = BufReader::new(running.0.stdout.take().unwrap());
        Self {
            running,
            said,
            log,
            begun,
        }
    }

    /// Waits until it is ready, and returns how long it took since its start.
    pub(crate) fn wait_ready(&mut self) -> Duration {
        let patience = PollTimeout::try_from(PATIENCE).unwrap();
        let mut wanted = [PollFd::new(self.said.get_ref().as_fd(), PollFlags::POLLIN)];
        let come = poll(&mut wanted, patience).unwrap();
        assert_eq!(come, 1, "not ready within {PATIENCE:?}:\n{}", self.log());
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        assert!(line.contains("ready"), "{line:?}\n{}", self.log());
        self.begun.elapsed()
    }

    /// Kills it, and waits until the kernel has let go of all that it had.
    pub(crate) fn kill(mut self) {
        self.running.end(Signal::SIGKILL);
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Numbers and tags of the programs it has, which tell one load and one sequence of
    /// instructions from another.
    pub(crate) fn programs(&self) -> Programs {
        let pid = self.running.0.id();
        let mut found = Programs::default();
        for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap() {
            // A connection may end meanwhile.
            let text = fs::read_to_string(entry.unwrap().path()).unwrap_or_default();
            // Those of links too: these are what runs.
            if !text.contains("link_id:") {
                continue;
            }
            let field = |key| {
                let line = text.lines().find_map(|line| line.strip_prefix(key));
                line.map(|value| value.trim().to_owned())
            };
            found.numbers.extend(field("prog_id:"));
            found.tags.extend(field("prog_tag:"));
        }
        found
    }
}

/// The programs that links of an agent have.
#[derive(Debug, Default)]
pub(crate) struct Programs {
    pub(crate) numbers: BTreeSet<String>,
    pub(crate) tags: BTreeSet<String>,
}

/// Kills an agent that another process started.
pub(crate) fn kill_stranger(agent: Process) {
    let pid = nix::unistd::Pid::from_raw(agent.pid.try_into().unwrap());
    nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
    assert!(agent.wait_until(Instant::now() + PATIENCE));
}
