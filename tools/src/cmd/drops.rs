//! `dpctl drops`

use std::cmp::Reverse;

use clap::Args;

use super::{Context, Outcome};
use crate::{
    api::MetricView,
    table::{self, numbers, words},
};

const EXAMPLES: &str = "\
Examples:
  dpctl drops
  dpctl drops --forwards             and what went on, by where to
  dpctl --output json drops | jq 'map(.packets) | add'

INGRESS is into a pod or towards this node, EGRESS out of a pod or off this node. Packets are
counted as the hooks see them: one that the card will cut into segments counts once.";

/// Show how many packets were dropped, and why
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Drops {
    /// Show those that went on, too
    #[arg(long)]
    forwards: bool,
}

impl Drops {
    pub(super) fn run(&self, context: &Context<'_>) -> anyhow::Result<Outcome> {
        let mut metrics = context.client()?.metrics()?;
        metrics.retain(|metric| metric.packets > 0 && (metric.dropped || self.forwards));
        metrics.sort_by_cached_key(|m| {
            (
                Reverse(m.dropped),
                Reverse(m.packets),
                m.outcome.clone(),
                m.direction.clone(),
            )
        });
        context.show(&metrics, |metrics| rows(metrics, self.forwards))
    }
}

fn rows(metrics: &[MetricView], forwards: bool) -> String {
    let outcome = if forwards { "REASON OR WAY" } else { "REASON" };
    let columns = [
        words(outcome),
        words("DIRECTION"),
        numbers("PACKETS"),
        numbers("BYTES"),
    ];
    let rows = metrics.iter().map(|metric| {
        vec![
            metric.outcome.clone(),
            metric.direction.clone(),
            metric.packets.to_string(),
            metric.bytes.to_string(),
        ]
    });
    let none = if forwards {
        "no packet has come yet"
    } else {
        "no packet was dropped"
    };
    table::render(&columns, rows.collect(), none)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::sample;

    #[test]
    fn drops_read_well() {
        insta::assert_snapshot!(rows(&sample::metrics(), true), @"
        REASON OR WAY      DIRECTION  PACKETS     BYTES
        Invalid source ip  egress           3       294
        Multicast          ingress         12      1080
        to-endpoint        ingress     123456  98765432
        ");
        insta::assert_snapshot!(rows(&[], false), @"no packet was dropped");
    }
}
