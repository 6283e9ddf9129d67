//! A datapath comes and goes, and leaves nothing behind; what cannot be is refused, and leaves
//! nothing behind either. Needs root.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests, outside of what clippy takes for one"
)]

mod common;

use std::{fs, path::PathBuf};

use common::{
    Lab, NODE, UPLINK, ip,
    machine::{
        Machine, assert_gone, attached, mount_bpffs, names, names_of_links, peer, text, wait,
    },
    net, pod,
};
use datapath_tunnel::netlink::Netlink;
use datapath_user::{Config, Datapath, EndpointSpec, Error, Masquerade, PeerSpec, RemotePod};

#[test]
fn close_leaves_nothing_of_open() {
    Lab::run(|lab| {
        let before = Machine::look(lab);
        let datapath = Datapath::open(lab.config()).unwrap();
        let during = Machine::look(lab);
        assert_ne!(before, during);
        let programs = attached(UPLINK);
        assert_eq!(programs.len(), 2, "from_uplink and to_uplink");
        let bpf = lab.directory().join("bpf");
        let maps = names(&bpf.join("maps"));
        assert!(maps.contains("state") && maps.contains("flows"), "{maps:?}");
        assert_eq!(names(&bpf.join("links")).len(), 4);

        datapath.close().unwrap();
        assert_eq!(Machine::look(lab), before);
        assert_gone(&programs);
    });
}

#[test]
fn pods_stay_behind_the_oldest_address_of_the_uplink() {
    Lab::run(|lab| {
        let netlink = Netlink::open().unwrap();
        let index = netlink.link(UPLINK).unwrap().unwrap().index;
        for later in ["192.0.2.3/24", "2001:db8:2::3/64"] {
            netlink.add_address(index, net(later)).unwrap();
        }
        let datapath = Datapath::open(lab.config()).unwrap();
        let uplinks = datapath.status().unwrap().uplinks;
        assert_eq!(uplinks[0].masquerade, NODE.map(ip));
        assert_eq!(uplinks[0].addresses.len(), 4);
        datapath.close().unwrap();
    });
}

#[test]
fn close_takes_endpoints_and_peers_with_it() {
    Lab::run(|lab| {
        let before = Machine::look(lab);
        let datapath = Datapath::open(lab.config()).unwrap();
        let (one, spec_one) = pod("web-1", 5);
        let (two, spec_two) = pod("web-2", 6);
        let inside_before = names_of_links(&one.netlink());
        let first = datapath.add_endpoint(&spec_one).unwrap();
        let second = datapath.add_endpoint(&spec_two).unwrap();
        assert_ne!(first.slot, second.slot);
        assert_ne!(first.mac, second.mac);
        assert_eq!(datapath.endpoints(), [first.clone(), second]);
        let programs = attached(&first.host_interface);
        assert_eq!(programs.len(), 2, "from_pod and to_pod");
        let peer = datapath.upsert_peer(&peer("node-2", 2)).unwrap();
        assert_eq!(datapath.peers(), [peer]);
        let routes = Netlink::open().unwrap().routes().unwrap();
        assert!(
            routes
                .iter()
                .any(|route| route.destination == net("10.244.2.0/24"))
        );
        let status = datapath.status().unwrap();
        assert_eq!((status.endpoints, status.peers), (2, 1));

        datapath.close().unwrap();
        assert_eq!(Machine::look(lab), before);
        assert_eq!(names_of_links(&one.netlink()), inside_before);
        assert_eq!(names_of_links(&two.netlink()), inside_before);
        assert_gone(&programs);
    });
}

#[test]
fn dropping_closes() {
    Lab::run(|lab| {
        let before = Machine::look(lab);
        let datapath = Datapath::open(lab.config()).unwrap();
        let (_pod, spec) = pod("web-1", 5);
        datapath.add_endpoint(&spec).unwrap();
        drop(datapath);
        assert_eq!(Machine::look(lab), before);
    });
}

#[test]
fn the_same_node_opens_again_and_again() {
    Lab::run(|lab| {
        for _ in 0..3 {
            let datapath = Datapath::open(lab.config()).unwrap();
            let (_pod, spec) = pod("web-1", 5);
            datapath.add_endpoint(&spec).unwrap();
            datapath.close().unwrap();
        }
    });
}

#[test]
fn open_refuses_what_does_not_fit_the_machine() {
    Lab::run(|lab| {
        let before = Machine::look(lab);
        let refused = |change: &dyn Fn(&mut Config)| {
            let mut config = lab.config();
            change(&mut config);
            let error = Datapath::open(config).unwrap_err();
            assert_eq!(Machine::look(lab), before, "after: {error}");
            error
        };
        let error = refused(&|config| config.uplinks = vec!["nope0".into()]);
        assert!(text(&error).contains("nope0"), "{error}");
        let error = refused(&|config| {
            config.uplinks[0].masquerade = Some(Masquerade::Behind(vec![ip("203.0.113.77")]));
        });
        let said = text(&error);
        assert!(
            said.contains("203.0.113.77") && said.contains("an address that this node has"),
            "{said}"
        );
        let error = refused(&|config| config.max_flows = Some(1000));
        assert!(text(&error).contains("max_flows"), "{error}");
        let error = refused(&|config| config.gateways = vec![ip("10.9.9.9")]);
        assert!(text(&error).contains("gateway"), "{error}");
    });
}

#[test]
fn a_directory_has_one_owner() {
    Lab::run(|lab| {
        let first = Datapath::open(lab.config()).unwrap();
        let during = Machine::look(lab);
        let error = Datapath::open(lab.config()).unwrap_err();
        assert!(matches!(error, Error::InUse { .. }), "{error}");
        assert_eq!(Machine::look(lab), during, "the first one is left alone");
        first.close().unwrap();
    });
}

#[test]
fn a_directory_on_a_bpffs_needs_no_mount() {
    Lab::run(|lab| {
        let mounted = lab.directory().join("fs");
        fs::create_dir(&mounted).unwrap();
        mount_bpffs(&mounted);
        let before = Machine::look(lab);
        let config = Config {
            bpffs: mounted.join("datapath"),
            ..lab.config()
        };
        let datapath = Datapath::open(config).unwrap();
        assert!(names(&mounted.join("datapath/maps")).contains("state"));
        datapath.close().unwrap();
        assert_eq!(Machine::look(lab), before);
    });
}

#[test]
fn add_endpoint_refuses_what_cannot_be() {
    Lab::run(|lab| {
        let datapath = Datapath::open(lab.config()).unwrap();
        let (_one, spec) = pod("web-1", 5);
        datapath.add_endpoint(&spec).unwrap();
        let (two, other) = pod("web-2", 6);
        let before = (Machine::look(lab), names_of_links(&two.netlink()));
        let refused = |change: &dyn Fn(&mut EndpointSpec)| {
            let mut wrong = other.clone();
            change(&mut wrong);
            let error = datapath.add_endpoint(&wrong).unwrap_err();
            let after = (Machine::look(lab), names_of_links(&two.netlink()));
            assert_eq!(after, before, "after: {error}");
            assert_eq!(datapath.endpoints().len(), 1);
            text(&error)
        };
        assert!(refused(&|spec| spec.id = "web-1".to_owned()).contains("web-1"));
        assert!(refused(&|spec| spec.addresses = vec![ip("10.244.1.5")]).contains("web-1"));
        for id in ["../x", "a/b", "", "."] {
            assert!(
                refused(&|spec| spec.id = id.to_owned()).contains("letters"),
                "{id}"
            );
        }
        assert!(refused(&|spec| spec.addresses = vec![ip("10.9.9.9")]).contains("10.9.9.9"));
        assert!(refused(&|spec| spec.addresses = vec![ip("10.244.1.1")]).contains("gateway"));
        assert!(refused(&|spec| spec.addresses.clear()).contains("at least one"));
        assert!(refused(&|spec| spec.netns = "/nonexistent/ns".into()).contains("/nonexistent/ns"));
        assert!(refused(&|spec| spec.netns = "/proc/self/status".into()).contains("status"));
        assert!(refused(&|spec| spec.interface = "a/b".to_owned()).contains("a/b"));
        assert!(refused(&|spec| spec.interface = "lo".to_owned()).contains("lo"));
        assert!(refused(&|spec| spec.identity = Some(1)).contains("identity"));
        // The node itself would get the pod's default route.
        let own = PathBuf::from("/proc/thread-self/ns/net");
        assert!(refused(&|spec| spec.netns = own.clone()).contains("own"));
        // All of it still works once it is right.
        datapath.add_endpoint(&other).unwrap();
        datapath.close().unwrap();
    });
}

#[test]
fn an_endpoint_goes_also_when_its_namespace_is_gone() {
    Lab::run(|lab| {
        let datapath = Datapath::open(lab.config()).unwrap();
        let (namespace, spec) = pod("web-1", 5);
        let before = Machine::look(lab);
        let view = datapath.add_endpoint(&spec).unwrap();
        drop(namespace);
        let netlink = Netlink::open().unwrap();
        wait("the veth pair goes with the namespace", || {
            netlink.link(&view.host_interface).unwrap().is_none()
        });
        datapath.remove_endpoint("web-1").unwrap();
        let error = datapath.remove_endpoint("web-1").unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
        // Without dp_host and the like being counted: only what the endpoint added is gone.
        assert_eq!(Machine::look(lab).links, before.links);
        // Name, slot and addresses are free again.
        let (_again, spec) = pod("web-1", 5);
        let again = datapath.add_endpoint(&spec).unwrap();
        assert_eq!(again.slot, view.slot);
        datapath.close().unwrap();
    });
}

#[test]
fn the_same_peer_again_changes_nothing() {
    Lab::run(|lab| {
        let datapath = Datapath::open(lab.config()).unwrap();
        let first = datapath.upsert_peer(&peer("node-2", 2)).unwrap();
        assert_eq!(first.local, ip(NODE[0]));
        assert_eq!(first.interface, UPLINK);
        assert_eq!(datapath.upsert_peer(&peer("node-2", 2)).unwrap(), first);
        let mut more = peer("node-2", 2);
        more.pods.push(RemotePod::new(ip("10.244.2.9"), Some(2009)));
        let second = datapath.upsert_peer(&more).unwrap();
        assert_eq!(second.index, first.index);
        assert!(second.generation > first.generation);
        datapath.close().unwrap();
    });
}

#[test]
fn a_peer_that_loses_a_range_loses_its_route() {
    Lab::run(|lab| {
        let datapath = Datapath::open(lab.config()).unwrap();
        let before = Machine::look(lab).routes;
        let mut spec = peer("node-2", 2);
        datapath.upsert_peer(&spec).unwrap();
        spec.pod_cidrs.retain(|cidr| cidr.addr().is_ipv4());
        spec.pods.clear();
        datapath.upsert_peer(&spec).unwrap();
        let routes = Machine::look(lab).routes;
        assert!(routes.iter().any(|route| route.contains("10.244.2.0/24")));
        assert!(
            !routes.iter().any(|route| route.contains("fd00:244:2::/64")),
            "{routes:?}"
        );
        datapath.remove_peer("node-2").unwrap();
        assert_eq!(Machine::look(lab).routes, before);
        datapath.close().unwrap();
    });
}

#[test]
fn peers_do_not_share_and_do_not_take_the_nodes_own() {
    Lab::run(|lab| {
        let datapath = Datapath::open(lab.config()).unwrap();
        datapath.upsert_peer(&peer("node-2", 2)).unwrap();
        let before = Machine::look(lab);
        let refused = |change: &dyn Fn(&mut PeerSpec)| {
            let mut wrong = peer("node-3", 3);
            change(&mut wrong);
            let error = datapath.upsert_peer(&wrong).unwrap_err();
            assert_eq!(Machine::look(lab), before, "after: {error}");
            assert_eq!(datapath.peers().len(), 1);
            text(&error)
        };
        let overlap = |cidr: &str| {
            let cidr = net(cidr);
            refused(&move |spec| {
                spec.pod_cidrs = vec![cidr];
                spec.pods.clear();
            })
        };
        assert!(overlap("10.244.2.128/25").contains("node-2"));
        assert!(overlap("10.244.1.0/26").contains("node"));
        assert!(refused(&|spec| spec.address = ip("192.0.2.102")).contains("node-2"));
        assert!(refused(&|spec| spec.address = ip(NODE[0])).contains("node"));
        let inside = refused(&|spec| spec.address = ip("10.244.3.9"));
        assert!(inside.contains("the pods of peer node-3"), "{inside}");
        let pod = RemotePod::new(ip("10.9.9.9"), Some(2009));
        assert!(refused(&|spec| spec.pods = vec![pod.clone()]).contains("10.9.9.9"));
        assert!(refused(&|spec| spec.name = "a/b".to_owned()).contains("a/b"));
        let error = datapath.remove_peer("node-3").unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
        // A gateway of its own is an address of a node among its pods.
        let mut right = peer("node-3", 3);
        right.node_addresses.push(ip("10.244.3.1"));
        datapath.upsert_peer(&right).unwrap();
        datapath.close().unwrap();
    });
}
