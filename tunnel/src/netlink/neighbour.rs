//! Who has which address on a link: the ARP and neighbour discovery tables.

use std::net::IpAddr;

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::RouteType,
};
use nix::errno::Errno;

use super::{
    Change, Mac, Netlink, NetlinkError,
    link::{ShowMac, check_index},
    was_there,
};

/// An entry of the neighbour tables.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Neighbour {
    /// The interface's number.
    pub index: u32,
    /// The neighbour's address.
    pub address: IpAddr,
    /// Its Ethernet address; `None` while it is not known.
    pub mac: Option<Mac>,
    /// Whether it stays until someone deletes it.
    pub permanent: bool,
    /// Whether it may be used: known, and not found to be unreachable.
    pub valid: bool,
}

impl Netlink {
    /// Lists the neighbours on all interfaces, both families, without those the kernel made for
    /// interfaces that need none (`NUD_NOARP`).
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Closed`], [`NetlinkError::Interrupted`], or the kernel's refusal.
    pub fn neighbours(&self) -> Result<Vec<Neighbour>, NetlinkError> {
        let request = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        let messages = self.list("list neighbours", &request)?;
        Ok(messages.into_iter().filter_map(decode).collect())
    }

    /// Says for good which Ethernet address a neighbour has; replaces what was known.
    ///
    /// # Errors
    ///
    /// The kernel's refusal: `ENODEV` if the interface is not there, `EINVAL` if it has no
    /// Ethernet addresses.
    pub fn add_neighbour(&self, index: u32, address: IpAddr, mac: Mac) -> Result<(), NetlinkError> {
        let operation = format_args!(
            "add neighbour {address} at {} on interface {index}",
            ShowMac(mac)
        );
        check_index(operation, index)?;
        let mut message = encode(index, address);
        message.header.state = NeighbourState::Permanent;
        message
            .attributes
            .push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        let request = RouteNetlinkMessage::NewNeighbour(message);
        self.change(operation, Change::Replace, request)
    }

    /// Deletes a neighbour, learned or permanent; says whether it was there.
    ///
    /// # Errors
    ///
    /// The kernel's refusal: `EPERM` without `CAP_NET_ADMIN`.
    pub fn delete_neighbour(&self, index: u32, address: IpAddr) -> Result<bool, NetlinkError> {
        let operation = format_args!("delete neighbour {address} on interface {index}");
        check_index(operation, index)?;
        let request = RouteNetlinkMessage::DelNeighbour(encode(index, address));
        let outcome = self.change(operation, Change::Existing, request);
        was_there(outcome, &[Errno::ENOENT, Errno::ENODEV])
    }
}

fn encode(index: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = index;
    message.header.kind = RouteType::Unspec;
    let (family, destination) = match address {
        IpAddr::V4(ip) => (AddressFamily::Inet, NeighbourAddress::Inet(ip)),
        IpAddr::V6(ip) => (AddressFamily::Inet6, NeighbourAddress::Inet6(ip)),
    };
    message.header.family = family;
    message
        .attributes
        .push(NeighbourAttribute::Destination(destination));
    message
}

fn decode(message: RouteNetlinkMessage) -> Option<Neighbour> {
    let RouteNetlinkMessage::NewNeighbour(message) = message else {
        return None;
    };
    let state = message.header.state;
    if state == NeighbourState::Noarp {
        return None;
    }
    let mut address = None;
    let mut mac = None;
    for attribute in message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                address = Some(IpAddr::V4(ip));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                address = Some(IpAddr::V6(ip));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = Mac::try_from(bytes).ok(),
            _ => {}
        }
    }
    Some(Neighbour {
        index: message.header.ifindex,
        // Without an IP address it is a bridge's forwarding entry.
        address: address?,
        mac,
        permanent: state == NeighbourState::Permanent,
        // NUD_VALID, include/net/neighbour.h.
        valid: matches!(
            state,
            NeighbourState::Permanent
                | NeighbourState::Reachable
                | NeighbourState::Probe
                | NeighbourState::Stale
                | NeighbourState::Delay
        ),
    })
}
