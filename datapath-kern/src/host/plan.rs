//! A small cluster: who has which address, and a [`Host`] filled as user space fills the maps.
//!
//! ```text
//!                      IPv4              IPv6                 Ethernet
//! node n               192.0.2.n         2001:db8::n          02:00:00:00:00:n
//! router               192.0.2.254       2001:db8::fe         02:00:00:00:00:fe
//! pods of node n       10.244.n.0/24     fd00:244:n::/64
//! gateway of node n    10.244.n.1        fd00:244:n::1        02:00:00:00:01:n
//! pod p of node n      10.244.n.(10+p)   fd00:244:n::(10+p)   02:00:00:02:n:p
//! outside              198.51.100.10     2001:db8:ffff::10
//! ```
//!
//! Numbers of nodes and pods are from 1 to 200. A peer's index is its number, a pod's slot its
//! number, its interface [`POD_INTERFACES`] more than that.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Host, Prefix, Way};
use crate::abi::Mac;
use crate::abi::config::Config;
use crate::abi::endpoint::{Endpoint, identity};
use crate::abi::ipcache::{IpEntry, kind};
use crate::abi::nexthop::{self, NextHop, PEERS_BASE};
use crate::abi::tunnel::{Peer, Uplink};
use crate::env::{InsertError, Table};
use crate::packet::Family;

/// Interface that leads off the node.
pub const UPLINK: u32 = 2;
/// The node's side of the gateway pair.
pub const GATEWAY: u32 = 3;
/// The far side of the gateway pair.
pub const GATEWAY_FAR: u32 = 4;
/// Interfaces of the pods are from here on.
pub const POD_INTERFACES: u32 = 100;

/// Number of the router on the underlay, as if it were a node.
pub const ROUTER: u8 = 0xfe;

fn v4_or_v6(family: Family, v4: [u8; 4], v6: [u16; 8]) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from(v4).into(),
        Family::V6 => Ipv6Addr::from(v6).into(),
    }
}

/// Underlay address of a node.
#[must_use]
pub fn node(number: u8, family: Family) -> IpAddr {
    let v6 = [0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into()];
    v4_or_v6(family, [192, 0, 2, number], v6)
}

/// An address of the pod range of a node: a pod's, or the gateway's.
fn of_range(node: u8, last: u8, family: Family) -> IpAddr {
    let v6 = [0xfd00, 0x244, node.into(), 0, 0, 0, 0, last.into()];
    v4_or_v6(family, [10, 244, node, last], v6)
}

/// Address of a pod.
#[must_use]
pub fn pod(node: u8, number: u8, family: Family) -> IpAddr {
    of_range(node, number.saturating_add(10), family)
}

/// Gateway address of a node.
#[must_use]
pub fn gateway(node: u8, family: Family) -> IpAddr {
    of_range(node, 1, family)
}

/// Address of somebody outside the cluster.
#[must_use]
pub fn outside(family: Family) -> IpAddr {
    v4_or_v6(
        family,
        [198, 51, 100, 10],
        [0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 0x10],
    )
}

/// Ethernet address of a node's uplink, or of the [`ROUTER`].
#[must_use]
pub const fn node_mac(number: u8) -> Mac {
    [2, 0, 0, 0, 0, number]
}

/// Ethernet address of a node's gateway.
#[must_use]
pub const fn gateway_mac(node: u8) -> Mac {
    [2, 0, 0, 0, 1, node]
}

/// Ethernet address of a pod.
#[must_use]
pub const fn pod_mac(node: u8, number: u8) -> Mac {
    [2, 0, 0, 2, node, number]
}

/// Identity of a pod.
#[must_use]
pub fn pod_identity(node: u8, number: u8) -> u32 {
    identity::FIRST_ALLOCATED + u32::from(node) * 256 + u32::from(number)
}

/// Interface of the host's side of a pod's pair.
#[must_use]
pub fn pod_interface(number: u8) -> u32 {
    POD_INTERFACES + u32::from(number)
}

/// Settings of a node.
#[must_use]
pub fn config(number: u8) -> Config {
    Config {
        host_interface: GATEWAY,
        net_interface: GATEWAY_FAR,
        gateway_v4: gateway(number, Family::V4).into(),
        gateway_v6: gateway(number, Family::V6).into(),
        gateway_mac: gateway_mac(number),
        seed: 0x9e37_79b9,
        ..Config::DEFAULT
    }
}

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

impl Host {
    /// A node with an uplink and a way out, pods masqueraded; without pods and peers.
    ///
    /// # Errors
    ///
    /// [`InsertError::Full`] never, as its tables are empty.
    pub fn node(number: u8) -> Result<Self, InsertError> {
        let host = Self::new(config(number));
        host.become_node(number)?;
        Ok(host)
    }

    /// Fills the tables of an empty host as those of a node: see [`Host::node`].
    ///
    /// # Errors
    ///
    /// [`InsertError::Full`] where a table has no room.
    pub fn become_node(&self, number: u8) -> Result<(), InsertError> {
        let masquerade = Uplink {
            masquerade_v4: node(number, Family::V4).into(),
            masquerade_v6: node(number, Family::V6).into(),
        };
        self.uplinks.set(UPLINK, masquerade)?;
        self.endpoints.update(&0, |host| {
            *host = Endpoint {
                generation: 1,
                identity: identity::HOST,
                ..Endpoint::default()
            };
        });
        self.peers.update(&0, |world| world.generation = 1);
        let mut ipcache = self.ipcache.borrow_mut();
        let mut routing = self.routing.borrow_mut();
        routing.interface(UPLINK, node_mac(number));
        for family in FAMILIES {
            let (range_bits, link_bits, everything) = match family {
                Family::V4 => (24, 24, IpAddr::from(Ipv4Addr::UNSPECIFIED)),
                Family::V6 => (64, 64, IpAddr::from(Ipv6Addr::UNSPECIFIED)),
            };
            let own = entry(kind::HOST, 0, identity::HOST);
            ipcache.set(Prefix::host(node(number, family)), own);
            ipcache.set(Prefix::host(gateway(number, family)), own);
            let range = Prefix::new(gateway(number, family), range_bits);
            ipcache.set(range, entry(kind::VACANT, 0, 0));
            let on_link = Way::Out {
                interface: UPLINK,
                gateway: None,
            };
            routing.route(Prefix::new(node(number, family), link_bits), on_link);
            let router = node(ROUTER, family);
            let by_router = Way::Out {
                interface: UPLINK,
                gateway: Some(router),
            };
            routing.route(Prefix::new(everything, 0), by_router);
            routing.neighbour(router, Some(node_mac(ROUTER)));
        }
        Ok(())
    }

    /// Adds a pod to a node of this `number`.
    ///
    /// # Errors
    ///
    /// [`InsertError::Full`] where a table has no room.
    pub fn add_pod(&self, number: u8, pod_number: u8) -> Result<(), InsertError> {
        let slot = u32::from(pod_number);
        let interface = pod_interface(pod_number);
        let identity = pod_identity(number, pod_number);
        self.endpoint_slots.set(interface, slot)?;
        self.endpoints.update(&slot, |endpoint| {
            *endpoint = Endpoint {
                ipv4: pod(number, pod_number, Family::V4).into(),
                ipv6: pod(number, pod_number, Family::V6).into(),
                interface,
                generation: 1,
                identity,
                mac: pod_mac(number, pod_number),
                ..Endpoint::default()
            };
        });
        self.next_hops.update(&slot, |hop| {
            *hop = NextHop {
                interface,
                kind: nexthop::kind::POD,
                destination_mac: pod_mac(number, pod_number),
                source_mac: gateway_mac(number),
                ..NextHop::default()
            };
        });
        for family in FAMILIES {
            let address = Prefix::host(pod(number, pod_number, family));
            self.ipcache
                .borrow_mut()
                .set(address, entry(kind::ENDPOINT, pod_number, identity));
        }
        Ok(())
    }

    /// Makes `other` a peer of a node of this `number`, reached over `underlay`, with `pods` pods
    /// that have identities; the rest of its range is nobody's in particular.
    ///
    /// # Errors
    ///
    /// [`InsertError::Full`] where a table has no room.
    pub fn add_peer(
        &self,
        number: u8,
        other: u8,
        underlay: Family,
        pods: u8,
    ) -> Result<(), InsertError> {
        let index = u32::from(other);
        self.peer_indices.set(node(other, underlay).into(), index)?;
        self.peers.update(&index, |peer| {
            *peer = Peer {
                address: node(other, underlay).into(),
                local: node(number, underlay).into(),
                generation: 1,
                interface: UPLINK,
                mac: gateway_mac(other),
                ..Peer::default()
            };
        });
        self.next_hops.update(&(PEERS_BASE + index), |hop| {
            *hop = NextHop {
                kind: nexthop::kind::UNRESOLVED,
                ..NextHop::default()
            };
        });
        let mut ipcache = self.ipcache.borrow_mut();
        for family in FAMILIES {
            let bits = if family == Family::V4 { 24 } else { 64 };
            let of_node = entry(kind::PEER_NODE, other, identity::REMOTE_NODE);
            ipcache.set(Prefix::host(node(other, family)), of_node);
            let range = Prefix::new(gateway(other, family), bits);
            ipcache.set(range, entry(kind::PEER_POD, other, identity::UNMANAGED));
            let of_gateway = entry(kind::PEER_POD, other, identity::REMOTE_NODE);
            ipcache.set(Prefix::host(gateway(other, family)), of_gateway);
            for pod_number in 1..=pods {
                let of_pod = entry(kind::PEER_POD, other, pod_identity(other, pod_number));
                ipcache.set(Prefix::host(pod(other, pod_number, family)), of_pod);
            }
            let neighbour = Some(node_mac(other));
            self.routing
                .borrow_mut()
                .neighbour(node(other, family), neighbour);
        }
        Ok(())
    }
}

fn entry(kind: u8, index: u8, identity: u32) -> IpEntry {
    IpEntry {
        identity,
        index: index.into(),
        kind,
        flags: 0,
    }
}
