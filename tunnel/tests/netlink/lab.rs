//! Two namespaces with a cable between them, and what the tests ask of them.

use std::{
    error::Error,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use datapath_tunnel::netlink::{Link, Netlink, NetlinkError, Route, VethEnd};
use ipnet::IpNet;
use nix::errno::Errno;

use crate::namespace::Namespace;

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn errno<T: std::fmt::Debug>(outcome: Result<T, NetlinkError>) -> Errno {
    Errno::from_raw(outcome.unwrap_err().errno().expect("an error number"))
}

pub(crate) fn chain(error: &NetlinkError) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// A node and a pod, joined by a veth pair that is up at both ends and has no address.
pub(crate) struct Pair {
    pub(crate) node: Namespace,
    pub(crate) pod: Namespace,
    pub(crate) node_net: Netlink,
    pub(crate) pod_net: Netlink,
    pub(crate) near: Link,
    pub(crate) far: Link,
}

pub(crate) const NEAR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(crate) const FAR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

impl Pair {
    pub(crate) fn new() -> Self {
        let (node, pod) = (Namespace::new(), Namespace::new());
        let (node_net, pod_net) = (node.netlink(), pod.netlink());
        let near = VethEnd {
            mac: Some(NEAR_MAC),
            mtu_bytes: Some(1400),
            ..VethEnd::new("dp1")
        };
        let far = VethEnd {
            mac: Some(FAR_MAC),
            netns: Some(&pod.path()),
            ..VethEnd::new("eth0")
        };
        let near = node_net.add_veth(near, far).unwrap();
        let far = pod_net.link("eth0").unwrap().expect("the far end");
        for (netlink, end) in [(&node_net, &near), (&pod_net, &far)] {
            netlink.set_no_addrgen(end.index).unwrap();
            netlink.set_up(end.index, true).unwrap();
        }
        Self {
            node,
            pod,
            node_net,
            pod_net,
            near,
            far,
        }
    }

    /// Host routes both ways, as a container has them.
    pub(crate) fn address(&self, node: &str, pod: &str) {
        for (netlink, link, own, other) in [
            (&self.node_net, &self.near, node, pod),
            (&self.pod_net, &self.far, pod, node),
        ] {
            assert!(
                netlink
                    .add_address(link.index, IpNet::from(ip(own)))
                    .unwrap()
            );
            let route = Route::to(ip(other).into()).dev(link.index).source(ip(own));
            netlink.add_route(&route).unwrap();
        }
    }
}

/// An interface for tests that only need one: a veth pair within one namespace, both ends off.
pub(crate) fn cable(netlink: &Netlink, name: &str) -> Link {
    let far = format!("{name}-far");
    netlink
        .add_veth(VethEnd::new(name), VethEnd::new(&far))
        .unwrap()
}

/// Sends datagrams from one namespace to an echo in the other until one comes back.
///
/// The first may be lost: the kernel joins the group of a new IPv6 address in the background, and
/// asks for a neighbour again only after a second.
pub(crate) fn reaches(from: &Namespace, to: &Namespace, target: &str, patience: Duration) -> bool {
    let target = ip(target);
    let echo = to.run(move || UdpSocket::bind(SocketAddr::new(target, 0)).unwrap());
    let address = echo.local_addr().unwrap();
    let interval = Some(Duration::from_millis(50));
    echo.set_read_timeout(interval).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 64];
            while !done.load(Ordering::Relaxed) {
                if let Ok((len, sender)) = echo.recv_from(&mut buffer) {
                    echo.send_to(&buffer[..len], sender).unwrap();
                }
            }
        });
        let came_back = from.run(move || {
            let any = if target.is_ipv4() {
                "0.0.0.0:0"
            } else {
                "[::]:0"
            };
            let socket = UdpSocket::bind(any).unwrap();
            socket.set_read_timeout(interval).unwrap();
            socket.connect(address).unwrap();
            let deadline = Instant::now() + patience;
            let mut buffer = [0; 64];
            while Instant::now() < deadline {
                // Fails where the last one was answered by "host unreachable".
                let _ = socket.send(b"are you there");
                if matches!(socket.recv(&mut buffer), Ok(len) if &buffer[..len] == b"are you there")
                {
                    return true;
                }
            }
            false
        });
        done.store(true, Ordering::Relaxed);
        came_back
    })
}

/// Long enough for a neighbour to be asked for several times.
pub(crate) const PATIENT: Duration = Duration::from_secs(10);
/// Long enough for a packet that needs nothing but a permanent neighbour.
pub(crate) const BRIEF: Duration = Duration::from_millis(300);

pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "after 10 seconds: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}
