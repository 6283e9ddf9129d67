//! What a figure was measured on.

use std::{collections::BTreeMap, fs, path::Path, thread};

use datapath_conformance::{
    netns::Namespace,
    offload::{self, Offload},
    program,
};
use nix::sys::utsname::uname;
use serde::Serialize;

use crate::{
    error::{Error, Result},
    uplink::Uplink,
};

/// The machine, and what the lab's interfaces do: to be shown beside every figure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// As `uname -r` says.
    pub kernel: String,
    /// As `/proc/cpuinfo` says.
    pub cpu_model: String,
    /// How many CPUs this process may use.
    pub cpus: usize,
    /// What the kernel does about each weakness of the CPU that it has
    /// (`/sys/devices/system/cpu/vulnerabilities`), by name.
    pub mitigations: BTreeMap<String, String>,
    /// Offloads of the lab's interfaces as ethtool names them, by interface.
    pub offloads: BTreeMap<String, BTreeMap<&'static str, bool>>,
    /// MTU of the lab's interfaces, by interface.
    pub mtu_bytes: BTreeMap<String, u32>,
    /// The network card that it was measured on, if it was not the lab's own wire.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uplink: Option<Card>,
    /// Versions of the tools whose rules it was compared with, as these say, by variant.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tools: BTreeMap<&'static str, String>,
    /// Sizes of netfilter's table of connections, which are one for the whole machine: buckets, and
    /// most entries of a namespace.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub conntrack: BTreeMap<&'static str, String>,
}

/// A network card that was measured on. Its frames count as delivered when they are given to it;
/// how many it says that it has sent is in `observed` of the figures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Card {
    /// As the machine calls it.
    pub interface: String,
    /// As ethtool says; none where it says nothing.
    pub driver: Option<String>,
    /// As ethtool says, with its unit: `25000Mb/s`.
    pub speed: Option<String>,
    /// Largest packet, without the Ethernet header.
    pub mtu_bytes: u32,
    /// Offloads as ethtool names them.
    pub offloads: BTreeMap<&'static str, bool>,
    /// Ethernet address that its frames went to.
    pub next_hop: String,
}

impl Card {
    /// Looks at an interface; `interface` is what it is called in the namespace for now.
    ///
    /// # Errors
    ///
    /// [`Error::Lab`] where there is no such interface.
    pub fn look(namespace: &Namespace, interface: &str, uplink: &Uplink) -> Result<Self> {
        let link = namespace.link(interface)?;
        // Not every driver answers, and ethtool need not be there.
        let told = |arguments: &[&str], name| {
            let mut command = namespace.command("ethtool");
            let text = program::output("ethtool", "ethtool", command.args(arguments)).ok()?;
            field(&text, name)
        };
        Ok(Self {
            interface: uplink.interface.clone(),
            driver: told(&["-i", interface], "driver"),
            speed: told(&[interface], "Speed"),
            mtu_bytes: link.mtu_bytes,
            offloads: offloads(namespace, interface),
            next_hop: uplink.next_hop_text(),
        })
    }
}

/// The value of a line `name: value` of ethtool's.
fn field(text: &str, name: &str) -> Option<String> {
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let value = lines.find_map(|(key, value)| (key.trim() == name).then(|| value.trim()))?;
    (!value.is_empty()).then(|| value.to_owned())
}

/// Offloads of an interface, as far as ethtool tells.
fn offloads(namespace: &Namespace, interface: &str) -> BTreeMap<&'static str, bool> {
    let states = Offload::ALL.into_iter().filter_map(|offload| {
        let state = offload::get(namespace, interface, offload);
        Some((offload.name(), state.ok().flatten()?))
    });
    states.collect()
}

impl Machine {
    /// Looks at this machine; no interface is among it yet.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] where the kernel does not tell.
    pub fn look() -> Result<Self> {
        let name = uname().map_err(Error::os("ask", "uname"))?;
        let file = "/proc/cpuinfo";
        let cpuinfo = fs::read_to_string(file).map_err(Error::os("read", file))?;
        let cpus = thread::available_parallelism().map_err(Error::os("count", "CPUs"))?;
        Ok(Self {
            kernel: name.release().to_string_lossy().into_owned(),
            cpu_model: cpu_model(&cpuinfo),
            cpus: cpus.get(),
            mitigations: mitigations(Path::new("/sys/devices/system/cpu/vulnerabilities")),
            offloads: BTreeMap::new(),
            mtu_bytes: BTreeMap::new(),
            uplink: None,
            tools: BTreeMap::new(),
            conntrack: BTreeMap::new(),
        })
    }

    /// Adds an interface under the name `what`. Offloads that ethtool does not tell, or without
    /// ethtool, are left out.
    ///
    /// # Errors
    ///
    /// [`Error::Lab`] where there is no such interface.
    pub fn add(&mut self, what: &str, namespace: &Namespace, interface: &str) -> Result<()> {
        let link = namespace.link(interface)?;
        self.mtu_bytes.insert(what.to_owned(), link.mtu_bytes);
        let offloads = offloads(namespace, interface);
        self.offloads.insert(what.to_owned(), offloads);
        Ok(())
    }

    /// Adds what a tool says of its version.
    pub(crate) fn add_tool(&mut self, variant: &'static str, says: String) {
        self.tools.insert(variant, says);
    }

    /// Adds the sizes of the table of connections, as a namespace sees them.
    ///
    /// # Errors
    ///
    /// [`Error::Lab`] where connections are not tracked.
    pub(crate) fn add_conntrack(&mut self, namespace: &Namespace) -> Result<()> {
        for size in ["nf_conntrack_buckets", "nf_conntrack_max"] {
            let value = namespace.sysctl(&format!("net.netfilter.{size}"))?;
            self.conntrack.insert(size, value);
        }
        Ok(())
    }
}

/// The first CPU's name. On ARM there may be none but numbers.
fn cpu_model(cpuinfo: &str) -> String {
    let field = |name: &str| {
        let mut lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        lines.find_map(|(key, value)| (key.trim() == name).then(|| value.trim().to_owned()))
    };
    let model = field("model name").or_else(|| field("CPU part").map(|part| format!("ARM {part}")));
    model.unwrap_or_else(|| "unknown".to_owned())
}

fn mitigations(directory: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let state = fs::read_to_string(entry.path()).ok()?.trim().to_owned();
            let name = entry.file_name().to_string_lossy().into_owned();
            (state != "Not affected").then_some((name, state))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_has_a_name() {
        let x86 = "processor\t: 0\nmodel name\t: A Fast One\nprocessor\t: 1\n";
        assert_eq!(cpu_model(x86), "A Fast One");
        assert_eq!(cpu_model("CPU part\t: 0xd0c\n"), "ARM 0xd0c");
        assert_eq!(cpu_model(""), "unknown");
    }

    #[test]
    fn ethtool_says_a_thing_a_line() {
        let text = "Settings for eth0:\n\tSpeed: 10000Mb/s\n\tPort:\n";
        assert_eq!(field(text, "Speed").as_deref(), Some("10000Mb/s"));
        assert_eq!((field(text, "Port"), field(text, "Duplex")), (None, None));
    }

    #[test]
    fn this_machine_can_be_described() {
        let machine = Machine::look().unwrap();
        assert!(
            machine.cpus >= 1 && !machine.kernel.is_empty(),
            "{machine:?}"
        );
    }
}
