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
use datapath_kern::host::{Hash, Host, Prefix, plan};
use datapath_kern::packet::Family;
use datapath_kern::verdict::{Action, DropReason};
use support::frame::{ACK, FIN, L4, RST, SYN, Tuple};
use support::{Out, entry, from_pod, key, node};

/// Where a flow lives.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Nowhere,
    Pending,
    Established,
}

/// A flow from pod 1 to pod 2 of one node.
struct Talk {
    host: Host,
    there: Tuple,
}

impl Talk {
    fn new(host: Host, l4: L4) -> Self {
        let pods = [1, 2].map(|number| plan::pod(1, number, Family::V4));
        Self {
            host,
            there: Tuple::new(pods[0], pods[1], l4),
        }
    }

    fn tcp() -> Self {
        Self::new(node(1, Family::V4), L4::Tcp(40_000, 80, 0))
    }

    /// Handshake done.
    fn established() -> Self {
        let talk = Self::tcp();
        talk.client(SYN);
        talk.server(SYN | ACK);
        talk.client(ACK);
        assert_eq!(talk.place(), Place::Established);
        talk
    }

    fn client_out(&self, flags: u8) -> Out {
        from_pod(&self.host, 1, 1, &self.there.with_flags(flags))
    }

    fn server_out(&self, flags: u8) -> Out {
        from_pod(&self.host, 1, 2, &self.there.answer(flags))
    }

    #[track_caller]
    fn client(&self, flags: u8) {
        let to = plan::pod_interface(2);
        self.client_out(flags)
            .went(Action::IntoPod, to, "egress to-endpoint");
    }

    #[track_caller]
    fn server(&self, flags: u8) {
        let to = plan::pod_interface(1);
        self.server_out(flags)
            .went(Action::IntoPod, to, "egress to-endpoint");
    }

    /// Both halves, after checking that they are a pair in the same table.
    #[track_caller]
    fn halves(&self) -> Option<[Flow; 2]> {
        let keys = [key(&self.there), key(&self.there.answer(0))];
        let place = self.place();
        let table = if place == Place::Established {
            &self.host.flows
        } else {
            &self.host.pending
        };
        let [Some(forward), Some(reply)] = keys.map(|key| table.get(&key)) else {
            assert_eq!(
                keys.map(|key| entry(&self.host, &key)),
                [None; 2],
                "half a flow"
            );
            return None;
        };
        assert_eq!(forward.partner_key(&keys[0]), keys[1]);
        assert_eq!(reply.partner_key(&keys[1]), keys[0]);
        assert!(forward.pair == reply.pair && forward.pair != 0);
        assert_eq!(forward.state, reply.state);
        Some([forward, reply])
    }

    #[track_caller]
    fn state(&self) -> u8 {
        self.halves().unwrap()[0].state
    }

    /// Seconds that each half has left.
    #[track_caller]
    fn left_s(&self) -> [u32; 2] {
        self.halves()
            .unwrap()
            .map(|half| half.expires_s - self.host.clock_s.get())
    }

    #[track_caller]
    fn pair(&self) -> u32 {
        self.halves().unwrap()[0].pair
    }

    fn place(&self) -> Place {
        let key = key(&self.there);
        match (self.host.flows.get(&key), self.host.pending.get(&key)) {
            (None, None) => Place::Nowhere,
            (None, Some(_)) => Place::Pending,
            (Some(_), None) => Place::Established,
            both => panic!("in both tables: {both:?}"),
        }
    }
}

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
    assert_eq!(talk.state() & state::CLOSED, state::CLOSED);
    assert_eq!(talk.left_s(), [10; 2]);
    talk.host.advance(1);
    talk.client(ACK);
    assert_eq!(
        (talk.place(), talk.left_s()),
        (Place::Pending, [9; 2]),
        "closed proves nothing"
    );
}

#[test]
fn a_reset_closes_both_directions() {
    let talk = Talk::established();
    talk.client(RST);
    assert_eq!(talk.state() & state::CLOSED, state::CLOSED);
    assert_eq!((talk.place(), talk.left_s()), (Place::Established, [10; 2]));
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
    let closed = |half: &Flow| half.state & state::CLOSED == state::CLOSED;
    assert!(closed(&forward) && closed(&reply));
    assert_eq!(forward.generation, [1, 9]);
    assert_eq!(talk.left_s(), [10; 2]);
    // SYN, ACK and RST, each once.
    assert_eq!(forward.packets, 3);
}
