//! What is measured against what, one pair of samples at a time.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde_json::Value;

use crate::{error::Result, machine::Machine, options::Options};

/// A bench that has a name: how to build its lab, and what to measure there.
pub trait Case {
    /// Its name on command lines and in reports.
    fn name(&self) -> &'static str;

    /// What it measures, in a sentence.
    fn about(&self) -> &'static str;

    /// What one unit of its work is called: the nanoseconds are per unit.
    fn unit(&self) -> &'static str;

    /// Whether it can be measured on a network card ([`Options::uplink`]).
    fn takes_uplink(&self) -> bool {
        false
    }

    /// Builds the lab, describes it in `machine`, brings up the flows and makes sure that they are
    /// established. The lab is taken down when the last contest is dropped.
    ///
    /// # Errors
    ///
    /// What the lab, the datapath or the kernel says.
    fn prepare(&self, options: &Options, machine: &mut Machine) -> Result<Vec<Box<dyn Contest>>>;
}

/// Two variants that are measured in turn, in one lab or in two of the same shape.
pub trait Contest {
    /// What is to be judged.
    fn ours(&self) -> Entry;

    /// What it is judged against.
    fn theirs(&self) -> Entry;

    /// Name of the other in `ratio` of the report.
    fn against(&self) -> &'static str;

    /// How good it must be; `None` where it is measured for information only.
    fn gate(&self) -> Option<Gate>;

    /// How good it should be.
    fn goal(&self) -> Option<Gate> {
        None
    }

    /// Why the gate is missed whatever the speed, once there are samples.
    fn miss(&self) -> Option<&'static str> {
        None
    }

    /// Makes everything ready for the first sample: builds what only this contest needs, describes
    /// it in `machine`, opens flows. Called once, before any sample.
    ///
    /// # Errors
    ///
    /// [`Error::Unfit`](crate::Error::Unfit) where the machine as it is set up does not allow it:
    /// the other contests go on. Anything else ends the run.
    fn begin(&mut self, machine: &mut Machine) -> Result<()> {
        let _ = machine;
        Ok(())
    }

    /// Looks closer at one side, in a way that would disturb a sample: what else was seen, by a name
    /// with its unit. Called once, after all samples.
    ///
    /// # Errors
    ///
    /// As [`Contest::sample`].
    fn inspect(&mut self, side: Side) -> Result<Vec<(&'static str, f64)>> {
        let _ = side;
        Ok(Vec::new())
    }

    /// Measures one side once.
    ///
    /// # Errors
    ///
    /// What keeps it from being measured at all. Loss is not among it, it is part of the sample.
    fn sample(&mut self, side: Side) -> Result<Sample>;
}

/// One of the two sides of a [`Contest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// [`Contest::ours`].
    Ours,
    /// [`Contest::theirs`].
    Theirs,
}

/// A variant in a report.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its name: `datapath` is ours.
    pub variant: &'static str,
    /// What it was measured with.
    pub params: BTreeMap<&'static str, Value>,
}

impl Entry {
    /// Names a variant and its parameters.
    #[must_use]
    pub fn new<const N: usize>(variant: &'static str, params: [(&'static str, Value); N]) -> Self {
        Self {
            variant,
            params: params.into(),
        }
    }
}

impl fmt::Display for Entry {
    /// The parameters only: both sides of a contest have most of them in common.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&list(&self.params))
    }
}

/// Parameters for people.
pub(crate) fn list(params: &BTreeMap<&'static str, Value>) -> String {
    let all = params.iter().map(|(name, value)| match value {
        Value::String(text) => format!("{name} {text}"),
        other => format!("{name} {other}"),
    });
    all.collect::<Vec<_>>().join(", ")
}

/// The result of one measurement of one side.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Units of work done.
    pub units: u64,
    /// How long they took.
    pub elapsed: Duration,
    /// What this process has used of all CPUs for them. Packets that the kernel has handled in
    /// another task's place are missing from it, so that it is no measure of its own; but it shows
    /// which of two variants costs more also where the machine is busy with something else.
    pub cpu: Duration,
    /// How much was sent, in whatever is counted: frames or bytes.
    pub sent: u64,
    /// How much of that arrived.
    pub delivered: u64,
    /// Why the figure is not what it pretends to be, although nothing was lost.
    pub flaw: Option<&'static str>,
    /// What else was seen, by a name with its unit.
    pub observed: Vec<(&'static str, f64)>,
}

impl Sample {
    /// Nanoseconds per unit of work.
    #[must_use]
    #[allow(
        clippy::cast_precision_loss,
        reason = "beyond 2^53 units a bench would run for years"
    )]
    pub fn ns_per_unit(&self) -> f64 {
        self.elapsed.as_secs_f64() * 1e9 / self.units.max(1) as f64
    }

    /// Nanoseconds of CPU time per unit of work.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "as above")]
    pub fn cpu_ns_per_unit(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e9 / self.units.max(1) as f64
    }
}

/// A bound for the median of paired ratios.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Gate {
    /// At least this many times as fast.
    SpeedAtLeast(f64),
    /// At most this many times as dear: time, latency, cost per packet.
    CostAtMost(f64),
}

/// How good a figure must be, and should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// The least that will do.
    pub gate: Gate,
    /// What is aimed at, if that is more.
    pub goal: Option<Gate>,
}

impl Gate {
    /// Tells whether a factor of speed, above 1 where ours is faster, is good enough.
    #[must_use]
    pub fn passes(self, speed: f64) -> bool {
        match self {
            Self::SpeedAtLeast(bound) => speed >= bound,
            Self::CostAtMost(bound) => speed.recip() <= bound,
        }
    }
}

impl Gate {
    /// What kind it is, in a word for programs, and its bound.
    pub(crate) fn parts(self) -> (&'static str, f64) {
        match self {
            Self::SpeedAtLeast(bound) => ("speed-at-least", bound),
            Self::CostAtMost(bound) => ("cost-at-most", bound),
        }
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SpeedAtLeast(bound) => write!(f, "speed at least {bound:.2}x"),
            Self::CostAtMost(bound) => write!(f, "cost at most {bound:.2}x"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_knows_speed_from_cost() {
        assert!(Gate::SpeedAtLeast(0.95).passes(0.95));
        assert!(!Gate::SpeedAtLeast(0.95).passes(0.94));
        assert!(Gate::CostAtMost(1.25).passes(0.81));
        assert!(!Gate::CostAtMost(1.25).passes(0.79));
        for gate in [Gate::SpeedAtLeast(0.5), Gate::CostAtMost(2.0)] {
            assert!(!gate.passes(f64::NAN));
        }
    }

    #[test]
    fn time_is_per_unit() {
        let sample = Sample {
            units: 4,
            elapsed: Duration::from_micros(1),
            cpu: Duration::from_micros(2),
            sent: 4,
            delivered: 4,
            flaw: None,
            observed: Vec::new(),
        };
        assert!((sample.ns_per_unit() - 250.0).abs() < 1e-9);
        assert!((sample.cpu_ns_per_unit() - 500.0).abs() < 1e-9);
    }
}
