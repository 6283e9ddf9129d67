//! What of the machine must be the same after a lab as before it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use datapath_tunnel::netlink::Netlink;
use serde::Deserialize;

use crate::{
    error::{Error, Result},
    netns, program,
    topology::plan::RUN_DIRECTORY,
};

/// The state of the machine that a lab could leave something in.
///
/// It takes in: named network namespaces; interfaces of this process's own namespace; BPF links,
/// programs and maps of the whole machine; mounts of this process's mount namespace; files under
/// `/run/datapath-lab`, where labs keep theirs.
///
/// What is left out on purpose: the shared mount on `/run/netns`, which the first named namespace
/// of a machine brings and which stays, as with `ip netns add`; the state of interfaces (only
/// which there are is compared); and everything inside other namespaces, which goes with them.
/// What *others* make or remove at the same time is not left out, as nothing tells it apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineState {
    /// Every thing, by kind and identity, with its description.
    things: BTreeMap<(Kind, String), String>,
}

/// What a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Namespace,
    Interface,
    BpfLink,
    BpfProgram,
    BpfMap,
    Mount,
    File,
}

impl Kind {
    fn words(self) -> &'static str {
        match self {
            Self::Namespace => "network namespace",
            Self::Interface => "interface",
            Self::BpfLink => "BPF link",
            Self::BpfProgram => "BPF program",
            Self::BpfMap => "BPF map",
            Self::Mount => "mount",
            Self::File => "file",
        }
    }
}

impl MachineState {
    /// Looks at the machine.
    ///
    /// # Errors
    ///
    /// [`Error::ProgramMissing`] without bpftool, [`Error::ProgramFailed`] with its own words,
    /// [`Error::Netlink`] or [`Error::Os`] when something cannot be listed.
    pub fn take() -> Result<Self> {
        let mut state = Self::default();
        for name in netns::names()? {
            state.add(Kind::Namespace, name, String::new());
        }
        for (index, name) in interfaces()? {
            state.add(Kind::Interface, index.to_string(), name);
        }
        for (kind, word) in [
            (Kind::BpfLink, "link"),
            (Kind::BpfProgram, "prog"),
            (Kind::BpfMap, "map"),
        ] {
            for object in bpf_objects(word)? {
                state.add(kind, object.id.to_string(), object.description());
            }
        }
        for (point, rest) in mounts()? {
            state.add(Kind::Mount, point, rest);
        }
        for path in files(Path::new(RUN_DIRECTORY))? {
            state.add(Kind::File, path, String::new());
        }
        Ok(state)
    }

    /// Says what is new in `after`, and what is gone; one sentence each, none if all is the same.
    #[must_use]
    pub fn diff(&self, after: &Self) -> Vec<String> {
        let new = after.less(self, "is new");
        let gone = self.less(after, "is gone");
        new.chain(gone).collect()
    }

    /// Looks at the machine until it is as in this state again, at most for `patience`; returns
    /// what still differs then.
    ///
    /// The kernel clears up BPF links and namespaces in the background.
    ///
    /// # Errors
    ///
    /// As [`MachineState::take`].
    pub fn wait_for_return(&self, patience: Duration) -> Result<Vec<String>> {
        let deadline = Instant::now() + patience;
        loop {
            let difference = self.diff(&Self::take()?);
            if difference.is_empty() || Instant::now() >= deadline {
                return Ok(difference);
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn add(&mut self, kind: Kind, identity: String, description: String) {
        self.things.insert((kind, identity), description);
    }

    fn less<'a>(
        &'a self,
        other: &'a Self,
        what: &'static str,
    ) -> impl Iterator<Item = String> + 'a {
        self.things
            .iter()
            .filter(|(thing, description)| other.things.get(*thing) != Some(description))
            .map(move |((kind, identity), description)| {
                let space = if description.is_empty() { "" } else { " " };
                format!("{} {identity}{space}{description} {what}", kind.words())
            })
    }
}

fn interfaces() -> Result<BTreeSet<(u32, String)>> {
    let failed = |source| Error::Netlink {
        namespace: "of this process".to_owned(),
        source,
    };
    let links = Netlink::open().and_then(|netlink| netlink.links());
    let links = links.map_err(failed)?;
    Ok(links
        .into_iter()
        .map(|link| (link.index, link.name))
        .collect())
}

/// A BPF object as `bpftool -j` lists it; links have no name.
#[derive(Deserialize)]
struct BpfObject {
    id: u32,
    /// A word, or a number where the kernel has a type that bpftool does not know yet.
    #[serde(rename = "type")]
    kind: Option<serde_json::Value>,
    name: Option<String>,
    prog_id: Option<u32>,
}

impl BpfObject {
    fn description(&self) -> String {
        let program = self.prog_id.map(|id| format!("of program {id}"));
        let kind = self.kind.as_ref().map(|kind| match kind {
            serde_json::Value::String(word) => word.clone(),
            number => format!("type {number}"),
        });
        let words = [kind, self.name.clone(), program];
        words.into_iter().flatten().collect::<Vec<_>>().join(" ")
    }
}

/// Times that a list is asked for: bpftool gives up on one from which something goes away while it
/// lists.
const TRIES: u32 = 10;

fn bpf_objects(word: &str) -> Result<Vec<BpfObject>> {
    let list = || {
        let mut command = Command::new("bpftool");
        program::output("bpftool", "bpftool", command.args(["-j", word, "show"]))
    };
    let mut output = list();
    for _ in 1..TRIES {
        if output.is_ok() {
            break;
        }
        thread::sleep(Duration::from_millis(20));
        output = list();
    }
    let output = output?;
    // Some versions print nothing at all for an empty list.
    if output.is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_str(&output).map_err(|source| Error::Unreadable {
        what: format!("the output of `bpftool -j {word} show`"),
        source,
    })
}

/// Lists mount points, each with its file system and source (proc(5), `/proc/pid/mountinfo`).
fn mounts() -> Result<Vec<(String, String)>> {
    let path = "/proc/self/mountinfo";
    let text = fs::read_to_string(path).map_err(Error::os("read", path))?;
    Ok(text.lines().filter_map(mount).collect())
}

/// Reads `36 35 98:0 /root /point options [optional]* - type source options`.
fn mount(line: &str) -> Option<(String, String)> {
    let (first, second) = line.split_once(" - ")?;
    let mut first = first.split(' ').skip(3);
    let (root, point) = (first.next()?, first.next()?);
    let mut second = second.split(' ');
    let (kind, source) = (second.next()?, second.next()?);
    if point == "/run/netns" && kind != "nsfs" {
        return None;
    }
    Some((point.to_owned(), format!("({kind} {source} {root})")))
}

fn files(directory: &Path) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            // It is not there, or has gone while it was looked at.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::os("list", directory.display())(error)),
        };
        for entry in entries.filter_map(std::result::Result::ok) {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                pending.push(entry.path());
            }
            found.insert(entry.path().display().to_string());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(things: &[(Kind, &str, &str)]) -> MachineState {
        let mut state = MachineState::default();
        for &(kind, identity, description) in things {
            state.add(kind, identity.to_owned(), description.to_owned());
        }
        state
    }

    #[test]
    fn differences_are_named_both_ways() {
        let before = state(&[
            (Kind::Namespace, "a", ""),
            (Kind::BpfProgram, "7", "sched_cls from_pod"),
            (Kind::Interface, "2", "eth0"),
        ]);
        let after = state(&[(Kind::Namespace, "b", ""), (Kind::Interface, "2", "eth1")]);
        assert_eq!(
            before.diff(&after),
            [
                "network namespace b is new",
                "interface 2 eth1 is new",
                "network namespace a is gone",
                "interface 2 eth0 is gone",
                "BPF program 7 sched_cls from_pod is gone",
            ]
        );
        assert!(before.diff(&before).is_empty());
    }

    #[test]
    fn bpf_objects_are_described_whatever_bpftool_knows_of_them() {
        let listing = r#"[{"id":7,"type":"sched_cls","name":"from_pod","tag":"00"},
                          {"id":8,"type":11,"prog_id":7}]"#;
        let objects: Vec<BpfObject> = serde_json::from_str(listing).unwrap();
        let descriptions: Vec<_> = objects.iter().map(BpfObject::description).collect();
        assert_eq!(descriptions, ["sched_cls from_pod", "type 11 of program 7"]);
    }

    #[test]
    fn mount_lines_are_read_and_the_shared_directory_is_left_out() {
        let line = "41 23 0:38 / /sys/fs/bpf rw,nosuid shared:9 master:2 - bpf bpffs rw,mode=700";
        assert_eq!(
            mount(line),
            Some(("/sys/fs/bpf".to_owned(), "(bpf bpffs /)".to_owned()))
        );
        let directory = "50 27 254:0 /run/netns /run/netns rw shared:1 - ext4 /dev/vda rw";
        assert_eq!(mount(directory), None);
        let namespace = "51 50 0:4 net:[4026532] /run/netns/x rw shared:1 - nsfs nsfs rw";
        assert!(mount(namespace).is_some());
    }
}
