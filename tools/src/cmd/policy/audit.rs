//! `dpctl policy audit`

use clap::{Args, ValueEnum};

use super::{Context, Outcome};

const EXAMPLES: &str = "\
What policy would deny is let through then, and told by `dpctl watch --verdict audit`. Of an
endpoint that lasts until it is turned off. Of all of them it lasts until the agent ends: what lasts
longer is `audit = true` under [policy] in its configuration.

Examples:
  dpctl policy audit on
  dpctl policy audit on web-0
  dpctl policy audit off web-0";

/// Let through what policy would deny, and tell it: of an endpoint, or of all
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::cmd) struct Audit {
    /// Whether to let it through
    switch: Switch,

    /// The endpoint [default: all of the node]
    endpoint: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Switch {
    /// Let it through
    On,
    /// Deny it
    Off,
}

impl Audit {
    pub(in crate::cmd) fn run(&self, context: &Context<'_>) -> anyhow::Result<Outcome> {
        let on = matches!(self.switch, Switch::On);
        context.client()?.set_audit(self.endpoint.as_deref(), on)?;
        Ok(Outcome::default())
    }
}
