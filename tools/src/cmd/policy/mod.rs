//! `dpctl policy`

mod check;
mod matrix;

use clap::Subcommand;

use super::{Context, Outcome};

/// Check policies, and run policy cases
#[derive(Debug, Subcommand)]
pub(super) enum Policy {
    Check(check::Check),
    Matrix(matrix::Matrix),
}

impl Policy {
    pub(super) fn run(&self, context: &Context<'_>) -> anyhow::Result<Outcome> {
        match self {
            Self::Check(verb) => verb.run(context),
            Self::Matrix(verb) => verb.run(context),
        }
    }
}
