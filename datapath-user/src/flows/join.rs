//! Two halves made one flow.

use std::borrow::{Borrow, Cow};
use std::hash::{Hash, Hasher};

use datapath_kern::abi::addr::Addr;
use datapath_kern::abi::flow::{Flow, FlowKey, flags, state, verdict};
use datapath_kern::wire::ip::protocol;

use super::names::Names;
use super::pair::{
    FlowEnd, FlowFormat, FlowHalf, FlowNat, FlowPair, FlowState, FlowTableName, FlowVerdict,
    FlowWay, NatKind, Protocol,
};

/// What both halves of one incarnation of a flow have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FlowId {
    /// Key of the original direction.
    pub(crate) original: FlowKey,
    /// Number of the incarnation.
    pub(crate) pair: u32,
}

/// The number is random, and tells nearly all flows apart.
impl Hash for FlowId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u32(self.pair);
    }
}

impl FlowId {
    /// The flow that an entry is a half of.
    pub(crate) fn of(key: &FlowKey, half: &Flow) -> Self {
        let original = if half.has(flags::REPLY) {
            half.partner_key(key)
        } else {
            *key
        };
        Self {
            original,
            pair: half.pair,
        }
    }
}

/// What is known of a flow from the halves seen so far. Arrays have the original direction first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Joined {
    pub(crate) id: FlowId,
    nat: Option<(NatKind, Addr, u16)>,
    packets: [u64; 2],
    bytes: [u64; 2],
    identities: [u32; 2],
    flags: [u16; 2],
    ends: [u16; 2],
    expires_s: u32,
    rule_id: u32,
    state: u8,
    denied: bool,
    /// From which table each half is, where it was seen.
    tables: [Option<FlowTableName>; 2],
}

/// It is found by the flow that it is of.
impl Borrow<FlowId> for Joined {
    fn borrow(&self) -> &FlowId {
        &self.id
    }
}

impl PartialEq for Joined {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Joined {}

impl Hash for Joined {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.id.hash(state);
    }
}

impl Joined {
    /// From one half.
    pub(crate) fn new(id: FlowId, table: FlowTableName, key: &FlowKey, half: &Flow) -> Self {
        let reply = half.has(flags::REPLY);
        let (ends, nat) = if reply {
            // Who answers sends to what the other end was translated to.
            let nat = if half.has(flags::DNAT) {
                let port = key.destination_port.get();
                Some((NatKind::Source, key.destination, port))
            } else if half.has(flags::SNAT) {
                Some((NatKind::Destination, key.source, key.source_port.get()))
            } else {
                None
            };
            ([half.to, half.from], nat)
        } else {
            let kind = if half.has(flags::SNAT) {
                Some(NatKind::Source)
            } else if half.has(flags::DNAT) {
                Some(NatKind::Destination)
            } else {
                None
            };
            let nat = kind.map(|kind| (kind, half.nat_address, half.nat_port.get()));
            ([half.from, half.to], nat)
        };
        let mut joined = Self {
            id,
            nat,
            ends,
            packets: [0; 2],
            bytes: [0; 2],
            identities: [0; 2],
            flags: [0; 2],
            expires_s: 0,
            rule_id: 0,
            state: 0,
            denied: false,
            tables: [None; 2],
        };
        joined.add(table, half);
        joined
    }

    /// Adds what a half says; one that was there is replaced by it.
    pub(crate) fn add(&mut self, table: FlowTableName, half: &Flow) {
        let reply = half.has(flags::REPLY);
        set(&mut self.tables, reply, Some(table));
        set(&mut self.packets, reply, half.packets);
        set(&mut self.bytes, reply, half.bytes);
        set(&mut self.identities, reply, half.source_identity);
        set(&mut self.flags, reply, half.flags);
        // Either half keeps the flow.
        self.expires_s = self.expires_s.max(half.expires_s);
        if half.rule_id != 0 {
            self.rule_id = half.rule_id;
        }
        self.state |= half.state;
        self.denied |= half.verdict == verdict::DENY;
    }

    /// Whether both halves were seen in this table.
    pub(crate) fn is_whole_in(&self, table: FlowTableName) -> bool {
        self.tables == [Some(table); 2]
    }

    /// Whether both halves were seen, wherever.
    pub(crate) fn is_whole(&self) -> bool {
        self.tables.iter().all(Option::is_some)
    }

    /// Keys of the original direction and of the answers.
    pub(crate) fn keys(&self) -> [FlowKey; 2] {
        let original = self.id.original;
        let mut answers = original;
        if let Some((kind, address, port)) = self.nat {
            match kind {
                NatKind::Source => {
                    answers.source = address;
                    answers.source_port = port.into();
                }
                NatKind::Destination => {
                    answers.destination = address;
                    answers.destination_port = port.into();
                }
            }
        }
        let mut answers = answers.reversed();
        answers.scope = datapath_kern::abi::flow::scope::PATH;
        [original, answers]
    }

    /// What it is ordered by.
    pub(crate) fn all_packets(&self) -> u64 {
        self.packets.iter().fold(0, |sum, &n| sum.saturating_add(n))
    }

    /// What it is ordered by.
    pub(crate) fn all_bytes(&self) -> u64 {
        self.bytes.iter().fold(0, |sum, &n| sum.saturating_add(n))
    }

    /// The second at which it is dead.
    pub(crate) fn expires_s(&self) -> u32 {
        self.expires_s
    }

    /// For people; `now_s` is the second that it is.
    pub(crate) fn view<'a>(&self, names: &'a Names, now_s: u32) -> FlowPair<'a> {
        let key = &self.id.original;
        let [source, destination] = self.ends;
        let [source_identity, destination_identity] = self.identities;
        let end = |raw, identity, address: Addr, port| {
            let (kind, name) = names.get(raw);
            FlowEnd {
                kind,
                name: Cow::Borrowed(name),
                identity,
                address: address.to_ip(),
                port,
            }
        };
        let [packets, reply_packets] = self.packets;
        let [bytes, reply_bytes] = self.bytes;
        let [original, answers] = self.flags;
        let established = self.tables.contains(&Some(FlowTableName::Established));
        let missing = match self.tables {
            [None, _] => Some(FlowHalf::Original),
            [_, None] => Some(FlowHalf::Reply),
            _ => None,
        };
        // Arrivals are numbered as targets are, further up; the answers go where it came from.
        let (arrival, target) = if missing == Some(FlowHalf::Original) {
            (answers & flags::TARGET, (answers & flags::ARRIVAL) >> 3)
        } else {
            ((original & flags::ARRIVAL) >> 3, original & flags::TARGET)
        };
        FlowPair {
            format: FlowFormat,
            protocol: Protocol(key.protocol),
            source: end(source, source_identity, key.source, key.source_port.get()),
            destination: end(
                destination,
                destination_identity,
                key.destination,
                key.destination_port.get(),
            ),
            nat: self.nat.map(|(kind, address, port)| FlowNat {
                kind,
                address: address.to_ip(),
                port,
            }),
            state: state_of(key.protocol, self.state),
            verdict: if self.denied {
                FlowVerdict::Deny
            } else {
                FlowVerdict::Allow
            },
            table: if established {
                FlowTableName::Established
            } else {
                FlowTableName::Pending
            },
            arrival: way(arrival),
            target: way(target),
            via_stack: (original | answers) & flags::VIA_STACK != 0,
            packets,
            bytes,
            reply_packets,
            reply_bytes,
            expires_in_s: self.expires_s.saturating_sub(now_s),
            rule_id: self.rule_id,
            pair: self.id.pair,
            missing,
        }
    }
}

fn set<T>(both: &mut [T; 2], reply: bool, value: T) {
    let [original, answers] = both;
    *(if reply { answers } else { original }) = value;
}

fn state_of(protocol: u8, bits: u8) -> FlowState {
    let closed = bits & state::CLOSED;
    if bits & state::RESET != 0 {
        FlowState::Reset
    } else if closed == state::CLOSED {
        FlowState::Closed
    } else if closed != 0 {
        FlowState::Closing
    } else if bits & state::ESTABLISHED != 0 {
        FlowState::Established
    } else if bits & state::REPLIED != 0 {
        FlowState::Replied
    } else if protocol == protocol::TCP {
        FlowState::Syn
    } else {
        FlowState::Unreplied
    }
}

fn way(target: u16) -> FlowWay {
    match target {
        flags::TARGET_POD => FlowWay::Pod,
        flags::TARGET_TUNNEL => FlowWay::Tunnel,
        flags::TARGET_UPLINK => FlowWay::Uplink,
        flags::TARGET_HOST => FlowWay::Host,
        _ => FlowWay::Unknown,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::{IpAddr, SocketAddr};

    use datapath_kern::abi::flow::End;

    use super::*;

    /// A key of TCP.
    pub(crate) fn key(source: &str, destination: &str) -> FlowKey {
        let [source, destination] =
            [source, destination].map(|text| text.parse::<SocketAddr>().unwrap());
        FlowKey {
            source: source.ip().into(),
            destination: destination.ip().into(),
            source_port: source.port().into(),
            destination_port: destination.port().into(),
            protocol: protocol::TCP,
            ..FlowKey::default()
        }
    }

    /// Both halves of a masqueraded connection of the pod in slot 1.
    pub(crate) fn masqueraded(port: u16, pair: u32) -> [(FlowKey, Flow); 2] {
        let original_key = key(&format!("10.244.1.2:{port}"), "198.51.100.10:80");
        let original = Flow {
            packets: 12,
            bytes: 3456,
            expires_s: 1000,
            pair,
            source_identity: 1001,
            from: End::endpoint(1).raw(),
            to: End::WORLD.raw(),
            flags: flags::SNAT | flags::ARRIVAL_POD | flags::TARGET_UPLINK,
            state: state::REPLIED | state::ESTABLISHED,
            verdict: verdict::ALLOW,
            nat_address: "192.0.2.11".parse::<IpAddr>().unwrap().into(),
            nat_port: (port ^ 1).into(),
            ..Flow::default()
        };
        let answers = Flow {
            packets: 10,
            bytes: 123_456,
            expires_s: 990,
            source_identity: 2,
            from: original.to,
            to: original.from,
            flags: flags::DNAT | flags::REPLY | flags::ARRIVAL_UPLINK | flags::TARGET_POD,
            nat_address: original_key.source,
            nat_port: original_key.source_port,
            ..original
        };
        [
            (original_key, original),
            (original.partner_key(&original_key), answers),
        ]
    }

    pub(crate) fn names() -> Names {
        Names::new([(1, "web-0"), (2, "web-1")], [(1, "n2")])
    }

    fn joined(halves: &[(FlowKey, Flow)]) -> Joined {
        let mut joined = None::<Joined>;
        for (key, half) in halves {
            let id = FlowId::of(key, half);
            let table = FlowTableName::Established;
            match &mut joined {
                Some(joined) => {
                    assert_eq!(joined.id, id);
                    joined.add(table, half);
                }
                None => joined = Some(Joined::new(id, table, key, half)),
            }
        }
        joined.unwrap()
    }

    #[test]
    fn halves_make_the_same_flow_in_any_order() {
        let names = names();
        let halves = masqueraded(40_000, 9);
        let [first, second] = halves;
        let view = joined(&[first, second]).view(&names, 900);
        assert_eq!(joined(&[second, first]).view(&names, 900), view);
        assert_eq!((view.packets, view.reply_packets), (12, 10));
        assert_eq!((view.expires_in_s, view.missing), (100, None));
        assert_eq!((view.arrival, view.target), (FlowWay::Pod, FlowWay::Uplink));
        let nat = view.nat.unwrap();
        assert_eq!(
            (nat.kind, nat.socket()),
            (NatKind::Source, "192.0.2.11:40001".parse().unwrap())
        );
        assert_eq!((view.source.identity, view.destination.identity), (1001, 2));
    }

    #[test]
    fn one_half_tells_all_but_the_others_counts() {
        let names = names();
        let [original, answers] = masqueraded(40_000, 9);
        let whole = joined(&[original, answers]).view(&names, 900);
        for (half, missing) in [(original, FlowHalf::Reply), (answers, FlowHalf::Original)] {
            let joined = joined(&[half]);
            assert!(!joined.is_whole());
            let lonely = joined.view(&names, 900);
            assert_eq!(lonely.missing, Some(missing));
            assert_eq!(lonely.source.socket(), whole.source.socket());
            assert_eq!(lonely.source.name, whole.source.name);
            assert_eq!(lonely.destination.socket(), whole.destination.socket());
            assert_eq!((lonely.nat, lonely.state), (whole.nat, whole.state));
            assert_eq!(
                (lonely.arrival, lonely.target),
                (whole.arrival, whole.target)
            );
            assert_eq!(joined.keys(), [original.0, answers.0]);
        }
    }

    #[test]
    fn a_state_is_one_word() {
        use protocol::{TCP, UDP};
        let cases = [
            (TCP, 0, FlowState::Syn),
            (UDP, 0, FlowState::Unreplied),
            (UDP, state::REPLIED, FlowState::Replied),
            (
                TCP,
                state::REPLIED | state::ESTABLISHED,
                FlowState::Established,
            ),
            (
                TCP,
                state::REPLIED | state::CLOSED_REPLY,
                FlowState::Closing,
            ),
            (TCP, state::ESTABLISHED | state::CLOSED, FlowState::Closed),
            (TCP, state::CLOSED | state::RESET_REPLY, FlowState::Reset),
        ];
        for (protocol, bits, word) in cases {
            assert_eq!(state_of(protocol, bits), word);
        }
    }
}
