//! The parts of TCP (RFC 9293), UDP (RFC 768) and ICMP (RFC 792, RFC 4443, RFC 4861) that the
//! datapath reads or writes.

use zerocopy::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::abi::Mac;
use crate::wire::ip::protocol;

/// Source and destination port: the first four bytes of the protocols that [`has_ports`] knows.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Ports {
    /// Source.
    pub source: U16,
    /// Destination.
    pub destination: U16,
}

/// TCP header without options, 20 bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Tcp {
    /// Ports.
    pub ports: Ports,
    /// Sequence number.
    pub sequence: U32,
    /// Acknowledgement number.
    pub acknowledgement: U32,
    /// Header length 4 bits in words, reserved 4 bits.
    pub data_offset: u8,
    /// Bits of [`tcp_flag`].
    pub flags: u8,
    /// Window.
    pub window: U16,
    /// Checksum.
    pub checksum: U16,
    /// Urgent pointer.
    pub urgent: U16,
}

/// Bits of [`Tcp::flags`].
pub mod tcp_flag {
    /// No more data.
    pub const FIN: u8 = 0x01;
    /// Synchronise.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// Acknowledgement is valid.
    pub const ACK: u8 = 0x10;
}

/// UDP header, 8 bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Udp {
    /// Ports.
    pub ports: Ports,
    /// Header and data, bytes.
    pub length: U16,
    /// Checksum; zero for none.
    pub checksum: U16,
}

/// First eight bytes of an ICMP or ICMPv6 echo.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Icmp {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Checksum.
    pub checksum: U16,
    /// Identifier of an echo.
    pub id: U16,
    /// Sequence of an echo.
    pub sequence: U16,
}

impl Icmp {
    /// Length of the header, bytes: of an echo, and of what stands before the quotation in an
    /// error.
    pub const LEN: u16 = 8;
}

/// ICMP types.
pub mod icmp {
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 0;
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 3;
    /// Code of [`UNREACHABLE`]: fragmentation needed, and the packet must not be.
    pub const FRAGMENTATION_NEEDED: u8 = 4;
    /// Echo request.
    pub const ECHO_REQUEST: u8 = 8;
    /// Time exceeded; code zero: on the way.
    pub const TIME_EXCEEDED: u8 = 11;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 12;
}

/// ICMPv6 types.
pub mod icmpv6 {
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 1;
    /// Packet too big.
    pub const TOO_BIG: u8 = 2;
    /// Time exceeded; code zero: on the way.
    pub const TIME_EXCEEDED: u8 = 3;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 4;
    /// Echo request.
    pub const ECHO_REQUEST: u8 = 128;
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 129;
    /// Router advertisement.
    pub const ROUTER_ADVERTISEMENT: u8 = 134;
    /// Neighbour solicitation.
    pub const NEIGHBOUR_SOLICITATION: u8 = 135;
    /// Neighbour advertisement.
    pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    /// Redirect.
    pub const REDIRECT: u8 = 137;
}

/// Neighbour solicitation or advertisement, the target's or source's link-layer address option
/// included: 32 bytes (RFC 4861, sections 4.3, 4.4 and 4.6.1).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Neighbour {
    /// Type.
    pub kind: u8,
    /// Code, zero.
    pub code: u8,
    /// Checksum.
    pub checksum: U16,
    /// Flags of an advertisement in the top three bits.
    pub flags: U32,
    /// The address asked about.
    pub target: [u8; 16],
    /// 1 source, 2 target link-layer address.
    pub option: u8,
    /// 1: eight bytes.
    pub option_len: u8,
    /// The link-layer address.
    pub mac: Mac,
}

impl Neighbour {
    /// Flags of a solicited advertisement by a router that may replace what was known.
    pub const ROUTER_SOLICITED_OVERRIDE: u32 = 0xe000_0000;

    /// Length without the option, bytes.
    pub const FIXED_LEN: u16 = 24;
}

/// Whether the transport header of `protocol` begins with [`Ports`].
#[inline(always)]
#[must_use]
pub const fn has_ports(protocol: u8) -> bool {
    matches!(
        protocol,
        protocol::TCP | protocol::UDP | protocol::SCTP | protocol::DCCP | protocol::UDP_LITE
    )
}

/// Offset of the checksum in the transport header of `protocol`, where there is one that covers
/// addresses or ports and that can be mended by what they change.
///
/// The coverage of UDP-Lite (RFC 3828, section 3.1) and of DCCP (RFC 4340, section 9) may leave
/// out data, never the pseudo header and the ports. SCTP's covers the ports and not the addresses,
/// and is no sum (RFC 9260, section 6.8).
#[inline(always)]
#[must_use]
pub const fn checksum_offset(protocol: u8) -> Option<u16> {
    match protocol {
        protocol::TCP => Some(16),
        protocol::UDP | protocol::UDP_LITE | protocol::DCCP => Some(6),
        protocol::ICMP | protocol::ICMPV6 => Some(2),
        _ => None,
    }
}

/// Whether zero in the checksum of `protocol` means that there is none, and is never the outcome
/// of one. UDP-Lite has a checksum always; its zero is invalid (RFC 3828, section 3.1).
#[inline(always)]
#[must_use]
pub const fn checksum_is_optional(protocol: u8) -> bool {
    matches!(protocol, protocol::UDP | protocol::UDP_LITE)
}

/// Offset of the field that masquerade rewrites in the transport header: a port, or the
/// identifier of an echo.
#[inline(always)]
#[must_use]
pub const fn port_offset(protocol: u8, destination: bool) -> u16 {
    match protocol {
        protocol::ICMP | protocol::ICMPV6 => 4,
        _ if destination => 2,
        _ => 0,
    }
}
