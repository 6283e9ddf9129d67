//! `dpctl watch status`

use std::path::Path;

use clap::Args;

use crate::{
    api::FeedStatus,
    cmd::{Context, Outcome},
};

const EXAMPLES: &str = "\
Examples:
  dpctl watch status
  dpctl --output json watch status | jq .events_per_s

Current/Max are the events that the agent keeps for `dpctl watch --last`; Flows/s is how fast they
came in the last minute.";

/// Show how many events the agent keeps, and how fast they come
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Status {}

impl Status {
    #[expect(clippy::unused_self, reason = "as all verbs")]
    pub(super) fn run(&self, context: &Context<'_>) -> anyhow::Result<Outcome> {
        let client = context.client()?;
        let status = client.feed_status()?;
        context.show(&status, |status| describe(client.socket(), status))
    }
}

/// As `hubble status` has it.
fn describe(socket: &Path, status: &FeedStatus) -> String {
    let FeedStatus {
        kept,
        max,
        events_per_s,
        untold,
        ..
    } = status;
    let full = percent(*kept, *max);
    let missing = match untold {
        0 => String::new(),
        untold => format!("Lost Events: {}\n", grouped(*untold)),
    };
    format!(
        "Healthcheck (via {}): Ok\nCurrent/Max Flows: {}/{} ({full}%)\nFlows/s: {events_per_s:.2}\n{missing}",
        socket.display(),
        grouped(u64::try_from(*kept).unwrap_or(u64::MAX)),
        grouped(u64::try_from(*max).unwrap_or(u64::MAX)),
    )
}

/// In hundredths, rounded.
fn percent(part: usize, whole: usize) -> String {
    let hundredths = (part * 10_000 + whole / 2) / whole.max(1);
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

/// With commas between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at != 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_as_hubbles() {
        let status = FeedStatus {
            kept: 2391,
            max: 4095,
            seen: 1_234_567,
            untold: 1_200,
            events_per_s: 5.8712,
            uptime_s: 133,
        };
        insta::assert_snapshot!(describe(Path::new("/run/datapath/agent.sock"), &status), @"
        Healthcheck (via /run/datapath/agent.sock): Ok
        Current/Max Flows: 2,391/4,095 (58.39%)
        Flows/s: 5.87
        Lost Events: 1,200
        ");
        assert_eq!(
            (grouped(999), grouped(1_000_000)),
            ("999".into(), "1,000,000".into())
        );
    }
}
