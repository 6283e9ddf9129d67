//! Loads every program and runs every path on the kernel it finds itself on: the part of
//! `cargo xtask test kernels` that runs inside a guest.
//!
//! Usage: `kernel-check REPORT [--cards]`. It writes the report of
//! [`datapath_conformance::kernel`] to the file REPORT. Exits with 0 if all is well, with 1 if a
//! check failed or something kept it from looking.
#![expect(clippy::print_stdout, reason = "its lines are read on a console")]

use std::{env, fs, process::ExitCode};

use datapath_conformance::{kernel, signals};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (path, cards) = match arguments.as_slice() {
        [path] => (path, false),
        [path, "--cards"] => (path, true),
        _ => {
            eprintln!("usage: kernel-check REPORT [--cards]");
            return ExitCode::FAILURE;
        }
    };
    match run(path, cards) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("error: {error}");
            let mut source = error.source();
            while let Some(reason) = source {
                println!("  because: {reason}");
                source = reason.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn run(path: &str, cards: bool) -> Result<bool, Box<dyn std::error::Error>> {
    signals::cleanup_on_signal()?;
    let report = kernel::check(cards, |line| println!("{line}"))?;
    fs::write(path, report.to_string())?;
    Ok(report.is_good())
}
