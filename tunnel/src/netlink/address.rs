//! Addresses of interfaces.

use std::fmt;

use ipnet::IpNet;
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope},
};
use nix::errno::Errno;
use rtnetlink::AddressMessageBuilder;

use super::{Change, Netlink, NetlinkError, link::check_index, was_there};

/// An address of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[expect(
    clippy::struct_excessive_bools,
    reason = "flags of the kernel, independent of each other"
)]
pub struct Address {
    /// The interface's number.
    pub index: u32,
    /// The address, with the prefix that it shares with its neighbours: `10.0.1.5/24`, host bits
    /// kept.
    pub net: IpNet,
    /// How far it is meaningful.
    pub scope: Scope,
    /// Whether it stays until someone deletes it, rather than expire.
    pub permanent: bool,
    /// Whether it cannot be used yet (or, after a clash, ever): duplicate address detection has
    /// not passed (RFC 4862 section 5.4).
    pub tentative: bool,
    /// Whether another host has it: duplicate address detection has failed.
    pub duplicate: bool,
    /// Whether it is not to be used for anything new (RFC 4862 section 5.5.4), as its preferred
    /// lifetime is over. IPv4 addresses can be so too.
    pub deprecated: bool,
    /// The flag that means two things (`IFA_F_SECONDARY`, `IFA_F_TEMPORARY`,
    /// `include/uapi/linux/if_addr.h`): of an IPv4 address, that an older one of the interface has
    /// the same prefix; of an IPv6 address, that it was made up for a while (RFC 8981).
    pub secondary: bool,
}

/// How far an address is meaningful (`RT_SCOPE_*`, include/uapi/linux/rtnetlink.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Everywhere (0).
    Universe,
    /// On this link only: IPv6 link-local (253).
    Link,
    /// On this host only: loopback (254).
    Host,
    /// Another number.
    Other(u8),
}

impl Netlink {
    /// Lists the addresses of all interfaces, both families.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Closed`], [`NetlinkError::Interrupted`], or the kernel's refusal.
    pub fn addresses(&self) -> Result<Vec<Address>, NetlinkError> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let messages = self.list("list addresses", &request)?;
        Ok(messages.into_iter().filter_map(decode).collect())
    }

    /// Adds an address to an interface; `false` if it was there with this prefix.
    ///
    /// An IPv6 address can be used at once, without duplicate address detection: who calls this
    /// hands out the addresses, and a pod must not wait a second for its first packet. An IPv4
    /// address with a prefix up to 30 gets the usual broadcast address.
    ///
    /// # Errors
    ///
    /// The kernel's refusal: `ENODEV` if the interface is not there; `EEXIST` if the address is
    /// there with another prefix (IPv6); `EINVAL` for one that no interface can have; `EACCES` if
    /// IPv6 is switched off on the interface.
    pub fn add_address(&self, index: u32, net: IpNet) -> Result<bool, NetlinkError> {
        let operation = format_args!("add address {net} to interface {index}");
        check_index(operation, index)?;
        check_address(operation, net)?;
        let mut message = encode(index, net);
        if matches!(net, IpNet::V6(_)) {
            message.header.flags |= AddressHeaderFlags::Nodad;
        }
        let request = RouteNetlinkMessage::NewAddress(message);
        match self.change(operation, Change::Create, request) {
            Ok(()) => Ok(true),
            Err(error) if error.errno() == Some(Errno::EEXIST as i32) => {
                // IPv6 takes an address once, whatever the prefix: do not call another one ours.
                let same = |known: &Address| known.index == index && known.net == net;
                if self.addresses()?.iter().any(same) {
                    Ok(false)
                } else {
                    Err(error)
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Deletes an address from an interface; says whether it was there.
    ///
    /// # Errors
    ///
    /// The kernel's refusal: `EPERM` without `CAP_NET_ADMIN`.
    pub fn delete_address(&self, index: u32, net: IpNet) -> Result<bool, NetlinkError> {
        let operation = format_args!("delete address {net} from interface {index}");
        check_index(operation, index)?;
        let request = RouteNetlinkMessage::DelAddress(encode(index, net));
        let outcome = self.change(operation, Change::Existing, request);
        // ENXIO: the interface has no IPv6.
        was_there(
            outcome,
            &[Errno::EADDRNOTAVAIL, Errno::ENODEV, Errno::ENXIO],
        )
    }
}

/// Refuses group addresses: the kernel would take an IPv4 one without a word.
fn check_address(operation: impl fmt::Display, net: IpNet) -> Result<(), NetlinkError> {
    if net.addr().is_multicast() || net.addr().is_unspecified() {
        return Err(NetlinkError::Invalid {
            operation: operation.to_string(),
            reason: "an interface has unicast addresses only".to_owned(),
        });
    }
    Ok(())
}

fn encode(index: u32, net: IpNet) -> AddressMessage {
    match net {
        IpNet::V4(net) => AddressMessageBuilder::<std::net::Ipv4Addr>::new()
            .index(index)
            .address(net.addr(), net.prefix_len())
            .build(),
        IpNet::V6(net) => AddressMessageBuilder::<std::net::Ipv6Addr>::new()
            .index(index)
            .address(net.addr(), net.prefix_len())
            .build(),
    }
}

fn decode(message: RouteNetlinkMessage) -> Option<Address> {
    let RouteNetlinkMessage::NewAddress(message) = message else {
        return None;
    };
    let header = message.header;
    let mut flags = AddressFlags::from_bits_retain(header.flags.bits().into());
    let mut local = None;
    let mut address = None;
    for attribute in message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(ip),
            AddressAttribute::Address(ip) => address = Some(ip),
            AddressAttribute::Flags(all) => flags = all,
            _ => {}
        }
    }
    // On a point-to-point interface IFA_ADDRESS is the other end (include/uapi/linux/if_addr.h).
    let net = IpNet::new(local.or(address)?, header.prefix_len).ok()?;
    Some(Address {
        index: header.index,
        net,
        scope: Scope::from(header.scope),
        permanent: flags.contains(AddressFlags::Permanent),
        tentative: flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed),
        duplicate: flags.contains(AddressFlags::Dadfailed),
        deprecated: flags.contains(AddressFlags::Deprecated),
        secondary: flags.contains(AddressFlags::Secondary),
    })
}

impl From<AddressScope> for Scope {
    fn from(scope: AddressScope) -> Self {
        match scope {
            AddressScope::Universe => Self::Universe,
            AddressScope::Link => Self::Link,
            AddressScope::Host => Self::Host,
            other => Self::Other(other.into()),
        }
    }
}
