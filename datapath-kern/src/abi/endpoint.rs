//! Local endpoints: the pods of this node, and in slot 0 the node itself.

use core::mem::offset_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Mac;
use super::addr::Addr;
use super::mac::MacWords;

/// Slots of the endpoint array, slot 0 (this node) included.
pub const MAX_ENDPOINTS: u32 = 4096;

/// One local pod, found by slot on the established path and by interface otherwise.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Endpoint {
    /// IPv4 address, or none.
    pub ipv4: Addr,
    /// IPv6 address, or none.
    pub ipv6: Addr,
    /// Interface of the host's side of the pod's pair; zero in a free slot.
    pub interface: u32,
    /// Changes with anything that flows of this endpoint were judged under; never repeats.
    pub generation: u32,
    /// Security identity.
    pub identity: u32,
    /// Ethernet address of the pod's own interface.
    pub mac: Mac,
    /// Zero.
    pub reserved: [u8; 2],
    /// How flows of this endpoint are judged: bits of [`word`](super::policy::word).
    pub policy: u32,
}
crate::abi!(Endpoint, size = 56, align = 8);

impl Endpoint {
    /// Whether `address` is this endpoint's.
    #[inline(always)]
    #[must_use]
    pub fn owns(&self, address: &Addr) -> bool {
        !address.is_none() && (*address == self.ipv4 || *address == self.ipv6)
    }

    /// [`Endpoint::mac`], to be compared.
    #[inline(always)]
    #[must_use]
    pub fn mac_words(&self) -> MacWords {
        const AT: usize = offset_of!(Endpoint, mac) / 2;
        let words: [u16; size_of::<Self>() / 2] = zerocopy::transmute!(*self);
        MacWords::new([words[AT], words[AT + 1], words[AT + 2]])
    }
}

/// Reserved security identities, as the field numbers them.
pub mod identity {
    /// Nobody: not a valid identity on the wire.
    pub const UNKNOWN: u32 = 0;
    /// This node.
    pub const HOST: u32 = 1;
    /// Outside the cluster.
    pub const WORLD: u32 = 2;
    /// A pod that was given no identity.
    pub const UNMANAGED: u32 = 3;
    /// What probes the health of nodes.
    pub const HEALTH: u32 = 4;
    /// A pod whose labels are not known yet.
    pub const INIT: u32 = 5;
    /// Another node.
    pub const REMOTE_NODE: u32 = 6;
    /// The API server of Kubernetes.
    pub const KUBE_APISERVER: u32 = 7;
    /// What terminates traffic from outside for others.
    pub const INGRESS: u32 = 8;
    /// Outside the cluster, IPv4.
    pub const WORLD_IPV4: u32 = 9;
    /// Outside the cluster, IPv6.
    pub const WORLD_IPV6: u32 = 10;
    /// The first number that is not reserved.
    pub const FIRST_ALLOCATED: u32 = 256;
    /// The largest number that a VNI can carry.
    pub const MAX: u32 = 0x00ff_ffff;
    /// The first number of prefixes that policies name: of this node only, and never on the wire.
    pub const FIRST_LOCAL: u32 = 0x0100_0000;
}
