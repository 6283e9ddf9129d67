//! Uplinks that change under traffic: more addresses and others, down and up, gone and back, other
//! names, other MTUs; and uplinks that are bridges, VLANs, bonds, or two.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "it is all tests"
)]

mod running;
mod util;

use std::{
    collections::BTreeSet,
    error::Error as _,
    io,
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use datapath_conformance::{
    Error,
    family::{Families, Family},
    paths::{self, InProcess, NodeView, peer_spec, pod_address},
    probe::{self, EchoServer, TcpSession, UdpSession},
    report::Outcome,
    topology::{
        Fabric, NodePlan, Plan, UplinkKind,
        plan::{self, UPLINK},
    },
};
use datapath_kern::verdict::DropReason;
use datapath_tunnel::netlink::{Link, Netlink, NetlinkError, Route, VethEnd};
use datapath_user::{Change, Changes, Datapath, Status, UplinkState};
use ipnet::IpNet;
use running::{Lab, PORT, To};
use util::{OrPanic, at, both_families, impatient, lab_name, patient};

/// Established connections of one pod, through the tunnel and to outside, in both families.
struct Sessions(Vec<(To, Family, TcpSession)>);

impl Sessions {
    fn open(lab: &Lab) -> Self {
        let all = [To::Remote, To::Outside].map(|to| {
            Family::ALL.map(|family| {
                let server = to.server(family);
                let mut tcp = TcpSession::connect(lab.pod(1, 1), server, &patient()).or_panic();
                tcp.echo(1000).or_panic();
                (to, family, tcp)
            })
        });
        Self(all.into_iter().flatten().collect())
    }

    /// Every one of them still carries data, or only those to `to`.
    #[track_caller]
    fn alive(&mut self, only: Option<To>) {
        let chosen = |to: &To| only.is_none_or(|only| only == *to);
        for (to, family, tcp) in self.0.iter_mut().filter(|(to, ..)| chosen(to)) {
            if let Err(error) = tcp.echo(20_000) {
                panic!("{to:?} {family}: {}", error.chain());
            }
        }
    }

    /// Numbers of the flows that node 1 has for them: another one means another flow.
    fn flows(&self, lab: &Lab) -> BTreeSet<u32> {
        let ports: BTreeSet<u16> = self
            .0
            .iter()
            .map(|(_, _, tcp)| tcp.local_address().or_panic().port())
            .collect();
        let flows = lab.datapaths.flows(0).or_panic();
        let ours = flows
            .iter()
            .filter(|flow| flow.protocol == "tcp" && !flow.reply && flow.from == "n1p1")
            .filter(|flow| ports.contains(&flow.source_port));
        let pairs: BTreeSet<u32> = ours.map(|flow| flow.pair).collect();
        assert_eq!(pairs.len(), self.0.len(), "{flows:#?}");
        pairs
    }
}

/// Node 1's own network, from outside of its datapath.
struct Hands {
    netlink: Netlink,
    router: Netlink,
    uplink: Link,
}

impl Hands {
    fn on(lab: &Lab) -> Self {
        let node = lab.fabric.node(1).or_panic();
        Self {
            netlink: node.namespace().netlink().or_panic(),
            router: lab.fabric.router().netlink().or_panic(),
            uplink: node.namespace().link(UPLINK).or_panic(),
        }
    }

    /// The fabric's end of the cable.
    fn port(&self) -> Link {
        self.router.link("n1").unwrap().unwrap()
    }

    /// What an operator's tools do after an interface came up.
    fn restore(&self, index: u32, address: impl Fn(Family) -> IpAddr) {
        for family in Family::ALL {
            let net = with_prefix(address(family), family);
            self.netlink.add_address(index, net).unwrap();
            self.netlink
                .replace_route(&default_route(index, family))
                .unwrap();
        }
    }
}

fn with_prefix(address: IpAddr, family: Family) -> IpNet {
    IpNet::new(address, plan::underlay(family).prefix_len()).unwrap()
}

fn default_route(index: u32, family: Family) -> Route {
    let everywhere = match family {
        Family::Ipv4 => "0.0.0.0/0",
        Family::Ipv6 => "::/0",
    };
    Route::to(everywhere.parse().unwrap())
        .via(plan::fabric_address(family))
        .dev(index)
}

fn refresh(lab: &Lab, node: usize) -> Changes {
    let changes = lab.datapaths.inside(node, Datapath::refresh).or_panic();
    eprintln!("node {}: {changes:?}", node + 1);
    changes
}

fn status(lab: &Lab) -> Status {
    lab.datapaths.inside(0, Datapath::status).or_panic()
}

fn state(lab: &Lab) -> UplinkState {
    status(lab).uplinks[0].state
}

/// Nothing changed since, so that there is nothing to do.
#[track_caller]
fn at_rest(lab: &Lab) {
    assert_eq!(refresh(lab, 0), Changes::default());
}

fn no_route(lab: &Lab) -> u64 {
    let drops = lab.datapaths.drops(0).or_panic();
    drops.get(DropReason::NoRoute.label()).copied().unwrap_or(0)
}

/// Address 99 of the underlay.
fn another(family: Family) -> IpAddr {
    plan::node_address(89, family)
}

#[test]
fn one_more_address_changes_nothing_for_flows() {
    let lab = Lab::start("upl-more", Family::Ipv4);
    let mut sessions = Sessions::open(&lab);
    let flows = sessions.flows(&lab);
    let hands = Hands::on(&lab);
    at_rest(&lab);

    for family in Family::ALL {
        let net = with_prefix(another(family), family);
        hands.netlink.add_address(hands.uplink.index, net).unwrap();
    }
    let changes = refresh(&lab, 0);
    for address in Family::ALL.map(another) {
        assert!(
            changes.0.contains(&Change::AddressAdded { address }),
            "{changes:?}"
        );
    }
    let masquerades = |change: &Change| matches!(change, Change::Masquerade { .. });
    assert!(!changes.0.iter().any(masquerades), "{changes:?}");
    at_rest(&lab);
    sessions.alive(None);
    assert_eq!(sessions.flows(&lab), flows);
    both_families(|family| {
        // It is the node's, so that pods reach it as the node; the kernel takes a moment to
        // deliver to an IPv6 address that it shows already.
        eventually("the node answers for its new address", || {
            probe::icmp_echo(lab.pod(1, 2), another(family), 1, 56, &impatient()).is_ok()
        });
        let new = TcpSession::connect(lab.pod(1, 2), To::Outside.server(family), &patient())?;
        assert_eq!(new.seen_source().ip(), plan::node_address(1, family));
        Ok::<_, Error>(())
    });

    for family in Family::ALL {
        let net = with_prefix(another(family), family);
        assert!(
            hands
                .netlink
                .delete_address(hands.uplink.index, net)
                .unwrap()
        );
    }
    let changes = refresh(&lab, 0);
    for address in Family::ALL.map(another) {
        assert!(
            changes.0.contains(&Change::AddressRemoved { address }),
            "{changes:?}"
        );
        let gone = probe::icmp_echo(lab.pod(1, 2), address, 1, 56, &impatient());
        assert!(gone.is_err(), "{address} still answers");
    }
    sessions.alive(None);
    assert_eq!(sessions.flows(&lab), flows);
    lab.datapaths.stop().or_panic();
}

#[test]
fn flows_outlive_a_flap() {
    let lab = Lab::start("upl-flap", Family::Ipv4);
    let mut sessions = Sessions::open(&lab);
    let flows = sessions.flows(&lab);
    let hands = Hands::on(&lab);
    let index = hands.uplink.index;

    // The cable, so that addresses and routes stay.
    hands.router.set_up(hands.port().index, false).unwrap();
    eventually("the carrier is lost", || {
        refresh(&lab, 0);
        state(&lab) == UplinkState::Down
    });
    hands.router.set_up(hands.port().index, true).unwrap();
    eventually("the carrier is back", || {
        refresh(&lab, 0);
        state(&lab) == UplinkState::Up
    });
    sessions.alive(None);
    assert_eq!(sessions.flows(&lab), flows);

    // The interface itself: the kernel deletes its routes and its IPv6 addresses.
    hands.netlink.set_up(index, false).unwrap();
    let changes = refresh(&lab, 0);
    let down = |change: &Change| {
        matches!(
            change,
            Change::UplinkState {
                to: UplinkState::Down,
                ..
            }
        )
    };
    assert!(changes.0.iter().any(down), "{changes:?}");
    // With a port of its own, so that the same flow is asked for again later.
    let source = at(pod_address(1, 1, Family::Ipv4), 4242);
    let to = at(plan::outside_address(Family::Ipv4), PORT);
    let options = impatient().with_source(source);
    let mut early = UdpSession::open(lab.pod(1, 1), to, &options).or_panic();
    assert!(early.echo(100).is_err());
    let before = no_route(&lab);
    let remote = at(pod_address(2, 1, Family::Ipv4), PORT);
    assert!(probe::udp_echo(lab.pod(1, 1), remote, &[100], &impatient()).is_err());
    assert!(no_route(&lab) > before, "dropped without the reason");

    hands.netlink.set_up(index, true).unwrap();
    refresh(&lab, 0);
    // Too early: a packet that comes before the routes do.
    let _lost = early.echo(100);
    hands.restore(index, |family| plan::node_address(1, family));
    refresh(&lab, 0);
    eventually("the flow that began without a way has one", || {
        refresh(&lab, 0);
        early.echo(100).is_ok()
    });
    assert_eq!(
        early.seen_source().or_panic().ip(),
        plan::node_address(1, Family::Ipv4)
    );
    sessions.alive(None);
    assert_eq!(sessions.flows(&lab), flows);
    lab.datapaths.stop().or_panic();
}

#[test]
fn an_uplink_is_followed_under_another_name_and_number() {
    let lab = Lab::start("upl-name", Family::Ipv6);
    let mut sessions = Sessions::open(&lab);
    let flows = sessions.flows(&lab);
    let hands = Hands::on(&lab);

    hands.netlink.rename(hands.uplink.index, "lan0").unwrap();
    let renamed = Change::UplinkRenamed {
        uplink: UPLINK.to_owned(),
        interface: "lan0".to_owned(),
    };
    assert_eq!(refresh(&lab, 0), Changes(vec![renamed]));
    let uplink = status(&lab).uplinks[0].clone();
    assert_eq!(
        (uplink.name.as_str(), uplink.interface.as_str()),
        (UPLINK, "lan0")
    );
    sessions.alive(None);
    assert_eq!(sessions.flows(&lab), flows);

    // Gone: nobody is told but by the reason of the drops.
    let index = hands.uplink.index;
    assert!(hands.netlink.delete_link(index).unwrap());
    refresh(&lab, 0);
    assert_eq!(state(&lab), UplinkState::Missing);
    at_rest(&lab);
    let before = no_route(&lab);
    let remote = at(pod_address(2, 1, Family::Ipv4), PORT);
    assert!(probe::udp_echo(lab.pod(1, 1), remote, &[100], &impatient()).is_err());
    assert!(no_route(&lab) > before, "dropped without the reason");

    // Back under its first name, as another interface.
    let node = lab.fabric.node(1).or_panic().namespace();
    let far = VethEnd {
        mac: Some(hands.uplink.mac),
        netns: Some(node.path()),
        ..VethEnd::new(UPLINK)
    };
    let port = hands.router.add_veth(VethEnd::new("n1"), far).unwrap();
    let bridge = hands.router.link(plan::BRIDGE).unwrap().unwrap();
    hands
        .router
        .set_master(port.index, Some(bridge.index))
        .unwrap();
    hands.router.set_up(port.index, true).unwrap();
    let new = node.link(UPLINK).or_panic().index;
    assert_ne!(new, index);
    hands.netlink.set_up(new, true).unwrap();
    hands.restore(new, |family| plan::node_address(1, family));
    refresh(&lab, 0);
    let uplink = status(&lab).uplinks[0].clone();
    assert_eq!((uplink.index, uplink.interface.as_str()), (new, UPLINK));
    sessions.alive(None);
    assert_eq!(sessions.flows(&lab), flows);
    both_families(|family| {
        probe::tcp_echo(lab.pod(1, 2), To::Remote.server(family), 20_000, &patient())?;
        let outside = To::Outside.server(family);
        probe::tcp_echo(lab.pod(1, 2), outside, 20_000, &patient()).map(drop)
    });
    lab.datapaths.stop().or_panic();
}

#[test]
fn pods_get_the_mtu_of_the_uplink() {
    let lab = Lab::start("upl-mtu", Family::Ipv4);
    let mut sessions = Sessions::open(&lab);
    let hands = Hands::on(&lab);
    assert_eq!(route_mtus(&lab), BTreeSet::from([1450]));
    for (uplink, pods) in [(1400, 1350), (9000, 8950), (1500, 1450)] {
        // Of the whole network between the nodes: what is too large for one port of a switch is
        // dropped there without a word.
        for node in [1, 2] {
            let port = hands.router.link(&format!("n{node}")).unwrap().unwrap();
            hands.router.set_mtu(port.index, uplink).unwrap();
            let node = lab.fabric.node(node).or_panic().namespace();
            let index = node.link(UPLINK).or_panic().index;
            node.netlink().or_panic().set_mtu(index, uplink).unwrap();
        }
        refresh(&lab, 1);
        let changes = refresh(&lab, 0);
        let pod_mtu = |change: &Change| matches!(change, Change::PodMtu { to, .. } if *to == pods);
        assert!(changes.0.iter().any(pod_mtu), "{changes:?}");
        at_rest(&lab);
        assert_eq!(route_mtus(&lab), BTreeSet::from([pods]));
        for pod in [1, 2] {
            assert_eq!(lab.pod(1, pod).link(UPLINK).or_panic().mtu_bytes, uplink);
        }
        let node = lab.fabric.node(1).or_panic().namespace();
        for interface in ["dp_host", "dp_net"] {
            assert_eq!(node.link(interface).or_panic().mtu_bytes, uplink);
        }
        assert_eq!(status(&lab).pod_mtu_bytes, pods);
        sessions.alive(None);
    }
    // Too small for IPv6: an error that says so, and IPv4 goes on.
    hands.netlink.set_mtu(hands.uplink.index, 1300).unwrap();
    let error = lab.datapaths.inside(0, Datapath::refresh).unwrap_err();
    assert!(
        error.chain().contains("raise it to 1330"),
        "{}",
        error.chain()
    );
    hands.netlink.set_mtu(hands.uplink.index, 1500).unwrap();
    refresh(&lab, 0);
    sessions.alive(None);
    lab.datapaths.stop().or_panic();
}

/// MTUs of the routes of node 1's pods, and of its own to pods.
fn route_mtus(lab: &Lab) -> BTreeSet<u32> {
    let node = lab.fabric.node(1).or_panic();
    let hosts = node.pods().iter().chain([node.namespace()]);
    let routes = hosts.flat_map(|host| host.netlink().or_panic().routes().unwrap());
    routes.filter_map(|route| route.mtu_bytes).collect()
}

#[test]
fn an_address_takes_the_place_of_another_one() {
    // Ends of the tunnels as the uplinks have them, which is what is to be followed here.
    let lab = Lab::with(Plan::new(lab_name("upl-addr")), Family::Ipv4, |config| {
        config.underlay.clear();
    });
    let mut sessions = Sessions::open(&lab);
    let hands = Hands::on(&lab);
    let index = hands.uplink.index;
    for family in Family::ALL {
        let old = with_prefix(plan::node_address(1, family), family);
        assert!(hands.netlink.delete_address(index, old).unwrap());
    }
    // In between there is none: what may come back is kept.
    let flows = sessions.flows(&lab);
    refresh(&lab, 0);
    assert_eq!(sessions.flows(&lab), flows);
    // The kernel leaves the IPv6 default route, but a pod does not leave under its own address.
    let routes = hands.netlink.routes().unwrap();
    let everywhere = default_route(index, Family::Ipv6).destination;
    assert!(
        routes.iter().any(|route| route.destination == everywhere),
        "{routes:?}"
    );
    let before = no_route(&lab);
    let server = To::Outside.server(Family::Ipv6);
    assert!(probe::udp_echo(lab.pod(1, 2), server, &[100], &impatient()).is_err());
    assert!(no_route(&lab) > before, "not dropped with the reason");
    hands.restore(index, another);
    let changes = refresh(&lab, 0);
    let local = Change::PeerLocal {
        peer: "n2".to_owned(),
        local: another(Family::Ipv4),
    };
    assert!(changes.0.contains(&local), "{changes:?}");
    assert_eq!(status(&lab).uplinks[0].masquerade, Family::ALL.map(another));

    // The other node does not know it, and takes nothing from it.
    let remote = at(pod_address(2, 1, Family::Ipv4), PORT);
    assert!(probe::udp_echo(lab.pod(1, 1), remote, &[100], &impatient()).is_err());
    let moved = datapath_user::PeerSpec {
        address: another(Family::Ipv4),
        node_addresses: vec![another(Family::Ipv6)],
        ..peer_spec(&lab.fabric, lab.fabric.node(1).or_panic(), Family::Ipv4)
    };
    let told = lab
        .datapaths
        .inside(1, |datapath| datapath.upsert_peer(&moved));
    told.or_panic();
    sessions.alive(Some(To::Remote));

    // Those behind the old address have ended, and new ones are behind the new one.
    for (to, family, tcp) in &mut sessions.0 {
        if *to == To::Outside {
            assert!(
                tcp.echo(1000).is_err(),
                "{family}: behind an address that is gone"
            );
            let server = to.server(*family);
            let mut new = TcpSession::connect(lab.pod(1, 1), server, &patient()).or_panic();
            new.echo(20_000).or_panic();
            assert_eq!(new.seen_source().ip(), another(*family));
        }
    }
    let old = Family::ALL.map(|family| plan::node_address(1, family));
    for flow in lab.datapaths.flows(0).or_panic() {
        if let Some(nat) = &flow.nat {
            assert!(!old.contains(&nat.address), "{flow:?}");
        }
    }
    at_rest(&lab);
    lab.datapaths.stop().or_panic();
}

#[test]
fn changes_are_followed_as_they_come() {
    let lab = Lab::start("upl-follow", Family::Ipv4);
    let mut sessions = Sessions::open(&lab);
    let hands = Hands::on(&lab);
    let index = hands.uplink.index;
    let (stop, stopper) = io::pipe().unwrap();
    thread::scope(|scope| {
        let follow = |node| {
            let (lab, stop) = (&lab, &stop);
            scope.spawn(move || lab.datapaths.inside(node, |datapath| datapath.follow(stop)))
        };
        let following = [follow(0), follow(1)];

        hands.netlink.set_mtu(index, 1400).unwrap();
        eventually("the pods have the new MTU", || {
            route_mtus(&lab) == BTreeSet::from([1350])
        });
        hands.netlink.rename(index, "lan0").unwrap();
        eventually("the new name is known", || {
            status(&lab).uplinks[0].interface == "lan0"
        });
        hands.netlink.set_up(index, false).unwrap();
        eventually("it is down", || state(&lab) == UplinkState::Down);
        hands.netlink.set_up(index, true).unwrap();
        hands.restore(index, |family| plan::node_address(1, family));
        eventually("it is up, with its addresses", || {
            state(&lab) == UplinkState::Up && status(&lab).uplinks[0].addresses.len() == 2
        });
        sessions.alive(None);

        // What it does itself does not keep it busy.
        eventually("it comes to rest", || {
            let before = status(&lab);
            thread::sleep(Duration::from_millis(500));
            let after = status(&lab);
            before.refreshes == after.refreshes && after.changes > 4
        });
        drop(stopper);
        for following in following {
            following.join().unwrap().or_panic();
        }
    });
    lab.datapaths.stop().or_panic();
}

#[test]
fn every_path_by_a_bridge() {
    every_path(UplinkKind::Bridge, Family::Ipv4);
}

#[test]
fn every_path_by_a_vlan() {
    every_path(UplinkKind::Vlan, Family::Ipv4);
}

#[test]
fn every_path_by_a_bond() {
    every_path(UplinkKind::Bond, Family::Ipv6);
}

#[test]
fn every_path_with_peers_behind_a_second_uplink_over_ipv4() {
    every_path(UplinkKind::Two, Family::Ipv4);
}

#[test]
fn every_path_with_peers_behind_a_second_uplink_over_ipv6() {
    every_path(UplinkKind::Two, Family::Ipv6);
}

fn every_path(uplink: UplinkKind, tunnel: Family) {
    let Some(fabric) = built(uplink) else {
        return;
    };
    let datapaths = InProcess::start(&fabric, tunnel).or_panic();
    let site = datapaths.site(&fabric, tunnel);
    let report = paths::run(&site, &datapaths, |_| {});
    let failed = report
        .checks()
        .iter()
        .filter(|check| check.outcome != Outcome::Passed);
    let failed: Vec<_> = failed.collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(
        report.checks().len() >= 42,
        "only {}",
        report.checks().len()
    );
    let node = fabric.node(1).or_panic();
    let found = datapaths.inside(0, Datapath::status).or_panic().uplinks;
    let found: Vec<_> = found
        .iter()
        .map(|uplink| uplink.interface.as_str())
        .collect();
    assert_eq!(found, node.uplink().interfaces());
    datapaths.stop().or_panic();
}

#[test]
fn a_bond_changes_its_port() {
    let Some(fabric) = built(UplinkKind::Bond) else {
        return;
    };
    let datapaths = InProcess::start(&fabric, Family::Ipv4).or_panic();
    let server = at(plan::outside_address(Family::Ipv4), PORT);
    let _outside = EchoServer::start(fabric.outside(), &[PORT], &[PORT]).or_panic();
    let pod = &fabric.node(1).or_panic().pods()[0];
    let mut session = TcpSession::connect(pod, server, &patient()).or_panic();
    let router = fabric.router().netlink().or_panic();
    for (off, on) in [("n1", "n1b"), ("n1b", "n1")] {
        for (port, up) in [(on, true), (off, false)] {
            let index = router.link(port).unwrap().unwrap().index;
            router.set_up(index, up).unwrap();
        }
        datapaths.inside(0, Datapath::refresh).or_panic();
        session.echo(20_000).or_panic();
    }
    datapaths.stop().or_panic();
}

/// A lab of nodes with such uplinks; none where the kernel has no such device, which is said.
fn built(uplink: UplinkKind) -> Option<Fabric> {
    let node = NodePlan {
        uplink,
        ..NodePlan::default()
    };
    let plan = Plan::new(lab_name("upl-kind"))
        .with_nodes(2, node)
        .with_underlay(Families::Dual);
    match Fabric::build(plan) {
        Ok(fabric) => Some(fabric),
        Err(error) => {
            let optional = matches!(uplink, UplinkKind::Vlan | UplinkKind::Bond);
            let Error::Netlink {
                source: NetlinkError::Unsupported { .. },
                ..
            } = &error
            else {
                panic!("{}", error.chain());
            };
            assert!(optional, "{}", error.chain());
            eprintln!("skipped: {}", error.source().unwrap());
            None
        }
    }
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "after 20 seconds: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
