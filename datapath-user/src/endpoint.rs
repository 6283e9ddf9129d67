//! Local endpoints: the pods of this node.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use datapath_kern::abi::Mac;
use datapath_kern::abi::endpoint::identity;
use datapath_kern::abi::state::MAX_PATH;
use datapath_tunnel::netlink::{Netlink, Route, VethEnd};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::error::Error;
use crate::naming;
use crate::pair::Pair;
use crate::pod::{Pod, check_identity};
use crate::policy::{Labels, NamedPort};
use crate::settle;

/// The calling thread's namespace.
const OWN_NETNS: &str = "/proc/thread-self/ns/net";

/// An endpoint to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointSpec {
    /// What it is called: 1 to 63 letters, digits, `_`, `.` or `-`.
    pub id: String,
    /// Its network namespace, as a path.
    pub netns: PathBuf,
    /// Name of the interface that it gets there.
    #[serde(default = "eth0")]
    pub interface: String,
    /// Its addresses: one per family at most, inside the node's pod prefixes.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// Its security identity: 3 (unmanaged), or 256 to 16777215. Without, a number is found for
    /// its labels; a pod without labels is unmanaged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<u32>,
    /// The namespace of the pod, in the sense of Kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The pod's name there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The pod's labels. One under a key that says where a pod belongs
    /// (`io.kubernetes.pod.namespace`, and all that begin with `io.cilium.k8s.`) is no label to
    /// policies.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Labels of its namespace.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub namespace_labels: BTreeMap<String, String>,
    /// Its service account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
    /// Ports of its containers that have names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<NamedPort>,
}

impl Default for EndpointSpec {
    /// An endpoint without a name, a place and an address, which still are to be given.
    fn default() -> Self {
        Self {
            id: String::new(),
            netns: PathBuf::new(),
            interface: eth0(),
            addresses: Vec::new(),
            identity: None,
            namespace: None,
            name: None,
            labels: BTreeMap::new(),
            namespace_labels: BTreeMap::new(),
            service_account: None,
            ports: Vec::new(),
        }
    }
}

fn eth0() -> String {
    "eth0".into()
}

impl EndpointSpec {
    /// Checks what can be checked without a kernel.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for the first thing that cannot be used.
    pub fn validate(&self, config: &Config) -> Result<(), Error> {
        naming::check_id("endpoint id", &self.id)?;
        naming::check_interface(&self.interface)?;
        self.validate_labels()?;
        let wrong = |value: String, rule| {
            Err(Error::Invalid {
                what: "address",
                value,
                rule,
            })
        };
        if self.netns.as_os_str().len() > MAX_PATH {
            return Err(Error::Invalid {
                what: "netns",
                value: self.netns.display().to_string(),
                rule: "must be a path of 940 bytes at most",
            });
        }
        if self.addresses.is_empty() {
            return wrong(String::new(), "an endpoint needs at least one");
        }
        for v4 in [true, false] {
            if self
                .addresses
                .iter()
                .filter(|address| address.is_ipv4() == v4)
                .count()
                > 1
            {
                return wrong(format!("{:?}", self.addresses), "one per family at most");
            }
        }
        for address in &self.addresses {
            if !config.pod_cidrs.iter().any(|cidr| cidr.contains(address)) {
                return wrong(
                    address.to_string(),
                    "must lie inside one of this node's pod_cidrs",
                );
            }
            if config.gateways.contains(address) {
                return wrong(address.to_string(), "is the gateway's");
            }
        }
        Ok(())
    }
}

impl EndpointSpec {
    /// Checks the identity, and that labels can be made of the rest.
    pub(crate) fn validate_labels(&self) -> Result<(), Error> {
        if let Some(number) = self.identity {
            check_identity(number)?;
        }
        self.pod().check()
    }

    /// The labels that policies select it by.
    #[must_use]
    pub fn identity_labels(&self) -> Labels {
        self.pod().labels()
    }

    pub(crate) fn pod(&self) -> Pod<'_> {
        Pod {
            namespace: self.namespace.as_deref(),
            name: self.name.as_deref(),
            labels: &self.labels,
            namespace_labels: &self.namespace_labels,
            service_account: self.service_account.as_deref(),
            ports: &self.ports,
        }
    }
}

impl EndpointView {
    /// What it would be asked for with.
    #[must_use]
    pub fn spec(&self) -> EndpointSpec {
        EndpointSpec {
            id: self.id.clone(),
            netns: self.netns.clone(),
            interface: self.interface.clone(),
            addresses: self.addresses.clone(),
            identity: self.given_identity(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            labels: self.labels.clone(),
            namespace_labels: self.namespace_labels.clone(),
            service_account: self.service_account.clone(),
            ports: self.ports.clone(),
        }
    }

    /// The labels that policies select it by.
    #[must_use]
    pub fn identity_labels(&self) -> Labels {
        self.spec().identity_labels()
    }

    /// The identity, where it is one that had to be said.
    fn given_identity(&self) -> Option<u32> {
        let said = !self.identity_allocated && self.identity != identity::UNMANAGED;
        said.then_some(self.identity)
    }
}

/// An endpoint as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointView {
    /// What it is called.
    pub id: String,
    /// Its slot among this node's endpoints.
    pub slot: u16,
    /// Its network namespace.
    pub netns: PathBuf,
    /// Its interface there.
    pub interface: String,
    /// The host's side of that.
    pub host_interface: String,
    /// Index of the host's side.
    pub host_index: u32,
    /// Ethernet address of its interface.
    pub mac: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its security identity.
    pub identity: u32,
    /// Whether that number was found for its labels, and not given.
    #[serde(default, skip_serializing_if = "is_false")]
    pub identity_allocated: bool,
    /// The namespace of the pod, in the sense of Kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The pod's name there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The pod's labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Labels of its namespace.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub namespace_labels: BTreeMap<String, String>,
    /// Its service account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
    /// Ports of its containers that have names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<NamedPort>,
    /// How policy judges it.
    #[serde(default, skip_serializing_if = "EndpointPolicy::is_default")]
    pub policy: EndpointPolicy,
}

/// How policy judges an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointPolicy {
    /// What begins to it needs a rule that allows it.
    pub ingress: bool,
    /// What it begins needs a rule that allows it.
    pub egress: bool,
    /// What would be denied is let through, and told: it was asked for, of this endpoint.
    pub audit: bool,
    /// How long it was on the network before its rules were in force, microseconds: with
    /// [`PodStart::Standard`](crate::PodStart::Standard). None: it was judged from its first packet
    /// on.
    pub window_us: Option<u64>,
}

impl EndpointPolicy {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "as serde calls what decides about skipping a field"
)]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// An endpoint's pair of interfaces.
#[derive(Clone, Debug)]
pub(crate) struct Wire {
    pub(crate) pair: Pair,
    pub(crate) host_interface: String,
    pub(crate) host_index: u32,
    pub(crate) mac: Mac,
}

/// Makes the pair, its host's side down: nothing flows before the datapath knows the endpoint.
///
/// Both ends have the uplink's MTU, only routes have the pods': what comes in without a tunnel
/// may be larger.
///
/// # Errors
///
/// [`Error::Network`].
pub(crate) fn wire(
    node: &Netlink,
    pair: Pair,
    spec: &EndpointSpec,
    gateway_mac: Mac,
    device_mtu_bytes: u32,
) -> Result<Wire, Error> {
    let host_interface = naming::host_interface(&spec.id);
    let mac = naming::mac("pod", &spec.id);
    let near = VethEnd {
        mac: Some(gateway_mac),
        mtu_bytes: Some(device_mtu_bytes),
        ..VethEnd::new(&host_interface)
    };
    let far = VethEnd {
        mac: Some(mac),
        mtu_bytes: Some(device_mtu_bytes),
        netns: Some(&spec.netns),
        ..VethEnd::new(&spec.interface)
    };
    let link = match pair {
        Pair::Veth => node.add_veth(near, far),
        Pair::Netkit => node.add_netkit(near, far),
    };
    let link = link.map_err(Error::network(&spec.id))?;
    let named = node
        .set_alias(link.index, &spec.id)
        .and_then(|()| node.set_no_addrgen(link.index));
    if let Err(error) = named {
        let undone = node.delete_link(link.index);
        tracing::debug!(?undone, "took back an interface that could not be named");
        return Err(Error::network(&spec.id)(error));
    }
    Ok(Wire {
        pair,
        host_interface,
        host_index: link.index,
        mac,
    })
}

/// The pod's side of an endpoint's pair, as far as it can be seen from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PodSide {
    /// In the namespace that it was made in.
    There,
    /// The path leads to a namespace without it: it is another pod's by now.
    Elsewhere,
    /// The path leads nowhere: the pod may live, but cannot be looked into.
    OutOfSight,
}

/// Looks for the pod's side of a pair that is there.
pub(crate) fn pod_side(netns: &Path, interface: &str, wire: &Wire) -> PodSide {
    if check_netns(netns).is_err() {
        return PodSide::OutOfSight;
    }
    let found = Netlink::open_in(netns).and_then(|pod| pod.link(interface));
    match found {
        Ok(Some(link)) if link.mac == wire.mac && link.peer_index == Some(wire.host_index) => {
            PodSide::There
        }
        Ok(_) => PodSide::Elsewhere,
        Err(_) => PodSide::OutOfSight,
    }
}

/// Configures the pod's side: addresses, the gateway as a permanent neighbour, and the default
/// routes, which carry the MTU of the path while the interface keeps its own. What is there already
/// is left alone.
///
/// Returns a handle to its namespace, and its index there.
///
/// # Errors
///
/// [`Error::Network`].
pub(crate) fn furnish(
    spec: &EndpointSpec,
    config: &Config,
    gateway_mac: Mac,
    mtu_bytes: impl Fn(bool) -> Result<u32, Error>,
) -> Result<(Netlink, u32), Error> {
    let fail = || Error::network(format!("{} in {}", spec.interface, spec.netns.display()));
    let pod = Netlink::open_in(&spec.netns).map_err(fail())?;
    if let Some(lo) = pod.link("lo").map_err(fail())? {
        pod.set_up(lo.index, true).map_err(fail())?;
    }
    let link = pod
        .link(&spec.interface)
        .map_err(fail())?
        .ok_or_else(|| Error::NotFound {
            what: "interface",
            name: spec.interface.clone(),
        })?;
    pod.set_no_addrgen(link.index).map_err(fail())?;
    pod.set_up(link.index, true).map_err(fail())?;
    let routes = pod.routes().map_err(fail())?;
    let ensure = |route: Route| {
        let same = |known: &Route| {
            known.destination == route.destination
                && known.index == route.index
                && known.mtu_bytes == route.mtu_bytes
        };
        if routes.iter().any(same) {
            return Ok(());
        }
        pod.replace_route(&route)
    };
    for &address in &spec.addresses {
        pod.add_address(link.index, IpNet::from(address))
            .map_err(fail())?;
        let v4 = address.is_ipv4();
        let Some(gateway) = config.gateway(v4) else {
            continue;
        };
        pod.add_neighbour(link.index, gateway, gateway_mac)
            .map_err(fail())?;
        for route in pod_routes(link.index, address, gateway, mtu_bytes(v4)?) {
            ensure(route).map_err(fail())?;
        }
    }
    settle::wait(&spec.netns, &spec.interface, &spec.addresses)?;
    Ok((pod, link.index))
}

/// The routes of a pod in one family: to the gateway, and by it to everywhere.
fn pod_routes(index: u32, address: IpAddr, gateway: IpAddr, mtu_bytes: u32) -> [Route; 2] {
    // To the gateway too: the node's answers would not fit on the way back otherwise.
    let on_link = Route::to(IpNet::from(gateway)).dev(index).mtu(mtu_bytes);
    let default = Route::to(everywhere(address.is_ipv4()))
        .via(gateway)
        .dev(index)
        .source(address)
        .mtu(mtu_bytes);
    [on_link, default]
}

/// Gives both ends of an endpoint's pair another MTU, and its routes that of the path.
///
/// # Errors
///
/// [`Error::Network`], [`Error::Mtu`] for a family whose packets have become too small; the other
/// one has its routes then.
pub(crate) fn resize(
    node: &Netlink,
    endpoint: &EndpointView,
    config: &Config,
    device_mtu_bytes: u32,
    mtu_bytes: impl Fn(bool) -> Result<u32, Error>,
) -> Result<(), Error> {
    let fail = || Error::network(&endpoint.id);
    check_netns(&endpoint.netns)?;
    let pod = Netlink::open_in(&endpoint.netns).map_err(fail())?;
    let link = pod.link(&endpoint.interface).map_err(fail())?;
    let link = link.ok_or_else(|| Error::NotFound {
        what: "interface",
        name: format!("{} of endpoint {}", endpoint.interface, endpoint.id),
    })?;
    let resize = || {
        node.set_mtu(endpoint.host_index, device_mtu_bytes)
            .and_then(|()| pod.set_mtu(link.index, device_mtu_bytes))
            .map_err(fail())
    };
    // No route may have more than its interface takes.
    if device_mtu_bytes > link.mtu_bytes {
        resize()?;
    }
    let mut errors = Vec::new();
    for &address in &endpoint.addresses {
        let v4 = address.is_ipv4();
        let (Some(gateway), mtu_bytes) = (config.gateway(v4), mtu_bytes(v4)) else {
            continue;
        };
        match mtu_bytes {
            Ok(mtu_bytes) => {
                for route in pod_routes(link.index, address, gateway, mtu_bytes) {
                    errors.extend(pod.replace_route(&route).map_err(fail()).err());
                }
            }
            Err(error) => errors.push(error),
        }
    }
    if device_mtu_bytes < link.mtu_bytes {
        errors.extend(resize().err());
    }
    Error::collect(errors)
}

fn everywhere(v4: bool) -> IpNet {
    if v4 {
        IpNet::V4(ipnet::Ipv4Net::default())
    } else {
        IpNet::V6(ipnet::Ipv6Net::default())
    }
}

/// Whether a path is a network namespace, and not the calling thread's own: that one would get the
/// pod's addresses and default route.
///
/// # Errors
///
/// [`Error::Invalid`] where it is not.
pub(crate) fn check_netns(path: &Path) -> Result<(), Error> {
    let wrong = |rule| {
        let value = path.display().to_string();
        Err(Error::Invalid {
            what: "netns",
            value,
            rule,
        })
    };
    let Ok(found) = fs::metadata(path) else {
        return wrong(
            "no such network namespace: give a path as in /run/netns or /proc/PID/ns/net",
        );
    };
    let own = fs::metadata(OWN_NETNS).map_err(Error::file("look at", OWN_NETNS))?;
    // All namespaces are on one file system of their own (nsfs).
    if found.dev() != own.dev() {
        return wrong("is no network namespace: give a path as in /run/netns or /proc/PID/ns/net");
    }
    if found.ino() == own.ino() {
        return wrong("is the node's own network namespace: give the pod's");
    }
    Ok(())
}
