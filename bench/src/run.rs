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
    let mut earlier: Vec<Rounds> = Vec::new();
    for lab in 1..=options.labs {
        let contests = case.prepare(options, &mut report.machine)?;
        earlier.resize_with(contests.len(), Rounds::default);
        for (mut contest, earlier) in contests.into_iter().zip(&mut earlier) {
            let entry = contest.ours();
            match contest.begin(&mut report.machine) {
                Err(error @ Error::Unfit { .. }) => {
                    if lab == 1 {
                        report.skip(case.name(), contest.as_ref(), error.to_string());
                    }
                    continue;
                }
                outcome => outcome?,
            }
            let mut number = earlier.all().len();
            earlier.add(Rounds::measure(contest.as_mut(), options, |round| {
                number += 1;
                on_round(&entry, number, round);
            })?);
            if lab == options.labs {
                let seen = [contest.inspect(Side::Ours)?, contest.inspect(Side::Theirs)?];
                report.add(case.name(), case.unit(), contest.as_ref(), earlier, seen);
            }
        }
    }
    Ok(report)
}
