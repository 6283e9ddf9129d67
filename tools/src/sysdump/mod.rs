//! Everything that a bug report needs, in one packed archive.
//!
//! Whatever cannot be collected is named in the archive's `errors.txt`, and the rest goes on: a dump
//! of a node whose agent is dead has all but what only the agent knows.
//!
//! ```text
//! datapath-sysdump/summary.json      what this is a dump of
//! datapath-sysdump/errors.txt        what could not be collected, and why; only where there is such
//! datapath-sysdump/agent/            what the agent says: status, endpoints, flows, peers, ...
//! datapath-sysdump/agent.toml        its configuration, the keys that this version knows
//! datapath-sysdump/agent.log         the last lines that it wrote
//! datapath-sysdump/kernel/           its maps, programs and links by their pins; version, sysctls
//! datapath-sysdump/network/          links, addresses, routes, neighbours of its namespace
//! datapath-sysdump/doctor.json       what works on the machine
//! ```

mod agent;
mod archive;
mod network;
mod system;

use std::{
    fs::File,
    path::{Path, PathBuf},
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use nix::sched::{CloneFlags, setns};
use serde::Serialize;

use self::archive::Archive;
use crate::api::Client;

/// Version of the archive's layout, and of what `--output json` prints.
pub const FORMAT: &str = "sysdump/1";

/// Where the pins are unless somebody says otherwise.
const BPFFS: &str = "/run/datapath/bpffs";

/// What to dump: as much as is known of an agent. What is not given is found out, from the running
/// agent or from the files beside its socket.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// The agent's socket.
    pub socket: PathBuf,
    /// The agent's network namespace.
    pub netns: Option<PathBuf>,
    /// The directory of the pins.
    pub bpffs: Option<PathBuf>,
    /// The agent's configuration file.
    pub config: Option<PathBuf>,
    /// The agent's log file.
    pub log: Option<PathBuf>,
    /// How many lines of the log are wanted.
    pub log_lines: usize,
}

/// A dump that was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Dump {
    /// Version of the layout: [`FORMAT`].
    pub format: &'static str,
    /// The archive.
    pub file: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// What is in it.
    pub parts: Vec<String>,
    /// What could not be collected.
    pub errors: Vec<Problem>,
}

/// Something that could not be collected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The part that is missing.
    pub part: String,
    /// Why.
    pub error: String,
}

/// First file of an archive.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    format: &'static str,
    version: &'static str,
    /// Seconds since 1970.
    created_s: u64,
    socket: &'a Path,
    netns: Option<&'a Path>,
    bpffs: &'a Path,
}

/// Collects everything into a file, mode 0600, in place of what is there.
///
/// # Errors
///
/// Only where the file itself cannot be written; what cannot be collected is in
/// [`Dump::errors`].
pub fn collect(source: &Source, file: &Path) -> anyhow::Result<Dump> {
    let mut archive = Archive::create(file)?;
    let client = Client::new(&source.socket);
    let agent = agent::collect(&mut archive, &client, source)?;

    let pid = agent.pid;
    let of_process = pid.map(|pid| PathBuf::from(format!("/proc/{pid}/ns/net")));
    let netns = source.netns.clone().or(of_process);
    let bpffs = source.bpffs.clone().or(agent.bpffs);
    let bpffs = bpffs.unwrap_or_else(|| BPFFS.into());
    network::collect(&mut archive, netns.as_deref())?;
    system::collect(&mut archive, netns.as_deref(), &bpffs, &agent.uplinks)?;
    archive.json(
        "summary.json",
        Ok(Summary {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION"),
            created_s: now_s(),
            socket: &source.socket,
            netns: netns.as_deref(),
            bpffs: &bpffs,
        }),
    )?;
    archive.finish()
}

/// Returns the name of a dump that is made now.
#[must_use]
pub fn default_file() -> PathBuf {
    format!("datapath-sysdump-{}.tar.gz", now_s()).into()
}

fn now_s() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// Does something inside a network namespace, or in the own one where none is given.
fn inside<R: Send>(
    netns: Option<&Path>,
    work: impl FnOnce() -> anyhow::Result<R> + Send,
) -> anyhow::Result<R> {
    let Some(path) = netns else {
        return work();
    };
    let entering = || format!("enter {}", path.display());
    let file = File::open(path).with_context(entering)?;
    let enter = || {
        setns(&file, CloneFlags::CLONE_NEWNET).with_context(entering)?;
        work()
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, enter)?;
        thread
            .join()
            .unwrap_or_else(|_panic| Err(anyhow::anyhow!("broke off")))
    })
}
