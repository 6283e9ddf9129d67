//! All that goes on while the agent is killed.

use std::net::IpAddr;

use datapath_conformance::{family::Family, topology::plan};

use crate::{
    flows::{Flows, Route},
    forger::{Forger, Forgeries},
    pods::Pod,
    storm::Storm,
    watch::{Rule, Watch},
};

/// Connections of each route and family that last until the end: 50 in all.
const STREAMS: usize = 5;

/// Flows that must not break, and forged packets that must not arrive.
pub(crate) struct Traffic {
    streams: Flows,
    datagrams: Flows,
    connections: Flows,
    forgers: Vec<Forger>,
    watches: Vec<Watch>,
}

impl Traffic {
    pub(crate) fn start(storm: &Storm) -> Self {
        let mut watches = vec![Watch::start(&storm.outside, Rule::NoPods(pod_ranges()))];
        watches.push(Watch::start(&storm.fabric, Rule::NoPods(pod_ranges())));
        for name in ["n1p1", "n1p2", "n2p1", "n2p2"] {
            let own = storm.addresses(name).to_vec();
            watches.push(Watch::start(storm.namespace(name), Rule::OnlyFor(own)));
        }
        for pod in storm.pods.all() {
            let own = pod.spec().addresses.clone();
            let rule = Rule::OnlyForNumber(own, pod.number());
            watches.push(Watch::start(pod.namespace(), rule));
        }

        let mut streams = Flows::new("streams");
        let mut datagrams = Flows::new("datagrams");
        let mut connections = Flows::new("connections");
        for family in Family::ALL {
            for route in routes(storm, family) {
                for _ in 0..STREAMS {
                    streams.stream(route);
                }
                datagrams.datagrams(route);
                connections.connections(route);
            }
        }
        assert_eq!(streams.len(), 50);

        let forgeries = forgeries(storm);
        let forging = storm.pods.all().map(Pod::namespace);
        let forging = forging.chain([storm.namespace("n1p1")]);
        let forgers = forging.map(|pod| Forger::start(pod, &forgeries)).collect();
        Self {
            streams,
            datagrams,
            connections,
            forgers,
            watches,
        }
    }

    /// Whether a flow has ended, which is a failure.
    pub(crate) fn broken(&self) -> bool {
        [&self.streams, &self.datagrams, &self.connections]
            .into_iter()
            .any(Flows::broken)
    }

    /// Ends it in order, and fails with what was lost or should not have arrived.
    pub(crate) fn end(self) {
        self.streams.end();
        self.connections.end();
        assert_eq!(self.datagrams.end().lost, 0, "datagrams");
        let sent: Vec<_> = self.forgers.into_iter().map(Forger::end).collect();
        println!("forged packets: {sent:?}");
        // Not every pod that comes and goes has been there in a short run.
        let (stays, comes_and_goes) = sent.split_last().unwrap();
        assert!(*stays > 0 && comes_and_goes.iter().any(|&sent| sent > 0));
        for watch in self.watches {
            watch.end();
        }
    }
}

/// The ways that packets go: to a pod of another node and from one, to the outside, to a pod of the
/// same node, and from the node itself.
fn routes(storm: &Storm, family: Family) -> [Route<'_>; 5] {
    let to = |name, from, to: &str| Route {
        name,
        from,
        to: storm.namespace(to),
        address: of_family(storm.addresses(to), family),
    };
    let first = storm.namespace("n1p1");
    [
        to("to a remote pod", first, "n2p1"),
        to("from a remote pod", storm.namespace("n2p2"), "n1p2"),
        Route {
            name: "to the outside",
            from: first,
            to: &storm.outside,
            address: plan::outside_address(family),
        },
        to("to a neighbour", first, "n1p2"),
        to("from the node", &storm.node, "n1p1"),
    ]
}

fn forgeries(storm: &Storm) -> Forgeries {
    let pods = ["n1p2", "n2p2"].map(|name| storm.addresses(name).to_vec());
    let strangers = ["203.0.113.7", "2001:db8:bad::7"].map(|text| text.parse().unwrap());
    let to = ["n1p2", "n2p1"].map(|name| storm.addresses(name).to_vec());
    let outside = Family::ALL.map(plan::outside_address);
    Forgeries {
        gateway_mac: storm.gateway_mac(),
        sources: pods.concat().into_iter().chain(strangers).collect(),
        destinations: to.concat().into_iter().chain(outside).collect(),
    }
}

fn pod_ranges() -> Vec<ipnet::IpNet> {
    ["10.244.0.0/16", "fd00:10:244::/48"]
        .map(|text| text.parse().unwrap())
        .to_vec()
}

/// The address of a pod in a family.
pub(crate) fn of_family(addresses: &[IpAddr], family: Family) -> IpAddr {
    let found = addresses
        .iter()
        .find(|&&address| Family::of(address) == family);
    *found.unwrap()
}
