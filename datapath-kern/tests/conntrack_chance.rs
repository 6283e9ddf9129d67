//! Whatever packets come in whatever order, and whatever is evicted meanwhile: the two halves of a
//! flow stay together.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod support;

use datapath_kern::abi::flow::{Flow, FlowKey};
use datapath_kern::env::Table;
use datapath_kern::host::{Hash, Host, plan};
use datapath_kern::packet::Family;
use proptest::prelude::*;
use support::frame::{ACK, FIN, L4, RST, SYN, Tuple};
use support::{entry, from_pod, from_router, invariants, key, node};

/// What may happen to a few connections.
#[derive(Clone, Debug)]
enum Step {
    /// Connection, from its originator, TCP flags.
    Packet(usize, bool, u8),
    Wait(u32),
    /// The generation of a pod, or of the world, moves on.
    Generation(usize),
    /// The pending table loses an entry, counted in some order.
    Evict(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let flags = prop_oneof![
        3 => Just(ACK), 2 => Just(SYN), 2 => Just(SYN | ACK),
        1 => Just(FIN | ACK), 1 => Just(RST), 1 => 0..32_u8
    ];
    let wait = prop_oneof![4 => 0..3_u32, 2 => 3..70_u32, 1 => 100..9000_u32];
    prop_oneof![
        30 => (0..CONNECTIONS, any::<bool>(), flags).prop_map(|(n, o, f)| Step::Packet(n, o, f)),
        3 => wait.prop_map(Step::Wait),
        1 => (0..4_usize).prop_map(Step::Generation),
        1 => (0..8_usize).prop_map(Step::Evict),
    ]
}

const CONNECTIONS: usize = 9;

/// Between pods, from two pods by the same ports to the outside, of every protocol.
fn connections(family: Family) -> [(u8, Tuple); CONNECTIONS] {
    let pod = |number| plan::pod(1, number, family);
    let outside = plan::outside(family);
    let to_pod = |l4| (1, Tuple::new(pod(1), pod(2), l4));
    let out = |number, l4| (number, Tuple::new(pod(number), outside, l4));
    [
        to_pod(L4::Tcp(40_000, 80, 0)),
        to_pod(L4::Tcp(40_000, 81, 0)),
        to_pod(L4::Udp(40_000, 53)),
        // The other way round: what answers one begins the other.
        (2, Tuple::new(pod(2), pod(1), L4::Tcp(80, 40_000, 0))),
        out(1, L4::Tcp(40_000, 80, 0)),
        out(2, L4::Tcp(40_000, 80, 0)),
        out(1, L4::Udp(40_000, 53)),
        out(2, L4::Udp(40_000, 53)),
        out(2, L4::EchoRequest(3)),
    ]
}

/// The answer to the last packet of a connection that left the node, or a guess at it.
fn answer(host: &Host, tuple: &Tuple, flags: u8) -> Tuple {
    let mut answer = tuple.answer(flags);
    if let Some(flow) = entry(host, &key(tuple)) {
        answer.destination = flow.nat_address.to_ip();
        let port = flow.nat_port.get();
        match &mut answer.l4 {
            L4::Tcp(_, to, _) | L4::Udp(_, to) | L4::EchoReply(to) => *to = port,
            L4::EchoRequest(_) => {}
        }
    } else {
        answer.destination = plan::node(
            1,
            if tuple.source.is_ipv4() {
                Family::V4
            } else {
                Family::V6
            },
        );
    }
    answer
}

fn take(host: &Host, family: Family, step: &Step) {
    match *step {
        Step::Packet(number, original, flags) => {
            let (pod, tuple) = connections(family)[number];
            let outside = tuple.destination == plan::outside(family);
            if original {
                from_pod(host, 1, pod, &tuple.with_flags(flags));
            } else if outside {
                from_router(host, 1, &answer(host, &tuple, flags));
            } else {
                from_pod(host, 1, 3 - pod, &tuple.answer(flags));
            }
        }
        Step::Wait(seconds) => host.advance(seconds),
        Step::Generation(slot) => {
            let slot = u32::try_from(slot).unwrap();
            host.endpoints
                .update(&slot, |endpoint| endpoint.generation += 1);
            host.peers.update(&slot, |peer| peer.generation += 1);
        }
        Step::Evict(number) => {
            let mut keys: Vec<FlowKey> =
                host.pending.entries().iter().map(|(key, _)| *key).collect();
            keys.sort_by_key(|key| format!("{key:?}"));
            if let Some(key) = keys.get(number) {
                host.pending.remove(key);
            }
        }
    }
}

/// No packet leaves behind a half that it has used, without its partner: what is alone is as it was
/// before, or lost its partner in this very step.
fn check_used(host: &Host, before: &[(FlowKey, Flow)]) -> Result<(), TestCaseError> {
    for (key, flow) in host.pending.entries() {
        let partner_key = flow.partner_key(&key);
        let is_partner = |half: &Flow| half.pair == flow.pair;
        if host
            .pending
            .get(&partner_key)
            .as_ref()
            .is_some_and(is_partner)
        {
            continue;
        }
        let old = before
            .iter()
            .find(|(old, half)| *old == key && is_partner(half));
        prop_assert!(old.is_some(), "entered alone: {key:?} {flow:?}");
        let was_alone = !before
            .iter()
            .any(|(old, half)| *old == partner_key && is_partner(half));
        prop_assert!(
            !was_alone || old.is_some_and(|(_, half)| half.packets == flow.packets),
            "used, and left alone: {key:?} {flow:?}"
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn halves_stay_together(
        v6 in any::<bool>(),
        any_victim in any::<bool>(),
        capacities in (2..12_usize, 2..14_usize),
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let family = if v6 { Family::V6 } else { Family::V4 };
        let mut host = node(1, Family::V4);
        host.flows = Hash::new(capacities.0);
        host.pending = if any_victim {
            Hash::evicting_any(capacities.1)
        } else {
            Hash::evicting(capacities.1)
        };
        for step in &steps {
            let before = host.pending.entries();
            take(&host, family, step);
            prop_assert_eq!(invariants::of_flows(&host), Ok(()));
            check_used(&host, &before)?;
        }
    }
}
