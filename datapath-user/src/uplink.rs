//! Uplinks: what leads off the node, and behind which addresses.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use datapath_kern::abi::addr::Addr;
use datapath_kern::abi::tunnel::Uplink as Entry;
use datapath_tunnel::mtu::{Family, MIN_IPV6_MTU_BYTES, PodMtu, pod_mtu};
use datapath_tunnel::netlink::{Address, Link, Netlink, Scope};
use serde::{Deserialize, Serialize};

use crate::config::{Config, Tunnel};
use crate::datapath::of_family;
use crate::error::Error;
use crate::masquerade::rule::Choice;
use crate::masquerade::{Masquerade, MasqueradeRule};

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
    /// The addresses that pods are masqueraded behind, one per family at most, as
    /// [`MasqueradeRule`] finds them.
    pub masquerade: Vec<IpAddr>,
    /// Why each of those, in the same order.
    #[serde(default)]
    pub masquerade_rules: Vec<MasqueradeRule>,
    /// The families, `ipv4` and `ipv6`, in which pods leave under their own addresses, as
    /// masquerade is off. In one that is neither here nor among `masquerade` they do not leave.
    #[serde(default)]
    pub unmasqueraded: Vec<String>,
}

/// What uplinks are looked at by: the configuration, the node, and what was before.
pub(crate) struct Look<'a> {
    pub(crate) netlink: &'a Netlink,
    pub(crate) config: &'a Config,
    pub(crate) addresses: &'a [Address],
    /// The uplinks as they were.
    pub(crate) before: &'a [UplinkView],
    /// What each masqueraded pods behind last.
    pub(crate) behind: &'a Behind,
}

/// The last address that each uplink has masqueraded pods behind, by name and family (true: IPv4).
pub(crate) type Behind = BTreeMap<(String, bool), IpAddr>;

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
    pub(crate) fn entry(&self) -> Entry {
        let behind = |v4| {
            let off = self
                .unmasqueraded
                .iter()
                .any(|family| family == name_of(v4));
            let without = if off { Addr::NONE } else { Entry::NO_ADDRESS };
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
/// [`Error::NotFound`] for one that is not there, [`Error::Setting`] for an address to masquerade
/// behind that this node has not got.
pub(crate) fn find(
    netlink: &Netlink,
    config: &Config,
    addresses: &[Address],
) -> Result<Vec<UplinkView>, Error> {
    let found = look(&Look {
        netlink,
        config,
        addresses,
        before: &[],
        behind: &Behind::new(),
    })?;
    if let Some(missing) = found.iter().find(|uplink| !uplink.is_present()) {
        return Err(Error::NotFound {
            what: "uplink",
            name: missing.name.clone(),
        });
    }
    let choice = Choice::of(addresses, &[]);
    for spec in &config.uplinks {
        let masquerade = spec.masquerade(config.masquerade);
        if let Some(missing) = masquerade.named().iter().find(|named| !choice.has(**named)) {
            return Err(Error::Setting {
                field: "uplinks",
                value: format!("{{ name = {:?}, masquerade = [{missing}] }}", spec.name),
                rule: "must name an address that this node has, of global scope and not a \
                       temporary one: add it to an interface, or name another",
            });
        }
    }
    Ok(found)
}

/// Looks at the uplinks that the configuration names again.
///
/// An interface is followed by its index as long as there is one, also under another name, and
/// found by the configured name after that. One that is not there is [`UplinkState::Missing`].
///
/// # Errors
///
/// [`Error::Network`].
pub(crate) fn look(look: &Look<'_>) -> Result<Vec<UplinkView>, Error> {
    let Look {
        netlink,
        config,
        before,
        ..
    } = look;
    let mut found: Vec<UplinkView> = Vec::new();
    // Those that are still there come first: a name may be another one's former name.
    let mut links = Vec::new();
    for spec in &config.uplinks {
        let name = &spec.name;
        let known = before.iter().find(|uplink| uplink.name == *name);
        let followed = known.filter(|uplink| uplink.is_present());
        let link = match followed {
            Some(uplink) => netlink.link_by_index(uplink.index),
            None => Ok(None),
        };
        links.push((spec, known, link.map_err(Error::network(name))?));
    }
    let taken: Vec<u32> = links
        .iter()
        .filter_map(|(_, _, link)| Some(link.as_ref()?.index))
        .collect();
    for (spec, known, link) in links {
        let name = &spec.name;
        let link = match link {
            Some(link) => Some(link),
            None => netlink
                .link(name)
                .map_err(Error::network(name))?
                .filter(|link| !taken.contains(&link.index)),
        };
        found.push(match link {
            Some(link) => view(name, &link, look.addresses),
            None => UplinkView {
                name: name.clone(),
                interface: name.clone(),
                state: UplinkState::Missing,
                mtu_bytes: known.map_or(0, |uplink| uplink.mtu_bytes),
                ..UplinkView::default()
            },
        });
    }
    choose(look, &mut found)?;
    Ok(found)
}

/// An uplink whose interface is there, without what pods are masqueraded behind.
fn view(name: &str, link: &Link, addresses: &[Address]) -> UplinkView {
    UplinkView {
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
        ..UplinkView::default()
    }
}

/// Chooses what pods are masqueraded behind, for every uplink.
fn choose(look: &Look<'_>, uplinks: &mut [UplinkView]) -> Result<(), Error> {
    let specs = &look.config.uplinks;
    let masquerades: Vec<Masquerade> = specs
        .iter()
        .map(|spec| spec.masquerade(look.config.masquerade))
        .collect();
    // Nobody else needs the routes, and there may be many.
    let routes = if masquerades
        .iter()
        .all(|masquerade| *masquerade == Masquerade::Off)
    {
        Vec::new()
    } else {
        let failed = Error::network("this namespace");
        look.netlink.routes().map_err(failed)?
    };
    let choice = Choice::of(look.addresses, &routes);
    let indices: Vec<u32> = uplinks.iter().map(|uplink| uplink.index).collect();
    for (uplink, masquerade) in uplinks.iter_mut().zip(&masquerades) {
        let others: Vec<u32> = indices
            .iter()
            .copied()
            .filter(|&index| index != uplink.index)
            .collect();
        for v4 in [true, false] {
            if !masquerade.is_on(v4) {
                uplink.unmasqueraded.push(name_of(v4).to_owned());
                continue;
            }
            if !uplink.is_present() {
                continue;
            }
            let configured = of_family(masquerade.named(), v4);
            let former = look.behind.get(&(uplink.name.clone(), v4)).copied();
            let chosen = choice.choose(v4, uplink.index, &others, configured, former);
            if let Some((address, rule)) = chosen {
                uplink.masquerade.push(address);
                uplink.masquerade_rules.push(rule);
            }
        }
    }
    Ok(())
}

/// How a family is called.
const fn name_of(v4: bool) -> &'static str {
    if v4 { "ipv4" } else { "ipv6" }
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
