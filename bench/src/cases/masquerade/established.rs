//! Packets of flows that are established.

use std::rc::Rc;

use datapath_kern::stage::ports::{OPEN_PROBES, RESERVE_PROBES};

use super::{
    lab::{Flows, Lab},
    site::{Site, against},
    variant::Variant,
};
use crate::{
    contest::{Bounds, Contest, Entry, Gate, Sample, Side},
    error::{Error, Result},
    live::{Generator, Order},
    machine::Machine,
};

/// How flows have come to be, and what may become of their packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cases) enum Kind {
    /// Answered and confirmed.
    Established,
    /// Nobody has answered.
    Unproven,
    /// Answered and confirmed, as many as there are ports for.
    OneDestination,
}

impl Kind {
    pub(in crate::cases) const fn name(self) -> &'static str {
        match self {
            Self::Established => "established",
            Self::Unproven => "unproven",
            Self::OneDestination => "one-destination",
        }
    }
}

/// Flows on a site, with what sends frames of them once they are open.
#[derive(Debug)]
struct Stream {
    site: Site,
    kind: Kind,
    flows: Flows,
    /// Flows that there was no port for when they were opened last.
    portless: u32,
    ready: Option<Ready>,
}

#[derive(Debug)]
struct Ready {
    lab: Rc<Lab>,
    generators: Vec<Generator>,
}

impl Stream {
    fn new(site: &Site, kind: Kind, flows: u32) -> Self {
        let flows = match kind {
            Kind::Established => Flows::of_udp(flows),
            // Those may be established already.
            Kind::Unproven => Flows::of_others(flows),
            Kind::OneDestination => Flows::to_one_destination(flows),
        };
        Self {
            site: site.clone(),
            kind,
            flows,
            portless: 0,
            ready: None,
        }
    }

    fn begin(&mut self, machine: &mut Machine) -> Result<()> {
        let lab = self.site.lab(machine)?;
        match self.kind {
            Kind::Established => lab.establish(self.flows)?,
            Kind::Unproven => lab.begin_unanswered(self.flows)?,
            Kind::OneDestination => self.portless = lab.establish_most(self.flows)?,
        }
        let generators = lab.generators(self.flows, Order::Random)?;
        self.ready = Some(Ready { lab, generators });
        Ok(())
    }

    fn sample(&self, frames: u32) -> Result<Sample> {
        let Ready { lab, generators } = self.ready.as_ref().ok_or(NOT_BEGUN)?;
        let ours = self.site.variant() == Variant::Datapath;
        let arrived = || {
            let taken = lab.taken()?;
            // What is refused for want of a port has arrived at what it was measured for.
            let refused = if ours && self.portless > 0 {
                lab.refused()?
            } else {
                0
            };
            Ok(taken + refused)
        };
        let outcome = lab.send(generators, frames, arrived)?;
        match self.kind {
            Kind::Established => lab.check(self.flows)?,
            Kind::Unproven => lab.check_unproven(self.flows)?,
            Kind::OneDestination => {}
        }
        Ok(outcome.sample())
    }

    fn inspect(&self, frames: u32) -> Result<Vec<(&'static str, f64)>> {
        let Ready { lab, generators } = self.ready.as_ref().ok_or(NOT_BEGUN)?;
        let mut seen = lab.programs(generators, frames)?;
        if self.kind == Kind::OneDestination {
            seen.push(("flows without a port", f64::from(self.portless)));
        }
        Ok(seen)
    }

    /// Whether more flows of ours have no port than the search allows for.
    fn searches_badly(&self) -> bool {
        self.kind == Kind::OneDestination && f64::from(self.portless) > portless_at_most(self.flows)
    }
}

pub(in crate::cases) const NOT_BEGUN: Error = Error::Incomplete {
    program: "generator",
    missing: "flows: the contest has not begun",
};

/// How many flows to one destination may end without a port: those of the first pod keep theirs, and
/// each of the others misses with all its probes where as many ports are taken as flows are before
/// it. Four standard deviations more may be chance.
fn portless_at_most(flows: Flows) -> f64 {
    let (first, last) = (1024, 65_535);
    let ports = f64::from(last - first);
    let probes = i32::try_from(OPEN_PROBES + RESERVE_PROBES).unwrap_or(i32::MAX);
    let missing = (flows.of_pod(0)..flows.count)
        .map(|taken| (f64::from(taken) / ports).min(1.0).powi(probes));
    let expected: f64 = missing.sum();
    expected + 4.0 * expected.sqrt() + 1.0
}

/// Flows of ours against somebody else's, or against other flows of ours.
#[derive(Debug)]
pub(in crate::cases) struct Established {
    ours: Stream,
    theirs: Stream,
    against: &'static str,
    bounds: Option<Bounds>,
    packets: u32,
}

impl Established {
    /// As many flows of both.
    pub(in crate::cases) fn new(
        kind: Kind,
        (ours, theirs): (&Site, &Site),
        flows: u32,
        packets: u32,
    ) -> Self {
        let bounds = match kind {
            Kind::Established => Some(bounds(flows)),
            Kind::OneDestination => Some((1.0, None)),
            Kind::Unproven => None,
        };
        let bounds = bounds.filter(|_| theirs.variant().has_conntrack());
        let bounds = bounds.map(|(gate, goal)| Bounds {
            gate: Gate::SpeedAtLeast(gate),
            goal: goal.map(Gate::SpeedAtLeast),
        });
        Self::held_to((ours, theirs), flows, packets, kind, bounds)
    }

    /// As many flows of both, and these bounds.
    pub(in crate::cases) fn held_to(
        (ours, theirs): (&Site, &Site),
        flows: u32,
        packets: u32,
        kind: Kind,
        bounds: Option<Bounds>,
    ) -> Self {
        Self {
            ours: Stream::new(ours, kind, flows),
            theirs: Stream::new(theirs, kind, flows),
            against: against(ours, theirs),
            bounds,
            packets,
        }
    }

    /// Many flows of ours against few of ours.
    pub(in crate::cases) fn many_and_few(
        (many_on, many): (&Site, u32),
        (few_on, few): (&Site, u32),
        packets: u32,
    ) -> Self {
        Self {
            ours: Stream::new(many_on, Kind::Established, many),
            theirs: Stream::new(few_on, Kind::Established, few),
            against: "few-flows",
            bounds: Some(Bounds {
                gate: Gate::CostAtMost(2.0),
                goal: Some(Gate::CostAtMost(1.6)),
            }),
            packets,
        }
    }

    fn side(&self, side: Side) -> &Stream {
        match side {
            Side::Ours => &self.ours,
            Side::Theirs => &self.theirs,
        }
    }

    /// Makes the flows of a side ready again where the other's lab has taken their place.
    fn turn_to(&mut self, side: Side) -> Result<()> {
        let (this, other) = match side {
            Side::Ours => (&mut self.ours, &mut self.theirs),
            Side::Theirs => (&mut self.theirs, &mut self.ours),
        };
        if this.ready.is_none() && this.site.is_alone() {
            other.ready = None;
            this.begin(&mut Machine::look()?)?;
        }
        Ok(())
    }

    fn entry(&self, side: Side) -> Entry {
        let stream = self.side(side);
        stream.site.entry(stream.kind.name(), stream.flows.count)
    }
}

/// How many times as fast ours must be with so many flows, and should be.
fn bounds(flows: u32) -> (f64, Option<f64>) {
    match flows {
        0..=15 => (1.8, Some(2.1)),
        16..=4095 => (2.0, Some(2.4)),
        4096..=262_143 => (1.9, Some(2.3)),
        _ => (2.0, Some(2.5)),
    }
}

impl Contest for Established {
    fn ours(&self) -> Entry {
        self.entry(Side::Ours)
    }

    fn theirs(&self) -> Entry {
        self.entry(Side::Theirs)
    }

    fn against(&self) -> &'static str {
        self.against
    }

    fn gate(&self) -> Option<Gate> {
        self.bounds.map(|bounds| bounds.gate)
    }

    fn goal(&self) -> Option<Gate> {
        self.bounds.and_then(|bounds| bounds.goal)
    }

    fn miss(&self) -> Option<&'static str> {
        let sentence = "more flows have no port than the number of probes allows for";
        self.ours.searches_badly().then_some(sentence)
    }

    fn begin(&mut self, machine: &mut Machine) -> Result<()> {
        self.theirs.begin(machine)?;
        if self.ours.site.is_alone() {
            self.theirs.ready = None;
        }
        self.ours.begin(machine)
    }

    fn sample(&mut self, side: Side) -> Result<Sample> {
        self.turn_to(side)?;
        self.side(side).sample(self.packets)
    }

    fn inspect(&mut self, side: Side) -> Result<Vec<(&'static str, f64)>> {
        self.turn_to(side)?;
        self.side(side).inspect(self.packets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_run_short_only_near_the_end() {
        let few = portless_at_most(Flows::to_one_destination(32_000));
        let many = portless_at_most(Flows::to_one_destination(60_000));
        assert!(few < 2.0, "{few}");
        // The sum of (k / 64511)^32 for k from 15000 to 60000 is 180.
        assert!((200.0..260.0).contains(&many), "{many}");
    }
}
