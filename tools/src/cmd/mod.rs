//! The command line of `dpctl`: one verb, one file.

mod bench;
mod cleanup;
mod completions;
mod doctor;
mod drops;
mod endpoint;
mod flows;
mod identity;
mod ipam;
mod lab;
mod peers;
mod policy;
mod status;
mod sysdump;
mod target;
mod watch;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use self::target::Target;
use crate::{api::Client, error::Error};

/// Exit code when something failed.
const FAILED: u8 = 1;
/// Exit code when the command line makes no sense; clap uses the same.
const USAGE: u8 = 2;
/// Exit code when there is no agent to ask.
const UNREACHABLE: u8 = 3;
/// Exit code when a bench could not say whether its bounds are kept.
const UNUSABLE: u8 = 4;

const AFTER_HELP: &str = "\
Exit codes:
  0  done
  1  it failed, or a check did
  2  the command line makes no sense
  3  no agent can be reached
  4  a bench with --gate has no usable figures

Examples:
  dpctl lab up                       two nodes of two pods in network namespaces
  dpctl --node n1 flows              what the first of them tracks
  dpctl --node n1 watch              what it drops, as it happens
  dpctl lab down                     and nothing is left
  dpctl status                       the agent of this machine
  dpctl --output json drops          for programs";

/// Asks a node's datapath agent, and runs labs of such nodes.
#[derive(Debug, Parser)]
#[command(name = "dpctl", version, after_help = AFTER_HELP, max_term_width = 100)]
pub struct Cli {
    /// How to print
    #[arg(long, value_enum, value_name = "FORM", default_value_t = Output::Table, global = true)]
    output: Output,

    #[command(flatten)]
    target: Target,

    #[command(subcommand)]
    verb: Verb,
}

/// How to print, as it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Tables, for people; of events, compact lines
    Table,
    /// JSON, for programs; of events, a flow as Hubble has it on each line
    Json,
    /// Of events: a line each, as Hubble prints them
    Compact,
    /// Of events: a field on each line
    Dict,
    /// Of events: JSON as `hubble observe --output jsonpb` prints it and `--input-file` reads it
    Jsonpb,
    /// Of events: columns
    Tab,
}

/// How to print what is no event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Tables, for people
    Table,
    /// JSON, for programs
    Json,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Status(status::Status),
    #[command(subcommand)]
    Endpoint(endpoint::Endpoint),
    #[command(subcommand)]
    Identity(identity::Identity),
    Flows(flows::Flows),
    Drops(drops::Drops),
    Watch(watch::Watch),
    Peers(peers::Peers),
    #[command(subcommand)]
    Policy(policy::Policy),
    Ipam(ipam::Ipam),
    #[command(subcommand)]
    Lab(lab::Lab),
    #[command(subcommand)]
    Bench(bench::Bench),
    Cleanup(cleanup::Cleanup),
    Doctor(doctor::Doctor),
    Sysdump(sysdump::Sysdump),
    Completions(completions::Completions),
}

/// What a verb needs beside its own arguments.
#[derive(Debug)]
struct Context<'a> {
    target: &'a Target,
    form: Form,
    output: Output,
}

/// What a verb has to say, and whether all is well.
#[derive(Debug, Default)]
struct Outcome {
    text: String,
    failed: bool,
    /// Neither well nor not: it could not be told.
    unusable: bool,
}

/// Runs `dpctl`: reads the command line, prints, and returns the exit code.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let context = Context {
        target: &cli.target,
        form: cli.output.form(),
        output: cli.output,
    };
    let outcome = cli
        .check()
        .and_then(|()| cli.verb.run(&context))
        .and_then(|outcome| {
            print(&outcome.text).context("print")?;
            Ok((outcome.failed, outcome.unusable))
        });
    match outcome {
        Ok((false, false)) => ExitCode::SUCCESS,
        Ok((true, _)) => FAILED.into(),
        Ok((false, true)) => UNUSABLE.into(),
        Err(error) => {
            complain(&error);
            exit_code(&error).into()
        }
    }
}

/// Returns the description of the command line, for completions and tests.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

impl Cli {
    /// Refuses forms that are for events where there are none.
    fn check(&self) -> anyhow::Result<()> {
        let general = matches!(self.output, Output::Table | Output::Json);
        if general || self.verb.prints_events() {
            return Ok(());
        }
        let name = self.output.to_possible_value();
        let name = name.as_ref().map_or("", |value| value.get_name());
        let sentence = format!(
            "--output {name} is for events (`dpctl watch`): write --output table or json here"
        );
        Err(Error::Usage { sentence }.into())
    }
}

impl Output {
    const fn form(self) -> Form {
        match self {
            Self::Json | Self::Jsonpb => Form::Json,
            Self::Table | Self::Compact | Self::Dict | Self::Tab => Form::Table,
        }
    }
}

impl Verb {
    /// Whether it prints a stream of events.
    const fn prints_events(&self) -> bool {
        match self {
            Self::Watch(verb) => verb.prints_events(),
            Self::Drops(verb) => verb.prints_events(),
            _ => false,
        }
    }

    fn run(&self, context: &Context<'_>) -> anyhow::Result<Outcome> {
        match self {
            Self::Status(verb) => verb.run(context),
            Self::Endpoint(verb) => verb.run(context),
            Self::Identity(verb) => verb.run(context),
            Self::Flows(verb) => verb.run(context),
            Self::Drops(verb) => verb.run(context),
            Self::Watch(verb) => verb.run(context),
            Self::Peers(verb) => verb.run(context),
            Self::Policy(verb) => verb.run(context),
            Self::Ipam(verb) => verb.run(context),
            Self::Lab(verb) => verb.run(context),
            Self::Bench(verb) => verb.run(context),
            Self::Cleanup(verb) => verb.run(context),
            Self::Doctor(verb) => verb.run(context),
            Self::Sysdump(verb) => verb.run(context),
            Self::Completions(verb) => Ok(verb.run()),
        }
    }
}

impl Context<'_> {
    fn client(&self) -> Result<Client, Error> {
        self.target.socket().map(Client::new)
    }

    /// Shows a value in the form asked for.
    fn show<T: Serialize>(
        &self,
        value: &T,
        table: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<Outcome> {
        let text = match self.form {
            Form::Table => table(value),
            Form::Json => serde_json::to_string_pretty(value)? + "\n",
        };
        Ok(text.into())
    }
}

impl From<String> for Outcome {
    fn from(text: String) -> Self {
        Self {
            text,
            ..Self::default()
        }
    }
}

/// Writes to standard output. That nobody reads it any more (`| head`) is no failure.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome,
    }
}

fn complain(error: &anyhow::Error) {
    let mut text = format!("dpctl: {}", chain(error));
    if let Some(Error::Unreachable { source, .. }) = error.downcast_ref() {
        text.push_str("\n       ");
        text.push_str(target::remedy(source));
    }
    // There is nowhere left to say that standard error is gone.
    let _gone = writeln!(io::stderr(), "{text}");
}

/// Joins an error and its causes; a cause that its error tells already is left out.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref() {
        Some(
            Error::Unreachable { .. }
            | Error::Silent { .. }
            | Error::NoLab { .. }
            | Error::NoNode { .. },
        ) => UNREACHABLE,
        Some(Error::Usage { .. }) => USAGE,
        _ => FAILED,
    }
}

/// Arguments of verbs that take none.
#[derive(Debug, Default, Args)]
struct Nothing {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn every_verb_has_examples() {
        fn check(command: &clap::Command) {
            for verb in command.get_subcommands() {
                let help = verb
                    .get_after_help()
                    .map(ToString::to_string)
                    .unwrap_or_default();
                let of_its_verbs = verb.has_subcommands();
                assert!(
                    of_its_verbs || help.contains("Examples:"),
                    "{}",
                    verb.get_name()
                );
                check(verb);
            }
        }
        check(&command());
    }

    #[test]
    fn failures_have_their_exit_codes() {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let unreachable = Error::Unreachable {
            socket: "/x".into(),
            source: refused(),
        };
        assert_eq!(exit_code(&unreachable.into()), UNREACHABLE);
        let usage = Error::Usage {
            sentence: "no".to_owned(),
        };
        assert_eq!(exit_code(&usage.into()), USAGE);
        assert_eq!(exit_code(&anyhow::anyhow!("else")), FAILED);
    }

    #[test]
    fn a_cause_is_told_once() {
        let inner = anyhow::anyhow!("c").context("b: c").context("a");
        assert_eq!(chain(&inner), "a: b: c");
    }
}
