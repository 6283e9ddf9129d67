//! Which commands install what is missing.

use std::fmt;
use std::process::Command;

use anyhow::{Result, bail};

use super::apt::Apt;
use super::survey::{FUZZER, FUZZER_COMPILER, Survey, Tool};
use crate::build::env::clean;

/// What is installed together. In this order: the compiler decides about the linker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Part {
    Compiler,
    Linker,
    Tools,
}

impl Part {
    /// All parts, in order.
    pub(crate) const ALL: [Self; 3] = [Self::Compiler, Self::Linker, Self::Tools];
}

/// One command, and what it is for.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) title: &'static str,
    pub(crate) why: String,
    pub(crate) needs_root: bool,
    pub(crate) program: &'static str,
    env: Vec<(&'static str, String)>,
    args: Vec<String>,
}

impl Step {
    fn apt(title: &'static str, why: String, packages: Vec<String>) -> Self {
        let options = [
            "install",
            "--yes",
            "--no-install-recommends",
            // rustc-web conflicts with the package rustup: better to fail than to remove it.
            "--no-remove",
            // Another apt may be running.
            "-oDPkg::Lock::Timeout=300",
        ];
        Self {
            title,
            why,
            needs_root: true,
            program: "apt-get",
            env: vec![("DEBIAN_FRONTEND", "noninteractive".to_owned())],
            args: options
                .into_iter()
                .map(str::to_owned)
                .chain(packages)
                .collect(),
        }
    }

    /// The command, ready to start.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(self.program);
        clean(&mut command);
        // Out of the workspace: its configuration is not for installing tools.
        command.args(&self.args).current_dir("/");
        for (name, value) in &self.env {
            command.env(name, value);
        }
        command
    }

    /// The command as one would type it, after `#` if as root, else after `$`.
    pub(crate) fn command_line(&self) -> String {
        let prompt = if self.needs_root { "#" } else { "$" };
        let env = self
            .env
            .iter()
            .map(|(name, value)| format!("{name}={value}"));
        let words: Vec<String> = std::iter::once(prompt.to_owned())
            .chain(env)
            .chain([self.program.to_owned()])
            .chain(self.args.iter().cloned())
            .collect();
        words.join(" ")
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}\n  {}", self.title, self.why, self.command_line())
    }
}

/// The step that brings apt's lists up to date.
pub(crate) fn update() -> Step {
    Step {
        title: "Package lists",
        why: "packages are chosen from what apt offers today".to_owned(),
        needs_root: true,
        program: "apt-get",
        env: Vec::new(),
        args: vec!["update".to_owned(), "-oDPkg::Lock::Timeout=300".to_owned()],
    }
}

/// The commands that install `part`, as far as `survey` misses it.
///
/// # Errors
///
/// If apt does not offer what is missing.
pub(crate) fn steps(part: Part, survey: &Survey, apt: &Apt) -> Result<Vec<Step>> {
    if apt.policy.is_empty() {
        bail!(
            "apt's package lists are empty, so no names can be derived: run apt-get update first"
        );
    }
    match part {
        Part::Compiler if survey.compiler.is_err() => compiler(apt),
        Part::Linker if !matches!(survey.linker, Some(Ok(_))) => linker(survey, apt),
        Part::Tools => tools(survey, apt),
        Part::Compiler | Part::Linker => Ok(Vec::new()),
    }
}

/// The command that installs what guests take.
pub(crate) fn emulator(missing: &[&Tool]) -> Step {
    let why: Vec<String> = missing
        .iter()
        .map(|tool| format!("{} {}", tool.program, tool.why))
        .collect();
    let packages = missing.iter().map(|tool| tool.package.to_owned()).collect();
    Step::apt("Emulator", why.join(", "), packages)
}

/// The commands that install what the fuzzer takes.
pub(crate) fn fuzzer(compiler_missing: bool, fuzzer_missing: bool) -> Vec<Step> {
    let compiler = || {
        let Tool { package, why, .. } = FUZZER_COMPILER;
        let packages = vec![package.to_owned()];
        Step::apt("C++ compiler", format!("it {why}"), packages)
    };
    let fuzzer = || Step {
        title: "cargo-fuzz",
        why: format!("it {}", FUZZER.why),
        needs_root: false,
        program: "cargo",
        env: Vec::new(),
        args: ["install", "cargo-fuzz", "--locked"]
            .map(str::to_owned)
            .to_vec(),
    };
    let compiler = compiler_missing.then(compiler);
    compiler
        .into_iter()
        .chain(fuzzer_missing.then(fuzzer))
        .collect()
}

/// What to do without apt, or without root.
pub(crate) fn by_hand(survey: &Survey) -> Vec<String> {
    let mut lines = Vec::new();
    if survey.compiler.is_err() {
        lines.push("$ rustup toolchain install nightly --component rust-src".to_owned());
    }
    if !matches!(survey.linker, Some(Ok(_))) {
        lines.push("$ cargo binstall bpf-linker  (a prebuilt one, of the newest LLVM)".to_owned());
    }
    let tools: Vec<&str> = survey.missing_tools().map(|tool| tool.package).collect();
    if !tools.is_empty() {
        let tools = tools.join(", ");
        lines.push(format!("and your distribution's packages of: {tools}"));
    }
    lines
}

fn compiler(apt: &Apt) -> Result<Vec<Step>> {
    let Some(compiler) = &apt.compiler else {
        bail!(
            "apt offers no rustc of at least Rust {} with a core library for BPF",
            env!("CARGO_PKG_RUST_VERSION")
        );
    };
    let (major, minor) = compiler.release;
    Ok(vec![Step::apt(
        "eBPF compiler",
        format!("rustc {major}.{minor} with a core library for BPF, beside rustup's"),
        compiler.packages.clone(),
    )])
}

fn linker(survey: &Survey, apt: &Apt) -> Result<Vec<Step>> {
    // In a dry run the compiler is not there yet; apt knows which LLVM it will have.
    let installed = survey.compiler.as_ref().ok();
    let llvm = installed
        .map(|compiler| compiler.version.llvm)
        .or(apt.compiler_llvm);
    let Some(llvm) = llvm else {
        bail!("apt does not say which LLVM its rustc uses");
    };
    let packages = Apt::llvm_packages(llvm);
    let policy = Apt::policy_of(&packages);
    if let Some(unknown) = packages
        .iter()
        .find(|name| policy.candidate(name).is_none())
    {
        bail!("apt does not offer {unknown}, which bpf-linker for LLVM {llvm} is built with");
    }
    let missing: Vec<String> = packages
        .into_iter()
        // A survey of nothing has not looked for a linker either: it asks for everything.
        .filter(|name| survey.linker.is_none() || !policy.is_installed(name))
        .collect();
    let mut steps = Vec::new();
    if !missing.is_empty() {
        steps.push(Step::apt(
            "LLVM",
            format!("headers and libraries of LLVM {llvm}, to build bpf-linker"),
            missing,
        ));
    }
    steps.push(cargo_install(llvm));
    Ok(steps)
}

fn cargo_install(llvm: u32) -> Step {
    let args = [
        "install",
        "bpf-linker",
        "--locked",
        "--force",
        "--no-default-features",
    ];
    let features = ["--features".to_owned(), format!("llvm-{llvm}")];
    Step {
        title: "bpf-linker",
        why: format!("links the eBPF object; built here for LLVM {llvm}, about a minute"),
        needs_root: false,
        program: "cargo",
        env: vec![("LLVM_PREFIX", format!("/usr/lib/llvm-{llvm}"))],
        args: args
            .into_iter()
            .map(str::to_owned)
            .chain(features)
            .collect(),
    }
}

fn tools(survey: &Survey, apt: &Apt) -> Result<Vec<Step>> {
    let missing: Vec<_> = survey.missing_tools().collect();
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    let unknown = missing
        .iter()
        .find(|tool| apt.policy.candidate(tool.package).is_none());
    if let Some(tool) = unknown {
        bail!(
            "apt does not offer {}, the package of {}, which {}",
            tool.package,
            tool.program,
            tool.why
        );
    }
    let why: Vec<String> = missing
        .iter()
        .map(|tool| format!("{} {}", tool.program, tool.why))
        .collect();
    let packages = missing.iter().map(|tool| tool.package.to_owned()).collect();
    Ok(vec![Step::apt("Test tools", why.join(", "), packages)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::apt::Policy;

    fn bookworm() -> Apt {
        let policy = Policy::parse(
            "rustc-web:\n  Candidate: 1.96.0+dfsg1-1~deb12u2
libstd-rust-web-dev-bpf:\n  Candidate: 1.96.0+dfsg1-1~deb12u2
bpftool:\n  Candidate: 7.1.0\ntshark:\n  Candidate: 4.0.17\ntcpdump:\n  Candidate: 4.99.3
ethtool:\n  Candidate: 1:6.1-1\niproute2:\n  Candidate: 6.1.0-3
iputils-ping:\n  Candidate: 3:20221126\nnftables:\n  Candidate: 1.0.6-2\n\
iptables:\n  Candidate: 1.8.9-2\ncontainernetworking-plugins:\n  Candidate: 1.1.1+ds1-3\n",
        );
        Apt {
            compiler: policy.compiler((1, 95)),
            compiler_llvm: Some(22),
            policy,
        }
    }

    #[test]
    fn a_fresh_machine_gets_the_compiler_first() {
        let steps = steps(Part::Compiler, &Survey::of_nothing(), &bookworm()).unwrap();
        let line = steps.first().unwrap().command_line();
        assert_eq!(
            line,
            "# DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
             --no-remove -oDPkg::Lock::Timeout=300 rustc-web cargo-web libstd-rust-web-dev \
             libstd-rust-web-1.96 libstd-rust-web-dev-bpf"
        );
    }

    #[test]
    fn a_fresh_machine_gets_every_tool() {
        let steps = steps(Part::Tools, &Survey::of_nothing(), &bookworm()).unwrap();
        let line = steps.first().unwrap().command_line();
        assert!(
            line.ends_with(
                "bpftool tshark tcpdump ethtool iproute2 iputils-ping nftables iptables \
                 containernetworking-plugins"
            ),
            "{line}"
        );
    }

    #[test]
    fn the_linker_is_built_for_the_compilers_llvm() {
        let step = cargo_install(22);
        assert!(!step.needs_root);
        assert_eq!(
            step.command_line(),
            "$ LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --locked --force \
             --no-default-features --features llvm-22"
        );
    }

    #[test]
    fn the_fuzzer_gets_what_it_misses() {
        let lines = |compiler, fuzzer_missing| {
            let steps = fuzzer(compiler, fuzzer_missing);
            steps.iter().map(Step::command_line).collect::<Vec<_>>()
        };
        assert!(lines(false, false).is_empty());
        let all = lines(true, true);
        assert!(all.len() == 2 && all[0].ends_with(" g++"), "{all:?}");
        assert_eq!(all[1], "$ cargo install cargo-fuzz --locked");
    }

    #[test]
    fn what_apt_does_not_offer_is_named() {
        let mut apt = bookworm();
        apt.compiler = None;
        let err = steps(Part::Compiler, &Survey::of_nothing(), &apt).unwrap_err();
        assert!(err.to_string().contains("core library for BPF"), "{err}");
        apt.policy = Policy::parse("rustc:\n  Candidate: 1.63.0\n");
        let err = steps(Part::Tools, &Survey::of_nothing(), &apt).unwrap_err();
        assert!(err.to_string().contains("bpftool"), "{err}");
        apt.policy = Policy::default();
        let err = steps(Part::Compiler, &Survey::of_nothing(), &apt).unwrap_err();
        assert!(err.to_string().contains("apt-get update"), "{err}");
    }

    #[test]
    fn without_apt_the_way_is_told() {
        let lines = by_hand(&Survey::of_nothing()).join("\n");
        for word in ["nightly", "rust-src", "bpf-linker", "tshark"] {
            assert!(lines.contains(word), "{lines}");
        }
    }
}
