//! What the tunnel puts in front of a packet: Ethernet, IP, UDP, GENEVE (RFC 8926, section 3.1)
//! and the inner Ethernet header, as one store.

use datapath_tunnel::geneve;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::ethernet::Ethernet;
use super::ip::{Ipv4, Ipv6};
use super::transport::Udp;

/// Over IPv4: 64 bytes, 50 of them new.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct UnderlayV4 {
    /// Header on the underlay.
    pub ethernet: Ethernet,
    /// IP between the nodes.
    pub ip: Ipv4,
    /// UDP between the nodes.
    pub udp: Udp,
    /// GENEVE.
    pub geneve: geneve::Header,
    /// Header of the frame within.
    pub inner: Ethernet,
}

/// Over IPv6: 84 bytes, 70 of them new.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct UnderlayV6 {
    /// Header on the underlay.
    pub ethernet: Ethernet,
    /// IP between the nodes.
    pub ip: Ipv6,
    /// UDP between the nodes.
    pub udp: Udp,
    /// GENEVE.
    pub geneve: geneve::Header,
    /// Header of the frame within.
    pub inner: Ethernet,
}

/// Room for either.
#[derive(Clone, Copy, Debug, Default)]
pub struct Underlay {
    /// Over IPv4.
    pub v4: UnderlayV4,
    /// Over IPv6.
    pub v6: UnderlayV6,
}

impl Default for UnderlayV4 {
    fn default() -> Self {
        Self::new_zeroed()
    }
}

impl Default for UnderlayV6 {
    fn default() -> Self {
        Self::new_zeroed()
    }
}

/// Bytes that encapsulation over IPv4 adds.
pub const OVERHEAD_V4: u16 = 50;
/// Bytes that encapsulation over IPv6 adds.
pub const OVERHEAD_V6: u16 = 70;

const _: () = assert!(size_of::<UnderlayV4>() == OVERHEAD_V4 as usize + size_of::<Ethernet>());
const _: () = assert!(size_of::<UnderlayV6>() == OVERHEAD_V6 as usize + size_of::<Ethernet>());
