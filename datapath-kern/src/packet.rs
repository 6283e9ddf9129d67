//! The packet as the stages see it: [`Packet`] to read and change it, [`Headers`] once parsed.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::abi::flow::FlowKey;
use crate::abi::mac::MacWords;
use crate::verdict::DropReason;
use crate::wire::checksum;
use crate::wire::ip::protocol;
use crate::wire::underlay::{UnderlayV4, UnderlayV6};

/// Length of an Ethernet header, bytes.
pub const ETHERNET_LEN: u16 = 14;

/// No offset that the datapath reads or writes at is above this one; of the form 2^n - 1, so that
/// the verifier can be shown so by a mask.
pub const MAX_OFFSET: u16 = 511;

/// No transport header that the datapath looks at begins beyond this offset, which leaves room for
/// an outer IPv6 header, UDP, GENEVE with all its options, and inner headers with some of theirs.
pub const MAX_L4_OFFSET: u16 = 448;

/// A frame, read and changed in place.
///
/// In the kernel this is an skb, under test a vector of bytes. Offsets are bytes from the start
/// of the Ethernet header, and at most [`MAX_OFFSET`].
pub trait Packet {
    /// Length of the frame, bytes; more than one segment's worth where offloads are on.
    fn len(&self) -> u32;

    /// Whether there is nothing in it.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Payload of one segment, bytes, where the frame is several that are yet to be cut
    /// (segmentation offload); zero where it is one.
    fn segment_bytes(&self) -> u32;

    /// Interface the hook belongs to.
    fn interface(&self) -> u32;

    /// Whether it came with a VLAN tag, which the kernel takes off before any hook and keeps beside
    /// the frame (`skb_vlan_untag` in `__netif_receive_skb_core`, net/core/dev.c): the bytes do not
    /// show it, and whatever is sent on takes it along.
    fn is_tagged(&self) -> bool {
        false
    }

    /// Whether that tag says a priority alone, and no VLAN (IEEE 802.1Q, 9.6): the stack takes it off
    /// once more and goes on with what is under it.
    fn is_priority_tagged(&self) -> bool {
        false
    }

    /// The packet mark.
    fn mark(&self) -> u32;

    /// Sets the packet mark.
    fn set_mark(&mut self, mark: u32);

    /// Copies a header out of the frame.
    ///
    /// # Errors
    ///
    /// [`DropReason::InvalidPacket`] where the frame ends before the header does.
    fn read<T: FromBytes + Immutable + Copy>(&self, offset: u16) -> Result<T, DropReason>;

    /// Stores a header into the frame.
    ///
    /// # Errors
    ///
    /// [`DropReason::InvalidPacket`] where the frame ends before the header would.
    fn write<T: IntoBytes + Immutable>(&mut self, offset: u16, value: &T)
    -> Result<(), DropReason>;

    /// Changes the transport checksum at `offset` by what became of that which it covers.
    ///
    /// Only the kernel knows whether the field holds a checksum or the seed for one that hardware
    /// will finish. A difference of the addresses belongs to the pseudo header and reaches the seed
    /// as well; one of anything else must not.
    ///
    /// # Errors
    ///
    /// [`DropReason::RewriteFailed`] where the kernel refuses.
    fn fix_checksum(&mut self, offset: u16, change: ChecksumChange) -> Result<(), DropReason>;

    /// Replaces the Ethernet header by `outer`, which ends in the Ethernet header of the frame
    /// within.
    ///
    /// # Errors
    ///
    /// [`DropReason::RewriteFailed`] where the kernel finds no room.
    fn encapsulate_v4(&mut self, outer: &UnderlayV4) -> Result<Wrapped, DropReason>;

    /// As [`Packet::encapsulate_v4`], over IPv6.
    ///
    /// # Errors
    ///
    /// [`DropReason::RewriteFailed`] where the kernel finds no room.
    fn encapsulate_v6(&mut self, outer: &UnderlayV6) -> Result<Wrapped, DropReason>;

    /// Removes `bytes` behind the Ethernet header, which stays and becomes the header of the
    /// inner packet of `family`.
    ///
    /// # Errors
    ///
    /// [`DropReason::RewriteFailed`] where the kernel refuses.
    fn decapsulate(&mut self, bytes: u16, family: Family) -> Result<(), DropReason>;

    /// Cuts the frame off at `length`, which it is longer than or as long as; what came out of a
    /// tunnel at [`MAX_SUM_LEN`] at most. It is one packet from then on, where it was several yet to
    /// be cut. Whether a checksum that was left to hardware still is.
    ///
    /// # Errors
    ///
    /// [`DropReason::RewriteFailed`] where the kernel refuses.
    fn truncate(&mut self, length: u32) -> Result<bool, DropReason>;

    /// Makes room of `bytes` behind the Ethernet header.
    ///
    /// # Errors
    ///
    /// [`DropReason::RewriteFailed`] where the kernel finds no room.
    fn make_room(&mut self, bytes: u16) -> Result<(), DropReason>;

    /// Removes `bytes` of the payload behind an IPv4 header without options.
    ///
    /// # Errors
    ///
    /// [`DropReason::RewriteFailed`] where the kernel refuses.
    fn remove_payload(&mut self, bytes: u16) -> Result<(), DropReason>;

    /// Sends a copy of the frame, as it is, out of an interface, with a number that
    /// [`Packet::ticket`] tells whoever meets it next.
    ///
    /// # Errors
    ///
    /// [`DropReason::RewriteFailed`] where the kernel refuses.
    fn send_copy(&mut self, interface: u32, ticket: u32) -> Result<(), DropReason>;

    /// The number that a copy was sent with.
    fn ticket(&self) -> u32;

    /// Sum, folded, of the `length` bytes at `offset`, [`MAX_SUM_LEN`] at most.
    ///
    /// # Errors
    ///
    /// [`DropReason::InvalidPacket`] where the frame ends before.
    fn sum(&mut self, offset: u16, length: u16) -> Result<u16, DropReason>;
}

/// Most bytes that [`Packet::sum`] takes: what fits into the smallest IPv6 link (RFC 8200,
/// section 5).
pub const MAX_SUM_LEN: u16 = 1280;

/// What the kernel knows of a frame that was put into a tunnel packet.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Wrapped {
    /// Everything: it can resolve the neighbour, and cut the frame into segments.
    Known = 0,
    /// Nothing: to it these are bytes in front of the packet. It can only send them on.
    InFront = 1,
}

/// What became of that which a transport checksum covers. Differences are ones' complement, folded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChecksumChange {
    /// Difference of the addresses, which the pseudo header has.
    pub addresses: u16,
    /// Difference of the rest.
    pub rest: u16,
    /// What the field holds if it is left to hardware, where that is known.
    pub seed: Option<u16>,
    /// Zero in the field means that there is no checksum, and is never the outcome of one (UDP,
    /// RFC 768; over IPv6 tunnels only may go without, RFC 6935).
    pub optional: bool,
    /// The addresses are IPv6.
    pub v6: bool,
}

/// IP version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Family {
    /// IPv4.
    #[default]
    V4 = 0,
    /// IPv6.
    V6 = 1,
}

/// What `stage::parse` found in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// An IP packet, its headers parsed.
    Ip,
    /// ARP; the ARP packet follows the Ethernet header.
    Arp,
    /// Anything else.
    Other,
}

/// An IP packet's headers, parsed once and handed between stages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    /// Tuple of the flow, [`scope::PATH`](crate::abi::flow::scope::PATH).
    pub key: FlowKey,
    /// Ethernet source address.
    pub source_mac: MacWords,
    /// Length of the frame, bytes.
    pub length: u32,
    /// Length of the IP packet, bytes, as its header says.
    pub ip_len: u16,
    /// Offset of the IP header.
    pub l3: u16,
    /// Offset of the transport header.
    pub l4: u16,
    /// IP version.
    pub family: Family,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TCP flags as on the wire; zero for others.
    pub tcp_flags: u8,
    /// Which part of a packet it is.
    pub part: Part,
    /// Identification that the parts of a packet share, as on the wire; of IPv4 in the first two
    /// bytes.
    pub fragment_id: [u8; 4],
    /// Offset of the IPv6 fragment header, where [`Headers::part`] is not all of a packet.
    pub fragment_at: u16,
    /// Where in its packet a fragment lies, in units of eight bytes.
    pub piece_at: u16,
    /// Length of what a fragment holds of what was cut, bytes.
    pub piece_len: u16,
    /// Whether more fragments follow.
    pub more: bool,
    /// Length of the transport header, bytes; zero where it is none that can be segmented.
    pub l4_len: u8,
    /// What kind of packet the transport header makes it.
    pub kind: Kind,
    /// Whether it answers by its very nature, and so begins no flow: an echo reply.
    pub answers: bool,
}

impl Headers {
    /// What stands in the place of the checksum of TCP or UDP where that is left to hardware: the sum
    /// of the pseudo header, which makes what hardware adds up a valid checksum.
    #[inline(always)]
    #[must_use]
    pub fn checksum_seed(&self) -> Option<u16> {
        let FlowKey {
            source,
            destination,
            protocol,
            ..
        } = &self.key;
        if *protocol != protocol::TCP && *protocol != protocol::UDP {
            return None;
        }
        let length = self.ip_len.wrapping_sub(self.l4.wrapping_sub(self.l3));
        let sum = checksum::pseudo(source, destination, length, *protocol);
        Some(checksum::fold(sum))
    }
}

/// Which part of a packet a frame holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Part {
    /// All of it.
    #[default]
    Whole = 0,
    /// Its beginning, transport header included.
    First = 1,
    /// What follows: no transport header.
    Later = 2,
}

/// Kinds of packets that the stages tell apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// TCP, UDP, SCTP, DCCP, UDP-Lite, echo, or a protocol tracked by its addresses alone.
    #[default]
    Flow = 0,
    /// ICMP that is neither echo nor an error.
    IcmpOther = 1,
    /// ICMPv6 neighbour solicitation.
    NeighbourSolicitation = 2,
    /// ICMPv6 neighbour advertisement.
    NeighbourAdvertisement = 3,
    /// ICMPv6 router advertisement or redirect.
    RouterOnly = 4,
    /// An ICMP error, which quotes the packet that it is about.
    IcmpError = 5,
}
