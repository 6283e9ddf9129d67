//! `dpctl watch`

mod hubble;
pub(super) mod line;
mod pcap;
mod print;
mod status;
mod which;

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};

use self::{pcap::Recording, print::Printer, which::Which};
use super::{Context, Outcome};
use crate::{
    api::{EventQuery, Field, Item},
    error::{Error, Result},
};

const EXAMPLES: &str = "\
Examples:
  dpctl watch                        what happens from now on, until Ctrl-C
  dpctl watch --last 20              the last 20 events, and no more
  dpctl watch --since 5m --verdict dropped
  dpctl watch --last 20 --follow --reason policy --to-port 443
  dpctl watch --from-label app=client --to-pod shop/web --type policy-verdict
  dpctl watch --ip 10.244.0.0/16 --not --protocol icmp --not --port 53
  dpctl watch --policy shop/web --print-policy-names
  dpctl --output json watch | jq 'select(.verdict == \"DROPPED\") | .drop_reason_desc'
  dpctl --output jsonpb watch --last 100 | hubble observe --input-file -
  dpctl watch --pcap - | tcpdump -r -
  dpctl watch status                 how many events are kept, and how fast they come

A line reads as Hubble's do: time, sender and its identity, receiver and its identity, what it is
about, the verdict, and the packet in short. -> is the way of the packet that began the flow, <> a
way of which that is not known. A new flow that policy judges is a policy-verdict, with what of it
a rule named; if it is denied, the packet's drop follows. The name of a pod with an address in
brackets sent under an address that is not its own; (unproven) is an address that anyone may have
put there.

Several values of one option are alternatives; different options must all fit. Each --not takes
away what fits the option behind it. The kernel tells so many drops of each reason and so many
verdicts in a second (events_per_s and verdicts_per_s of the agent's configuration); how many it
did not tell is said.";

/// Show what becomes of packets, as it happens
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub(super) struct Watch {
    #[command(subcommand)]
    about: Option<About>,

    #[command(flatten)]
    which: Which,

    #[command(flatten)]
    style: Style,

    /// Write the first bytes of the packets to a pcapng file, with the reason as comment, in place
    /// of lines; - is standard output
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
}

/// What to say of events beside themselves.
#[derive(Debug, Subcommand)]
enum About {
    Status(status::Status),
}

/// What lines have beyond what all have.
#[derive(Clone, Copy, Debug, Default, Args)]
struct Style {
    /// Name the policy that decided: `ALLOWED BY web (NetworkPolicy)`
    #[arg(long)]
    print_policy_names: bool,

    /// Name the node that tells it, in brackets behind the time
    #[arg(long)]
    print_node_name: bool,
}

impl Watch {
    pub(super) const fn prints_events(&self) -> bool {
        self.about.is_none()
    }

    pub(super) fn run(&self, context: &Context<'_>) -> anyhow::Result<Outcome> {
        match (&self.about, &self.pcap) {
            (Some(About::Status(status)), _) => status.run(context),
            (None, None) => show(context, &self.which.query()?, self.style),
            (None, Some(path)) => record(context, &self.which.query()?, path),
        }
    }
}

/// Shows drops as they happen, those with these words in the reason.
pub(super) fn follow_drops(context: &Context<'_>, reason: Option<&str>) -> anyhow::Result<Outcome> {
    let mut query = EventQuery {
        follow: true,
        ..EventQuery::default()
    };
    let given = [("type", Some("drop")), ("reason", reason)];
    for (name, value) in given {
        if let Some(value) = value {
            let wrong = |sentence| Error::Usage { sentence };
            query.filter = query.filter.and(name, value).map_err(wrong)?;
        }
    }
    show(context, &query, Style::default())
}

/// Shows events as they come.
fn show(context: &Context<'_>, query: &EventQuery, style: Style) -> anyhow::Result<Outcome> {
    let mut out = io::stdout().lock();
    let mut printer = Printer::new(context.output, style);
    each(context, query, |item| {
        let text = printer.render(item).map_err(io::Error::other)?;
        // Whoever reads wants to see it now.
        out.write_all(text.as_bytes()).and_then(|()| out.flush())
    })?;
    Ok(Outcome::default())
}

fn record(context: &Context<'_>, query: &EventQuery, path: &Path) -> anyhow::Result<Outcome> {
    let to_stdout = path == Path::new("-");
    let mut recording = if to_stdout {
        Recording::new("standard output", Box::new(io::stdout()))?
    } else {
        Recording::create(path)?
    };
    each(context, query, |item| recording.add(item))?;
    let packets = recording.finish()?;
    // Standard output has the packets.
    let _gone = writeln!(
        io::stderr(),
        "{packets} packets written to {}",
        path.display()
    );
    Ok(Outcome::default())
}

/// Has `act` see every item, until the end of the stream, a signal, or its reader's end.
fn each(
    context: &Context<'_>,
    query: &EventQuery,
    mut act: impl FnMut(&Item) -> io::Result<()>,
) -> anyhow::Result<()> {
    let client = context.client()?;
    let follow = query.follow;
    let mut stream = client.events(query)?.until_signal()?;
    for item in stream.by_ref() {
        match act(&item?) {
            // Nobody reads it any more (`| head`): that is no failure.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            outcome => outcome.map_err(Error::os("write", "events"))?,
        }
    }
    if follow && !stream.is_interrupted() {
        let socket = client.socket().to_owned();
        return Err(Error::Ended { socket }.into());
    }
    Ok(())
}

/// Checks the value of a condition, and keeps its text.
pub(super) fn value_of(name: &'static str) -> impl Fn(&str) -> Result<String, String> + Clone {
    move |text| {
        let field = Field::named(name).ok_or_else(|| format!("unknown field `{name}`"))?;
        field.is(text).map(|condition| condition.to_string())
    }
}
