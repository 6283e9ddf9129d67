//! Behind which address pods leave: several addresses that come and go, the node's address on lo,
//! deprecated and configured ones; and to where they keep their own.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "it is all tests"
)]

mod running;
mod util;

use std::{
    fs, io,
    net::IpAddr,
    os::unix::fs::symlink,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use datapath_conformance::{
    family::Family,
    netns::Namespace,
    paths::{NodeView, pod_address},
    probe::{self, TcpSession},
    topology::{
        Plan,
        plan::{self, UPLINK},
    },
};
use datapath_kern::verdict::DropReason;
use datapath_user::{
    Adoption, Change, Changes, Config, Datapath, Listed, ListedBy, Masquerade, MasqueradeRule,
    NonMasqueradeView, UplinkSpec, UplinkView,
};
use running::{Lab, PORT, To};
use util::{OrPanic, at, impatient, lab_name, patient};

/// Behind what node 1's pods leave in a family, and why.
fn behind(lab: &Lab, family: Family) -> Option<(IpAddr, MasqueradeRule)> {
    let uplink = uplink(lab);
    let rules = uplink.masquerade_rules.into_iter();
    let mut chosen = uplink.masquerade.into_iter().zip(rules);
    chosen.find(|(address, _)| address.is_ipv4() == (family == Family::Ipv4))
}

fn uplink(lab: &Lab) -> UplinkView {
    let status = lab.datapaths.inside(0, Datapath::status).or_panic();
    status.uplinks[0].clone()
}

fn refresh(lab: &Lab) -> Changes {
    let changes = lab.datapaths.inside(0, Datapath::refresh).or_panic();
    eprintln!("{changes:?}");
    changes
}

/// Has node 1's datapath be taken over, its settings changed.
fn take_over(lab: &mut Lab, adjust: impl Fn(&mut Config)) -> Adoption {
    let of_node_1 = |config: &mut Config| {
        let pod = pod_address(1, 1, Family::Ipv4);
        if config.pod_cidrs.iter().any(|cidr| cidr.contains(&pod)) {
            adjust(config);
        }
    };
    lab.datapaths.take_over(of_node_1).or_panic().swap_remove(0)
}

/// Does something with `ip` of iproute2.
fn ip(namespace: &Namespace, words: &str) {
    let said = namespace
        .command("ip")
        .args(words.split_whitespace())
        .output()
        .unwrap();
    assert!(said.status.success(), "ip {words}: {said:?}");
}

fn node(lab: &Lab) -> &Namespace {
    lab.fabric.node(1).or_panic().namespace()
}

/// Connects a pod to the outside host, and has it answer.
fn to_outside(lab: &Lab, family: Family) -> TcpSession {
    let server = To::Outside.server(family);
    let mut session = TcpSession::connect(lab.pod(1, 1), server, &patient()).or_panic();
    session.echo(20_000).or_panic();
    session
}

/// A new connection leaves behind `address`; and so do datagrams and pings.
#[track_caller]
fn leaves_behind(lab: &Lab, family: Family, address: IpAddr) {
    assert_eq!(to_outside(lab, family).seen_source().ip(), address);
    let outside = To::Outside.address(family);
    probe::udp_echo(lab.pod(1, 2), at(outside, PORT), &[100], &patient()).or_panic();
    probe::icmp_echo(lab.pod(1, 2), outside, 2, 56, &patient()).or_panic();
}

/// A pod does not get out, and the drops say why.
#[track_caller]
fn does_not_leave(lab: &Lab, family: Family) {
    let count = || {
        let drops = lab.datapaths.drops(0).or_panic();
        drops.get(DropReason::NoRoute.label()).copied().unwrap_or(0)
    };
    let before = count();
    let server = To::Outside.server(family);
    assert!(probe::udp_echo(lab.pod(1, 2), server, &[100], &impatient()).is_err());
    assert!(count() > before, "not dropped with the reason");
}

/// The number of the flow that a connection is, as node 1 has it.
fn flow(lab: &Lab, session: &TcpSession) -> Option<u32> {
    let local = session.local_address().or_panic();
    let flows = lab.datapaths.flows(0).or_panic();
    let its = flows
        .iter()
        .find(|flow| flow.source == local.ip() && flow.source_port == local.port());
    its.map(|flow| flow.pair)
}

/// Another address of node 1's uplink, with a prefix of its own.
fn more(family: Family) -> (IpAddr, String) {
    let address = plan::node_address(89, family);
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let nodad = if address.is_ipv4() { "" } else { "nodad" };
    (address, format!("{address}/{bits} dev {UPLINK} {nodad}"))
}

#[test]
fn addresses_come_and_go_in_every_order() {
    let mut lab = Lab::start("masq-order", Family::Ipv4);
    for family in Family::ALL {
        let first = plan::node_address(1, family);
        let (second, with) = more(family);
        assert_eq!(behind(&lab, family), Some((first, MasqueradeRule::Uplink)));
        let mut old = to_outside(&lab, family);
        let number = flow(&lab, &old).unwrap();

        // One more, that will expire: nothing changes.
        let expires = format!("address add {with} valid_lft 7200 preferred_lft 7200");
        ip(node(&lab), &expires);
        refresh(&lab);
        assert_eq!(behind(&lab, family), Some((first, MasqueradeRule::Uplink)));
        old.echo(1000).or_panic();
        assert_eq!(flow(&lab, &old), Some(number));

        // The first one goes: what is behind it has ended, and new ones are behind the second.
        let underlay = plan::underlay(family).prefix_len();
        ip(
            node(&lab),
            &format!("address del {first}/{underlay} dev {UPLINK}"),
        );
        // On the link still, so that the way to the router is the same.
        let on_link = plan::underlay(family);
        ip(node(&lab), &format!("route replace {on_link} dev {UPLINK}"));
        let router = plan::fabric_address(family);
        let any = if first.is_ipv4() { "-4" } else { "-6" };
        ip(
            node(&lab),
            &format!("{any} route replace default via {router} dev {UPLINK}"),
        );
        refresh(&lab);
        assert_eq!(behind(&lab, family), Some((second, MasqueradeRule::Uplink)));
        // A late acknowledgement may have begun another one.
        assert_ne!(flow(&lab, &old), Some(number));
        assert!(old.echo(1000).is_err(), "behind an address that is gone");
        leaves_behind(&lab, family, second);
        let mut old = to_outside(&lab, family);
        let number = flow(&lab, &old).unwrap();

        // It comes back, and would be chosen: it does not expire.
        let nodad = if first.is_ipv4() { "" } else { "nodad" };
        ip(
            node(&lab),
            &format!("address add {first}/{underlay} dev {UPLINK} {nodad}"),
        );
        refresh(&lab);
        assert_eq!(behind(&lab, family), Some((second, MasqueradeRule::Kept)));
        old.echo(1000).or_panic();
        assert_eq!(flow(&lab, &old), Some(number));

        // Nor does another process choose otherwise.
        take_over(&mut lab, |_| {});
        refresh(&lab);
        assert_eq!(behind(&lab, family), Some((second, MasqueradeRule::Kept)));
        old.echo(1000).or_panic();
        assert_eq!(flow(&lab, &old), Some(number));
        leaves_behind(&lab, family, second);
    }
    lab.datapaths.stop().or_panic();
}

#[test]
fn the_nodes_address_is_on_lo() {
    let mut lab = Lab::start("masq-lo", Family::Ipv4);
    for (family, address) in [
        (Family::Ipv4, "203.0.113.129"),
        (Family::Ipv6, "2001:db8:99::1"),
    ] {
        let address: IpAddr = address.parse().unwrap();
        let first = plan::node_address(1, family);
        let router = lab.fabric.router();
        let (any, bits) = if first.is_ipv4() {
            ("-4", 32)
        } else {
            ("-6", 128)
        };
        let mut old = to_outside(&lab, family);
        ip(node(&lab), &format!("address add {address}/{bits} dev lo"));
        refresh(&lab);
        assert_eq!(
            behind(&lab, family),
            Some((first, MasqueradeRule::Uplink)),
            "lo comes later"
        );

        // As a routing daemon has it: the uplink has link-local addresses only, and the default
        // route names the address on lo.
        let underlay = plan::underlay(family).prefix_len();
        ip(
            node(&lab),
            &format!("address del {first}/{underlay} dev {UPLINK}"),
        );
        let link_local = |namespace: &Namespace, interface: &str| {
            let index = namespace.link(interface).or_panic().index;
            let addresses = namespace.netlink().or_panic().addresses().unwrap();
            let own = addresses.iter().filter(|own| own.index == index);
            let mut own = own.map(|own| own.net.addr());
            own.find(|own| matches!(own, IpAddr::V6(own) if own.is_unicast_link_local()))
        };
        let (gateway, way_back) = match family {
            Family::Ipv4 => (plan::fabric_address(family), String::new()),
            Family::Ipv6 => {
                let of_node = link_local(node(&lab), UPLINK).unwrap();
                let of_router = link_local(router, plan::BRIDGE).unwrap();
                (of_router, format!("via {of_node}"))
            }
        };
        let bridge = plan::BRIDGE;
        ip(
            router,
            &format!("{any} route replace {address}/{bits} {way_back} dev {bridge}"),
        );
        let default = format!("{any} route replace default via {gateway} dev {UPLINK} onlink");
        ip(node(&lab), &format!("{default} src {address}"));
        refresh(&lab);
        assert_eq!(behind(&lab, family), Some((address, MasqueradeRule::Route)));
        assert!(old.echo(1000).is_err(), "behind an address that is gone");
        leaves_behind(&lab, family, address);

        // The node's own connections share it.
        let server = To::Outside.server(family);
        let mut of_node = TcpSession::connect(node(&lab), server, &patient()).or_panic();
        of_node.echo(1000).or_panic();
        assert_eq!(of_node.seen_source().ip(), address);

        // An address for the link alone changes nothing, nor does another process.
        let link = match family {
            Family::Ipv4 => "192.0.2.200/31",
            Family::Ipv6 => "2001:db8:0:77::/127",
        };
        let mut session = to_outside(&lab, family);
        ip(node(&lab), &format!("address add {link} dev {UPLINK}"));
        refresh(&lab);
        assert_eq!(behind(&lab, family), Some((address, MasqueradeRule::Route)));
        take_over(&mut lab, |_| {});
        assert_eq!(behind(&lab, family), Some((address, MasqueradeRule::Route)));
        session.echo(20_000).or_panic();
        of_node.echo(1000).or_panic();

        // A route that says nothing.
        ip(node(&lab), &format!("address del {link} dev {UPLINK}"));
        let router = lab.fabric.router();
        ip(node(&lab), &default);
        refresh(&lab);
        assert_eq!(
            behind(&lab, family),
            Some((address, MasqueradeRule::Loopback))
        );
        session.echo(20_000).or_panic();
        leaves_behind(&lab, family, address);
        ip(
            router,
            &format!("{any} route del {address}/{bits} dev {bridge}"),
        );
    }
    lab.datapaths.stop().or_panic();
}

#[test]
fn a_deprecated_address_is_left_for_a_better_one() {
    let lab = Lab::start("masq-old", Family::Ipv4);
    let family = Family::Ipv6;
    let first = plan::node_address(1, family);
    let (second, with) = more(family);
    let mut old = to_outside(&lab, family);
    let number = flow(&lab, &old).unwrap();
    let fade = format!(
        "-6 address change {first}/{} dev {UPLINK} valid_lft 7200 preferred_lft 0",
        plan::underlay(family).prefix_len()
    );
    ip(node(&lab), &fade);
    refresh(&lab);
    assert_eq!(
        behind(&lab, family),
        Some((first, MasqueradeRule::Kept)),
        "there is no other"
    );

    ip(node(&lab), &format!("address add {with}"));
    refresh(&lab);
    assert_eq!(behind(&lab, family), Some((second, MasqueradeRule::Uplink)));
    // It is valid still for what has it.
    old.echo(20_000).or_panic();
    assert_eq!(flow(&lab, &old), Some(number));
    leaves_behind(&lab, family, second);

    // Until it goes.
    let del = format!(
        "address del {first}/{} dev {UPLINK}",
        plan::underlay(family).prefix_len()
    );
    ip(node(&lab), &del);
    ip(
        node(&lab),
        &format!("route replace {} dev {UPLINK}", plan::underlay(family)),
    );
    let router = plan::fabric_address(family);
    ip(
        node(&lab),
        &format!("-6 route replace default via {router} dev {UPLINK}"),
    );
    refresh(&lab);
    // A late acknowledgement may have begun another one.
    assert_ne!(flow(&lab, &old), Some(number));
    assert!(old.echo(1000).is_err(), "behind an address that is gone");
    leaves_behind(&lab, family, second);
    lab.datapaths.stop().or_panic();
}

#[test]
fn a_configured_address_and_no_other() {
    let mut lab = Lab::start("masq-named", Family::Ipv4);
    let named = Family::ALL.map(|family| more(family).0);
    let mut old = Family::ALL.map(|family| to_outside(&lab, family));
    for family in Family::ALL {
        ip(node(&lab), &format!("address add {}", more(family).1));
    }
    let adoption = take_over(&mut lab, |config| {
        config.uplinks = vec![UplinkSpec {
            name: UPLINK.to_owned(),
            masquerade: Some(Masquerade::Behind(named.to_vec())),
        }];
    });
    assert!(!adoption.flows_judged_again);
    for (family, old) in Family::ALL.into_iter().zip(&mut old) {
        let address = more(family).0;
        assert_eq!(
            behind(&lab, family),
            Some((address, MasqueradeRule::Configured))
        );
        leaves_behind(&lab, family, address);
        // What was behind the other one goes on.
        old.echo(20_000).or_panic();

        let with = more(family).1.replace("nodad", "");
        let mut session = to_outside(&lab, family);
        ip(node(&lab), &format!("address del {with}"));
        refresh(&lab);
        assert_eq!(behind(&lab, family), None);
        does_not_leave(&lab, family);
        ip(node(&lab), &format!("address add {}", more(family).1));
        refresh(&lab);
        assert_eq!(
            behind(&lab, family),
            Some((address, MasqueradeRule::Configured))
        );
        session.echo(20_000).or_panic();
        leaves_behind(&lab, family, address);
    }
    lab.datapaths.stop().or_panic();
}

/// Has the fabric know the way to node 1's pods.
fn route_pods(lab: &Lab) {
    for family in Family::ALL {
        let (pods, node) = (plan::pod_cidr(1, family), plan::node_address(1, family));
        ip(lab.fabric.router(), &format!("route add {pods} via {node}"));
    }
}

#[test]
fn an_uplink_without_masquerade_in_one_family() {
    let mut lab = Lab::start("masq-off", Family::Ipv4);
    route_pods(&lab);
    for (masquerade, of_v4, of_v6) in [
        (Masquerade::OnlyIpv4, true, false),
        (Masquerade::OnlyIpv6, false, true),
        (Masquerade::Off, false, false),
        (Masquerade::On, true, true),
    ] {
        take_over(&mut lab, |config| {
            config.masquerade = false;
            config.uplinks = vec![UplinkSpec {
                name: UPLINK.to_owned(),
                masquerade: Some(masquerade.clone()),
            }];
        });
        for (family, on) in [(Family::Ipv4, of_v4), (Family::Ipv6, of_v6)] {
            let address = if on {
                plan::node_address(1, family)
            } else {
                pod_address(1, 1, family)
            };
            leaves_behind(&lab, family, address);
        }
    }
    lab.datapaths.stop().or_panic();
}

/// Prefixes of the outside hosts.
fn outside(family: Family) -> ipnet::IpNet {
    let bits = if family == Family::Ipv4 { 24 } else { 64 };
    ipnet::IpNet::new(plan::outside_address(family), bits)
        .unwrap()
        .trunc()
}

fn kept(lab: &Lab) -> NonMasqueradeView {
    let status = lab.datapaths.inside(0, Datapath::status).or_panic();
    status.non_masquerade
}

/// Puts a file in place as a kubelet does it with a `ConfigMap`.
fn configure(directory: &Path, version: u32, text: &str) {
    let data = format!("..{version}");
    fs::create_dir(directory.join(&data)).unwrap();
    fs::write(directory.join(&data).join("config"), text).unwrap();
    symlink(&data, directory.join("..tmp")).unwrap();
    fs::rename(directory.join("..tmp"), directory.join("..data")).unwrap();
}

#[test]
fn a_file_says_where_pods_keep_their_addresses() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config");
    configure(
        directory.path(),
        1,
        "nonMasqueradeCIDRs: [198.18.0.0/15]\nmasqLinkLocal: true\n",
    );
    symlink("..data/config", &file).unwrap();
    let mut lab = Lab::with(Plan::new(lab_name("masq-file")), Family::Ipv4, |config| {
        config.non_masquerade_file = Some(file.clone());
    });
    route_pods(&lab);
    for family in Family::ALL {
        leaves_behind(&lab, family, plan::node_address(1, family));
    }
    let mut old = Family::ALL.map(|family| to_outside(&lab, family));
    let (stop, stopper) = io::pipe().unwrap();
    thread::scope(|scope| {
        let (lab, stop) = (&lab, &stop);
        scope.spawn(move || lab.datapaths.inside(0, |datapath| datapath.follow(stop)));
        let text = |prefixes: [String; 2]| format!("{{\"nonMasqueradeCIDRs\": {prefixes:?}}}");
        let both = Family::ALL.map(|family| outside(family).to_string());
        configure(directory.path(), 2, &text(both.clone()));
        eventually("the new file counts", || {
            kept(lab)
                .prefixes
                .iter()
                .any(|listed| listed.by == ListedBy::File && listed.prefix == outside(Family::Ipv6))
        });
        for (family, old) in Family::ALL.into_iter().zip(&mut old) {
            leaves_behind(lab, family, pod_address(1, 1, family));
            // What there was goes on as it began.
            old.echo(20_000).or_panic();
            assert_eq!(old.seen_source().ip(), plan::node_address(1, family));
        }

        configure(
            directory.path(),
            3,
            "nonMasqueradeCIDRs: [198.51.100.7/24]\n",
        );
        eventually("the bad file is told of", || kept(lab).problem.is_some());
        let view = kept(lab);
        assert!(view.problem.unwrap().contains("config:1:22: "), "no place");
        assert!(
            view.prefixes
                .iter()
                .any(|listed| listed.prefix == outside(Family::Ipv4))
        );
        for family in Family::ALL {
            leaves_behind(lab, family, pod_address(1, 1, family));
        }
        drop(stopper);
    });

    // The next process cannot understand it either, and goes on with what the tables say.
    let adoption = take_over(&mut lab, |_| {});
    assert_eq!(adoption.prefixes_changed, 0);
    let view = kept(&lab);
    assert!(view.problem.is_some());
    let earlier = Listed {
        prefix: outside(Family::Ipv4),
        by: ListedBy::Earlier,
    };
    assert!(view.prefixes.contains(&earlier), "{view:?}");
    for family in Family::ALL {
        leaves_behind(&lab, family, pod_address(1, 1, family));
    }

    // Without a file its defaults hold: the outside host's network is one for documentation, in
    // IPv4.
    fs::remove_file(&file).unwrap();
    let changes = refresh(&lab);
    let gone = |change: &Change| {
        matches!(change, Change::NonMasquerade { removed, .. }
            if removed == &[outside(Family::Ipv6)])
    };
    assert!(changes.0.iter().any(gone), "{changes:?}");
    assert_eq!(kept(&lab).problem, None);
    leaves_behind(&lab, Family::Ipv4, pod_address(1, 1, Family::Ipv4));
    leaves_behind(&lab, Family::Ipv6, plan::node_address(1, Family::Ipv6));
    lab.datapaths.stop().or_panic();
}

#[test]
fn what_is_listed_gives_way_to_pods_and_nodes() {
    let mut lab = Lab::start("masq-list", Family::Ipv4);
    route_pods(&lab);
    let set = |lab: &Lab, prefixes: &[&str]| {
        let prefixes: Vec<_> = prefixes.iter().map(|text| text.parse().unwrap()).collect();
        let set = |datapath: &Datapath| datapath.set_non_masquerade(&prefixes);
        lab.datapaths.inside(0, set).or_panic();
    };
    let everyone = |lab: &Lab| {
        for family in Family::ALL {
            for to in [To::Neighbour, To::Remote] {
                probe::tcp_echo(lab.pod(1, 1), to.server(family), 20_000, &patient()).or_panic();
            }
            let own = plan::node_address(1, family);
            probe::icmp_echo(lab.pod(1, 1), own, 1, 56, &patient()).or_panic();
            let other = plan::node_address(2, family);
            probe::icmp_echo(lab.pod(1, 1), other, 1, 56, &patient()).or_panic();
        }
    };
    // Prefixes of pods, the same and longer, addresses of the nodes, and all there is.
    let lists: [&[&str]; 4] = [
        &[
            "10.244.1.0/24",
            "10.244.2.0/24",
            "10.244.2.0/30",
            "fd00:10:244:2::/96",
        ],
        &[
            "192.0.2.11/32",
            "192.0.2.12/32",
            "2001:db8:0:1::11/128",
            "2001:db8:0:1::12/128",
        ],
        &["0.0.0.0/0", "::/0"],
        &["192.0.0.0/8", "2001:db8::/32"],
    ];
    for list in lists {
        set(&lab, list);
        everyone(&lab);
        take_over(&mut lab, |config| {
            config.non_masquerade = list.iter().map(|text| text.parse().unwrap()).collect();
        });
        everyone(&lab);
    }
    // Taken over or told: nothing is left over, nor missing.
    for list in lists.iter().rev() {
        set(&lab, list);
        let adoption = take_over(&mut lab, |config| {
            config.non_masquerade = list.iter().map(|text| text.parse().unwrap()).collect();
        });
        assert_eq!(adoption.prefixes_changed, 0, "{list:?}");
    }
    set(&lab, &[]);
    let adoption = take_over(&mut lab, |config| config.non_masquerade.clear());
    assert_eq!(adoption.prefixes_changed, 0);

    // A peer goes, and with it what hid a listed prefix; it comes back, and hides it again.
    let peer = datapath_conformance::paths::peer_spec(
        &lab.fabric,
        lab.fabric.node(2).or_panic(),
        Family::Ipv4,
    );
    let list = ["10.244.2.0/24", "192.0.2.12/32"];
    set(&lab, &list);
    for back in [false, true] {
        let change = |datapath: &Datapath| {
            if back {
                datapath.upsert_peer(&peer).map(drop)
            } else {
                datapath.remove_peer(&peer.name)
            }
        };
        lab.datapaths.inside(0, change).or_panic();
        let adoption = take_over(&mut lab, |config| {
            config.non_masquerade = list.iter().map(|text| text.parse().unwrap()).collect();
        });
        assert_eq!(adoption.prefixes_changed, 0, "peer there: {back}");
    }
    everyone(&lab);
    lab.datapaths.stop().or_panic();
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "after 20 seconds: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
