//! What a client wants to have of the stream of events.

use jiff::Timestamp;

use super::{Condition, EventFilter, Field, Item};

/// What begins the names of conditions that events must not fulfil.
const NOT: &str = "not.";

/// Which events a client wants.
///
/// Behind the `?` of a request: `last`, `follow`, `since` and `until` once, and any [`Field`] as
/// often as there are values for it, with `not.` in front for what is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventQuery {
    /// So many of those that are kept, at most.
    pub last: usize,
    /// Whether to go on with those that come.
    pub follow: bool,
    /// Those that happened at this time or later.
    pub since: Option<Timestamp>,
    /// Those that happened at this time or before.
    pub until: Option<Timestamp>,
    /// Those that fit.
    pub filter: EventFilter,
}

impl EventQuery {
    /// Whether an item is wanted.
    #[must_use]
    pub fn takes(&self, item: &Item) -> bool {
        match item {
            Item::Event(event) => {
                self.since.is_none_or(|since| event.time >= since)
                    && self.until.is_none_or(|until| event.time <= until)
                    && self.filter.takes(event)
            }
            Item::Untold(untold) => self.filter.takes_untold(untold),
        }
    }

    /// Names and values, as they stand behind the `?`.
    pub(super) fn pairs(&self) -> Vec<(String, String)> {
        let given = [
            ("last", (self.last != 0).then(|| self.last.to_string())),
            ("follow", self.follow.then(|| "true".to_owned())),
            ("since", self.since.map(|time| time.to_string())),
            ("until", self.until.map(|time| time.to_string())),
        ];
        let given = given
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)));
        let only = self.filter.only.iter().map(|condition| ("", condition));
        let not = self.filter.not.iter().map(|condition| (NOT, condition));
        let conditions = only.chain(not).map(|(prefix, condition)| {
            (
                format!("{prefix}{}", condition.name()),
                condition.to_string(),
            )
        });
        given.chain(conditions).collect()
    }

    /// Reads names and values.
    ///
    /// # Errors
    ///
    /// A sentence that names what cannot be used.
    pub(super) fn of_pairs(pairs: Vec<(String, String)>) -> Result<Self, String> {
        let mut query = Self::default();
        for (name, value) in pairs {
            let wrong = |why: &dyn std::fmt::Display| format!("{name}={value}: {why}");
            match name.as_str() {
                "last" => query.last = value.parse().map_err(|error| wrong(&error))?,
                "follow" => query.follow = value.parse().map_err(|error| wrong(&error))?,
                "since" => query.since = Some(value.parse().map_err(|error| wrong(&error))?),
                "until" => query.until = Some(value.parse().map_err(|error| wrong(&error))?),
                _ => {
                    let condition = condition(&name, &value).map_err(|error| wrong(&error))?;
                    let wanted = if name.starts_with(NOT) {
                        &mut query.filter.not
                    } else {
                        &mut query.filter.only
                    };
                    wanted.push(condition);
                }
            }
        }
        Ok(query)
    }
}

fn condition(name: &str, value: &str) -> Result<Condition, String> {
    let name = name.strip_prefix(NOT).unwrap_or(name);
    let field = Field::named(name).ok_or_else(|| {
        let all: Vec<_> = Field::all().map(|field| field.name).collect();
        let all = all.join(", ");
        format!("unknown field `{name}`: there are last, follow, since, until, {all}")
    })?;
    field.is(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Untold, Why, sample};

    fn filter(only: &[(&str, &str)], not: &[(&str, &str)]) -> EventQuery {
        let all = |pairs: &[(&str, &str)]| -> Vec<_> {
            let conditions = pairs.iter().map(|(name, value)| condition(name, value));
            conditions.map(Result::unwrap).collect()
        };
        EventQuery {
            filter: EventFilter {
                only: all(only),
                not: all(not),
            },
            ..EventQuery::default()
        }
    }

    #[test]
    fn every_condition_takes_what_fits_and_nothing_else() {
        let event = Item::Event(Box::new(sample::event()));
        let taken = [
            ("type", "drop"),
            ("verdict", "DROPPED"),
            ("verdict", "denied"),
            ("reason", "policy"),
            ("policy", "web"),
            ("policy", "shop/web"),
            ("policy", "CiliumNetworkPolicy/shop/web"),
            ("traffic-direction", "EGRESS"),
            ("protocol", "TCP"),
            ("ip-version", "v4"),
            ("tcp-flags", "syn"),
            ("interface", "dp0123456789a"),
            ("endpoint", "web-0"),
            ("ip", "10.244.1.2"),
            ("ip", "198.51.100.0/24"),
            ("from-ip", "10.244.0.0/16"),
            ("to-ip", "198.51.100.10"),
            ("port", "80"),
            ("port", "40000"),
            ("to-port", "80"),
            ("pod", "web-0"),
            ("pod", "shop/web"),
            ("pod", "shop/"),
            ("from-pod", "web"),
            ("namespace", "shop"),
            ("from-namespace", "shop"),
            ("label", "app=web"),
            ("from-label", "k8s:app in (web)"),
            ("to-label", "reserved:world"),
            ("identity", "1001"),
            ("to-identity", "world"),
        ];
        for pair in taken {
            assert!(filter(&[pair], &[]).takes(&event), "{pair:?}");
            assert!(!filter(&[], &[pair]).takes(&event), "not {pair:?}");
        }
        let others = [
            ("type", "policy-verdict"),
            ("verdict", "forwarded"),
            ("reason", "multicast"),
            ("policy", "eb"),
            ("policy", "other/web"),
            ("traffic-direction", "ingress"),
            ("protocol", "udp"),
            ("ip-version", "6"),
            ("tcp-flags", "SYN,ACK"),
            ("interface", "eth0"),
            ("endpoint", "web"),
            ("ip", "fd00::/8"),
            ("from-ip", "198.51.100.10"),
            ("port", "81"),
            ("from-port", "80"),
            ("pod", "db"),
            ("pod", "other/web-0"),
            ("to-pod", "web-0"),
            ("namespace", "other"),
            ("to-namespace", "shop"),
            ("label", "app=db"),
            ("to-label", "app=web"),
            ("identity", "7"),
            ("from-identity", "world"),
        ];
        for pair in others {
            assert!(!filter(&[pair], &[]).takes(&event), "{pair:?}");
            assert!(filter(&[], &[pair]).takes(&event), "not {pair:?}");
        }
    }

    #[test]
    fn conditions_of_one_name_are_alternatives() {
        let event = Item::Event(Box::new(sample::event()));
        let either = [("port", "1"), ("port", "80")];
        assert!(filter(&either, &[]).takes(&event));
        let both = [("port", "80"), ("protocol", "udp")];
        assert!(!filter(&both, &[]).takes(&event));
        assert!(!filter(&[("port", "80")], &[("protocol", "tcp")]).takes(&event));
        assert!(!filter(&[], &[("port", "80"), ("protocol", "udp")]).takes(&event));
    }

    #[test]
    fn events_of_a_time_are_found() {
        let sample = sample::event();
        let event = Item::Event(Box::new(sample.clone()));
        let second = jiff::SignedDuration::from_secs(1);
        let (before, after) = (sample.time - second, sample.time + second);
        for (since, until, fits) in [
            (Some(before), None, true),
            (Some(after), None, false),
            (None, Some(before), false),
            (Some(before), Some(after), true),
        ] {
            let query = EventQuery {
                since,
                until,
                ..EventQuery::default()
            };
            assert_eq!(query.takes(&event), fits, "{query:?}");
        }
    }

    #[test]
    fn what_is_missing_is_said_unless_it_is_of_another_reason() {
        let untold = |reason: &str| {
            Item::Untold(Untold {
                why: Why::RateLimit,
                reason: Some(reason.to_owned()),
                events: 1,
            })
        };
        let policy = filter(&[("reason", "policy"), ("port", "80")], &[]);
        assert!(policy.takes(&untold("Policy denied")));
        assert!(!policy.takes(&untold("Multicast")));
    }

    #[test]
    fn a_query_survives_the_wire() {
        let query = EventQuery {
            last: 3,
            follow: true,
            since: Some("2026-11-21T06:30:00Z".parse().unwrap()),
            until: None,
            ..filter(
                &[
                    ("label", "app in (a, b),!c"),
                    ("port", "80"),
                    ("port", "81"),
                ],
                &[("ip", "fd00::/8")],
            )
        };
        let text = serde_urlencoded::to_string(query.pairs()).unwrap();
        let pairs = serde_urlencoded::from_str(&text).unwrap();
        assert_eq!(EventQuery::of_pairs(pairs), Ok(query));
        let wrong = vec![("prot".to_owned(), "tcp".to_owned())];
        let said = EventQuery::of_pairs(wrong).unwrap_err();
        assert!(
            said.contains("unknown field `prot`") && said.contains("protocol"),
            "{said}"
        );
    }
}
