//! `dpctl bench`

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

use clap::{Args, Subcommand, ValueEnum};
use datapath_bench::{
    cases,
    contest::Entry,
    options::Options,
    round::{Fate, Round},
    run,
    uplink::Uplink,
};
use datapath_conformance::{family::Family, signals};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::{Context, Outcome};
use crate::{
    error::Error,
    table::{self, words},
};

const LIST_EXAMPLES: &str = "\
Examples:
  dpctl bench list
  dpctl --output json bench list | jq -r '.cases[].case'";

const RUN_EXAMPLES: &str = "\
Everything is measured in network namespaces of its own, on this machine's kernel: what is compared
takes turns, and only ratios of two samples right after each other are judged. A round in which
something was lost is void; one in which others used the CPUs does not count.

With --uplink the node of the lab has a network card of this machine instead of a wire of its own.
The card is moved into the lab and back, for each sample anew, and comes back as it was: its name and
whether it is on. What the kernel forgets on the way does not: queueing disciplines, settings under
net.ipv4.conf. After a kill -9 it is eth0 of the namespace bench-PID-N-n1:
`ip -n bench-PID-N-n1 link set eth0 netns 1 name IF`. It may have no address, no default route, and
be no port of a bridge or bond. It sends real frames, as fast as it can, to the address of
--uplink-mac, from 192.0.2.11 to 198.18.0.0/15: use a network of benches only. A switch sends frames
for an address that nobody has out of all ports. Nobody need count or answer there: a frame is
delivered when it is given to the card, and what the card says that it has sent is shown beside.

Exit codes:
  0  measured; with --gate, every bound is kept
  1  with --gate, a bound is missed; or it could not be measured
  2  the command line makes no sense
  4  with --gate, too few rounds count, or something could not be compared on this machine

Examples:
  dpctl bench run masquerade
  dpctl bench run masquerade --flows 255,16384 --against iptables-nft,plain --rounds 10
  dpctl bench run masquerade --pattern new,exhausted --gate
  dpctl bench run masquerade --flows 255 --uplink ens2f0 --uplink-mac 02:00:00:00:00:01
  dpctl --output json bench run stream | jq '.results[0].ratio'";

/// Version of what `--output json` of `list` prints.
const FORMAT: &str = "bench-list/1";

/// Measure the datapath against what it replaces
#[derive(Debug, Subcommand)]
pub(super) enum Bench {
    List(List),
    Run(Box<Run>),
}

/// Say what can be measured
#[derive(Debug, Args)]
#[command(after_help = LIST_EXAMPLES)]
pub(super) struct List {}

/// Measure a case and show the figures
#[derive(Debug, Args)]
#[command(after_help = RUN_EXAMPLES)]
pub(super) struct Run {
    /// What to measure: `dpctl bench list`
    case: String,

    /// Flows that frames are spread over; several numbers for masquerade
    #[arg(long, value_name = "N", value_delimiter = ',')]
    flows: Vec<u32>,

    /// What to compare with: iptables-nft, iptables-legacy, nftables, plain; all unless told
    #[arg(long, value_name = "VARIANT", value_delimiter = ',')]
    against: Vec<String>,

    /// Patterns of traffic: established, unproven, new, one-destination, exhausted; of policy the
    /// first and new
    #[arg(long, value_name = "PATTERN", value_delimiter = ',')]
    pattern: Vec<String>,

    /// Numbers of rules that policy is measured with
    #[arg(long, value_name = "N", value_delimiter = ',')]
    rules: Vec<u32>,

    /// Labs that are built, one after the other: each lies in memory in its own way, and is faster or
    /// slower by some percent
    #[arg(long, value_name = "N")]
    labs: Option<usize>,

    /// Rounds that have to count, in each lab
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,

    /// Rounds before, which do not
    #[arg(long, value_name = "N")]
    warm_up: Option<usize>,

    /// Frames of one sample, where these are made up
    #[arg(long, value_name = "N")]
    packets: Option<u32>,

    /// Bytes of one sample of stream, MiB
    #[arg(long, value_name = "N")]
    mebibytes: Option<u32>,

    /// Round trips of one sample of pingpong
    #[arg(long, value_name = "N")]
    round_trips: Option<u32>,

    /// The pods' family, where a case has the choice
    #[arg(long, value_enum, value_name = "FAMILY")]
    family: Option<Ip>,

    /// The tunnel's family, where a case has one
    #[arg(long, value_enum, value_name = "FAMILY")]
    underlay: Option<Ip>,

    /// A round does not count where others use more than this share of all CPUs, from 0 to 1
    #[arg(long, value_name = "SHARE")]
    max_foreign: Option<f64>,

    /// Network card to measure masquerade on, which nothing else uses
    #[arg(long, value_name = "IF", requires = "uplink_mac")]
    uplink: Option<String>,

    /// Ethernet address that frames on the card go to: another host's, or one that nobody has
    #[arg(long, value_name = "MAC", requires = "uplink")]
    uplink_mac: Option<String>,

    /// Fail where a bound is missed
    #[arg(long)]
    gate: bool,
}

/// A family by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Ip {
    Ipv4,
    Ipv6,
}

impl From<Ip> for Family {
    fn from(ip: Ip) -> Self {
        match ip {
            Ip::Ipv4 => Self::Ipv4,
            Ip::Ipv6 => Self::Ipv6,
        }
    }
}

/// What can be measured, as programs get it.
#[derive(Debug, Serialize)]
struct Listing {
    format: &'static str,
    cases: Vec<Listed>,
}

#[derive(Debug, Serialize)]
struct Listed {
    case: &'static str,
    /// What its nanoseconds are per.
    unit: &'static str,
    about: &'static str,
}

impl Bench {
    pub(super) fn run(&self, context: &Context<'_>) -> anyhow::Result<Outcome> {
        context.target.refuse_for("this machine")?;
        match self {
            Self::List(List {}) => list(context),
            Self::Run(verb) => verb.run(context),
        }
    }
}

fn list(context: &Context<'_>) -> anyhow::Result<Outcome> {
    let cases = cases::all().into_iter().map(|case| Listed {
        case: case.name(),
        unit: case.unit(),
        about: case.about(),
    });
    let listing = Listing {
        format: FORMAT,
        cases: cases.collect(),
    };
    context.show(&listing, |listing| {
        let columns = [words("CASE"), words("UNIT"), words("WHAT IT MEASURES")];
        let rows = listing.cases.iter().map(|listed| {
            let Listed { case, unit, about } = listed;
            [case, unit, about].map(|cell| (*cell).to_owned()).to_vec()
        });
        table::render(&columns, rows.collect(), "there is nothing to measure")
    })
}

impl Run {
    fn run(&self, context: &Context<'_>) -> anyhow::Result<Outcome> {
        let case = cases::named(&self.case).ok_or_else(|| {
            let names: Vec<_> = cases::all().iter().map(|case| case.name()).collect();
            Error::Usage {
                sentence: format!(
                    "there is no case {:?} to measure, but {}",
                    self.case,
                    names.join(", ")
                ),
            }
        })?;
        let options = self.options().map_err(usage)?;
        options.check().map_err(usage)?;
        signals::cleanup_on_signal()?;
        let progress = Progress::start(case.name(), options.labs * options.rounds);
        let report = run(case, &options, |entry, number, round| {
            progress.round(entry, number, round);
        });
        progress.finish();
        let report = report.map_err(usage)?;
        let shown = context.show(&report, datapath_bench::Report::table)?;
        Ok(Outcome {
            failed: self.gate && report.usable() && !report.passed(),
            unusable: self.gate && !report.usable(),
            ..shown
        })
    }

    fn options(&self) -> Result<Options, datapath_bench::Error> {
        let usual = Options::default();
        let uplink = self.uplink.as_deref().zip(self.uplink_mac.as_deref());
        let uplink = uplink.map(|(interface, mac)| Uplink::parse(interface, mac));
        Ok(Options {
            labs: self.labs.unwrap_or(usual.labs),
            rounds: self.rounds.unwrap_or(usual.rounds),
            warm_up: self.warm_up.unwrap_or(usual.warm_up),
            packets: self.packets.unwrap_or(usual.packets),
            flows: self.flows.clone(),
            against: self.against.clone(),
            patterns: self.pattern.clone(),
            rules: self.rules.clone(),
            mebibytes: self.mebibytes.unwrap_or(usual.mebibytes),
            round_trips: self.round_trips.unwrap_or(usual.round_trips),
            family: self.family.map_or(usual.family, Into::into),
            underlay: self.underlay.map_or(usual.underlay, Into::into),
            max_foreign_share: self.max_foreign.unwrap_or(usual.max_foreign_share),
            uplink: uplink.transpose()?,
        })
    }
}

/// A value that cannot be used is the command line's fault.
fn usage(error: datapath_bench::Error) -> anyhow::Error {
    if let datapath_bench::Error::Invalid { .. } = error {
        let sentence = error.to_string();
        return Error::Usage { sentence }.into();
    }
    error.into()
}

/// Says on standard error how far it is: on a terminal in one line that changes. A round that does
/// not count has a line of its own.
#[derive(Debug)]
struct Progress {
    bar: Option<ProgressBar>,
    case: &'static str,
    rounds: usize,
}

impl Progress {
    fn start(case: &'static str, rounds: usize) -> Self {
        let bar = io::stderr().is_terminal().then(ProgressBar::new_spinner);
        if let Some(bar) = &bar {
            if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar.set_message(format!("{case}: building the lab"));
        }
        Self { bar, case, rounds }
    }

    fn round(&self, entry: &Entry, number: usize, round: &Round) {
        let line = format!(
            "{} ({entry}): round {number} of {}: {round}",
            self.case, self.rounds
        );
        match &self.bar {
            Some(bar) if round.fate == Fate::Counted => bar.set_message(line),
            Some(bar) => bar.println(line),
            None if round.fate == Fate::Counted => {}
            None => {
                // There is nowhere left to say that standard error is gone.
                let _gone = writeln!(io::stderr(), "{line}");
            }
        }
    }

    fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        bench: Bench,
    }

    #[test]
    fn options_change_what_they_name() {
        let line = "x run masquerade --flows 255,16384 --against iptables-nft,plain --rounds 3 \
                    --pattern new --family ipv6 --max-foreign 0.5 --labs 5 --gate --uplink ens2f0 --uplink-mac 02:00:00:00:00:01";
        let Bench::Run(run) = Line::parse_from(line.split_whitespace()).bench else {
            panic!("it is a run");
        };
        assert!(run.gate);
        let expected = Options {
            labs: 5,
            rounds: 3,
            flows: vec![255, 16_384],
            against: vec!["iptables-nft".to_owned(), "plain".to_owned()],
            patterns: vec!["new".to_owned()],
            family: Family::Ipv6,
            max_foreign_share: 0.5,
            uplink: Some(Uplink {
                interface: "ens2f0".to_owned(),
                next_hop: [2, 0, 0, 0, 0, 1],
            }),
            ..Options::default()
        };
        assert_eq!(run.options().unwrap(), expected);
    }

    #[test]
    fn a_card_needs_somebody_to_send_to() {
        for line in [
            "x run masquerade --uplink ens2f0",
            "x run masquerade --uplink-mac 02:00:00:00:00:01",
        ] {
            let refused = Line::try_parse_from(line.split_whitespace()).unwrap_err();
            assert!(refused.to_string().contains("--uplink"), "{refused}");
        }
    }

    #[test]
    fn a_value_that_makes_no_sense_is_the_command_lines_fault() {
        let options = Options {
            rounds: 0,
            ..Options::default()
        };
        let error = usage(options.check().unwrap_err());
        assert!(
            matches!(error.downcast_ref(), Some(Error::Usage { .. })),
            "{error}"
        );
    }
}
