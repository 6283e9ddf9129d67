//! What each tier runs.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::{Tier, scan};
use crate::fuzz::{self, Budget};
use crate::object;
use crate::workspace::Workspace;

/// One check of a tier.
#[derive(Debug)]
pub(crate) enum Step {
    /// A cargo command that has to succeed, with variables set for it.
    Cargo {
        env: &'static [(&'static str, &'static str)],
        args: &'static [&'static str],
    },
    /// The eBPF object builds without a warning: clippy does not see what is compiled for BPF only.
    ObjectWarnings,
    /// The object's programs have room on the stack of older kernels too.
    ObjectStack,
    /// No source holds unfinished code or a test that does not run.
    Unfinished,
    /// A second build has nothing to do.
    NothingToRebuild,
    /// The fuzzer finds nothing for a while.
    Fuzz,
}

/// The steps of a tier, in order.
pub(crate) fn of(tier: Tier) -> &'static [Step] {
    match tier {
        Tier::Lint => LINT,
        Tier::Unit => UNIT,
        Tier::Lab => LAB,
        Tier::Policy => POLICY,
    }
}

const LINT: &[Step] = &[
    Step::Cargo {
        env: &[],
        args: &["fmt", "--all", "--check"],
    },
    Step::Unfinished,
    Step::ObjectWarnings,
    Step::ObjectStack,
    Step::Cargo {
        env: &[],
        args: &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--keep-going",
            "--",
            "-Dwarnings",
        ],
    },
    Step::Cargo {
        env: &[("RUSTDOCFLAGS", "-Dwarnings")],
        args: &["doc", "--workspace", "--no-deps", "--keep-going"],
    },
];

const UNIT: &[Step] = &[
    Step::Cargo {
        env: &[],
        args: &[
            "test",
            "--workspace",
            "--exclude",
            "datapath-conformance",
            "--no-fail-fast",
        ],
    },
    Step::NothingToRebuild,
    Step::Fuzz,
];

/// How long the fuzzer looks, seconds.
const FUZZ_SECONDS: u64 = 30;

const LAB: &[Step] = &[Step::Cargo {
    env: &[],
    // One lab at a time: scenarios measure times, which two labs on a small machine spoil.
    args: &[
        "test",
        "--package",
        "datapath-conformance",
        "--no-fail-fast",
        "--",
        "--test-threads=1",
    ],
}];

const POLICY: &[Step] = &[
    Step::Cargo {
        env: &[
            ("DATAPATH_CASES", "all"),
            ("DATAPATH_RANDOM_POLICIES", "200"),
            ("DATAPATH_POLICY_REPLACEMENTS", "1000"),
        ],
        args: &[
            "test",
            "--package",
            "datapath-conformance",
            "--test",
            "policy_case_files",
            "--test",
            "policy_cases",
            "--test",
            "policy_random",
            "--test",
            "policy_churn",
            "--test",
            "bypass",
            "--no-fail-fast",
            "--",
            "--test-threads=1",
            "--nocapture",
        ],
    },
    // The same without a tunnel: packets come in on the uplink as they are.
    Step::Cargo {
        env: &[
            ("DATAPATH_CASES", "all"),
            ("DATAPATH_CASES_TUNNEL", "native"),
        ],
        args: &[
            "test",
            "--package",
            "datapath-conformance",
            "--test",
            "policy_cases",
            "--",
            "--nocapture",
            "cases_are_as_they_expect",
        ],
    },
];

impl Step {
    /// What it does, as one would type it where one can.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Cargo { env, args } => {
                let env = env.iter().map(|(name, value)| format!("{name}={value}"));
                let words: Vec<String> = env
                    .chain(["cargo".to_owned()])
                    .chain(args.iter().map(ToString::to_string))
                    .collect();
                words.join(" ")
            }
            Self::ObjectWarnings => "no warning in the eBPF object".to_owned(),
            Self::ObjectStack => "the eBPF object's stack, as kernels before 6.8 count".to_owned(),
            Self::Unfinished => "no unfinished code, no ignored test".to_owned(),
            Self::NothingToRebuild => "a second build has nothing to do".to_owned(),
            Self::Fuzz => format!("cargo xtask fuzz --seconds {FUZZ_SECONDS}"),
        }
    }

    /// Runs it; its output goes to the terminal.
    ///
    /// # Errors
    ///
    /// If the check fails or cannot be made.
    pub(crate) fn run(&self, workspace: &Workspace) -> Result<()> {
        match self {
            Self::Cargo { env, args } => {
                let mut command = workspace.cargo(args);
                command.envs(env.iter().copied());
                succeed(&mut command)
            }
            Self::ObjectWarnings => object_warnings(workspace),
            Self::ObjectStack => object_stack(workspace),
            Self::Unfinished => unfinished(workspace),
            Self::NothingToRebuild => nothing_to_rebuild(workspace),
            Self::Fuzz => {
                let seconds = Some(FUZZ_SECONDS);
                fuzz::look_for_failures(
                    workspace,
                    Budget {
                        runs: None,
                        seconds,
                    },
                )
            }
        }
    }
}

fn succeed(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .status()
        .context("start cargo")?;
    if !status.success() {
        bail!("{status}");
    }
    Ok(())
}

fn object_warnings(workspace: &Workspace) -> Result<()> {
    let warnings = object::warnings(workspace)?;
    if !warnings.is_empty() {
        bail!("the compiler warns:\n{warnings}");
    }
    Ok(())
}

fn object_stack(workspace: &Workspace) -> Result<()> {
    let too_deep = object::too_deep(workspace)?;
    if !too_deep.is_empty() {
        bail!("calls one inside the other take too much:\n{too_deep}");
    }
    Ok(())
}

fn unfinished(workspace: &Workspace) -> Result<()> {
    let found = scan::unfinished(&workspace.root)?;
    if !found.is_empty() {
        bail!("{} places:\n{}", found.len(), found.join("\n"));
    }
    Ok(())
}

/// Builds `datapath-user` twice. If the second build reran the build script, every build of
/// every developer would.
fn nothing_to_rebuild(workspace: &Workspace) -> Result<()> {
    let build = ["build", "--package", "datapath-user"];
    succeed(&mut workspace.cargo(&build))?;
    let again = workspace
        .cargo(&build)
        .args(["--verbose", "--color", "never"])
        .stdin(Stdio::null())
        .output()
        .context("start cargo")?;
    let said = String::from_utf8_lossy(&again.stderr);
    if let Some(line) = said.lines().find(|line| line.contains("Dirty ")) {
        bail!("it rebuilds: {}", line.trim());
    }
    if !said.contains("Fresh datapath-user ") {
        bail!("cargo does not call datapath-user fresh:\n{said}");
    }
    Ok(())
}
