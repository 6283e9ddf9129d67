//! Ways through the datapath that a flow may begin by, and who is asked about it there.

use datapath_kern::abi::config::tunnel as mode;
use datapath_kern::abi::endpoint::identity;
use datapath_kern::abi::flow::{FlowKey, scope};
use datapath_kern::abi::ipcache::IpEntry;
use datapath_kern::abi::metric::Direction::{self, Egress, Ingress};
use datapath_kern::host::{Hook, Host, Prefix, plan};
use datapath_kern::packet::Family::{self, V4, V6};

use super::frame::{self, ACK, L4, SYN, Tuple};
use super::sent::{from_host, from_uplink, kind_wrap};
use super::{Out, from_pod, from_router, key, node, run, tunnel};

/// Identity of who is outside.
pub(crate) const OUTSIDE: u32 = identity::WORLD_IPV4;

/// A way through the datapath that a flow begins by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    PodToPod,
    PodToPeer,
    PodToWorld,
    PodToHost,
    PeerToPod,
    PeerToHost,
    WorldToPod,
    NativePeerToPod,
    HostToPod,
    HostToPeer,
    StackToPod,
    HostDnatToPod,
    PodByStackToPod,
    PodByStackToWorld,
    HostToWorld,
    WorldToHost,
}

/// The local ends that are asked about a flow: slot, direction, and the other side's identity.
pub(crate) type Asked = Vec<(u32, Direction, u32)>;

impl Path {
    pub(crate) fn host(self) -> Host {
        let mut host = node(1, V4);
        if self == Self::NativePeerToPod {
            host.config.tunnel = mode::NATIVE;
        }
        for family in [V4, V6] {
            let everything = if family == V4 { "0.0.0.0" } else { "::" };
            let everyone = IpEntry {
                identity: OUTSIDE,
                ..IpEntry::default()
            };
            let prefix = Prefix::new(everything.parse().unwrap(), 0);
            host.ipcache.borrow_mut().set(prefix, everyone);
        }
        host
    }

    pub(crate) fn tuple(self, family: Family) -> Tuple {
        let pod = |number| plan::pod(1, number, family);
        let (peers, outside) = (plan::pod(2, 1, family), plan::outside(family));
        let own = plan::gateway(1, family);
        let (source, destination) = match self {
            Self::PodToPod | Self::PodByStackToPod => (pod(1), pod(2)),
            Self::PodToPeer => (pod(1), peers),
            Self::PodToWorld | Self::PodByStackToWorld => (pod(1), outside),
            Self::PodToHost => (pod(1), own),
            Self::PeerToPod | Self::NativePeerToPod => (peers, pod(2)),
            Self::PeerToHost => (peers, own),
            Self::WorldToPod | Self::StackToPod | Self::HostDnatToPod => (outside, pod(2)),
            Self::HostToPod => (own, pod(2)),
            Self::HostToPeer => (own, peers),
            Self::HostToWorld => (plan::node(1, family), outside),
            Self::WorldToHost => (outside, plan::node(1, family)),
        };
        Tuple::new(source, destination, L4::Tcp(40_000, 80, SYN))
    }

    pub(crate) fn asked(self) -> Asked {
        let pod = |number| plan::pod_identity(1, number);
        let peers = plan::pod_identity(2, 1);
        match self {
            Self::PodToPod | Self::PodByStackToPod => {
                vec![(1, Egress, pod(2)), (2, Ingress, pod(1))]
            }
            Self::PodToPeer => vec![(1, Egress, peers)],
            Self::PodToWorld | Self::PodByStackToWorld => vec![(1, Egress, OUTSIDE)],
            Self::PodToHost => vec![(1, Egress, identity::HOST), (0, Ingress, pod(1))],
            Self::PeerToPod | Self::NativePeerToPod => vec![(2, Ingress, peers)],
            Self::PeerToHost => vec![(0, Ingress, peers)],
            Self::WorldToPod | Self::StackToPod | Self::HostDnatToPod => {
                vec![(2, Ingress, OUTSIDE)]
            }
            Self::HostToPod => vec![(0, Egress, pod(2)), (2, Ingress, identity::HOST)],
            Self::HostToPeer => vec![(0, Egress, peers)],
            Self::HostToWorld => vec![(0, Egress, OUTSIDE)],
            Self::WorldToHost => vec![(0, Ingress, OUTSIDE)],
        }
    }

    /// Sends a packet of the flow the way that it began.
    pub(crate) fn send(self, host: &Host, tuple: &Tuple) -> Out {
        let by_stack = |hook, interface| {
            let bytes = frame::build([2; 6], [4; 6], tuple, 63, b"hi");
            run(host, hook, interface, &bytes)
        };
        match self {
            Self::PodToPod | Self::PodToPeer | Self::PodToWorld | Self::PodToHost => {
                from_pod(host, 1, 1, tuple)
            }
            Self::PeerToPod | Self::PeerToHost => {
                let inner = tunnel::inner(1, tuple);
                from_uplink(host, &kind_wrap(V4).around(&inner))
            }
            Self::WorldToPod | Self::NativePeerToPod | Self::WorldToHost => {
                from_router(host, 1, tuple)
            }
            Self::HostToPod | Self::HostToPeer | Self::HostDnatToPod => from_host(host, tuple),
            Self::StackToPod | Self::PodByStackToPod => {
                by_stack(Hook::ToPod, plan::pod_interface(2))
            }
            Self::PodByStackToWorld | Self::HostToWorld => by_stack(Hook::ToUplink, plan::UPLINK),
        }
    }

    /// Sends an answer to what was sent.
    pub(crate) fn answer(self, host: &Host, tuple: &Tuple, flags: u8) -> Out {
        let back = tuple.answer(flags);
        match self {
            Self::PodToPod
            | Self::PeerToPod
            | Self::NativePeerToPod
            | Self::WorldToPod
            | Self::StackToPod
            | Self::HostDnatToPod
            | Self::PodByStackToPod
            | Self::HostToPod => from_pod(host, 1, 2, &back),
            Self::PodToPeer | Self::HostToPeer => {
                let inner = tunnel::inner(1, &back);
                from_uplink(host, &kind_wrap(V4).around(&inner))
            }
            Self::PodToWorld | Self::PodByStackToWorld => {
                let behind = if tuple.source.is_ipv4() { V4 } else { V6 };
                let outside = Tuple {
                    destination: plan::node(1, behind),
                    ..back
                };
                from_router(host, 1, &outside)
            }
            Self::HostToWorld => from_router(host, 1, &back),
            Self::PodToHost | Self::PeerToHost => from_host(host, &back),
            Self::WorldToHost => {
                let bytes = frame::build([2; 6], [4; 6], &back, 64, b"hi");
                run(host, Hook::ToUplink, plan::UPLINK, &bytes)
            }
        }
    }

    /// Has a flow prove itself.
    #[track_caller]
    pub(crate) fn establish(self, host: &Host, tuple: &Tuple) {
        assert_eq!(self.send(host, tuple).reason, None);
        assert_eq!(self.answer(host, tuple, SYN | ACK).reason, None);
        assert_eq!(self.send(host, &tuple.with_flags(ACK)).reason, None);
        assert_eq!((host.flows.len(), host.pending.len()), (2, 0), "{self:?}");
    }

    /// Key of the flow that the packet begins.
    pub(crate) fn key(self, tuple: &Tuple) -> FlowKey {
        let mut key = key(tuple);
        if self == Self::PodByStackToWorld {
            key.scope = scope::STACK;
        }
        key
    }
}
