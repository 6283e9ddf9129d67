//! The namespaces of a case, and the datapaths of its nodes.
//!
//! ```text
//!   pods --- node (datapath) --- router --- hosts outside
//!            node (datapath) ------+
//! ```
//!
//! The router has a wire to every node and host, and routes for their addresses and for pods' ranges:
//! any addresses do. Everyone has it as the default gateway, by addresses of the link alone.
//!
//! Programs are loaded once for a set of nodes. Cases whose nodes are alike use them one after the
//! other: the pods and hosts of the one are taken away before those of the next are made.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    panic,
    path::PathBuf,
    thread,
};

use datapath_tunnel::netlink::{Link, Netlink, Route, VethEnd};
use datapath_user::{
    Config, Datapath, EndpointSpec, Events, IdentitySource, PeerSpec, PolicyConfig, RemotePod,
    Tunnel,
    policy::{Document, PolicySettings},
};
use ipnet::IpNet;

use super::layout::{self, NodeLayout};
use crate::{
    error::{Error, Result},
    family::Family,
    netns::{self, Namespace},
    policy::case::{Case, EndpointId, ExternalHost, Pod},
    signals::{self, Teardown},
    topology::{
        LabName, NodePlan, Plan, Remains,
        fabric::{everywhere, set_up_stack},
        files,
        plan::UPLINK,
    },
};

/// Nodes with their datapaths, and the pods and hosts of one case.
#[derive(Debug)]
pub(super) struct Arena {
    // In the order in which they are taken down.
    places: BTreeMap<EndpointId, Place>,
    pods: Vec<(usize, String)>,
    hosts: Vec<u32>,
    nodes: Vec<Running>,
    router: Namespace,
    plan: Plan,
    tunnel: Tunnel,
    settings: PolicySettings,
    _directory: Teardown,
}

/// Where an endpoint is.
#[derive(Debug)]
pub(super) struct Place {
    /// None of a node, and of a pod that has its node's network.
    own: Option<Namespace>,
    /// The node, counted from zero; none of a host outside.
    pub(super) node: Option<usize>,
    pub(super) addresses: Vec<IpAddr>,
}

impl Place {
    /// Whether it is a node, or a pod that has its node's network.
    pub(super) fn is_of_node(&self) -> bool {
        self.own.is_none()
    }
}

#[derive(Debug)]
struct Running {
    layout: NodeLayout,
    namespace: Namespace,
    /// None once it is closed.
    datapath: Option<Datapath>,
}

/// The router's address on every wire (RFC 3927, RFC 4291).
fn next_hop(family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => Ipv4Addr::new(169, 254, 1, 1).into(),
        Family::Ipv6 => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).into(),
    }
}

/// The address that everyone has for the router on their wire: there, IPv6 needs no other.
const NEAR_SIDE: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

impl Arena {
    /// Builds the router and the nodes.
    pub(super) fn build(
        lab: LabName,
        layouts: &[NodeLayout],
        tunnel: Tunnel,
        settings: PolicySettings,
    ) -> Result<Self> {
        netns::check_root()?;
        let node = NodePlan {
            pods: 0,
            ..NodePlan::default()
        };
        let plan = Plan::new(lab).with_nodes(layouts.len(), node);
        plan.check()?;
        let remains = Remains::find(&plan.lab)?;
        if !remains.is_empty() {
            return Err(Error::LabExists {
                lab: plan.lab.to_string(),
                found: remains.to_string(),
            });
        }
        let run_directory = plan.run_directory();
        let ((), directory) =
            signals::guarded(|| files::make(&plan), move || files::remove(&run_directory))?;
        let router = Namespace::create(&plan.fabric_namespace())?;
        set_up_stack(&router, true)?;
        let mut arena = Self {
            places: BTreeMap::new(),
            pods: Vec::new(),
            hosts: Vec::new(),
            nodes: Vec::new(),
            router,
            plan,
            tunnel,
            settings,
            _directory: directory,
        };
        let wired: Vec<_> = (1_u8..)
            .zip(layouts)
            .map(|(number, layout)| arena.add_node(number, layout))
            .collect::<Result<_>>()?;
        // The verifier takes seconds for each node, and they do not wait for each other.
        let opened = thread::scope(|scope| {
            let opening: Vec<_> = wired
                .into_iter()
                .map(|(node, config)| scope.spawn(|| node.open(config)))
                .collect();
            let join = |thread: thread::ScopedJoinHandle<'_, _>| {
                thread
                    .join()
                    .unwrap_or_else(|payload| panic::resume_unwind(payload))
            };
            opening.into_iter().map(join).collect::<Vec<_>>()
        });
        arena.nodes = opened.into_iter().collect::<Result<_>>()?;
        Ok(arena)
    }

    /// Whether its nodes are those of a case, and the case's addresses lie where they should.
    pub(super) fn fits(&self, case: &Case) -> bool {
        let layouts: Vec<_> = self.nodes.iter().map(|node| &node.layout).collect();
        layout::fit(&layouts, case)
    }

    /// Puts a case's pods and hosts in the place of those that are there.
    pub(super) fn populate(&mut self, case: &Case) -> Result<()> {
        self.clear()?;
        for (index, node) in case.nodes.iter().enumerate() {
            let place = Place {
                own: None,
                node: Some(index),
                addresses: node.addresses.clone(),
            };
            self.places.insert(node.id(), place);
        }
        for (number, host) in (1..).zip(&case.hosts) {
            self.add_host(number, host)?;
        }
        for (number, pod) in (1_u32..).zip(&case.pods) {
            self.add_pod(number, pod, case)?;
        }
        self.introduce(case)
    }

    /// Has all nodes follow these policies, and no others.
    pub(super) fn enforce(&self, documents: &[Document]) -> Result<()> {
        for node in &self.nodes {
            // An API server would keep the refused ones to itself.
            node.inside(|datapath| datapath.set_policies(documents.to_vec(), Vec::new()))?;
        }
        Ok(())
    }

    /// Where an endpoint is.
    pub(super) fn place(&self, id: &EndpointId) -> Option<&Place> {
        self.places.get(id)
    }

    /// The namespace that packets of a place come from and go to.
    pub(super) fn namespace<'a>(&'a self, place: &'a Place) -> Result<&'a Namespace> {
        let of_node = || self.nodes.get(place.node?).map(|node| &node.namespace);
        let found = place.own.as_ref().or_else(of_node);
        found.ok_or_else(|| Error::Invalid {
            what: "node",
            value: format!("{:?}", place.node),
            rule: "must be one of the case",
        })
    }

    /// Readers of the events of all nodes.
    pub(super) fn events(&self) -> Result<Vec<(String, Events)>> {
        let nodes = self.nodes.iter();
        nodes
            .map(|node| {
                let events = node.inside(Datapath::events)?;
                Ok((node.layout.name.clone(), events))
            })
            .collect()
    }

    /// Takes the pods and hosts of the last case away.
    fn clear(&mut self) -> Result<()> {
        for node in &self.nodes {
            for peer in node.inside(|datapath| Ok(datapath.peers()))? {
                node.inside(|datapath| datapath.remove_peer(&peer.name))?;
            }
        }
        for (node, id) in std::mem::take(&mut self.pods) {
            self.node(node)?
                .inside(|datapath| datapath.remove_endpoint(&id))?;
        }
        let router = self.router.netlink()?;
        for index in std::mem::take(&mut self.hosts) {
            self.router.netlink_result(router.delete_link(index))?;
        }
        let mut failures = Vec::new();
        for place in std::mem::take(&mut self.places).into_values() {
            failures.extend(place.own.and_then(|own| own.delete().err()));
        }
        Error::collect(failures)
    }

    fn node(&self, index: usize) -> Result<&Running> {
        self.nodes.get(index).ok_or_else(|| Error::Invalid {
            what: "node",
            value: index.to_string(),
            rule: "must be one of the case",
        })
    }

    /// Makes a node's namespace, for its datapath to be opened in.
    fn add_node(&self, number: u8, layout: &NodeLayout) -> Result<(Running, Config)> {
        let namespace = Namespace::create(&self.plan.node_namespace(number))?;
        set_up_stack(&namespace, false)?;
        let port = self.wire(&format!("n{number}"), &namespace, &layout.addresses)?;
        for &cidr in &layout.pod_cidrs {
            self.route(cidr, layout.address(Family::of(cidr.addr())), &port)?;
        }
        let bpffs: PathBuf = files::node_bpffs(&self.plan, number);
        let config = Config {
            gateways: layout.gateways.clone(),
            pod_cidrs: layout.pod_cidrs.clone(),
            underlay: tunnel_end(layout).into_iter().collect(),
            tunnel: self.tunnel,
            max_flows: Some(8192),
            max_pending: Some(8192),
            // Every drop is evidence.
            events_per_s: 100_000,
            event_ring_bytes: 1 << 22,
            policy: PolicyConfig {
                mode: self.settings.mode,
                cidr_match: self.settings.cidr_match,
                own_node: self.settings.own_node,
                host_to_local: self.settings.host_to_local,
                host_firewall: true,
                node_labels: layout.labels.clone(),
                // The same numbers on all nodes.
                identities: IdentitySource::Cluster,
                ..PolicyConfig::default()
            },
            ..Config::new(bpffs, [UPLINK])
        };
        let node = Running {
            layout: layout.clone(),
            namespace,
            datapath: None,
        };
        Ok((node, config))
    }

    fn add_host(&mut self, number: u32, host: &ExternalHost) -> Result<()> {
        // To whoever takes down what was left, it is a pod of a node that there never is.
        let name = format!("{}-n0p{number}", self.plan.lab);
        let namespace = Namespace::create(&name)?;
        set_up_stack(&namespace, false)?;
        let port = self.wire(&format!("ext{number}"), &namespace, &host.addresses)?;
        self.hosts.push(port.index);
        let place = Place {
            own: Some(namespace),
            node: None,
            addresses: host.addresses.clone(),
        };
        self.places.insert(host.id(), place);
        Ok(())
    }

    fn add_pod(&mut self, number: u32, pod: &Pod, case: &Case) -> Result<()> {
        let node = case.nodes.iter().position(|node| node.name == pod.node);
        let node = node.unwrap_or_default();
        let running = self.node(node)?;
        if pod.host_network {
            let place = Place {
                own: None,
                node: Some(node),
                addresses: running.layout.addresses.clone(),
            };
            self.places.insert(pod.id(), place);
            return Ok(());
        }
        let name = format!("{}-n{}p{number}", self.plan.lab, node + 1);
        let namespace = Namespace::create(&name)?;
        set_up_stack(&namespace, false)?;
        let spec = EndpointSpec {
            id: format!("p{number}"),
            netns: namespace.path().to_owned(),
            interface: UPLINK.to_owned(),
            addresses: pod.addresses.clone(),
            identity: None,
            namespace: Some(pod.namespace.clone()),
            name: Some(pod.name.clone()),
            labels: pod.labels.clone(),
            namespace_labels: namespace_labels(case, pod),
            service_account: Some(pod.service_account.clone()),
            ports: pod.ports.clone(),
        };
        running.inside(|datapath| datapath.add_endpoint(&spec))?;
        self.pods.push((node, spec.id));
        let place = Place {
            own: Some(namespace),
            node: Some(node),
            addresses: pod.addresses.clone(),
        };
        self.places.insert(pod.id(), place);
        Ok(())
    }

    /// Tells every node of the others and their pods.
    fn introduce(&self, case: &Case) -> Result<()> {
        for node in &self.nodes {
            for other in &self.nodes {
                if other.layout.name == node.layout.name {
                    continue;
                }
                let Some(address) = tunnel_end(&other.layout) else {
                    continue;
                };
                let is_there = |pod: &&Pod| pod.node == other.layout.name && !pod.host_network;
                let pods = case.pods.iter().filter(is_there).flat_map(|pod| {
                    let addresses = pod.addresses.iter();
                    addresses.map(move |&address| RemotePod {
                        namespace: Some(pod.namespace.clone()),
                        name: Some(pod.name.clone()),
                        labels: pod.labels.clone(),
                        namespace_labels: namespace_labels(case, pod),
                        service_account: Some(pod.service_account.clone()),
                        ports: pod.ports.clone(),
                        ..RemotePod::new(address, None)
                    })
                });
                let spec = PeerSpec {
                    name: other.layout.name.clone(),
                    address,
                    node_addresses: [&other.layout.addresses[..], &other.layout.gateways].concat(),
                    pod_cidrs: other.layout.pod_cidrs.clone(),
                    pods: pods.collect(),
                    uplink: None,
                    labels: other.layout.labels.clone(),
                };
                node.inside(|datapath| datapath.upsert_peer(&spec))?;
            }
        }
        Ok(())
    }

    /// Joins a namespace to the router, with its addresses and routes at both ends; returns the
    /// router's end.
    fn wire(&self, name: &str, host: &Namespace, addresses: &[IpAddr]) -> Result<Link> {
        let router = self.router.netlink()?;
        let far = VethEnd {
            netns: Some(host.path()),
            ..VethEnd::new(UPLINK)
        };
        let port = self
            .router
            .netlink_result(router.add_veth(VethEnd::new(name), far))?;
        let netlink = host.netlink()?;
        let uplink = host.link_of(&netlink, UPLINK)?;
        self.router.netlink_result(address_router(&router, &port))?;
        host.netlink_result(address_host(&netlink, &uplink, addresses))?;
        for &address in addresses {
            self.route(address.into(), Some(address), &port)?;
        }
        Ok(port)
    }

    /// Has the router send what is for a prefix by a wire.
    fn route(&self, prefix: IpNet, gateway: Option<IpAddr>, port: &Link) -> Result<()> {
        let router = self.router.netlink()?;
        let route = Route::to(prefix).dev(port.index);
        let route = match (prefix, gateway) {
            (IpNet::V6(_), _) => route.via(NEAR_SIDE.into()),
            (_, Some(gateway)) if IpNet::from(gateway) != prefix => route.via(gateway).on_link(),
            _ => route,
        };
        self.router.netlink_result(router.replace_route(&route))
    }
}

/// Labels of the namespace that a pod is in; none if the file does not describe it.
fn namespace_labels(case: &Case, pod: &Pod) -> BTreeMap<String, String> {
    let namespace = case.namespaces.get(&pod.namespace);
    namespace.map(|it| it.labels.clone()).unwrap_or_default()
}

/// The address that other nodes reach it by.
fn tunnel_end(node: &NodeLayout) -> Option<IpAddr> {
    node.addresses.first().copied()
}

fn address_router(
    router: &Netlink,
    port: &Link,
) -> std::result::Result<(), datapath_tunnel::netlink::NetlinkError> {
    router.set_up(port.index, true)?;
    for family in Family::ALL {
        let length = if family == Family::Ipv4 { 32 } else { 64 };
        router.add_address(port.index, with_length(next_hop(family), length))?;
    }
    Ok(())
}

fn address_host(
    netlink: &Netlink,
    uplink: &Link,
    addresses: &[IpAddr],
) -> std::result::Result<(), datapath_tunnel::netlink::NetlinkError> {
    netlink.set_up(uplink.index, true)?;
    for &address in addresses {
        netlink.add_address(uplink.index, address.into())?;
    }
    netlink.add_address(uplink.index, with_length(NEAR_SIDE.into(), 64))?;
    for family in Family::ALL {
        let mut own = addresses.iter().copied();
        let own = own.find(|&address| Family::of(address) == family);
        let Some(own) = own else { continue };
        let route = Route::to(everywhere(family))
            .via(next_hop(family))
            .dev(uplink.index)
            .source(own)
            .on_link();
        netlink.add_route(&route)?;
    }
    Ok(())
}

fn with_length(address: IpAddr, length: u8) -> IpNet {
    IpNet::new(address, length).unwrap_or_else(|_| address.into())
}

impl Running {
    /// Loads the node's datapath.
    fn open(mut self, config: Config) -> Result<Self> {
        let opened = self.namespace.run(|| Datapath::open(config))?;
        self.datapath = Some(opened.map_err(failed(&self.layout.name))?);
        Ok(self)
    }

    /// Has the datapath do something inside its namespace.
    fn inside<R: Send>(
        &self,
        work: impl FnOnce(&Datapath) -> std::result::Result<R, datapath_user::Error> + Send,
    ) -> Result<R> {
        let Some(datapath) = &self.datapath else {
            return Err(Error::Invalid {
                what: "datapath of",
                value: self.layout.name.clone(),
                rule: "it has been closed",
            });
        };
        self.namespace
            .run(|| work(datapath))?
            .map_err(failed(&self.layout.name))
    }

    fn close(&mut self) -> Result<()> {
        let Some(datapath) = self.datapath.take() else {
            return Ok(());
        };
        self.namespace
            .run(|| datapath.close())?
            .map_err(failed(&self.layout.name))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!(error = error.chain(), "close a datapath");
        }
    }
}

fn failed(node: &str) -> impl FnOnce(datapath_user::Error) -> Error {
    let node = node.to_owned();
    move |source| Error::View {
        node,
        source: Box::new(source),
    }
}
