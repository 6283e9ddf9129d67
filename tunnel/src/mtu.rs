//! How large a pod's packets may be, so that they fit through the tunnel.
//!
//! What GENEVE puts around an inner IP packet, in bytes:
//!
//! | | IPv4 underlay | IPv6 underlay |
//! |---|---|---|
//! | outer IP header | 20 | 40 |
//! | UDP header | 8 | 8 |
//! | GENEVE header | 8 | 8 |
//! | inner Ethernet header | 14 | 14 |
//! | together | 50 | 70 |
//!
//! Options come on top. Give the result to the pods' *routes* and leave their devices at the
//! uplink's MTU: then packets that did not come through a tunnel are not too large for the pod.

use core::fmt;

use crate::geneve::{HEADER_LEN, MAX_OPTIONS_LEN};

/// Outer IP header without options, in bytes.
const IPV4_HEADER_LEN: u32 = 20;
const IPV6_HEADER_LEN: u32 = 40;
const UDP_HEADER_LEN: u32 = 8;
const ETHERNET_HEADER_LEN: u32 = 14;
#[expect(clippy::cast_possible_truncation, reason = "it is 8")]
const GENEVE_HEADER_LEN: u32 = HEADER_LEN as u32;

/// Smallest MTU for IPv4 pods: what every host must be able to take (RFC 791 section 3.1).
///
/// The kernel would go down to 68, at the price of a fragment for nearly every packet.
pub const MIN_IPV4_MTU_BYTES: u32 = 576;
/// Smallest MTU for IPv6 pods (RFC 8200 section 5). The kernel takes IPv6 off a smaller interface.
pub const MIN_IPV6_MTU_BYTES: u32 = 1280;
/// Largest MTU that the kernel takes for a route (`ip_metrics_convert`, `net/ipv4/metrics.c`).
pub const MAX_ROUTE_MTU_BYTES: u32 = 65_520;

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl From<core::net::IpAddr> for Family {
    fn from(address: core::net::IpAddr) -> Self {
        if address.is_ipv4() {
            Self::V4
        } else {
            Self::V6
        }
    }
}

/// Returns what GENEVE adds to an inner IP packet, in bytes.
///
/// `options_len` is the length of the GENEVE options in bytes, a multiple of 4 up to 252.
///
/// # Errors
///
/// [`MtuError::Options`] for another length.
pub const fn geneve_overhead(underlay: Family, options_len: usize) -> Result<u32, MtuError> {
    if options_len > MAX_OPTIONS_LEN || !options_len.is_multiple_of(4) {
        return Err(MtuError::Options { len: options_len });
    }
    let ip_header_len = match underlay {
        Family::V4 => IPV4_HEADER_LEN,
        Family::V6 => IPV6_HEADER_LEN,
    };
    #[expect(clippy::cast_possible_truncation, reason = "at most 252, seen above")]
    let options_len = options_len as u32;
    Ok(ip_header_len + UDP_HEADER_LEN + GENEVE_HEADER_LEN + options_len + ETHERNET_HEADER_LEN)
}

/// Returns how large pods' packets may be, so that they fit through a GENEVE tunnel.
///
/// `uplink_mtu_bytes` is the MTU of the interface (or the path) that the tunnel's packets take,
/// `underlay` the family of the nodes' addresses, `options_len` as in [`geneve_overhead`].
///
/// # Errors
///
/// [`MtuError::Options`]; [`MtuError::TooSmall`] if not even IPv4 fits.
///
/// # Examples
///
/// ```
/// use datapath_tunnel::mtu::{Family, pod_mtu};
///
/// let mtu = pod_mtu(1500, Family::V4, 0)?;
/// assert_eq!(mtu.ipv4_bytes(), 1450);
/// assert_eq!(mtu.ipv6_bytes()?, 1450);
/// # Ok::<(), datapath_tunnel::mtu::MtuError>(())
/// ```
pub const fn pod_mtu(
    uplink_mtu_bytes: u32,
    underlay: Family,
    options_len: usize,
) -> Result<PodMtu, MtuError> {
    match geneve_overhead(underlay, options_len) {
        Ok(overhead_bytes) => PodMtu::new(uplink_mtu_bytes, overhead_bytes),
        Err(error) => Err(error),
    }
}

/// How large pods' packets may be, in bytes from the IP header on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PodMtu {
    uplink_mtu_bytes: u32,
    overhead_bytes: u32,
}

impl PodMtu {
    /// The MTU behind an uplink that loses `overhead_bytes` per packet; 0 for native routing.
    ///
    /// # Errors
    ///
    /// [`MtuError::TooSmall`] if not even IPv4 fits.
    pub const fn new(uplink_mtu_bytes: u32, overhead_bytes: u32) -> Result<Self, MtuError> {
        let mtu = Self {
            uplink_mtu_bytes,
            overhead_bytes,
        };
        match mtu.for_family(Family::V4) {
            Ok(_) => Ok(mtu),
            Err(error) => Err(error),
        }
    }

    /// The MTU for IPv4.
    #[must_use]
    pub const fn ipv4_bytes(self) -> u32 {
        let mtu_bytes = self.uplink_mtu_bytes.saturating_sub(self.overhead_bytes);
        if mtu_bytes > MAX_ROUTE_MTU_BYTES {
            MAX_ROUTE_MTU_BYTES
        } else {
            mtu_bytes
        }
    }

    /// The MTU for IPv6: the same number, if it is large enough.
    ///
    /// # Errors
    ///
    /// [`MtuError::TooSmall`] below 1280: then pods cannot have IPv6 here.
    pub const fn ipv6_bytes(self) -> Result<u32, MtuError> {
        self.for_family(Family::V6)
    }

    /// The MTU for pods of one family.
    ///
    /// # Errors
    ///
    /// As [`PodMtu::ipv6_bytes`].
    pub const fn for_family(self, pods: Family) -> Result<u32, MtuError> {
        let mtu_bytes = self.ipv4_bytes();
        if mtu_bytes < smallest(pods) {
            return Err(MtuError::TooSmall {
                uplink_mtu_bytes: self.uplink_mtu_bytes,
                overhead_bytes: self.overhead_bytes,
                pods,
            });
        }
        Ok(mtu_bytes)
    }
}

const fn smallest(pods: Family) -> u32 {
    match pods {
        Family::V4 => MIN_IPV4_MTU_BYTES,
        Family::V6 => MIN_IPV6_MTU_BYTES,
    }
}

/// Why there is no usable MTU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MtuError {
    /// The uplink is too small for pods of this family.
    TooSmall {
        /// MTU of the uplink.
        uplink_mtu_bytes: u32,
        /// What the tunnel takes of it.
        overhead_bytes: u32,
        /// Family of the pods.
        pods: Family,
    },
    /// GENEVE options have no such length.
    Options {
        /// The length, in bytes.
        len: usize,
    },
}

impl fmt::Display for MtuError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::TooSmall {
                uplink_mtu_bytes,
                overhead_bytes,
                pods,
            } => {
                let family = match pods {
                    Family::V4 => "IPv4",
                    Family::V6 => "IPv6",
                };
                let needed = smallest(pods).saturating_add(overhead_bytes);
                write!(
                    f,
                    "an uplink MTU of {uplink_mtu_bytes} less {overhead_bytes} for the tunnel is \
                     too small for {family} pods, which need {}: raise it to {needed} or more",
                    smallest(pods),
                )?;
                match pods {
                    Family::V4 => Ok(()),
                    Family::V6 => f.write_str(", or give the pods IPv4 only"),
                }
            }
            Self::Options { len } => write!(
                f,
                "GENEVE options of {len} bytes do not exist, give a multiple of 4 up to \
                 {MAX_OPTIONS_LEN}"
            ),
        }
    }
}

impl core::error::Error for MtuError {}

#[cfg(test)]
mod tests {
    use super::*;

    /// The figures that Cilium documents for GENEVE, and those of RFC 8926 section 3 with options.
    #[test]
    fn overhead() {
        for (underlay, options_len, expected) in [
            (Family::V4, 0, 50),
            (Family::V6, 0, 70),
            (Family::V4, 12, 62),
            (Family::V6, 24, 94),
            (Family::V4, 252, 302),
        ] {
            assert_eq!(geneve_overhead(underlay, options_len), Ok(expected));
        }
        for len in [1, 13, 253, 256, usize::MAX] {
            assert_eq!(
                geneve_overhead(Family::V4, len),
                Err(MtuError::Options { len })
            );
        }
    }

    #[test]
    fn both_families_get_the_same_where_it_is_enough() {
        for (uplink, underlay, expected) in [
            (1500, Family::V4, 1450),
            (1500, Family::V6, 1430),
            (9000, Family::V4, 8950),
            (1330, Family::V4, 1280),
            (1350, Family::V6, 1280),
            (65_536, Family::V4, 65_486),
            (u32::MAX, Family::V4, MAX_ROUTE_MTU_BYTES),
        ] {
            let mtu = pod_mtu(uplink, underlay, 0).unwrap();
            assert_eq!(
                (mtu.ipv4_bytes(), mtu.ipv6_bytes()),
                (expected, Ok(expected))
            );
        }
    }

    #[test]
    fn native_routing_loses_nothing() {
        assert_eq!(PodMtu::new(1500, 0).unwrap().ipv4_bytes(), 1500);
        // Loopback's own MTU.
        assert_eq!(PodMtu::new(65_536, 0).unwrap().ipv4_bytes(), 65_520);
    }

    #[test]
    fn below_the_floor_is_an_error_that_says_what_would_do() {
        let mtu = pod_mtu(1329, Family::V4, 0).unwrap();
        assert_eq!(mtu.ipv4_bytes(), 1279);
        assert_eq!(
            mtu.ipv6_bytes().unwrap_err().to_string(),
            "an uplink MTU of 1329 less 50 for the tunnel is too small for IPv6 pods, which need \
             1280: raise it to 1330 or more, or give the pods IPv4 only"
        );
        assert_eq!(pod_mtu(626, Family::V4, 0).unwrap().ipv4_bytes(), 576);
        for uplink in [625, 50, 0] {
            assert!(matches!(
                pod_mtu(uplink, Family::V4, 0),
                Err(MtuError::TooSmall {
                    pods: Family::V4,
                    ..
                })
            ));
        }
    }
}
