//! What a run has found: for programs (`bench/1`), and for people.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

use crate::{
    contest::{Contest, Entry, Gate, Sample, Side},
    machine::Machine,
    round::{Fate, Round, Rounds},
    stats::{Quartiles, Spread},
};

/// What a run has found. As JSON it is the format `bench/1`:
///
/// ```json
/// {"format": "bench/1", "machine": {"kernel": "6.12.0", ...}, "results": [
///   {"case": "stream", "variant": "datapath", "params": {"mebibytes": 64}, "unit": "KiB",
///    "rounds": 20, "ns_per_packet": {"min": 180.1, "median": 190.2, "max": 201.0},
///    "cpu_ns_per_packet": {"min": 210.5, "median": 220.9, "max": 231.8},
///    "loss": 0.0, "usable": true, "void": {"lost": 0, "flawed": 0, "disturbed": 2},
///    "ratio": {"plain": {"median": 1.02, "q1": 1.0, "q3": 1.04}},
///    "cpu_ratio": {"plain": {"median": 1.01, "q1": 1.0, "q3": 1.02}},
///    "gate": {"kind": "speed-at-least", "bound": 0.95, "passed": true},
///    "observed": {"mean_frame_bytes": 40123.0}}, ...]}
/// ```
///
/// `ns_per_packet` is the time for one `unit` of the case's work; a ratio above 1 means that ours
/// is faster by that factor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// `bench/1`.
    pub format: &'static str,
    /// What it was measured on.
    pub machine: Machine,
    /// One of every variant and set of parameters.
    pub results: Vec<Row>,
    /// What the machine as it is set up did not allow.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<Skipped>,
}

/// A contest that was not held.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Skipped {
    /// The case.
    pub case: &'static str,
    /// What it would have been measured with.
    pub params: BTreeMap<&'static str, Value>,
    /// What it would have been measured against.
    pub against: &'static str,
    /// Why, and what to do about it.
    pub reason: String,
}

/// The figures of one variant.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The case.
    pub case: &'static str,
    /// `datapath` is ours.
    pub variant: &'static str,
    /// What it was measured with.
    pub params: BTreeMap<&'static str, Value>,
    /// What `ns_per_packet` is per.
    pub unit: &'static str,
    /// Rounds that the figures are of.
    pub rounds: usize,
    /// Nanoseconds per unit; none where every round was void.
    pub ns_per_packet: Option<Spread>,
    /// Nanoseconds of CPU time per unit, as far as this process was charged for it
    /// ([`Sample::cpu`]).
    pub cpu_ns_per_packet: Option<Spread>,
    /// The part, from 0 to 1, of all that was sent in all rounds that did not arrive.
    pub loss: f64,
    /// Whether enough rounds count to say something.
    pub usable: bool,
    /// Rounds that do not count.
    pub void: Void,
    /// How many times as fast it is as another variant, of paired rounds, by the other's name.
    pub ratio: BTreeMap<&'static str, Quartiles>,
    /// The same by CPU time, which is not judged.
    pub cpu_ratio: BTreeMap<&'static str, Quartiles>,
    /// What it is held to.
    pub gate: Option<GateResult>,
    /// Medians of what else was seen.
    pub observed: BTreeMap<&'static str, f64>,
    /// Why rounds were flawed, or the gate missed whatever the speed.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub flaws: BTreeSet<&'static str>,
}

/// How many rounds do not count, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Void {
    /// Something did not arrive.
    pub lost: usize,
    /// Something else was measured.
    pub flawed: usize,
    /// The machine was busy with something else.
    pub disturbed: usize,
}

/// A bound and what came of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct GateResult {
    /// `speed-at-least` or `cost-at-most`.
    pub kind: &'static str,
    /// The factor.
    pub bound: f64,
    /// Whether the median keeps to it, in a usable run; none where the run is not usable.
    pub passed: Option<bool>,
    /// The factor that is aimed at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goal: Option<f64>,
    /// Whether the median reaches that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reached: Option<bool>,
    #[serde(skip)]
    pub(crate) gate: Gate,
}

impl Report {
    /// Begins a report.
    #[must_use]
    pub fn new(machine: Machine) -> Self {
        Self {
            format: "bench/1",
            machine,
            results: Vec::new(),
            skipped: Vec::new(),
        }
    }

    /// Adds both sides of a contest.
    pub fn add(
        &mut self,
        case: &'static str,
        unit: &'static str,
        of: &dyn Contest,
        rounds: &Rounds,
        seen: [Vec<(&'static str, f64)>; 2],
    ) {
        let [seen_of_ours, seen_of_theirs] = seen;
        let speed = Quartiles::of(rounds.figures().map(Round::speed));
        let mut ours = row(case, unit, of.ours(), rounds, Side::Ours);
        ours.ratio = speed
            .map(|speed| (of.against(), speed))
            .into_iter()
            .collect();
        let cpu_speeds = rounds.figures().map(Round::cpu_speed);
        let cpu_speed = Quartiles::of(cpu_speeds.filter(|speed| speed.is_finite()));
        ours.cpu_ratio = cpu_speed
            .map(|speed| (of.against(), speed))
            .into_iter()
            .collect();
        let judged_speed = speed.filter(|_| rounds.usable());
        let gate = of.gate();
        ours.gate = gate.map(|gate| judged(gate, of.goal(), judged_speed));
        ours.observed.extend(seen_of_ours);
        if let Some(why) = of.miss() {
            ours.flaws.insert(why);
            if let Some(gate) = &mut ours.gate {
                gate.passed = gate.passed.map(|_| false);
            }
        }
        let mut theirs = row(case, unit, of.theirs(), rounds, Side::Theirs);
        theirs.observed.extend(seen_of_theirs);
        self.results.extend([ours, theirs]);
    }

    /// Adds a contest that could not be held, and why.
    pub fn skip(&mut self, case: &'static str, of: &dyn Contest, reason: String) {
        self.skipped.push(Skipped {
            case,
            params: of.ours().params,
            against: of.against(),
            reason,
        });
    }

    /// Whether every contest was held, and usable.
    #[must_use]
    pub fn usable(&self) -> bool {
        self.skipped.is_empty() && self.results.iter().all(|row| row.usable)
    }

    /// Whether every gate was passed; a run that is not usable passes none.
    #[must_use]
    pub fn passed(&self) -> bool {
        let mut gates = self.results.iter().filter_map(|row| row.gate);
        gates.all(|gate| gate.passed == Some(true))
    }
}

fn row(case: &'static str, unit: &'static str, entry: Entry, rounds: &Rounds, side: Side) -> Row {
    let samples = || rounds.all().iter().map(|round| round.of(side));
    let total = |part: fn(&Sample) -> u64| samples().map(part).sum::<u64>();
    let count = |fate: fn(Fate) -> bool| rounds.with(fate).count();
    let figures = || rounds.figures().map(|round| round.of(side));
    let mut observed: BTreeMap<_, Vec<f64>> = BTreeMap::new();
    for (what, value) in figures().flat_map(|sample| &sample.observed) {
        observed.entry(*what).or_default().push(*value);
    }
    let flaws = rounds.all().iter().filter_map(|round| match round.fate {
        Fate::Flawed(why) => Some(why),
        _ => None,
    });
    Row {
        case,
        variant: entry.variant,
        params: entry.params,
        unit,
        rounds: figures().count(),
        ns_per_packet: Spread::of(figures().map(Sample::ns_per_unit)),
        cpu_ns_per_packet: Spread::of(figures().map(Sample::cpu_ns_per_unit)),
        loss: lost_part(
            total(|sample| sample.sent),
            total(|sample| sample.delivered),
        ),
        usable: rounds.usable(),
        void: Void {
            lost: count(|fate| fate == Fate::Lost),
            flawed: count(|fate| matches!(fate, Fate::Flawed(_))),
            disturbed: count(|fate| fate == Fate::Disturbed),
        },
        ratio: BTreeMap::new(),
        cpu_ratio: BTreeMap::new(),
        gate: None,
        observed: observed
            .into_iter()
            .filter_map(|(what, values)| Some((what, Spread::of(values)?.median)))
            .collect(),
        flaws: flaws.collect(),
    }
}

#[allow(clippy::cast_precision_loss, reason = "it is a share, for reading")]
fn lost_part(sent: u64, delivered: u64) -> f64 {
    sent.saturating_sub(delivered) as f64 / sent.max(1) as f64
}

fn judged(gate: Gate, goal: Option<Gate>, speed: Option<Quartiles>) -> GateResult {
    let (kind, bound) = gate.parts();
    let passes = |gate: Gate| speed.map(|speed| gate.passes(speed.median));
    GateResult {
        kind,
        bound,
        passed: passes(gate),
        goal: goal.map(|goal| goal.parts().1),
        reached: goal.and_then(passes),
        gate,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::error;

    struct Fixed;

    impl Contest for Fixed {
        fn ours(&self) -> Entry {
            Entry::new("datapath", [("flows", json!(255))])
        }

        fn theirs(&self) -> Entry {
            Entry::new("plain", [("flows", json!(255))])
        }

        fn against(&self) -> &'static str {
            "plain"
        }

        fn gate(&self) -> Option<Gate> {
            Some(Gate::SpeedAtLeast(0.95))
        }

        fn sample(&mut self, _side: Side) -> error::Result<Sample> {
            Ok(sample(100, 100))
        }
    }

    fn sample(nanos: u64, delivered: u64) -> Sample {
        Sample {
            units: 1,
            elapsed: Duration::from_nanos(nanos),
            cpu: Duration::from_nanos(50),
            sent: 100,
            delivered,
            flaw: None,
            observed: vec![("mean_frame_bytes", 1500.0)],
        }
    }

    fn report(delivered: u64, foreign_share: f64) -> Report {
        let round = Round::new(sample(100, delivered), sample(90, 100), foreign_share, 0.1);
        let mut machine = Machine {
            kernel: "6.1.0".to_owned(),
            cpu_model: "A Fast One".to_owned(),
            cpus: 2,
            mitigations: BTreeMap::new(),
            offloads: BTreeMap::new(),
            mtu_bytes: BTreeMap::new(),
            uplink: None,
            tools: BTreeMap::new(),
            conntrack: BTreeMap::new(),
        };
        machine.mtu_bytes.insert("eth0 of n1".to_owned(), 1500);
        let mut report = Report::new(machine);
        report.add(
            "stream",
            "KiB",
            &Fixed,
            &Rounds::new(vec![round], 1),
            [Vec::new(), Vec::new()],
        );
        report
    }

    #[test]
    fn a_figure_below_its_bound_misses_the_gate() {
        let report = report(100, 0.0);
        assert!(report.usable() && !report.passed());
        let text = report.table();
        let line = "stream datapath (flows 255): speed 0.900x [0.900, 0.900] of plain \
                    (by CPU time speed 1.000x [1.000, 1.000]), speed at least 0.95x: MISSED";
        assert!(text.contains(line), "{text}");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["format"], "bench/1");
        let ours = &json["results"][0];
        assert_eq!(ours["variant"], "datapath");
        assert_eq!(ours["params"], json!({"flows": 255}));
        assert_eq!(ours["ns_per_packet"]["median"], 100.0);
        assert_eq!(ours["ratio"]["plain"]["median"], 0.9);
        assert_eq!(ours["gate"]["passed"], false);
        assert_eq!(ours["usable"], true);
        assert_eq!(ours["observed"]["mean_frame_bytes"], 1500.0);
        assert_eq!(json["results"][1]["variant"], "plain");
        assert_eq!(json["results"][1]["gate"], Value::Null);
    }

    #[test]
    fn what_was_lost_or_disturbed_passes_no_gate() {
        for (delivered, foreign_share, figure) in [(99, 0.0, false), (100, 0.5, true)] {
            let report = report(delivered, foreign_share);
            assert!(!report.usable() && !report.passed());
            let text = report.table();
            assert!(text.contains("NOT USABLE"), "{text}");
            let json = serde_json::to_value(&report).unwrap();
            let ours = &json["results"][0];
            assert_eq!(ours["ns_per_packet"].is_object(), figure);
            assert_eq!(ours["gate"]["passed"], Value::Null);
            assert_eq!(ours["loss"], if figure { 0.0 } else { 0.01 });
        }
    }
}
