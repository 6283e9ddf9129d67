//! What the lab's own tests share.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "every test program has its own copy and uses part of it; it is all tests"
)]

pub mod cases;
pub mod tool;

use std::{
    fmt::Display,
    net::{IpAddr, SocketAddr},
    process,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use datapath_conformance::{
    family::Family,
    frame::forge::Place,
    netns::Namespace,
    probe::{Options, RawPort},
    topology::{Fabric, LabName, NodePlan, Plan, plan::UPLINK},
};

/// Unwraps with the whole chain of causes in the panic.
pub trait OrPanic<T> {
    fn or_panic(self) -> T;
}

impl<T> OrPanic<T> for datapath_conformance::Result<T> {
    #[track_caller]
    fn or_panic(self) -> T {
        self.unwrap_or_else(|error| panic!("{}", error.chain()))
    }
}

/// A name that no other test, of this process or another, has at the same time.
pub fn unique(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("dpt{}-{number}-{what}", process::id())
}

pub fn lab_name(what: &str) -> LabName {
    unique(what).parse().unwrap()
}

/// A lab of this many nodes, without pods.
pub fn plan(what: &str, nodes: usize) -> Plan {
    let node = NodePlan {
        pods: 0,
        ..NodePlan::default()
    };
    Plan::new(lab_name(what)).with_nodes(nodes, node)
}

pub fn fabric(what: &str, nodes: usize) -> Fabric {
    Fabric::build(plan(what, nodes)).or_panic()
}

/// Patient enough for a loaded machine: what should come comes much sooner.
pub fn patient() -> Options {
    Options::default().with_timeout(Duration::from_secs(10))
}

/// For what should not come.
pub fn impatient() -> Options {
    Options::default().with_timeout(Duration::from_millis(300))
}

pub fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

/// Both ends of what a pod sends by its gateway.
pub fn way_out(pod: &Namespace, port: &RawPort, from: SocketAddr, to: SocketAddr) -> [Place; 2] {
    let end = |mac, address| Place { mac, address };
    [end(port.mac(), from), end(gateway_mac(pod), to)]
}

/// The Ethernet address that a pod sends to.
pub fn gateway_mac(pod: &Namespace) -> [u8; 6] {
    let index = pod.link(UPLINK).or_panic().index;
    let neighbours = pod.netlink().or_panic().neighbours().unwrap();
    let mut known = neighbours.into_iter().filter(|entry| entry.index == index);
    known.find_map(|entry| entry.mac).unwrap()
}

/// Runs a check for both families and says which one a failure was about.
#[track_caller]
pub fn both_families<E: Display>(mut check: impl FnMut(Family) -> Result<(), E>) {
    for family in Family::ALL {
        if let Err(error) = check(family) {
            panic!("{family}: {error}");
        }
    }
}
