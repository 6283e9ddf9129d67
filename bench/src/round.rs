//! Rounds: two samples right after each other, and whether they count.

use std::fmt;

use crate::{
    contest::{Contest, Sample, Side},
    error::Result,
    load::Load,
    options::Options,
};

/// Tries per round that is wanted, before a contest is given up as not measurable now.
const TRIES_PER_ROUND: usize = 2;

/// Both sides, measured one right after the other.
#[derive(Clone, Debug, PartialEq)]
pub struct Round {
    /// What is judged.
    pub ours: Sample,
    /// What it is judged against.
    pub theirs: Sample,
    /// The part of all CPUs, from 0 to 1, that somebody else used meanwhile.
    pub foreign_share: f64,
    /// Whether it counts.
    pub fate: Fate,
}

/// Whether a round counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It does.
    Counted,
    /// Something that was sent did not arrive: void.
    Lost,
    /// It measured something other than it should: void.
    Flawed(&'static str),
    /// The machine was busy with something else.
    Disturbed,
}

impl Round {
    /// Judges two samples.
    #[must_use]
    pub fn new(ours: Sample, theirs: Sample, foreign_share: f64, max_foreign_share: f64) -> Self {
        let lost = |sample: &Sample| sample.delivered != sample.sent;
        let fate = if lost(&ours) || lost(&theirs) {
            Fate::Lost
        } else if let Some(flaw) = ours.flaw.or(theirs.flaw) {
            Fate::Flawed(flaw)
        } else if foreign_share > max_foreign_share {
            Fate::Disturbed
        } else {
            Fate::Counted
        };
        Self {
            ours,
            theirs,
            foreign_share,
            fate,
        }
    }

    /// The sample of one side.
    #[must_use]
    pub fn of(&self, side: Side) -> &Sample {
        match side {
            Side::Ours => &self.ours,
            Side::Theirs => &self.theirs,
        }
    }

    /// How many times as fast ours is: above 1, it is faster.
    #[must_use]
    pub fn speed(&self) -> f64 {
        self.theirs.ns_per_unit() / self.ours.ns_per_unit()
    }

    /// The same by CPU time ([`Sample::cpu`]).
    #[must_use]
    pub fn cpu_speed(&self) -> f64 {
        self.theirs.cpu_ns_per_unit() / self.ours.cpu_ns_per_unit()
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ours, theirs, .. } = self;
        write!(
            f,
            "{:.1} ns against {:.1} ns, {:.3}x, others used {:.0}% of the CPUs: ",
            ours.ns_per_unit(),
            theirs.ns_per_unit(),
            self.speed(),
            self.foreign_share * 100.0,
        )?;
        match self.fate {
            Fate::Counted => f.write_str("counts"),
            Fate::Lost => write!(
                f,
                "VOID: {} of {} delivered and {} of {} delivered",
                ours.delivered, ours.sent, theirs.delivered, theirs.sent
            ),
            Fate::Flawed(why) => write!(f, "VOID: {why}"),
            Fate::Disturbed => f.write_str("does not count: the machine is busy"),
        }
    }
}

/// All rounds of a contest that were tried, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rounds {
    all: Vec<Round>,
    wanted: usize,
}

impl Rounds {
    /// Of rounds that there are already; `wanted` of them should count.
    #[must_use]
    pub fn new(all: Vec<Round>, wanted: usize) -> Self {
        Self { all, wanted }
    }

    /// Warms up, then measures until enough rounds count, in alternating order, and tells each as
    /// soon as it is there. Gives up after twice as many.
    ///
    /// # Errors
    ///
    /// What a [sample](Contest::sample) says.
    pub fn measure(
        contest: &mut dyn Contest,
        options: &Options,
        mut on_round: impl FnMut(&Round),
    ) -> Result<Self> {
        let wanted = options.rounds;
        let mut rounds = Self::new(Vec::new(), wanted);
        for _ in 0..options.warm_up {
            contest.sample(Side::Ours)?;
            contest.sample(Side::Theirs)?;
        }
        while rounds.counted() < wanted && rounds.all.len() < wanted * TRIES_PER_ROUND {
            let before = Load::now()?;
            // Neither side always follows the other.
            let (ours, theirs) = if rounds.all.len().is_multiple_of(2) {
                let ours = contest.sample(Side::Ours)?;
                (ours, contest.sample(Side::Theirs)?)
            } else {
                let theirs = contest.sample(Side::Theirs)?;
                (contest.sample(Side::Ours)?, theirs)
            };
            let foreign_share = Load::now()?.foreign_share_since(&before);
            let round = Round::new(ours, theirs, foreign_share, options.max_foreign_share);
            on_round(&round);
            rounds.all.push(round);
        }
        Ok(rounds)
    }

    /// Adds those of the same contest in another lab.
    pub fn add(&mut self, other: Self) {
        self.all.extend(other.all);
        self.wanted += other.wanted;
    }

    /// Every round, those that do not count too.
    #[must_use]
    pub fn all(&self) -> &[Round] {
        &self.all
    }

    /// How many count.
    #[must_use]
    pub fn counted(&self) -> usize {
        self.with(|fate| fate == Fate::Counted).count()
    }

    /// Whether enough of them count to say something.
    #[must_use]
    pub fn usable(&self) -> bool {
        self.wanted > 0 && self.counted() >= self.wanted
    }

    /// The rounds that figures are made of: those that count; where these are too few, those of a
    /// disturbed machine too, so that there is something to look at, though it is not
    /// [usable](Self::usable). Void ones never.
    pub fn figures(&self) -> impl Iterator<Item = &Round> {
        let usable = self.usable();
        self.with(move |fate| fate == Fate::Counted || (!usable && fate == Fate::Disturbed))
    }

    /// The rounds of a fate.
    pub fn with(&self, wanted: impl Fn(Fate) -> bool) -> impl Iterator<Item = &Round> {
        self.all.iter().filter(move |round| wanted(round.fate))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::contest::{Entry, Gate};

    fn sample(micros: u64) -> Sample {
        Sample {
            units: 1,
            elapsed: Duration::from_micros(micros),
            cpu: Duration::ZERO,
            sent: 10,
            delivered: 10,
            flaw: None,
            observed: Vec::new(),
        }
    }

    fn round(ours: Sample, foreign_share: f64) -> Round {
        Round::new(ours, sample(200), foreign_share, 0.1)
    }

    #[test]
    fn a_round_with_loss_is_void_however_quiet_it_was() {
        let mut lossy = sample(1);
        lossy.delivered = 9;
        assert_eq!(round(lossy.clone(), 0.0).fate, Fate::Lost);
        assert_eq!(Round::new(sample(1), lossy, 0.0, 0.1).fate, Fate::Lost);
        let mut more = sample(1);
        more.delivered = 11;
        assert_eq!(round(more, 0.0).fate, Fate::Lost);
        let mut flawed = sample(1);
        flawed.flaw = Some("no TSO");
        assert_eq!(round(flawed, 0.9).fate, Fate::Flawed("no TSO"));
        assert_eq!(round(sample(100), 0.11).fate, Fate::Disturbed);
        let good = round(sample(100), 0.1);
        assert_eq!(good.fate, Fate::Counted);
        assert!((good.speed() - 2.0).abs() < 1e-9);
    }

    #[test]
    fn figures_are_of_rounds_that_count() {
        let mut lossy = sample(1);
        lossy.delivered = 0;
        let all = || {
            let fates = [round(sample(100), 0.0), round(lossy.clone(), 0.0)];
            Vec::from(fates).into_iter().chain([round(sample(50), 0.5)])
        };
        let enough = Rounds::new(all().collect(), 1);
        assert!(enough.usable());
        let speeds: Vec<_> = enough.figures().map(Round::speed).collect();
        assert_eq!(speeds, [2.0]);
        let few = Rounds::new(all().collect(), 2);
        assert!(!few.usable());
        let speeds: Vec<_> = few.figures().map(Round::speed).collect();
        assert_eq!(speeds, [2.0, 4.0]);
        assert!(!Rounds::new(Vec::new(), 0).usable());
    }

    #[test]
    fn every_lab_has_its_rounds() {
        let of_lab = |micros| Rounds::new(vec![round(sample(micros), 0.0)], 1);
        let mut rounds = Rounds::default();
        for micros in [100, 50] {
            rounds.add(of_lab(micros));
        }
        assert!(rounds.usable());
        assert_eq!(rounds.figures().count(), 2);
        rounds.add(Rounds::new(Vec::new(), 1));
        assert!(!rounds.usable(), "one of the labs was too busy");
    }

    /// Loses something in every so many-th round, the warm-up included.
    struct Leaky {
        every: usize,
        samples: Vec<Side>,
    }

    impl Contest for Leaky {
        fn ours(&self) -> Entry {
            Entry::new("datapath", [("flows", json!(1))])
        }

        fn theirs(&self) -> Entry {
            Entry::new("plain", [])
        }

        fn against(&self) -> &'static str {
            "plain"
        }

        fn gate(&self) -> Option<Gate> {
            Some(Gate::SpeedAtLeast(1.0))
        }

        fn sample(&mut self, side: Side) -> Result<Sample> {
            let round = self.samples.len() / 2;
            self.samples.push(side);
            let mut sample = sample(100);
            if round.is_multiple_of(self.every) {
                sample.delivered = 0;
            }
            Ok(sample)
        }
    }

    #[test]
    fn rounds_are_tried_again_but_not_for_ever() {
        let options = Options {
            rounds: 4,
            warm_up: 1,
            max_foreign_share: 1.0,
            ..Options::default()
        };
        let measure = |every| {
            let samples = Vec::new();
            let mut contest = Leaky { every, samples };
            let mut told = 0;
            let rounds = Rounds::measure(&mut contest, &options, |_| told += 1).unwrap();
            assert_eq!(told, rounds.all().len());
            (rounds, contest.samples)
        };
        let (rounds, samples) = measure(2);
        assert_eq!((rounds.all().len(), rounds.counted()), (7, 4));
        assert!(rounds.usable());
        let (ours, theirs) = (Side::Ours, Side::Theirs);
        assert_eq!(
            samples[..6],
            [ours, theirs, ours, theirs, theirs, ours],
            "a warm-up, and two rounds in turn"
        );
        let (rounds, _) = measure(1);
        assert_eq!((rounds.all().len(), rounds.counted()), (8, 0));
        assert!(!rounds.usable());
    }
}
