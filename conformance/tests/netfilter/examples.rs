//! A short sequence for every difference, which ends in it.

use datapath_kern::packet::Family;

use crate::{
    difference::Difference,
    traffic::{
        ACK, About, Conversation, FIN,
        From::{self, Inside, Outside},
        Kind, Protocol, RST, SYN, Sequence, Step, remote,
    },
};

/// First sequence number of the inside, and of the outside.
const OWN: u32 = 1000;
const OTHER: u32 = 5000;

/// Who sends which flags, of the first conversation, with sequence numbers that are in order.
type Segment = (From, u8, u32, u32);

const OPEN: [Segment; 3] = [
    (Inside, SYN, OWN, 0),
    (Outside, SYN | ACK, OTHER, OWN + 1),
    (Inside, ACK, OWN + 1, OTHER + 1),
];
/// The sequence with this number, which shows a difference.
pub(crate) fn of(difference: Difference, number: u32) -> Sequence {
    let then = |segments: &[Segment], last: Segment| {
        let segments = segments.iter().chain([&last]);
        segments.map(|segment| tcp(0, *segment)).collect::<Vec<_>>()
    };
    let tcp_flows = vec![(1, Protocol::Tcp, 443)];
    let (flows, steps) = match difference {
        Difference::SenselessFlags => (tcp_flows, then(&OPEN, (Inside, SYN | FIN, OWN + 1, 0))),
        Difference::PickedUpByFin => (tcp_flows, then(&[], (Inside, FIN | ACK, OWN, OTHER))),
        Difference::BeforeTheAnswer => (tcp_flows, then(&OPEN[..1], (Inside, ACK, OWN + 1, OTHER))),
        Difference::SynFromResponder => (tcp_flows, then(&OPEN, (Outside, SYN, OTHER + 1, 0))),
        Difference::SynAckFromOriginator => (
            tcp_flows,
            then(&OPEN, (Inside, SYN | ACK, OWN + 1, OTHER + 1)),
        ),
        Difference::ResetOutOfPlace => (tcp_flows, then(&OPEN, (Outside, RST, OTHER - 2000, 0))),
        Difference::AfterReset => (
            tcp_flows,
            then(
                &[OPEN[0], (Inside, RST, OWN + 1, 0)],
                (Outside, SYN | ACK, OTHER, OWN + 1),
            ),
        ),
        Difference::PortStillHeld => {
            let mut steps = then(&OPEN[..1], (Outside, RST | ACK, 0, OWN + 1));
            steps.push(tcp(1, OPEN[0]));
            (
                vec![(1, Protocol::Tcp, 443), (2, Protocol::Tcp, 443)],
                steps,
            )
        }
        Difference::ClosedMakesRoom => {
            let mut steps = then(&OPEN, (Inside, RST | ACK, OWN + 1, OTHER + 1));
            steps.push(tcp(0, (Outside, SYN, OTHER + 9000, 0)));
            steps.push(tcp(0, (Outside, ACK, OTHER + 1, OWN + 1)));
            (tcp_flows, steps)
        }
        Difference::ErrorByStranger => {
            let udp = |flow, from| step(flow, from, Kind::Udp(10));
            let steps = vec![
                udp(0, Inside),
                // To the port that the first one has: the second one has none yet.
                udp(1, Outside),
                step(1, Inside, Kind::Error(About::Live(8))),
            ];
            (
                vec![(1, Protocol::Udp, 443), (2, Protocol::Udp, 443)],
                steps,
            )
        }
        Difference::PortElsewhere => {
            let flows = vec![
                (1, Protocol::Udp, 443),
                (2, Protocol::Udp, 443),
                (2, Protocol::Udp, 80),
            ];
            let steps = (0..3).map(|flow| step(flow, Inside, Kind::Udp(10)));
            (flows, steps.collect())
        }
    };
    let family = Family::V4;
    let conversation = |(pod, protocol, remote_port)| Conversation {
        pod,
        protocol,
        port: 50_000 + u16::try_from(number).unwrap(),
        remote: remote(number, family),
        remote_port,
    };
    Sequence {
        family,
        flows: flows.into_iter().map(conversation).collect(),
        steps,
    }
}

fn tcp(flow: usize, (from, flags, seq, ack): Segment) -> Step {
    step(flow, from, Kind::Tcp(flags, seq, ack, 0))
}

fn step(flow: usize, from: From, kind: Kind) -> Step {
    Step { flow, from, kind }
}
