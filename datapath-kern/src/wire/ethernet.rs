//! Ethernet II.

use zerocopy::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::abi::Mac;

/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;

/// The header: destination 6, source 6, EtherType 2.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Ethernet {
    /// Receiver.
    pub destination: Mac,
    /// Sender.
    pub source: Mac,
    /// What follows.
    pub ether_type: U16,
}

/// The two addresses, as one store.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Macs {
    /// Receiver.
    pub destination: Mac,
    /// Sender.
    pub source: Mac,
}
