//! What the ipcache says of this node.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use datapath_kern::abi::endpoint::identity;
use datapath_kern::abi::ipcache::{self, IpEntry};
use datapath_tunnel::netlink::{Address, Scope};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::config::Config;

/// What the ipcache says of each of this node's own addresses.
pub(super) const HOST: IpEntry = IpEntry {
    identity: identity::HOST,
    index: 0,
    kind: ipcache::kind::HOST,
    flags: 0,
};

/// All of both families.
const EVERYWHERE: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
];

/// What the ipcache says of a prefix outside, of which nothing else is known.
pub(super) const fn world(prefix: IpNet) -> IpEntry {
    IpEntry {
        identity: match prefix {
            IpNet::V4(_) => identity::WORLD_IPV4,
            IpNet::V6(_) => identity::WORLD_IPV6,
        },
        index: 0,
        kind: ipcache::kind::WORLD,
        flags: 0,
    }
}

/// This node's own addresses: the gateways, and all of its interfaces' that are good anywhere.
pub(super) fn hosts(config: &Config, addresses: &[Address]) -> impl Iterator<Item = IpAddr> {
    addresses
        .iter()
        .filter(|address| address.scope == Scope::Universe && !address.net.addr().is_loopback())
        .map(|address| address.net.addr())
        .chain(config.gateways.iter().copied())
}

/// What the ipcache says of this node before anyone else is known, but for the prefixes outside
/// that pods reach under their own addresses. Shorter prefixes give way to longer ones: a pod's
/// address to its range.
pub(super) fn own(config: &Config, addresses: &[Address]) -> Vec<(IpNet, IpEntry)> {
    let entry = |identity, kind, flags| IpEntry {
        identity,
        index: 0,
        kind,
        flags,
    };
    // Mapped addresses lie in `::/0`: without an entry of its own IPv4 would fall under that.
    let worlds = EVERYWHERE.map(|prefix| (prefix, world(prefix)));
    let vacant = config
        .pod_cidrs
        .iter()
        .map(|&cidr| (cidr, entry(identity::UNKNOWN, ipcache::kind::VACANT, 0)));
    let own = hosts(config, addresses).map(|address| (IpNet::from(address), HOST));
    worlds.into_iter().chain(vacant).chain(own).collect()
}
