//! The life of a flow, a sentence at a time, by a clock that the test sets.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod support;

use datapath_kern::abi::endpoint::Endpoint;
use datapath_kern::abi::flow::{Flow, state};
use datapath_kern::abi::ipcache::{IpEntry, kind};
use datapath_kern::abi::metric::Direction;
use datapath_kern::env::Table;
use datapath_kern::host::{Hash, Prefix};
use datapath_kern::packet::Family;
use datapath_kern::verdict::DropReason;
use support::frame::{ACK, FIN, L4, RST, SYN};
use support::talk::{Place, Talk};
use support::{key, node};

#[test]
fn a_syn_makes_a_pending_flow_of_two_halves() {
    let talk = Talk::tcp();
    talk.client(SYN);
    assert_eq!(
        (talk.place(), talk.state(), talk.left_s()),
        (Place::Pending, 0, [60; 2])
    );
    assert_eq!((talk.host.pending.len(), talk.host.flows.len()), (2, 0));
    let [forward, reply] = talk.halves().unwrap();
    assert_eq!((forward.packets, forward.bytes), (1, 56));
    assert_eq!((reply.packets, reply.bytes), (0, 0));
}

#[test]
fn the_ack_after_the_answer_proves_it() {
    let talk = Talk::tcp();
    talk.client(SYN);
    talk.host.advance(1);
    talk.server(SYN | ACK);
    assert_eq!(
        (talk.place(), talk.state()),
        (Place::Pending, state::REPLIED)
    );
    assert_eq!(talk.left_s(), [59, 60]);
    talk.host.advance(1);
    talk.client(ACK);
    assert_eq!(talk.place(), Place::Established);
    assert_eq!(talk.state(), state::REPLIED | state::ESTABLISHED);
    assert_eq!(talk.left_s(), [8000; 2]);
    assert_eq!((talk.host.pending.len(), talk.host.flows.len()), (0, 2));
    let [forward, reply] = talk.halves().unwrap();
    assert_eq!((forward.packets, reply.packets), (2, 1));
}

#[test]
fn without_an_answer_nothing_is_proven() {
    let talk = Talk::tcp();
    for _ in 0..4 {
        talk.client(SYN);
        talk.client(ACK);
        talk.host.advance(30);
    }
    assert_eq!((talk.place(), talk.state()), (Place::Pending, 0));
}

#[test]
fn a_repeated_syn_after_the_answer_proves_nothing() {
    let talk = Talk::tcp();
    talk.client(SYN);
    talk.server(SYN | ACK);
    talk.client(SYN);
    assert_eq!(
        (talk.place(), talk.state()),
        (Place::Pending, state::REPLIED)
    );
}

#[test]
fn an_answer_alone_is_not_enough_either() {
    let talk = Talk::tcp();
    talk.client(SYN);
    talk.server(SYN | ACK);
    talk.server(ACK);
    assert_eq!(talk.place(), Place::Pending);
}

#[test]
fn a_syn_that_is_not_answered_in_time_is_forgotten() {
    let mut talk = Talk::tcp();
    talk.host.config.tcp_loose = 0;
    talk.client(SYN);
    let pair = talk.pair();
    talk.host.advance(60);
    talk.server_out(SYN | ACK)
        .dropped(Direction::Egress, DropReason::TcpWithoutFlow);
    assert_eq!(talk.place(), Place::Nowhere, "both halves went");
    talk.client(SYN);
    assert_ne!(talk.pair(), pair);
}

#[test]
fn a_refused_connection_has_ten_seconds() {
    let talk = Talk::tcp();
    talk.client(SYN);
    talk.host.advance(1);
    talk.server(RST | ACK);
    assert_eq!(talk.state(), state::REPLIED | state::RESET_REPLY);
    assert_eq!(talk.left_s(), [10; 2]);
    talk.host.advance(1);
    talk.client(ACK);
    assert_eq!(
        (talk.place(), talk.left_s()),
        (Place::Pending, [9; 2]),
        "what is reset proves nothing"
    );
}

#[test]
fn half_a_close_leaves_the_flow_its_life() {
    let talk = Talk::established();
    talk.client(FIN | ACK);
    assert_eq!(talk.state() & state::CLOSED, state::CLOSED_ORIGINAL);
    assert_eq!(talk.left_s(), [8000; 2]);
    talk.host.advance(3600);
    talk.server(ACK);
    assert_eq!(talk.left_s(), [4400, 8000]);
}

#[test]
fn both_sides_done_leaves_ten_seconds_whatever_still_comes() {
    let talk = Talk::established();
    talk.client(FIN | ACK);
    talk.server(FIN | ACK);
    assert_eq!(talk.left_s(), [10; 2]);
    talk.host.advance(9);
    talk.client(ACK);
    assert_eq!(talk.left_s(), [1; 2]);
    talk.host.advance(1);
    talk.server_out(RST)
        .dropped(Direction::Egress, DropReason::TcpWithoutFlow);
    assert_eq!(talk.place(), Place::Nowhere);
}

#[test]
fn a_fin_that_is_repeated_closes_one_side_only() {
    let talk = Talk::established();
    talk.server(FIN | ACK);
    talk.server(FIN | ACK);
    assert_eq!(talk.state() & state::CLOSED, state::CLOSED_REPLY);
}

#[test]
fn a_syn_on_a_closed_flow_begins_another() {
    let talk = Talk::established();
    let pair = talk.pair();
    talk.client(FIN | ACK);
    talk.server(FIN | ACK);
    talk.client(SYN);
    assert_ne!(talk.pair(), pair);
    assert_eq!(
        (talk.place(), talk.state(), talk.left_s()),
        (Place::Pending, 0, [60; 2])
    );
    assert!(talk.host.flows.is_empty());
}

#[test]
fn a_syn_on_an_open_flow_begins_nothing() {
    let talk = Talk::established();
    let pair = talk.pair();
    talk.client(SYN);
    assert_eq!((talk.place(), talk.pair()), (Place::Established, pair));
}

#[test]
fn half_a_flow_lives_while_its_partner_does() {
    let talk = Talk::established();
    let pair = talk.pair();
    talk.host.advance(7000);
    talk.client(ACK);
    talk.host.advance(2000);
    // The server's half ended a thousand seconds ago.
    talk.server(ACK);
    assert_eq!((talk.place(), talk.pair()), (Place::Established, pair));
    assert_eq!(talk.left_s(), [6000, 8000]);
}

#[test]
fn a_flow_that_nobody_used_is_gone_whole() {
    let talk = Talk::established();
    let pair = talk.pair();
    talk.host.advance(8000);
    talk.client(SYN);
    assert_ne!(talk.pair(), pair);
    assert!(talk.host.flows.is_empty());
    assert_eq!(talk.host.pending.len(), 2);
}

#[test]
fn a_full_established_table_leaves_flows_pending_until_there_is_room() {
    let mut talk = Talk::established();
    talk.host.flows = Hash::new(3);
    talk.client(SYN);
    talk.server(SYN | ACK);
    talk.client(ACK);
    assert_eq!(talk.place(), Place::Established);
    let first = talk.there;

    talk.there.l4 = L4::Tcp(40_001, 80, 0);
    talk.client(SYN);
    talk.server(SYN | ACK);
    for _ in 0..3 {
        talk.client(ACK);
        talk.server(ACK);
        assert_eq!(
            (talk.place(), talk.state()),
            (Place::Pending, state::REPLIED)
        );
        assert_eq!(talk.host.flows.len(), 2, "nothing half promoted");
    }
    assert_eq!(talk.left_s(), [60; 2]);

    for tuple in [first, first.answer(0)] {
        assert!(talk.host.flows.remove(&key(&tuple)));
    }
    talk.client(ACK);
    assert_eq!(
        (talk.place(), talk.left_s()),
        (Place::Established, [8000; 2])
    );
}

#[test]
fn when_one_half_was_evicted_the_other_goes_too() {
    let talk = Talk::tcp();
    talk.client(SYN);
    let pair = talk.pair();
    talk.host.pending.remove(&key(&talk.there.answer(0)));
    talk.client(SYN);
    assert_ne!(talk.pair(), pair);
    assert_eq!((talk.place(), talk.host.pending.len()), (Place::Pending, 2));

    talk.host.pending.remove(&key(&talk.there));
    talk.server_out(RST)
        .dropped(Direction::Egress, DropReason::TcpWithoutFlow);
    assert!(talk.host.pending.is_empty());
}

#[test]
fn a_flood_evicts_no_established_flow() {
    let mut talk = Talk::established();
    talk.host.pending = Hash::evicting(64);
    let victim = (talk.there, talk.pair());
    for port in 1..1000 {
        talk.there.l4 = L4::Tcp(port, 80, 0);
        talk.client(SYN);
        // Answered or not.
        if port % 2 == 0 {
            talk.server(SYN | ACK);
        }
    }
    assert_eq!((talk.host.flows.len(), talk.host.pending.len()), (2, 64));
    talk.there = victim.0;
    talk.server(ACK);
    assert_eq!(talk.pair(), victim.1);
}

#[test]
fn other_protocols_are_proven_by_the_second_packet_after_an_answer() {
    for l4 in [L4::Udp(5000, 53), L4::EchoRequest(77)] {
        let talk = Talk::new(node(1, Family::V4), l4);
        talk.client(0);
        talk.client(0);
        assert_eq!((talk.place(), talk.left_s()), (Place::Pending, [120; 2]));
        talk.server(0);
        assert_eq!(
            (talk.place(), talk.state()),
            (Place::Pending, state::REPLIED)
        );
        talk.client(0);
        assert_eq!(
            (talk.place(), talk.left_s()),
            (Place::Established, [180; 2])
        );
    }
}

#[test]
fn a_connection_is_picked_up_in_the_middle_only_if_that_is_wanted() {
    let mut talk = Talk::tcp();
    talk.client(ACK);
    assert_eq!(talk.place(), Place::Pending);
    talk.host.config.tcp_loose = 0;
    talk.there.l4 = L4::Tcp(40_001, 80, 0);
    for flags in [ACK, FIN | ACK, SYN | ACK, RST, 0] {
        talk.client_out(flags)
            .dropped(Direction::Egress, DropReason::TcpWithoutFlow);
    }
    talk.host.config.tcp_loose = 1;
    talk.client_out(RST)
        .dropped(Direction::Egress, DropReason::TcpWithoutFlow);
    assert_eq!(talk.place(), Place::Nowhere);
}

#[test]
fn a_new_generation_has_the_flow_judged_again() {
    let talk = Talk::established();
    let pair = talk.pair();
    // In this order: whoever sees the new generation must find what it stands for.
    let of_pod = IpEntry {
        identity: 4711,
        index: 2,
        kind: kind::ENDPOINT,
        flags: 0,
    };
    talk.host
        .ipcache
        .borrow_mut()
        .set(Prefix::host(talk.there.destination), of_pod);
    talk.host.endpoints.update(&2, |endpoint| {
        endpoint.identity = 4711;
        endpoint.generation = 9;
    });
    talk.client(ACK);
    assert_eq!((talk.place(), talk.pair()), (Place::Established, pair));
    let [forward, reply] = talk.halves().unwrap();
    assert_eq!((forward.generation, reply.generation), ([1, 9], [9, 1]));
    talk.server(ACK);
    let [forward, reply] = talk.halves().unwrap();
    assert_eq!((forward.packets, reply.packets), (3, 2));
    assert_eq!(reply.source_identity, 4711);
}

#[test]
fn a_pod_that_moved_away_takes_its_flows_along() {
    let talk = Talk::established();
    talk.host
        .ipcache
        .borrow_mut()
        .remove(Prefix::host(talk.there.destination));
    talk.host
        .endpoints
        .update(&2, |endpoint| *endpoint = Endpoint::default());
    talk.client_out(ACK)
        .dropped(Direction::Egress, DropReason::Vacant);
}

#[test]
fn what_a_packet_closes_it_closes_also_when_its_flow_is_judged_again() {
    let talk = Talk::established();
    talk.host
        .endpoints
        .update(&2, |endpoint| endpoint.generation = 9);
    talk.client(RST);
    let [forward, reply] = talk.halves().unwrap();
    let reset = |half: &Flow| half.state & state::RESET == state::RESET_ORIGINAL;
    assert!(reset(&forward) && reset(&reply));
    assert_eq!(forward.generation, [1, 9]);
    assert_eq!(talk.left_s(), [10; 2]);
    // SYN, ACK and RST, each once.
    assert_eq!(forward.packets, 3);
}
