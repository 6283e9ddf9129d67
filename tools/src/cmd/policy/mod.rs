//! `dpctl policy`

mod matrix;

use clap::Subcommand;

use super::{Context, Outcome};

/// Check policies, and run policy cases
#[derive(Debug, Subcommand)]
pub(super) enum Policy {
    Matrix(matrix::Matrix),
}

impl Policy {
    pub(super) fn run(&self, context: &Context<'_>) -> anyhow::Result<Outcome> {
        match self {
            Self::Matrix(verb) => verb.run(context),
        }
    }
}
