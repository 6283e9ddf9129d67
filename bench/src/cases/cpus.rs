//! Two CPUs against one.

use std::{collections::BTreeSet, rc::Rc};

use datapath_conformance::family::Family;
use serde_json::json;

use super::lane::{self, Lane, Outcome, Path};
use crate::{
    affinity,
    contest::{Case, Contest, Entry, Gate, Sample, Side},
    error::{Error, Result},
    live::Sink,
    machine::Machine,
    options::Options,
    rig::Rig,
};

/// Paths that two pods of a node share an end of.
const PATHS: [Path; 2] = [Path::Encap, Path::Masquerade];

/// `cpus`: two pods send established UDP flows off the node, each on a CPU of its own, at once
/// or one after the other. Twice the speed is what two CPUs could do at best.
///
/// Anything else that runs on the machine takes from both at once, but not from one alone, which
/// then runs beside it: with two CPUs, this can be measured on a quiet machine only.
///
/// CPU time per packet does not depend on what else runs: a ratio of 1 by CPU time says that two at
/// once are in nobody's way.
#[derive(Clone, Copy, Debug)]
pub struct Cpus;

impl Case for Cpus {
    fn name(&self) -> &'static str {
        "cpus"
    }

    fn about(&self) -> &'static str {
        "two CPUs forwarding at once, against one at a time"
    }

    fn unit(&self) -> &'static str {
        "packet"
    }

    fn prepare(&self, options: &Options, machine: &mut Machine) -> Result<Vec<Box<dyn Contest>>> {
        let usable = affinity::usable()?;
        let &[one, other, ..] = usable.as_slice() else {
            return Err(Error::Invalid {
                what: "number of CPUs",
                value: usable.len().to_string(),
                rule: "this bench needs two: run it elsewhere, or let this process use another",
            });
        };
        let flows = options.few_flows()?;
        let rig = Rc::new(Rig::datapath(options.underlay)?);
        rig.describe("datapath", machine)?;
        let mut contests: Vec<Box<dyn Contest>> = Vec::new();
        for path in PATHS {
            let open = |pod| Lane::open(&rig, path, options.family, pod, flows);
            let lanes = [open(1)?, open(2)?];
            contests.push(Box::new(Pair {
                rig: Rc::clone(&rig),
                path,
                lanes,
                cpus: [one, other],
                packets: options.packets,
                flows,
                family: options.family,
            }));
        }
        Ok(contests)
    }
}

struct Pair {
    rig: Rc<Rig>,
    path: Path,
    lanes: [Lane; 2],
    cpus: [usize; 2],
    packets: u32,
    flows: u16,
    family: Family,
}

impl Pair {
    fn entry(&self, cpus: usize) -> Entry {
        let params = [
            ("path", json!(self.path.name())),
            ("family", json!(self.family)),
            ("flows", json!(self.flows)),
            ("cpus", json!(cpus)),
        ];
        Entry::new("datapath", params)
    }
}

impl Contest for Pair {
    fn ours(&self) -> Entry {
        self.entry(2)
    }

    fn theirs(&self) -> Entry {
        self.entry(1)
    }

    fn against(&self) -> &'static str {
        "one-cpu"
    }

    fn gate(&self) -> Option<Gate> {
        Some(Gate::SpeedAtLeast(1.8))
    }

    fn sample(&mut self, side: Side) -> Result<Sample> {
        let [first, second] = &self.lanes;
        let [one, other] = self.cpus;
        let (namespace, interface) = self.path.end(&self.rig)?;
        let lengths = [first.length_at_end(), second.length_at_end()];
        let sink = Sink::attach(namespace, interface, &BTreeSet::from(lengths))?;
        let send = |lanes: &[(&Lane, usize)]| lane::send(&self.rig, &sink, lanes, self.packets);
        let runs: Vec<Outcome> = match side {
            Side::Ours => vec![send(&[(first, one), (second, other)])?],
            Side::Theirs => vec![send(&[(first, one)])?, send(&[(second, other)])?],
        };
        for lane in &self.lanes {
            lane.check(&self.rig)?;
        }
        Ok(Sample {
            units: runs.iter().map(|run| run.sent).sum(),
            elapsed: runs.iter().map(Outcome::time).sum(),
            cpu: runs.iter().map(|run| run.cpu).sum(),
            sent: runs.iter().map(|run| run.sent).sum(),
            delivered: runs.iter().map(|run| run.delivered).sum(),
            flaw: None,
            observed: Vec::new(),
        })
    }
}
