//! Policy on every way through the datapath: who is asked, what is said, what is remembered, counted
//! and told of it.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod support;

use datapath_kern::abi::config::tunnel as mode;
use datapath_kern::abi::endpoint::identity;
use datapath_kern::abi::event::flags as told;
use datapath_kern::abi::flow::verdict;
use datapath_kern::abi::ipcache::IpEntry;
use datapath_kern::abi::metric::Direction::{self, Egress, Ingress};
use datapath_kern::abi::policy::{matched, word};
use datapath_kern::host::{Hook, Host, Prefix, plan};
use datapath_kern::packet::Family::{self, V4, V6};
use datapath_kern::verdict::{DropReason, Ruling};
use rstest::rstest;
use support::frame::{self, ACK, L4, SYN, Tuple};
use support::policy::{self, direction_of, needs, switch};
use support::sent::{from_host, from_uplink, kind_wrap};
use support::{Out, entry, from_pod, from_router, key, node, run, tunnel};

/// Identity of who is outside.
const OUTSIDE: u32 = identity::WORLD_IPV4;

/// A way through the datapath that a flow begins by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    PodToPod,
    PodToPeer,
    PodToWorld,
    PodToHost,
    PeerToPod,
    PeerToHost,
    WorldToPod,
    NativePeerToPod,
    HostToPod,
    HostToPeer,
    StackToPod,
    HostDnatToPod,
    PodByStackToPod,
    PodByStackToWorld,
    HostToWorld,
    WorldToHost,
}

/// The local ends that are asked about a flow: slot, direction, and the other side's identity.
type Asked = Vec<(u32, Direction, u32)>;

impl Path {
    fn host(self) -> Host {
        let mut host = node(1, V4);
        if self == Self::NativePeerToPod {
            host.config.tunnel = mode::NATIVE;
        }
        for family in [V4, V6] {
            let everything = if family == V4 { "0.0.0.0" } else { "::" };
            let everyone = IpEntry {
                identity: OUTSIDE,
                ..IpEntry::default()
            };
            let prefix = Prefix::new(everything.parse().unwrap(), 0);
            host.ipcache.borrow_mut().set(prefix, everyone);
        }
        host
    }

    fn tuple(self, family: Family) -> Tuple {
        let pod = |number| plan::pod(1, number, family);
        let (peers, outside) = (plan::pod(2, 1, family), plan::outside(family));
        let own = plan::gateway(1, family);
        let (source, destination) = match self {
            Self::PodToPod | Self::PodByStackToPod => (pod(1), pod(2)),
            Self::PodToPeer => (pod(1), peers),
            Self::PodToWorld | Self::PodByStackToWorld => (pod(1), outside),
            Self::PodToHost => (pod(1), own),
            Self::PeerToPod | Self::NativePeerToPod => (peers, pod(2)),
            Self::PeerToHost => (peers, own),
            Self::WorldToPod | Self::StackToPod | Self::HostDnatToPod => (outside, pod(2)),
            Self::HostToPod => (own, pod(2)),
            Self::HostToPeer => (own, peers),
            Self::HostToWorld => (plan::node(1, family), outside),
            Self::WorldToHost => (outside, plan::node(1, family)),
        };
        Tuple::new(source, destination, L4::Tcp(40_000, 80, SYN))
    }

    fn asked(self) -> Asked {
        let pod = |number| plan::pod_identity(1, number);
        let peers = plan::pod_identity(2, 1);
        match self {
            Self::PodToPod | Self::PodByStackToPod => {
                vec![(1, Egress, pod(2)), (2, Ingress, pod(1))]
            }
            Self::PodToPeer => vec![(1, Egress, peers)],
            Self::PodToWorld | Self::PodByStackToWorld => vec![(1, Egress, OUTSIDE)],
            Self::PodToHost => vec![(1, Egress, identity::HOST), (0, Ingress, pod(1))],
            Self::PeerToPod | Self::NativePeerToPod => vec![(2, Ingress, peers)],
            Self::PeerToHost => vec![(0, Ingress, peers)],
            Self::WorldToPod | Self::StackToPod | Self::HostDnatToPod => {
                vec![(2, Ingress, OUTSIDE)]
            }
            Self::HostToPod => vec![(0, Egress, pod(2)), (2, Ingress, identity::HOST)],
            Self::HostToPeer => vec![(0, Egress, peers)],
            Self::HostToWorld => vec![(0, Egress, OUTSIDE)],
            Self::WorldToHost => vec![(0, Ingress, OUTSIDE)],
        }
    }

    /// Sends a packet of the flow the way that it began.
    fn send(self, host: &Host, tuple: &Tuple) -> Out {
        let by_stack = |hook, interface| {
            let bytes = frame::build([2; 6], [4; 6], tuple, 63, b"hi");
            run(host, hook, interface, &bytes)
        };
        match self {
            Self::PodToPod | Self::PodToPeer | Self::PodToWorld | Self::PodToHost => {
                from_pod(host, 1, 1, tuple)
            }
            Self::PeerToPod | Self::PeerToHost => {
                let inner = tunnel::inner(1, tuple);
                from_uplink(host, &kind_wrap(V4).around(&inner))
            }
            Self::WorldToPod | Self::NativePeerToPod | Self::WorldToHost => {
                from_router(host, 1, tuple)
            }
            Self::HostToPod | Self::HostToPeer | Self::HostDnatToPod => from_host(host, tuple),
            Self::StackToPod | Self::PodByStackToPod => {
                by_stack(Hook::ToPod, plan::pod_interface(2))
            }
            Self::PodByStackToWorld | Self::HostToWorld => by_stack(Hook::ToUplink, plan::UPLINK),
        }
    }

    /// Sends an answer to what was sent.
    fn answer(self, host: &Host, tuple: &Tuple, flags: u8) -> Out {
        let back = tuple.answer(flags);
        match self {
            Self::PodToPod
            | Self::PeerToPod
            | Self::NativePeerToPod
            | Self::WorldToPod
            | Self::StackToPod
            | Self::HostDnatToPod
            | Self::PodByStackToPod
            | Self::HostToPod => from_pod(host, 1, 2, &back),
            Self::PodToPeer | Self::HostToPeer => {
                let inner = tunnel::inner(1, &back);
                from_uplink(host, &kind_wrap(V4).around(&inner))
            }
            Self::PodToWorld | Self::PodByStackToWorld => {
                let behind = if tuple.source.is_ipv4() { V4 } else { V6 };
                let outside = Tuple {
                    destination: plan::node(1, behind),
                    ..back
                };
                from_router(host, 1, &outside)
            }
            Self::HostToWorld => from_router(host, 1, &back),
            Self::PodToHost | Self::PeerToHost => from_host(host, &back),
            Self::WorldToHost => {
                let bytes = frame::build([2; 6], [4; 6], &back, 64, b"hi");
                run(host, Hook::ToUplink, plan::UPLINK, &bytes)
            }
        }
    }

    /// Has a flow prove itself.
    #[track_caller]
    fn establish(self, host: &Host, tuple: &Tuple) {
        assert_eq!(self.send(host, tuple).reason, None);
        assert_eq!(self.answer(host, tuple, SYN | ACK).reason, None);
        assert_eq!(self.send(host, &tuple.with_flags(ACK)).reason, None);
        assert_eq!((host.flows.len(), host.pending.len()), (2, 0), "{self:?}");
    }
}

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
    let found = entry(host, &flow_key(path, tuple));
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

fn flow_key(path: Path, tuple: &Tuple) -> datapath_kern::abi::flow::FlowKey {
    let mut key = key(tuple);
    if path == Path::PodByStackToWorld {
        key.scope = datapath_kern::abi::flow::scope::STACK;
    }
    key
}
