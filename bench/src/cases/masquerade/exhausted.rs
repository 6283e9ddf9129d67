//! Packets that there is no port for.

use std::rc::Rc;

use serde_json::json;

use super::{
    established::NOT_BEGUN,
    lab::{Flows, Lab, PODS},
    site::Site,
};
use crate::{
    contest::{Contest, Entry, Gate, Sample, Side},
    error::Result,
    live::{Generator, Order},
    machine::Machine,
};

/// Ports that ours hands out.
pub(in crate::cases) const RANGE: (u16, u16) = (50_000, 54_095);
const PORTS: u16 = RANGE.1 - RANGE.0 + 1;

/// Packets of flows that are refused, as every port to their destination is taken, against those of
/// established flows to another one.
#[derive(Debug)]
pub(in crate::cases) struct Exhausted {
    site: Site,
    packets: u32,
    ready: Option<Ready>,
}

#[derive(Debug)]
struct Ready {
    lab: Rc<Lab>,
    refused: Vec<Generator>,
    forwarded: Vec<Generator>,
}

impl Exhausted {
    pub(in crate::cases) fn new(site: &Site, packets: u32) -> Self {
        Self {
            site: site.clone(),
            packets,
            ready: None,
        }
    }

    /// Flows that are forwarded, to other destinations than the rest: there are ports for all.
    fn forwarded() -> Flows {
        Flows::of_others(u32::from(PORTS / 4))
    }

    /// Flows of all pods that compete for the ports to one destination, until all are taken.
    fn competitors() -> Flows {
        Flows::to_one_destination(u32::from(PORTS) * u32::from(PODS))
    }

    /// Others that come too late.
    fn latecomers() -> Flows {
        Flows {
            first_port: 30_000,
            ..Self::competitors()
        }
    }

    /// Everything that is established.
    fn all() -> Flows {
        Flows {
            count: u32::from(PORTS) + Self::forwarded().count,
            ..Self::forwarded()
        }
    }

    fn entry(packets: &'static str) -> Entry {
        let params = [
            ("pattern", json!("exhausted")),
            ("packets", json!(packets)),
            ("ports", json!(PORTS)),
        ];
        Entry::new("datapath", params)
    }
}

impl Contest for Exhausted {
    fn ours(&self) -> Entry {
        Self::entry("refused")
    }

    fn theirs(&self) -> Entry {
        Self::entry("forwarded")
    }

    fn against(&self) -> &'static str {
        "forwarded"
    }

    fn gate(&self) -> Option<Gate> {
        Some(Gate::CostAtMost(1.0))
    }

    fn begin(&mut self, machine: &mut Machine) -> Result<()> {
        let lab = self.site.lab(machine)?;
        lab.establish(Self::forwarded())?;
        lab.fill(Self::competitors(), Self::all().count)?;
        self.ready = Some(Ready {
            refused: lab.generators(Self::latecomers(), Order::Random)?,
            forwarded: lab.generators(Self::forwarded(), Order::Random)?,
            lab,
        });
        Ok(())
    }

    fn sample(&mut self, side: Side) -> Result<Sample> {
        let Ready {
            lab,
            refused,
            forwarded,
        } = self.ready.as_ref().ok_or(NOT_BEGUN)?;
        let taken = lab.taken()?;
        let mut sample = match side {
            Side::Ours => lab.send(refused, self.packets, || lab.refused())?.sample(),
            Side::Theirs => lab.send(forwarded, self.packets, || lab.taken())?.sample(),
        };
        lab.check(Self::all())?;
        if side == Side::Ours && lab.taken()? != taken {
            sample.flaw = Some("packets that there is no port for were forwarded");
        }
        Ok(sample)
    }

    fn inspect(&mut self, side: Side) -> Result<Vec<(&'static str, f64)>> {
        let Ready {
            lab,
            refused,
            forwarded,
        } = self.ready.as_ref().ok_or(NOT_BEGUN)?;
        match side {
            Side::Ours => lab.programs(refused, self.packets),
            Side::Theirs => lab.programs(forwarded, self.packets),
        }
    }
}
