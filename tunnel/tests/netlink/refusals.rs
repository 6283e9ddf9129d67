//! What the kernel refuses, and what never gets that far.

use std::{os::unix::process::CommandExt, process::Command};

use datapath_tunnel::netlink::{Netlink, NetlinkError, Route, VethEnd};
use nix::errno::Errno;

use crate::{
    lab::{FAR_MAC, Pair, chain, errno, ip, net},
    namespace::Namespace,
};

#[test]
fn refusals_carry_number_object_and_reason() {
    let pair = Pair::new();
    let netlink = &pair.node_net;
    assert_eq!(errno(netlink.add_dummy("dp1")), Errno::EEXIST);
    assert_eq!(
        errno(netlink.add_veth(VethEnd::new("dp1"), VethEnd::new("dp2"))),
        Errno::EEXIST
    );
    assert!(
        netlink.link("dp2").unwrap().is_none(),
        "nothing is left of a failed pair"
    );
    assert_eq!(errno(netlink.set_up(4711, true)), Errno::ENODEV);
    assert_eq!(
        errno(netlink.add_address(4711, net("10.0.0.1/24"))),
        Errno::ENODEV
    );
    assert_eq!(
        errno(netlink.add_neighbour(4711, ip("10.0.0.1"), FAR_MAC)),
        Errno::ENODEV
    );
    assert_eq!(
        errno(netlink.set_mac(pair.near.index, [1, 0, 0, 0, 0, 1])),
        Errno::EADDRNOTAVAIL
    );

    let error = netlink
        .add_route(
            &Route::to(net("10.0.2.0/24"))
                .via(ip("10.7.7.7"))
                .dev(pair.near.index),
        )
        .unwrap_err();
    assert_eq!(
        chain(&error),
        format!(
            "add route 10.0.2.0/24 via 10.7.7.7 on interface {}: \
             ENETUNREACH: Network is unreachable (Nexthop has invalid gateway)",
            pair.near.index
        )
    );

    let missing = std::path::Path::new("/proc/self/ns/none");
    for outcome in [
        Netlink::open_in(missing).map(|_| ()),
        netlink
            .add_veth(
                VethEnd::new("a"),
                VethEnd {
                    netns: Some(missing),
                    ..VethEnd::new("b")
                },
            )
            .map(|_| ()),
    ] {
        let error = outcome.unwrap_err();
        assert!(matches!(error, NetlinkError::OpenNamespace { .. }));
        assert!(error.to_string().contains("/proc/self/ns/none"));
        assert_eq!(error.errno(), Some(Errno::ENOENT as i32));
    }
    assert_eq!(
        errno(Netlink::open_in("/proc/self/ns/mnt".as_ref())),
        Errno::EINVAL
    );
}

#[test]
fn bad_values_are_refused_before_the_kernel_guesses() {
    let pair = Pair::new();
    let (index, netlink) = (pair.near.index, &pair.node_net);
    let here = pair.pod.path();
    let other = VethEnd::new("other");
    let outcomes = [
        netlink.link("sixteen-bytes-xx").map(|_| ()),
        netlink.rename(index, "a/b"),
        netlink.set_up(0, true),
        netlink.delete_link(0).map(|_| ()),
        netlink.set_alias(index, &"x".repeat(256)),
        netlink
            .add_veth(
                VethEnd {
                    netns: Some(&here),
                    ..VethEnd::new("a")
                },
                other,
            )
            .map(|_| ()),
        netlink.add_veth(VethEnd::new(""), other).map(|_| ()),
        netlink.add_address(index, net("224.0.0.1/32")).map(|_| ()),
        netlink.add_route(&Route::to(net("fd00::/64")).via(ip("10.0.0.1"))),
        netlink.add_route(
            &Route::to(net("10.0.0.0/24"))
                .dev(index)
                .source(ip("fd00::1")),
        ),
        netlink.add_route(&Route::to(net("10.0.0.0/24")).dev(index).table(0)),
    ];
    for outcome in outcomes {
        assert!(
            matches!(outcome, Err(NetlinkError::Invalid { .. })),
            "{outcome:?}"
        );
    }
    // Host bits of a destination are no error: they are left out.
    netlink
        .add_route(&Route::to(net("10.0.5.7/24")).dev(index))
        .unwrap();
    assert!(
        netlink
            .delete_route(&Route::to(net("10.0.5.0/24")).dev(index))
            .unwrap()
    );
}

#[test]
fn without_rights_every_change_is_refused() {
    const CHILD: &str = "DATAPATH_TEST_UNPRIVILEGED";
    if std::env::var_os(CHILD).is_some() {
        let netlink = Netlink::open().unwrap();
        assert!(netlink.link("lo").unwrap().is_some(), "looking is allowed");
        assert_eq!(errno(netlink.add_dummy("d0")), Errno::EPERM);
        assert_eq!(errno(netlink.set_up(1, false)), Errno::EPERM);
        assert_eq!(errno(netlink.delete_link(1)), Errno::EPERM);
        assert_eq!(
            errno(netlink.add_address(1, net("10.0.0.1/24"))),
            Errno::EPERM
        );
        assert_eq!(
            errno(netlink.delete_address(1, net("127.0.0.1/8"))),
            Errno::EPERM
        );
        assert_eq!(
            errno(netlink.add_route(&Route::to(net("10.0.0.0/24")).dev(1))),
            Errno::EPERM
        );
        assert_eq!(
            errno(Netlink::open_in("/proc/self/ns/net".as_ref())),
            Errno::EPERM
        );
        return;
    }
    // A thread cannot give up its rights without the others, so a process does: this very test.
    let node = Namespace::new();
    node.netlink();
    let child = node.run(|| {
        Command::new("/proc/self/exe")
            .args([
                "--exact",
                "refusals::without_rights_every_change_is_refused",
            ])
            .env(CHILD, "1")
            .uid(65534)
            .gid(65534)
            .output()
            .unwrap()
    });
    let output = String::from_utf8_lossy(&child.stdout);
    assert!(
        child.status.success(),
        "{output}{}",
        String::from_utf8_lossy(&child.stderr)
    );
    assert!(output.contains("1 passed"), "{output}");
}
