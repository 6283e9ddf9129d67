//! What a packet of IPv6 costs, against one of IPv4.

use std::{collections::BTreeSet, rc::Rc};

use datapath_conformance::family::Family;
use serde_json::json;

use super::lane::{self, Lane, Path};
use crate::{
    affinity,
    contest::{Case, Contest, Entry, Gate, Sample, Side},
    error::Result,
    live::Sink,
    machine::Machine,
    options::Options,
    rig::Rig,
};

/// `family`: established UDP flows along each path through the datapath, on one CPU, IPv6 against
/// IPv4. Both go through the same tunnel; and into and out of it once more, IPv6 in IPv6 against
/// IPv4 in IPv4.
#[derive(Clone, Copy, Debug)]
pub struct AddressFamily;

impl Case for AddressFamily {
    fn name(&self) -> &'static str {
        "family"
    }

    fn about(&self) -> &'static str {
        "a packet of IPv6 against one of IPv4, along each path of the datapath"
    }

    fn unit(&self) -> &'static str {
        "packet"
    }

    fn prepare(&self, options: &Options, machine: &mut Machine) -> Result<Vec<Box<dyn Contest>>> {
        let cpu = affinity::last()?;
        let flows = options.few_flows()?;
        let [over_ipv4, over_ipv6] = Family::ALL.map(Rig::datapath);
        let (over_ipv4, over_ipv6) = (Rc::new(over_ipv4?), Rc::new(over_ipv6?));
        over_ipv4.describe("datapath", machine)?;
        let usual = match options.underlay {
            Family::Ipv4 => &over_ipv4,
            Family::Ipv6 => &over_ipv6,
        };
        let same = Path::ALL.map(|path| (path, usual, usual));
        let throughout = [Path::Encap, Path::Decap].map(|path| (path, &over_ipv6, &over_ipv4));
        let mut contests: Vec<Box<dyn Contest>> = Vec::new();
        for (path, rig_of_ipv6, rig_of_ipv4) in same.into_iter().chain(throughout) {
            let measured = |rig, family| Measured::open(rig, path, family, flows);
            contests.push(Box::new(Families {
                path,
                ipv6: measured(rig_of_ipv6, Family::Ipv6)?,
                ipv4: measured(rig_of_ipv4, Family::Ipv4)?,
                packets: options.packets,
                flows,
                cpu,
            }));
        }
        Ok(contests)
    }
}

/// A family, and the lab that it is measured in.
struct Measured {
    family: Family,
    rig: Rc<Rig>,
    lane: Lane,
}

impl Measured {
    fn open(rig: &Rc<Rig>, path: Path, family: Family, flows: u16) -> Result<Self> {
        Ok(Self {
            family,
            lane: Lane::open(rig, path, family, 1, flows)?,
            rig: Rc::clone(rig),
        })
    }
}

struct Families {
    path: Path,
    ipv6: Measured,
    ipv4: Measured,
    packets: u32,
    flows: u16,
    cpu: usize,
}

impl Families {
    fn entry(&self, of: &Measured) -> Entry {
        let params = [
            ("path", json!(self.path.name())),
            ("family", json!(of.family)),
            ("flows", json!(self.flows)),
            ("underlay", json!(of.rig.underlay())),
        ];
        Entry::new("datapath", params)
    }
}

impl Contest for Families {
    fn ours(&self) -> Entry {
        self.entry(&self.ipv6)
    }

    fn theirs(&self) -> Entry {
        self.entry(&self.ipv4)
    }

    fn against(&self) -> &'static str {
        "ipv4"
    }

    fn gate(&self) -> Option<Gate> {
        Some(Gate::CostAtMost(1.25))
    }

    fn sample(&mut self, side: Side) -> Result<Sample> {
        let Measured { rig, lane, .. } = match side {
            Side::Ours => &self.ipv6,
            Side::Theirs => &self.ipv4,
        };
        let (namespace, interface) = self.path.end(rig)?;
        // Only for one family at a time: the other's frames would pay for the comparison.
        let lengths = BTreeSet::from([lane.length_at_end()]);
        let sink = Sink::attach(namespace, interface, &lengths)?;
        let outcome = lane::send(rig, &sink, &[(lane, self.cpu)], self.packets)?;
        lane.check(rig)?;
        Ok(Sample {
            units: outcome.sent,
            elapsed: outcome.time(),
            cpu: outcome.cpu,
            sent: outcome.sent,
            delivered: outcome.delivered,
            flaw: None,
            observed: Vec::new(),
        })
    }
}
