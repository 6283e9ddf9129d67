//! What a case's network looks like: which addresses nodes' pods have, and by which gateways.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use crate::{family::Family, policy::case::Case};

/// A node of a case as its datapath is told of it. Cases whose nodes are alike share them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NodeLayout {
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) pod_cidrs: Vec<IpNet>,
    pub(super) gateways: Vec<IpAddr>,
}

impl NodeLayout {
    /// Its first address of a family.
    pub(super) fn address(&self, family: Family) -> Option<IpAddr> {
        let mut all = self.addresses.iter().copied();
        all.find(|&address| Family::of(address) == family)
    }

    /// Whether its pods may have all addresses of these ranges.
    fn covers(&self, ranges: &[IpNet]) -> bool {
        let mut all = ranges.iter();
        all.all(|range| self.pod_cidrs.iter().any(|cidr| cidr.contains(range)))
    }
}

/// Lays out the nodes of a case, in its order.
///
/// The ranges of a node's pods are those that the file gives if its pods are inside; else a /24 or
/// /64 around them where it holds nobody else; else the single addresses.
pub(super) fn nodes(case: &Case) -> Vec<NodeLayout> {
    let taken = taken(case);
    let all = (1_u8..).zip(&case.nodes);
    all.map(|(number, node)| {
        let mut pod_cidrs = BTreeSet::new();
        let mut gateways = Vec::new();
        for family in Family::ALL {
            let own = |address: &IpAddr| taken.get(address) == Some(&Some(node.name.as_str()));
            let of_family = |address: &&IpAddr| Family::of(**address) == family;
            let pods: Vec<_> = taken
                .keys()
                .filter(of_family)
                .filter(|it| own(it))
                .collect();
            let given: Vec<_> = node
                .pod_cidrs
                .iter()
                .copied()
                .filter(|cidr| Family::of(cidr.addr()) == family)
                .collect();
            let covers = |address: &IpAddr| given.iter().any(|cidr| cidr.contains(address));
            let ranges: BTreeSet<_> = if !given.is_empty() && pods.iter().all(|pod| covers(pod)) {
                given.into_iter().collect()
            } else {
                pods.iter()
                    .map(|&&pod| {
                        let wide = around(pod);
                        let mut inside = taken.keys().filter(|other| wide.contains(*other));
                        if inside.all(own) {
                            wide
                        } else {
                            IpNet::from(pod)
                        }
                    })
                    .collect()
            };
            let free = |address: &IpAddr| !taken.contains_key(address);
            let gateway = ranges
                .iter()
                .find_map(|&range| candidates(range).find(free));
            // Without a range, or without room in one, it has one for itself.
            let gateway = gateway.unwrap_or_else(|| spare_gateway(family, number));
            if !ranges.iter().any(|range| range.contains(&gateway)) {
                pod_cidrs.insert(IpNet::from(gateway));
            }
            pod_cidrs.extend(ranges);
            gateways.push(gateway);
        }
        NodeLayout {
            name: node.name.clone(),
            labels: node.labels.clone(),
            addresses: node.addresses.clone(),
            pod_cidrs: pod_cidrs.into_iter().collect(),
            gateways,
        }
    })
    .collect()
}

/// Whether nodes that are there will do for a case: they are its nodes, its pods are in their ranges,
/// and nobody else is.
pub(super) fn fit(there: &[&NodeLayout], case: &Case) -> bool {
    let same = there.iter().zip(&case.nodes).all(|(layout, node)| {
        (&layout.name, &layout.labels, &layout.addresses)
            == (&node.name, &node.labels, &node.addresses)
            && (node.pod_cidrs.is_empty() || layout.covers(&node.pod_cidrs))
    });
    let home = |address: &IpAddr| {
        let mut all = there.iter();
        all.find(|layout| layout.pod_cidrs.iter().any(|cidr| cidr.contains(address)))
            .map(|layout| layout.name.as_str())
    };
    let is_gateway = |address| there.iter().any(|layout| layout.gateways.contains(address));
    same && there.len() == case.nodes.len()
        && taken(case)
            .iter()
            .all(|(address, node)| home(address) == *node && !is_gateway(address))
}

/// All addresses of a case; those of pods with their node.
fn taken(case: &Case) -> BTreeMap<IpAddr, Option<&str>> {
    let pods = case.pods.iter().filter(|pod| !pod.host_network);
    let of_pods = pods.flat_map(|pod| {
        let addresses = pod.addresses.iter();
        addresses.map(|&address| (address, Some(pod.node.as_str())))
    });
    let of_nodes = case.nodes.iter().flat_map(|node| &node.addresses);
    let others = of_nodes.chain(case.hosts.iter().flat_map(|host| &host.addresses));
    of_pods
        .chain(others.map(|&address| (address, None)))
        .collect()
}

/// The /24 or /64 that an address is in.
fn around(address: IpAddr) -> IpNet {
    let length = if address.is_ipv4() { 24 } else { 64 };
    IpNet::new(address, length).map_or_else(|_| address.into(), |net| net.trunc())
}

/// Addresses of a range that may be a gateway's: the first, else one of the last.
fn candidates(range: IpNet) -> Box<dyn Iterator<Item = IpAddr>> {
    match range {
        IpNet::V4(net) if net.prefix_len() <= 30 => {
            let (first, last) = (net.network().to_bits() + 1, net.broadcast().to_bits() - 1);
            let all = std::iter::once(first).chain((first + 1..=last).rev());
            Box::new(all.map(|bits| Ipv4Addr::from_bits(bits).into()))
        }
        IpNet::V6(net) if net.prefix_len() <= 126 => {
            let (first, last) = (net.network().to_bits() + 1, net.broadcast().to_bits() - 1);
            let all = std::iter::once(first).chain((first + 1..=last).rev().take(1 << 16));
            Box::new(all.map(|bits| Ipv6Addr::from_bits(bits).into()))
        }
        _ => Box::new(std::iter::empty()),
    }
}

/// A gateway outside of all ranges that cases use (RFC 6598, RFC 4193).
fn spare_gateway(family: Family, number: u8) -> IpAddr {
    match family {
        Family::Ipv4 => Ipv4Addr::new(100, 127, 255, number).into(),
        Family::Ipv6 => Ipv6Addr::new(0xfdff, 0xffff, 0xffff, 0, 0, 0, 0, u16::from(number)).into(),
    }
}

#[cfg(test)]
mod tests {
    use std::{fmt::Write, path::Path};

    use super::*;

    fn layout(pods: &str) -> Vec<NodeLayout> {
        nodes(&case(pods))
    }

    fn case(pods: &str) -> Case {
        let mut text = "apiVersion: conformance/v1\nkind: Case\nmetadata: {name: c}\n\
                        spec: {probes: [{protocol: TCP, port: 80}], families: [4, 6]}\n"
            .to_owned();
        for (number, node) in (11..).zip(["n1", "n2"]) {
            let _ = write!(
                text,
                "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {node}}}\n\
                 status: {{addresses: [{{type: InternalIP, address: 192.0.2.{number}}}]}}\n"
            );
        }
        for pod in pods.lines() {
            let [name, node, address] = pod.split(' ').collect::<Vec<_>>()[..] else {
                panic!("{pod}");
            };
            let _ = write!(
                text,
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: x}}\n\
                 spec: {{nodeName: {node}}}\nstatus: {{podIPs: [{{ip: '{address}'}}]}}\n"
            );
        }
        Case::parse(&text, Path::new("c.yaml")).unwrap()
    }

    fn texts<T: ToString>(all: &[T]) -> Vec<String> {
        all.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_node_of_its_own_range_has_it() {
        let both = layout("a n1 10.244.1.1\nb n1 fd00:1::5\nc n2 10.244.2.7");
        assert_eq!(texts(&both[0].pod_cidrs), ["10.244.1.0/24", "fd00:1::/64"]);
        assert_eq!(texts(&both[0].gateways), ["10.244.1.254", "fd00:1::1"]);
        assert_eq!(
            texts(&both[1].pod_cidrs),
            ["10.244.2.0/24", "fdff:ffff:ffff::2/128"]
        );
    }

    #[test]
    fn nodes_are_used_again_by_cases_that_fit_in() {
        let both = nodes(&case("a n1 10.244.1.10\nb n2 10.244.2.10"));
        let there: Vec<_> = both.iter().collect();
        for fitting in ["", "c n1 10.244.1.99", "a n2 10.244.2.77"] {
            assert!(fit(&there, &case(fitting)), "{fitting}");
        }
        // Of another node's range, of none, and a gateway.
        for other in ["a n2 10.244.1.10", "a n1 10.0.0.1", "a n1 10.244.1.1"] {
            assert!(!fit(&there, &case(other)), "{other}");
        }
        assert!(!fit(&there[..1], &case("")));
    }

    #[test]
    fn nodes_that_share_a_range_have_single_addresses() {
        let both = layout("a n1 10.0.0.5\nb n2 10.0.0.6");
        assert_eq!(
            texts(&both[0].pod_cidrs)[..2],
            ["10.0.0.5/32", "100.127.255.1/32"]
        );
        assert_eq!(
            texts(&both[1].pod_cidrs)[..2],
            ["10.0.0.6/32", "100.127.255.2/32"]
        );
        for node in both {
            for gateway in &node.gateways {
                assert!(node.pod_cidrs.iter().any(|cidr| cidr.contains(gateway)));
            }
        }
    }
}
