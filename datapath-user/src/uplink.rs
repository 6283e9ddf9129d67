//! Uplinks: what leads off the node, and behind which addresses.

use std::fmt;
use std::net::IpAddr;

use datapath_kern::abi::addr::Addr;
use datapath_kern::abi::tunnel::Uplink as Entry;
use datapath_tunnel::mtu::{Family, MIN_IPV6_MTU_BYTES, PodMtu, pod_mtu};
use datapath_tunnel::netlink::{Address, Link, Netlink, Scope};
use serde::{Deserialize, Serialize};

use crate::config::{Config, Tunnel};
use crate::error::Error;

/// An uplink as it was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UplinkView {
    /// Its name in the configuration.
    pub name: String,
    /// The name that its interface has now: another one after it was renamed.
    #[serde(default)]
    pub interface: String,
    /// Its index; 0 while it is missing.
    pub index: u32,
    /// What kind of virtual interface it is (`veth`, `bond`, ...); none for hardware.
    #[serde(default)]
    pub kind: Option<String>,
    /// Whether packets can leave by it.
    #[serde(default)]
    pub state: UplinkState,
    /// Its MTU.
    pub mtu_bytes: u32,
    /// Its addresses, link-local ones left out: configured ones before those that expire, and then
    /// the oldest first.
    pub addresses: Vec<IpAddr>,
    /// The addresses that pods are masqueraded behind: in each family the one that it was before
    /// as long as it is there, else the first of `addresses`, so that one more address changes
    /// nothing for the flows that there are. None where masquerade is off.
    pub masquerade: Vec<IpAddr>,
}

/// Whether packets can leave by an uplink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UplinkState {
    /// It is on and has carrier.
    #[default]
    Up,
    /// It is off, or without carrier.
    Down,
    /// There is no such interface.
    Missing,
}

impl fmt::Display for UplinkState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Missing => "missing",
        })
    }
}

impl UplinkView {
    /// Whether there is such an interface.
    pub(crate) fn is_present(&self) -> bool {
        self.state != UplinkState::Missing
    }

    /// Whether it passes frames of several segments on uncut: then nothing on the way has to
    /// understand what is in a tunnel packet.
    pub(crate) fn passes_gso(&self) -> bool {
        self.kind.as_deref() == Some("veth")
    }

    /// The first address of a family.
    pub(crate) fn address(&self, v4: bool) -> Option<IpAddr> {
        self.addresses
            .iter()
            .copied()
            .find(|address| address.is_ipv4() == v4)
    }

    /// What the datapath is told of it.
    pub(crate) fn entry(&self, config: &Config) -> Entry {
        let without = if config.masquerade {
            Entry::NO_ADDRESS
        } else {
            Addr::NONE
        };
        let behind = |v4| {
            let found = self
                .masquerade
                .iter()
                .find(|address| address.is_ipv4() == v4);
            found.map_or(without, |&address| address.into())
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
    let found = look(netlink, config, addresses, &[])?;
    match found.iter().find(|uplink| !uplink.is_present()) {
        Some(missing) => Err(Error::NotFound {
            what: "uplink",
            name: missing.name.clone(),
        }),
        None => Ok(found),
    }
}

/// Looks at the uplinks that the configuration names, as they were `before`, again.
///
/// An interface is followed by its index as long as there is one, also under another name, and
/// found by the configured name after that. One that is not there is [`UplinkState::Missing`].
///
/// # Errors
///
/// [`Error::Network`].
pub(crate) fn look(
    netlink: &Netlink,
    config: &Config,
    addresses: &[Address],
    before: &[UplinkView],
) -> Result<Vec<UplinkView>, Error> {
    let mut found: Vec<UplinkView> = Vec::new();
    // Those that are still there come first: a name may be another one's former name.
    let mut links = Vec::new();
    for name in &config.uplinks {
        let known = before.iter().find(|uplink| uplink.name == *name);
        let followed = known.filter(|uplink| uplink.is_present());
        let link = match followed {
            Some(uplink) => netlink.link_by_index(uplink.index),
            None => Ok(None),
        };
        links.push((name, known, link.map_err(Error::network(name))?));
    }
    let taken: Vec<u32> = links
        .iter()
        .filter_map(|(_, _, link)| Some(link.as_ref()?.index))
        .collect();
    for (name, known, link) in links {
        let link = match link {
            Some(link) => Some(link),
            None => netlink
                .link(name)
                .map_err(Error::network(name))?
                .filter(|link| !taken.contains(&link.index)),
        };
        found.push(match link {
            Some(link) => view(name, &link, config, addresses, known),
            None => UplinkView {
                name: name.clone(),
                interface: name.clone(),
                index: 0,
                kind: None,
                state: UplinkState::Missing,
                mtu_bytes: known.map_or(0, |uplink| uplink.mtu_bytes),
                addresses: Vec::new(),
                masquerade: Vec::new(),
            },
        });
    }
    Ok(found)
}

/// An uplink whose interface is there.
fn view(
    name: &str,
    link: &Link,
    config: &Config,
    addresses: &[Address],
    before: Option<&UplinkView>,
) -> UplinkView {
    let mut uplink = UplinkView {
        name: name.to_owned(),
        interface: link.name.clone(),
        index: link.index,
        kind: link.kind.clone(),
        state: if link.running {
            UplinkState::Up
        } else {
            UplinkState::Down
        },
        mtu_bytes: link.mtu_bytes,
        addresses: oldest_first(link.index, addresses),
        masquerade: Vec::new(),
    };
    if config.masquerade {
        let former = before.map_or(&[][..], |uplink| &uplink.masquerade);
        let behind = |v4| {
            let still =
                |address: &&IpAddr| address.is_ipv4() == v4 && uplink.addresses.contains(address);
            former
                .iter()
                .find(still)
                .copied()
                .or_else(|| uplink.address(v4))
        };
        uplink.masquerade = [true, false].into_iter().filter_map(behind).collect();
    }
    uplink
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
/// families that its own ends have; IPv4 where nothing is said of them and an uplink has that.
///
/// # Errors
///
/// [`Error::Mtu`] where nothing is left.
pub(crate) fn mtu(uplinks: &[UplinkView], config: &Config) -> Result<PodMtu, Error> {
    let smallest = uplinks
        .iter()
        .filter(|uplink| uplink.is_present())
        .min_by_key(|uplink| uplink.mtu_bytes);
    let Some(uplink) = smallest else {
        return Err(Error::NotFound {
            what: "uplink",
            name: String::new(),
        });
    };
    let over_v6 = if config.underlay.is_empty() {
        uplinks.iter().all(|uplink| uplink.address(true).is_none())
    } else {
        config.underlay.iter().any(IpAddr::is_ipv6)
    };
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

/// The MTU of pods' interfaces: the smallest uplink's, but never so small that the kernel takes
/// their IPv6 addresses away, which would not come back with a larger one.
pub(crate) fn device_mtu_bytes(uplinks: &[UplinkView]) -> u32 {
    let present = uplinks.iter().filter(|uplink| uplink.is_present());
    let smallest = present.map(|uplink| uplink.mtu_bytes).min();
    smallest.unwrap_or(1500).max(MIN_IPV6_MTU_BYTES)
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
