//! First packets of flows.

use std::rc::Rc;

use serde_json::json;

use super::{
    established::NOT_BEGUN,
    lab::{Flows, Lab},
    site::Site,
};
use crate::{
    contest::{Contest, Entry, Gate, Sample, Side},
    error::Result,
    live::{Content, Generator, Order},
    machine::Machine,
};

/// Most flows of one sample.
pub(super) const MAX_FLOWS: u32 = 1 << 17;
/// Seconds that such a flow of ours lives: longer than a sample takes.
pub(super) const LIFETIME_S: u32 = 3;

/// One SYN of each of many flows. What they have left behind is cleared between samples.
#[derive(Debug)]
pub(super) struct Fresh {
    ours: Burst,
    theirs: Burst,
    flows: Flows,
}

#[derive(Debug)]
struct Burst {
    site: Site,
    ready: Option<(Rc<Lab>, Vec<Generator>)>,
}

impl Fresh {
    pub(super) fn new(ours: &Site, theirs: &Site, packets: u32) -> Self {
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
        }
    }

    fn entry(&self, of: &Burst) -> Entry {
        let params = [
            ("pattern", json!("new")),
            ("flows", json!(self.flows.count)),
        ];
        Entry::new(of.site.variant().name(), params)
    }

    fn judged(&self, bound: f64) -> Option<Gate> {
        let theirs = self.theirs.site.variant();
        theirs.has_conntrack().then_some(Gate::SpeedAtLeast(bound))
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
        self.theirs.site.variant().name()
    }

    fn gate(&self) -> Option<Gate> {
        self.judged(2.5)
    }

    fn goal(&self) -> Option<Gate> {
        self.judged(3.5)
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
