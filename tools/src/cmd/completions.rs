//! `dpctl completions`

use clap::Args;
use clap_complete::Shell;

use super::{Outcome, command};

const EXAMPLES: &str = "\
Examples:
  source <(dpctl completions bash)
  dpctl completions fish > ~/.config/fish/completions/dpctl.fish";

/// Write the completions of this command line for a shell
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(super) fn run(&self) -> Outcome {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command(), "dpctl", &mut script);
        String::from_utf8_lossy(&script).into_owned().into()
    }
}
