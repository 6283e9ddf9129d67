//! A packet that the tunnel is too narrow for is cut where its sender allows it.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "it is all tests"
)]

mod support;

use datapath_kern::abi::metric::Direction::Egress;
use datapath_kern::abi::nexthop::PEERS_BASE;
use datapath_kern::env::Table;
use datapath_kern::host::{Buffer, Hook, Host, Run, plan};
use datapath_kern::packet::Family::{self, V4, V6};
use datapath_kern::verdict::{Action, DropReason, Forward};
use rstest::rstest;
use support::fragments::{cut, join};
use support::frame::{self, L4, Tuple};
use support::node;

/// Node 1, whose way to node 2 takes so many bytes.
fn narrow(underlay: Family, path_mtu_bytes: u16) -> Host {
    let host = node(1, underlay);
    host.next_hops.update(&(PEERS_BASE + 2), |hop| {
        hop.path_mtu_bytes = path_mtu_bytes;
        hop.path_mtu_until_s = u32::MAX;
    });
    host
}

/// A datagram of so many bytes from pod 1 of node 1 to pod 1 of node 2.
fn datagram(bytes: usize, dont_fragment: bool) -> Vec<u8> {
    let tuple = Tuple::new(plan::pod(1, 1, V4), plan::pod(2, 1, V4), L4::Udp(5000, 53));
    let payload: Vec<u8> = (0..=255).cycle().take(bytes - 28).collect();
    let macs = (plan::pod_mac(1, 1), plan::gateway_mac(1));
    let mut frame = frame::build(macs.0, macs.1, &tuple, 64, &payload);
    frame[20] = if dont_fragment { 0x40 } else { 0 };
    frame[24..26].copy_from_slice(&[0, 0]);
    let ip = etherparse::Ipv4HeaderSlice::from_slice(&frame[14..]).unwrap();
    let sum = ip.to_header().calc_header_checksum();
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

fn send(host: &Host, bytes: Vec<u8>) -> (Run, Buffer) {
    let mut packet = Buffer::new(plan::pod_interface(1), bytes);
    (host.run(Hook::FromPod, &mut packet), packet)
}

/// What the copies become, once they have come round: frames within the tunnel.
fn pieces(host: &Host, packet: &Buffer, underlay: Family) -> Vec<Vec<u8>> {
    let before = if underlay == V4 { 50 } else { 70 };
    let mut pieces = Vec::new();
    for (interface, copy) in &packet.copies {
        assert_eq!(*interface, plan::GATEWAY_FAR);
        let mut copy = Buffer {
            interface: plan::GATEWAY,
            ..copy.clone()
        };
        drop(host.take_counters());
        let run = host.run(Hook::ToHost, &mut copy);
        assert!(run.reason.is_none(), "{run:?}");
        let counted: Vec<_> = host.take_counters().iter().map(|by| (by.0, by.1)).collect();
        assert_eq!(counted, [(Egress, Forward::ToOverlay.code())]);
        pieces.push(copy.bytes[before..].to_vec());
    }
    pieces
}

#[rstest]
#[case::in_two(1450, 1400, 2)]
#[case::in_three(1450, 576, 3)]
#[case::of_a_large_link(8950, 1500, 7)]
fn cut_and_put_together(
    #[case] bytes: usize,
    #[case] path_mtu_bytes: u16,
    #[case] count: usize,
    #[values(V4, V6)] underlay: Family,
) {
    let host = narrow(underlay, path_mtu_bytes);
    let frame = datagram(bytes, false);
    let (run, packet) = send(&host, frame.clone());
    assert_eq!((run.verdict.action, run.reason), (Action::Consumed, None));
    let pieces = pieces(&host, &packet, underlay);
    assert_eq!(pieces.len(), count);
    let overhead = if underlay == V4 { 50 } else { 70 };
    for piece in &pieces {
        assert!(piece.len() - 14 + overhead <= usize::from(path_mtu_bytes));
    }
    let (sent, received) = (frame::parse(&frame), frame::parse(&join(&pieces)));
    assert_eq!(
        (received.tuple, received.payload),
        (sent.tuple, sent.payload)
    );
    assert_eq!(received.ttl, 63);
}

#[test]
fn a_fragment_is_cut_too() {
    let host = narrow(V4, 800);
    let mut all = Vec::new();
    let frame = datagram(3000, false);
    for fragment in cut(&frame, 1400, 9) {
        let (run, packet) = send(&host, fragment.clone());
        if run.verdict.action == Action::Consumed {
            all.extend(pieces(&host, &packet, V4));
        } else {
            // The last one is small enough.
            all.push(packet.bytes[50..].to_vec());
        }
    }
    assert!(all.len() > 4);
    assert_eq!(
        frame::parse(&join(&all)).payload,
        frame::parse(&frame).payload
    );
}

#[test]
fn what_must_not_be_cut_is_answered() {
    let host = narrow(V4, 1400);
    let (run, packet) = send(&host, datagram(1450, true));
    assert_eq!(run.reason, Some(DropReason::FragmentationNeeded));
    assert_eq!(run.verdict.action, Action::IntoPod);
    assert!(packet.copies.is_empty());
}

#[test]
fn nobody_else_can_make_pieces() {
    let host = narrow(V4, 1400);
    let (_, packet) = send(&host, datagram(1450, false));
    let (_, copy) = packet.copies[0].clone();
    for ticket in [0, 3 << 16 | 8, 8 << 16 | 0xffff, u32::MAX] {
        let mut copy = Buffer {
            ticket,
            interface: plan::GATEWAY,
            ..copy.clone()
        };
        let run = host.run(Hook::ToHost, &mut copy);
        assert_eq!(run.verdict.action, Action::Drop, "{ticket:#x}");
    }
    let mut unmarked = Buffer { mark: 0, ..copy };
    let run = host.run(Hook::ToHost, &mut unmarked);
    assert_eq!(run.reason, Some(DropReason::NotForwarded));
}
