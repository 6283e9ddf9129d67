//! Every way into and out of a pod, and of a node, asks the policy of the end that is on this node:
//! a row for each, by real connections over TCP and UDP in both families.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "it is all tests"
)]

mod util;

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use datapath_conformance::{
    Result,
    family::Family,
    netns::Namespace,
    paths::{self, InProcess, NodeView as _, pod_address},
    probe::{self, EchoServer, Options},
    topology::{Fabric, Node, NodePlan, Plan, plan},
};
use datapath_kern::verdict::DropReason;
use datapath_tunnel::netlink::Route;
use datapath_user::{
    EndpointSpec, Tunnel,
    policy::{HostToLocal, OwnNode, document},
};
use util::{OrPanic as _, lab_name, patient, tool::nft};

/// The port that the rules allow, and one that they do not.
const ALLOWED: u16 = 80;
const DENIED: u16 = 81;
/// From this on the first node leads its ports to those of its first pod.
const NODE_PORTS: u16 = 8000;

/// Who asks or is asked.
#[derive(Clone, Copy, Debug)]
enum End {
    /// A pod; both numbers are counted from 1.
    Pod(u8, u8),
    Host(u8),
    /// A port of the first node that leads to its first pod.
    NodePort,
    Outside,
}
use End::{Host, NodePort, Outside, Pod};

/// Whose policy it is, and about which direction.
#[derive(Clone, Copy, Debug)]
enum Guard {
    Ingress(End),
    Egress(End),
}
use Guard::{Egress, Ingress};

/// What it is called, who asks whom, and who is guarded.
type Way = (&'static str, End, End, Guard);

/// What there is however packets go between nodes.
#[rustfmt::skip]
const WAYS: [Way; 19] = [
    ("out of a pod, to one beside it", Pod(1, 2), Pod(1, 1), Egress(Pod(1, 2))),
    ("into a pod, from one beside it", Pod(1, 2), Pod(1, 1), Ingress(Pod(1, 1))),
    ("out of a pod, to one of another node", Pod(1, 2), Pod(2, 1), Egress(Pod(1, 2))),
    ("into a pod, from one of another node", Pod(2, 1), Pod(1, 1), Ingress(Pod(1, 1))),
    ("out of a pod, to its node", Pod(1, 1), Host(1), Egress(Pod(1, 1))),
    ("into a pod, from its node", Host(1), Pod(1, 1), Ingress(Pod(1, 1))),
    ("out of a pod, to another node", Pod(1, 1), Host(2), Egress(Pod(1, 1))),
    ("into a pod, from another node", Host(2), Pod(1, 1), Ingress(Pod(1, 1))),
    ("out of a pod, to outside", Pod(1, 1), Outside, Egress(Pod(1, 1))),
    ("into a pod, from outside, by a port of its node", Outside, NodePort, Ingress(Pod(1, 1))),
    ("into a pod, from one beside it, by a port of its node", Pod(1, 2), NodePort, Ingress(Pod(1, 1))),
    ("out of a pod, to a port of its node", Pod(1, 2), NodePort, Egress(Pod(1, 2))),
    ("into a node, from outside", Outside, Host(1), Ingress(Host(1))),
    ("into a node, from another one", Host(2), Host(1), Ingress(Host(1))),
    ("into a node, from its pod", Pod(1, 1), Host(1), Ingress(Host(1))),
    ("into a node, from a pod of another one", Pod(2, 1), Host(1), Ingress(Host(1))),
    ("out of a node, to outside", Host(1), Outside, Egress(Host(1))),
    ("out of a node, to another one", Host(1), Host(2), Egress(Host(1))),
    ("out of a node, to its pod", Host(1), Pod(1, 1), Egress(Host(1))),
];

/// Without a tunnel pods are known outside by their own addresses.
const NATIVE: Way = (
    "into a pod, from outside",
    Outside,
    Pod(1, 1),
    Ingress(Pod(1, 1)),
);

#[test]
fn every_way_is_judged_with_a_tunnel() {
    let lab = Lab::start("ways", Tunnel::Direct);
    lab.judge(&WAYS);
}

#[test]
fn every_way_is_judged_without_a_tunnel() {
    let lab = Lab::start("ways-native", Tunnel::Native);
    lab.judge(&WAYS);
    lab.judge(&[NATIVE]);
}

/// Two nodes of two pods and an outside host, with servers on all of them.
struct Lab {
    // In the order in which they go.
    _servers: Vec<EchoServer>,
    datapaths: InProcess,
    fabric: Fabric,
}

impl Lab {
    fn start(what: &str, tunnel: Tunnel) -> Self {
        let node = NodePlan {
            forwards: true,
            ..NodePlan::default()
        };
        let fabric = Fabric::build(Plan::new(lab_name(what)).with_nodes(2, node)).or_panic();
        let datapaths = InProcess::with(&fabric, Family::Ipv4, |config| {
            config.tunnel = tunnel;
            config.policy.own_node = OwnNode::Policy;
            config.policy.host_to_local = HostToLocal::Policy;
            config.policy.host_firewall = true;
        });
        let datapaths = datapaths.or_panic();
        let pods = fabric.nodes().iter().flat_map(Node::pods);
        let nodes = fabric.nodes().iter().map(Node::namespace);
        let ports = [ALLOWED, DENIED];
        let servers = pods
            .chain(nodes)
            .chain([fabric.outside()])
            .map(|host| EchoServer::start(host, &ports, &ports))
            .collect::<Result<_>>()
            .or_panic();
        let lab = Self {
            _servers: servers,
            datapaths,
            fabric,
        };
        for (node, pod) in [(1, 1), (1, 2), (2, 1), (2, 2)] {
            lab.name_pod(node, pod);
        }
        lab.lead_to_the_pod();
        if tunnel == Tunnel::Native {
            lab.route_pods();
        }
        lab
    }

    /// Gives a pod labels, on its node.
    fn name_pod(&self, node: u8, pod: u8) {
        let name = format!("n{node}p{pod}");
        let spec = EndpointSpec {
            identity: Some(paths::pod_identity(node, pod)),
            namespace: Some("default".to_owned()),
            labels: [("name".to_owned(), name.clone())].into(),
            name: Some(name.clone()),
            ..EndpointSpec::default()
        };
        let index = usize::from(node) - 1;
        let named = self
            .datapaths
            .inside(index, |datapath| datapath.set_endpoint_labels(&name, &spec));
        named.or_panic();
    }

    /// Has the first node's stack lead ports of its own to the first pod.
    fn lead_to_the_pod(&self) {
        let mut rules = String::new();
        for family in Family::ALL {
            let ip = match family {
                Family::Ipv4 => "ip",
                Family::Ipv6 => "ip6",
            };
            for port in [ALLOWED, DENIED] {
                let from = self.address(NodePort, family, port);
                let to = self.address(Pod(1, 1), family, port);
                let (node, port) = (from.ip(), from.port());
                let _ = writeln!(
                    rules,
                    "{ip} daddr {node} meta l4proto {{ tcp, udp }} th dport {port} dnat {ip} to {to}"
                );
            }
        }
        let chain = "type nat hook prerouting priority dstnat";
        let table = format!("table inet ways {{ chain prerouting {{ {chain}; {rules} }}\n }}");
        nft(self.namespace(Host(1)), &table);
    }

    /// Has the underlay route what is for pods to their nodes.
    fn route_pods(&self) {
        let router = self.fabric.router().netlink().or_panic();
        for node in self.fabric.nodes() {
            for family in Family::ALL {
                let pods = Route::to(plan::pod_cidr(node.number(), family));
                let route = pods.via(node.address(family));
                router.add_route(&route).unwrap();
            }
        }
    }

    /// Opens all ways, and closes one after the other.
    fn judge(&self, ways: &[Way]) {
        for &(what, from, to, _) in ways {
            for family in Family::ALL {
                for port in [ALLOWED, DENIED] {
                    let said = format!("{what}, {family}, {port}, without policy");
                    self.reach(from, to, family, port, &said);
                }
            }
        }
        for &(what, from, to, guard) in ways {
            let (Ingress(guarded) | Egress(guarded)) = guard;
            let index = usize::from(match guarded {
                Pod(node, _) | Host(node) => node - 1,
                NodePort | Outside => panic!("{guarded:?} has no policy"),
            });
            self.enforce(index, &document(guard));
            for family in Family::ALL {
                let said = format!("{what}, {family}");
                self.reach(from, to, family, ALLOWED, &said);
                self.miss(index, (from, to), family, &said);
            }
            self.enforce(index, "");
        }
    }

    /// Puts these documents in force on a node, counted from 0, in the place of all.
    fn enforce(&self, index: usize, text: &str) {
        let reading = document::read(text, None);
        assert!(reading.refused.is_empty(), "{:?}", reading.refused);
        let set = self.datapaths.inside(index, |datapath| {
            datapath.set_policies(reading.documents, Vec::new())
        });
        set.or_panic();
    }

    /// Makes sure that both protocols get through, and are answered.
    #[track_caller]
    fn reach(&self, from: End, to: End, family: Family, port: u16, said: &str) {
        let (from, to) = (self.namespace(from), self.address(to, family, port));
        let tcp = probe::tcp_echo(from, to, 10_000, &patient());
        tcp.unwrap_or_else(|error| panic!("{said}, TCP to {to}: {error}"));
        let udp = probe::udp_echo(from, to, &[1, 1000], &patient());
        udp.unwrap_or_else(|error| panic!("{said}, UDP to {to}: {error}"));
    }

    /// Makes sure that neither gets through to the other port, because of policy on this node.
    #[track_caller]
    fn miss(&self, index: usize, (from, to): (End, End), family: Family, said: &str) {
        // Short, as silence is not what shows it: the count is.
        let impatient = Options::default().with_timeout(Duration::from_millis(100));
        let (from, to) = (self.namespace(from), self.address(to, family, DENIED));
        let before = self.denied(index);
        let tcp = probe::tcp_echo(from, to, 1, &impatient);
        assert!(tcp.is_err(), "{said}: TCP is let through");
        let between = self.denied(index);
        assert!(between > before, "{said}: no SYN was denied: {tcp:?}");
        let udp = probe::udp_echo(from, to, &[1], &impatient);
        assert!(udp.is_err(), "{said}: UDP is let through");
        let after = self.denied(index);
        assert!(after > between, "{said}: no datagram was denied: {udp:?}");
    }

    /// Packets that a node has dropped because no rule allows them.
    fn denied(&self, index: usize) -> u64 {
        let drops = self.datapaths.drops(index).or_panic();
        let of = |reason: DropReason| drops.get(reason.label()).copied();
        of(DropReason::PolicyDenied).unwrap_or(0)
    }

    fn namespace(&self, end: End) -> &Namespace {
        let node = |number| self.fabric.node(number).or_panic();
        match end {
            Pod(on, pod) => &node(on).pods()[usize::from(pod) - 1],
            Host(number) => node(number).namespace(),
            NodePort => node(1).namespace(),
            Outside => self.fabric.outside(),
        }
    }

    /// Where a port of an end is asked for.
    fn address(&self, end: End, family: Family, port: u16) -> SocketAddr {
        let node = |number| self.fabric.node(number).or_panic().address(family);
        let (address, port): (IpAddr, _) = match end {
            Pod(node, pod) => (pod_address(node, pod, family), port),
            Host(number) => (node(number), port),
            NodePort => (node(1), NODE_PORTS + port),
            Outside => (plan::outside_address(family), port),
        };
        SocketAddr::new(address, port)
    }
}

/// Lets a pod or a node have to do with everyone in a direction, but only by one port, and the
/// node's port that leads there.
fn document(guard: Guard) -> String {
    let (direction, entities, guarded) = match guard {
        Ingress(end) => ("ingress", "fromEntities", end),
        Egress(end) => ("egress", "toEntities", end),
    };
    let selector = match guarded {
        Pod(node, pod) => format!("endpointSelector: {{matchLabels: {{name: n{node}p{pod}}}}}"),
        _ => "nodeSelector: {}".to_owned(),
    };
    let node_port = NODE_PORTS + ALLOWED;
    format!(
        "apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {{name: guard}}
spec:
  {selector}
  {direction}:
    - {entities}: [all]
      toPorts: [{{ports: [{{port: '{ALLOWED}'}}, {{port: '{node_port}'}}]}}]
"
    )
}
