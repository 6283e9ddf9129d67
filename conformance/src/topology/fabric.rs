//! Builds the network of a plan.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    slice, thread,
    time::{Duration, Instant},
};

use datapath_tunnel::netlink::{Link, Netlink, Route, VethEnd};
use ipnet::IpNet;

use super::{
    files,
    node::{Node, pod_names},
    plan::{self, BRIDGE, LabName, Plan, SECOND_BRIDGE, UPLINK},
    processes,
    remains::Remains,
    uplink::UplinkKind,
};
use crate::{
    error::{Error, Result},
    family::Family,
    netns::{self, Namespace},
    patience::scaled,
    probe::{self, Options},
    signals::{self, Teardown},
};

/// How long the network may take until everyone reaches the fabric.
const SETTLE: Duration = Duration::from_secs(5);

/// A lab's network, up and reachable. Dropping it takes it down, also by a panic, and so do the
/// signals that [`signals::cleanup_on_signal`] handles.
///
/// Neighbours are learned, by ARP and neighbour discovery.
#[derive(Debug)]
pub struct Fabric {
    // In the order in which they are taken down.
    processes: Option<Teardown>,
    plan: Plan,
    nodes: Vec<Node>,
    outside: Namespace,
    router: Namespace,
    directory: Option<Teardown>,
}

impl Fabric {
    /// Builds a lab and waits until every host of it reaches the fabric.
    ///
    /// # Errors
    ///
    /// [`Error::NotRoot`], [`Error::Invalid`] for the plan, [`Error::LabExists`], or what the
    /// kernel refused; then nothing is left of it.
    pub fn build(plan: Plan) -> Result<Self> {
        Self::build_with(plan, &[])
    }

    /// Builds a lab on network cards that are in the calling thread's namespace, off: instead of
    /// the first veth pairs, for the nodes and then the outside host. They come back when the lab
    /// is taken down.
    ///
    /// # Errors
    ///
    /// As [`Fabric::build`].
    pub fn build_with(plan: Plan, cables: &[Cable]) -> Result<Self> {
        netns::check_root()?;
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
        let outside = Namespace::create(&plan.outside_namespace())?;
        let nodes = (1_u8..)
            .take(plan.nodes.len())
            .map(|number| Node::create(&plan, number))
            .collect::<Result<_>>()?;
        let mut fabric = Self {
            processes: None,
            plan,
            nodes,
            outside,
            router,
            directory: Some(directory),
        };
        fabric.own_processes();
        fabric.connect(cables)?;
        fabric.settle()?;
        Ok(fabric)
    }

    /// Takes charge of a lab that was [left running](Self::leak): dropping it takes it down.
    ///
    /// # Errors
    ///
    /// [`Error::LabMissing`], [`Error::NamespaceMissing`] when part of it is gone,
    /// [`Error::Unreadable`] when its plan cannot be read.
    pub fn adopt(lab: &LabName) -> Result<Self> {
        netns::check_root()?;
        let plan = files::read_plan(lab)?;
        // All are opened before any is owned: a lab that is only half there stays as it is.
        for name in namespaces(&plan) {
            Namespace::open(&name)?;
        }
        let run_directory = plan.run_directory();
        let directory = signals::on_teardown(move || files::remove(&run_directory));
        let router = Namespace::adopt(&plan.fabric_namespace())?;
        let outside = Namespace::adopt(&plan.outside_namespace())?;
        let nodes = (1_u8..)
            .take(plan.nodes.len())
            .map(|number| Node::adopt(&plan, number))
            .collect::<Result<_>>()?;
        let mut fabric = Self {
            processes: None,
            plan,
            nodes,
            outside,
            router,
            directory: Some(directory),
        };
        fabric.own_processes();
        Ok(fabric)
    }

    /// Leaves the lab running when this process ends, for [`Fabric::adopt`] or
    /// [`Remains::destroy`].
    pub fn leak(mut self) {
        let teardowns = [self.processes.take(), self.directory.take()];
        teardowns.into_iter().flatten().for_each(Teardown::forget);
        for namespace in self.namespaces_mut() {
            namespace.leak();
        }
    }

    /// Takes the lab down: kills what still runs in its namespaces, deletes them and its files.
    ///
    /// # Errors
    ///
    /// What could not be taken down, after trying the rest.
    pub fn destroy(mut self) -> Result<()> {
        let mut failures = Vec::new();
        let processes = self.processes.take();
        failures.extend(processes.and_then(|teardown| teardown.run().err()));
        let directory = self.directory.take();
        let Self {
            nodes,
            outside,
            router,
            ..
        } = self;
        let of_nodes = nodes.into_iter().flat_map(Node::into_namespaces);
        for namespace in of_nodes.chain([outside, router]) {
            failures.extend(namespace.delete().err());
        }
        failures.extend(directory.and_then(|teardown| teardown.run().err()));
        Error::collect(failures)
    }

    /// Returns what it was built from.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Returns the nodes; the first has number 1.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Returns the node with this number, counted from 1.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when the plan has no such node.
    pub fn node(&self, number: u8) -> Result<&Node> {
        usize::from(number)
            .checked_sub(1)
            .and_then(|index| self.nodes.get(index))
            .ok_or_else(|| Error::Invalid {
                what: "node",
                value: number.to_string(),
                rule: "nodes are counted from 1 up to the number in the plan",
            })
    }

    /// Returns the outside host.
    #[must_use]
    pub fn outside(&self) -> &Namespace {
        &self.outside
    }

    /// Returns the fabric's own namespace, with the bridge and the routes to the outside.
    #[must_use]
    pub fn router(&self) -> &Namespace {
        &self.router
    }

    fn namespaces_mut(&mut self) -> impl Iterator<Item = &mut Namespace> {
        let of_nodes = self.nodes.iter_mut().flat_map(Node::namespaces_mut);
        of_nodes.chain([&mut self.outside, &mut self.router])
    }

    /// From now on, what runs in the lab's namespaces ends with it.
    fn own_processes(&mut self) {
        let inodes: BTreeSet<_> = self.namespaces_mut().map(|ns| ns.inode()).collect();
        self.processes = Some(signals::on_teardown(move || {
            processes::end(&inodes).map(|_ended| ())
        }));
    }

    fn connect(&self, cables: &[Cable]) -> Result<()> {
        let mut cables = cables.iter();
        for (namespace, forwards) in self.hosts() {
            set_up_stack(namespace, forwards)?;
        }
        let router = self.router.netlink()?;
        let first = self.add_bridge(&router, BRIDGE, plan::underlay, plan::fabric_address)?;
        let is_two = |node: &Node| node.uplink() == UplinkKind::Two;
        let second = if self.nodes.iter().any(is_two) {
            let (prefix, own) = (plan::second_underlay, plan::second_fabric_address);
            Some(self.add_bridge(&router, SECOND_BRIDGE, prefix, own)?)
        } else {
            None
        };
        for (node, planned) in self.nodes.iter().zip(&self.plan.nodes) {
            let mtu_bytes = planned.mtu_bytes;
            let bridges = (&first, second.as_ref());
            self.connect_node(&router, node, mtu_bytes, bridges, &mut cables)?;
        }
        let near = VethEnd {
            mac: Some([2, 0, 0, 0, 1, 1]),
            mtu_bytes: Some(self.plan.outside_mtu_bytes),
            ..VethEnd::new("ext")
        };
        let far_mac = [2, 0, 0, 0, 1, 10];
        let port = self.add_cable(&router, near, &self.outside, UPLINK, far_mac, cables.next())?;
        self.switch_on(
            &self.router,
            &router,
            &port,
            plan::outside,
            plan::outside_gateway,
        )?;
        self.attach(
            &self.outside,
            UPLINK,
            plan::outside,
            plan::outside_gateway,
            plan::outside_address,
        )
    }

    /// Adds a bridge for nodes, with the fabric's addresses on it.
    fn add_bridge(
        &self,
        router: &Netlink,
        name: &str,
        prefix: fn(Family) -> IpNet,
        address: fn(Family) -> IpAddr,
    ) -> Result<Link> {
        let bridge = self.router.netlink_result(router.add_bridge(name))?;
        // A bridge takes over the lowest address of its ports unless it is given one: the nodes
        // would go on using what they have learned when a port is added later.
        let last = if name == BRIDGE { 1 } else { 2 };
        let fixed = router.set_mac(bridge.index, [2, 0, 0, 0, 0, last]);
        self.router.netlink_result(fixed)?;
        self.switch_on(&self.router, router, &bridge, prefix, address)?;
        Ok(bridge)
    }

    /// Connects a node to the first bridge, and by a second uplink of its own to the second one.
    fn connect_node(
        &self,
        router: &Netlink,
        node: &Node,
        mtu_bytes: u32,
        (first, second): (&Link, Option<&Link>),
        cables: &mut slice::Iter<'_, Cable>,
    ) -> Result<()> {
        let (number, uplink) = (node.number(), node.uplink());
        for (place, (port_name, name)) in (0_u8..).zip(uplink.cables(number)) {
            let near = VethEnd {
                mtu_bytes: Some(mtu_bytes),
                ..VethEnd::new(&port_name)
            };
            let far = [2, 0, 0, 0, 2 * place, number.saturating_add(10)];
            let port = self.add_cable(router, near, node.namespace(), name, far, cables.next())?;
            let port = uplink.dress_port(&self.router, router, port)?;
            let bridge = second.filter(|_| place > 0 && uplink == UplinkKind::Two);
            let joined = router
                .set_master(port.index, Some(bridge.unwrap_or(first).index))
                .and_then(|()| router.set_up(port.index, true));
            self.router.netlink_result(joined)?;
        }
        let netlink = node.namespace().netlink()?;
        uplink.dress_node(node.namespace(), &netlink)?;
        let [interface, others @ ..] = uplink.interfaces() else {
            return Ok(());
        };
        self.attach(
            node.namespace(),
            interface,
            plan::underlay,
            plan::fabric_address,
            |family| plan::node_address(number, family),
        )?;
        for other in others {
            let link = node.namespace().link_of(&netlink, other)?;
            let address = |family| plan::second_node_address(number, family);
            self.switch_on(
                node.namespace(),
                &netlink,
                &link,
                plan::second_underlay,
                address,
            )?;
        }
        Ok(())
    }

    /// Every namespace with an address, and whether it forwards.
    fn hosts(&self) -> impl Iterator<Item = (&Namespace, bool)> {
        let nodes = self.nodes.iter().zip(&self.plan.nodes);
        nodes
            .map(|(node, planned)| (node.namespace(), planned.forwards))
            .chain([(&self.outside, false), (&self.router, true)])
    }

    /// Adds a pair whose far end is an interface of a host; returns the near end.
    fn add_cable(
        &self,
        router: &Netlink,
        near: VethEnd<'_>,
        host: &Namespace,
        name: &str,
        mac: [u8; 6],
        cable: Option<&Cable>,
    ) -> Result<Link> {
        if let Some(cable) = cable {
            install(&cable.far, host, name, near.mtu_bytes)?;
            return install(&cable.near, &self.router, near.name, near.mtu_bytes);
        }
        let far = VethEnd {
            mac: Some(mac),
            netns: Some(host.path()),
            mtu_bytes: near.mtu_bytes,
            ..VethEnd::new(name)
        };
        self.router.netlink_result(router.add_veth(near, far))
    }

    /// Gives a host's uplink its addresses and the default routes.
    fn attach(
        &self,
        host: &Namespace,
        interface: &str,
        prefix: fn(Family) -> IpNet,
        gateway: fn(Family) -> IpAddr,
        address: impl Fn(Family) -> IpAddr,
    ) -> Result<()> {
        let netlink = host.netlink()?;
        let uplink = host.link_of(&netlink, interface)?;
        self.switch_on(host, &netlink, &uplink, prefix, address)?;
        for &family in self.plan.underlay.all() {
            let route = Route::to(everywhere(family))
                .via(gateway(family))
                .dev(uplink.index);
            host.netlink_result(netlink.add_route(&route))?;
        }
        Ok(())
    }

    fn switch_on(
        &self,
        host: &Namespace,
        netlink: &Netlink,
        link: &Link,
        prefix: fn(Family) -> IpNet,
        address: impl Fn(Family) -> IpAddr,
    ) -> Result<()> {
        host.netlink_result(netlink.set_up(link.index, true))?;
        for &family in self.plan.underlay.all() {
            let with_prefix = with_length(address(family), prefix(family).prefix_len());
            host.netlink_result(netlink.add_address(link.index, with_prefix))?;
        }
        Ok(())
    }

    /// Waits until every host has an answer from the fabric, in every family.
    fn settle(&self) -> Result<()> {
        let deadline = Instant::now() + scaled(SETTLE);
        let options = Options::default().with_timeout(Duration::from_millis(200));
        for &family in self.plan.underlay.all() {
            let nodes = self.nodes.iter().map(Node::namespace);
            let two = self.nodes.iter();
            let two = two.filter(|node| node.uplink() == UplinkKind::Two);
            let pairs = nodes
                .zip(std::iter::repeat(plan::fabric_address(family)))
                .chain(two.map(|node| (node.namespace(), plan::second_fabric_address(family))))
                .chain([(&self.outside, plan::outside_gateway(family))]);
            for (host, gateway) in pairs {
                loop {
                    match probe::icmp_echo(host, gateway, 1, 56, &options) {
                        Ok(_) => break,
                        // Bridge ports and IPv6 addresses take a moment to become usable.
                        Err(Error::Probe { .. }) if Instant::now() < deadline => {
                            thread::sleep(Duration::from_millis(20));
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        Ok(())
    }
}

/// Two network cards that are joined by a wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cable {
    /// Name of the one that the fabric gets.
    pub near: String,
    /// Name of the one that the host gets.
    pub far: String,
}

/// Moves a network card into a namespace. It keeps its Ethernet address, by which it is found again
/// when it comes back.
fn install(card: &str, host: &Namespace, name: &str, mtu_bytes: Option<u32>) -> Result<Link> {
    let failed = |source| Error::Netlink {
        namespace: host.name().to_owned(),
        source,
    };
    let here = Netlink::open().map_err(failed)?;
    let link = here.link(card).map_err(failed)?;
    let link = link.ok_or_else(|| Error::Invalid {
        what: "network card",
        value: card.to_owned(),
        rule: "it must be in this namespace",
    })?;
    here.move_to(link.index, host.path(), name)
        .map_err(failed)?;
    let netlink = host.netlink()?;
    let moved = host.link_of(&netlink, name)?;
    if let Some(mtu_bytes) = mtu_bytes {
        host.netlink_result(netlink.set_mtu(moved.index, mtu_bytes))?;
    }
    Ok(moved)
}

/// Names every namespace of a plan.
fn namespaces(plan: &Plan) -> impl Iterator<Item = String> {
    let nodes = (1_u8..).take(plan.nodes.len());
    nodes
        .flat_map(|node| pod_names(plan, node).chain([plan.node_namespace(node)]))
        .chain([plan.outside_namespace(), plan.fabric_namespace()])
}

/// Sets what a host's network stack would otherwise take over from the machine, or wait for.
pub(crate) fn set_up_stack(namespace: &Namespace, forwards: bool) -> Result<()> {
    let forwards = if forwards { "1" } else { "0" };
    let settings = [
        // A new namespace starts with the machine's setting, which may be on.
        ("net.ipv4.ip_forward", forwards),
        ("net.ipv6.conf.all.forwarding", forwards),
        // Addresses are usable at once; nobody else has them.
        ("net.ipv6.conf.default.accept_dad", "0"),
        // There is no router to ask for: the routes are set.
        ("net.ipv6.conf.default.router_solicitations", "0"),
    ];
    for (key, value) in settings {
        namespace.set_sysctl(key, value)?;
    }
    Ok(())
}

pub(crate) fn everywhere(family: Family) -> IpNet {
    match family {
        Family::Ipv4 => ipnet::Ipv4Net::default().into(),
        Family::Ipv6 => ipnet::Ipv6Net::default().into(),
    }
}

/// Joins an address and a length taken from a prefix of the same family.
fn with_length(address: IpAddr, length: u8) -> IpNet {
    IpNet::new(address, length).unwrap_or_else(|_| address.into())
}
