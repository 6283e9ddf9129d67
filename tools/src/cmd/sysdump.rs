//! `dpctl sysdump`

use std::path::PathBuf;

use clap::Args;

use super::{Context, Outcome};
use crate::{
    sysdump::{self, Dump, Problem, Source},
    table,
};

const EXAMPLES: &str = "\
It works with the agent dead, too: what cannot be collected is told, and written into errors.txt of
the archive; the exit code is 0 as long as there is an archive. The file is for its owner only: it
names addresses, interfaces and flows of the node. It has no secrets: the agent has none.

Examples:
  dpctl sysdump
  dpctl sysdump --out /tmp/node7.tar.gz
  dpctl --node n1 sysdump                    of a node of the lab dp-lab
  dpctl sysdump --bpffs /run/datapath/bpffs --log /var/log/dp-agent.log
  tar tzf datapath-sysdump-*.tar.gz";

/// Collect all that a bug report needs into one file
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Sysdump {
    /// Where to write it [default: ./datapath-sysdump-<seconds since 1970>.tar.gz]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// The agent's `bpffs` directory [default: what the agent or its configuration says]
    #[arg(long, value_name = "DIR")]
    bpffs: Option<PathBuf>,

    /// The agent's configuration [default: what the agent was started with]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// The agent's log file [default: where it writes to]
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,

    /// How many lines of the log
    #[arg(long, value_name = "NUMBER", default_value_t = 1000)]
    lines: usize,
}

impl Sysdump {
    pub(super) fn run(&self, context: &Context<'_>) -> anyhow::Result<Outcome> {
        let Self {
            out,
            bpffs,
            config,
            log,
            lines,
        } = self.clone();
        let source = Source {
            socket: context.target.socket()?,
            netns: context.target.netns(),
            bpffs,
            config,
            log,
            log_lines: lines,
        };
        let file = out.unwrap_or_else(sysdump::default_file);
        let dump = sysdump::collect(&source, &file)?;
        context.show(&dump, text)
    }
}

fn text(dump: &Dump) -> String {
    let (file, bytes, parts) = (dump.file.display(), dump.bytes, dump.parts.len());
    let told = format!("{file}: {bytes} bytes, {parts} files");
    let missing = dump.errors.iter();
    let missing = missing.map(|Problem { part, error }| format!("without {part}: {error}"));
    table::lines([told].into_iter().chain(missing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told() {
        let problem = Problem {
            part: "agent/".to_owned(),
            error: "no agent can be reached".to_owned(),
        };
        let dump = Dump {
            format: sysdump::FORMAT,
            file: "x.tar.gz".into(),
            bytes: 4711,
            parts: vec!["doctor.json".to_owned()],
            errors: vec![problem],
        };
        insta::assert_snapshot!(text(&dump), @"
        x.tar.gz: 4711 bytes, 1 files
        without agent/: no agent can be reached
        ");
    }
}
