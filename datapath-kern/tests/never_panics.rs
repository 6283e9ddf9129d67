//! Whatever arrives: no panic, one verdict, one reason, one counter. What holds for every frame is
//! asserted in `support::run_marked`.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod support;

use std::cell::RefCell;
use std::collections::BTreeMap;

use datapath_kern::abi::endpoint::identity;
use datapath_kern::abi::mark;
use datapath_kern::host::{Hash, Hook, Host, plan};
use datapath_kern::packet::Family;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use support::frame::{self, ACK, FIN, L4, RST, SYN, Tuple};
use support::tunnel::{self, Wrap};
use support::{node, policy, run_marked};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Frames that mean something at one hook or another of node 1.
fn sensible() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for family in FAMILIES {
        let pod = |number| plan::pod(1, number, family);
        let remote = plan::pod(2, 1, family);
        let outside = plan::outside(family);
        let own = plan::node(1, family);
        let l4s = [
            L4::Tcp(40_000, 80, SYN),
            L4::Tcp(40_000, 80, ACK),
            L4::Udp(40_000, 53),
            L4::EchoRequest(1),
        ];
        for l4 in l4s {
            for to in [pod(2), remote, outside, plan::gateway(1, family)] {
                frames.push(frame::of_pod(1, 1, &Tuple::new(pod(1), to, l4)));
            }
            let answer = Tuple::new(own, outside, l4).answer(SYN | ACK);
            frames.push(frame::build(
                plan::node_mac(254),
                plan::node_mac(1),
                &answer,
                60,
                b"hi",
            ));
            let of_node = Tuple::new(own, outside, l4);
            frames.push(frame::build(
                plan::node_mac(1),
                plan::node_mac(254),
                &of_node,
                64,
                b"hi",
            ));
            let to_pod = Tuple::new(plan::gateway(1, family), pod(1), l4);
            frames.push(frame::build(
                plan::gateway_mac(1),
                [2; 6],
                &to_pod,
                64,
                b"hi",
            ));
            for underlay in FAMILIES {
                let inner = tunnel::inner(1, &Tuple::new(remote, pod(1), l4));
                let wrap = Wrap::new(2, 1, underlay, plan::pod_identity(2, 1));
                frames.push(wrap.around(&inner));
                frames.push(wrap.with_options(&[0; 24]).around(&inner));
            }
        }
        for flags in [FIN | ACK, RST, 0] {
            let tuple = Tuple::new(pod(1), pod(2), L4::Tcp(40_000, 80, flags));
            frames.push(frame::of_pod(1, 1, &tuple));
        }
    }
    frames.push(frame::arp_request(1, 1, plan::gateway(1, Family::V4)));
    frames.push(frame::solicitation(1, 1, plan::gateway(1, Family::V6)));
    frames
}

/// What is done to a frame before it arrives.
#[derive(Clone, Debug)]
enum Harm {
    Set(usize, u8),
    Flip(usize, u8),
    Cut(usize),
    Insert(usize, Vec<u8>),
    Append(usize),
}

fn harm() -> impl Strategy<Value = Harm> {
    let offset = 0..160_usize;
    prop_oneof![
        3 => (offset.clone(), any::<u8>()).prop_map(|(at, to)| Harm::Set(at, to)),
        3 => (offset.clone(), 0..8_u8).prop_map(|(at, bit)| Harm::Flip(at, bit)),
        1 => offset.clone().prop_map(Harm::Cut),
        1 => (offset, proptest::collection::vec(any::<u8>(), 1..40))
            .prop_map(|(at, bytes)| Harm::Insert(at, bytes)),
        1 => (0..600_usize).prop_map(Harm::Append),
    ]
}

impl Harm {
    fn apply(&self, frame: &mut Vec<u8>) {
        let length = frame.len();
        match self {
            _ if length == 0 => {}
            Self::Set(at, to) => frame[at % length] = *to,
            Self::Flip(at, bit) => frame[at % length] ^= 1 << bit,
            Self::Cut(at) => frame.truncate(at % length),
            Self::Insert(at, bytes) => {
                let at = at % length;
                frame.splice(at..at, bytes.iter().copied());
            }
            Self::Append(count) => frame.extend((0..*count).map(|n| n.to_le_bytes()[0])),
        }
    }
}

/// A frame, where it arrives, and how it is marked.
#[derive(Clone, Debug)]
struct Arrival {
    hook: Hook,
    interface: u32,
    mark: u32,
    frame: Vec<u8>,
    wait_s: u32,
    /// How an endpoint is judged from then on: its slot, and a number of a word.
    switch: Option<(u32, u32)>,
}

/// Bytes by chance, now and then of a protocol that is looked into.
fn random() -> impl Strategy<Value = Vec<u8>> {
    let bytes = proptest::collection::vec(any::<u8>(), 0..300);
    (0..4_usize, bytes).prop_map(|(kind, mut bytes)| {
        let ether_type = [[0x08, 0], [0x86, 0xdd], [0x08, 6], [0x81, 0]][kind];
        if let Some(field) = bytes.get_mut(12..14) {
            field.copy_from_slice(&ether_type);
        }
        match (kind, bytes.get_mut(14)) {
            (0, Some(first)) => *first = 0x40 | *first & 0x0f,
            (1, Some(first)) => *first = 0x60,
            _ => {}
        }
        bytes
    })
}

/// A sensible frame, or one that was.
fn harmed() -> impl Strategy<Value = Vec<u8>> {
    let harms = proptest::collection::vec(harm(), 0..4);
    (proptest::sample::select(sensible()), harms).prop_map(|(mut frame, harms)| {
        for harm in &harms {
            harm.apply(&mut frame);
        }
        frame
    })
}

/// Either of them in a tunnel packet, sound or not.
fn wrapped() -> impl Strategy<Value = Vec<u8>> {
    let options = proptest::collection::vec(any::<u8>(), 0..252);
    let inner = prop_oneof![random(), harmed()];
    (any::<bool>(), any::<[u8; 2]>(), options, inner, 0..6_u8).prop_map(
        |(v6, first, mut options, inner, kind)| {
            let underlay = if v6 { Family::V6 } else { Family::V4 };
            let mut wrap = Wrap::new(2, 1, underlay, plan::pod_identity(2, 1));
            options.truncate(options.len() / 4 * 4);
            if kind > 2 {
                wrap = wrap.with_options(&options);
            }
            if kind > 4 {
                wrap.first = first;
            }
            wrap.around(&inner)
        },
    )
}

/// A tunnel packet over IPv6 with extension headers, to the limits of offsets and beyond.
fn stretched() -> impl Strategy<Value = Vec<u8>> {
    (wrapped(), 1..40_u8, 1..4_usize).prop_map(|(frame, units, count)| {
        (0..count).fold(frame, |frame, _| tunnel::with_extension(frame, units))
    })
}

fn arrival() -> impl Strategy<Value = Arrival> {
    let frames = prop_oneof![1 => random(), 6 => harmed(), 3 => wrapped(), 1 => stretched()];
    let marks = prop_oneof![
        4 => Just(0), 1 => Just(mark::TO_HOST), 1 => Just(mark::FORWARDED), 1 => any::<u32>()
    ];
    let wait = prop_oneof![20 => Just(0_u32), 4 => 1..20_u32, 1 => 60..9000_u32];
    let switch = proptest::option::weighted(0.05, (0..5_u32, 0..64_u32));
    (0..10_usize, frames, marks, wait, switch).prop_map(|(at, frame, mark, wait_s, switch)| {
        let (hook, interface) = match at {
            0..=2 => (Hook::FromPod, plan::pod_interface(1)),
            3 => (Hook::ToPod, plan::pod_interface(1)),
            4..=6 => (Hook::FromUplink, plan::UPLINK),
            7 => (Hook::ToUplink, plan::UPLINK),
            8 => (Hook::FromHost, plan::GATEWAY_FAR),
            _ => (Hook::ToHost, plan::GATEWAY),
        };
        Arrival {
            hook,
            interface,
            mark,
            frame,
            wait_s,
            switch,
        }
    })
}

/// A node with little room for flows, which so are often refused and evicted.
fn cramped() -> Host {
    let mut host = node(1, Family::V4);
    host.add_peer(1, 2, Family::V6, 4).unwrap();
    host.flows = Hash::new(24);
    host.pending = Hash::evicting(24);
    host.config.nat_port_min = 40_000;
    host.config.nat_port_max = 40_003;
    let mut identities = vec![identity::HOST, identity::WORLD, identity::REMOTE_NODE];
    for node in [1, 2] {
        identities.extend((1..=4).map(|number| plan::pod_identity(node, number)));
    }
    policy::by_chance(&host, &identities);
    host
}

#[test]
fn whatever_arrives() {
    const CASES: u32 = 240;
    const FRAMES: usize = 100;
    let outcomes = RefCell::new(BTreeMap::<(&str, String), u32>::new());
    let frames = proptest::collection::vec(arrival(), FRAMES);
    TestRunner::new(ProptestConfig::with_cases(CASES))
        .run(&frames, |arrivals| {
            let host = cramped();
            for Arrival {
                hook,
                interface,
                mark,
                frame,
                wait_s,
                switch,
            } in arrivals
            {
                host.advance(wait_s);
                if let Some((slot, number)) = switch {
                    policy::switch(&host, slot, policy::any_word(number));
                }
                let out = run_marked(&host, hook, interface, &frame, mark);
                *outcomes
                    .borrow_mut()
                    .entry((hook.name(), out.counted))
                    .or_default() += 1;
            }
            Ok(())
        })
        .unwrap();
    // That this went beyond the first header: ways that frames took, and reasons that only what
    // was parsed to the end can have.
    let outcomes = outcomes.into_inner();
    let seen = |hook, counted: &str| outcomes.contains_key(&(hook, counted.to_owned()));
    for (hook, counted) in [
        ("from_pod", "egress to-endpoint"),
        ("from_pod", "egress to-overlay"),
        ("from_pod", "egress to-network"),
        ("from_pod", "egress to-host"),
        ("from_pod", "egress answered"),
        ("from_pod", "egress Invalid source ip"),
        ("from_pod", "egress Invalid packet"),
        ("from_pod", "egress Policy denied"),
        ("from_pod", "egress Policy denied by denylist"),
        ("from_uplink", "ingress Policy denied"),
        ("from_uplink", "ingress Policy denied by denylist"),
        ("from_uplink", "ingress to-endpoint"),
        ("from_uplink", "ingress to-host"),
        ("from_uplink", "ingress Malformed tunnel header"),
        ("from_uplink", "ingress Unknown critical tunnel option"),
        ("from_uplink", ""),
        ("to_uplink", ""),
        ("to_pod", ""),
        ("from_host", "egress to-endpoint"),
        ("to_host", "ingress Not forwarded by the datapath"),
    ] {
        assert!(
            seen(hook, counted),
            "no frame was {counted:?} at {hook}: {outcomes:#?}"
        );
    }
}

/// Every frame that means something, cut at every length, at every hook.
#[test]
fn every_cut() {
    for frame in sensible() {
        let host = cramped();
        for hook in Hook::ALL {
            let interface = if hook == Hook::FromPod {
                plan::pod_interface(1)
            } else {
                plan::UPLINK
            };
            for length in 0..=frame.len() {
                run_marked(&host, hook, interface, &frame[..length], 0);
            }
        }
    }
}
