//! Rule sets in the maps of a host, as user space writes them.

use datapath_kern::abi::event::Event;
use datapath_kern::abi::flow::verdict;
use datapath_kern::abi::metric::Direction;
use datapath_kern::abi::policy::{PeerKey, PortKey, PortVerdict, matched, word};
use datapath_kern::env::Table;
use datapath_kern::host::Host;
use datapath_kern::stage::flow::scramble;

/// Protocol number of TCP.
pub(crate) const TCP: u8 = 6;
/// Protocol number of UDP.
pub(crate) const UDP: u8 = 17;

/// Bits of a word that say that a direction needs a rule.
pub(crate) const fn needs(direction: Direction) -> u32 {
    match direction {
        Direction::Ingress => word::INGRESS,
        Direction::Egress => word::EGRESS,
    }
}

/// The direction in which an event says that policy was asked.
pub(crate) fn direction_of(event: &Event) -> Direction {
    Direction::ALL[usize::from(event.head.direction)]
}

/// Switches an endpoint to a word, as user space does: its flows are judged again.
pub(crate) fn switch(host: &Host, slot: u32, word: u32) {
    host.endpoints.update(&slot, |endpoint| {
        endpoint.policy = word;
    });
    host.endpoints
        .update(&slot, |endpoint| endpoint.generation += 1);
}

/// Has a peer be of a class.
pub(crate) fn peer(host: &Host, set: u32, direction: Direction, identity: u32, class: u32) {
    let key = PeerKey::new(set, direction, identity);
    host.policy_peers.set(key, class).unwrap();
}

/// Has a class say something of a port, zero for all of the protocol.
pub(crate) fn port(host: &Host, class: u32, protocol: u8, port: u16, verdict: u8, rule_id: u32) {
    let bits = if port == 0 {
        PortKey::PROTOCOL_BITS
    } else {
        PortKey::PORT_BITS
    };
    let key = PortKey {
        class,
        reserved: 0,
        protocol,
        port: port.into(),
    };
    let verdict = PortVerdict {
        rule_id,
        verdict,
        matched: matched::L3_L4,
        reserved: [0; 2],
    };
    host.policy_ports.borrow_mut().set(bits, key, verdict);
}

/// Has a set allow what an identity begins, or is begun to it, on one port.
pub(crate) fn allow(
    host: &Host,
    set: u32,
    direction: Direction,
    identity: u32,
    to: (u8, u16),
    rule_id: u32,
) {
    let class = rule_id;
    peer(host, set, direction, identity, class);
    port(host, class, to.0, to.1, verdict::ALLOW, rule_id);
}

/// Sets that [`by_chance`] writes rules of.
const SETS: u32 = 7;
/// Classes that it writes.
const CLASSES: u32 = 6;

/// Writes rules about all of `identities` and everyone, of every kind, by chance: the same ones
/// whenever the identities are the same.
pub(crate) fn by_chance(host: &Host, identities: &[u32]) {
    let everyone = [PeerKey::ANY];
    for set in 1..=SETS {
        for direction in Direction::ALL {
            for identity in identities.iter().chain(&everyone) {
                let chance = scramble(scramble((set << 1) | direction as u32) ^ identity);
                // Some have no entry, and some one that says that there is nothing.
                if !chance.is_multiple_of(4) {
                    let class = scramble(chance) % (CLASSES + 1);
                    peer(host, set, direction, *identity, class);
                }
            }
        }
    }
    let mut prefixes = vec![(PortKey::ANY_BITS, 0, 0)];
    for protocol in [1, TCP, UDP, 58] {
        prefixes.push((PortKey::PROTOCOL_BITS, protocol, 0));
        for port in [8, 53, 80, 128] {
            prefixes.push((PortKey::PORT_BITS, protocol, port));
        }
        prefixes.push((PortKey::PORT_BITS - 14, protocol, 0x4000));
    }
    for class in 1..=CLASSES {
        for (number, (bits, protocol, port)) in (1..).zip(&prefixes) {
            let chance = scramble(scramble(class) ^ number);
            if chance.is_multiple_of(3) {
                continue;
            }
            let key = PortKey {
                class,
                reserved: 0,
                protocol: *protocol,
                port: (*port).into(),
            };
            let verdict = PortVerdict {
                rule_id: (class << 8) | number,
                verdict: match (chance >> 8) % 8 {
                    0..4 => verdict::ALLOW,
                    4..7 => verdict::DENY,
                    _ => verdict::NONE,
                },
                matched: chance.to_le_bytes()[2] % 7,
                reserved: [0; 2],
            };
            host.policy_ports.borrow_mut().set(*bits, key, verdict);
        }
    }
}

/// One of the words that may be: with any of the sets of [`by_chance`], without one, and zero.
pub(crate) fn any_word(number: u32) -> u32 {
    let chance = scramble(number);
    let bits = word::INGRESS | word::EGRESS | word::AUDIT;
    match number {
        0 => 0,
        _ => (chance & bits) | (chance % (SETS + 1)),
    }
}
