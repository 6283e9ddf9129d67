//! Routes: what they are, and the operations on them.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage, route::RouteMessage};
use nix::errno::Errno;

use super::{Change, Netlink, NetlinkError, route_wire, was_there};

/// A route.
///
/// Made with [`Route::to`] and the methods after it:
///
/// ```
/// use datapath_tunnel::netlink::Route;
///
/// let route = Route::to("10.0.2.0/24".parse()?)
///     .via("192.168.0.2".parse()?)
///     .dev(7)
///     .mtu(1450);
/// assert_eq!(route.to_string(), "10.0.2.0/24 via 192.168.0.2 on interface 7 mtu 1450");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// Where it leads. Host bits are left out when it is sent to the kernel.
    pub destination: IpNet,
    /// The next hop's address; `None` when the destination itself is on the link. An IPv4 route
    /// may have an IPv6 gateway (RFC 5549).
    pub gateway: Option<IpAddr>,
    /// The interface that packets leave by; the kernel finds it from the gateway if there is
    /// none.
    pub index: Option<u32>,
    /// The address that the host takes for its own packets, unless they bring one.
    pub source: Option<IpAddr>,
    /// The largest packet along it; the interface's MTU if there is none.
    pub mtu_bytes: Option<u32>,
    /// Smaller is preferred; the kernel takes 0 for IPv4 and 1024 for IPv6 if there is none.
    pub metric: Option<u32>,
    /// Whether the gateway is on the link although no address of the interface says so.
    pub on_link: bool,
    /// The table it is in: 254 is the main one.
    pub table: u32,
    /// Who made it (`RTPROT_*`): 2 the kernel, 4 an administrator.
    pub protocol: u8,
    /// What becomes of the packets.
    pub kind: RouteKind,
    /// Several next hops that share the packets, instead of `gateway` and `index`.
    pub next_hops: Vec<NextHop>,
}

/// What becomes of packets that take a route (`RTN_*`, include/uapi/linux/rtnetlink.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RouteKind {
    /// They are sent on.
    #[default]
    Unicast,
    /// They are dropped.
    Blackhole,
    /// They are dropped and the sender is told that the host is unreachable.
    Unreachable,
    /// They are dropped and the sender is told that it is forbidden.
    Prohibit,
    /// Another number.
    Other(u8),
}

/// One of several next hops of a route.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NextHop {
    /// Its address; `None` when the destination itself is on the link.
    pub gateway: Option<IpAddr>,
    /// The interface that packets leave by.
    pub index: u32,
    /// Its share of the flows, 1 to 256.
    pub weight: u16,
    /// As [`Route::on_link`].
    pub on_link: bool,
}

impl Route {
    /// The main table.
    pub const MAIN_TABLE: u32 = 254;
    /// Made by the kernel (`RTPROT_KERNEL`).
    pub const BY_KERNEL: u8 = 2;
    /// Made by an administrator (`RTPROT_STATIC`).
    pub const STATIC: u8 = 4;

    /// A static route in the main table. It still needs a gateway, an interface, or a kind that
    /// needs neither.
    #[must_use]
    pub fn to(destination: IpNet) -> Self {
        Self {
            destination,
            gateway: None,
            index: None,
            source: None,
            mtu_bytes: None,
            metric: None,
            on_link: false,
            table: Self::MAIN_TABLE,
            protocol: Self::STATIC,
            kind: RouteKind::Unicast,
            next_hops: Vec::new(),
        }
    }

    /// Sets the gateway.
    #[must_use]
    pub fn via(mut self, gateway: IpAddr) -> Self {
        self.gateway = Some(gateway);
        self
    }

    /// Sets the interface.
    #[must_use]
    pub fn dev(mut self, index: u32) -> Self {
        self.index = Some(index);
        self
    }

    /// Sets the preferred source address.
    #[must_use]
    pub fn source(mut self, source: IpAddr) -> Self {
        self.source = Some(source);
        self
    }

    /// Sets the MTU.
    #[must_use]
    pub fn mtu(mut self, mtu_bytes: u32) -> Self {
        self.mtu_bytes = Some(mtu_bytes);
        self
    }

    /// Sets the metric.
    #[must_use]
    pub fn metric(mut self, metric: u32) -> Self {
        self.metric = Some(metric);
        self
    }

    /// Takes the gateway for on the link, whatever the addresses say.
    #[must_use]
    pub fn on_link(mut self) -> Self {
        self.on_link = true;
        self
    }

    /// Sets the table.
    #[must_use]
    pub fn table(mut self, table: u32) -> Self {
        self.table = table;
        self
    }

    /// Sets who made it, so that it can be told from others' routes.
    #[must_use]
    pub fn protocol(mut self, protocol: u8) -> Self {
        self.protocol = protocol;
        self
    }

    /// Sets what becomes of the packets.
    #[must_use]
    pub fn kind(mut self, kind: RouteKind) -> Self {
        self.kind = kind;
        self
    }

    fn check(&self, operation: impl fmt::Display) -> Result<(), NetlinkError> {
        let v4 = matches!(self.destination, IpNet::V4(_));
        let gateways = self.next_hops.iter().map(|hop| hop.gateway);
        let mut gateways = gateways.chain([self.gateway]).flatten();
        let reason = if !v4 && gateways.any(|gateway| gateway.is_ipv4()) {
            "an IPv6 route cannot have an IPv4 gateway"
        } else if self.source.is_some_and(|source| source.is_ipv4() != v4) {
            "the source address is of the other family"
        } else if !self.next_hops.is_empty() && (self.gateway.is_some() || self.index.is_some()) {
            "give one next hop, or a list of them, not both"
        } else if self
            .next_hops
            .iter()
            .any(|hop| !(1..=256).contains(&hop.weight))
        {
            "the weight of a next hop is 1 to 256"
        } else if self.table == 0 {
            "give a table other than 0"
        } else {
            return Ok(());
        };
        Err(NetlinkError::Invalid {
            operation: operation.to_string(),
            reason: reason.to_owned(),
        })
    }
}

impl Netlink {
    /// Lists the routes of the main table, both families. Cached and cloned entries are left out.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Closed`], [`NetlinkError::Interrupted`], or the kernel's refusal.
    pub fn routes(&self) -> Result<Vec<Route>, NetlinkError> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut filter = RouteMessage::default();
            filter.header.address_family = family;
            filter.header.table = netlink_packet_route::route::RouteHeader::RT_TABLE_MAIN;
            let request = RouteNetlinkMessage::GetRoute(filter);
            match self.list("list routes", &request) {
                Ok(messages) => routes.extend(messages.into_iter().filter_map(decode)),
                // A kernel without the family, or whose table was never made.
                Err(error)
                    if [Errno::EOPNOTSUPP, Errno::EAFNOSUPPORT, Errno::ENOENT]
                        .iter()
                        .any(|&e| error.errno() == Some(e as i32)) => {}
                Err(error) => return Err(error),
            }
        }
        routes.retain(|route| route.table == Route::MAIN_TABLE);
        Ok(routes)
    }

    /// Adds a route.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Invalid`] for families that do not fit; the kernel's refusal: `EEXIST` if
    /// there is one to this destination with this metric, `ENETUNREACH` if the gateway is on no
    /// link, `ENETDOWN` if the interface is off, `ENODEV` if it is not there.
    pub fn add_route(&self, route: &Route) -> Result<(), NetlinkError> {
        let operation = format_args!("add route {route}");
        route.check(operation)?;
        let request = RouteNetlinkMessage::NewRoute(route_wire::encode(route));
        self.change(operation, Change::Create, request)
    }

    /// Adds a route, in the place of the one to the same destination with the same metric.
    ///
    /// There is no moment without either.
    ///
    /// # Errors
    ///
    /// As [`Netlink::add_route`], without `EEXIST`.
    pub fn replace_route(&self, route: &Route) -> Result<(), NetlinkError> {
        let operation = format_args!("replace route {route}");
        route.check(operation)?;
        let request = RouteNetlinkMessage::NewRoute(route_wire::encode(route));
        self.change(operation, Change::Replace, request)
    }

    /// Deletes a route; says whether it was there.
    ///
    /// It is the first one with this destination, table and kind, and with the gateway,
    /// interface and metric where they are given. MTU, source address and protocol do not matter,
    /// and in IPv6 the kind does not either.
    ///
    /// # Errors
    ///
    /// As [`Netlink::add_route`], without those for what is not there.
    pub fn delete_route(&self, route: &Route) -> Result<bool, NetlinkError> {
        let operation = format_args!("delete route {route}");
        route.check(operation)?;
        let request = RouteNetlinkMessage::DelRoute(route_wire::encode_key(route));
        let outcome = self.change(operation, Change::Existing, request);
        was_there(outcome, &[Errno::ESRCH, Errno::ENODEV])
    }
}

fn decode(message: RouteNetlinkMessage) -> Option<Route> {
    match message {
        RouteNetlinkMessage::NewRoute(message) => route_wire::decode(message),
        _ => None,
    }
}

/// Writes a route much as iproute2 does: `10.0.2.0/24 via 10.0.0.2 on interface 7 mtu 1450`.
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            RouteKind::Unicast => {}
            RouteKind::Blackhole => f.write_str("blackhole ")?,
            RouteKind::Unreachable => f.write_str("unreachable ")?,
            RouteKind::Prohibit => f.write_str("prohibit ")?,
            RouteKind::Other(kind) => write!(f, "type {kind} ")?,
        }
        write!(f, "{}", self.destination)?;
        write_hop(f, self.gateway, self.index, self.on_link)?;
        for hop in &self.next_hops {
            f.write_str(" next hop")?;
            write_hop(f, hop.gateway, Some(hop.index), hop.on_link)?;
            write!(f, " weight {}", hop.weight)?;
        }
        if let Some(source) = self.source {
            write!(f, " from {source}")?;
        }
        if let Some(metric) = self.metric {
            write!(f, " metric {metric}")?;
        }
        if let Some(mtu_bytes) = self.mtu_bytes {
            write!(f, " mtu {mtu_bytes}")?;
        }
        if self.table != Self::MAIN_TABLE {
            write!(f, " in table {}", self.table)?;
        }
        Ok(())
    }
}

fn write_hop(
    f: &mut fmt::Formatter<'_>,
    gateway: Option<IpAddr>,
    index: Option<u32>,
    on_link: bool,
) -> fmt::Result {
    if let Some(gateway) = gateway {
        write!(f, " via {gateway}")?;
    }
    if let Some(index) = index {
        write!(f, " on interface {index}")?;
    }
    if on_link {
        f.write_str(" on-link")?;
    }
    Ok(())
}
