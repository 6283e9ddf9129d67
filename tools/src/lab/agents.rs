//! The agents of a lab: started, waited for, ended.

use std::{
    env,
    fs::{self, File},
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use datapath_conformance::{
    family::Family,
    signals::{self, Teardown},
    topology::{Fabric, Node, plan},
};
use datapath_user::Tunnel;

use super::{SOCKET, process::Process};
use crate::{
    agent::{Config, OnStop},
    api::Client,
    error::{Error, Result},
};

/// Name of the agent's program.
const PROGRAM: &str = "dp-agent";
/// Environment variable that names another one.
const VARIABLE: &str = "DP_AGENT";

/// Files of a node's agent.
const CONFIG: &str = "agent.toml";
const LOG: &str = "agent.log";
const PROCESS: &str = "agent.json";
const STATE: &str = "ipam.redb";

/// How long agents may take until all are ready: they share the machine's processors.
const START: Duration = Duration::from_secs(30);
const START_PER_NODE: Duration = Duration::from_secs(5);
/// How long one that starts may take to answer; it listens before it is ready.
const ANSWER: Duration = Duration::from_millis(200);
/// How long agents may take until they have ended.
pub(super) const END: Duration = Duration::from_secs(15);
/// How often one that starts is looked at.
const GLANCE: Duration = Duration::from_millis(5);
/// Lines of an agent's log that are shown when it does not start.
const SAID_LINES: usize = 12;
/// Room for flows of one node: many labs on one machine, and some thousand connections do.
const MAX_FLOWS: u32 = 8192;

/// Finds the program to start as agent: what `DP_AGENT` names, else `dp-agent` beside this one.
///
/// # Errors
///
/// [`Error::NoAgentProgram`].
pub fn agent_program() -> Result<PathBuf> {
    if let Some(given) = env::var_os(VARIABLE) {
        // A name without a slash is a file here, and no program to search for.
        return std::path::absolute(given).map_err(Error::os("find", VARIABLE));
    }
    let own = env::current_exe().map_err(Error::os("find", "this program"))?;
    let beside = own.with_file_name(PROGRAM);
    check_program(&beside)?;
    Ok(beside)
}

/// Refuses what cannot be a program.
pub(super) fn check_program(path: &Path) -> Result<()> {
    if path.is_file() {
        Ok(())
    } else {
        Err(Error::NoAgentProgram {
            path: path.to_owned(),
        })
    }
}

/// Where an agent's process is written down.
pub(super) fn process_file(directory: &Path) -> PathBuf {
    directory.join(PROCESS)
}

/// The agents of a lab, in order. Dropping them ends them.
#[derive(Debug)]
pub(super) struct Agents {
    running: Arc<Mutex<Vec<Agent>>>,
    teardown: Teardown,
}

#[derive(Debug)]
struct Agent {
    node: String,
    directory: PathBuf,
    child: Child,
    process: Process,
}

impl Agents {
    /// Starts an agent in every node and waits until all are ready.
    pub(super) fn start(fabric: &Fabric, tunnel: Tunnel, program: &Path) -> Result<Self> {
        let running = Arc::new(Mutex::new(Vec::new()));
        let ended_with = Arc::clone(&running);
        let teardown = signals::on_teardown(move || end(&mut lock(&ended_with)));
        let agents = Self { running, teardown };
        for node in fabric.nodes() {
            let agent = Agent::start(node, tunnel, program)?;
            lock(&agents.running).push(agent);
        }
        agents.wait_ready()?;
        Ok(agents)
    }

    fn wait_ready(&self) -> Result<()> {
        let count = lock(&self.running).len();
        let patience = START + START_PER_NODE * u32::try_from(count).unwrap_or(u32::MAX);
        let deadline = Instant::now() + patience;
        for index in 0..count {
            // Locked for a glance at a time: a signal takes down what is half started.
            while !lock(&self.running)
                .get_mut(index)
                .map_or(Ok(true), Agent::is_ready)?
            {
                if Instant::now() >= deadline {
                    return Err(self.not_ready(index, patience));
                }
                thread::sleep(GLANCE);
            }
        }
        Ok(())
    }

    fn not_ready(&self, index: usize, patience: Duration) -> Error {
        let running = lock(&self.running);
        let agent = running.get(index);
        Error::AgentNotReady {
            node: agent.map(|agent| agent.node.clone()).unwrap_or_default(),
            patience,
            said: agent.map(Agent::said).unwrap_or_default(),
        }
    }

    /// Leaves them running.
    pub(super) fn leak(self) {
        self.teardown.forget();
    }

    /// Ends them.
    pub(super) fn end(self) -> Result<()> {
        Ok(self.teardown.run()?)
    }
}

impl Agent {
    fn start(node: &Node, tunnel: Tunnel, program: &Path) -> Result<Self> {
        let directory = node.directory();
        let config_path = directory.join(CONFIG);
        let text = toml::to_string(&config(node, tunnel)).map_err(io::Error::other);
        let written = text.and_then(|text| fs::write(&config_path, text));
        written.map_err(Error::os("write", config_path.display()))?;

        let log_path = directory.join(LOG);
        let opened = File::create(&log_path).and_then(|log| Ok((log.try_clone()?, log)));
        let (out, log) = opened.map_err(Error::os("write", log_path.display()))?;
        let mut command = node.namespace().command(&program.to_string_lossy());
        command
            .arg("--config")
            .arg(&config_path)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(log)
            // Ctrl-C at the terminal is for whoever owns the lab, which then ends it in order.
            .process_group(0);
        let child = command
            .spawn()
            .map_err(Error::os("start", program.display()))?;
        let process = Process::of(child.id())?;
        process.write(&process_file(directory))?;
        let directory = directory.to_owned();
        Ok(Self {
            node: format!("n{}", node.number()),
            directory,
            child,
            process,
        })
    }

    /// Tells whether it answers. One that has ended never will.
    fn is_ready(&mut self) -> Result<bool> {
        let client = Client::new(self.directory.join(SOCKET)).with_patience(ANSWER);
        if client.health().is_ok() {
            return Ok(true);
        }
        let ended = self.child.try_wait();
        match ended.map_err(Error::os("wait for", PROGRAM))? {
            None => Ok(false),
            Some(status) => Err(Error::AgentEnded {
                node: self.node.clone(),
                status,
                said: self.said(),
            }),
        }
    }

    /// The last lines of its log.
    fn said(&self) -> String {
        let text = fs::read_to_string(self.directory.join(LOG)).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let from = lines.len().saturating_sub(SAID_LINES);
        let last: Vec<_> = lines
            .iter()
            .skip(from)
            .map(|line| format!("  {line}"))
            .collect();
        last.join("\n")
    }
}

/// Ends all together, so that it takes as long as the slowest.
fn end(agents: &mut Vec<Agent>) -> datapath_conformance::Result<()> {
    let mut failures = Vec::new();
    for agent in agents.iter() {
        failures.extend(agent.process.terminate().err());
    }
    let deadline = Instant::now() + END;
    for mut agent in agents.drain(..) {
        if agent.process.wait_until(deadline) {
            // It has ended, so this returns at once.
            let waited = agent.child.wait().map_err(Error::os("wait for", PROGRAM));
            failures.extend(waited.err());
        } else {
            let (node, pid) = (agent.node, agent.process.pid);
            failures.push(Error::AgentStays {
                node,
                pid,
                patience: END,
            });
        }
    }
    match failures.into_iter().next() {
        None => Ok(()),
        Some(first) => Err(datapath_conformance::Error::View {
            node: "a lab".to_owned(),
            source: Box::new(first),
        }),
    }
}

fn config(node: &Node, tunnel: Tunnel) -> Config {
    let number = node.number();
    let directory = node.directory();
    Config {
        socket: directory.join(SOCKET),
        state: directory.join(STATE),
        on_stop: OnStop::Remove,
        ..Config::new(datapath_user::Config {
            gateways: Family::ALL
                .map(|family| plan::pod_gateway(number, family))
                .to_vec(),
            pod_cidrs: Family::ALL
                .map(|family| plan::pod_cidr(number, family))
                .to_vec(),
            tunnel,
            max_flows: Some(MAX_FLOWS),
            max_pending: Some(MAX_FLOWS),
            ..datapath_user::Config::new(node.bpffs(), [plan::UPLINK])
        })
    }
}

fn lock(agents: &Mutex<Vec<Agent>>) -> MutexGuard<'_, Vec<Agent>> {
    agents.lock().unwrap_or_else(PoisonError::into_inner)
}
