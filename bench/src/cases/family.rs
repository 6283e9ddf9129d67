//! What a packet of IPv6 costs, against one of IPv4.

use std::{collections::BTreeSet, rc::Rc};

use datapath_conformance::family::Family;
use serde_json::json;

use super::lane::{self, Lane, Path};
use crate::{
    contest::{Case, Contest, Entry, Gate, Sample, Side},
    error::Result,
    live::Sink,
    machine::Machine,
    options::Options,
    rig::Rig,
};

/// `family`: established UDP flows along each path through the datapath, on one CPU, IPv6 against
/// IPv4. Both go through the same tunnel.
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
        let cpu = machine.cpus.saturating_sub(1);
        let rig = Rc::new(Rig::datapath(options.underlay)?);
        rig.describe("datapath", machine)?;
        let mut contests: Vec<Box<dyn Contest>> = Vec::new();
        for path in Path::ALL {
            let open = |family| Lane::open(&rig, path, family, 1, options.flows);
            let (ipv4, ipv6) = (open(Family::Ipv4)?, open(Family::Ipv6)?);
            contests.push(Box::new(Families {
                rig: Rc::clone(&rig),
                path,
                ipv4,
                ipv6,
                packets: options.packets,
                flows: options.flows,
                cpu,
            }));
        }
        Ok(contests)
    }
}

struct Families {
    rig: Rc<Rig>,
    path: Path,
    ipv4: Lane,
    ipv6: Lane,
    packets: u32,
    flows: u16,
    cpu: usize,
}

impl Families {
    fn entry(&self, family: Family) -> Entry {
        let params = [
            ("path", json!(self.path.name())),
            ("family", json!(family)),
            ("flows", json!(self.flows)),
            ("underlay", json!(self.rig.underlay())),
        ];
        Entry::new("datapath", params)
    }
}

impl Contest for Families {
    fn ours(&self) -> Entry {
        self.entry(Family::Ipv6)
    }

    fn theirs(&self) -> Entry {
        self.entry(Family::Ipv4)
    }

    fn against(&self) -> &'static str {
        "ipv4"
    }

    fn gate(&self) -> Gate {
        Gate::CostAtMost(1.25)
    }

    fn sample(&mut self, side: Side) -> Result<Sample> {
        let lane = match side {
            Side::Ours => &self.ipv6,
            Side::Theirs => &self.ipv4,
        };
        let (namespace, interface) = self.path.end(&self.rig)?;
        // Only for one family at a time: the other's frames would pay for the comparison.
        let lengths = BTreeSet::from([lane.length_at_end()]);
        let sink = Sink::attach(namespace, interface, &lengths)?;
        let sent = lane::send(&self.rig, &sink, &[(lane, self.cpu)], self.packets)?;
        lane.check(&self.rig)?;
        Ok(Sample {
            units: sent.sent,
            elapsed: sent.elapsed.iter().sum::<std::time::Duration>() + sent.tail,
            sent: sent.sent,
            delivered: sent.delivered,
            flaw: None,
            observed: Vec::new(),
        })
    }
}
