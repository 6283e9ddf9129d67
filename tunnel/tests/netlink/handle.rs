//! One handle, many threads, tokio, and the life of a namespace.

use std::{path::PathBuf, thread, time::Duration};

use datapath_tunnel::netlink::{Netlink, VethEnd};
use ipnet::IpNet;

use crate::{
    lab::{cable, eventually, net},
    namespace::Namespace,
};

#[test]
fn works_inside_tokio() {
    async fn work(path: PathBuf, name: String) {
        let netlink = Netlink::open_in(&path).unwrap();
        let link = netlink.add_bridge(&name).unwrap();
        tokio::task::yield_now().await;
        assert!(netlink.delete_link(link.index).unwrap());
        drop(netlink);
    }
    let node = Namespace::new();
    let path = node.path();
    let name = |number: u32| format!("br{number}");
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(work(path.clone(), name(9)));
    let threads = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap();
    threads.block_on(async {
        let tasks: Vec<_> = (0..4)
            .map(|i| threads.spawn(work(path.clone(), name(i))))
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        work(path, name(8)).await;
    });
}

#[test]
fn open_is_the_callers_namespace_for_good() {
    let (one, two) = (Namespace::new(), Namespace::new());
    let netlink = one.run(|| Netlink::open().unwrap());
    cable(&netlink, "mark");
    // Used from another thread, in another namespace.
    let clone = netlink.clone();
    let seen = two.run(move || clone.link("mark").unwrap().is_some());
    assert!(seen);
    assert!(two.netlink().link("mark").unwrap().is_none());
    assert!(one.netlink().link("mark").unwrap().is_some());
    assert!(
        Netlink::open().unwrap().link("mark").unwrap().is_none(),
        "the test's own is untouched"
    );
}

#[test]
fn many_threads_share_one_handle() {
    let node = Namespace::new();
    let netlink = node.netlink();
    let index = cable(&netlink, "d0").index;
    thread::scope(|scope| {
        for thread in 0..4_u32 {
            let netlink = netlink.clone();
            scope.spawn(move || {
                for i in 0..50_u32 {
                    let address = net(&format!("10.{thread}.{i}.1/32"));
                    assert!(netlink.add_address(index, address).unwrap());
                    assert!(
                        netlink
                            .addresses()
                            .unwrap()
                            .iter()
                            .any(|known| known.net == address)
                    );
                    assert!(netlink.delete_address(index, address).unwrap());
                }
            });
        }
    });
    assert!(
        !netlink
            .addresses()
            .unwrap()
            .iter()
            .any(|known| known.index == index && known.net.addr().is_ipv4())
    );
}

#[test]
fn a_list_is_whole_while_others_change_it() {
    let node = Namespace::new();
    let netlink = node.netlink();
    let stable: Vec<IpNet> = (0..1000_u32)
        .map(|i| net(&format!("10.1.{}.{}/32", i / 250, i % 250)))
        .collect();
    for &address in &stable {
        assert!(netlink.add_address(1, address).unwrap());
    }
    thread::scope(|scope| {
        let changes = scope.spawn(|| {
            let other = node.netlink();
            for _ in 0..300 {
                assert!(other.add_address(1, net("10.2.0.1/32")).unwrap());
                assert!(other.delete_address(1, net("10.2.0.1/32")).unwrap());
                thread::sleep(Duration::from_millis(1));
            }
        });
        while !changes.is_finished() {
            let mut listed: Vec<IpNet> = netlink
                .addresses()
                .unwrap()
                .iter()
                .map(|address| address.net)
                .collect();
            listed.retain(|address| stable.contains(address));
            assert_eq!(listed, stable);
        }
    });
}

#[test]
fn dropping_the_last_handle_lets_go_of_the_namespace() {
    let node = Namespace::new();
    let node_net = node.netlink();
    let pod = Namespace::new();
    let far = VethEnd {
        netns: Some(&pod.path()),
        ..VethEnd::new("eth0")
    };
    node_net.add_veth(VethEnd::new("dp1"), far).unwrap();
    let held = Netlink::open_in(&pod.path()).unwrap();
    let clone = held.clone();
    drop(pod);
    drop(held);
    // The clone still holds it: its end of the pair is alive, and so is ours.
    thread::sleep(Duration::from_millis(200));
    assert!(clone.link("eth0").unwrap().is_some());
    assert!(node_net.link("dp1").unwrap().is_some());
    drop(clone);
    eventually("the kernel takes down the pair with the namespace", || {
        node_net.link("dp1").unwrap().is_none()
    });
}
