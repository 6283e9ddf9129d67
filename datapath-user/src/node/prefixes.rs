//! What the ipcache says of this node.

use datapath_kern::abi::endpoint::identity;
use datapath_kern::abi::ipcache::{self, IpEntry};
use datapath_tunnel::netlink::{Address, Scope};
use ipnet::IpNet;

use crate::config::Config;

/// What the ipcache says of this node before anyone else is known. Shorter prefixes give way to
/// longer ones: a pod's address to its range.
pub(super) fn own(config: &Config, addresses: &[Address]) -> Vec<(IpNet, IpEntry)> {
    let entry = |identity, kind, flags| IpEntry {
        identity,
        index: 0,
        kind,
        flags,
    };
    // Mapped addresses lie in `::/0`: without an entry of its own IPv4 would fall under that.
    let of_v4 = (
        IpNet::V4(ipnet::Ipv4Net::default()),
        entry(identity::WORLD, ipcache::kind::WORLD, 0),
    );
    let outside = config.non_masquerade.iter().map(|&prefix| {
        let flags = ipcache::flags::NO_MASQUERADE;
        (
            prefix.trunc(),
            entry(identity::WORLD, ipcache::kind::WORLD, flags),
        )
    });
    let vacant = config
        .pod_cidrs
        .iter()
        .map(|&cidr| (cidr, entry(identity::UNKNOWN, ipcache::kind::VACANT, 0)));
    let own = addresses
        .iter()
        .filter(|address| address.scope == Scope::Universe && !address.net.addr().is_loopback())
        .map(|address| address.net.addr())
        .chain(config.gateways.iter().copied())
        .map(|address| {
            (
                IpNet::from(address),
                entry(identity::HOST, ipcache::kind::HOST, 0),
            )
        });
    std::iter::once(of_v4)
        .chain(outside)
        .chain(vacant)
        .chain(own)
        .collect()
}
