//! Flow entries: what an established packet needs, in one lookup.

use zerocopy::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::addr::Addr;

/// Names one direction of a flow as its packets arrive, before any translation.
///
/// Ports are network order. ICMP echo has its identifier in `source_port` of the request and in
/// `destination_port` of the reply, the other port being zero; protocols without ports have both
/// zero.
///
/// ```text
///  0 source 16 | 16 destination 16 | 32 sport 2 | 34 dport 2 | 36 protocol 1 | 37 scope 1 | 38 zero 2
/// ```
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct FlowKey {
    /// Source address.
    pub source: Addr,
    /// Destination address.
    pub destination: Addr,
    /// Source port or echo identifier.
    pub source_port: U16,
    /// Destination port or echo identifier.
    pub destination_port: U16,
    /// IP protocol number; ICMPv6 echo has 58.
    pub protocol: u8,
    /// Where the tuple was seen: [`scope::PATH`] or [`scope::STACK`].
    pub scope: u8,
    /// Zero.
    pub reserved: [u8; 2],
}
crate::abi!(FlowKey, size = 40, align = 8);

/// Values of [`FlowKey::scope`].
pub mod scope {
    /// Seen by a hook that forwards.
    pub const PATH: u8 = 0;
    /// A pod's packet that the host's stack forwards: it was a flow of [`PATH`] already on its way
    /// to the stack, and is another one when it leaves the node.
    pub const STACK: u8 = 1;
}

/// A key is made of words: tables hash it by words, and a processor that loads a word has to wait
/// for the stores of its parts.
impl FlowKey {
    /// The tuple that answers come with, without translation.
    #[inline(always)]
    #[must_use]
    pub fn reversed(&self) -> Self {
        let [a, b, c, d, e, f, g, h, ports, rest]: [u32; 10] = zerocopy::transmute!(*self);
        zerocopy::transmute!([e, f, g, h, a, b, c, d, ports.rotate_left(16), rest])
    }

    /// Enters both ports.
    #[inline(always)]
    pub fn set_ports(&mut self, source: U16, destination: U16) {
        let [.., ports, _] = self.words_mut();
        *ports = zerocopy::transmute!([source, destination]);
    }

    /// Enters the source port.
    #[inline(always)]
    pub fn set_source_port(&mut self, port: U16) {
        self.set_ports(port, self.destination_port);
    }

    /// Enters the destination port.
    #[inline(always)]
    pub fn set_destination_port(&mut self, port: U16) {
        self.set_ports(self.source_port, port);
    }

    /// Enters the protocol, and where the tuple was seen: one of [`scope`].
    #[inline(always)]
    pub fn set_protocol(&mut self, protocol: u8, scope: u8) {
        let [.., rest] = self.words_mut();
        *rest = u32::from_ne_bytes([protocol, scope, 0, 0]);
    }

    #[inline(always)]
    fn words_mut(&mut self) -> &mut [u32; 10] {
        zerocopy::transmute_mut!(self)
    }
}

/// One direction of a flow. Written by the datapath, read and swept by user space.
///
/// Holds all that forwarding an established packet needs; the entry of the other direction (its
/// partner) can be found and rebuilt from it. Counters and times are advisory: two CPUs that
/// handle one direction at once may lose an increment. Counters count frames as the hook sees
/// them, so a segmentation-offloaded frame is one packet.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Flow {
    /// Frames seen.
    pub packets: u64,
    /// Bytes of those frames, link header included.
    pub bytes: u64,
    /// Dead once `now >= expires_s`; seconds on `CLOCK_MONOTONIC`.
    pub expires_s: u32,
    /// Same number in both halves of one incarnation of a flow, never zero.
    pub pair: u32,
    /// The policy rule that decided; zero where none did.
    pub rule_id: u32,
    /// Identity of who sends packets of this direction.
    pub source_identity: u32,
    /// Generations of `from` and `to` under which the flow was judged.
    pub generation: [u32; 2],
    /// Who sends packets of this direction, as [`End`].
    pub from: u16,
    /// Who receives them, as [`End`].
    pub to: u16,
    /// Bits of [`flags`]: arrival, target, rewrite, direction.
    pub flags: u16,
    /// Bits of [`state`]; the same in both halves.
    pub state: u8,
    /// [`verdict`] of the policy.
    pub verdict: u8,
    /// Replaces the source ([`flags::SNAT`]) or the destination ([`flags::DNAT`]).
    pub nat_address: Addr,
    /// Port or echo identifier that goes with `nat_address`, network order.
    pub nat_port: U16,
    /// Difference that the new address makes to a checksum over it, ones' complement, folded.
    pub address_delta: u16,
    /// Difference that the new port makes, likewise.
    pub port_delta: u16,
    /// Index of the next hop; zero where it is still to be found.
    pub next_hop: u16,
    /// Tag that the next hop must bear for the index to be good.
    pub next_hop_tag: u16,
    /// Source port of the tunnel packet: entropy of this flow, host order.
    pub entropy: u16,
    /// Service whose translation this flow is under; zero for none.
    pub service: u32,
}
crate::abi!(Flow, size = 80, align = 8);

/// Bits of [`Flow::flags`].
pub mod flags {
    /// Mask of the target: what is done with packets of this direction.
    pub const TARGET: u16 = 0x0007;
    /// Into the pod `to`.
    pub const TARGET_POD: u16 = 1;
    /// Encapsulated, to the peer `to`.
    pub const TARGET_TUNNEL: u16 = 2;
    /// Out of an uplink as it is.
    pub const TARGET_UPLINK: u16 = 3;
    /// To this node, or through its stack.
    pub const TARGET_HOST: u16 = 4;

    /// Mask of the arrival: the only way by which packets of this direction may come in.
    pub const ARRIVAL: u16 = 0x0038;
    /// From the pod `from`.
    pub const ARRIVAL_POD: u16 = 1 << 3;
    /// From the peer `from`, encapsulated.
    pub const ARRIVAL_TUNNEL: u16 = 2 << 3;
    /// From an uplink as it is.
    pub const ARRIVAL_UPLINK: u16 = 3 << 3;
    /// From this node's stack.
    pub const ARRIVAL_HOST: u16 = 4 << 3;

    /// Against the direction in which the flow began.
    pub const REPLY: u16 = 0x0040;
    /// The source is rewritten.
    pub const SNAT: u16 = 0x0080;
    /// The destination is rewritten.
    pub const DNAT: u16 = 0x0100;
    /// Replies go back through the host's stack, which translated the flow.
    pub const VIA_STACK: u16 = 0x0200;
    /// The flow began in [`scope::STACK`](super::scope::STACK).
    pub const STACK_SCOPE: u16 = 0x0400;
    /// Entered for this node while no policy of its own was in force. Which side began it is not
    /// known, as only what the node sends was seen; policy that comes later does not cut it.
    pub const UNJUDGED: u16 = 0x0800;
}

/// Bits of [`Flow::state`].
pub mod state {
    /// A packet of the reply direction was seen.
    pub const REPLIED: u8 = 0x01;
    /// The originator answered a reply: the flow is proven and lives in the established table.
    pub const ESTABLISHED: u8 = 0x02;
    /// The originator sent FIN.
    pub const CLOSED_ORIGINAL: u8 = 0x04;
    /// The other side sent FIN.
    pub const CLOSED_REPLY: u8 = 0x08;
    /// Both sides are done.
    pub const CLOSED: u8 = CLOSED_ORIGINAL | CLOSED_REPLY;
    /// RST came in the originator's name, and nothing else since.
    pub const RESET_ORIGINAL: u8 = 0x10;
    /// RST came in the other side's name, and nothing else since.
    pub const RESET_REPLY: u8 = 0x20;
    /// One of the sides is said to have reset the flow.
    pub const RESET: u8 = RESET_ORIGINAL | RESET_REPLY;

    /// Whether packets do not make a flow in `state` live longer: both sides closed it, or one
    /// reset it.
    #[inline(always)]
    #[must_use]
    pub const fn is_over(state: u8) -> bool {
        state & CLOSED == CLOSED || state & RESET != 0
    }
}

/// Bits that say which flow tables are being filled from ones of another size; fixed at load.
pub mod resizing {
    /// That of established flows.
    pub const FLOWS: u32 = 0x01;
    /// That of flows not proven yet.
    pub const PENDING: u32 = 0x02;
}

/// Values of [`Flow::verdict`].
pub mod verdict {
    /// Not judged yet; never stored.
    pub const NONE: u8 = 0;
    /// Forwarded.
    pub const ALLOW: u8 = 1;
    /// Dropped.
    pub const DENY: u8 = 2;
    /// Forwarded, though policy denies it: the endpoint is only audited.
    pub const AUDIT: u8 = 3;
}

/// One end of a flow, in sixteen bits: who it is, and which array slot has its generation.
///
/// ```text
/// 0x0000 this node | 0x0001.. a local pod's endpoint slot | 0x8000 the world | 0x8001.. a peer's index
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct End(u16);

impl End {
    /// This node; slot 0 of the endpoints.
    pub const HOST: Self = Self(0);
    /// Whoever is neither pod nor node; index 0 of the peers.
    pub const WORLD: Self = Self(0x8000);

    /// The local pod in `slot` of the endpoints.
    #[inline(always)]
    #[must_use]
    pub const fn endpoint(slot: u16) -> Self {
        Self(slot & 0x7fff)
    }

    /// The node at `index` of the peers.
    #[inline(always)]
    #[must_use]
    pub const fn peer(index: u16) -> Self {
        Self(index | 0x8000)
    }

    /// From the number in an entry.
    #[inline(always)]
    #[must_use]
    pub const fn from_raw(raw: u16) -> Self {
        Self(raw)
    }

    /// The number for an entry.
    #[inline(always)]
    #[must_use]
    pub const fn raw(self) -> u16 {
        self.0
    }

    /// Whether it is outside this node.
    #[inline(always)]
    #[must_use]
    pub const fn is_remote(self) -> bool {
        self.0 & 0x8000 != 0
    }

    /// Slot or index in the array it belongs to.
    #[inline(always)]
    #[must_use]
    pub const fn slot(self) -> u32 {
        (self.0 & 0x7fff) as u32
    }
}

/// Against which counter of which endpoint a flow counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    /// Slot of the endpoint.
    pub slot: u32,
    /// Whether it is counted with the flows that others begin to the endpoint. This node, slot 0,
    /// has those here that it begins to pods: what a flood from outside has it answer does not
    /// keep it from them.
    pub received: bool,
}

impl Flow {
    /// What is done with the packets: one of `flags::TARGET_*`.
    #[inline(always)]
    #[must_use]
    pub const fn target(&self) -> u16 {
        self.flags & flags::TARGET
    }

    /// How the packets must arrive: one of `flags::ARRIVAL_*`.
    #[inline(always)]
    #[must_use]
    pub const fn arrival(&self) -> u16 {
        self.flags & flags::ARRIVAL
    }

    /// Whether all of `bits` are set.
    #[inline(always)]
    #[must_use]
    pub const fn has(&self, bits: u16) -> bool {
        self.flags & bits == bits
    }

    /// Whether the translation changes the port. Replacing a port by itself adds all ones, which
    /// is zero in ones' complement.
    #[inline(always)]
    #[must_use]
    pub const fn port_delta_matters(&self) -> bool {
        self.port_delta != 0xffff
    }

    /// Which endpoint's quota the flow counts against: that of the local end that began it, or of
    /// the pod that it was begun to.
    #[inline(always)]
    #[must_use]
    pub const fn charge(&self) -> Charge {
        let (from, to, target) = if self.has(flags::REPLY) {
            (self.to, self.from, self.arrival() >> 3)
        } else {
            (self.from, self.to, self.target())
        };
        let (from, to) = (End::from_raw(from), End::from_raw(to));
        if from.is_remote() {
            Charge {
                slot: if to.is_remote() { 0 } else { to.slot() },
                received: !to.is_remote() && to.slot() != 0,
            }
        } else {
            Charge {
                slot: from.slot(),
                received: from.slot() == 0 && target != flags::TARGET_UPLINK,
            }
        }
    }

    /// Key under which packets of the other direction are looked up, given this entry's own key.
    #[inline(always)]
    #[must_use]
    pub fn partner_key(&self, key: &FlowKey) -> FlowKey {
        let mut partner = key.reversed();
        if self.has(flags::SNAT) {
            partner.destination = self.nat_address;
            partner.set_destination_port(self.nat_port);
        } else if self.has(flags::DNAT) {
            partner.source = self.nat_address;
            partner.set_source_port(self.nat_port);
        }
        let of_stack = self.has(flags::STACK_SCOPE) && self.has(flags::REPLY);
        let scope = if of_stack { scope::STACK } else { scope::PATH };
        partner.set_protocol(key.protocol, scope);
        partner
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;

    fn key(from: &str, sport: u16, to: &str, dport: u16) -> FlowKey {
        FlowKey {
            source: from.parse::<IpAddr>().unwrap().into(),
            destination: to.parse::<IpAddr>().unwrap().into(),
            source_port: sport.into(),
            destination_port: dport.into(),
            protocol: 6,
            ..FlowKey::default()
        }
    }

    #[test]
    fn partners_find_each_other_through_a_translation() {
        let original = key("10.244.1.5", 40000, "198.51.100.10", 80);
        let forward = Flow {
            flags: flags::SNAT,
            nat_address: "192.0.2.11".parse::<IpAddr>().unwrap().into(),
            nat_port: 50000.into(),
            ..Flow::default()
        };
        let reply_key = forward.partner_key(&original);
        assert_eq!(reply_key, key("198.51.100.10", 80, "192.0.2.11", 50000));
        let reply = Flow {
            flags: flags::DNAT | flags::REPLY,
            nat_address: original.source,
            nat_port: original.source_port,
            ..Flow::default()
        };
        assert_eq!(reply.partner_key(&reply_key), original);
    }

    #[test]
    fn a_flow_of_the_stack_keeps_its_scope_on_one_side_only() {
        let original = FlowKey {
            scope: scope::STACK,
            ..key("10.244.1.5", 1, "198.51.100.10", 2)
        };
        let forward = Flow {
            flags: flags::STACK_SCOPE,
            ..Flow::default()
        };
        let reply_key = forward.partner_key(&original);
        assert_eq!(reply_key.scope, scope::PATH);
        let reply = Flow {
            flags: flags::STACK_SCOPE | flags::REPLY,
            ..Flow::default()
        };
        assert_eq!(reply.partner_key(&reply_key), original);
    }

    #[test]
    fn both_halves_count_against_the_same_endpoint() {
        let pod = End::endpoint(7);
        let (host, world, peer) = (End::HOST, End::WORLD, End::peer(7));
        let (uplink, local) = (flags::TARGET_UPLINK, flags::TARGET_POD);
        let (tunnel, stack) = (flags::TARGET_TUNNEL, flags::TARGET_HOST);
        for (from, to, target, slot, received) in [
            (pod, world, uplink, 7, false),
            (pod, End::endpoint(9), local, 7, false),
            (pod, host, stack, 7, false),
            (world, pod, local, 7, true),
            (peer, pod, local, 7, true),
            (peer, host, stack, 0, false),
            (host, world, uplink, 0, false),
            (host, pod, local, 0, true),
            (host, peer, tunnel, 0, true),
            (world, peer, tunnel, 0, false),
        ] {
            let forward = Flow {
                from: from.raw(),
                to: to.raw(),
                flags: flags::ARRIVAL_HOST | target,
                ..Flow::default()
            };
            let reply = Flow {
                from: to.raw(),
                to: from.raw(),
                flags: flags::TARGET_HOST | target << 3 | flags::REPLY,
                ..Flow::default()
            };
            let charge = Charge { slot, received };
            assert_eq!((forward.charge(), reply.charge()), (charge, charge));
        }
    }

    #[test]
    fn ends_do_not_overlap() {
        assert!(!End::HOST.is_remote() && End::WORLD.is_remote());
        assert_eq!((End::endpoint(7).slot(), End::peer(7).slot()), (7, 7));
        assert_ne!(End::endpoint(7), End::peer(7));
        assert_eq!(End::from_raw(End::peer(9).raw()), End::peer(9));
    }
}
