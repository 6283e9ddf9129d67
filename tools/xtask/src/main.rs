//! `cargo xtask`: set up, build, demonstrate and test this workspace.

#![expect(clippy::print_stdout, reason = "a command line tool talks to its user")]

mod args;
/// The build of the eBPF object, shared with the build script of `datapath-user`.
#[path = "../../../datapath-user/build/mod.rs"]
mod build;
mod demo;
mod deny;
mod dump;
mod fuzz;
mod help;
mod kernels;
mod object;
mod progress;
mod setup;
mod stack;
mod test;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;

use crate::args::Command;
use crate::workspace::Workspace;

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(err) => {
            eprintln!("error: {err:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode> {
    let command = args::parse(lexopt::Parser::from_env())?;
    let workspace = Workspace::find()?;
    match command {
        Command::Help(topic) => {
            print!("{}", topic.text());
            Ok(ExitCode::SUCCESS)
        }
        Command::Setup(mode) => setup::run(mode),
        Command::Ebpf => object::build(&workspace),
        Command::Disasm { function } => object::disassemble(&workspace, function.as_deref()),
        Command::Demo { keep } => demo::run(&workspace, keep),
        Command::Test { tiers, allow_skip } => Ok(test::run(&workspace, &tiers, &allow_skip)),
        Command::Kernels(choice) => kernels::run(&workspace, &choice),
        Command::Fuzz(budget) => fuzz::run(&workspace, budget),
        Command::Deny => deny::run(&workspace),
    }
}
