//! Packets of a few conversations, in an order by chance that mostly makes sense.

use std::net::IpAddr;

use datapath_kern::{host::plan, packet::Family};
use proptest::{prelude::*, test_runner::TestRng};

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const PSH: u8 = 8;
pub(crate) const ACK: u8 = 16;

/// Inside hosts.
pub(crate) const PODS: u8 = 3;
/// Conversations of a sequence.
const MOST_FLOWS: usize = 4;

/// Who sends a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    Inside,
    Outside,
}

/// What two ends talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
    Echo,
}

/// A conversation, begun from inside: by which tuple.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conversation {
    pub(crate) pod: u8,
    pub(crate) protocol: Protocol,
    /// Source port of the inside, or identifier.
    pub(crate) port: u16,
    pub(crate) remote: IpAddr,
    pub(crate) remote_port: u16,
}

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// TCP flags, sequence number, acknowledgement, bytes of payload.
    Tcp(u8, u32, u32, usize),
    Udp(usize),
    /// A request from inside, an answer from outside; the other way round where `turned`.
    Echo {
        turned: bool,
    },
    /// An ICMP error about the last packet that this side got of the conversation.
    Error(About),
}

/// What an ICMP error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum About {
    /// The packet as it was, with so many bytes of what it carries.
    Live(usize),
    /// One like it, of ports that nobody used.
    Nobody,
    /// One like it, to somebody else.
    SomebodyElse,
}

/// A packet of a sequence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    /// Index of the conversation.
    pub(crate) flow: usize,
    pub(crate) from: From,
    pub(crate) kind: Kind,
}

/// Conversations, and the packets in order.
#[derive(Clone, Debug)]
pub(crate) struct Sequence {
    pub(crate) family: Family,
    pub(crate) flows: Vec<Conversation>,
    pub(crate) steps: Vec<Step>,
}

impl Sequence {
    /// The sequence with this number; its remote addresses are its own.
    pub(crate) fn by_chance(number: u32, rng: &mut TestRng) -> Self {
        let family = if rng.random() { Family::V4 } else { Family::V6 };
        let remote = remote(number, family);
        let count = rng.random_range(1..=MOST_FLOWS);
        let protocols = [Protocol::Tcp, Protocol::Tcp, Protocol::Udp, Protocol::Echo];
        let main = protocols[rng.random_range(0..protocols.len())];
        // Of its own too: netfilter gives a source the port that it has towards others.
        let port = 2000 + 2 * u16::try_from(number % 20_000).unwrap();
        let flows: Vec<_> = (0..count)
            .map(|_| Conversation {
                pod: rng.random_range(1..=PODS),
                // Most are of one kind, so that they meet.
                protocol: if rng.random_range(0..4) == 0 {
                    protocols[rng.random_range(0..protocols.len())]
                } else {
                    main
                },
                port: port + rng.random_range(0..2_u16),
                remote,
                remote_port: if rng.random_range(0..6) == 0 { 80 } else { 443 },
            })
            .collect();
        let flows = without_doubles(flows);
        let mut talks: Vec<_> = flows.iter().map(|_| Talk::by_chance(rng)).collect();
        let length = rng.random_range(6..40);
        let steps = (0..length)
            .map(|_| {
                let flow = rng.random_range(0..flows.len());
                let (from, kind) = talks[flow].next(flows[flow].protocol, rng);
                Step { flow, from, kind }
            })
            .collect();
        Self {
            family,
            flows,
            steps,
        }
    }
}

/// Somebody outside whom only this sequence talks to.
pub(crate) fn remote(number: u32, family: Family) -> IpAddr {
    let [_, high, middle, low] = number.to_be_bytes();
    match family {
        Family::V4 => IpAddr::from([100, 64 | high & 0x3f, middle, low]),
        Family::V6 => {
            let last = u16::from_be_bytes([middle, low]);
            IpAddr::from([0x2001, 0xdb8, 0xffff, 0, 0, 0, high.into(), last])
        }
    }
}

/// Conversations of different tuples: two of one would be one.
fn without_doubles(flows: Vec<Conversation>) -> Vec<Conversation> {
    let mut kept: Vec<Conversation> = Vec::new();
    for flow in flows {
        let same = |other: &Conversation| {
            let same_port =
                other.remote_port == flow.remote_port || flow.protocol == Protocol::Echo;
            same_port
                && (other.pod, other.protocol, other.port) == (flow.pod, flow.protocol, flow.port)
        };
        if !kept.iter().any(same) {
            kept.push(flow);
        }
    }
    kept
}

impl Conversation {
    /// Address of the inside.
    pub(crate) fn inside(&self) -> IpAddr {
        let family = if self.remote.is_ipv4() {
            Family::V4
        } else {
            Family::V6
        };
        plan::pod(1, self.pod, family)
    }
}

/// How a connection goes, if it goes well: who sends which flags, and how much.
type Script = &'static [(From, u8, usize)];

use self::From::{Inside, Outside};

const OPEN: Script = &[
    (Inside, SYN, 0),
    (Outside, SYN | ACK, 0),
    (Inside, ACK, 0),
    (Inside, PSH | ACK, 30),
    (Outside, ACK, 0),
    (Outside, PSH | ACK, 40),
    (Inside, ACK, 0),
];
const SCRIPTS: [Script; 8] = [
    // Closed by the one who began, half for a while.
    &[
        (Inside, FIN | ACK, 0),
        (Outside, ACK, 0),
        (Outside, PSH | ACK, 20),
        (Inside, ACK, 0),
        (Outside, FIN | ACK, 0),
        (Inside, ACK, 0),
    ],
    // By the other.
    &[
        (Outside, FIN | ACK, 0),
        (Inside, ACK, 0),
        (Inside, FIN | ACK, 0),
        (Outside, ACK, 0),
    ],
    // By both at once.
    &[
        (Inside, FIN | ACK, 0),
        (Outside, FIN | ACK, 0),
        (Inside, ACK, 0),
        (Outside, ACK, 0),
    ],
    &[(Inside, RST | ACK, 0)],
    &[(Outside, RST | ACK, 0)],
    &[(Outside, RST, 0)],
    // Sent twice, as what was lost is.
    &[
        (Inside, FIN | ACK, 0),
        (Outside, FIN | ACK, 0),
        (Inside, ACK, 0),
    ],
    // Idle.
    &[(Inside, ACK, 0), (Outside, ACK, 0), (Inside, PSH | ACK, 9)],
];

/// The state of a conversation, as its ends see it.
struct Talk {
    /// Where the opening is, or the closing behind it.
    at: usize,
    close: Script,
    /// Next sequence numbers: the inside's, the outside's.
    next: [u32; 2],
    begun: bool,
}

impl Talk {
    fn by_chance(rng: &mut TestRng) -> Self {
        let mut isn = || {
            if rng.random_range(0..3) == 0 {
                // About to wrap around.
                u32::MAX - rng.random_range(0..60_u32)
            } else {
                rng.random()
            }
        };
        let next = [isn(), isn()];
        // Some begin in the middle, or at once with what should come last.
        let at = match rng.random_range(0..10) {
            0 => 3,
            1 => OPEN.len(),
            _ => 0,
        };
        Self {
            at,
            close: SCRIPTS[rng.random_range(0..SCRIPTS.len())],
            next,
            begun: false,
        }
    }

    fn next(&mut self, protocol: Protocol, rng: &mut TestRng) -> (From, Kind) {
        let by_chance = if rng.random() { Inside } else { Outside };
        if self.begun && rng.random_range(0..14) == 0 {
            let about = match rng.random_range(0..6) {
                0 => About::Nobody,
                1 => About::SomebodyElse,
                2 => About::Live(usize::MAX),
                _ => About::Live(8),
            };
            return (by_chance, Kind::Error(about));
        }
        self.begun = true;
        match protocol {
            Protocol::Udp => (by_chance, Kind::Udp(rng.random_range(0..50))),
            Protocol::Echo => {
                let turned = rng.random_range(0..8) == 0;
                (by_chance, Kind::Echo { turned })
            }
            Protocol::Tcp => self.segment(rng),
        }
    }

    fn segment(&mut self, rng: &mut TestRng) -> (From, Kind) {
        if rng.random_range(0..12) == 0 {
            return self.wild(rng);
        }
        let at = self.at;
        let script = OPEN.get(at).or_else(|| self.close.get(at - OPEN.len()));
        let Some(&(from, flags, length)) = script else {
            // Again, by the same ports.
            self.at = 0;
            self.close = SCRIPTS[rng.random_range(0..SCRIPTS.len())];
            self.next = self.next.map(|next| next.wrapping_add(0x0010_0000));
            return self.segment(rng);
        };
        let again = rng.random_range(0..10) == 0;
        let kind = self.told(from, flags, length, !again);
        if !again {
            self.at += 1;
        }
        (from, kind)
    }

    /// A segment that fits in; what it takes of the sequence is taken where it `counts`.
    fn told(&mut self, from: From, flags: u8, length: usize, counts: bool) -> Kind {
        let own = usize::from(from == Outside);
        let seq = self.next[own];
        let ack = if flags & ACK == 0 {
            0
        } else {
            self.next[1 - own]
        };
        if counts {
            let bytes = u32::try_from(length).unwrap();
            let taken = bytes + u32::from(flags & (SYN | FIN) != 0);
            self.next[own] = seq.wrapping_add(taken);
        }
        Kind::Tcp(flags, seq, ack, length)
    }

    /// A segment that does not fit in: other flags, another sender, or another place.
    fn wild(&mut self, rng: &mut TestRng) -> (From, Kind) {
        let from = if rng.random() { Inside } else { Outside };
        let usual = [
            SYN,
            SYN | ACK,
            ACK,
            FIN | ACK,
            RST,
            RST | ACK,
            PSH | ACK,
            FIN,
            SYN | FIN,
            0,
        ];
        let flags = usual[rng.random_range(0..usual.len())];
        let kind = self.told(from, flags, rng.random_range(0..3) * 10, false);
        let Kind::Tcp(flags, seq, ack, length) = kind else {
            return (from, kind);
        };
        let seq = match rng.random_range(0..3) {
            0 => seq.wrapping_add(rng.random()),
            _ => seq,
        };
        (from, Kind::Tcp(flags, seq, ack, length))
    }
}
