//! Packets too large for the way: the sender is told, and what it sends then arrives. Never
//! silence, but for what a router further on drops before anybody knew.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "it is all tests"
)]

mod running;
mod util;

use std::{net::IpAddr, time::Duration};

use datapath_conformance::{
    family::Family,
    netns::Namespace,
    paths::pod_address,
    probe::{self, Failure, Options, TcpSession, UdpSession},
    topology::{
        NodePlan, Plan,
        plan::{self, BRIDGE, UPLINK},
    },
};
use datapath_tunnel::netlink::Route;
use ipnet::IpNet;
use running::{Lab, To};
use util::{OrPanic, lab_name, patient};

/// MTU of the pods' interfaces.
const POD_MTU: u32 = 1500;
/// What a router towards the outside comes to take.
const NARROW: u32 = 1400;
const BULK_BYTES: usize = 4 << 20;
/// Longest that a transfer may stand still. What is aimed at is half a second; a machine with other
/// work to do must not fail the test for it.
const STALL: Duration = Duration::from_secs(5);

#[test]
fn an_underlay_of_1500_bytes() {
    local_bottleneck(1500, Family::Ipv4);
}

#[test]
fn an_underlay_of_1500_bytes_over_ipv6() {
    local_bottleneck(1500, Family::Ipv6);
}

#[test]
fn an_underlay_of_1400_bytes() {
    local_bottleneck(1400, Family::Ipv4);
}

#[test]
fn an_underlay_of_1400_bytes_over_ipv6() {
    local_bottleneck(1400, Family::Ipv6);
}

#[test]
fn an_underlay_of_9000_bytes() {
    local_bottleneck(9000, Family::Ipv4);
}

#[test]
fn an_underlay_of_9000_bytes_over_ipv6() {
    local_bottleneck(9000, Family::Ipv6);
}

/// The nodes' interfaces are what takes less: everyone is told at once.
fn local_bottleneck(underlay: u32, tunnel: Family) {
    let lab = lab(underlay, tunnel);
    for family in Family::ALL {
        for to in To::ALL {
            let room = match to {
                To::Neighbour => POD_MTU,
                To::Remote => POD_MTU.min(underlay - overhead(tunnel)),
                To::Outside => POD_MTU.min(underlay),
            };
            let what = format!("{family} to {to:?}, underlay {underlay} over {tunnel}");
            // Each by a pod that nobody has told yet, where there is another one.
            let (mtu, lost) = largest_datagram(&lab, to, family);
            assert_eq!((mtu, lost), (room, 0), "{what}");
            let sender = if to == To::Neighbour { 1 } else { 2 };
            let pause = bulk(&lab, sender, to, family, |_| {});
            println!("{what}: {mtu} bytes, longest pause {pause:?}");
        }
        largest_echo(&lab, family, POD_MTU.min(underlay - overhead(tunnel)));
    }
    lab.datapaths.stop().or_panic();
}

/// A sender of echo requests that must not be fragmented hears of it, too.
fn largest_echo(lab: &Lab, family: Family, room: u32) {
    let options = patient().with_dont_fragment();
    let ask = |bytes: u32| {
        let size = usize::try_from(bytes - headers(family)).unwrap();
        probe::icmp_echo(lab.pod(2, 2), pod_address(1, 1, family), 1, size, &options)
    };
    let error = ask(room + 1).expect_err("it is too large");
    match error.failure() {
        Some(Failure::IcmpError {
            from, mtu_bytes, ..
        }) => {
            assert_eq!(*from, plan::pod_gateway(2, family));
            assert_eq!(*mtu_bytes, Some(room));
        }
        // By the interface, or an error that was there before the answer was waited for.
        Some(Failure::TooLarge { .. }) => {}
        _ => panic!("{}", error.chain()),
    }
    ask(room).or_panic();
}

#[test]
fn a_narrow_router_between_nodes_over_ipv4() {
    narrow_between_nodes(Family::Ipv4);
}

#[test]
fn a_narrow_router_between_nodes_over_ipv6() {
    narrow_between_nodes(Family::Ipv6);
}

/// A router between the nodes takes less and less: as a sender of datagrams finds out, of whom one
/// is lost, and while a connection is busy.
fn narrow_between_nodes(tunnel: Family) {
    let lab = lab(1500, tunnel);
    lead_through_router(&lab, tunnel);
    let narrow_to = |lab: &Lab, mtu| {
        for node in [1, 2] {
            let to = plan::node_address(node, tunnel);
            narrow(lab.fabric.router(), to, BRIDGE, mtu);
        }
    };
    for (family, mtu) in Family::ALL.into_iter().zip([1440, 1400]) {
        let room = mtu - overhead(tunnel);
        narrow_to(&lab, mtu);
        let (found, lost) = largest_datagram(&lab, To::Remote, family);
        assert_eq!(found, room, "{family}");
        assert!(
            lost <= 1,
            "{family}: {lost} datagrams were lost without a word"
        );

        let pause = bulk(&lab, 1, To::Remote, family, |lab| narrow_to(lab, mtu - 20));
        println!(
            "{family} in a tunnel over {tunnel}, path becomes narrow: longest pause {pause:?}"
        );
        // All of the node know by now.
        let (found, lost) = largest_datagram(&lab, To::Remote, family);
        assert_eq!((found, lost), (room - 20, 0), "{family}");
    }
    lab.datapaths.stop().or_panic();
}

/// A router towards the outside: what it says to the node's address is for the pod.
#[test]
fn a_narrow_router_towards_outside() {
    let lab = lab(1500, Family::Ipv4);
    for family in Family::ALL {
        let pause = bulk(&lab, 1, To::Outside, family, |lab| {
            let router = lab.fabric.router();
            narrow(router, plan::outside_address(family), "ext", NARROW);
            narrow(router, plan::node_address(1, family), BRIDGE, NARROW);
        });
        println!("{family} to outside, path becomes narrow: longest pause {pause:?}");
        let (mtu, lost) = largest_datagram(&lab, To::Outside, family);
        assert_eq!((mtu, lost), (NARROW, 0), "{family}");
    }
    lab.datapaths.stop().or_panic();
}

/// Bytes that the tunnel adds.
fn overhead(tunnel: Family) -> u32 {
    match tunnel {
        Family::Ipv4 => 50,
        Family::Ipv6 => 70,
    }
}

/// Bytes of the headers of a datagram or an echo request.
fn headers(family: Family) -> u32 {
    match family {
        Family::Ipv4 => 28,
        Family::Ipv6 => 48,
    }
}

/// A lab whose pods know nothing of what the way takes.
fn lab(underlay: u32, tunnel: Family) -> Lab {
    let node = NodePlan {
        mtu_bytes: underlay,
        ..NodePlan::default()
    };
    let plan = Plan {
        outside_mtu_bytes: underlay,
        ..Plan::new(lab_name("mtu")).with_nodes(2, node)
    };
    let lab = Lab::of(plan, tunnel);
    for (index, node) in lab.fabric.nodes().iter().enumerate() {
        for pod in node.pods() {
            forget_mtu(pod);
        }
        let netlink = node.namespace().netlink().or_panic();
        let endpoints = lab.datapaths.inside(index, |node| Ok(node.endpoints()));
        for endpoint in endpoints.or_panic() {
            netlink.set_mtu(endpoint.host_index, POD_MTU).unwrap();
        }
    }
    lab
}

/// Gives a pod's interface [`POD_MTU`], and takes the MTU off its routes.
fn forget_mtu(pod: &Namespace) {
    let netlink = pod.netlink().or_panic();
    let link = pod.link(UPLINK).or_panic();
    netlink.set_mtu(link.index, POD_MTU).unwrap();
    for route in netlink.routes().unwrap() {
        if route.mtu_bytes.is_some() {
            let ignorant = Route {
                mtu_bytes: None,
                ..route
            };
            netlink.replace_route(&ignorant).unwrap();
        }
    }
}

/// Has the nodes reach each other by way of the fabric's router instead of its bridge.
fn lead_through_router(lab: &Lab, tunnel: Family) {
    let router = lab.fabric.router();
    for interface in ["all", BRIDGE] {
        let key = format!("net.ipv4.conf.{interface}.send_redirects");
        router.set_sysctl(&key, "0").or_panic();
    }
    for node in lab.fabric.nodes() {
        let namespace = node.namespace();
        let key = format!("net.ipv6.conf.{UPLINK}.accept_redirects");
        namespace.set_sysctl(&key, "0").or_panic();
        let link = namespace.link(UPLINK).or_panic();
        for other in lab.fabric.nodes() {
            if other.number() != node.number() {
                let route = Route::to(IpNet::from(other.address(tunnel)))
                    .via(plan::fabric_address(tunnel))
                    .dev(link.index);
                namespace.netlink().or_panic().add_route(&route).unwrap();
            }
        }
    }
}

/// Has a router take no more than so many bytes for an address.
fn narrow(router: &Namespace, to: IpAddr, interface: &str, mtu_bytes: u32) {
    let link = router.link(interface).or_panic();
    let route = Route::to(IpNet::from(to)).dev(link.index).mtu(mtu_bytes);
    router.netlink().or_panic().replace_route(&route).unwrap();
}

/// Sends bulk both ways at once from a pod of node 1; in between `change` happens. The longest
/// pause after it.
fn bulk(lab: &Lab, sender: usize, to: To, family: Family, change: impl FnOnce(&Lab)) -> Duration {
    let sender = lab.pod(1, sender);
    let mut session = TcpSession::connect(sender, to.server(family), &patient()).or_panic();
    session.echo(BULK_BYTES / 4).or_panic();
    change(lab);
    session.echo(BULK_BYTES).or_panic();
    let pause = session.longest_pause();
    session.close().or_panic();
    assert!(
        pause < STALL,
        "{family} to {to:?}: stood still for {pause:?}"
    );
    pause
}

/// Sends datagrams that must not be fragmented, first the largest that the interface takes, and
/// then what it is told that the path takes, as a QUIC endpoint would. What got there and back, as
/// an MTU, and how many were lost without a word.
fn largest_datagram(lab: &Lab, to: To, family: Family) -> (u32, u32) {
    let options = Options::default()
        .with_timeout(Duration::from_secs(2))
        .with_dont_fragment();
    let mut session = UdpSession::open(lab.pod(1, 1), to.server(family), &options).or_panic();
    let mut lost = 0;
    for _ in 0..6 {
        let mtu = session.path_mtu_bytes().or_panic();
        let size = usize::try_from(mtu - headers(family)).unwrap();
        let Err(error) = session.echo(size) else {
            return (mtu, lost);
        };
        match error.failure() {
            Some(Failure::TooLarge { .. }) => {}
            Some(failure) if failure.is_silence() => lost += 1,
            _ => panic!("{mtu} bytes: {}", error.chain()),
        }
    }
    panic!("{family} to {to:?}: nothing gets through");
}

#[test]
fn pods_are_told_what_the_tunnel_takes() {
    let lab = Lab::start("told", Family::Ipv4);
    for family in Family::ALL {
        let (mtu, lost) = largest_datagram(&lab, To::Remote, family);
        assert_eq!((mtu, lost), (1450, 0));
        // From the first packet on: the route says so.
        let to = pod_address(2, 1, family);
        let session = UdpSession::open(lab.pod(1, 2), util::at(to, running::PORT), &patient());
        assert_eq!(session.or_panic().path_mtu_bytes().or_panic(), 1450);
    }
    lab.datapaths.stop().or_panic();
}
