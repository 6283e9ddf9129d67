//! What a receiver puts together out of the fragments that went on is what a pod sent, in whatever
//! order, how often and mixed with what they come.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "it is all tests"
)]

mod support;

use std::collections::BTreeMap;

use datapath_kern::host::{Hook, Host, plan};
use datapath_kern::packet::Family::{V4, V6};
use datapath_kern::verdict::Action;
use proptest::prelude::*;
use proptest::sample::Index;
use support::fragments::{cut, join};
use support::frame::{self, L4, Tuple};
use support::{node, run};

/// Where the packets go.
#[derive(Clone, Copy, Debug)]
enum To {
    Neighbour,
    Remote,
    Outside,
}

/// A packet in fragments.
#[derive(Clone, Debug)]
struct Datagram {
    bytes: usize,
    piece: usize,
    /// What is done to its fragments: to which, and what.
    harm: Vec<(Index, Harm)>,
}

#[derive(Clone, Copy, Debug)]
enum Harm {
    /// It does not arrive.
    Lose,
    /// It arrives twice.
    Repeat,
    /// It changes places with another one that follows the first.
    Swap,
    /// One comes along that lies over it and the next.
    Overlap,
    /// One comes along that ends the packet there.
    End,
}

fn datagram() -> impl Strategy<Value = Datagram> {
    let harm = prop_oneof![
        1 => Just(Harm::Lose),
        1 => Just(Harm::Repeat),
        4 => Just(Harm::Swap),
        1 => Just(Harm::Overlap),
        1 => Just(Harm::End),
    ];
    let harm = prop::collection::vec((any::<Index>(), harm), 0..4);
    (200..6000_usize, 6..100_usize, harm).prop_map(|(bytes, units, harm)| Datagram {
        bytes,
        piece: units * 8,
        harm,
    })
}

/// Whose packet it is can be told from every byte.
fn payload(number: usize, bytes: usize) -> Vec<u8> {
    let number = u8::try_from(number).unwrap();
    (0..=30)
        .cycle()
        .map(|at| number * 31 + at)
        .take(bytes)
        .collect()
}

/// A fragment like this one that begins `units` of eight bytes later, and has something else in it.
fn moved(fragment: &[u8], units: u16, more: bool) -> Vec<u8> {
    let mut frame = fragment.to_vec();
    if frame[12..14] == [8, 0] {
        let field = u16::from_be_bytes([frame[20], frame[21]]) & 0x1fff;
        let field = (field + units) | if more { 0x2000 } else { 0 };
        frame[20..22].copy_from_slice(&field.to_be_bytes());
        support::fragments::seal(&mut frame);
        frame[34..].fill(0xff);
    } else {
        let field = u16::from_be_bytes([frame[56], frame[57]]) & !7;
        let field = (field + units * 8) | u16::from(more);
        frame[56..58].copy_from_slice(&field.to_be_bytes());
        frame[62..].fill(0xff);
    }
    frame
}

/// The fragments in the order in which they come, and whether all of them can go on.
fn arrivals(datagram: &Datagram, whole: &[u8], id: u16) -> (Vec<Vec<u8>>, bool) {
    let mut pieces = cut(whole, datagram.piece, id);
    let mut unharmed = true;
    for (index, harm) in &datagram.harm {
        // The first one stays where it is, and what overlaps does so with two.
        if pieces.len() < 3 {
            break;
        }
        let at = 1 + index.index(pieces.len() - 2);
        match harm {
            Harm::Lose => {
                pieces.remove(at);
                unharmed = false;
            }
            Harm::Repeat => pieces.insert(at, pieces[at].clone()),
            Harm::Swap => pieces[1..].swap(0, at - 1),
            Harm::Overlap => {
                pieces.insert(at, moved(&pieces[at], 1, true));
                unharmed = false;
            }
            Harm::End => {
                pieces.insert(at, moved(&pieces[at], 1, false));
                unharmed = false;
            }
        }
    }
    // At most one gap for every change of places.
    let swaps = datagram
        .harm
        .iter()
        .filter(|(_, harm)| matches!(harm, Harm::Swap));
    (pieces, unharmed && swaps.count() < 3)
}

/// What a receiver tells packets in fragments apart by.
fn name(frame: &[u8]) -> Vec<u8> {
    if frame[12..14] == [8, 0] {
        [&frame[18..20], &frame[23..24], &frame[26..34]].concat()
    } else {
        [&frame[58..62], &frame[22..54]].concat()
    }
}

/// Offset and end of what a fragment brings, and whether more follow.
fn extent(frame: &[u8]) -> (usize, usize, bool) {
    let field = |at: usize| usize::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
    if frame[12..14] == [8, 0] {
        let start = (field(20) & 0x1fff) * 8;
        (start, start + field(16) - 20, field(20) & 0x2000 != 0)
    } else {
        let start = field(56) & !7;
        (start, start + field(18) - 8, field(56) & 1 != 0)
    }
}

/// The packets that a receiver makes of the fragments: whole ones, each fragment used once.
///
/// It has none of a packet that fragments overlap in.
fn received(fragments: &[Vec<u8>]) -> Vec<frame::Parsed> {
    let mut packets: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for fragment in fragments {
        packets
            .entry(name(fragment))
            .or_default()
            .push(fragment.clone());
    }
    let mut whole = Vec::new();
    for mut pieces in packets.into_values() {
        pieces.sort_by_key(|piece| extent(piece).0);
        let (mut end, mut gaps) = (0, false);
        for piece in &pieces {
            let (start, stop, _) = extent(piece);
            assert!(start >= end, "fragments that overlap went on");
            gaps |= start > end;
            end = stop;
        }
        if !gaps && !extent(pieces.last().unwrap()).2 {
            whole.push(frame::parse(&join(&pieces)));
        }
    }
    whole
}

/// Sends a frame of a pod; what goes on of it, out of the tunnel where it went into that.
fn send(host: &Host, pod: u8, to: To, frame: &[u8]) -> Option<Vec<u8>> {
    let out = run(host, Hook::FromPod, plan::pod_interface(pod), frame);
    let before = if matches!(to, To::Remote) { 50 } else { 0 };
    (out.verdict.action != Action::Drop).then(|| out.bytes[before..].to_vec())
}

proptest! {
    /// Pods send at once, under identifications that are the same.
    #[test]
    fn what_arrives_is_what_was_sent(
        family in prop_oneof![Just(V4), Just(V6)],
        to in prop_oneof![Just(To::Neighbour), Just(To::Remote), Just(To::Outside)],
        datagrams in prop::collection::vec(datagram(), 1..7),
        turns in prop::collection::vec(any::<Index>(), 1..64),
    ) {
        let host = node(1, V4);
        let destination = match to {
            To::Neighbour => plan::pod(1, 4, family),
            To::Remote => plan::pod(2, 1, family),
            To::Outside => plan::outside(family),
        };
        let mut queues = Vec::new();
        let mut expected = Vec::new();
        for (number, datagram) in datagrams.iter().enumerate() {
            let pod = u8::try_from(number % 3 + 1).unwrap();
            // The second packet of a pod has another identification, the same as the others'.
            let id = u16::try_from(number / 3).unwrap();
            let l4 = L4::Udp(5000, 53);
            let tuple = Tuple::new(plan::pod(1, pod, family), destination, l4);
            let macs = (plan::pod_mac(1, pod), plan::gateway_mac(1));
            let payload = payload(number, datagram.bytes);
            let whole = frame::build(macs.0, macs.1, &tuple, 64, &payload);
            let (pieces, all) = arrivals(datagram, &whole, id);
            expected.push((payload, all));
            queues.push((pod, std::collections::VecDeque::from(pieces)));
        }
        let mut went_on = Vec::new();
        for turn in turns.iter().cycle() {
            queues.retain(|(_, queue)| !queue.is_empty());
            if queues.is_empty() {
                break;
            }
            let at = turn.index(queues.len());
            let (pod, queue) = &mut queues[at];
            let frame = queue.pop_front().unwrap();
            went_on.extend(send(&host, *pod, to, &frame));
        }
        let (cut, uncut): (Vec<_>, Vec<_>) = went_on.into_iter().partition(|frame| is_cut(frame));
        let mut packets = received(&cut);
        packets.extend(uncut.into_iter().map(|frame| match frame[20] {
            44 if family == V6 => frame::parse(&join(&[frame])),
            _ => frame::parse(&frame),
        }));
        for packet in &packets {
            prop_assert!(
                expected.iter().any(|(payload, _)| *payload == packet.payload),
                "{:?} was never sent", packet.tuple
            );
        }
        for (payload, _) in expected.iter().filter(|(_, all)| *all) {
            let arrived = packets.iter().filter(|packet| packet.payload == *payload).count();
            prop_assert_eq!(arrived, 1);
        }
    }
}

/// Whether a frame is a fragment, and not all of its packet (RFC 6946).
fn is_cut(frame: &[u8]) -> bool {
    let (start, _, more) = extent(frame);
    (frame[12..14] == [8, 0] || frame[20] == 44) && (start != 0 || more)
}
