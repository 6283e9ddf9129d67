//! IPv4 (RFC 791) and IPv6 (RFC 8200).

use zerocopy::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Protocol numbers that the datapath knows by name.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// DCCP (RFC 4340).
    pub const DCCP: u8 = 33;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// IP authentication header (RFC 4302).
    pub const AH: u8 = 51;
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// IPv6 destination options.
    pub const DESTINATION: u8 = 60;
    /// OSPF; for IPv6, RFC 5340.
    pub const OSPF: u8 = 89;
    /// PIM (RFC 7761).
    pub const PIM: u8 = 103;
    /// VRRP (RFC 9568).
    pub const VRRP: u8 = 112;
    /// SCTP (RFC 9260).
    pub const SCTP: u8 = 132;
    /// Mobility header of IPv6 (RFC 6275).
    pub const MOBILITY: u8 = 135;
    /// UDP-Lite (RFC 3828).
    pub const UDP_LITE: u8 = 136;
    /// Host identity protocol (RFC 7401).
    pub const HIP: u8 = 139;
}

/// IPv4 header without options, 20 bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Ipv4 {
    /// Version 4 bits, header length 4 bits in words.
    pub version_ihl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Length of the packet, bytes.
    pub total_len: U16,
    /// Identification.
    pub id: U16,
    /// Flags 3 bits, fragment offset 13 bits in units of eight bytes.
    pub fragment: U16,
    /// Time to live.
    pub ttl: u8,
    /// What follows.
    pub protocol: u8,
    /// Header checksum.
    pub checksum: U16,
    /// Source address.
    pub source: [u8; 4],
    /// Destination address.
    pub destination: [u8; 4],
}

impl Ipv4 {
    /// Flag: must not be fragmented.
    pub const DONT_FRAGMENT: u16 = 0x4000;
    /// Flag: other fragments follow.
    pub const MORE_FRAGMENTS: u16 = 0x2000;

    /// Header length with options, bytes, as far as the field says.
    #[inline(always)]
    #[must_use]
    pub const fn header_len(&self) -> u16 {
        (self.version_ihl & 0x0f) as u16 * 4
    }

    /// Where in its packet a fragment lies, in units of eight bytes.
    #[inline(always)]
    #[must_use]
    pub const fn fragment_offset(&self) -> u16 {
        self.fragment.get() & 0x1fff
    }

    /// Whether more fragments follow.
    #[inline(always)]
    #[must_use]
    pub const fn more_fragments(&self) -> bool {
        self.fragment.get() & Self::MORE_FRAGMENTS != 0
    }
}

/// What is behind the first eight bytes of an [`Ipv4`] header, twelve bytes: all that changes when a
/// packet is routed and translated, but for the identification. Words where they are aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Ipv4Half {
    /// Time to live.
    pub ttl: u8,
    /// What follows.
    pub protocol: u8,
    /// Header checksum, in memory order.
    pub checksum: u16,
    /// Source address.
    pub source: [u8; 4],
    /// Destination address.
    pub destination: [u8; 4],
}

/// IPv6 header, 40 bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Ipv6 {
    /// Version 4 bits, traffic class 8 bits, flow label 20 bits.
    pub version_class_label: U32,
    /// Length of all that follows this header, bytes.
    pub payload_len: U16,
    /// What follows.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source address.
    pub source: [u8; 16],
    /// Destination address.
    pub destination: [u8; 16],
}

impl Ipv6 {
    /// IP version as the header says.
    #[inline(always)]
    #[must_use]
    pub const fn version(&self) -> u32 {
        self.version_class_label.get() >> 28
    }
}

/// First two bytes of every IPv6 extension header but the fragment's.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Extension {
    /// What follows.
    pub next_header: u8,
    /// Length in units of eight bytes, the first eight not counted.
    pub length: u8,
}

/// IPv6 fragment header, 8 bytes (RFC 8200, section 4.5).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct FragmentHeader {
    /// What follows.
    pub next_header: u8,
    /// Zero.
    pub reserved: u8,
    /// Offset 13 bits in units of eight bytes, reserved 2 bits, whether more follow 1 bit.
    pub offset: U16,
    /// Identification.
    pub id: [u8; 4],
}

/// An IP address field of either family, for stores.
#[inline(always)]
#[must_use]
pub fn v6_bytes(address: &crate::abi::addr::Addr) -> [u8; 16] {
    zerocopy::transmute!(address.words())
}
