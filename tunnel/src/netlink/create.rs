//! Making virtual interfaces.

use std::{fmt, fs::File, net::IpAddr, os::fd::AsRawFd, path::Path};

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoData, InfoKind, InfoNetkit, InfoVeth, LinkMessage, NetkitMode, NetkitPolicy},
};
use nix::errno::Errno;
use rtnetlink::{
    LinkBond, LinkBridge, LinkDummy, LinkGeneve, LinkMessageBuilder, LinkNetkit, LinkUnspec,
    LinkVeth, LinkVlan, LinkVxlan, packet_route::link::BondMode,
};

use super::{Change, Link, Mac, Netlink, NetlinkError, link::check_name};
use crate::geneve::Vni;

/// One end of a veth or netkit pair.
#[derive(Clone, Copy, Debug)]
pub struct VethEnd<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its Ethernet address; the kernel draws one if there is none.
    pub mac: Option<Mac>,
    /// The namespace to make it in: a bind mount or `/proc/<pid>/ns/net`; else this one.
    pub netns: Option<&'a Path>,
    /// Its MTU; 1500 if there is none.
    pub mtu_bytes: Option<u32>,
}

impl<'a> VethEnd<'a> {
    /// An end in this namespace with the kernel's defaults.
    #[must_use]
    pub fn new(name: &'a str) -> Self {
        Self {
            name,
            mac: None,
            netns: None,
            mtu_bytes: None,
        }
    }

    fn apply<T>(&self, mut link: LinkMessageBuilder<T>) -> LinkMessageBuilder<T> {
        if let Some(mac) = self.mac {
            link = link.address(mac.to_vec());
        }
        if let Some(mtu_bytes) = self.mtu_bytes {
            link = link.mtu(mtu_bytes);
        }
        link
    }
}

/// A GENEVE or VXLAN interface of the kernel.
#[derive(Clone, Copy, Debug)]
pub struct TunnelLink<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whether each packet brings its own tunnel key, as eBPF programs set it with
    /// `bpf_skb_set_tunnel_key`. Network identifier and remote address are then not given.
    pub collect_metadata: bool,
    /// UDP port that it receives on and sends to.
    pub port: u16,
    /// Network identifier, up to 24 bits.
    pub vni: Option<u32>,
    /// The other end.
    pub remote: Option<IpAddr>,
    /// Address to send from and receive on. VXLAN only.
    pub local: Option<IpAddr>,
    /// Its MTU, of the inner packets; the kernel's guess if there is none.
    pub mtu_bytes: Option<u32>,
    /// Whether outer IPv6 packets are sent and taken without a UDP checksum (RFC 6935, RFC 6936).
    pub zero_checksum6: bool,
}

impl<'a> TunnelLink<'a> {
    /// An interface whose packets bring their own tunnel key.
    #[must_use]
    pub fn metadata(name: &'a str, port: u16) -> Self {
        Self {
            name,
            collect_metadata: true,
            port,
            vni: None,
            remote: None,
            local: None,
            mtu_bytes: None,
            zero_checksum6: false,
        }
    }

    /// An interface to one other end.
    #[must_use]
    pub fn to(name: &'a str, port: u16, vni: u32, remote: IpAddr) -> Self {
        Self {
            collect_metadata: false,
            vni: Some(vni),
            remote: Some(remote),
            ..Self::metadata(name, port)
        }
    }

    /// Refuses what the kernel refuses with a bare `EINVAL`, or takes in silence.
    fn check(&self, operation: impl fmt::Display) -> Result<(), NetlinkError> {
        let reason = if self.collect_metadata && (self.vni.is_some() || self.remote.is_some()) {
            "packets bring their own tunnel key (collect_metadata), so give neither a network \
             identifier nor a remote address"
        } else if !self.collect_metadata && self.vni.is_none() {
            "give a network identifier, or collect_metadata"
        } else if self.vni.is_some_and(|vni| Vni::new(vni).is_none()) {
            "a network identifier has 24 bits, 0 to 16777215"
        } else if self.port == 0 {
            "give a UDP port other than 0"
        } else {
            return Ok(());
        };
        Err(NetlinkError::Invalid {
            operation: operation.to_string(),
            reason: reason.to_owned(),
        })
    }
}

/// Writes what both kinds of tunnel take; their builders share names, but no trait.
macro_rules! with_spec {
    ($link:expr, $spec:expr) => {{
        let mut link = $link.port($spec.port);
        if let Some(vni) = $spec.vni {
            link = link.id(vni);
        }
        link = match $spec.remote {
            Some(IpAddr::V4(remote)) => link.remote(remote),
            Some(IpAddr::V6(remote)) => link.remote6(remote),
            None => link,
        };
        if $spec.zero_checksum6 {
            link = link.udp_zero_csum6_tx(true).udp_zero_csum6_rx(true);
        }
        if let Some(mtu_bytes) = $spec.mtu_bytes {
            link = link.mtu(mtu_bytes);
        }
        link
    }};
}

impl Netlink {
    /// Makes a veth pair; returns the near end. Both ends are off.
    ///
    /// The far end is made in its namespace at once, it never shows up in this one.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::OpenNamespace`] if the far end's namespace cannot be opened,
    /// [`NetlinkError::Invalid`] for a bad name or a near end in another namespace, the kernel's
    /// refusal: `EEXIST` if a name is taken, `EPERM` without `CAP_NET_ADMIN` in both namespaces;
    /// [`NetlinkError::Unsupported`] if the kernel has no veth.
    pub fn add_veth(&self, near: VethEnd<'_>, far: VethEnd<'_>) -> Result<Link, NetlinkError> {
        self.add_pair("veth", near, far, |peer| {
            let link = LinkVeth::new(near.name, far.name)
                .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)));
            near.apply(link).build()
        })
        .map_err(|error| without_driver(error, "this kernel has no veth device", DRIVER_REMEDY))
    }

    /// Makes a netkit pair (`drivers/net/netkit.c`) that carries Ethernet frames; returns the near
    /// end, its primary. Both ends are off.
    ///
    /// Until a program is attached to the far end (`BPF_NETKIT_PEER`), what is sent there is
    /// dropped. What the near end sends passes. The far end is made in its namespace at once, it
    /// never shows up in this one.
    ///
    /// # Errors
    ///
    /// As [`Netlink::add_veth`]; [`NetlinkError::Unsupported`] also where the kernel's netkit takes
    /// no Ethernet address (before Linux 6.10).
    pub fn add_netkit(&self, near: VethEnd<'_>, far: VethEnd<'_>) -> Result<Link, NetlinkError> {
        self.add_pair("netkit", near, far, |peer| {
            near.apply(netkit(near.name, peer)).build()
        })
        .map_err(|error| {
            without_driver(
                error,
                "this kernel has no netkit device with Ethernet addresses",
                "use a kernel built with CONFIG_NETKIT, Linux 6.10 or later, or a veth pair",
            )
        })
    }

    /// Makes a pair; `message` gets what is asked of its far end.
    fn add_pair(
        &self,
        kind: &str,
        near: VethEnd<'_>,
        far: VethEnd<'_>,
        message: impl FnOnce(LinkMessage) -> LinkMessage,
    ) -> Result<Link, NetlinkError> {
        let operation = format!("add {kind} pair {:?} and {:?}", near.name, far.name);
        check_name(&operation, near.name)?;
        check_name(&operation, far.name)?;
        if near.netns.is_some() {
            return Err(NetlinkError::Invalid {
                operation,
                reason: "the near end is made in this handle's namespace, give a namespace for \
                         the far end only"
                    .to_owned(),
            });
        }
        let mut peer = far.apply(LinkUnspec::new_with_name(far.name));
        // Open until the kernel has answered: the message names it by number.
        let _netns = match far.netns {
            Some(path) => {
                let file = File::open(path).map_err(|source| NetlinkError::OpenNamespace {
                    path: path.to_owned(),
                    source,
                })?;
                peer = peer.setns_by_fd(file.as_raw_fd());
                Some(file)
            }
            None => None,
        };
        self.create(operation, near.name, message(peer.build()))
    }

    /// Makes a bridge, off.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Invalid`] for a bad name; the kernel's refusal: `EEXIST` if the name is
    /// taken, [`NetlinkError::Unsupported`] if the kernel has no bridges.
    pub fn add_bridge(&self, name: &str) -> Result<Link, NetlinkError> {
        self.create(
            format_args!("add bridge {name:?}"),
            name,
            LinkBridge::new(name).build(),
        )
        .map_err(|error| without_driver(error, "this kernel has no bridge device", DRIVER_REMEDY))
    }

    /// Makes a dummy interface, off: it takes every packet and drops it.
    ///
    /// # Errors
    ///
    /// As [`Netlink::add_bridge`].
    pub fn add_dummy(&self, name: &str) -> Result<Link, NetlinkError> {
        self.create(
            format_args!("add dummy interface {name:?}"),
            name,
            LinkDummy::new(name).build(),
        )
        .map_err(|error| without_driver(error, "this kernel has no dummy device", DRIVER_REMEDY))
    }

    /// Makes a VLAN on an interface (IEEE 802.1Q), off.
    ///
    /// # Errors
    ///
    /// As [`Netlink::add_bridge`]; [`NetlinkError::Invalid`] also for a number that no VLAN has,
    /// `EEXIST` also if the interface has this VLAN.
    pub fn add_vlan(&self, name: &str, on: u32, id: u16) -> Result<Link, NetlinkError> {
        let operation = format!("add VLAN {id} {name:?} on interface {on}");
        if !(1..=4094).contains(&id) {
            return Err(NetlinkError::Invalid {
                operation,
                reason: "a VLAN has a number from 1 to 4094".to_owned(),
            });
        }
        self.create(operation, name, LinkVlan::new(name, on, id).build())
            .map_err(|error| without_driver(error, "this kernel has no vlan device", DRIVER_REMEDY))
    }

    /// Makes a bond of which one port at a time carries packets (active-backup), off.
    ///
    /// Ports are put in by [`Netlink::set_master`], while they are off. Every 100 ms the bond
    /// looks whether the active one still has carrier.
    ///
    /// # Errors
    ///
    /// As [`Netlink::add_bridge`].
    pub fn add_bond(&self, name: &str) -> Result<Link, NetlinkError> {
        const LOOK_EVERY_MS: u32 = 100;
        let link = LinkBond::new(name)
            .mode(BondMode::ActiveBackup)
            .miimon(LOOK_EVERY_MS);
        self.create(format_args!("add bond {name:?}"), name, link.build())
            .map_err(|error| without_driver(error, "this kernel has no bond device", DRIVER_REMEDY))
    }

    /// Makes a VXLAN interface (RFC 7348), off.
    ///
    /// It does not learn from what it receives (`nolearning`): a forged packet must not move an
    /// address to another node.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Invalid`] for a specification that makes no sense,
    /// [`NetlinkError::Unsupported`] if the kernel has no VXLAN, the kernel's refusal otherwise:
    /// `EEXIST` if the name, or the network identifier on this port, is taken.
    pub fn add_vxlan(&self, spec: &TunnelLink<'_>) -> Result<Link, NetlinkError> {
        let operation = format!("add VXLAN interface {:?}", spec.name);
        spec.check(&operation)?;
        let mut link = LinkMessageBuilder::<LinkVxlan>::new(spec.name).learning(false);
        if spec.collect_metadata {
            link = link.collect_metadata(true);
        }
        link = match spec.local {
            Some(IpAddr::V4(local)) => link.local(local),
            Some(IpAddr::V6(local)) => link.local6(local),
            None => link,
        };
        let link = with_spec!(link, spec);
        self.create(operation, spec.name, link.build())
            .map_err(|error| {
                without_driver(error, "this kernel has no vxlan device", DRIVER_REMEDY)
            })
    }

    /// Makes a GENEVE interface (RFC 8926), off.
    ///
    /// # Errors
    ///
    /// As [`Netlink::add_vxlan`]; [`NetlinkError::Invalid`] also for a local address.
    pub fn add_geneve(&self, spec: &TunnelLink<'_>) -> Result<Link, NetlinkError> {
        let operation = format!("add GENEVE interface {:?}", spec.name);
        spec.check(&operation)?;
        if spec.local.is_some() {
            return Err(NetlinkError::Invalid {
                operation,
                // Most kernels skip the attribute (IFLA_GENEVE_LOCAL) without a word.
                reason: "a GENEVE interface takes no local address, leave it out".to_owned(),
            });
        }
        let mut link = LinkMessageBuilder::<LinkGeneve>::new(spec.name);
        if spec.collect_metadata {
            link = link.collect_metadata();
        }
        let link = with_spec!(link, spec);
        self.create(operation, spec.name, link.build())
            .map_err(|error| {
                without_driver(
                    error,
                    "this kernel has no geneve device",
                    "load the geneve module, or encapsulate in eBPF (tunnel mode `direct`)",
                )
            })
    }

    fn create(
        &self,
        operation: impl fmt::Display,
        name: &str,
        message: LinkMessage,
    ) -> Result<Link, NetlinkError> {
        check_name(&operation, name)?;
        let request = RouteNetlinkMessage::NewLink(message);
        self.change(&operation, Change::Create, request)?;
        self.link(name)?.ok_or_else(|| NetlinkError::Answer {
            operation: operation.to_string(),
            missing: "such interface any more: it was renamed or deleted at once",
        })
    }
}

/// A netkit pair that carries Ethernet frames, and none from its far end without a program there.
fn netkit(name: &str, peer: LinkMessage) -> LinkMessageBuilder<LinkNetkit> {
    LinkMessageBuilder::<LinkNetkit>::new_with_info_kind(InfoKind::Netkit)
        .name(name.to_owned())
        .set_info_data(InfoData::Netkit(vec![
            InfoNetkit::Mode(NetkitMode::L2),
            InfoNetkit::Policy(NetkitPolicy::Pass),
            InfoNetkit::PeerPolicy(NetkitPolicy::Drop),
            InfoNetkit::Peer(peer),
        ]))
}

/// What to do where the kernel lacks a kind of interface.
pub const DRIVER_REMEDY: &str = "load its module, or use a kernel built with it";

/// Tells "no such driver" from other refusals.
fn without_driver(error: NetlinkError, what: &'static str, remedy: &'static str) -> NetlinkError {
    match error {
        NetlinkError::Kernel { operation, source } if source.errno == Errno::EOPNOTSUPP as i32 => {
            NetlinkError::Unsupported {
                operation,
                what,
                remedy,
                source,
            }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_core::Emitable;

    use super::*;

    /// An attribute of four bytes: length, type and value in the machine's byte order.
    fn attribute(kind: u16, value: u32) -> Vec<u8> {
        let head = [8, kind].map(u16::to_ne_bytes).concat();
        [head, value.to_ne_bytes().to_vec()].concat()
    }

    #[test]
    fn a_netkit_pair_carries_frames_and_starts_closed_to_its_pod() {
        let far = VethEnd::new("eth0").apply(LinkUnspec::new_with_name("eth0"));
        let message = netkit("lxc0", far.build()).build();
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        let has = |part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
        // include/uapi/linux/if_link.h: IFLA_NETKIT_MODE = NETKIT_L2, IFLA_NETKIT_POLICY =
        // NETKIT_PASS, IFLA_NETKIT_PEER_POLICY = NETKIT_DROP.
        for (kind, value) in [(5, 0), (3, 0), (4, 2)] {
            assert!(has(&attribute(kind, value)), "{kind}: {bytes:?}");
        }
        assert!(
            has(b"netkit") && has(b"lxc0\0") && has(b"eth0\0"),
            "{bytes:?}"
        );
    }
}
