//! What is said while a demo runs.

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

use datapath_conformance::report::{Check, Outcome};
use indicatif::{ProgressBar, ProgressStyle};

use super::demo::subject;

/// Says on standard error how far it is: on a terminal in one line that changes, else in a line
/// for each step and each group of checks. A check that fails has a line of its own.
#[derive(Debug)]
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    group: Option<String>,
    checks: usize,
}

impl Progress {
    pub(super) fn start() -> Self {
        let bar = io::stderr().is_terminal().then(ProgressBar::new_spinner);
        if let Some(bar) = &bar {
            if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
        }
        Self {
            bar,
            group: None,
            checks: 0,
        }
    }

    /// Says what comes next.
    pub(super) fn step(&mut self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(what.to_owned());
        } else {
            note(what);
        }
    }

    /// Takes note of a check.
    pub(super) fn check(&mut self, check: &Check) {
        self.checks += 1;
        if let Some(bar) = &self.bar {
            bar.set_message(format!(
                "{} checks, {}: {}",
                self.checks, check.scenario, check.path
            ));
        } else if self.group.as_ref() != Some(&check.scenario) {
            note(&format!("checking: {}", check.scenario));
            self.group = Some(check.scenario.clone());
        }
        if let Outcome::Failed { detail } = &check.outcome {
            let line = format!("FAILED {}, {}: {detail}", check.scenario, subject(check));
            match &self.bar {
                Some(bar) => bar.println(line),
                None => note(&line),
            }
        }
    }

    /// Clears the line.
    pub(super) fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

fn note(line: &str) {
    // There is nowhere left to say that standard error is gone.
    let _gone = writeln!(io::stderr(), "{line}");
}
