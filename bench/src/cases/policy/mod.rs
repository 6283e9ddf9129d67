//! What rules cost that say what pods may begin.

pub(in crate::cases) mod rules;

use super::masquerade::{
    established::{Established, Kind},
    fresh::{self, Fresh},
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

/// Rules that it is measured with unless told.
const RULES: [u32; 3] = [100, 1000, 10_000];
/// Established flows that it is measured with unless told.
const FLOWS: u32 = 255;
/// How much dearer an established packet may be for any number of rules: none of them is looked at,
/// and more than this would show in 30 rounds.
const ESTABLISHED: Bounds = Bounds {
    gate: Gate::CostAtMost(1.05),
    goal: Some(Gate::CostAtMost(1.02)),
};
/// The same of the first packet of a flow.
const NEW: Bounds = Bounds {
    gate: Gate::CostAtMost(1.3),
    goal: None,
};

/// `policy`: frames of four pods that leave by the uplink, as one of many rules allows, against ours
/// without rules, and against netfilter with the same ones.
///
/// The rules allow single addresses one port each, but for the last two, by which all that is sent
/// goes out: the one netfilter comes to last.
#[derive(Clone, Copy, Debug)]
pub struct Policy;

impl Case for Policy {
    fn name(&self) -> &'static str {
        "policy"
    }

    fn about(&self) -> &'static str {
        "64-byte frames of four pods that one of many rules allows, against none, and netfilter"
    }

    fn unit(&self) -> &'static str {
        "packet"
    }

    fn prepare(&self, options: &Options, _: &mut Machine) -> Result<Vec<Box<dyn Contest>>> {
        let patterns = patterns(options)?;
        let others = others(options)?;
        let packets = options.packets;
        let flows = options.flows.first().copied().unwrap_or(FLOWS);
        let mut rules = if options.rules.is_empty() {
            RULES.to_vec()
        } else {
            options.rules.clone()
        };
        rules.sort_unstable();
        rules.dedup();
        let mut sites = Sites::on(None);
        let mut contests: Vec<Box<dyn Contest>> = Vec::new();
        for &new in &patterns {
            let mut site = |variant, rules| {
                let (room, pending_s) = if new {
                    (packets.min(fresh::MAX_FLOWS), fresh::LIFETIME_S)
                } else {
                    (1 << 16, Shape::new(variant, 0).pending_s)
                };
                sites.of(Shape {
                    pending_s,
                    rules,
                    ..Shape::new(variant, room)
                })
            };
            for &rules in &rules {
                let ours = site(Variant::Datapath, Some(rules));
                let mut theirs = vec![(site(Variant::Datapath, None), true)];
                theirs.extend(
                    others
                        .iter()
                        .map(|&other| (site(other, Some(rules)), false)),
                );
                for (theirs, itself) in &theirs {
                    let both = (&ours, theirs);
                    contests.push(if new {
                        let bounds = itself.then_some(NEW);
                        Box::new(Fresh::new(both, packets, bounds))
                    } else {
                        let bounds = itself.then_some(ESTABLISHED);
                        let kind = Kind::Established;
                        Box::new(Established::held_to(both, flows, packets, kind, bounds))
                    });
                }
            }
        }
        Ok(contests)
    }
}

/// Whether each of the patterns that are wanted is that of new flows.
fn patterns(options: &Options) -> Result<Vec<bool>> {
    if options.patterns.is_empty() {
        return Ok(vec![false, true]);
    }
    let find = |name: &String| match name.as_str() {
        "established" => Ok(false),
        "new" => Ok(true),
        _ => Err(Error::Invalid {
            what: "pattern",
            value: name.clone(),
            rule: "established or new",
        }),
    };
    options.patterns.iter().map(find).collect()
}

/// Who else has the same rules.
fn others(options: &Options) -> Result<Vec<Variant>> {
    if options.against.is_empty() {
        return Ok(vec![Variant::IptablesLegacy, Variant::IptablesNft]);
    }
    let others = Variant::of_names(&options.against)?;
    match others.iter().find(|other| !rules::has_them(**other)) {
        None => Ok(others),
        Some(other) => Err(Error::Invalid {
            what: "against",
            value: other.to_string(),
            rule: "policy is measured against iptables-legacy and iptables-nft",
        }),
    }
}
