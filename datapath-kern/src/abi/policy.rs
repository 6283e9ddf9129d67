//! Policy as it is compiled: who may begin a flow with an endpoint, to which port.
//!
//! Judging one direction of one endpoint takes two steps. Its rule set and the other side's
//! identity lead to a class ([`PeerKey`]); the class, the protocol and the port lead to the verdict
//! ([`PortKey`], longest prefix). Everything that several rules say of one port is resolved when
//! the class is made, deny before allow, so that what is found is the answer.
//!
//! A rule set is never changed where that could be seen half done: another one is written beside
//! it under a new number, and the endpoint's [`word`] is switched by one store. Classes are shared
//! by all rule sets that say the same, and never change.

use zerocopy::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::metric::Direction;

/// Entries of the map from peers to classes, at most.
pub const MAX_PEER_CLASSES: u32 = 1 << 20;

/// Entries of the map from ports to verdicts, at most.
pub const MAX_PORT_VERDICTS: u32 = 1 << 20;

/// The other side of a flow, as one direction of one rule set sees it.
///
/// ```text
/// 0 set 4 | 4 identity 4
/// ```
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct PeerKey {
    /// Number of the rule set, times two, plus the direction as [`Direction`] numbers it.
    pub set: u32,
    /// Security identity; [`PeerKey::ANY`] for all that have no entry of their own.
    pub identity: u32,
}
crate::abi!(PeerKey, size = 8, align = 4);

impl PeerKey {
    /// Identity of the entry that counts where the peer's own identity has none.
    pub const ANY: u32 = 0;

    /// The key of a peer in one direction of a rule set.
    #[inline(always)]
    #[must_use]
    pub const fn new(set: u32, direction: Direction, identity: u32) -> Self {
        Self {
            set: set << 1 | direction as u32,
            identity,
        }
    }
}

/// What a peer's class says of a port: data of a key of the longest-prefix map.
///
/// ```text
/// 0 class 4 | 4 zero 1 | 5 protocol 1 | 6 port 2, network order
/// ```
///
/// A prefix of [`PortKey::ANY_BITS`] stands for every protocol, one of
/// [`PortKey::PROTOCOL_BITS`] for every port of a protocol, a longer one for a block of ports, one
/// of [`PortKey::PORT_BITS`] for one port. ICMP has its type where others have the port; protocols
/// without ports have zero.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct PortKey {
    /// Number of the class.
    pub class: u32,
    /// Zero.
    pub reserved: u8,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port.
    pub port: U16,
}
crate::abi!(PortKey, size = 8, align = 4);

impl PortKey {
    /// Bits of a prefix that stands for every protocol.
    pub const ANY_BITS: u32 = 40;
    /// Bits of a prefix that stands for every port of one protocol.
    pub const PROTOCOL_BITS: u32 = 48;
    /// Bits of a prefix that stands for one port.
    pub const PORT_BITS: u32 = 64;
}

/// What was decided, and by which rule.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct PortVerdict {
    /// The rule; zero where a setting decided and no document did.
    pub rule_id: u32,
    /// [`ALLOW`](super::flow::verdict::ALLOW) or [`DENY`](super::flow::verdict::DENY).
    pub verdict: u8,
    /// How it was found: one of [`matched`].
    pub matched: u8,
    /// Zero.
    pub reserved: [u8; 2],
}
crate::abi!(PortVerdict, size = 8, align = 4);

/// What of a flow a rule named, as Hubble tells them apart.
pub mod matched {
    /// No rule.
    pub const NONE: u8 = 0;
    /// The peer.
    pub const L3_ONLY: u8 = 1;
    /// Peer and port.
    pub const L3_L4: u8 = 2;
    /// The port.
    pub const L4_ONLY: u8 = 3;
    /// Nothing: the rule is about everyone and everything.
    pub const ALL: u8 = 4;
    /// Peer and protocol.
    pub const L3_PROTO: u8 = 5;
    /// The protocol.
    pub const PROTO_ONLY: u8 = 6;
}

/// The word of an endpoint that says how it is judged; zero: it is not.
///
/// ```text
/// 31 ingress | 30 egress | 29 audit | 28 zero | 27..0 number of the rule set
/// ```
pub mod word {
    /// What begins to the endpoint needs a rule that allows it.
    pub const INGRESS: u32 = 0x8000_0000;
    /// What the endpoint begins needs a rule that allows it.
    pub const EGRESS: u32 = 0x4000_0000;
    /// What would be denied is let through, and told.
    pub const AUDIT: u32 = 0x2000_0000;
    /// Mask of the rule set's number; zero: it has none, so that nothing is allowed in a direction
    /// that needs a rule.
    pub const SET: u32 = 0x0fff_ffff;
}
