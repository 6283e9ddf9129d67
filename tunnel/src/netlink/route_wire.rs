//! A route in a netlink message (`struct rtmsg` and `RTA_*`, include/uapi/linux/rtnetlink.h).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily,
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteNextHop,
        RouteNextHopFlags, RouteProtocol, RouteScope, RouteType, RouteVia,
    },
};

use super::{NextHop, Route, RouteKind};

/// Writes the whole route.
pub(super) fn encode(route: &Route) -> RouteMessage {
    let mut message = encode_key(route);
    message.header.protocol = RouteProtocol::from(route.protocol);
    message.header.scope = scope(route);
    if let Some(source) = route.source {
        message
            .attributes
            .push(RouteAttribute::PrefSource(source.into()));
    }
    if let Some(mtu_bytes) = route.mtu_bytes {
        message
            .attributes
            .push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu_bytes)]));
    }
    message
}

/// Writes what tells a route from others, for its deletion.
pub(super) fn encode_key(route: &Route) -> RouteMessage {
    let destination = route.destination.trunc();
    let mut message = RouteMessage::default();
    message.header.address_family = match destination {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    };
    message.header.destination_prefix_length = destination.prefix_len();
    message.header.kind = RouteType::from(u8::from(route.kind));
    // As good as a wildcard: a deletion with a real scope or protocol finds only routes with
    // exactly these.
    message.header.protocol = RouteProtocol::Unspec;
    message.header.scope = RouteScope::NoWhere;
    if route.on_link {
        message.header.flags |= RouteFlags::Onlink;
    }
    if let Ok(table) = u8::try_from(route.table) {
        message.header.table = table;
    } else {
        message.attributes.push(RouteAttribute::Table(route.table));
    }
    if destination.prefix_len() != 0 {
        message
            .attributes
            .push(RouteAttribute::Destination(destination.addr().into()));
    }
    message.attributes.extend(
        route
            .gateway
            .map(|gateway| encode_gateway(destination, gateway)),
    );
    message
        .attributes
        .extend(route.index.map(RouteAttribute::Oif));
    message
        .attributes
        .extend(route.metric.map(RouteAttribute::Priority));
    if !route.next_hops.is_empty() {
        let hops = route
            .next_hops
            .iter()
            .map(|hop| encode_hop(destination, hop));
        message
            .attributes
            .push(RouteAttribute::MultiPath(hops.collect()));
    }
    message
}

/// Reads a route; `None` for what is not in a routing table of IPv4 or IPv6.
pub(super) fn decode(message: RouteMessage) -> Option<Route> {
    let header = message.header;
    let unspecified: IpAddr = match header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    if header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let mut destination = unspecified;
    let mut route = Route::to(IpNet::from(unspecified));
    route.table = header.table.into();
    route.protocol = header.protocol.into();
    route.kind = RouteKind::from(u8::from(header.kind));
    route.on_link = header.flags.contains(RouteFlags::Onlink);
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(&address)?,
            RouteAttribute::Oif(index) => route.index = Some(index),
            RouteAttribute::PrefSource(address) => route.source = ip(&address),
            RouteAttribute::Priority(metric) => route.metric = Some(metric),
            RouteAttribute::Table(table) => route.table = table,
            RouteAttribute::MultiPath(hops) => {
                route.next_hops = hops.iter().map(decode_hop).collect();
            }
            RouteAttribute::Metrics(metrics) => {
                route.mtu_bytes = metrics.into_iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu_bytes) => Some(mtu_bytes),
                    _ => None,
                });
            }
            other => route.gateway = decode_gateway(&other).or(route.gateway),
        }
    }
    route.destination = IpNet::new(destination, header.destination_prefix_length).ok()?;
    Some(route)
}

/// How far the next hop is. The kernel looks gateways up among routes of a narrower scope only, so
/// an IPv4 route without one must say that it ends on the link; the other kinds have a widest
/// scope each (`fib_create_info`, `fib_props` in `net/ipv4/fib_semantics.c`). IPv6 has no scopes.
fn scope(route: &Route) -> RouteScope {
    if matches!(route.destination, IpNet::V6(_)) {
        return RouteScope::Universe;
    }
    let next_hop_is_far = route.gateway.is_some() || !route.next_hops.is_empty();
    match RouteType::from(u8::from(route.kind)) {
        RouteType::Local | RouteType::Nat => RouteScope::Host,
        RouteType::Broadcast | RouteType::Multicast | RouteType::Anycast => RouteScope::Link,
        RouteType::Unicast if !next_hop_is_far => RouteScope::Link,
        _ => RouteScope::Universe,
    }
}

fn encode_gateway(destination: IpNet, gateway: IpAddr) -> RouteAttribute {
    match (destination, gateway) {
        (IpNet::V4(_), IpAddr::V6(gateway)) => RouteAttribute::Via(RouteVia::Inet6(gateway)),
        (_, gateway) => RouteAttribute::Gateway(gateway.into()),
    }
}

fn decode_gateway(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        RouteAttribute::Via(RouteVia::Inet(gateway)) => Some((*gateway).into()),
        RouteAttribute::Via(RouteVia::Inet6(gateway)) => Some((*gateway).into()),
        _ => None,
    }
}

fn encode_hop(destination: IpNet, hop: &NextHop) -> RouteNextHop {
    let mut encoded = RouteNextHop::default();
    encoded.interface_index = hop.index;
    // The kernel counts from 0.
    encoded.hops = u8::try_from(hop.weight.saturating_sub(1)).unwrap_or(u8::MAX);
    if hop.on_link {
        encoded.flags |= RouteNextHopFlags::Onlink;
    }
    encoded.attributes.extend(
        hop.gateway
            .map(|gateway| encode_gateway(destination, gateway)),
    );
    encoded
}

fn decode_hop(hop: &RouteNextHop) -> NextHop {
    NextHop {
        gateway: hop.attributes.iter().find_map(decode_gateway),
        index: hop.interface_index,
        weight: u16::from(hop.hops) + 1,
        on_link: hop.flags.contains(RouteNextHopFlags::Onlink),
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

impl From<RouteKind> for u8 {
    fn from(kind: RouteKind) -> Self {
        match kind {
            RouteKind::Unicast => 1,
            RouteKind::Blackhole => 6,
            RouteKind::Unreachable => 7,
            RouteKind::Prohibit => 8,
            RouteKind::Other(kind) => kind,
        }
    }
}

impl From<u8> for RouteKind {
    fn from(kind: u8) -> Self {
        match kind {
            1 => Self::Unicast,
            6 => Self::Blackhole,
            7 => Self::Unreachable,
            8 => Self::Prohibit,
            kind => Self::Other(kind),
        }
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::RouteNetlinkMessage;
    use proptest::{collection::vec, option, prelude::*};
    use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};

    use super::*;

    proptest! {
        #[test]
        fn a_route_survives_the_message(route in route()) {
            let read = decode(through_bytes(encode(&route))).unwrap();
            let destination = route.destination.trunc();
            prop_assert_eq!(read, Route { destination, ..route });
        }

        #[test]
        fn a_deletion_names_no_scope_and_no_protocol(route in route()) {
            let message = through_bytes(encode_key(&route));
            prop_assert_eq!(message.header.scope, RouteScope::NoWhere);
            let read = decode(message).unwrap();
            prop_assert_eq!((read.protocol, read.mtu_bytes, read.source), (0, None, None));
            prop_assert_eq!(read.destination, route.destination.trunc());
            prop_assert_eq!((read.gateway, read.index), (route.gateway, route.index));
            prop_assert_eq!((read.metric, read.table), (route.metric, route.table));
        }
    }

    #[test]
    fn other_families_and_cached_routes_are_left_out() {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Mpls;
        assert_eq!(decode(message), None);
        let mut message = encode(&Route::to("10.0.0.0/8".parse().unwrap()));
        message.header.flags |= RouteFlags::Cloned;
        assert_eq!(decode(message), None);
    }

    fn through_bytes(message: RouteMessage) -> RouteMessage {
        let mut message = NetlinkMessage::from(RouteNetlinkMessage::NewRoute(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        match NetlinkMessage::deserialize(&bytes).unwrap().payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(message)) => message,
            other => panic!("{other:?}"),
        }
    }

    fn route() -> impl Strategy<Value = Route> {
        let hops = |v4| vec(hop(v4), 1..4);
        let shape = any::<bool>().prop_flat_map(move |v4| {
            let one = (option::of(gateway(v4)), option::of(1..=u32::MAX))
                .prop_map(|(gateway, index)| (gateway, index, Vec::new()));
            let several = hops(v4).prop_map(|hops| (None, None, hops));
            (net(v4), option::of(address(v4)), prop_oneof![one, several])
        });
        let rest = (
            option::of(1..=u32::MAX),
            option::of(1..=u32::MAX),
            any::<bool>(),
            1..=u32::MAX,
            any::<u8>(),
            any::<u8>().prop_map(RouteKind::from),
        );
        (shape, rest).prop_map(|(shape, rest)| {
            let (destination, source, (gateway, index, next_hops)) = shape;
            let (mtu_bytes, metric, on_link, table, protocol, kind) = rest;
            Route {
                destination,
                gateway,
                index,
                source,
                mtu_bytes,
                metric,
                on_link,
                table,
                protocol,
                kind,
                next_hops,
            }
        })
    }

    fn hop(v4: bool) -> impl Strategy<Value = NextHop> {
        let parts = (
            option::of(gateway(v4)),
            1..=u32::MAX,
            1..=256_u16,
            any::<bool>(),
        );
        parts.prop_map(|(gateway, index, weight, on_link)| NextHop {
            gateway,
            index,
            weight,
            on_link,
        })
    }

    /// An IPv4 route can have a gateway of either family.
    fn gateway(v4: bool) -> impl Strategy<Value = IpAddr> {
        any::<bool>().prop_flat_map(move |other| address(v4 && !other))
    }

    fn net(v4: bool) -> impl Strategy<Value = IpNet> {
        let longest: u8 = if v4 { 32 } else { 128 };
        (address(v4), 0..=longest).prop_map(|(address, len)| IpNet::new(address, len).unwrap())
    }

    fn address(v4: bool) -> impl Strategy<Value = IpAddr> {
        if v4 {
            any::<Ipv4Addr>().prop_map(IpAddr::from).boxed()
        } else {
            any::<Ipv6Addr>().prop_map(IpAddr::from).boxed()
        }
    }
}
