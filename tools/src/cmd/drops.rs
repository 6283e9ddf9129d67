//! `dpctl drops`

use std::cmp::Reverse;

use clap::Args;

use super::{Context, Outcome, watch};
use crate::{
    api::{MetricView, UntoldView},
    table::{self, numbers, words},
};

const EXAMPLES: &str = "\
Examples:
  dpctl drops
  dpctl drops --forwards             and what went on, by where to
  dpctl drops --follow               each drop as it happens, with both ends
  dpctl drops --follow --reason 'policy denied'
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

    /// Show each drop as it happens, until Ctrl-C (`dpctl watch` can do more)
    #[arg(long, conflicts_with = "forwards")]
    follow: bool,

    /// Those with these words in the reason, in any case
    #[arg(long, value_name = "WORDS", value_parser = watch::value_of("reason"))]
    reason: Option<String>,
}

impl Drops {
    pub(super) const fn prints_events(&self) -> bool {
        self.follow
    }

    pub(super) fn run(&self, context: &Context<'_>) -> anyhow::Result<Outcome> {
        if self.follow {
            return watch::follow_drops(context, self.reason.as_deref());
        }
        let client = context.client()?;
        let mut metrics = client.metrics()?;
        metrics.retain(|metric| metric.packets > 0 && (metric.dropped || self.forwards));
        if let Some(words) = &self.reason {
            let words = words.to_lowercase();
            metrics.retain(|metric| metric.outcome.to_lowercase().contains(&words));
        }
        let untold = client.untold_events()?;
        metrics.sort_by_cached_key(|m| {
            (
                Reverse(m.dropped),
                Reverse(m.packets),
                m.outcome.clone(),
                m.direction.clone(),
            )
        });
        context.show(&metrics, |metrics| {
            rows(metrics, self.forwards) + &describe_untold(&untold)
        })
    }
}

/// Says which drops were not told as events.
fn describe_untold(untold: &[UntoldView]) -> String {
    if untold.is_empty() {
        return String::new();
    }
    let columns = [
        words("EVENTS NOT TOLD"),
        numbers("SUPPRESSED"),
        numbers("LOST"),
    ];
    let rows = untold.iter().map(|untold| {
        vec![
            untold.reason.clone(),
            untold.suppressed.to_string(),
            untold.lost.to_string(),
        ]
    });
    format!("\n{}", table::render(&columns, rows.collect(), ""))
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
        let untold = [UntoldView {
            reason: "Multicast".to_owned(),
            suppressed: 1200,
            lost: 3,
        }];
        insta::assert_snapshot!(describe_untold(&untold).trim_start(), @"
        EVENTS NOT TOLD  SUPPRESSED  LOST
        Multicast              1200     3
        ");
        assert_eq!(describe_untold(&[]), "");
    }
}
