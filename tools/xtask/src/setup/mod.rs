//! `cargo xtask setup`: installs what building and testing need, once.

mod apt;
mod plan;
mod survey;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::progress;
use crate::workspace::is_root;
use apt::Apt;
use plan::{Part, Step};
use survey::{EMULATOR, FUZZER, FUZZER_COMPILER, Survey, Tool};

/// How `setup` was asked to run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Mode {
    /// Report only.
    pub(crate) check: bool,
    /// Print the commands, run none.
    pub(crate) dry_run: bool,
    /// With `dry_run`: as if nothing were installed.
    pub(crate) all: bool,
}

/// Runs `cargo xtask setup`.
///
/// # Errors
///
/// If something is missing and cannot be installed here.
pub(crate) fn run(mode: Mode) -> Result<ExitCode> {
    let survey = if mode.all {
        Survey::of_nothing()
    } else {
        Survey::take()
    };
    if mode.dry_run {
        dry_run(&survey, mode.all)?;
        return Ok(ExitCode::SUCCESS);
    }
    if mode.check {
        print!("{}", survey.table());
    } else {
        install(survey)?;
        ensure_fuzzer()?;
    }
    let survey = Survey::take();
    let complete = survey.is_complete()
        && fuzzer_missing().is_empty()
        && survey.components_missing().is_empty();
    if !survey.components_missing().is_empty() {
        println!(
            "missing: rustup component add {}",
            survey.components_missing().join(" ")
        );
    }
    Ok(if complete {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Installs whatever the build or the tests lack; does nothing, quickly, if that is nothing.
///
/// # Errors
///
/// If something is missing and cannot be installed here.
pub(crate) fn ensure() -> Result<()> {
    let survey = Survey::take();
    if survey.is_complete() {
        return Ok(());
    }
    install(survey)
}

/// Installs what guests on other kernels take beside, if it is missing.
///
/// # Errors
///
/// If something is missing and cannot be installed here.
pub(crate) fn ensure_emulator() -> Result<()> {
    let missing: Vec<&Tool> = EMULATOR
        .iter()
        .filter(|tool| tool.find().is_none())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let step = plan::emulator(&missing);
    if !is_root() || Apt::find().is_none() {
        bail!(
            "guests need what is not installed here. As root, or by other means than apt:\n  {}",
            step.command_line()
        );
    }
    if let Err(err) = plan::update().run() {
        println!("  went on without: {err:#}");
    }
    step.run()
}

/// Installs what the fuzzer takes beside, if it is missing. Not part of [`ensure`]: who wants to
/// see the demo need not wait for it.
///
/// # Errors
///
/// If something is missing and cannot be installed here.
pub(crate) fn ensure_fuzzer() -> Result<()> {
    let steps = fuzzer_missing();
    if steps.iter().any(|step| step.needs_root) {
        if !is_root() || Apt::find().is_none() {
            let lines: Vec<String> = steps.iter().map(Step::command_line).collect();
            bail!(
                "the fuzzer needs what is not installed here. As root (#), or by other means than \
                 apt, and as yourself ($):\n{}",
                indent(&lines)
            );
        }
        if let Err(err) = plan::update().run() {
            println!("  went on without: {err:#}");
        }
    }
    steps.iter().try_for_each(Step::run)
}

/// The steps that install what the fuzzer misses.
fn fuzzer_missing() -> Vec<Step> {
    let missing = |tool: &Tool| tool.find().is_none();
    plan::fuzzer(missing(&FUZZER_COMPILER), missing(&FUZZER))
}

fn install(survey: Survey) -> Result<()> {
    if survey.is_complete() {
        println!("Nothing to do: {}.", survey.summary());
        return Ok(());
    }
    let started = Instant::now();
    println!("Missing: {}.", survey.missing().join(", "));

    let Some(mut apt) = Apt::find() else {
        bail!(
            "there is no apt here. Install by hand:\n{}",
            by_hand(&survey)
        );
    };
    if is_root() {
        // Packages can only be chosen from fresh lists. One dead source of several is no
        // reason to stop: what cannot be installed is named below.
        if let Err(err) = plan::update().run() {
            println!("  went on without: {err:#}");
        }
        apt = Apt::find().unwrap_or(apt);
    }
    let mut survey = survey;
    for part in Part::ALL {
        // The linker's part depends on the compiler that the part before installed.
        let steps = match plan::steps(part, &survey, &apt) {
            Ok(steps) => steps,
            Err(err) => bail!("{err}. Install by hand:\n{}", by_hand(&survey)),
        };
        if steps.iter().any(|step| step.needs_root) && !is_root() {
            bail!("{}", not_root(&survey, &apt));
        }
        for step in &steps {
            step.run()?;
        }
        if !steps.is_empty() {
            survey = Survey::take();
        }
    }
    if !survey.is_complete() {
        bail!(
            "still missing after installation: {}\n{}",
            survey.missing().join(", "),
            by_hand(&survey)
        );
    }
    let seconds = started.elapsed().as_secs_f32();
    println!("Set up in {seconds:.0} s: {}.", survey.summary());
    Ok(())
}

fn dry_run(survey: &Survey, all: bool) -> Result<()> {
    if survey.is_complete() && fuzzer_missing().is_empty() {
        println!("Nothing to do: {}.", survey.summary());
        return Ok(());
    }
    let Some(apt) = Apt::find() else {
        println!("{}", by_hand(survey));
        return Ok(());
    };
    println!("{}", plan::update());
    for part in Part::ALL {
        for step in plan::steps(part, survey, &apt)? {
            println!("{step}");
        }
    }
    let fuzzer = if all {
        plan::fuzzer(true, true)
    } else {
        fuzzer_missing()
    };
    for step in fuzzer {
        println!("{step}");
    }
    Ok(())
}

/// What to type when this program may not install packages.
fn not_root(survey: &Survey, apt: &Apt) -> String {
    let steps: Result<Vec<Vec<Step>>> = Part::ALL
        .into_iter()
        .map(|part| plan::steps(part, survey, apt))
        .collect();
    let commands: Vec<String> = std::iter::once(plan::update())
        .chain(steps.unwrap_or_default().into_iter().flatten())
        .map(|step| step.command_line())
        .collect();
    format!(
        "installing packages needs root. Run this again as root, or, as root (#) and as \
         yourself ($):\n{}\nOr without the distribution's compiler:\n{}",
        indent(&commands),
        by_hand(survey),
    )
}

/// The way without apt.
fn by_hand(survey: &Survey) -> String {
    indent(&plan::by_hand(survey))
}

fn indent(lines: &[String]) -> String {
    let lines: Vec<String> = lines.iter().map(|line| format!("  {line}")).collect();
    lines.join("\n")
}

impl Step {
    /// Runs the step, telling what it is for and how long it took.
    fn run(&self) -> Result<()> {
        println!("{}: {}", self.title, self.why);
        println!("  {}", self.command_line());
        let outcome =
            progress::run(self.command()).with_context(|| format!("start {}", self.program))?;
        let seconds = outcome.elapsed.as_secs_f32();
        if !outcome.status.success() {
            bail!(
                "{} failed after {seconds:.0} s ({})\n{}",
                self.program,
                outcome.status,
                indent(&outcome.tail)
            );
        }
        println!("  done in {seconds:.1} s");
        Ok(())
    }
}
