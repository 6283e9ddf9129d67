//! `dpctl flows flush`

use clap::Args;

use super::{Context, Outcome, filter::Filter};
use crate::{
    api::{FlushReport, FlushRequest},
    error::Error,
};

const EXAMPLES: &str = "\
Examples:
  dpctl flows flush --pod web-0 --to 198.51.100.0/24
  dpctl flows flush --protocol udp --port 53 --dry-run
  dpctl flows flush --from 192.0.2.11:40000      as a server sees its client
  dpctl flows flush --all-flows

Filters are those of `dpctl flows`, which shows what would be removed.

Both halves of a flow go, and no other flow. Its next packet is judged as that of a new one, by the
policy of now. A TCP connection in the middle is taken up again from there, unless tcp_loose is off:
then its packets are dropped until it is begun anew. A masqueraded flow gets a port again, the same
one if it is free; where it is not, the other side does not know the connection any more. Answers
that come before the next packet of who began the flow belong to none, and are dropped.";

/// Remove flows, both directions of each
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Flush {
    /// All flows of the node
    #[arg(long)]
    all_flows: bool,

    /// Only say how many it would remove
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    filter: Filter,
}

impl Flush {
    pub(super) fn run(&self, context: &Context<'_>) -> anyhow::Result<Outcome> {
        let request = FlushRequest {
            filter: self.filter.filter(),
            all: self.all_flows,
            dry_run: self.dry_run,
        };
        if let Some(sentence) = self.unclear(&request) {
            let sentence = sentence.to_owned();
            return Err(Error::Usage { sentence }.into());
        }
        let report = context.client()?.flush_flows(&request)?;
        context.show(&report, |report| told(report, self.dry_run))
    }

    /// Says what is not clear about it, in the words of the command line.
    fn unclear(&self, request: &FlushRequest) -> Option<&'static str> {
        match (request.filter.is_empty(), self.all_flows) {
            (true, false) => Some(
                "this would remove every flow of the node: say which ones (--pod, --from, --to, \
                 ...; `dpctl flows` shows them), or --all-flows if all are meant",
            ),
            (false, true) => Some(
                "--all-flows means every flow, and the other options some of them: leave out one \
                 or the other",
            ),
            _ => None,
        }
    }
}

fn told(report: &FlushReport, dry: bool) -> String {
    let FlushReport { flows, removed, .. } = report;
    match (flows, dry) {
        (0, _) => "no flow fits: nothing to remove\n".to_owned(),
        (1, true) => "1 flow would be removed\n".to_owned(),
        (_, true) => format!("{flows} flows would be removed\n"),
        (1, false) => format!("1 flow removed ({removed} entries)\n"),
        (_, false) => format!("{flows} flows removed ({removed} entries)\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_is_said() {
        let report = |flows| FlushReport {
            examined: 10,
            flows,
            removed: 2 * flows,
        };
        assert_eq!(told(&report(0), false), "no flow fits: nothing to remove\n");
        assert_eq!(told(&report(1), false), "1 flow removed (2 entries)\n");
        assert_eq!(told(&report(3), false), "3 flows removed (6 entries)\n");
        assert_eq!(told(&report(3), true), "3 flows would be removed\n");
    }
}
