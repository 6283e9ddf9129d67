//! First packets of flows.

use std::rc::Rc;

use super::{
    established::NOT_BEGUN,
    lab::{Flows, Lab},
    site::{Site, against},
};
use crate::{
    contest::{Bounds, Contest, Entry, Gate, Sample, Side},
    error::Result,
    live::{Content, Generator, Order},
    machine::Machine,
};

/// Most flows of one sample.
pub(in crate::cases) const MAX_FLOWS: u32 = 1 << 17;
/// Seconds that such a flow of ours lives: longer than a sample takes.
pub(in crate::cases) const LIFETIME_S: u32 = 3;

/// One SYN of each of many flows. What they have left behind is cleared between samples.
#[derive(Debug)]
pub(in crate::cases) struct Fresh {
    ours: Burst,
    theirs: Burst,
    flows: Flows,
    bounds: Option<Bounds>,
}

#[derive(Debug)]
struct Burst {
    site: Site,
    ready: Option<(Rc<Lab>, Vec<Generator>)>,
}

impl Fresh {
    /// As many flows of both.
    pub(in crate::cases) fn new(
        (ours, theirs): (&Site, &Site),
        packets: u32,
        bounds: Option<Bounds>,
    ) -> Self {
        let burst = |site: &Site| Burst {
            site: site.clone(),
            ready: None,
        };
        Self {
            ours: burst(ours),
            theirs: burst(theirs),
            flows: Flows {
                content: Content::TcpSyn,
                ..Flows::of_udp(packets.min(MAX_FLOWS))
            },
            bounds,
        }
    }

    fn entry(&self, of: &Burst) -> Entry {
        of.site.entry("new", self.flows.count)
    }
}

impl Burst {
    fn begin(&mut self, flows: Flows, machine: &mut Machine) -> Result<()> {
        let lab = self.site.lab(machine)?;
        lab.catch(flows)?;
        let generators = lab.generators(flows, Order::Next)?;
        self.ready = Some((lab, generators));
        Ok(())
    }

    fn send(&mut self, flows: Flows) -> Result<Sample> {
        let (lab, generators) = self.ready.as_mut().ok_or(NOT_BEGUN)?;
        lab.forget()?;
        for generator in generators.iter_mut() {
            generator.seek(0)?;
        }
        let outcome = lab.send(generators, flows.count, || lab.taken())?;
        lab.check_unproven(flows)?;
        Ok(outcome.sample())
    }
}

impl Contest for Fresh {
    fn ours(&self) -> Entry {
        self.entry(&self.ours)
    }

    fn theirs(&self) -> Entry {
        self.entry(&self.theirs)
    }

    fn against(&self) -> &'static str {
        against(&self.ours.site, &self.theirs.site)
    }

    fn gate(&self) -> Option<Gate> {
        self.bounds.map(|bounds| bounds.gate)
    }

    fn goal(&self) -> Option<Gate> {
        self.bounds.and_then(|bounds| bounds.goal)
    }

    fn begin(&mut self, machine: &mut Machine) -> Result<()> {
        self.theirs.begin(self.flows, machine)?;
        if self.ours.site.is_alone() {
            self.theirs.ready = None;
        }
        self.ours.begin(self.flows, machine)
    }

    fn sample(&mut self, side: Side) -> Result<Sample> {
        let (this, other) = match side {
            Side::Ours => (&mut self.ours, &mut self.theirs),
            Side::Theirs => (&mut self.theirs, &mut self.ours),
        };
        if this.ready.is_none() && this.site.is_alone() {
            other.ready = None;
            this.begin(self.flows, &mut Machine::look()?)?;
        }
        this.send(self.flows)
    }
}
