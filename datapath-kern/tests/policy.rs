//! Policy on every way through the datapath: who is asked, what is said, what is remembered, counted
//! and told of it.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod support;

use datapath_kern::abi::event::flags as told;
use datapath_kern::abi::flow::verdict;
use datapath_kern::abi::metric::Direction::{self, Egress};
use datapath_kern::abi::policy::{matched, word};
use datapath_kern::host::Host;
use datapath_kern::packet::Family::{self, V4, V6};
use datapath_kern::verdict::{DropReason, Ruling};
use rstest::rstest;
use support::frame::{ACK, SYN, Tuple};
use support::policy::{self, direction_of, needs, switch};
use support::ways::{Asked, Path};
use support::{Out, entry};

/// What the rules of one end say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    /// Nothing: it needs none.
    Unasked,
    Allowed,
    /// Nothing, where something would be needed.
    Nothing,
    Denied,
    /// As the two before, of an endpoint that is audited.
    NothingAudited,
    DeniedAudited,
}

const SAID: [Said; 6] = [
    Said::Unasked,
    Said::Allowed,
    Said::Nothing,
    Said::Denied,
    Said::NothingAudited,
    Said::DeniedAudited,
];

impl Said {
    /// Writes rules of an end; `slot` names set, class and rule.
    fn write(self, host: &Host, (slot, direction, identity): (u32, Direction, u32)) {
        let set = 10 + slot;
        let class = 100 + slot;
        let audit = if matches!(self, Self::NothingAudited | Self::DeniedAudited) {
            word::AUDIT
        } else {
            0
        };
        policy::peer(host, set, direction, identity, class);
        // About another port, which must not count.
        policy::port(host, class, policy::TCP, 81, verdict::ALLOW, 9999);
        match self {
            Self::Unasked | Self::Nothing | Self::NothingAudited => {}
            Self::Allowed => policy::port(host, class, policy::TCP, 80, verdict::ALLOW, class),
            Self::Denied | Self::DeniedAudited => {
                policy::port(host, class, policy::TCP, 80, verdict::DENY, class);
            }
        }
        let bits = if self == Self::Unasked {
            0
        } else {
            needs(direction)
        };
        switch(host, slot, bits | audit | set);
    }

    const fn denies(self) -> Option<DropReason> {
        match self {
            Self::Nothing => Some(DropReason::PolicyDenied),
            Self::Denied => Some(DropReason::PolicyDeniedByRule),
            _ => None,
        }
    }

    /// What is counted, told, and by which rule.
    const fn ruling(self, slot: u32) -> Option<(Ruling, u8, u32)> {
        Some(match self {
            Self::Unasked => return None,
            Self::Allowed => (Ruling::Allowed, verdict::ALLOW, 100 + slot),
            Self::Nothing => (Ruling::Denied, verdict::DENY, 0),
            Self::Denied => (Ruling::Denied, verdict::DENY, 100 + slot),
            Self::NothingAudited => (Ruling::Audited, verdict::AUDIT, 0),
            Self::DeniedAudited => (Ruling::Audited, verdict::AUDIT, 100 + slot),
        })
    }
}

/// All that may be said by the ends that are asked.
fn combinations(asked: &Asked) -> Vec<Vec<Said>> {
    asked.iter().fold(vec![vec![]], |before, _| {
        let longer = |so_far: &Vec<Said>| SAID.map(|said| [so_far.as_slice(), &[said]].concat());
        before.iter().flat_map(longer).collect()
    })
}

/// Every way, asked of every end, with every answer: the packet goes on or not, and what is
/// remembered, counted and told is what was said.
#[rstest]
fn every_way_asks_the_ends_that_are_here(
    #[values(V4, V6)] family: Family,
    #[values(
        Path::PodToPod,
        Path::PodToPeer,
        Path::PodToWorld,
        Path::PodToHost,
        Path::PeerToPod,
        Path::PeerToHost,
        Path::WorldToPod,
        Path::NativePeerToPod,
        Path::HostToPod,
        Path::HostToPeer,
        Path::StackToPod,
        Path::HostDnatToPod,
        Path::PodByStackToPod,
        Path::PodByStackToWorld,
        Path::HostToWorld,
        Path::WorldToHost
    )]
    path: Path,
) {
    let asked = path.asked();
    for said in combinations(&asked) {
        let host = path.host();
        for (said, end) in said.iter().zip(&asked) {
            said.write(&host, *end);
        }
        let tuple = path.tuple(family);
        let out = path.send(&host, &tuple);
        check(&host, path, &tuple, &asked, &said, &out);
    }
}

#[track_caller]
fn check(host: &Host, path: Path, tuple: &Tuple, asked: &Asked, said: &[Said], out: &Out) {
    let case = format!("{path:?} {said:?}");
    // The first that denies ends it: nobody is asked after that.
    let ends = said.iter().position(|said| said.denies().is_some());
    let heard = &said[..ends.map_or(said.len(), |last| last + 1)];
    let denied = ends.and_then(|last| said[last].denies());
    assert_eq!(out.reason, denied, "{case}");
    let expected: Vec<_> = heard
        .iter()
        .zip(asked)
        .filter_map(|(said, end)| Some((end.1, said.ruling(end.0)?)))
        .collect();
    let counted: Vec<_> = expected
        .iter()
        .map(|(way, (how, ..))| (*way, *how))
        .collect();
    let mut found = out.rulings.clone();
    found.sort_by_key(|(direction, _)| *direction != Egress);
    assert_eq!(found, counted, "{case}");
    let events = expected
        .iter()
        .map(|(way, (_, how, rule))| (*way, *how, *rule));
    let told: Vec<_> = out
        .verdicts
        .iter()
        .map(|event| (direction_of(event), event.head.outcome, event.head.rule_id))
        .collect();
    assert_eq!(told, events.collect::<Vec<_>>(), "{case}");
    for event in &out.verdicts {
        assert_eq!(event.head.flags, told::SOURCE | told::DESTINATION, "{case}");
        let by_rule = event.head.rule_id != 0;
        assert_eq!(event.head.matched == matched::L3_L4, by_rule, "{case}");
    }
    if let Some(last) = ends {
        let slot = asked[last].0;
        let rule = said[last].ruling(slot).unwrap().2;
        assert_eq!(out.event.unwrap().head.rule_id, rule, "{case}");
        assert_eq!((host.flows.len(), host.pending.len()), (0, 0), "{case}");
        return;
    }
    let rulings: Vec<_> = expected.iter().map(|(_, ruling)| *ruling).collect();
    let audited = rulings.iter().any(|(how, ..)| *how == Ruling::Audited);
    let remembered = if audited {
        verdict::AUDIT
    } else {
        verdict::ALLOW
    };
    let rule = rulings.last().map_or(0, |(.., rule)| *rule);
    let unasked_host = path == Path::WorldToHost && said == [Said::Unasked];
    let found = entry(host, &path.key(tuple));
    if unasked_host {
        // Without a policy of its own the node has what comes to it as before.
        assert_eq!(found, None, "{case}");
        return;
    }
    let flow = found.unwrap();
    assert_eq!((flow.verdict, flow.rule_id), (remembered, rule), "{case}");
    let reply = path.answer(host, tuple, SYN | ACK);
    assert_eq!((reply.reason, reply.verdicts.len()), (None, 0), "{case}");
    let next = path.send(host, &tuple.with_flags(ACK));
    assert_eq!((next.reason, next.verdicts.len()), (None, 0), "{case}");
    assert_eq!(host.flows.len(), 2, "{case}");
}
