//! Routes: kinds, gateways, MTU, replacement, long lists.

use std::net::UdpSocket;

use datapath_tunnel::netlink::{NextHop, Route, RouteKind};
use ipnet::IpNet;
use nix::{
    errno::Errno,
    sys::socket::{getsockopt, sockopt},
};

use crate::{
    lab::{PATIENT, Pair, cable, chain, errno, ip, net, reaches},
    namespace::Namespace,
};

#[test]
fn far_end_is_beyond_a_gateway() {
    let pair = Pair::new();
    for (gateway, pod, cluster, target) in [
        ("169.254.1.1/32", "10.0.1.5/32", "0.0.0.0/0", "10.9.9.9/32"),
        ("fd00:1::1/128", "fd00:1::5/128", "::/0", "fd00:9::9/128"),
    ] {
        pair.node_net
            .add_address(pair.near.index, net(gateway))
            .unwrap();
        pair.node_net.add_address(1, net(target)).unwrap();
        pair.node_net
            .add_route(&Route::to(net(pod)).dev(pair.near.index))
            .unwrap();
        pair.pod_net.add_address(pair.far.index, net(pod)).unwrap();
        let default = Route::to(net(cluster))
            .via(net(gateway).addr())
            .dev(pair.far.index);
        assert!(
            pair.pod_net.add_route(&default).is_err(),
            "no route to the gateway yet"
        );
        pair.pod_net.add_route(&default.clone().on_link()).unwrap();
        let routes = pair.pod_net.routes().unwrap();
        let listed = routes
            .iter()
            .find(|route| route.destination == net(cluster))
            .unwrap();
        assert_eq!(listed.gateway, default.gateway);
        let target = net(target).addr().to_string();
        assert!(reaches(&pair.pod, &pair.node, &target, PATIENT), "{target}");

        // The other way to say it: a route to the gateway.
        assert!(pair.pod_net.delete_route(&default).unwrap());
        let gateway = Route::to(net(gateway)).dev(pair.far.index);
        pair.pod_net.add_route(&gateway).unwrap();
        pair.pod_net.add_route(&default).unwrap();
        assert!(reaches(&pair.pod, &pair.node, &target, PATIENT), "{target}");
    }
}

#[test]
fn route_mtu_is_what_sockets_see() {
    let pair = Pair::new();
    let index = pair.far.index;
    pair.pod_net.add_address(index, net("10.0.1.5/24")).unwrap();
    pair.pod_net
        .add_address(index, net("fd00:1::5/64"))
        .unwrap();
    let v4 = Route::to(net("10.0.2.0/24"))
        .via(ip("10.0.1.1"))
        .dev(index)
        .mtu(1450);
    let v6 = Route::to(net("fd00:2::/64"))
        .via(ip("fd00:1::1"))
        .dev(index)
        .mtu(1430);
    for route in [&v4, &v6] {
        pair.pod_net.add_route(route).unwrap();
        let routes = pair.pod_net.routes().unwrap();
        let listed = routes
            .iter()
            .find(|known| known.destination == route.destination);
        assert_eq!(listed.unwrap().mtu_bytes, route.mtu_bytes);
    }
    let socket_mtu = || {
        pair.pod.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect("10.0.2.9:9").unwrap();
            getsockopt(&socket, sockopt::IpMtu).unwrap()
        })
    };
    assert_eq!(socket_mtu(), 1450);
    pair.pod_net.replace_route(&v4.mtu(1300)).unwrap();
    assert_eq!(socket_mtu(), 1300);
}

#[test]
fn replace_route_leaves_one() {
    let pair = Pair::new();
    let index = pair.near.index;
    for (own, first, second, target) in [
        ("10.0.1.1/24", "10.0.1.2", "10.0.1.3", "10.0.2.0/24"),
        ("fd00:1::1/64", "fd00:1::2", "fd00:1::3", "fd00:2::/64"),
    ] {
        pair.node_net.add_address(index, net(own)).unwrap();
        let route = Route::to(net(target)).dev(index).metric(77).protocol(99);
        let listed = || -> Vec<Route> {
            let mut routes = pair.node_net.routes().unwrap();
            routes.retain(|route| route.destination == net(target));
            routes
        };
        let (first, second) = (route.clone().via(ip(first)), route.via(ip(second)));
        // Also where there is none yet.
        pair.node_net.replace_route(&first).unwrap();
        assert_eq!(listed(), std::slice::from_ref(&first));
        assert_eq!(errno(pair.node_net.add_route(&first)), Errno::EEXIST);
        pair.node_net.replace_route(&second).unwrap();
        assert_eq!(listed(), std::slice::from_ref(&second));
        // Another metric is another route.
        pair.node_net.add_route(&second.clone().metric(78)).unwrap();
        assert_eq!(listed().len(), 2);
        assert!(
            !pair.node_net.delete_route(&first).unwrap(),
            "its gateway is not there"
        );
        assert!(pair.node_net.delete_route(&second).unwrap());
        assert_eq!(listed(), [second.metric(78)]);
    }
}

#[test]
fn every_kind_of_route_reads_back() {
    let pair = Pair::new();
    let (index, netlink) = (pair.near.index, &pair.node_net);
    netlink.add_address(index, net("10.0.1.1/24")).unwrap();
    netlink.add_address(index, net("fd00:1::1/64")).unwrap();
    let other = cable(netlink, "other").index;
    netlink.set_up(other, true).unwrap();
    let hops = |first: &str, second: &str| {
        let hop = |gateway, index, weight, on_link| NextHop {
            gateway: Some(ip(gateway)),
            index,
            weight,
            on_link,
        };
        vec![hop(first, index, 1, false), hop(second, other, 200, true)]
    };
    let v4 = |text| Route::to(net(text)).metric(5);
    for route in [
        v4("10.1.0.0/24").kind(RouteKind::Blackhole),
        v4("10.1.1.0/24").kind(RouteKind::Unreachable),
        v4("10.1.2.0/24").kind(RouteKind::Prohibit),
        v4("10.1.3.0/24").dev(index).source(ip("10.0.1.1")),
        v4("10.1.4.0/24").dev(index).via(ip("fd00:1::9")),
        v4("10.1.5.9/32")
            .dev(index)
            .via(ip("192.168.77.1"))
            .on_link(),
        v4("0.0.0.0/0").dev(index).via(ip("10.0.1.9")),
        Route {
            next_hops: hops("10.0.1.7", "192.168.78.1"),
            ..v4("10.1.6.0/24")
        },
        v4("fd00:a::/64")
            .dev(index)
            .mtu(1300)
            .source(ip("fd00:1::1")),
        v4("::/0").dev(index).via(ip("fd00:1::9")),
        Route {
            next_hops: hops("fd00:1::7", "fd00:78::1"),
            ..v4("fd00:b::/64")
        },
    ] {
        netlink
            .add_route(&route)
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        let routes = netlink.routes().unwrap();
        assert!(routes.contains(&route), "{route:?} in {routes:#?}");
        assert!(netlink.delete_route(&route).unwrap(), "{route}");
        assert!(!netlink.routes().unwrap().contains(&route));
    }
    // The kernel names the loopback interface for these.
    let v6 = Route::to(net("fd00:c::/64"))
        .metric(5)
        .kind(RouteKind::Unreachable);
    netlink.add_route(&v6).unwrap();
    assert!(netlink.routes().unwrap().contains(&v6.clone().dev(1)));
    assert!(netlink.delete_route(&v6).unwrap());

    // Other tables are written, not listed.
    for table in [100, 70_000] {
        let route = v4("10.1.7.0/24").dev(index).table(table);
        netlink.add_route(&route).unwrap();
        assert!(
            !netlink
                .routes()
                .unwrap()
                .iter()
                .any(|known| known.destination == net("10.1.7.0/24"))
        );
        assert!(netlink.delete_route(&route).unwrap());
        assert!(!netlink.delete_route(&route).unwrap());
    }
}

#[test]
fn a_long_list_is_complete() {
    let node = Namespace::new();
    let netlink = node.netlink();
    let expected: Vec<IpNet> = (0..3000_u32)
        .map(|i| net(&format!("10.{}.{}.0/24", i / 256, i % 256)))
        .collect();
    for &destination in &expected {
        netlink.add_route(&Route::to(destination).dev(1)).unwrap();
    }
    let mut listed: Vec<IpNet> = netlink
        .routes()
        .unwrap()
        .iter()
        .map(|r| r.destination)
        .collect();
    listed.retain(|destination| expected.contains(destination));
    assert_eq!(listed, expected);
}
