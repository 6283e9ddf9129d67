//! Packets go where they should as soon as the calls return. Needs root.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests, outside of what clippy takes for one"
)]

mod common;

use std::{
    collections::BTreeMap,
    net::{IpAddr, UdpSocket},
    thread,
    time::Duration,
};

use common::{Lab, NODE, OUTSIDE, UPLINK, here, ip, net, of, ping, pod, pod_addresses, tcp, udp};
use datapath_tunnel::netlink::Netlink;
use datapath_user::{Config, Datapath, PeerSpec, Timeouts};

#[test]
fn pods_of_one_node_reach_each_other() {
    Lab::run(|lab| {
        let datapath = Datapath::open(lab.config()).unwrap();
        let (one, spec_one) = pod("one", 5);
        let (two, spec_two) = pod("two", 6);
        datapath.add_endpoint(&spec_one).unwrap();
        datapath.add_endpoint(&spec_two).unwrap();
        for address in pod_addresses(6) {
            ping(of(&one), address).unwrap();
            assert!(from_pod(udp(of(&one), of(&two), address).unwrap().ip(), 5));
            assert!(from_pod(tcp(of(&one), of(&two), address).unwrap().ip(), 5));
        }
        let flows = datapath.flows().unwrap();
        let named = |from: &str, to: &str, reply: bool| {
            let matching = flows.iter().filter(|f| f.from == from && f.to == to);
            matching
                .filter(|flow| flow.reply == reply && flow.protocol == "tcp")
                .count()
        };
        assert_eq!(
            (named("one", "two", false), named("two", "one", true)),
            (2, 2),
            "{flows:#?}"
        );
        let metrics = datapath.metrics().unwrap();
        let to_endpoint = metrics
            .iter()
            .find(|metric| metric.outcome == "to-endpoint")
            .unwrap();
        assert!(to_endpoint.packets > 20 && !to_endpoint.dropped);
        datapath.close().unwrap();
    });
}

#[test]
fn node_and_pods_reach_each_other() {
    Lab::run(|lab| {
        let datapath = Datapath::open(lab.config()).unwrap();
        let (one, spec) = pod("one", 5);
        datapath.add_endpoint(&spec).unwrap();
        for address in pod_addresses(5) {
            ping(here, address).unwrap();
            udp(here, of(&one), address).unwrap();
            tcp(here, of(&one), address).unwrap();
        }
        for own in ["10.244.1.1", "fd00:244:1::1", NODE[0], NODE[1]] {
            ping(of(&one), ip(own)).unwrap_or_else(|error| panic!("{own}: {error}"));
            udp(of(&one), here, ip(own)).unwrap_or_else(|error| panic!("{own}: {error}"));
        }
        datapath.close().unwrap();
    });
}

#[test]
fn pods_leave_behind_the_uplinks_address() {
    Lab::run(|lab| {
        let datapath = Datapath::open(lab.config()).unwrap();
        let (one, spec) = pod("one", 5);
        datapath.add_endpoint(&spec).unwrap();
        for (outside, behind) in OUTSIDE.into_iter().zip(NODE) {
            ping(of(&one), ip(outside)).unwrap();
            let seen = udp(of(&one), of(&lab.outside), ip(outside)).unwrap();
            assert_eq!(seen.ip(), ip(behind));
            let seen = tcp(of(&one), of(&lab.outside), ip(outside)).unwrap();
            assert_eq!(seen.ip(), ip(behind));
        }
        datapath.close().unwrap();
    });
}

#[test]
fn a_new_pod_with_an_old_address_is_reached() {
    Lab::run(|lab| {
        let datapath = Datapath::open(lab.config()).unwrap();
        let (one, spec) = pod("one", 5);
        datapath.add_endpoint(&spec).unwrap();
        for id in ["two", "three"] {
            let (namespace, spec) = pod(id, 6);
            datapath.add_endpoint(&spec).unwrap();
            for address in pod_addresses(6) {
                udp(of(&one), of(&namespace), address).unwrap();
            }
            datapath.remove_endpoint(id).unwrap();
            let flows = datapath.flows().unwrap();
            let of_it = flows.iter().filter(|flow| flow.from == id || flow.to == id);
            assert_eq!(of_it.count(), 0, "{flows:#?}");
            let error = udp(of(&one), of(&lab.outside), ip(OUTSIDE[0]));
            assert!(error.is_ok(), "others' traffic goes on: {error:?}");
        }
        datapath.close().unwrap();
    });
}

#[test]
fn dead_flows_are_swept_and_live_ones_stay() {
    Lab::run(|lab| {
        let timeouts = Timeouts {
            other_established_s: 1,
            other_pending_s: 1,
            ..Timeouts::default()
        };
        let datapath = Datapath::open(Config {
            timeouts,
            ..lab.config()
        })
        .unwrap();
        let (one, spec_one) = pod("one", 5);
        let (two, spec_two) = pod("two", 6);
        datapath.add_endpoint(&spec_one).unwrap();
        datapath.add_endpoint(&spec_two).unwrap();
        for address in pod_addresses(6) {
            udp(of(&one), of(&two), address).unwrap();
            tcp(of(&one), of(&two), address).unwrap();
        }
        let count = |protocol: &str| {
            let flows = datapath.flows().unwrap();
            flows
                .iter()
                .filter(|flow| flow.protocol == protocol)
                .count()
        };
        assert_eq!(count("udp"), 4, "two halves in each family");
        let tcp_before = count("tcp");
        thread::sleep(Duration::from_secs(3));
        let report = datapath.sweep().unwrap();
        assert!(report.removed >= 4, "{report:?}");
        assert_eq!(count("udp"), 0);
        assert_eq!(count("tcp"), tcp_before, "what lives longer stays");
        let again = datapath.sweep().unwrap();
        assert_eq!(again.removed, 0);
        datapath.close().unwrap();
    });
}

#[test]
fn a_flow_enters_the_tunnel_once_its_peer_is_known() {
    Lab::run(|lab| {
        let datapath = Datapath::open(lab.config()).unwrap();
        let (one, spec) = pod("one", 5);
        datapath.add_endpoint(&spec).unwrap();
        let socket = one.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
        let target = || {
            socket.send_to(b"hello", "10.244.2.7:9").unwrap();
            let flows = datapath.flows().unwrap();
            let mut ours = flows
                .into_iter()
                .filter(|flow| flow.from == "one" && !flow.reply);
            let flow = ours.next().expect("a flow");
            (flow.to, flow.target)
        };
        assert_eq!(target(), ("world".to_owned(), "uplink".to_owned()));
        let mut peer = PeerSpec {
            name: "node-2".to_owned(),
            address: ip(OUTSIDE[0]),
            node_addresses: Vec::new(),
            pod_cidrs: vec![net("10.244.2.0/24")],
            pods: Vec::new(),
            uplink: None,
            labels: BTreeMap::new(),
        };
        datapath.upsert_peer(&peer).unwrap();
        assert_eq!(target(), ("node-2".to_owned(), "tunnel".to_owned()));
        peer.pod_cidrs.clear();
        datapath.upsert_peer(&peer).unwrap();
        assert_eq!(target(), ("world".to_owned(), "uplink".to_owned()));
        datapath.close().unwrap();
    });
}

#[test]
fn interfaces_have_the_uplinks_mtu_and_routes_the_pods() {
    Lab::run(|lab| {
        let netlink = Netlink::open().unwrap();
        let uplink = netlink.link(UPLINK).unwrap().unwrap();
        netlink.set_mtu(uplink.index, 9000).unwrap();
        let datapath = Datapath::open(lab.config()).unwrap();
        let (one, spec) = pod("one", 5);
        let view = datapath.add_endpoint(&spec).unwrap();
        let inside = one.netlink();
        for link in [netlink.link(&view.host_interface), inside.link("eth0")] {
            assert_eq!(link.unwrap().unwrap().mtu_bytes, 9000);
        }
        let routes = inside.routes().unwrap();
        let default = routes
            .iter()
            .find(|route| route.destination == net("0.0.0.0/0"))
            .unwrap();
        assert_eq!(default.mtu_bytes, Some(8950));
        assert_eq!(datapath.status().unwrap().pod_mtu_bytes, 8950);
        datapath.close().unwrap();
    });
}

/// Whether the receiver saw the pod's own address.
fn from_pod(seen: IpAddr, number: u8) -> bool {
    pod_addresses(number).contains(&seen)
}
