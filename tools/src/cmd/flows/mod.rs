//! `dpctl flows`

mod filter;
mod flush;
mod follow;
mod line;
mod list;

use clap::{Args, Subcommand};
use datapath_user::{FlowOrder, FlowSort};

use self::{filter::Filter, flush::Flush};
use super::{Context, Form, Outcome};
use crate::error::Error;

const EXAMPLES: &str = "\
Examples:
  dpctl flows                        one line for each flow, both directions together
  dpctl flows --pod web-0 --state established,closing
  dpctl flows --from 10.244.1.0/24 --to world:443 --nat
  dpctl flows --sort bytes --limit 20
  dpctl flows --count --protocol udp --state unreplied
  dpctl flows --follow --pod web-0   what begins, changes and ends, until Ctrl-C
  dpctl --node n1 --output json flows | jq 'select(.nat) | .source.name'
  dpctl flows flush --pod web-0 --to 198.51.100.0/24

A line reads from the side that began the flow to the other, addresses as they are before
translation. NAT is what the source (snat) or the destination (dnat) is replaced by. STATE is
syn (TCP) or unreplied (others) until the other side answers, replied until the first side goes on,
established, closing when one side has ended it, closed when both have, reset when one has broken it
off. PACKETS and BYTES are those of the first side, then of the other. EXPIRES is how long the flow
lives without another packet. \"missing\" behind a state is a half without its other one: a fault, if it stays.

Up to 10000 flows are shown by protocol and source; more in the order of the tables, which is none,
unless --sort says otherwise. With --output json it is an object on a line for each flow.

Filters fit together: a flow is shown if it fits all. --from and --to take an address, a prefix, the
name of a pod of this node or of a peer, world or host, each with a port or without: 10.244.1.2,
10.0.0.0/8:80, [fd00::1]:443, web-0, n2, world:53, :80. Addresses and ports fit before translation
and after, so that what a server sees as its client finds the pod.";

/// Show the connections that the datapath tracks
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
pub(super) struct Flows {
    #[command(subcommand)]
    verb: Option<Verb>,

    /// Order by packets, bytes (most first), expires (soonest first), source or destination
    #[arg(long, value_name = "BY", value_parser = str::parse::<FlowSort>)]
    sort: Option<FlowSort>,

    /// The other way round
    #[arg(long, requires = "sort")]
    reverse: bool,

    /// So many at most
    #[arg(long, value_name = "N")]
    limit: Option<usize>,

    /// Identities, ways in and out, verdict, table, rule and number, too
    #[arg(long, conflicts_with = "count")]
    wide: bool,

    /// Only how many there are
    #[arg(long, conflicts_with_all = ["sort", "limit"])]
    count: bool,

    /// What begins, changes and ends from now on, until Ctrl-C, as the agent sees it by looking at
    /// its tables again and again: what begins and ends between two looks is not seen
    #[arg(long, conflicts_with_all = ["sort", "limit", "count", "wide"])]
    follow: bool,

    /// Look so often, in milliseconds; large tables less often, so that it takes a fifth of a CPU at
    /// most [default: 1000]
    #[arg(long, value_name = "MS", requires = "follow",
          value_parser = clap::value_parser!(u64).range(50..=3_600_000))]
    interval: Option<u64>,

    #[command(flatten)]
    filter: Filter,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Flush(Flush),
}

impl Flows {
    pub(super) fn run(&self, context: &Context<'_>) -> anyhow::Result<Outcome> {
        if let Some(Verb::Flush(flush)) = &self.verb {
            return flush.run(context);
        }
        let filter = self.filter.filter();
        if self.count {
            let count = context.client()?.count_flows(&filter)?;
            return context.show(&count, |count| format!("{}\n", count.flows));
        }
        if self.follow {
            return follow::print(context, &filter, self.interval);
        }
        let order = FlowOrder {
            sort: self.sort,
            reverse: self.reverse,
            limit: self.limit,
        };
        let client = context.client()?;
        let mut flows = client.flows(&filter, order)?;
        let mut out = std::io::stdout().lock();
        let written = match context.form {
            Form::Json => flows.copy_to(&mut out)?,
            Form::Table => list::print(&mut flows, order, self.wide, filter.is_empty(), &mut out)?,
        };
        match written {
            // Nobody reads it any more (`| head`): that is no failure.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            outcome => outcome.map_err(Error::os("write", "flows"))?,
        }
        Ok(Outcome::default())
    }
}
