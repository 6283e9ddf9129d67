//! What segments do to a TCP flow, by the rules of `stage::tcp`.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod support;

use datapath_kern::abi::flow::state::{
    CLOSED, CLOSED_ORIGINAL, CLOSED_REPLY, ESTABLISHED, REPLIED, RESET, RESET_ORIGINAL,
    RESET_REPLY, is_over,
};
use datapath_kern::abi::metric::Direction;
use datapath_kern::abi::tally::Tally;
use datapath_kern::env::Table;
use datapath_kern::packet::Family;
use datapath_kern::stage::tcp;
use datapath_kern::verdict::DropReason;
use proptest::prelude::*;
use support::frame::{ACK, FIN, L4, RST, SYN};
use support::talk::{Place, Talk};
use support::{entry, from_pod, from_router, key, node};

/// Sends a segment as one of the sides.
type Side = fn(&Talk, u8);

#[test]
fn a_reset_leaves_ten_seconds_if_its_sender_stays_silent() {
    let talk = Talk::established();
    talk.client(RST);
    assert_eq!(talk.state() & RESET, RESET_ORIGINAL);
    assert_eq!((talk.place(), talk.left_s()), (Place::Established, [10; 2]));
    talk.host.advance(4);
    // What was on its way, and the answers to it.
    talk.server(ACK);
    talk.client(RST);
    talk.client(RST | ACK);
    assert_eq!(talk.left_s(), [6; 2]);
    talk.host.advance(6);
    talk.server_out(ACK);
    assert_ne!(talk.place(), Place::Established);
    assert_eq!(talk.host.tallied(Tally::Reset), 1);
}

#[test]
fn a_forged_reset_does_not_end_a_flow_that_goes_on() {
    for by_client in [true, false] {
        let talk = Talk::established();
        let pair = talk.pair();
        let (own, others): (Side, Side) = if by_client {
            (Talk::client, Talk::server)
        } else {
            (Talk::server, Talk::client)
        };
        own(&talk, RST);
        others(&talk, ACK);
        assert_eq!(talk.left_s(), [10; 2], "the other side proves nothing");
        talk.host.advance(9);
        own(&talk, ACK);
        assert_eq!(talk.state(), REPLIED | ESTABLISHED);
        assert_eq!(talk.left_s(), [8000; 2], "both halves");
        talk.host.advance(5000);
        own(&talk, ACK);
        others(&talk, ACK);
        assert_eq!((talk.place(), talk.pair()), (Place::Established, pair));
        assert_eq!(talk.host.tallied(Tally::ResetRevoked), 1);
    }
}

#[test]
fn resets_of_both_sides_are_taken_back_one_by_one() {
    let talk = Talk::established();
    talk.client(RST);
    talk.server(RST);
    talk.host.advance(1);
    talk.client(ACK);
    assert_eq!((talk.state() & RESET, talk.left_s()), (RESET_REPLY, [9; 2]));
    talk.server(ACK);
    assert_eq!((talk.state() & RESET, talk.left_s()), (0, [8000; 2]));
}

#[test]
fn a_flow_closed_by_both_sides_stays_so_whatever_reset_is_taken_back() {
    let talk = Talk::established();
    talk.client(FIN | ACK);
    talk.server(FIN | ACK);
    talk.host.advance(1);
    talk.client(RST);
    talk.client(ACK);
    assert_eq!((talk.state() & CLOSED, talk.left_s()), (CLOSED, [9; 2]));
    assert_eq!(talk.host.tallied(Tally::Closed), 1);
    assert_eq!(talk.host.tallied(Tally::ResetRevoked), 0);
}

#[test]
fn a_fin_in_the_answers_answer_proves_the_flow_too() {
    let talk = Talk::tcp();
    talk.client(SYN);
    talk.server(SYN | ACK);
    talk.client(FIN | ACK);
    assert_eq!(talk.place(), Place::Established);
    assert_eq!(talk.left_s(), [8000; 2], "the server may send for hours");
}

#[test]
fn a_syn_on_a_half_closed_flow_passes_and_its_answer_opens_the_flow() {
    for by_client in [true, false] {
        let talk = Talk::established();
        let pair = talk.pair();
        talk.client(FIN | ACK);
        let (asks, answers): (Side, Side) = if by_client {
            (Talk::client, Talk::server)
        } else {
            (Talk::server, Talk::client)
        };
        asks(&talk, SYN);
        assert_eq!(
            (talk.state() & CLOSED, talk.pair()),
            (CLOSED_ORIGINAL, pair)
        );
        answers(&talk, SYN | ACK);
        assert_eq!((talk.state() & CLOSED, talk.pair()), (0, pair));
        assert_eq!(talk.left_s(), [8000; 2]);
    }
}

#[test]
fn ports_are_used_again_after_a_reset_by_either_side() {
    for (reset, by_client) in [(RST, true), (RST | ACK, false)] {
        let talk = Talk::established();
        let pair = talk.pair();
        if by_client {
            talk.client(reset);
        } else {
            talk.server(reset);
        }
        talk.client(SYN);
        assert_ne!(talk.pair(), pair);
        assert_eq!((talk.place(), talk.state()), (Place::Pending, 0));
        assert_eq!(talk.host.tallied(Tally::PortReused), 1);
        assert_eq!(talk.host.quotas.get(&1).unwrap().established, 0);
    }
}

/// The underlay may carry what others forged: reset and SYN of one side are not proof of each other.
#[test]
fn from_outside_a_reset_and_a_syn_do_not_end_a_flow() {
    let host = node(1, Family::V4);
    let pod = datapath_kern::host::plan::pod(1, 1, Family::V4);
    let outside = datapath_kern::host::plan::outside(Family::V4);
    let there = support::frame::Tuple::new(pod, outside, L4::Tcp(40_000, 80, 0));
    let behind = support::frame::Tuple {
        source: datapath_kern::host::plan::node(1, Family::V4),
        ..there
    };
    let client = |flags| from_pod(&host, 1, 1, &there.with_flags(flags));
    let server = |flags| from_router(&host, 1, &behind.answer(flags));
    client(SYN);
    server(SYN | ACK);
    client(ACK);
    let now = || entry(&host, &key(&there)).unwrap();
    let pair = now().pair;
    server(RST);
    server(SYN);
    assert_eq!((now().pair, now().state & RESET), (pair, RESET_REPLY));
    server(ACK);
    assert_eq!((now().pair, now().state & RESET), (pair, 0));
    // The pod's own SYN is believed.
    server(RST);
    client(SYN);
    assert_ne!(now().pair, pair);
}

#[test]
fn a_port_is_used_again_also_when_the_closed_flow_has_to_be_judged_again() {
    let talk = Talk::established();
    let pair = talk.pair();
    talk.client(FIN | ACK);
    talk.server(FIN | ACK);
    talk.host
        .endpoints
        .update(&2, |endpoint| endpoint.generation = 9);
    talk.client(SYN);
    assert_ne!(talk.pair(), pair);
    assert_eq!(talk.place(), Place::Pending);
}

#[test]
fn only_a_segment_with_ack_is_picked_up_in_the_middle() {
    let mut talk = Talk::tcp();
    for flags in [SYN | ACK, SYN | FIN, SYN | RST, FIN, RST | ACK, 0] {
        talk.client_out(flags)
            .dropped(Direction::Egress, DropReason::TcpWithoutFlow);
    }
    for (port, flags) in [(40_001, ACK), (40_002, FIN | ACK)] {
        talk.there.l4 = L4::Tcp(port, 80, 0);
        talk.client(flags);
        assert_eq!(talk.place(), Place::Pending);
    }
    assert_eq!(talk.host.tallied(Tally::PickedUp), 2);
}

fn states() -> impl Strategy<Value = u8> {
    0..64_u8
}

proptest! {
    #[test]
    fn a_segment_changes_what_its_side_may_change(
        before in states(), reply in any::<bool>(), flags in 0..32_u8,
    ) {
        let after = tcp::next(before, reply, flags);
        let (closed, reset, others_closed, others_reset) = if reply {
            (CLOSED_REPLY, RESET_REPLY, CLOSED_ORIGINAL, RESET_ORIGINAL)
        } else {
            (CLOSED_ORIGINAL, RESET_ORIGINAL, CLOSED_REPLY, RESET_REPLY)
        };
        prop_assert_eq!(after & (REPLIED | ESTABLISHED), before & (REPLIED | ESTABLISHED));
        // Nobody closes or resets in the other's name.
        prop_assert_eq!(after & !before & (others_closed | others_reset), 0);
        let opens = flags & (SYN | ACK | RST) == SYN | ACK && before & CLOSED != CLOSED;
        if !opens {
            prop_assert_eq!(before & !after & CLOSED, 0, "a FIN is not taken back");
            prop_assert_eq!(before & !after & others_reset, 0, "by the other side");
        }
        prop_assert_eq!(after & reset != 0, flags & RST != 0
            || before & reset != 0 && flags & (SYN | ACK) == SYN);
        if flags & (SYN | RST) == 0 {
            prop_assert_eq!(after & closed, before & closed | if flags & FIN != 0 { closed } else { 0 });
        }
        if before & CLOSED == CLOSED {
            prop_assert!(is_over(after), "closed for good");
        }
        // What makes no room is not over, or has been reset by its own side from outside.
        if is_over(before) && !tcp::makes_room(before, reply, true) {
            prop_assert!(before & RESET == reset && before & CLOSED != CLOSED);
        }
        prop_assert_eq!(tcp::makes_room(before, reply, false), is_over(before));
    }

    /// Whatever one side is said to have sent: as long as neither side has closed and both go on
    /// within the time that a reset leaves, the flow stays, with its whole life.
    #[test]
    fn forged_resets_and_syns_of_one_side_leave_the_flow_alive(
        forged in proptest::collection::vec((any::<bool>(), 0..3_u8, 0..9_u32), 1..40),
    ) {
        let talk = Talk::established();
        let pair = talk.pair();
        for (by_client, what, wait_s) in forged {
            let flags = [RST, RST | ACK, ACK][usize::from(what)];
            if by_client { talk.client(flags) } else { talk.server(flags) }
            talk.host.advance(wait_s);
            talk.client(ACK);
            talk.server(ACK);
            prop_assert_eq!((talk.place(), talk.pair()), (Place::Established, pair));
            prop_assert!(talk.left_s().iter().all(|&left| left > 7900));
        }
    }
}
