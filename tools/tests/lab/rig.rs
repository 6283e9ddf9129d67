//! Labs of tests, and what there is of them.

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    process::{self, Child, Command, Output},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use datapath_conformance::{
    netns,
    snapshot::MachineState,
    topology::{LabName, Plan, Remains},
};
use datapath_tools::{api::Client, lab::Process};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

pub(crate) const DPCTL: &str = env!("CARGO_BIN_EXE_dpctl");
pub(crate) const AGENT: &str = env!("CARGO_BIN_EXE_dp-agent");

/// What a command said.
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    pub(crate) fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Its output, if all went well.
    pub(crate) fn good(self) -> String {
        assert_eq!(self.code, Some(0), "{}{}", self.out, self.err);
        self.out
    }

    /// Its complaint, if it ended with this exit code.
    pub(crate) fn bad(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{}{}", self.out, self.err);
        assert!(self.out.is_empty(), "{}", self.out);
        self.err
    }
}

pub(crate) fn dpctl(arguments: &[&str]) -> Said {
    Said::of(Command::new(DPCTL).args(arguments).output().unwrap())
}

/// A lab of a test. Whatever is left of it goes when it is dropped, also by a panic.
pub(crate) struct Lab {
    pub(crate) name: LabName,
    /// The machine without it.
    before: MachineState,
}

impl Lab {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);

        netns::check_root().unwrap();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("dpt{}-{number}-tools", process::id())
            .parse()
            .unwrap();
        Self {
            name,
            before: machine(),
        }
    }

    /// One that is up.
    pub(crate) fn up(arguments: &[&str]) -> (Self, String) {
        let lab = Self::new();
        let said = dpctl(&[&["lab", "up", lab.name()], arguments].concat()).good();
        (lab, said)
    }

    pub(crate) fn name(&self) -> &str {
        self.name.as_str()
    }

    pub(crate) fn directory(&self, node: &str) -> PathBuf {
        Plan::new(self.name.clone()).run_directory().join(node)
    }

    pub(crate) fn client(&self, node: &str) -> Client {
        Client::new(self.directory(node).join("agent.sock"))
    }

    pub(crate) fn agent(&self, node: &str) -> Process {
        Process::read(&self.directory(node).join("agent.json"))
            .unwrap()
            .unwrap()
    }

    /// Asks the agent of a node.
    pub(crate) fn ask(&self, node: &str, arguments: &[&str]) -> Said {
        dpctl(&[&["--lab", self.name(), "--node", node], arguments].concat())
    }

    /// What the machine has now and had not before, or the other way round.
    ///
    /// Other tests may make and remove things at the same time: only what has the lab's name, or
    /// is among the BPF objects given, is looked at, and interfaces, which no lab leaves to the
    /// machine.
    pub(crate) fn changes(&self, objects: &BTreeSet<String>) -> Vec<String> {
        let mut all = self.before.diff(&machine());
        all.retain(|thing| {
            thing.contains(self.name())
                || thing.starts_with("interface")
                || objects.iter().any(|object| thing.starts_with(object))
        });
        all
    }

    /// Checks that nothing is left; the kernel frees what nobody holds any more a moment later.
    pub(crate) fn assert_gone(&self, objects: &BTreeSet<String>) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.changes(objects).is_empty() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(50));
        }
        let left = self.changes(objects);
        assert!(left.is_empty(), "left behind: {left:#?}");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let left = Remains::destroy(&self.name);
        assert!(left.is_ok() || thread::panicking(), "{left:?}");
    }
}

/// Looks at the machine. bpftool gives up when a link goes away while it lists them (EAGAIN), as
/// those of other tests do: then again.
fn machine() -> MachineState {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match MachineState::take() {
            Ok(state) => return state,
            Err(error) if Instant::now() >= deadline => panic!("{}", error.chain()),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Names the BPF objects that a process holds, as [`MachineState`] does.
pub(crate) fn bpf_objects(process: Process) -> BTreeSet<String> {
    let mut objects = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{}/fdinfo", process.pid)).unwrap() {
        // A connection may end meanwhile.
        let text = fs::read_to_string(entry.unwrap().path()).unwrap_or_default();
        for line in text.lines() {
            if let Some((key, value)) = line.split_once(':') {
                let kind = match key {
                    "link_id" => "link",
                    "prog_id" => "program",
                    "map_id" => "map",
                    _ => continue,
                };
                objects.insert(format!("BPF {kind} {} ", value.trim()));
            }
        }
    }
    objects
}

/// A child that does not outlive its test.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    /// Sends a signal, and returns the exit code.
    pub(crate) fn end(&mut self, signal: Signal) -> Option<i32> {
        kill(Pid::from_raw(self.0.id().try_into().unwrap()), signal).unwrap();
        self.0.wait().unwrap().code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended long ago.
        let _ended = self.0.kill();
        self.0.wait().unwrap();
    }
}
