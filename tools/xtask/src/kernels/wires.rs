//! Cables between virtio cards: taps in pairs on bridges, in a network namespace of their own.

use std::process::{Command, id};

use anyhow::{Result, anyhow};

use crate::build::process::capture;

/// A namespace with cables; dropping it removes them.
#[derive(Debug)]
pub(super) struct Wires {
    namespace: String,
    removed: bool,
}

impl Wires {
    /// Makes `cables` of them: taps `c<cable>e<end>`, ends 1 and 2.
    ///
    /// # Errors
    ///
    /// What `ip` says.
    pub(super) fn make(cables: u8) -> Result<Self> {
        let namespace = format!("xtask-kernels-{}", id());
        ip(&format!("netns add {namespace}"))?;
        let this = Self {
            namespace,
            removed: false,
        };
        // What the cables carry is between the guests: this machine has no word in it.
        this.inside("sysctl -qw net.ipv6.conf.all.disable_ipv6=1")?;
        this.inside("sysctl -qw net.ipv6.conf.default.disable_ipv6=1")?;
        for cable in 1..=cables {
            let bridge = format!("b{cable}");
            this.ip(&format!("link add {bridge} type bridge mcast_snooping 0"))?;
            this.ip(&format!("link set {bridge} up"))?;
            for end in [1, 2] {
                let tap = format!("c{cable}e{end}");
                this.ip(&format!("tuntap add dev {tap} mode tap"))?;
                this.ip(&format!("link set {tap} master {bridge} up"))?;
            }
        }
        Ok(this)
    }

    /// A program inside.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, program]);
        command
    }

    /// Removes them.
    ///
    /// # Errors
    ///
    /// What `ip` says.
    pub(super) fn remove(mut self) -> Result<()> {
        self.removed = true;
        ip(&format!("netns delete {}", self.namespace))
    }

    fn ip(&self, line: &str) -> Result<()> {
        ip(&format!("-n {} {line}", self.namespace))
    }

    fn inside(&self, line: &str) -> Result<()> {
        ip(&format!("netns exec {} {line}", self.namespace))
    }
}

impl Drop for Wires {
    fn drop(&mut self) {
        if !self.removed
            && let Err(err) = ip(&format!("netns delete {}", self.namespace))
        {
            eprintln!("warning: {err:#}");
        }
    }
}

fn ip(line: &str) -> Result<()> {
    let mut command = Command::new("ip");
    capture(command.args(line.split(' ')))
        .map(drop)
        .map_err(|said| anyhow!("ip {line}: {said}"))
}
