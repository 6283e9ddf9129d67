//! The shapes that a fuzzer's bytes take.

use arbitrary::{Arbitrary, Result, Unstructured};

/// Settings of the node, and how much room there is.
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is a setting of its own"
)]
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) native: bool,
    pub(crate) own_identities: bool,
    pub(crate) strict_tcp: bool,
    pub(crate) netkit: bool,
    pub(crate) uplinks_pass_gso: bool,
    pub(crate) underlay_v6: bool,
    /// Families that are masqueraded.
    pub(crate) masquerade: [bool; 2],
    /// Whether masquerade has four ports; else all.
    pub(crate) few_ports: bool,
    /// Whether the way to the peers is narrow, so that packets are cut.
    pub(crate) narrow: bool,
    pub(crate) answers_per_s: u8,
    /// Entries of the established table, of the pending one, and of fragments.
    pub(crate) room: [u8; 3],
    /// Lifetimes, seconds.
    pub(crate) lives_s: [u8; 5],
}

/// Something that happens.
#[derive(Arbitrary, Clone, Debug)]
pub(crate) enum Step {
    /// A frame arrives, perhaps not as it was made.
    Frame(What, Condition),
    /// It does, just as it was made.
    Sound(What),
    /// Time passes.
    Wait(Span),
    /// The pending table lets go of an entry.
    EvictFlow(u8),
    /// The table of first fragments lets go of an entry.
    EvictFragment(u8),
    /// Insertions are refused: of flows, of fragments, of next hops' claims.
    Refuse([u8; 4]),
    /// What is known of an end changes; of one of this node also how it is judged.
    Generation(u8),
    /// A pod goes, or comes back.
    Pod(u8, bool),
    /// A neighbour's Ethernet address is forgotten, or known again.
    Neighbour(bool),
    /// Policy has its say: a flow is denied.
    Deny(u8),
}

/// How long to wait.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Span {
    Moment,
    Seconds(u8),
    Minutes(u8),
    /// Past the wrap-around of the seconds, or beyond what a clock may jump.
    Long(u32),
}

/// A frame.
#[derive(Arbitrary, Clone, Debug)]
pub(crate) enum What {
    /// One that somebody has a reason to send.
    Made(Made),
    /// The answer to what left last.
    Answer(Flags),
    /// What arrived last, once more.
    Again,
    /// An ICMP error about what left last.
    Error(Complaint),
    /// What a pod asks of the gateway: ARP, or neighbour discovery.
    Neighbour { pod: u8, v6: bool, other: bool },
    /// Bytes.
    Raw(Place, Bytes),
}

/// What a sound frame is.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) struct Made {
    pub(crate) by: By,
    pub(crate) to: To,
    pub(crate) v6: bool,
    pub(crate) l4: Kind,
    /// Source ports are few, so that flows meet.
    pub(crate) port: u8,
    pub(crate) ttl: Ttl,
    pub(crate) payload: Payload,
}

/// By whom.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum By {
    Pod(u8),
    Peer {
        pod: u8,
    },
    Router,
    /// The node's stack, to a pod or a peer's pod.
    Stack,
    /// The node's stack, off the node; in its own name or in a pod's, which it forwards.
    StackOut {
        pod: Option<u8>,
    },
    /// The node's stack, past the gateway pair.
    StackTo(u8),
}

/// To whom.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum To {
    Pod(u8),
    PeerPod(u8),
    Outside(u8),
    Gateway,
    Node,
    PeerNode,
    Router,
    Vacant,
    Multicast,
    Martian,
}

/// Protocols.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Kind {
    Tcp(Flags),
    Udp,
    /// UDP to the tunnel's port.
    Tunnel,
    EchoRequest,
    EchoReply,
    Other(u8),
}

/// TCP flags.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Flags {
    Syn,
    SynAck,
    Ack,
    FinAck,
    Rst,
    Any(u8),
}

impl Flags {
    /// As in the header.
    pub(crate) fn bits(self) -> u8 {
        use crate::support::frame::{ACK, FIN, RST, SYN};
        match self {
            Self::Syn => SYN,
            Self::SynAck => SYN | ACK,
            Self::Ack => ACK,
            Self::FinAck => FIN | ACK,
            Self::Rst => RST,
            Self::Any(bits) => bits & 0x17,
        }
    }
}

/// Time to live, hop limit.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Ttl {
    Usual,
    Last(u8),
}

/// How much a packet carries.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Payload {
    Little,
    Bytes(u8),
    /// About as much as the way takes, or more.
    Much(u16),
}

/// An ICMP error: kind and code of those that are about flows, and what it quotes.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) struct Complaint {
    pub(crate) kind: u8,
    /// Bytes behind the quoted IP header.
    pub(crate) quoted: u8,
    /// Whether the receiver complains; else the router.
    pub(crate) by_receiver: bool,
    pub(crate) value: u16,
}

/// What becomes of a frame before it arrives, and what it comes with.
#[derive(Arbitrary, Clone, Debug)]
pub(crate) struct Condition {
    pub(crate) harms: [Option<Harm>; 3],
    pub(crate) cut: Option<Cut>,
    /// Where it arrives, in place of where it belongs.
    pub(crate) place: Option<Place>,
    pub(crate) mark: Mark,
    /// It came with a tag: of a VLAN, or of a priority alone.
    pub(crate) vlan: Option<bool>,
    /// The transport checksum is left to hardware.
    pub(crate) partial: bool,
    /// It is several segments, yet to be cut.
    pub(crate) segment_bytes: Option<u8>,
    /// It may not be in one piece: the helpers find it so.
    pub(crate) event_room: bool,
}

/// The mark that a frame has.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Mark {
    None,
    ToHost,
    Forwarded,
    Piece,
    Any(u32),
}

/// Something done to a frame.
#[derive(Arbitrary, Clone, Debug)]
pub(crate) enum Harm {
    Set(u8, u8),
    Flip(u8, u8),
    Cut(u8),
    Insert(u8, Bytes),
    Append(u8),
    /// An IPv6 extension header, of so many units of eight bytes.
    Extension(u8),
}

/// A packet in fragments.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) struct Cut {
    /// Payload of a fragment, in units of eight bytes.
    pub(crate) units: u8,
    pub(crate) id: u8,
    /// Which fragments do not come.
    pub(crate) lost: u8,
    pub(crate) backwards: bool,
}

/// A hook with an interface.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Place {
    FromPod(u8),
    ToPod(u8),
    FromUplink,
    ToUplink,
    FromHost,
    ToHost,
}

/// Bytes, up to 255 of them. `Vec` would ask for one more before each.
#[derive(Clone, Debug)]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl<'a> Arbitrary<'a> for Bytes {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let length = usize::from(u8::arbitrary(u)?).min(u.len());
        Ok(Self(u.bytes(length)?.to_vec()))
    }
}
