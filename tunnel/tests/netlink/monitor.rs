//! Being told of changes, and of having lost some.

use std::time::Duration;

use datapath_tunnel::netlink::{Changed, Monitor, Netlink, Route};

use crate::{
    lab::{PATIENT, cable, net},
    namespace::Namespace,
};

/// Everything heard until `enough`.
fn hear(monitor: &mut Monitor, enough: impl Fn(Changed) -> bool) -> Changed {
    let mut all = Changed::default();
    while !enough(all) {
        let changed = monitor.wait(Some(PATIENT)).unwrap();
        assert!(changed.any(), "nothing more than {all:?}");
        all.links |= changed.links;
        all.addresses |= changed.addresses;
        all.routes |= changed.routes;
        all.lost |= changed.lost;
    }
    all
}

#[test]
fn every_kind_of_change_is_heard() {
    let node = Namespace::new();
    let netlink = node.netlink();
    let mut monitor = netlink.monitor().unwrap();
    assert!(!monitor.drain().unwrap().any());
    assert!(!monitor.wait(Some(Duration::from_millis(1))).unwrap().any());

    let port = cable(&netlink, "port").index;
    let heard = hear(&mut monitor, |changed| changed.links);
    assert!(
        !heard.addresses && !heard.routes && !heard.lost,
        "{heard:?}"
    );
    for (address, destination, gateway) in [
        ("10.0.0.1/24", "10.1.0.0/16", "10.0.0.2"),
        ("fd00::1/64", "fd01::/64", "fd00::2"),
    ] {
        netlink.set_up(port, true).unwrap();
        netlink.add_address(port, net(address)).unwrap();
        assert!(!hear(&mut monitor, |changed| changed.addresses).lost);
        while monitor
            .wait(Some(Duration::from_millis(100)))
            .unwrap()
            .any()
        {}
        let route = Route::to(net(destination))
            .via(gateway.parse().unwrap())
            .dev(port)
            .on_link();
        netlink.add_route(&route).unwrap();
        let heard = hear(&mut monitor, |changed| changed.routes);
        assert!(!heard.addresses, "{heard:?}");
    }
    // It needs neither the handle nor the namespace's thread.
    let elsewhere = Netlink::open_in(&node.path()).unwrap();
    drop(netlink);
    while monitor.drain().unwrap().any() {}
    elsewhere.set_mtu(port, 1400).unwrap();
    hear(&mut monitor, |changed| changed.links);
}

#[test]
fn another_namespace_is_not_heard() {
    let (node, other) = (Namespace::new(), Namespace::new());
    let mut monitor = node.netlink().monitor().unwrap();
    while monitor.drain().unwrap().any() {}
    cable(&other.netlink(), "port");
    assert!(!monitor.drain().unwrap().any());
}

#[test]
fn what_overflows_is_told() {
    let node = Namespace::new();
    let netlink = node.netlink();
    let mut monitor = netlink.monitor().unwrap();
    let port = cable(&netlink, "port").index;
    // Each is a message of about a kilobyte, for a socket with room for some hundred.
    let mut told = Changed::default();
    for round in 0..20_000_u32 {
        netlink.set_mtu(port, 1400 + round % 2).unwrap();
        if round % 1000 == 999 {
            told = monitor.drain().unwrap();
            if told.lost {
                break;
            }
        }
    }
    assert!(
        told.lost && told.links && told.addresses && told.routes,
        "{told:?}"
    );
    assert!(!monitor.drain().unwrap().any());
    netlink.set_up(port, true).unwrap();
    assert!(!hear(&mut monitor, |changed| changed.links).lost);
}

#[test]
fn a_tokio_program_awaits_changes() {
    let node = Namespace::new();
    let netlink = node.netlink();
    let mut monitor = netlink.monitor().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .unwrap();
    let listening = runtime.spawn(async move {
        let first = monitor.changed().await.unwrap();
        // Another registration of the same descriptor.
        (first, monitor)
    });
    let changing = netlink.clone();
    let port = runtime.block_on(async move {
        tokio::task::yield_now().await;
        cable(&changing, "port").index
    });
    let (first, mut monitor) = runtime.block_on(listening).unwrap();
    assert!(first.links);
    while monitor.drain().unwrap().any() {}
    netlink.add_address(port, net("10.0.0.1/24")).unwrap();
    let second = runtime.block_on(async { monitor.changed().await.unwrap() });
    assert!(second.any());
}
