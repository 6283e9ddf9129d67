//! Addresses and neighbours, and deleting what may be gone.

use datapath_tunnel::netlink::{Address, Route, Scope};
use ipnet::IpNet;
use nix::errno::Errno;

use crate::lab::{BRIEF, FAR_MAC, NEAR_MAC, PATIENT, Pair, errno, ip, net, reaches};

#[test]
fn addresses_read_back_as_given() {
    let pair = Pair::new();
    let (index, netlink) = (pair.far.index, &pair.pod_net);
    for text in ["10.0.1.5/24", "10.0.1.6/32", "fd00:1::5/64", "fe80::7/64"] {
        assert!(netlink.add_address(index, net(text)).unwrap());
        let known = netlink.addresses().unwrap();
        let found: Vec<&Address> = known
            .iter()
            .filter(|known| known.net == net(text))
            .collect();
        let [address] = found[..] else {
            panic!("{text} in {known:#?}")
        };
        let scope = if text.starts_with("fe80") {
            Scope::Link
        } else {
            Scope::Universe
        };
        assert_eq!((address.index, address.scope), (index, scope));
        assert!(
            address.permanent && !address.tentative,
            "usable at once: {address:?}"
        );
    }
    let loopback = netlink.addresses().unwrap();
    let loopback = loopback
        .iter()
        .find(|known| known.net == net("127.0.0.1/8"))
        .unwrap();
    assert_eq!((loopback.index, loopback.scope), (1, Scope::Host));
    // Another prefix is another address in IPv4, a clash in IPv6.
    assert!(netlink.add_address(index, net("10.0.1.5/32")).unwrap());
    assert_eq!(
        errno(netlink.add_address(index, net("fd00:1::5/128"))),
        Errno::EEXIST
    );
    assert!(!netlink.delete_address(index, net("10.0.1.5/25")).unwrap());
}

#[test]
fn without_arp_neighbours_must_be_given() {
    let pair = Pair::new();
    for (netlink, link) in [(&pair.node_net, &pair.near), (&pair.pod_net, &pair.far)] {
        netlink.set_arp(link.index, false).unwrap();
        assert!(netlink.link_by_index(link.index).unwrap().unwrap().no_arp);
        netlink.set_arp(link.index, true).unwrap();
        assert!(!netlink.link_by_index(link.index).unwrap().unwrap().no_arp);
    }
    pair.address("10.0.1.1", "10.0.1.5");
    pair.address("fd00:1::1", "fd00:1::5");
    for (own, other) in [("10.0.1.1", "10.0.1.5"), ("fd00:1::1", "fd00:1::5")] {
        // A permanent entry is believed even where it is wrong: so it is in use.
        pair.node_net
            .add_neighbour(pair.near.index, ip(other), [2, 0, 0, 0, 0, 9])
            .unwrap();
        assert!(!reaches(&pair.node, &pair.pod, other, BRIEF));
        pair.node_net
            .add_neighbour(pair.near.index, ip(other), FAR_MAC)
            .unwrap();
        pair.pod_net
            .add_neighbour(pair.far.index, ip(own), NEAR_MAC)
            .unwrap();
        assert!(reaches(&pair.node, &pair.pod, other, PATIENT));
        let neighbours = pair.node_net.neighbours().unwrap();
        let entry = neighbours
            .iter()
            .find(|entry| entry.address == ip(other))
            .unwrap();
        assert_eq!((entry.index, entry.mac), (pair.near.index, Some(FAR_MAC)));
        assert!(entry.permanent && entry.valid);
    }
}

#[test]
fn deleting_again_is_no_error() {
    let pair = Pair::new();
    let (index, netlink) = (pair.near.index, &pair.node_net);
    for (own, other) in [("10.0.1.1/24", "10.0.1.5"), ("fd00:1::1/64", "fd00:1::5")] {
        let (own, other) = (net(own), ip(other));
        let route = Route::to(IpNet::from(other)).dev(index);
        assert!(netlink.add_address(index, own).unwrap());
        assert!(!netlink.add_address(index, own).unwrap(), "it was there");
        netlink.add_route(&route).unwrap();
        netlink.add_neighbour(index, other, FAR_MAC).unwrap();
        for there in [true, false] {
            assert_eq!(netlink.delete_neighbour(index, other).unwrap(), there);
            assert_eq!(netlink.delete_route(&route).unwrap(), there);
            assert_eq!(netlink.delete_address(index, own).unwrap(), there);
        }
    }
    assert!(netlink.delete_link(index).unwrap());
    assert!(!netlink.delete_link(index).unwrap());
    assert!(pair.pod_net.link("eth0").unwrap().is_none(), "both ends go");
    assert!(netlink.link_by_index(index).unwrap().is_none());
    // What hangs on an interface that is gone is gone too.
    assert!(!netlink.delete_address(index, net("10.0.1.1/24")).unwrap());
    assert!(!netlink.delete_neighbour(index, ip("10.0.1.5")).unwrap());
    assert!(
        !netlink
            .delete_route(&Route::to(net("10.0.1.5/32")).dev(index))
            .unwrap()
    );
}
