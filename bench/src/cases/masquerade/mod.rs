//! Packets that leave the node behind its address.

pub(in crate::cases) mod established;
mod exhausted;
pub(in crate::cases) mod fresh;
pub(in crate::cases) mod lab;
pub(in crate::cases) mod site;
mod sockets;
mod tracked;
pub(in crate::cases) mod variant;

use self::{
    established::{Established, Kind},
    exhausted::Exhausted,
    fresh::Fresh,
    lab::Shape,
    site::Sites,
    variant::Variant,
};
use crate::{
    contest::{Bounds, Case, Contest, Gate},
    error::{Error, Result},
    machine::Machine,
    options::Options,
};

/// Established flows that it is measured with unless told.
const FLOWS: [u32; 4] = [1, 255, 16_384, 1 << 20];
/// Flows to one destination: 93 % of the ports of one address.
const FLOWS_TO_ONE: u32 = 60_000;
/// From here on ours is held against few flows of its own, too.
const MANY: u32 = 1 << 18;
const FEW: u32 = 255;

/// `masquerade`: short UDP frames of four pods, which share their source ports, out of the uplink
/// behind the node's address, on one CPU; against a kernel that routes and has the usual rules.
#[derive(Clone, Copy, Debug)]
pub struct Masquerade;

impl Case for Masquerade {
    fn name(&self) -> &'static str {
        "masquerade"
    }

    fn about(&self) -> &'static str {
        "64-byte UDP frames of four pods out behind the node's address, against netfilter"
    }

    fn unit(&self) -> &'static str {
        "packet"
    }

    fn takes_uplink(&self) -> bool {
        true
    }

    fn prepare(&self, options: &Options, _: &mut Machine) -> Result<Vec<Box<dyn Contest>>> {
        let others = Variant::of_names(&options.against)?;
        let patterns = patterns(options)?;
        let packets = options.packets;
        let mut flows = if options.flows.is_empty() {
            FLOWS.to_vec()
        } else {
            options.flows.clone()
        };
        flows.sort_unstable();
        flows.dedup();
        let mut sites = Sites::on(options.uplink.as_ref());
        let mut contests: Vec<Box<dyn Contest>> = Vec::new();
        for pattern in patterns {
            let kind = match pattern {
                Pattern::Established => Kind::Established,
                Pattern::Unproven => Kind::Unproven,
                Pattern::OneDestination => Kind::OneDestination,
                Pattern::New => {
                    let of = |variant| Shape {
                        pending_s: fresh::LIFETIME_S,
                        ..Shape::new(variant, packets.min(fresh::MAX_FLOWS))
                    };
                    let ours = sites.of(of(Variant::Datapath));
                    for &other in &others {
                        let theirs = sites.of(of(other));
                        let bound = other.has_conntrack().then_some(Bounds {
                            gate: Gate::SpeedAtLeast(2.5),
                            goal: Some(Gate::SpeedAtLeast(3.5)),
                        });
                        contests.push(Box::new(Fresh::new((&ours, &theirs), packets, bound)));
                    }
                    continue;
                }
                Pattern::Exhausted => {
                    let site = sites.of(Shape {
                        nat_ports: Some(exhausted::RANGE),
                        ..Shape::new(Variant::Datapath, 1 << 16)
                    });
                    contests.push(Box::new(Exhausted::new(&site, packets)));
                    continue;
                }
            };
            let flows = match pattern {
                Pattern::Established => flows.clone(),
                Pattern::OneDestination => vec![FLOWS_TO_ONE],
                _ => vec![flows.iter().copied().find(|&flows| flows > 1).unwrap_or(1)],
            };
            for flows in flows {
                // Twice the room for all: no pod has half of it.
                let room = match pattern {
                    Pattern::OneDestination => 2 * flows,
                    // A table that is full to the last entry refuses some.
                    _ if flows >= MANY => flows + flows / 16,
                    _ => flows,
                };
                let ours = sites.with_room(Variant::Datapath, room);
                for &other in &others {
                    let theirs = sites.with_room(other, room);
                    let contest = Established::new(kind, (&ours, &theirs), flows, packets);
                    contests.push(Box::new(contest));
                }
                if pattern == Pattern::Established && flows >= MANY {
                    let few = (&sites.with_room(Variant::Datapath, FEW), FEW);
                    let contest = Established::many_and_few((&ours, flows), few, packets);
                    contests.push(Box::new(contest));
                }
            }
        }
        Ok(contests)
    }
}

/// A pattern of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pattern {
    Established,
    Unproven,
    New,
    OneDestination,
    Exhausted,
}

impl Pattern {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Established, "established"),
        (Self::Unproven, "unproven"),
        (Self::New, "new"),
        (Self::OneDestination, "one-destination"),
        (Self::Exhausted, "exhausted"),
    ];
}

/// Those that are wanted.
fn patterns(options: &Options) -> Result<Vec<Pattern>> {
    let names = &options.patterns;
    if names.is_empty() {
        let all = Pattern::ALL.into_iter().map(|(pattern, _)| pattern);
        return Ok(if options.flows.is_empty() {
            all.collect()
        } else {
            vec![Pattern::Established]
        });
    }
    let find = |name: &String| {
        let mut all = Pattern::ALL.into_iter();
        let found = all.find(|(_, known)| known == name);
        found
            .map(|(pattern, _)| pattern)
            .ok_or_else(|| Error::Invalid {
                what: "pattern",
                value: name.clone(),
                rule: "established, unproven, new, one-destination or exhausted",
            })
    };
    names.iter().map(find).collect()
}
