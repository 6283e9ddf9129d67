//! `dp-agent`: the reference node agent.

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::Parser;
use datapath_tools::{
    agent::{self, Config},
    error::Result,
};
use tracing_subscriber::filter::LevelFilter;

const AFTER_HELP: &str = "\
A configuration:
  socket = \"/run/datapath/agent.sock\"
  state = \"/var/lib/datapath/ipam.redb\"
  on_stop = \"leave\"    # pods stay connected for the next agent; \"remove\": nothing is left

  [datapath]
  bpffs = \"/run/datapath/bpffs\"
  uplinks = [\"eth0\"]
  pod_cidrs = [\"10.244.1.0/24\", \"fd00:10:244:1::/64\"]
  gateways = [\"10.244.1.1\", \"fd00:10:244:1::1\"]

  [policy]
  directory = \"/etc/datapath/policy.d\"    # NetworkPolicy, CiliumNetworkPolicy: followed
  cluster = \"/etc/datapath/cluster.toml\"  # the other nodes and their pods: followed

  [[peers]]
  name = \"n2\"
  address = \"192.0.2.12\"
  pod_cidrs = [\"10.244.2.0/24\", \"fd00:10:244:2::/64\"]

  [[endpoints]]
  id = \"web-0\"
  netns = \"/run/netns/web-0\"
  identity = 1001

A cluster file, the same one on all nodes:
  [[nodes]]
  name = \"n3\"
  address = \"192.0.2.13\"
  pod_cidrs = [\"10.244.3.0/24\"]
  labels = { zone = \"a\" }

  [[nodes.pods]]
  addresses = [\"10.244.3.5\"]
  namespace = \"shop\"
  name = \"db-0\"
  labels = { app = \"db\" }

Examples:
  dp-agent --config /etc/datapath/agent.toml --check
  dp-agent --config /etc/datapath/agent.toml
  dpctl status

It listens at the socket only (mode 0600) and runs until SIGTERM or SIGINT. Then, and also when it
is killed, packets go on, and the next one takes over; with on_stop = \"remove\" it leaves nothing
but the files of its leases and of policies that were applied. `dpctl cleanup` removes what a dead one left. Exit codes: 0 done, 1 it failed, 2 the command line makes no sense.";

/// Runs the datapath of a node, the one whose network namespace it is started in.
#[derive(Debug, Parser)]
#[command(name = "dp-agent", version, after_help = AFTER_HELP, max_term_width = 100)]
struct Cli {
    /// Its configuration, a TOML file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,

    /// Only check the configuration, and the policies and the cluster file that it names
    #[arg(long)]
    check: bool,

    /// How much to log: off, error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log: LevelFilter,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_max_level(cli.log)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let error = anyhow::Error::from(error);
            // There is nowhere left to say that standard error is gone.
            let _gone = writeln!(
                io::stderr(),
                "dp-agent: {}",
                format!("{error:#}").trim_end()
            );
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let config = Config::load(&cli.config)?;
    if cli.check {
        return config.check_files();
    }
    agent::run(&config)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_configuration_that_the_help_shows_is_good() {
        let (_, rest) = AFTER_HELP.split_once("A configuration:").unwrap();
        let (shown, rest) = rest
            .split_once("A cluster file, the same one on all nodes:")
            .unwrap();
        let (cluster, _) = rest.split_once("Examples:").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.toml");
        std::fs::write(&path, shown).unwrap();
        let mut config = Config::load(&path).unwrap();
        assert_eq!((config.peers.len(), config.endpoints.len()), (1, 1));
        assert!(config.check_files().is_err(), "there is no such directory");
        let file = directory.path().join("cluster.toml");
        std::fs::write(&file, cluster).unwrap();
        config.policy.directory = None;
        config.policy.cluster = Some(file);
        config.check_files().unwrap();
    }
}
