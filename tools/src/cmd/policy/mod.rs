//! `dpctl policy`

mod apply;
mod audit;
mod check;
mod delete;
mod explain;
mod get;
mod list;
mod matrix;
mod texts;

use clap::Subcommand;

use super::{Context, Outcome};

/// Apply, list, check and explain policies, and run policy cases
#[derive(Debug, Subcommand)]
pub(super) enum Policy {
    Apply(apply::Apply),
    Delete(delete::Delete),
    List(list::List),
    Get(get::Get),
    Explain(explain::Explain),
    Audit(audit::Audit),
    Check(check::Check),
    Matrix(matrix::Matrix),
}

impl Policy {
    pub(super) fn run(&self, context: &Context<'_>) -> anyhow::Result<Outcome> {
        match self {
            Self::Apply(verb) => verb.run(context),
            Self::Delete(verb) => verb.run(context),
            Self::List(verb) => verb.run(context),
            Self::Get(verb) => verb.run(context),
            Self::Explain(verb) => verb.run(context),
            Self::Audit(verb) => verb.run(context),
            Self::Check(verb) => verb.run(context),
            Self::Matrix(verb) => verb.run(context),
        }
    }
}
