//! What is remembered of the first fragment of a packet, for those that follow it.

use zerocopy::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::addr::Addr;

/// Names a packet that was cut, as RFC 791 and RFC 8200, section 4.5 do.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct FragmentKey {
    /// Source address.
    pub source: Addr,
    /// Destination address.
    pub destination: Addr,
    /// Identification, as it is on the wire; of IPv4 in the first two bytes.
    pub id: [u8; 4],
    /// IP protocol number of the packet.
    pub protocol: u8,
    /// Zero.
    pub reserved: [u8; 3],
}
crate::abi!(FragmentKey, size = 40, align = 8);

/// What only the first fragment says.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Fragment {
    /// Source port or echo identifier.
    pub source_port: U16,
    /// Destination port or echo identifier.
    pub destination_port: U16,
    /// Of no use once `now >= expires_s`; seconds on `CLOCK_MONOTONIC`.
    pub expires_s: u32,
}
crate::abi!(Fragment, size = 8, align = 4);
