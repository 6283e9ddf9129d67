//! The node that both sides believe to be: interfaces, routes and neighbours in a network
//! namespace of the kernel's, and a [`Host`] that says the same of them.

use std::net::IpAddr;

use datapath_kern::{
    abi::{config::Config, tunnel::Uplink},
    env::Table,
    host::{Host, Prefix, Way, plan},
    packet::Family,
};
use datapath_tunnel::netlink::{Netlink, Route, RouteKind, VethEnd};

/// This node's number in the plan.
pub(crate) const NODE: u8 = 1;
/// A peer over IPv4 and one over IPv6.
pub(crate) const PEERS: [(u8, Family); 2] = [(2, Family::V4), (3, Family::V6)];
/// Pods of every node.
pub(crate) const PODS: u8 = 4;
/// Both families.
pub(crate) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Prefixes of the underlay, on the uplink's link.
const ON_LINK: [&str; 2] = ["192.0.2.0/24", "2001:db8::/64"];
/// Everything else.
const DEFAULT: [&str; 2] = ["0.0.0.0/0", "::/0"];
/// Prefixes that a blackhole route has.
pub(crate) const NOWHERE: [&str; 2] = ["203.0.113.0/25", "2001:db8:dead::/48"];
/// Prefixes behind an interface that is no uplink.
pub(crate) const AWAY: [&str; 2] = ["198.18.0.0/15", "2001:db8:a::/48"];
/// Prefixes behind a router whose Ethernet address nobody knows.
pub(crate) const UNRESOLVED: [&str; 2] = ["203.0.113.128/25", "2001:db8:77::/48"];
/// That router.
const SILENT_ROUTER: u8 = 77;

/// Interfaces of the node, as the kernel numbered them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Interfaces {
    pub(crate) uplink: u32,
    /// The node's side of the gateway pair, and the far one.
    pub(crate) gateway: u32,
    pub(crate) gateway_far: u32,
    /// Host's sides of the pods' veths, that of pod 1 first.
    pub(crate) pods: [u32; PODS as usize],
    /// One that is none of ours.
    pub(crate) away: u32,
}

impl Interfaces {
    /// Makes them, their routes and neighbours in the calling thread's network namespace.
    pub(crate) fn make() -> Self {
        let netlink = Netlink::open().unwrap();
        let pair = |near: &str, far: &str| {
            let near = netlink
                .add_veth(VethEnd::new(near), VethEnd::new(far))
                .unwrap();
            let far = netlink.link(far).unwrap().unwrap();
            for index in [near.index, far.index] {
                // Addresses of the kernel's own would bring routes that the host does not have.
                netlink.set_no_addrgen(index).unwrap();
                netlink.set_up(index, true).unwrap();
            }
            (near.index, far.index)
        };
        let (uplink, _) = pair("up0", "up1");
        let (gateway, gateway_far) = pair("dp_host", "dp_far");
        for index in [gateway, gateway_far] {
            // Copies of packets that are to be cut go there, of whatever length.
            netlink.set_mtu(index, 9000).unwrap();
        }
        let pods = [1, 2, 3, 4].map(|n| pair(&format!("pod{n}"), &format!("eth{n}")).0);
        let (away, _) = pair("away0", "away1");
        for family in ["ipv4", "ipv6"] {
            let path = format!("/proc/sys/net/{family}/conf/dp_host/forwarding");
            std::fs::write(path, "1").unwrap();
        }
        let made = Self {
            uplink,
            gateway,
            gateway_far,
            pods,
            away,
        };
        made.routes(&netlink);
        made
    }

    fn routes(&self, netlink: &Netlink) {
        let add = |route: &Route| netlink.add_route(route).unwrap();
        for (at, family) in FAMILIES.into_iter().enumerate() {
            let to = |list: [&str; 2]| Route::to(list[at].parse().unwrap());
            let by = |router| plan::node(router, family);
            add(&to(ON_LINK).dev(self.uplink));
            add(&to(DEFAULT).via(by(plan::ROUTER)).dev(self.uplink));
            add(&to(UNRESOLVED).via(by(SILENT_ROUTER)).dev(self.uplink));
            add(&to(AWAY).dev(self.away));
            add(&to(NOWHERE).kind(RouteKind::Blackhole));
            for number in [2, 3, plan::ROUTER] {
                netlink
                    .add_neighbour(self.uplink, by(number), plan::node_mac(number))
                    .unwrap();
            }
        }
    }

    /// The node of the plan, with these interfaces in place of the plan's.
    pub(crate) fn host(&self, settings: impl FnOnce(&mut Config)) -> Host {
        let mut host = Host::node(NODE).unwrap();
        host.config.host_interface = self.gateway;
        host.config.net_interface = self.gateway_far;
        settings(&mut host.config);
        for number in 1..=PODS {
            host.add_pod(NODE, number).unwrap();
        }
        for (peer, underlay) in PEERS {
            host.add_peer(NODE, peer, underlay, PODS).unwrap();
            let index = u32::from(peer);
            host.peers
                .update(&index, |peer| peer.interface = self.uplink);
        }
        for (number, interface) in (1..=u32::from(PODS)).zip(self.pods) {
            host.endpoint_slots.remove(&(plan::POD_INTERFACES + number));
            host.endpoint_slots.set(interface, number).unwrap();
            host.endpoints
                .update(&number, |pod| pod.interface = interface);
            host.next_hops
                .update(&number, |hop| hop.interface = interface);
        }
        let masquerade = host.uplinks.get(&plan::UPLINK).unwrap();
        host.uplinks.remove(&plan::UPLINK);
        host.uplinks
            .set(self.uplink, Uplink { ..masquerade })
            .unwrap();
        self.route(&host);
        host
    }

    /// Has the host's routing table say what the kernel's does.
    fn route(&self, host: &Host) {
        let netlink = Netlink::open().unwrap();
        let mac = netlink.link("up0").unwrap().unwrap().mac;
        let away_mac = netlink.link("away0").unwrap().unwrap().mac;
        let mut routing = host.routing.borrow_mut();
        routing.interface(self.uplink, mac);
        routing.interface(self.away, away_mac);
        let out = |interface, gateway: Option<IpAddr>| Way::Out { interface, gateway };
        let lists = [
            (ON_LINK, None),
            (DEFAULT, Some(plan::ROUTER)),
            (UNRESOLVED, Some(SILENT_ROUTER)),
        ];
        for (at, family) in FAMILIES.into_iter().enumerate() {
            for (list, router) in lists {
                let gateway = router.map(|router| plan::node(router, family));
                routing.route(prefix(list[at]), out(self.uplink, gateway));
            }
            routing.route(prefix(AWAY[at]), out(self.away, None));
            routing.route(prefix(NOWHERE[at]), Way::Nowhere);
            for number in [2, 3, plan::ROUTER] {
                let mac = Some(plan::node_mac(number));
                routing.neighbour(plan::node(number, family), mac);
            }
        }
    }
}

fn prefix(text: &str) -> Prefix {
    let net: ipnet::IpNet = text.parse().unwrap();
    Prefix::new(net.addr(), net.prefix_len().into())
}
