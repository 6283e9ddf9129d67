//! `dpctl watch`

pub(super) mod line;
mod pcap;

use std::{
    io::{self, Write},
    net::IpAddr,
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use ipnet::IpNet;

use self::pcap::Recording;
use super::{Context, Form, Outcome};
use crate::{
    api::{EventQuery, Item},
    error::{Error, Result},
};

const EXAMPLES: &str = "\
Examples:
  dpctl watch                        what happens from now on, until Ctrl-C
  dpctl watch --last 20              the last 20 events, and no more
  dpctl watch --last 20 --follow --reason policy --port 443
  dpctl watch --ip 10.244.0.0/16 --protocol tcp
  dpctl --output json watch | jq 'select(.item == \"event\") | .reason'
  dpctl watch --pcap - | tcpdump -r -

A line reads: time, sender and its identity, receiver and its identity, why, and the packet in
short. The name of a pod with an address in brackets sent under an address that is not its own;
(unproven) is an address that anyone may have put there. Events are of dropped packets so far. The
kernel tells so many of each reason in a second (events_per_s); how many it did not tell is said.";

/// Show what becomes of packets, as it happens
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Watch {
    #[command(flatten)]
    which: Which,

    /// Write the first bytes of the packets to a pcapng file, with the reason as comment, in place
    /// of lines; - is standard output
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
}

/// Which events.
#[derive(Debug, Default, Args)]
pub(super) struct Which {
    /// Show so many of the past, of the 1024 that the agent keeps at most [default: 0]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    last: Option<u16>,

    /// Go on with what happens from now on; so it is without --last
    #[arg(long)]
    follow: bool,

    /// Those with these words in the reason, in any case: `policy denied`
    #[arg(long, value_name = "WORDS", value_parser = reason)]
    reason: Option<String>,

    /// Those of this verdict
    #[arg(long, value_enum, ignore_case = true)]
    verdict: Option<Verdict>,

    /// Those of this protocol: tcp, udp, icmp, icmpv6, sctp, arp, or the IP protocol's number
    #[arg(long, value_name = "NAME", value_parser = protocol)]
    protocol: Option<String>,

    /// Those with this port on either side
    #[arg(long)]
    port: Option<u16>,

    /// Those with this address, or one of this prefix, on either side
    #[arg(long, value_name = "ADDRESS[/BITS]", value_parser = prefix)]
    ip: Option<IpNet>,

    /// Those at this interface
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,

    /// Those of this endpoint, as sender, as receiver, or at its interface
    #[arg(long, value_name = "ID")]
    endpoint: Option<String>,
}

/// The verdicts that there are events of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Verdict {
    /// It goes no further
    Dropped,
}

impl Watch {
    pub(super) fn run(&self, context: &Context<'_>) -> anyhow::Result<Outcome> {
        match &self.pcap {
            None => print(context, &self.which.query()),
            Some(path) => record(context, &self.which.query(), path),
        }
    }
}

impl Which {
    /// Follows unless only the past was asked for.
    fn query(&self) -> EventQuery {
        EventQuery {
            last: self.last.unwrap_or(0).into(),
            follow: self.follow || self.last.is_none(),
            reason: self.reason.clone(),
            verdict: self.verdict.map(|Verdict::Dropped| "DROPPED".to_owned()),
            protocol: self.protocol.clone(),
            port: self.port,
            ip: self.ip,
            interface: self.interface.clone(),
            endpoint: self.endpoint.clone(),
        }
    }
}

/// Prints events as they come: a line each, or an object of JSON.
pub(super) fn print(context: &Context<'_>, query: &EventQuery) -> anyhow::Result<Outcome> {
    let render = |item: &Item| match context.form {
        Form::Table => Ok(line::of(item)),
        Form::Json => serde_json::to_string(item),
    };
    let mut out = io::stdout().lock();
    each(context, query, |item| {
        let line = render(item).map_err(io::Error::other)? + "\n";
        // Whoever reads wants to see it now.
        out.write_all(line.as_bytes()).and_then(|()| out.flush())
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

/// Words of a drop reason: some reason must have them.
pub(super) fn reason(words: &str) -> Result<String, String> {
    let wanted = words.to_lowercase();
    if datapath_user::drop_reasons().any(|reason| reason.to_lowercase().contains(&wanted)) {
        return Ok(words.to_owned());
    }
    let all: Vec<_> = datapath_user::drop_reasons().collect();
    Err(format!(
        "no drop reason has these words; they are: {}",
        all.join(", ")
    ))
}

fn protocol(name: &str) -> Result<String, String> {
    const NAMES: [&str; 6] = ["tcp", "udp", "icmp", "icmpv6", "sctp", "arp"];
    let name = name.to_lowercase();
    if NAMES.contains(&name.as_str()) || name.parse::<u8>().is_ok() {
        return Ok(name);
    }
    Err(format!(
        "one of {}, or a number up to 255",
        NAMES.join(", ")
    ))
}

/// A prefix; an address is the prefix that has nothing else.
fn prefix(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    address
        .or_else(|_| text.parse())
        .map_err(|_| "an address such as 10.244.1.2, or a prefix such as 10.244.0.0/16".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_meant_is_refused_with_what_can() {
        assert!(reason("POLICY").is_ok());
        assert!(reason("polite").unwrap_err().contains("Policy denied"));
        assert_eq!(protocol("ICMPv6").unwrap(), "icmpv6");
        assert!(protocol("tpc").unwrap_err().contains("tcp"));
        assert_eq!(prefix("10.0.0.1").unwrap().to_string(), "10.0.0.1/32");
        assert_eq!(prefix("fd00::/8").unwrap().to_string(), "fd00::/8");
        assert!(prefix("10.0.0").is_err());
    }

    #[test]
    fn without_a_past_it_follows() {
        let past = Which {
            last: Some(20),
            ..Which::default()
        };
        assert!(Which::default().query().follow && !past.query().follow);
        assert_eq!((past.query().last, Which::default().query().last), (20, 0));
    }
}
