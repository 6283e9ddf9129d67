//! Network interfaces: what they are, and their settings.

use std::{fmt, fs::File, os::fd::AsRawFd, path::Path};

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
    },
};
use nix::errno::Errno;
use rtnetlink::{LinkMessageBuilder, LinkUnspec};

use super::{Change, Mac, Netlink, NetlinkError, was_there};

/// Longest interface name, in bytes (`IFNAMSIZ` less the terminator).
const MAX_NAME_LEN: usize = 15;
/// Longest alias, in bytes (`IFALIASZ` less the terminator).
const MAX_ALIAS_LEN: usize = 255;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are independent flags of the kernel"
)]
pub struct Link {
    /// Its number in this namespace, never 0.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address; zeros where it has none (loopback, layer 3 tunnels).
    pub mac: Mac,
    /// Largest packet it takes, without the Ethernet header.
    pub mtu_bytes: u32,
    /// Whether it is switched on (`IFF_UP`).
    pub up: bool,
    /// Whether it can carry packets now: on, with carrier (`IFF_RUNNING`).
    pub running: bool,
    /// Whether it is a loopback interface.
    pub loopback: bool,
    /// Whether it neither asks for nor answers for addresses (`IFF_NOARP`).
    pub no_arp: bool,
    /// The bridge, bond or VRF that it belongs to.
    pub master: Option<u32>,
    /// The interface it is tied to (`IFLA_LINK`): the other end of a veth pair, by its number in
    /// *its* namespace, or what a VLAN lies on. `None` also where the kernel says 0 or itself.
    pub peer_index: Option<u32>,
    /// What kind of virtual interface it is ("veth", "bridge", ...); `None` for hardware.
    pub kind: Option<String>,
    /// A text for people, set by [`Netlink::set_alias`].
    pub alias: Option<String>,
}

impl Netlink {
    /// Lists the interfaces.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Closed`], [`NetlinkError::Interrupted`], or the kernel's refusal.
    pub fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let messages = self.list("list interfaces", &request)?;
        Ok(messages.into_iter().filter_map(decode).collect())
    }

    /// Finds an interface by name, or by one of its alternative names.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Invalid`] for a name that no interface can have, else as
    /// [`Netlink::links`].
    pub fn link(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let operation = format_args!("find interface {name:?}");
        check_name(operation, name)?;
        self.find(operation, LinkUnspec::new_with_name(name).build())
    }

    /// Finds an interface by number.
    ///
    /// # Errors
    ///
    /// As [`Netlink::links`].
    pub fn link_by_index(&self, index: u32) -> Result<Option<Link>, NetlinkError> {
        if index == 0 {
            return Ok(None);
        }
        let message = LinkUnspec::new_with_index(index).build();
        self.find(format_args!("find interface {index}"), message)
    }

    /// Deletes an interface; says whether it was there.
    ///
    /// The other end of a veth pair goes with it, and so do their addresses and routes.
    ///
    /// # Errors
    ///
    /// The kernel's refusal: `EOPNOTSUPP` for hardware, `EPERM` without `CAP_NET_ADMIN`.
    pub fn delete_link(&self, index: u32) -> Result<bool, NetlinkError> {
        let operation = format_args!("delete interface {index}");
        check_index(operation, index)?;
        let message = LinkUnspec::new_with_index(index).build();
        let request = RouteNetlinkMessage::DelLink(message);
        let outcome = self.change(operation, Change::Existing, request);
        was_there(outcome, &[Errno::ENODEV])
    }

    /// Switches an interface on or off.
    ///
    /// # Errors
    ///
    /// The kernel's refusal: `ENODEV` if it is not there.
    pub fn set_up(&self, index: u32, up: bool) -> Result<(), NetlinkError> {
        let operation = format_args!("switch interface {index} {}", on_off(up));
        self.set(
            operation,
            index,
            |link| if up { link.up() } else { link.down() },
        )
    }

    /// Sets the largest packet that an interface takes, without its Ethernet header.
    ///
    /// Below 1280 the kernel takes IPv6 off the interface (RFC 8200 section 5).
    ///
    /// # Errors
    ///
    /// The kernel's refusal: `EINVAL` outside what the driver can do.
    pub fn set_mtu(&self, index: u32, mtu_bytes: u32) -> Result<(), NetlinkError> {
        let operation = format_args!("set the MTU of interface {index} to {mtu_bytes}");
        self.set(operation, index, |link| link.mtu(mtu_bytes))
    }

    /// Sets the Ethernet address of an interface.
    ///
    /// # Errors
    ///
    /// The kernel's refusal: `EADDRNOTAVAIL` for an address that is zero or a group.
    pub fn set_mac(&self, index: u32, mac: Mac) -> Result<(), NetlinkError> {
        let operation = format_args!("set the address of interface {index} to {}", ShowMac(mac));
        self.set(operation, index, |link| link.address(mac.to_vec()))
    }

    /// Puts an interface into a bridge, bond or VRF, or takes it out.
    ///
    /// # Errors
    ///
    /// The kernel's refusal: `EINVAL` if the master does not exist or takes no ports.
    pub fn set_master(&self, index: u32, master: Option<u32>) -> Result<(), NetlinkError> {
        let operation = match master {
            Some(master) => format!("put interface {index} into interface {master}"),
            None => format!("take interface {index} out of its master"),
        };
        self.set(operation, index, |link| {
            link.controller(master.unwrap_or(0))
        })
    }

    /// Lets an interface ask and answer for addresses, or not.
    ///
    /// Without, neighbours must be given by [`Netlink::add_neighbour`]. On most kinds of
    /// interface this also stops IPv6 address autoconfiguration.
    ///
    /// # Errors
    ///
    /// The kernel's refusal: `ENODEV` if it is not there.
    pub fn set_arp(&self, index: u32, arp: bool) -> Result<(), NetlinkError> {
        let operation = format_args!("switch ARP of interface {index} {}", on_off(arp));
        self.set(operation, index, |link| link.arp(arp))
    }

    /// Renames an interface.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Invalid`] for a name that no interface can have; the kernel's refusal:
    /// `EEXIST` if the name is taken, before Linux 6.2 `EBUSY` if the interface is on.
    pub fn rename(&self, index: u32, name: &str) -> Result<(), NetlinkError> {
        let operation = format_args!("rename interface {index} to {name:?}");
        check_name(operation, name)?;
        self.set(operation, index, |link| link.name(name))
    }

    /// Moves an interface that is off into another namespace, where it is called `name`.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::OpenNamespace`] if the namespace cannot be opened,
    /// [`NetlinkError::Invalid`] for a name that no interface can have; the kernel's refusal:
    /// `EINVAL` for one that cannot be moved, `EEXIST` if the name is taken.
    pub fn move_to(&self, index: u32, netns: &Path, name: &str) -> Result<(), NetlinkError> {
        let operation = format!("move interface {index} to {} as {name:?}", netns.display());
        check_name(&operation, name)?;
        let file = File::open(netns).map_err(|source| NetlinkError::OpenNamespace {
            path: netns.to_owned(),
            source,
        })?;
        self.set(operation, index, |link| {
            link.setns_by_fd(file.as_raw_fd()).name(name)
        })
    }

    /// Gives an interface a text for people; an empty one takes it away.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Invalid`] above 255 bytes; the kernel's refusal.
    pub fn set_alias(&self, index: u32, alias: &str) -> Result<(), NetlinkError> {
        let operation = format_args!("set the alias of interface {index} to {alias:?}");
        if alias.len() > MAX_ALIAS_LEN || alias.contains('\0') {
            return Err(NetlinkError::Invalid {
                operation: operation.to_string(),
                reason: format!("an alias has up to {MAX_ALIAS_LEN} bytes, none of them zero"),
            });
        }
        self.set(operation, index, |link| link.alias(alias))
    }

    /// Keeps the kernel from giving an interface an IPv6 link-local address
    /// (`IN6_ADDR_GEN_MODE_NONE`). Call it before the interface is switched on.
    ///
    /// An interface without IPv6, because the kernel has none or the MTU is below 1280, gets no
    /// such address anyway: that is not an error.
    ///
    /// # Errors
    ///
    /// The kernel's refusal: `ENODEV` if it is not there.
    pub fn set_no_addrgen(&self, index: u32) -> Result<(), NetlinkError> {
        let operation = format_args!("turn off IPv6 address generation on interface {index}");
        let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let attribute = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![none])]);
        let outcome = self.set(operation, index, |link| {
            link.append_extra_attribute(attribute)
        });
        was_there(outcome, &[Errno::EAFNOSUPPORT]).map(|_had_ipv6| ())
    }

    fn set(
        &self,
        operation: impl fmt::Display,
        index: u32,
        setting: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
    ) -> Result<(), NetlinkError> {
        check_index(&operation, index)?;
        let message = setting(LinkUnspec::new_with_index(index)).build();
        let request = RouteNetlinkMessage::SetLink(message);
        self.change(operation, Change::Existing, request)
    }

    fn find(
        &self,
        operation: impl fmt::Display,
        message: LinkMessage,
    ) -> Result<Option<Link>, NetlinkError> {
        match self.get(&operation, RouteNetlinkMessage::GetLink(message)) {
            Ok(messages) => match messages.into_iter().find_map(decode) {
                Some(link) => Ok(Some(link)),
                None => Err(NetlinkError::Answer {
                    operation: operation.to_string(),
                    missing: "interface that can be read",
                }),
            },
            Err(error) if error.errno() == Some(Errno::ENODEV as i32) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Refuses a name that the kernel's `dev_valid_name` (net/core/dev.c) refuses.
///
/// In a request that carries a number too, such a name would otherwise be cut or ignored.
pub(super) fn check_name(operation: impl fmt::Display, name: &str) -> Result<(), NetlinkError> {
    let bad = |c: char| c == '/' || c == ':' || c == '\0' || c.is_ascii_whitespace() || c == '\x0b';
    if name.is_empty()
        || name.len() > MAX_NAME_LEN
        || name == "."
        || name == ".."
        || name.contains(bad)
    {
        return Err(NetlinkError::Invalid {
            operation: operation.to_string(),
            reason: format!(
                "an interface name has 1 to {MAX_NAME_LEN} bytes without spaces, '/' and ':', \
                 and is not '.' or '..'"
            ),
        });
    }
    Ok(())
}

/// Refuses number 0, which the kernel takes for "by name" and answers with a puzzling error.
pub(super) fn check_index(operation: impl fmt::Display, index: u32) -> Result<(), NetlinkError> {
    if index == 0 {
        return Err(NetlinkError::Invalid {
            operation: operation.to_string(),
            reason: "no interface has the number 0, look it up by name first".to_owned(),
        });
    }
    Ok(())
}

fn decode(message: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else {
        return None;
    };
    let flags = message.header.flags;
    let index = message.header.index;
    let mut link = Link {
        index,
        name: String::new(),
        mac: Mac::default(),
        mtu_bytes: 0,
        up: flags.contains(LinkFlags::Up),
        running: flags.contains(LinkFlags::Running),
        loopback: flags.contains(LinkFlags::Loopback),
        no_arp: flags.contains(LinkFlags::Noarp),
        master: None,
        peer_index: None,
        kind: None,
        alias: None,
    };
    let mut peer_elsewhere = false;
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(bytes) => link.mac = Mac::try_from(bytes).unwrap_or_default(),
            LinkAttribute::Mtu(mtu_bytes) => link.mtu_bytes = mtu_bytes,
            LinkAttribute::Controller(master) => link.master = Some(master),
            LinkAttribute::Link(peer) => link.peer_index = Some(peer),
            LinkAttribute::LinkNetNsId(_) => peer_elsewhere = true,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.into_iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    // Both ends of a pair can have the same number, in different namespaces.
    link.peer_index = link
        .peer_index
        .filter(|&peer| peer != 0 && (peer != index || peer_elsewhere));
    Some(link)
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// Writes a MAC the usual way: `02:00:00:00:00:01`.
pub(super) struct ShowMac(pub(super) Mac);

impl fmt::Display for ShowMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, byte) in self.0.into_iter().enumerate() {
            let colon = if position == 0 { "" } else { ":" };
            write!(f, "{colon}{byte:02x}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_judged_as_the_kernel_does() {
        for good in ["a", "eth0", "dp-1.100", "fifteen-bytes-x", "ünïcode"] {
            assert!(check_name("test", good).is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "a:b",
            "a b",
            "a\tb",
            "a\x0bb",
            "sixteen-bytes-xx",
        ] {
            assert!(check_name("test", bad).is_err(), "{bad}");
        }
    }
}
