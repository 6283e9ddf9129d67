//! `dpctl cleanup`

use std::path::PathBuf;

use clap::Args;
use datapath_user::Removed;

use super::{Context, Outcome};
use crate::{
    error::Error,
    lab,
    table::{lines, list},
};

const AFTER_HELP: &str = "\
Run it in the network namespace of the node (`nsenter --net`, or --node for one of a lab). It removes
links, maps, the gateway pair with its routes, pods' interfaces, and the file system and directory
that were made for the pins; also of another version, and when the agent was killed half way. It
refuses while an agent runs, and a directory that is not a datapath's. Leases stay in their file.

Examples:
  dpctl cleanup
  dpctl cleanup --bpffs /run/datapath/bpffs
  dpctl --node n1 cleanup                    of a node of the lab dp-lab
  dpctl --output json cleanup | jq .interfaces";

/// Directory of the pins that `dp-agent --help` shows.
const BPFFS: &str = "/run/datapath/bpffs";

/// Remove what a dead agent left, without its configuration
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Cleanup {
    /// Its `bpffs` directory [default: /run/datapath/bpffs, or that of the lab's node]
    #[arg(long, value_name = "DIR")]
    bpffs: Option<PathBuf>,
}

impl Cleanup {
    pub(super) fn run(&self, context: &Context<'_>) -> anyhow::Result<Outcome> {
        let removed = match context.target.node()? {
            None => {
                let bpffs = self.bpffs.clone().unwrap_or_else(|| BPFFS.into());
                datapath_user::cleanup(&bpffs)?
            }
            Some((lab, node)) => {
                let (namespace, bpffs) = lab::place(&lab, node)?;
                let bpffs = self.bpffs.clone().unwrap_or(bpffs);
                let cleanup = || datapath_user::cleanup(&bpffs);
                namespace.run(cleanup).map_err(Error::from)??
            }
        };
        context.show(&removed, describe)
    }
}

fn describe(removed: &Removed) -> String {
    let bpffs = removed.bpffs.display();
    if removed.is_empty() {
        return lines([format!("{bpffs}: nothing to remove")]);
    }
    let version = removed
        .abi_version
        .map_or_else(String::new, |version| format!(", ABI version {version}"));
    let told = [
        Some(format!("{} links", removed.links)).filter(|_| removed.links > 0),
        Some(format!("{} maps", removed.maps)).filter(|_| removed.maps > 0),
        Some(format!("interfaces: {}", list(&removed.interfaces)))
            .filter(|_| !removed.interfaces.is_empty()),
        Some("the BPF file system".to_owned()).filter(|_| removed.unmounted),
        Some("the directory".to_owned()).filter(|_| removed.directory),
    ];
    let told = told.into_iter().flatten().map(|what| format!("  {what}"));
    lines(std::iter::once(format!("{bpffs}{version}: removed")).chain(told))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_removed_is_told() {
        let removed = Removed {
            bpffs: BPFFS.into(),
            abi_version: Some(1),
            links: 8,
            maps: 13,
            interfaces: vec!["dp_host".to_owned(), "dp0123456789a".to_owned()],
            unmounted: true,
            directory: false,
        };
        insta::assert_snapshot!(describe(&removed), @r"
        /run/datapath/bpffs, ABI version 1: removed
          8 links
          13 maps
          interfaces: dp_host, dp0123456789a
          the BPF file system
        ");
        let nothing = Removed {
            bpffs: BPFFS.into(),
            ..Removed::default()
        };
        insta::assert_snapshot!(describe(&nothing), @"/run/datapath/bpffs: nothing to remove");
    }
}
