//! Uplinks: what leads off the node, and behind which addresses.

use std::net::IpAddr;

use datapath_kern::abi::addr::Addr;
use datapath_kern::abi::tunnel::Uplink as Entry;
use datapath_tunnel::mtu::{Family, PodMtu, pod_mtu};
use datapath_tunnel::netlink::{Address, Netlink, Scope};
use serde::{Deserialize, Serialize};

use crate::config::{Config, Tunnel};
use crate::error::Error;

/// An uplink as it was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UplinkView {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its MTU.
    pub mtu_bytes: u32,
    /// Its addresses, link-local ones left out: configured ones before those that expire, and then
    /// the oldest first.
    pub addresses: Vec<IpAddr>,
    /// The addresses that pods are masqueraded behind: in each family the first of `addresses`, so
    /// that one more address changes nothing for the flows that there are. None where masquerade
    /// is off.
    pub masquerade: Vec<IpAddr>,
}

impl UplinkView {
    /// The first address of a family.
    pub(crate) fn address(&self, v4: bool) -> Option<IpAddr> {
        self.addresses
            .iter()
            .copied()
            .find(|address| address.is_ipv4() == v4)
    }

    /// What the datapath is told of it.
    pub(crate) fn entry(&self) -> Entry {
        let behind = |v4| {
            let found = self
                .masquerade
                .iter()
                .find(|address| address.is_ipv4() == v4);
            found.map_or(Addr::NONE, |&address| address.into())
        };
        Entry {
            masquerade_v4: behind(true),
            masquerade_v6: behind(false),
        }
    }
}

/// Finds the uplinks that the configuration names.
///
/// # Errors
///
/// [`Error::NotFound`] for one that is not there.
pub(crate) fn find(
    netlink: &Netlink,
    config: &Config,
    addresses: &[Address],
) -> Result<Vec<UplinkView>, Error> {
    let mut found = Vec::new();
    for name in &config.uplinks {
        let link = netlink
            .link(name)
            .map_err(Error::network(name))?
            .ok_or_else(|| Error::NotFound {
                what: "uplink",
                name: name.clone(),
            })?;
        let mut uplink = UplinkView {
            name: name.clone(),
            index: link.index,
            mtu_bytes: link.mtu_bytes,
            addresses: oldest_first(link.index, addresses),
            masquerade: Vec::new(),
        };
        if config.masquerade {
            uplink.masquerade = [true, false]
                .into_iter()
                .filter_map(|v4| uplink.address(v4))
                .collect();
        }
        found.push(uplink);
    }
    Ok(found)
}

/// The addresses of an interface that are good anywhere, in the order of [`UplinkView::addresses`].
///
/// The kernel lists IPv4 addresses in the order in which they were added (`__inet_insert_ifa`,
/// `net/ipv4/devinet.c`), and IPv6 addresses the other way round (`ipv6_link_dev_addr`,
/// `net/ipv6/addrconf.c`).
fn oldest_first(index: u32, addresses: &[Address]) -> Vec<IpAddr> {
    let own = |v4| {
        let here = move |address: &&Address| {
            address.index == index
                && address.scope == Scope::Universe
                && address.net.addr().is_ipv4() == v4
        };
        addresses.iter().filter(here)
    };
    let mut found: Vec<&Address> = own(true).chain(own(false).rev()).collect();
    found.sort_by_key(|address| !address.permanent);
    found.iter().map(|address| address.net.addr()).collect()
}

/// The MTU of pods: the smallest uplink's, less what the tunnel adds in the larger of the
/// families that the underlay has.
///
/// # Errors
///
/// [`Error::Mtu`] where nothing is left.
pub(crate) fn mtu(uplinks: &[UplinkView], config: &Config) -> Result<PodMtu, Error> {
    let smallest = uplinks.iter().min_by_key(|uplink| uplink.mtu_bytes);
    let Some(uplink) = smallest else {
        return Err(Error::NotFound {
            what: "uplink",
            name: String::new(),
        });
    };
    let over_v6 = uplinks.iter().all(|uplink| uplink.address(true).is_none())
        || config.underlay.iter().any(IpAddr::is_ipv6);
    let mtu = match config.tunnel {
        Tunnel::Native => PodMtu::new(uplink.mtu_bytes, 0),
        Tunnel::Direct if over_v6 => pod_mtu(uplink.mtu_bytes, Family::V6, 0),
        Tunnel::Direct => pod_mtu(uplink.mtu_bytes, Family::V4, 0),
    };
    mtu.map_err(|source| Error::Mtu {
        uplink: uplink.name.clone(),
        source,
    })
}

/// The MTU of pods' interfaces: the smallest uplink's.
pub(crate) fn device_mtu_bytes(uplinks: &[UplinkView]) -> u32 {
    let sizes = uplinks.iter().map(|uplink| uplink.mtu_bytes);
    sizes.min().unwrap_or(1500)
}

/// The MTU for a prefix of pods.
///
/// # Errors
///
/// [`Error::Mtu`] where IPv6 cannot be carried.
pub(crate) fn mtu_bytes(mtu: PodMtu, v4: bool) -> Result<u32, Error> {
    let family = if v4 { Family::V4 } else { Family::V6 };
    mtu.for_family(family).map_err(|source| Error::Mtu {
        uplink: "of this node".into(),
        source,
    })
}
