//! Which events: the options, as Hubble has them.

use clap::{
    Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, error::ErrorKind, value_parser,
};
use jiff::{SignedDuration, Timestamp, civil, tz::TimeZone};

use crate::{
    api::{Condition, EventFilter, EventQuery, Field, KEPT},
    error::{Error, Result},
};

/// Which events.
#[derive(Debug, Default, Args)]
pub(super) struct Which {
    /// Show so many of the past, of the 4095 that the agent keeps at most [default: 0]
    #[arg(long, value_name = "N", value_parser = value_parser!(u16).range(1..=4095))]
    last: Option<u16>,

    /// Show all of the past that the agent keeps
    #[arg(long, conflicts_with = "last")]
    all: bool,

    /// Show those since then: how long ago (5m, 1h30m), or a time (2026-11-21T14:00:00Z)
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<Timestamp>,

    /// Show those until then, likewise
    #[arg(long, value_name = "TIME", value_parser = time, conflicts_with = "follow")]
    until: Option<Timestamp>,

    /// Go on with what happens from now on; so it is without --last, --all, --since and --until
    #[arg(long, short)]
    follow: bool,

    #[command(flatten)]
    filter: Conditions,
}

/// The options that are conditions, in the order in which `--not` makes sense of them.
#[derive(Clone, Debug, Default)]
struct Conditions(EventFilter);

impl Which {
    /// Follows unless only the past was asked for.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] for a past that ends before it begins.
    pub(super) fn query(&self) -> Result<EventQuery> {
        if let (Some(since), Some(until)) = (self.since, self.until)
            && since > until
        {
            let sentence = format!("--since {since} is later than --until {until}");
            return Err(Error::Usage { sentence });
        }
        let past = self.all || self.since.is_some() || self.until.is_some();
        let last = match self.last {
            Some(last) => last.into(),
            None if past => KEPT,
            None => 0,
        };
        Ok(EventQuery {
            last,
            follow: self.follow || last == 0,
            since: self.since,
            until: self.until,
            filter: self.filter.0.clone(),
        })
    }
}

/// A time that is so long ago, or that is given.
fn time(text: &str) -> Result<Timestamp, String> {
    if let Ok(ago) = text.parse::<SignedDuration>() {
        let ago = ago.abs();
        return Timestamp::now()
            .checked_sub(ago)
            .map_err(|error| error.to_string());
    }
    let given = text.parse::<Timestamp>().ok().or_else(|| {
        let local = text.parse::<civil::DateTime>().ok()?;
        local
            .to_zoned(TimeZone::system())
            .ok()
            .map(|zoned| zoned.timestamp())
    });
    given.ok_or_else(|| {
        format!("{text:?} is no time: write 5m, 1h30m, 2026-11-21T14:00:00Z or 2026-11-21T14:00")
    })
}

impl Args for Conditions {
    fn augment_args(command: Command) -> Command {
        let not = Arg::new("not")
            .long("not")
            .help("Leave out what fits the option behind it")
            .help_heading("Which events")
            .action(ArgAction::Append)
            .num_args(0)
            .default_missing_value("true")
            .value_parser(value_parser!(bool));
        let options = Field::all().map(|field| {
            Arg::new(field.name)
                .long(field.name)
                .value_name(field.value)
                .help(field.help)
                .help_heading(field.heading)
                .action(ArgAction::Append)
                .value_parser(move |text: &str| field.is(text))
        });
        command.arg(not).args(options)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Conditions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut found: Vec<(usize, Option<&Condition>)> = Vec::new();
        for field in Field::all() {
            let values = matches.get_many::<Condition>(field.name);
            let places = matches.indices_of(field.name);
            let given = places
                .into_iter()
                .flatten()
                .zip(values.into_iter().flatten());
            found.extend(given.map(|(place, condition)| (place, Some(condition))));
        }
        let nots = matches.indices_of("not").into_iter().flatten();
        found.extend(nots.map(|place| (place, None)));
        found.sort_by_key(|(place, _)| *place);
        let mut filter = EventFilter::default();
        let mut not = false;
        for (_, condition) in found {
            match condition {
                None if not => break,
                None => not = true,
                Some(condition) if not => {
                    filter.not.push(condition.clone());
                    not = false;
                }
                Some(condition) => filter.only.push(condition.clone()),
            }
        }
        if not {
            let why = "--not stands before the option that it takes away: --not --port 53\n";
            return Err(clap::Error::raw(ErrorKind::ArgumentConflict, why));
        }
        Ok(Self(filter))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        which: Which,
    }

    fn parse(arguments: &str) -> Result<EventQuery, String> {
        let arguments = ["watch"].into_iter().chain(arguments.split_whitespace());
        let line = Line::try_parse_from(arguments).map_err(|error| error.to_string())?;
        line.which.query().map_err(|error| error.to_string())
    }

    fn said(conditions: &[Condition]) -> Vec<String> {
        let said = conditions
            .iter()
            .map(|condition| format!("{}={condition}", condition.name()));
        said.collect()
    }

    #[test]
    fn without_a_past_it_follows() {
        let query = |arguments| parse(arguments).unwrap();
        for arguments in ["", "--follow", "-f --port 80"] {
            let query = query(arguments);
            assert!(query.follow && query.last == 0, "{arguments}");
        }
        for (arguments, last) in [
            ("--last 20", 20),
            ("--all", 4095),
            ("--since 5m", 4095),
            ("--since 5m --last 3", 3),
            ("--until 2026-11-21T14:00", 4095),
        ] {
            let query = query(arguments);
            assert_eq!((query.follow, query.last), (false, last), "{arguments}");
        }
        let both = query("--last 20 --follow");
        assert!(both.follow && both.last == 20);
    }

    #[test]
    fn not_is_about_the_option_behind_it() {
        let query =
            parse("--not --port 53 --port 80 --ip 10.0.0.0/8 --not --last 3 --protocol udp");
        let filter = query.unwrap().filter;
        assert_eq!(said(&filter.only), ["port=80", "ip=10.0.0.0/8"]);
        assert_eq!(said(&filter.not), ["port=53", "protocol=udp"]);
        for wrong in ["--not", "--port 1 --not", "--not --not --port 1"] {
            let said = parse(wrong).unwrap_err();
            assert!(said.contains("--not --port 53"), "{wrong}: {said}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_what_can() {
        for (arguments, why) in [
            ("--reason polite", "Policy denied by denylist"),
            ("--protocol tpc", "icmpv6"),
            ("--ip 10.0.0", "10.244.0.0/16"),
            ("--verdict fine", "forwarded, dropped, audit"),
            ("--type trace", "drop, policy-verdict"),
            ("--identity hots", "remote-node"),
            ("--from-label =x", "app=web"),
            ("--tcp-flags SYM", "SYN, ACK"),
            ("--ip-version 5", "4, 6"),
            ("--to-port http", "65535"),
            ("--pod a/b/c", "shop/web-0"),
            ("--traffic-direction up", "ingress, egress"),
            ("--last 5000", "4095"),
            ("--since yesterday", "1h30m"),
            ("--since 1m --until 1h", "later than"),
        ] {
            let said = parse(arguments).unwrap_err();
            assert!(said.contains(why), "{arguments}: {said}");
        }
    }
}
