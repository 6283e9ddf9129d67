//! A guest: QEMU, emulating every instruction, as nested virtual machines often cannot do better.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Card;
use super::wires::Wires;
use crate::build::env::clean;
use crate::progress::{self, Outcome};

/// Longest life of a guest, seconds: what hangs is ended.
const LIFE_S: u32 = 600;
/// What `timeout` exits with when it had to end something.
const TIMED_OUT: i32 = 124;
/// Cables between network cards: two nodes and the outside host.
const CABLES: u8 = 3;

/// What to boot.
#[derive(Debug)]
pub(super) struct Guest<'a> {
    pub(super) kernel: &'a Path,
    pub(super) image: &'a Path,
    /// Directory that it reads its command from and writes to.
    pub(super) results: &'a Path,
    pub(super) card: Option<Card>,
}

impl Guest<'_> {
    /// Boots it and shows its console until it ends.
    ///
    /// # Errors
    ///
    /// If it cannot be started, or did not end by itself.
    pub(super) fn run(&self) -> Result<Outcome> {
        let wires = match self.card {
            Some(Card::Virtio) => Some(Wires::make(CABLES)?),
            Some(Card::E1000e) | None => None,
        };
        let outcome = progress::run(self.command(wires.as_ref())).context("start QEMU")?;
        if let Some(wires) = wires {
            wires.remove()?;
        }
        if outcome.status.code() == Some(TIMED_OUT) {
            let tail = outcome.tail.join("\n  ");
            bail!("the guest was ended after {LIFE_S} s; it said last:\n  {tail}");
        }
        Ok(outcome)
    }

    fn command(&self, wires: Option<&Wires>) -> Command {
        // In the foreground, so that Ctrl-C reaches the guest too.
        let mut command = match wires {
            Some(wires) => wires.command("timeout"),
            None => Command::new("timeout"),
        };
        clean(&mut command);
        command
            .args(["--foreground", "--kill-after=10", &LIFE_S.to_string()])
            .arg("qemu-system-x86_64")
            .args(["-accel", "tcg,thread=multi", "-cpu", "max"])
            .args(["-smp", "2", "-m", "2G"])
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-serial", "chardev:console"])
            .args(["-chardev", &console(self.results)])
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.image)
            .args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"])
            .args(["-virtfs", &shared("root", Path::new("/"), true)])
            .args(["-virtfs", &shared("results", self.results, false)]);
        for (number, end) in (1..=CABLES).flat_map(|n| [(n, 1), (n, 2)]) {
            match self.card {
                Some(card) => {
                    command.args(network(card, number, end));
                }
                None => break,
            }
        }
        command
    }
}

/// The console: shown, and kept beside the report.
fn console(results: &Path) -> String {
    let log = escaped(&results.join("console"));
    format!("stdio,id=console,signal=off,logfile={log}")
}

/// A path as the value of an option of QEMU, where a comma is written twice.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// A directory of this machine for the guest, by 9p.
fn shared(tag: &str, path: &Path, read_only: bool) -> String {
    let mode = if read_only {
        ",readonly=on,multidevs=remap"
    } else {
        ""
    };
    let path = escaped(path);
    format!("local,mount_tag={tag},path={path},security_model=none{mode}")
}

/// A network card: end 1 (the fabric's) or 2 (the host's) of a cable.
///
/// Emulated e1000e cards do checksums and segments themselves, so any cable does. Virtio cards leave
/// them to the other side, and offer that only where the other side can: a tap with a virtio header.
/// The host's end has one: it sends with offloads. The fabric's has none: what arrives there was
/// completed on the way and is checked by the receiver.
fn network(card: Card, cable: u8, end: u8) -> [String; 4] {
    let id = format!("c{cable}e{end}");
    let (backend, device) = match card {
        Card::Virtio => {
            let header = if end == 2 { "on" } else { "off" };
            let tap = format!(
                "tap,id={id},ifname={id},script=no,downscript=no,vhost=off,vnet_hdr={header}"
            );
            (tap, "virtio-net-pci")
        }
        Card::E1000e => (format!("hubport,id={id},hubid={cable}"), "e1000e"),
    };
    let device = format!("{device},netdev={id},mac=52:54:00:db:{cable:02x}:{end:02x}");
    ["-netdev".into(), backend, "-device".into(), device]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_in_paths_are_no_options() {
        let root = shared("root", Path::new("/"), true);
        assert_eq!(
            root,
            "local,mount_tag=root,path=/,security_model=none,readonly=on,multidevs=remap"
        );
        let results = shared("results", Path::new("/a,b"), false);
        assert!(results.contains("path=/a,,b,"), "{results}");
    }

    #[test]
    fn both_ends_of_a_cable_are_joined() {
        let [_, near, _, device] = network(Card::E1000e, 2, 1);
        let [_, far, ..] = network(Card::E1000e, 2, 2);
        assert!(near.ends_with("hubid=2") && far.ends_with("hubid=2"));
        assert!(device.ends_with("mac=52:54:00:db:02:01"), "{device}");
    }

    #[test]
    fn only_the_sender_leaves_checksums_to_others() {
        let [_, near, ..] = network(Card::Virtio, 1, 1);
        let [_, far, ..] = network(Card::Virtio, 1, 2);
        assert!(near.ends_with("vnet_hdr=off") && far.ends_with("vnet_hdr=on"));
    }
}
