//! Runs a case from its lab to its report.

use crate::{
    contest::{Case, Entry, Side},
    error::{Error, Result},
    machine::Machine,
    options::Options,
    report::Report,
    round::{Round, Rounds},
};

/// Builds the lab of a case, measures everything in it, takes it down, as often as is wanted, and
/// returns what it has found. `on_round` hears of every round, counted from 1 through all labs, as soon
/// as it is over.
///
/// # Errors
///
/// What keeps it from being measured. Loss and a busy machine do not: they are in the report.
pub fn run(
    case: &dyn Case,
    options: &Options,
    mut on_round: impl FnMut(&Entry, usize, &Round),
) -> Result<Report> {
    options.check()?;
    if let Some(uplink) = &options.uplink {
        if !case.takes_uplink() {
            return Err(Error::Invalid {
                what: "uplink",
                value: uplink.interface.clone(),
                rule: "this case needs both ends of its wire and cannot be measured on a network \
                       card; masquerade can, for the others leave --uplink out",
            });
        }
        uplink.check()?;
    }
    let mut report = Report::new(Machine::look()?);
    // None: it could not be held in one of the labs.
    let mut earlier: Vec<Option<Rounds>> = Vec::new();
    for lab in 1..=options.labs {
        let contests = case.prepare(options, &mut report.machine)?;
        earlier.resize_with(contests.len(), || Some(Rounds::default()));
        for (mut contest, earlier) in contests.into_iter().zip(&mut earlier) {
            let Some(rounds) = earlier else {
                continue;
            };
            let entry = contest.ours();
            match contest.begin(&mut report.machine) {
                Err(error @ Error::Unfit { .. }) => {
                    report.skip(case.name(), contest.as_ref(), error.to_string());
                    *earlier = None;
                    continue;
                }
                outcome => outcome?,
            }
            let mut number = rounds.all().len();
            rounds.add(Rounds::measure(contest.as_mut(), options, |round| {
                number += 1;
                on_round(&entry, number, round);
            })?);
            if lab == options.labs {
                let seen = [contest.inspect(Side::Ours)?, contest.inspect(Side::Theirs)?];
                report.add(case.name(), case.unit(), contest.as_ref(), rounds, seen);
            }
        }
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, time::Duration};

    use super::*;
    use crate::contest::{Contest, Gate, Sample};

    /// Two contests, the second of which cannot be held in one of the labs.
    struct Moody {
        unfit_in: usize,
        labs: Cell<usize>,
    }

    struct Held {
        fit: bool,
    }

    impl Case for Moody {
        fn name(&self) -> &'static str {
            "moody"
        }

        fn about(&self) -> &'static str {
            "what a run makes of several labs"
        }

        fn unit(&self) -> &'static str {
            "packet"
        }

        fn prepare(&self, _: &Options, _: &mut Machine) -> Result<Vec<Box<dyn Contest>>> {
            self.labs.set(self.labs.get() + 1);
            let fit = self.labs.get() != self.unfit_in;
            Ok(vec![Box::new(Held { fit: true }), Box::new(Held { fit })])
        }
    }

    impl Contest for Held {
        fn ours(&self) -> Entry {
            Entry::new("datapath", [])
        }

        fn theirs(&self) -> Entry {
            Entry::new("plain", [])
        }

        fn against(&self) -> &'static str {
            "plain"
        }

        fn gate(&self) -> Option<Gate> {
            None
        }

        fn begin(&mut self, _: &mut Machine) -> Result<()> {
            if self.fit {
                return Ok(());
            }
            Err(Error::Unfit {
                what: "the table",
                value: "small".to_owned(),
                wanted: "larger".to_owned(),
                remedy: "a larger one".to_owned(),
            })
        }

        fn sample(&mut self, _: Side) -> Result<Sample> {
            Ok(Sample {
                units: 1,
                elapsed: Duration::from_micros(1),
                cpu: Duration::ZERO,
                sent: 1,
                delivered: 1,
                flaw: None,
                observed: Vec::new(),
            })
        }
    }

    #[test]
    fn what_one_lab_could_not_hold_is_skipped_and_said_so() {
        for unfit_in in 1..=3 {
            let case = Moody {
                unfit_in,
                labs: Cell::new(0),
            };
            let options = Options {
                labs: 3,
                ..Options::smoke()
            };
            let mut last = 0;
            let report = run(&case, &options, |_, number, _| last = last.max(number)).unwrap();
            assert_eq!((case.labs.get(), last), (3, 3));
            // Both sides of the one that was held.
            assert_eq!(report.results.len(), 2);
            assert_eq!(report.results[0].rounds, 3);
            assert_eq!(report.skipped.len(), 1);
            assert!(!report.usable());
        }
    }
}
