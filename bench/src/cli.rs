//! The command line of the lab benches.

use std::{env, ffi::OsString, io::Write, process::ExitCode, str::FromStr};

use datapath_conformance::{family::Family, signals};
use lexopt::{Arg, Parser, ValueExt};

use crate::{
    contest::Case,
    error::{Error, Result},
    options::Options,
    round::Fate,
    run::run,
    uplink::Uplink,
};

const HELP: &str = "\
usage: cargo bench -p datapath-bench --bench NAME -- [OPTIONS]

  --gate            exit with 1 where a figure misses its bound, with 3 where the machine was too
                    busy, or packets were lost, to say
  --labs N          labs that are built, one after the other: each lies in memory in its own way (1)
  --rounds N        rounds that have to count, in each lab (20)
  --warm-up N       rounds before, which do not (2)
  --packets N       frames of one sample, where these are made up (400000)
  --flows N,...     flows that these are spread over: one number for family and cpus (255), several
                    for masquerade (1,255,16384,1048576)
  --against V,...   what masquerade is measured against: iptables-nft, iptables-legacy, nftables,
                    plain (all)
  --pattern P,...   traffic of masquerade: established, unproven, new, one-destination, exhausted
                    (all; with --flows, established); of policy: established, new
  --rules N,...     rules that policy is measured with (100,1000,10000)
  --mebibytes N     bytes of one sample of stream, MiB (64)
  --round-trips N   round trips of one sample of pingpong (20000)
  --family F        ipv4 or ipv6, for the pods (ipv4); family measures both
  --underlay F      ipv4 or ipv6, for the tunnel (ipv4)
  --max-foreign S   a round does not count where others use more than this share of all CPUs, from
                    0 to 1 (0.1)
  --uplink IF       measure masquerade on this network card, which nothing else may use
  --uplink-mac MAC  whom its frames go to, with --uplink: another host, or an address nobody has
  --output FORMAT   table or json (table)
  --verbose         tell of every round, not only of those that do not count

Without --bench, which cargo bench adds, it does one tiny round to show that it works. It needs
root, and touches nothing but network namespaces of its own and the card of --uplink. Exit code 2: it could not be run.
";

/// Reads the command line, runs a case, prints its report, and returns the exit code.
#[must_use]
pub fn main(case: &dyn Case) -> ExitCode {
    let args: Vec<_> = env::args_os().skip(1).collect();
    match try_main(case, &args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{}: {}", case.name(), error.chain());
            ExitCode::from(2)
        }
    }
}

fn try_main(case: &dyn Case, args: &[OsString]) -> Result<ExitCode> {
    let Some(wanted) = Wanted::parse(args)? else {
        print(&format!("{}: {}\n\n{HELP}", case.name(), case.about()))?;
        return Ok(ExitCode::SUCCESS);
    };
    signals::cleanup_on_signal()?;
    let report = run(case, &wanted.options, |contest, number, round| {
        if wanted.verbose || round.fate != Fate::Counted {
            eprintln!("{} {contest}: round {number}: {round}", case.name());
        }
    })?;
    if wanted.json {
        print(&format!("{}\n", serde_json::to_string_pretty(&report)?))?;
    } else {
        print(&report.table())?;
    }
    Ok(match (wanted.gate, report.usable(), report.passed()) {
        (false, ..) | (true, true, true) => ExitCode::SUCCESS,
        (true, true, false) => ExitCode::FAILURE,
        (true, false, _) => ExitCode::from(3),
    })
}

/// What the user asks for.
#[derive(Debug, PartialEq)]
struct Wanted {
    options: Options,
    gate: bool,
    json: bool,
    verbose: bool,
}

impl Wanted {
    /// Reads a command line; `None` where help is asked for.
    fn parse(args: &[OsString]) -> Result<Option<Self>> {
        let mut wanted = Self {
            options: if args.iter().any(|arg| arg == "--bench") {
                Options::default()
            } else {
                Options::smoke()
            },
            gate: false,
            json: false,
            verbose: false,
        };
        let (mut uplink, mut uplink_mac) = (None, None);
        let options = &mut wanted.options;
        let mut parser = Parser::from_args(args);
        while let Some(arg) = parser.next().map_err(|error| unreadable(&error))? {
            match arg {
                Arg::Long("help") | Arg::Short('h') => return Ok(None),
                Arg::Long("bench") => {}
                Arg::Long("gate") => wanted.gate = true,
                Arg::Long("verbose") => wanted.verbose = true,
                Arg::Long("output") => {
                    wanted.json = match text(&mut parser)?.as_str() {
                        "json" => true,
                        "table" => false,
                        other => return Err(invalid("output", other, "table or json")),
                    };
                }
                Arg::Long("labs") => options.labs = number(&mut parser, "labs")?,
                Arg::Long("rounds") => options.rounds = number(&mut parser, "rounds")?,
                Arg::Long("warm-up") => options.warm_up = number(&mut parser, "warm-up")?,
                Arg::Long("packets") => options.packets = number(&mut parser, "packets")?,
                Arg::Long("flows") => options.flows = numbers(&mut parser, "flows")?,
                Arg::Long("against") => options.against = words(&mut parser)?,
                Arg::Long("pattern") => options.patterns = words(&mut parser)?,
                Arg::Long("rules") => options.rules = numbers(&mut parser, "rules")?,
                Arg::Long("mebibytes") => options.mebibytes = number(&mut parser, "mebibytes")?,
                Arg::Long("round-trips") => {
                    options.round_trips = number(&mut parser, "round-trips")?;
                }
                Arg::Long("max-foreign") => {
                    options.max_foreign_share = number(&mut parser, "max-foreign")?;
                }
                Arg::Long("uplink") => uplink = Some(text(&mut parser)?),
                Arg::Long("uplink-mac") => uplink_mac = Some(text(&mut parser)?),
                Arg::Long("family") => options.family = family(&text(&mut parser)?)?,
                Arg::Long("underlay") => options.underlay = family(&text(&mut parser)?)?,
                other => return Err(unreadable(&other.unexpected())),
            }
        }
        wanted.options.uplink = match (uplink, uplink_mac) {
            (None, None) => None,
            (Some(interface), mac) => Some(Uplink::parse(&interface, &mac.unwrap_or_default())?),
            (None, Some(mac)) => return Err(invalid("uplink-mac", &mac, "it needs --uplink")),
        };
        wanted.options.check()?;
        Ok(Some(wanted))
    }
}

fn text(parser: &mut Parser) -> Result<String> {
    let value = parser.value().and_then(ValueExt::string);
    value.map_err(|error| unreadable(&error))
}

fn number<T: FromStr>(parser: &mut Parser, what: &'static str) -> Result<T> {
    let text = text(parser)?;
    text.parse()
        .map_err(|_| invalid(what, &text, "a number that is not too large; see --help"))
}

/// Several words in one, with commas between them.
fn words(parser: &mut Parser) -> Result<Vec<String>> {
    Ok(text(parser)?.split(',').map(ToOwned::to_owned).collect())
}

fn numbers(parser: &mut Parser, what: &'static str) -> Result<Vec<u32>> {
    let words = words(parser)?;
    let numbers = words.iter().map(|word| {
        let number = word.parse();
        number.map_err(|_| invalid(what, word, "a number that is not too large; see --help"))
    });
    numbers.collect()
}

fn family(text: &str) -> Result<Family> {
    match text {
        "ipv4" => Ok(Family::Ipv4),
        "ipv6" => Ok(Family::Ipv6),
        other => Err(invalid("family", other, "ipv4 or ipv6")),
    }
}

fn invalid(what: &'static str, value: &str, rule: &'static str) -> Error {
    Error::Invalid {
        what,
        value: value.to_owned(),
        rule,
    }
}

fn unreadable(error: &lexopt::Error) -> Error {
    invalid("command line", &error.to_string(), "see --help")
}

fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(Error::os("write to", "standard output"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Option<Wanted>> {
        let args: Vec<_> = args.iter().map(OsString::from).collect();
        Wanted::parse(&args)
    }

    #[test]
    fn without_bench_it_only_shows_that_it_works() {
        assert_eq!(parse(&[]).unwrap().unwrap().options, Options::smoke());
        let bench = parse(&["--bench"]).unwrap().unwrap();
        assert_eq!(bench.options, Options::default());
        assert!(!bench.gate);
        assert_eq!(parse(&["--help"]).unwrap(), None);
    }

    #[test]
    fn options_change_what_they_name() {
        let args = "--bench --gate --rounds 3 --flows=9,10 --family ipv6 --output json --packets 640 \
                    --max-foreign 0.5 --labs 2";
        let args: Vec<_> = args.split_whitespace().collect();
        let wanted = parse(&args).unwrap().unwrap();
        assert!(wanted.gate && wanted.json);
        let expected = Options {
            labs: 2,
            rounds: 3,
            flows: vec![9, 10],
            packets: 640,
            family: Family::Ipv6,
            max_foreign_share: 0.5,
            ..Options::default()
        };
        assert_eq!(wanted.options, expected);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (args, named) in [
            (["--rounds", "many"], "many"),
            (["--rounds", "0"], "rounds"),
            (["--labs", "0"], "labs"),
            (["--family", "ipx"], "ipx"),
            (["--speed", "9"], "--speed"),
            (["--output", "xml"], "xml"),
            (["--uplink", "ens2f0"], "uplink-mac"),
            (["--uplink-mac", "02:00:00:00:00:01"], "uplink"),
        ] {
            let text = parse(&args).unwrap_err().to_string();
            assert!(text.contains(named), "{args:?}: {text}");
        }
    }
}
