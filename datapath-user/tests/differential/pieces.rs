//! Fragments that no sender makes, that do not come as they were sent, and too many of them.

use datapath_kern::{abi::mark, host::plan, packet::Family};

use crate::{
    fragments,
    frame::{self, L4, SYN, Tuple},
    traffic::{Arrival, By, Traffic, outside},
    world::NODE,
};

/// Packets that a pod begins: more than the strictest of the settings lets it.
const BEGUN: u16 = 12;
/// Bytes of what is cut, in pieces of [`PIECE`].
const BYTES: usize = 1800;
/// Bytes of a piece.
const PIECE: usize = 96;

impl Traffic {
    /// Repeated, over each other, out of order, too small, and begun without an end.
    pub(crate) fn harmed(&self, all: &mut Vec<Arrival>, family: Family) {
        let own = plan::pod(NODE, 3, family);
        let udp = L4::Udp(45_010, 53);
        let to = [
            (By::Pod(3), plan::pod(NODE, 2, family), 1),
            (By::Pod(3), outside(family), 2),
            // Under the identification that the other one has.
            (By::Pod(2), outside(family), 2),
            (By::StackOut, outside(family), 2),
            (By::Pod(3), plan::pod(2, 1, family), 3),
            (By::Router, plan::pod(NODE, 3, family), 4),
            (By::Stack, plan::pod(NODE, 3, family), 5),
            (By::StackTo(3), plan::pod(NODE, 3, family), 6),
        ];
        for (by, destination, id) in to {
            let source = match by {
                By::Pod(pod) => plan::pod(NODE, pod, family),
                By::StackOut => plan::node(NODE, family),
                _ => outside(family),
            };
            let tuple = Tuple::new(source, destination, udp);
            for step in 0..5 {
                let pieces = self.cut(by, &tuple, BYTES, PIECE, 10 * id + step);
                all.extend(disordered(&pieces, step));
            }
        }
        for (l4, piece) in [(L4::Tcp(45_011, 80, SYN), 16), (udp, 16), (udp, 40)] {
            let tuple = Tuple::new(own, plan::pod(NODE, 2, family), l4);
            all.extend(self.cut(By::Pod(3), &tuple, 100, piece, 90));
        }
        let tuple = Tuple::new(own, plan::pod(NODE, 2, family), udp);
        for id in 0..BEGUN {
            let pieces = self.cut(By::Pod(3), &tuple, 200, PIECE, 100 + id);
            all.extend(pieces.into_iter().take(1));
        }
        self.reordered(all, family);
    }

    /// A packet that comes to a pod by an uplink, its first fragment last; and again, as the stack
    /// sends it once it has put it in order.
    fn reordered(&self, all: &mut Vec<Arrival>, family: Family) {
        let tuple = Tuple::new(
            outside(family),
            plan::pod(NODE, 4, family),
            L4::Udp(45_012, 53),
        );
        let pieces = self.cut(By::Router, &tuple, 900, 400, 200);
        all.extend(pieces.iter().rev().cloned());
        for by in [By::Stack, By::StackTo(4)] {
            let pieces = self.cut(by, &tuple, 900, 400, 200);
            all.extend(pieces.into_iter().map(|piece| Arrival {
                mark: mark::REORDERED,
                ..piece
            }));
        }
    }

    /// A packet in fragments, as it is brought.
    fn cut(&self, by: By, tuple: &Tuple, bytes: usize, piece: usize, id: u16) -> Vec<Arrival> {
        let payload = vec![0x67; bytes];
        let whole = self.brought(by, |from, to| frame::build(from, to, tuple, 64, &payload));
        let pieces = fragments::cut(&whole.frame, piece, id);
        let arrival = |frame| Arrival {
            frame,
            ..whole.clone()
        };
        pieces.into_iter().map(arrival).collect()
    }
}

/// The fragments of a packet, harmed in one way or another.
fn disordered(pieces: &[Arrival], how: u16) -> Vec<Arrival> {
    let mut pieces = pieces.to_vec();
    match how {
        0 => {}
        1 => pieces[1..].reverse(),
        // Each of them twice.
        2 => {
            let twice = pieces.iter().flat_map(|piece| [piece; 2]);
            pieces = twice.cloned().collect();
        }
        // Those with gaps between them first.
        3 => pieces[1..].sort_by_key(|piece| place(piece) / PIECE % 2),
        // Part of one and part of the next.
        _ => {
            let mut over = pieces[2].clone();
            let (at, by) = if over.frame[12..14] == [8, 0] {
                (21, 1)
            } else {
                (57, 8)
            };
            over.frame[at] += by;
            pieces.insert(2, over);
        }
    }
    pieces
}

/// Where in its packet a fragment lies, bytes.
fn place(piece: &Arrival) -> usize {
    let frame = &piece.frame;
    let field = |at: usize| usize::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
    if frame[12..14] == [8, 0] {
        (field(20) & 0x1fff) * 8
    } else {
        field(56) & !7
    }
}
