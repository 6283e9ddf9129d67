//! Reads the command line.

use anyhow::{Result, bail};
use lexopt::{Arg, Parser, ValueExt};

use crate::fuzz::Budget;
use crate::help::Topic;
use crate::kernels::Choice;
use crate::setup::Mode;
use crate::test::Tier;

/// What the user asks for.
#[derive(Debug, PartialEq)]
pub(crate) enum Command {
    Help(Topic),
    Setup(Mode),
    Ebpf,
    Disasm {
        function: Option<String>,
    },
    Demo {
        keep: bool,
    },
    Test {
        tiers: Vec<Tier>,
        allow_skip: Vec<Tier>,
    },
    Kernels(Choice),
    Fuzz(Budget),
    Deny,
}

/// Reads a command line, without the program's name.
///
/// # Errors
///
/// If it holds an unknown command, tier or option.
pub(crate) fn parse(mut parser: Parser) -> Result<Command> {
    let Some(first) = parser.next()? else {
        return Ok(Command::Help(Topic::Overview));
    };
    let name = match first {
        Arg::Long("help") | Arg::Short('h') => return Ok(Command::Help(Topic::Overview)),
        Arg::Value(value) => value.string()?,
        other => return Err(other.unexpected().into()),
    };
    if name == "help" {
        return help(&mut parser);
    }
    let Some(topic) = Topic::of(&name) else {
        bail!("unknown command {name:?}; see cargo xtask --help");
    };
    let mut given = Given::default();
    while let Some(arg) = parser.next()? {
        match (topic, arg) {
            (topic, Arg::Long("help") | Arg::Short('h')) => return Ok(Command::Help(topic)),
            (Topic::Setup, Arg::Long("check")) => given.mode.check = true,
            (Topic::Setup, Arg::Long("dry-run")) => given.mode.dry_run = true,
            (Topic::Setup, Arg::Long("all")) => given.mode.all = true,
            (Topic::Demo, Arg::Long("keep")) => given.keep = true,
            (Topic::Test, Arg::Long("allow-skip")) => {
                given.allow_skip.push(parser.value()?.string()?.parse()?);
            }
            (Topic::Test, Arg::Value(tier)) if tier == "kernels" && given.tiers.is_empty() => {
                return kernels(&mut parser);
            }
            (Topic::Test, Arg::Value(tier)) => given.tiers.push(tier.string()?.parse()?),
            (Topic::Fuzz, Arg::Long("runs")) => {
                given.budget.runs = Some(parser.value()?.parse()?);
            }
            (Topic::Fuzz, Arg::Long("seconds")) => {
                given.budget.seconds = Some(parser.value()?.parse()?);
            }
            (Topic::Disasm, Arg::Value(name)) if given.function.is_none() => {
                given.function = Some(name.string()?);
            }
            (_, other) => return Err(other.unexpected().into()),
        }
    }
    given.command(topic)
}

#[derive(Default)]
struct Given {
    mode: Mode,
    keep: bool,
    function: Option<String>,
    tiers: Vec<Tier>,
    allow_skip: Vec<Tier>,
    budget: Budget,
}

impl Given {
    fn command(self, topic: Topic) -> Result<Command> {
        Ok(match topic {
            Topic::Overview | Topic::Kernels => Command::Help(topic),
            Topic::Setup => {
                if self.mode.check && self.mode.dry_run {
                    bail!("--check and --dry-run exclude each other");
                }
                if self.mode.all && !self.mode.dry_run {
                    bail!("--all goes with --dry-run");
                }
                Command::Setup(self.mode)
            }
            Topic::Ebpf => Command::Ebpf,
            Topic::Disasm => Command::Disasm {
                function: self.function,
            },
            Topic::Demo => Command::Demo { keep: self.keep },
            Topic::Test => Command::Test {
                tiers: if self.tiers.is_empty() {
                    Tier::USUAL.to_vec()
                } else {
                    self.tiers
                },
                allow_skip: self.allow_skip,
            },
            Topic::Fuzz => Command::Fuzz(self.budget),
            Topic::Deny => Command::Deny,
        })
    }
}

/// What follows `test kernels`.
fn kernels(parser: &mut Parser) -> Result<Command> {
    let mut choice = Choice::default();
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Long("help") | Arg::Short('h') => return Ok(Command::Help(Topic::Kernels)),
            Arg::Long("nic") => choice.card = Some(parser.value()?.string()?.parse()?),
            Arg::Value(kernel) => choice.kernels.push(kernel.string()?.parse()?),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Command::Kernels(choice))
}

fn help(parser: &mut Parser) -> Result<Command> {
    let topic = match parser.next()? {
        None => Topic::Overview,
        Some(Arg::Value(value)) => {
            let name = value.string()?;
            match Topic::of(&name) {
                Some(topic) => topic,
                None => bail!("unknown command {name:?}; see cargo xtask --help"),
            }
        }
        Some(other) => return Err(other.unexpected().into()),
    };
    Ok(Command::Help(topic))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{Card, Kernel};

    fn read(line: &str) -> Result<Command> {
        parse(Parser::from_args(line.split_whitespace()))
    }

    #[test]
    fn commands_are_read() {
        assert_eq!(read("").unwrap(), Command::Help(Topic::Overview));
        assert_eq!(read("demo --keep").unwrap(), Command::Demo { keep: true });
        assert_eq!(
            read("disasm from_pod").unwrap(),
            Command::Disasm {
                function: Some("from_pod".to_owned())
            }
        );
        assert_eq!(
            read("test lab unit --allow-skip lab").unwrap(),
            Command::Test {
                tiers: vec![Tier::Lab, Tier::Unit],
                allow_skip: vec![Tier::Lab]
            }
        );
    }

    #[test]
    fn policies_are_tested_where_that_is_asked_for() {
        let tiers = |line| match read(line).unwrap() {
            Command::Test { tiers, .. } => tiers,
            other => panic!("{line} is {other:?}"),
        };
        assert_eq!(tiers("test policy"), [Tier::Policy]);
        assert_eq!(tiers("test"), [Tier::Lint, Tier::Unit, Tier::Lab]);
    }

    #[test]
    fn budgets_are_read() {
        let none = Budget::default();
        assert_eq!(read("fuzz").unwrap(), Command::Fuzz(none));
        let both = Budget {
            runs: Some(10_000_000),
            seconds: Some(60),
        };
        let line = "fuzz --runs 10000000 --seconds 60";
        assert_eq!(read(line).unwrap(), Command::Fuzz(both));
    }

    #[test]
    fn kernels_are_read() {
        let kernels = |line| match read(line).unwrap() {
            Command::Kernels(choice) => choice,
            other => panic!("{line} is {other:?}"),
        };
        assert_eq!(kernels("test kernels"), Choice::default());
        let choice = kernels("test kernels 6.12 host --nic e1000e");
        assert_eq!(choice.kernels, [Kernel::Branch("6.12"), Kernel::Host]);
        assert_eq!(choice.card, Some(Card::E1000e));
        let page = Command::Help(Topic::Kernels);
        assert_eq!(read("test kernels --help").unwrap(), page);
    }

    #[test]
    fn without_a_tier_all_run() {
        for line in ["test", "ci"] {
            let Command::Test { tiers, .. } = read(line).unwrap() else {
                panic!("{line} is not a test run");
            };
            assert_eq!(tiers, Tier::USUAL);
        }
    }

    #[test]
    fn help_is_found_everywhere() {
        for line in ["setup --help", "help setup", "setup --check -h"] {
            assert_eq!(read(line).unwrap(), Command::Help(Topic::Setup), "{line}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (line, word) in [
            ("tset", "tset"),
            ("test everything", "everything"),
            ("demo --kepe", "--kepe"),
            ("setup --check --dry-run", "--dry-run"),
            ("setup --all", "--dry-run"),
            ("disasm a b", "b"),
            ("test lint kernels", "kernels"),
            ("test kernels 5.4", "5.4"),
            ("fuzz --runs many", "many"),
            ("test kernels --nic ne2k", "ne2k"),
        ] {
            let err = format!("{:#}", read(line).unwrap_err());
            assert!(err.contains(word), "{line}: {err}");
        }
    }
}
