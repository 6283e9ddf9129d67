//! `cargo xtask test kernels`: every program and every path on other kernels, and on other network
//! cards.
//!
//! A guest is QEMU without hardware help, on a kernel of the distribution, with this machine's root
//! file system under it, read-only. So what runs inside are the programs that were built here.

mod guest;
mod image;
mod package;
mod report;
mod wires;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::str::FromStr;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};

use crate::progress::{self, Outcome};
use crate::setup;
use crate::workspace::{Workspace, is_root};
use report::{Column, Report};

/// A kernel to check.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kernel {
    /// The newest of a branch that the distribution has.
    Branch(&'static str),
    /// The one that runs here.
    Host,
}

/// What joins the nodes in place of veth pairs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Card {
    Virtio,
    E1000e,
}

/// What was asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Choice {
    /// Without any: all.
    pub(crate) kernels: Vec<Kernel>,
    pub(crate) card: Option<Card>,
}

impl Kernel {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Branch("6.1"), Self::Branch("6.12"), Self::Host];

    fn name(self) -> &'static str {
        match self {
            Self::Branch(branch) => branch,
            Self::Host => "host",
        }
    }
}

impl FromStr for Kernel {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = Self::ALL.into_iter().find(|kernel| kernel.name() == name);
        known.ok_or_else(|| anyhow!("unknown kernel {name:?}; there are: 6.1, 6.12, host"))
    }
}

impl Card {
    /// Its name, here and in QEMU's options.
    fn name(self) -> &'static str {
        match self {
            Self::Virtio => "virtio",
            Self::E1000e => "e1000e",
        }
    }
}

impl FromStr for Card {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = [Self::Virtio, Self::E1000e];
        let known = known.into_iter().find(|card| card.name() == name);
        known.ok_or_else(|| anyhow!("unknown network card {name:?}; there are: virtio, e1000e"))
    }
}

impl Choice {
    /// The kernels to check, in order.
    ///
    /// # Errors
    ///
    /// If other network cards are asked for on the kernel that runs here.
    fn kernels(&self) -> Result<Vec<Kernel>> {
        let kernels = match (self.kernels.as_slice(), self.card) {
            ([], None) => Kernel::ALL.to_vec(),
            ([], Some(_)) => {
                let all = Kernel::ALL.into_iter();
                all.filter(|kernel| *kernel != Kernel::Host).collect()
            }
            (given, _) => given.to_vec(),
        };
        if self.card.is_some() && kernels.contains(&Kernel::Host) {
            bail!("--nic is for guests: name 6.1 or 6.12 instead of host");
        }
        Ok(kernels)
    }
}

/// Checks the kernels, all of them even if one fails, and shows a table.
///
/// # Errors
///
/// If something that all need is missing and cannot be had.
pub(crate) fn run(workspace: &Workspace, choice: &Choice) -> Result<ExitCode> {
    let kernels = choice.kernels()?;
    let needs_root = kernels.contains(&Kernel::Host) || choice.card == Some(Card::Virtio);
    if needs_root && !is_root() {
        bail!(
            "the kernel that runs here is checked in network namespaces, and virtio cards are \
             joined in one, which needs root: sudo env \"PATH=$PATH\" \"HOME=$HOME\" cargo xtask \
             test kernels, or name 6.1 and 6.12 only"
        );
    }
    setup::ensure()?;
    if kernels.iter().any(|kernel| *kernel != Kernel::Host) {
        setup::ensure_emulator()?;
    }
    let check = build(workspace)?;
    let directory = workspace.target.join("kernels");
    let columns: Vec<Column> = kernels
        .into_iter()
        .map(|kernel| {
            let started = Instant::now();
            println!("\n== {}", kernel.name());
            let outcome = match kernel {
                Kernel::Host => on_this(&check, &directory),
                Kernel::Branch(branch) => in_guest(&check, &directory, branch, choice.card),
            };
            let seconds = started.elapsed().as_secs();
            match &outcome {
                Ok(report) => println!("{} checks passed in {seconds} s", report.passed),
                Err(err) => println!("FAILED after {seconds} s: {err:#}"),
            }
            Column {
                kernel: kernel.name(),
                outcome,
                seconds,
            }
        })
        .collect();
    print!("\n{}", report::table(&columns));
    Ok(if columns.iter().all(Column::is_good) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Builds what checks, and returns its path.
fn build(workspace: &Workspace) -> Result<PathBuf> {
    println!("Building kernel-check.");
    let package = ["build", "--package", "datapath-conformance"];
    let status = workspace
        .cargo(&package)
        .args(["--bin", "kernel-check"])
        .status()
        .context("start cargo")?;
    if !status.success() {
        bail!("kernel-check does not build; see above");
    }
    Ok(workspace.target.join("debug/kernel-check"))
}

fn on_this(check: &Path, directory: &Path) -> Result<Report> {
    let results = fresh(&directory.join("host-results"))?;
    let report = results.join("report");
    let mut command = Command::new(check);
    command.arg(&report);
    let outcome = progress::run(command).context("start kernel-check")?;
    read(&report, &outcome)
}

fn in_guest(check: &Path, directory: &Path, branch: &str, card: Option<Card>) -> Result<Report> {
    let package = package::get(&directory.join(branch), branch)?;
    let results = fresh(&directory.join(branch).join("results"))?;
    let image = image::make(&package, &directory.join(branch).join("initrd"))?;
    let cards = if card.is_some() { " --cards" } else { "" };
    let check = check.display();
    let command = format!("DATAPATH_PATIENCE=10 '{check}' /mnt/results/report{cards}\n");
    fs::write(results.join("command"), command).context("write the guest's command")?;
    let modules = package.modules.display().to_string();
    fs::write(results.join("modules"), modules).context("write the path of the modules")?;
    let guest = guest::Guest {
        kernel: &package.kernel,
        image: &image,
        results: &results,
        card,
    };
    let outcome = guest.run()?;
    read(&results.join("report"), &outcome)
}

/// An empty directory.
fn fresh(path: &Path) -> Result<PathBuf> {
    if path.exists() {
        fs::remove_dir_all(path).with_context(|| format!("empty {}", path.display()))?;
    }
    fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))?;
    Ok(path.to_owned())
}

/// Reads the report, or tells by the last lines that were said why there is none.
fn read(path: &Path, outcome: &Outcome) -> Result<Report> {
    let tail = || {
        let lines: Vec<String> = outcome
            .tail
            .iter()
            .map(|line| format!("  {line}"))
            .collect();
        lines.join("\n")
    };
    match fs::read_to_string(path) {
        Ok(text) => Report::parse(&text).with_context(|| format!("it said last:\n{}", tail())),
        Err(_) => bail!("no report ({}); it said last:\n{}", outcome.status, tail()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_kernels_unless_named() {
        assert_eq!(Choice::default().kernels().unwrap(), Kernel::ALL);
        let named = Choice {
            kernels: vec![Kernel::Host],
            card: None,
        };
        assert_eq!(named.kernels().unwrap(), [Kernel::Host]);
    }

    #[test]
    fn other_cards_are_for_guests() {
        let mut choice = Choice {
            kernels: Vec::new(),
            card: Some(Card::E1000e),
        };
        assert!(!choice.kernels().unwrap().contains(&Kernel::Host));
        choice.kernels.push(Kernel::Host);
        let error = choice.kernels().unwrap_err().to_string();
        assert!(error.contains("--nic"), "{error}");
    }

    #[test]
    fn without_a_report_the_end_of_the_console_tells() {
        let command = || {
            let mut command = Command::new("sh");
            command.args(["-c", "echo Kernel panic; exit 3"]);
            command
        };
        let outcome = progress::run(command()).unwrap();
        let error = read(Path::new("/no/such/report"), &outcome).unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("Kernel panic") && text.contains('3'),
            "{text}"
        );
    }
}
