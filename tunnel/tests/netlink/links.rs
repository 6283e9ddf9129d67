//! Interfaces: made, set, read back.

use datapath_tunnel::netlink::{Link, NetlinkError, Scope, TunnelLink, VethEnd};
use nix::errno::Errno;

use crate::{
    lab::{FAR_MAC, NEAR_MAC, PATIENT, Pair, cable, chain, errno, eventually, ip, reaches},
    namespace::Namespace,
};

#[test]
fn veth_pair_carries_packets_between_namespaces() {
    let pair = Pair::new();
    assert_eq!(pair.near.kind.as_deref(), Some("veth"));
    assert_eq!((pair.near.mac, pair.near.mtu_bytes), (NEAR_MAC, 1400));
    assert_eq!((pair.far.mac, pair.far.mtu_bytes), (FAR_MAC, 1500));
    assert_eq!(pair.near.peer_index, Some(pair.far.index));
    assert_eq!(pair.far.peer_index, Some(pair.near.index));
    assert!(pair.node_net.link("eth0").unwrap().is_none());
    let near = pair
        .node_net
        .link_by_index(pair.near.index)
        .unwrap()
        .unwrap();
    assert!(
        near.up && near.running && !near.loopback && !near.no_arp,
        "{near:?}"
    );

    pair.address("10.0.1.1", "10.0.1.5");
    pair.address("fd00:1::1", "fd00:1::5");
    assert!(reaches(&pair.node, &pair.pod, "10.0.1.5", PATIENT));
    assert!(reaches(&pair.pod, &pair.node, "fd00:1::1", PATIENT));
}

#[test]
fn netkit_pair_where_the_kernel_has_it() {
    let (node, pod) = (Namespace::new(), Namespace::new());
    let (netlink, pod_path) = (node.netlink(), pod.path());
    let near = VethEnd {
        mac: Some(NEAR_MAC),
        mtu_bytes: Some(1400),
        ..VethEnd::new("nk0")
    };
    let far = VethEnd {
        mac: Some(FAR_MAC),
        netns: Some(&pod_path),
        ..VethEnd::new("eth0")
    };
    let made = netlink.add_netkit(near, far);
    if !netlink.has_kind("netkit", "try0").unwrap() {
        let error = made.unwrap_err();
        assert!(
            matches!(error, NetlinkError::Unsupported { .. })
                && chain(&error).contains("CONFIG_NETKIT"),
            "{error}"
        );
        return;
    }
    let near = made.unwrap();
    let far = pod.netlink().link("eth0").unwrap().unwrap();
    assert_eq!(near.kind.as_deref(), Some("netkit"));
    assert_eq!((near.mac, near.mtu_bytes, near.up), (NEAR_MAC, 1400, false));
    assert_eq!((far.mac, far.peer_index), (FAR_MAC, Some(near.index)));
    assert!(netlink.delete_link(near.index).unwrap());
    assert_eq!(pod.netlink().link("eth0").unwrap(), None);
}

#[test]
fn settings_of_a_link_read_back() {
    let node = Namespace::new();
    let netlink = node.netlink();
    let bridge = netlink.add_bridge("br0").unwrap();
    let port = cable(&netlink, "port0");
    assert_eq!(bridge.kind.as_deref(), Some("bridge"));
    assert_eq!(
        (port.kind.as_deref(), port.up, port.master),
        (Some("veth"), false, None)
    );
    let index = port.index;
    let now = || netlink.link_by_index(index).unwrap().unwrap();

    netlink.set_master(index, Some(bridge.index)).unwrap();
    assert_eq!(now().master, Some(bridge.index));
    netlink.set_master(index, None).unwrap();
    assert_eq!(now().master, None);
    netlink.set_mtu(index, 9000).unwrap();
    netlink.set_mac(index, FAR_MAC).unwrap();
    netlink.set_alias(index, "uplink to rack 7").unwrap();
    netlink.rename(index, "uplink").unwrap();
    netlink.set_up(index, true).unwrap();
    let link = now();
    assert_eq!((link.mtu_bytes, link.mac, link.up), (9000, FAR_MAC, true));
    assert_eq!(link.alias.as_deref(), Some("uplink to rack 7"));
    assert_eq!(netlink.link("uplink").unwrap(), Some(link.clone()));
    assert_eq!(netlink.link("port0").unwrap(), None);
    netlink.set_alias(index, "").unwrap();
    netlink.set_up(index, false).unwrap();
    assert_eq!((now().alias, now().up), (None, false));

    let links = netlink.links().unwrap();
    let names: Vec<&str> = links.iter().map(|link| link.name.as_str()).collect();
    for expected in ["lo", "br0", "uplink"] {
        assert!(names.contains(&expected), "{names:?}");
    }
    assert!(
        links
            .iter()
            .any(|link| link.loopback && link.index == 1 && link.kind.is_none())
    );
}

#[test]
fn link_local_addresses_can_be_kept_away() {
    let node = Namespace::new();
    let netlink = node.netlink();
    let link_local = |index: u32| {
        let addresses = netlink.addresses().unwrap();
        addresses
            .iter()
            .any(|known| known.index == index && known.scope == Scope::Link)
    };
    let quiet = cable(&netlink, "quiet").index;
    let usual = cable(&netlink, "usual").index;
    netlink.set_no_addrgen(quiet).unwrap();
    for link in netlink.links().unwrap() {
        netlink.set_up(link.index, true).unwrap();
    }
    eventually("the usual interface has a link-local address", || {
        link_local(usual)
    });
    assert!(!link_local(quiet));
    // Too small for IPv6: nothing to turn off.
    netlink.set_mtu(usual, 1000).unwrap();
    netlink.set_no_addrgen(usual).unwrap();
    assert_eq!(errno(netlink.set_no_addrgen(4711)), Errno::ENODEV);
}

#[test]
fn optional_devices_or_a_clear_refusal() {
    let node = Namespace::new();
    let netlink = node.netlink();
    let made = |outcome: Result<Link, NetlinkError>, kind: &str| match outcome {
        Ok(link) => {
            assert_eq!(link.kind.as_deref(), Some(kind));
            assert!(netlink.delete_link(link.index).unwrap());
        }
        Err(error @ NetlinkError::Unsupported { .. }) => {
            assert!(
                error
                    .to_string()
                    .contains(&format!("this kernel has no {kind} device"))
            );
            assert_eq!(error.errno(), Some(Errno::EOPNOTSUPP as i32));
        }
        Err(error) => panic!("{}", chain(&error)),
    };
    let metadata = TunnelLink {
        zero_checksum6: true,
        ..TunnelLink::metadata("tun0", 6081)
    };
    made(netlink.add_dummy("dummy0"), "dummy");
    made(netlink.add_bond("bond0"), "bond");
    let port = cable(&netlink, "port").index;
    made(netlink.add_vlan("port.100", port, 100), "vlan");
    for id in [0, 4095] {
        assert!(matches!(
            netlink.add_vlan("port.100", port, id),
            Err(NetlinkError::Invalid { .. })
        ));
    }
    made(netlink.add_geneve(&metadata), "geneve");
    made(netlink.add_vxlan(&metadata), "vxlan");
    for remote in ["192.168.0.2", "fd00::2"] {
        let plain = TunnelLink {
            mtu_bytes: Some(1400),
            ..TunnelLink::to("tun1", 4789, 42, ip(remote))
        };
        made(netlink.add_geneve(&plain), "geneve");
        made(netlink.add_vxlan(&plain), "vxlan");
    }
    for wrong in [
        TunnelLink {
            vni: Some(1),
            ..metadata
        },
        TunnelLink {
            port: 0,
            ..metadata
        },
        TunnelLink::to("tun1", 4789, 1 << 24, ip("192.168.0.2")),
    ] {
        assert!(matches!(
            netlink.add_vxlan(&wrong),
            Err(NetlinkError::Invalid { .. })
        ));
        assert!(matches!(
            netlink.add_geneve(&wrong),
            Err(NetlinkError::Invalid { .. })
        ));
    }
}

#[test]
fn kinds_of_interfaces_are_told_by_trying() {
    let node = Namespace::new();
    let netlink = node.netlink();
    for kind in ["veth", "bridge"] {
        assert!(netlink.has_kind(kind, "try0").unwrap(), "{kind}");
    }
    // One that wants to be told on which interface it is.
    let vlan = netlink.has_kind("vlan", "try0").unwrap();
    let listed = std::fs::exists("/proc/net/vlan").unwrap();
    assert_eq!(vlan, listed, "/proc/net/vlan is made by the driver");
    assert!(!netlink.has_kind("no-such-kind", "try0").unwrap());
    assert_eq!(netlink.links().unwrap().len(), 1, "loopback alone is left");
    let taken = netlink.has_kind("bridge", "lo").unwrap_err();
    assert_eq!(taken.errno(), Some(Errno::EEXIST as i32));
}
