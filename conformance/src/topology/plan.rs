//! What a lab looks like: names, addresses and sizes. Pure data, nothing is made here.
//!
//! ```text
//!   <lab>-n1           <lab>-n2                      <lab>-ext
//!   eth0 192.0.2.11    eth0 192.0.2.12  ...          eth0 198.51.100.10
//!   2001:db8:0:1::11   2001:db8:0:1::12              2001:db8:0:2::10
//!      |                  |                             |
//!      n1                 n2                            ext 198.51.100.1
//!      +------ br0 -------+                             |   2001:db8:0:2::1
//!          192.0.2.1, 2001:db8:0:1::1 ---- routes ------+        <lab>-fabric
//! ```
//!
//! A node's uplink may be something else than `eth0`, see [`UplinkKind`]; with two of them, the
//! second one is on `br1`, with 203.0.113.11 and `2001:db8:0:3::11` on node 1.
//!
//! Nodes and pods are counted from 1. The pods' namespaces `<lab>-n1p1`, ... are made empty: the
//! datapath under test gives them their interfaces.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    str::FromStr,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::uplink::UplinkKind;
use crate::{
    error::{Error, Result},
    family::{Families, Family},
};

/// Name of the interface that a node and the outside host have.
pub const UPLINK: &str = "eth0";
/// Name of the bridge in the fabric's namespace.
pub const BRIDGE: &str = "br0";
/// Name of the bridge between the second uplinks, where nodes have such.
pub const SECOND_BRIDGE: &str = "br1";

/// Most nodes of a lab: their addresses are `.11` and up in a /24.
const MAX_NODES: usize = 200;
/// Most pods of a node.
const MAX_PODS: u8 = 200;
/// Where the labs of this machine keep their files.
pub(crate) const RUN_DIRECTORY: &str = "/run/datapath-lab";

/// A lab to build. Two labs with different names do not touch each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The lab's name.
    pub lab: LabName,
    /// The address families of the underlay.
    #[serde(default)]
    pub underlay: Families,
    /// The nodes, in order; the first is node 1.
    pub nodes: Vec<NodePlan>,
    /// MTU of the link between the fabric and the outside host.
    #[serde(default = "default_mtu_bytes")]
    pub outside_mtu_bytes: u32,
}

/// One node of a lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePlan {
    /// How many pods it has room for.
    pub pods: u8,
    /// MTU of its uplink, at both ends.
    #[serde(default = "default_mtu_bytes")]
    pub mtu_bytes: u32,
    /// What its uplink is.
    #[serde(default)]
    pub uplink: UplinkKind,
    /// Whether its kernel forwards packets (`net.ipv4.ip_forward` and its IPv6 twin).
    #[serde(default)]
    pub forwards: bool,
}

impl Default for NodePlan {
    fn default() -> Self {
        Self {
            pods: 2,
            mtu_bytes: default_mtu_bytes(),
            uplink: UplinkKind::default(),
            forwards: false,
        }
    }
}

impl Default for Plan {
    /// The lab `dp-lab`: two nodes of two pods, both families, MTU 1500.
    fn default() -> Self {
        Self::new(LabName::default())
    }
}

impl Plan {
    /// Plans two nodes of two pods each, both families, MTU 1500.
    #[must_use]
    pub fn new(lab: LabName) -> Self {
        Self {
            lab,
            underlay: Families::default(),
            nodes: vec![NodePlan::default(); 2],
            outside_mtu_bytes: default_mtu_bytes(),
        }
    }

    /// Sets the number of nodes, all alike.
    #[must_use]
    pub fn with_nodes(mut self, count: usize, node: NodePlan) -> Self {
        self.nodes = vec![node; count];
        self
    }

    /// Sets the address families of the underlay.
    #[must_use]
    pub fn with_underlay(mut self, families: Families) -> Self {
        self.underlay = families;
        self
    }

    /// Checks what the types do not: the number of nodes and pods, and the MTUs.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] with what is allowed.
    pub fn check(&self) -> Result<()> {
        let invalid = |what, value: String, rule| Err(Error::Invalid { what, value, rule });
        if self.nodes.is_empty() || self.nodes.len() > MAX_NODES {
            let count = self.nodes.len().to_string();
            return invalid("number of nodes", count, "a lab has 1 to 200 nodes");
        }
        // The kernel takes IPv6 off an interface below 1280 (RFC 8200 section 5).
        let least = match self.underlay {
            Families::Ipv4 => 576,
            Families::Ipv6 | Families::Dual => 1280,
        };
        let mtus = self.nodes.iter().map(|node| node.mtu_bytes);
        for mtu in mtus.chain([self.outside_mtu_bytes]) {
            if !(least..=65_535).contains(&mtu) {
                let rule = "an underlay takes 1280 to 65535 bytes, or from 576 with IPv4 only";
                return invalid("MTU", mtu.to_string(), rule);
            }
        }
        match self.nodes.iter().find(|node| node.pods > MAX_PODS) {
            Some(node) => invalid(
                "number of pods",
                node.pods.to_string(),
                "a node has up to 200 pods",
            ),
            None => Ok(()),
        }
    }

    /// Returns the plan of a node, counted from 1.
    #[must_use]
    pub fn node(&self, number: u8) -> Option<&NodePlan> {
        self.nodes.get(usize::from(number).checked_sub(1)?)
    }

    /// Returns the namespace that holds the bridge and routes to the outside.
    #[must_use]
    pub fn fabric_namespace(&self) -> String {
        format!("{}-fabric", self.lab)
    }

    /// Returns the namespace of the outside host.
    #[must_use]
    pub fn outside_namespace(&self) -> String {
        format!("{}-ext", self.lab)
    }

    /// Returns the namespace of a node.
    #[must_use]
    pub fn node_namespace(&self, node: u8) -> String {
        format!("{}-n{node}", self.lab)
    }

    /// Returns the namespace of a pod.
    #[must_use]
    pub fn pod_namespace(&self, node: u8, pod: u8) -> String {
        format!("{}-n{node}p{pod}", self.lab)
    }

    /// Returns the directory for the lab's files, made and removed with the lab.
    #[must_use]
    pub fn run_directory(&self) -> PathBuf {
        PathBuf::from(RUN_DIRECTORY).join(&self.lab.0)
    }
}

/// Returns the prefix that nodes and the fabric share.
#[must_use]
pub fn underlay(family: Family) -> IpNet {
    const V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 2, 0), 24);
    const V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 0), 64);
    of(family, V4, V6)
}

/// Returns the prefix of the network between the nodes' second uplinks.
#[must_use]
pub fn second_underlay(family: Family) -> IpNet {
    const V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(203, 0, 113, 0), 24);
    const V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0xdb8, 0, 3, 0, 0, 0, 0), 64);
    of(family, V4, V6)
}

/// Returns the prefix that the outside host and the fabric share.
#[must_use]
pub fn outside(family: Family) -> IpNet {
    const V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(198, 51, 100, 0), 24);
    const V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0xdb8, 0, 2, 0, 0, 0, 0), 64);
    of(family, V4, V6)
}

/// Returns the prefix of a node's pods: `10.244.<node>.0/24`, `fd00:10:244:<node>::/64`.
#[must_use]
pub fn pod_cidr(node: u8, family: Family) -> IpNet {
    match family {
        Family::Ipv4 => net(Ipv4Addr::new(10, 244, node, 0), 24),
        Family::Ipv6 => net(
            Ipv6Addr::new(0xfd00, 0x10, 0x244, spelled(node), 0, 0, 0, 0),
            64,
        ),
    }
}

/// Returns the gateway of a node's pods, number 1 of their prefix.
#[must_use]
pub fn pod_gateway(node: u8, family: Family) -> IpAddr {
    host(pod_cidr(node, family), 1)
}

/// Returns a node's own address.
#[must_use]
pub fn node_address(node: u8, family: Family) -> IpAddr {
    host(underlay(family), node.saturating_add(10))
}

/// Returns a node's address on its second uplink.
#[must_use]
pub fn second_node_address(node: u8, family: Family) -> IpAddr {
    host(second_underlay(family), node.saturating_add(10))
}

/// Returns the address of the fabric between the nodes' second uplinks.
#[must_use]
pub fn second_fabric_address(family: Family) -> IpAddr {
    host(second_underlay(family), 1)
}

/// Returns the address of the fabric on the nodes' side, their default gateway.
#[must_use]
pub fn fabric_address(family: Family) -> IpAddr {
    host(underlay(family), 1)
}

/// Returns the address of the outside host.
#[must_use]
pub fn outside_address(family: Family) -> IpAddr {
    host(outside(family), 10)
}

/// Returns the address of the fabric on the outside host's side.
#[must_use]
pub fn outside_gateway(family: Family) -> IpAddr {
    host(outside(family), 1)
}

/// The name of a lab, which starts the names of all its namespaces.
///
/// 1 to 40 lower-case letters, digits and `-`, starting and ending with a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabName(String);

impl LabName {
    /// Returns the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Tells whether a namespace of this name belongs to the lab.
    ///
    /// What follows the lab's name has no `-`, so `a` never claims what belongs to `a-b`.
    pub(crate) fn owns(&self, namespace: &str) -> bool {
        let Some(rest) = namespace.strip_prefix(self.as_str()) else {
            return false;
        };
        match rest.strip_prefix('-') {
            Some("fabric" | "ext") => true,
            Some(node) => node.strip_prefix('n').is_some_and(|numbers| {
                let mut numbers = numbers.splitn(2, 'p');
                numbers.all(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
            }),
            None => false,
        }
    }
}

impl Default for LabName {
    fn default() -> Self {
        Self("dp-lab".to_owned())
    }
}

impl fmt::Display for LabName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for LabName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let end = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let good = text.len() <= 40
            && text.starts_with(end)
            && text.ends_with(end)
            && text.chars().all(|c| end(c) || c == '-');
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::Invalid {
                what: "name of a lab",
                value: text.to_owned(),
                rule: "1 to 40 lower-case letters, digits and '-', not at either end",
            })
        }
    }
}

impl TryFrom<String> for LabName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<LabName> for String {
    fn from(name: LabName) -> Self {
        name.0
    }
}

const fn default_mtu_bytes() -> u32 {
    1500
}

fn of(family: Family, v4: Ipv4Net, v6: Ipv6Net) -> IpNet {
    match family {
        Family::Ipv4 => v4.into(),
        Family::Ipv6 => v6.into(),
    }
}

/// Makes a prefix; a length that the family does not have gives the host prefix.
fn net(address: impl Into<IpAddr>, length: u8) -> IpNet {
    let address = address.into();
    IpNet::new(address, length).unwrap_or_else(|_| address.into())
}

/// Returns the address in a prefix whose last part *reads* as `number` in either family:
/// `192.0.2.11` and `2001:db8:0:1::11`.
fn host(prefix: IpNet, number: u8) -> IpAddr {
    match prefix.network() {
        IpAddr::V4(network) => (network | Ipv4Addr::new(0, 0, 0, number)).into(),
        IpAddr::V6(network) => {
            (network | Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, spelled(number))).into()
        }
    }
}

/// Returns the number whose hexadecimal digits are the decimal digits of `number`.
fn spelled(number: u8) -> u16 {
    let number = u16::from(number);
    number % 10 + (number / 10 % 10) * 0x10 + number / 100 * 0x100
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_alike_in_both_families() {
        let v6 = Family::Ipv6;
        assert_eq!(node_address(1, Family::Ipv4).to_string(), "192.0.2.11");
        assert_eq!(node_address(1, v6).to_string(), "2001:db8:0:1::11");
        assert_eq!(node_address(200, v6).to_string(), "2001:db8:0:1::210");
        assert_eq!(outside_address(v6).to_string(), "2001:db8:0:2::10");
        assert_eq!(outside_gateway(Family::Ipv4).to_string(), "198.51.100.1");
        assert_eq!(pod_cidr(12, v6).to_string(), "fd00:10:244:12::/64");
        assert_eq!(pod_cidr(12, Family::Ipv4).to_string(), "10.244.12.0/24");
        assert_eq!(pod_gateway(2, v6).to_string(), "fd00:10:244:2::1");
    }

    #[test]
    fn no_two_nodes_share_an_address() {
        for family in Family::ALL {
            let all: std::collections::BTreeSet<_> = (1..=200)
                .map(|node| node_address(node, family))
                .chain([fabric_address(family)])
                .collect();
            assert_eq!(all.len(), 201);
        }
    }

    #[test]
    fn a_lab_owns_its_own_namespaces_and_no_others() {
        let lab: LabName = "dp-lab".parse().unwrap();
        for own in ["dp-lab-fabric", "dp-lab-ext", "dp-lab-n1", "dp-lab-n12p34"] {
            assert!(lab.owns(own), "{own}");
        }
        let others = [
            "dp-lab",
            "dp-labs-n1",
            "dp-lab-2-n1",
            "dp-lab-n1-fabric",
            "dp-lab-n",
            "dp-lab-n1p",
            "dp-lab-np1",
            "dp-lab-n1p2p3",
            "xdp-lab-n1",
        ];
        for other in others {
            assert!(!lab.owns(other), "{other}");
        }
    }

    #[test]
    fn plans_survive_json_and_refuse_nonsense() {
        let plan = Plan::default();
        let json = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&json).unwrap(), plan);
        assert!(serde_json::from_str::<Plan>(r#"{"lab":"../x","nodes":[]}"#).is_err());
        assert!(plan.check().is_ok());
        let none = plan.clone().with_nodes(0, NodePlan::default());
        assert!(none.check().is_err());
        let small = NodePlan {
            mtu_bytes: 1279,
            ..NodePlan::default()
        };
        assert!(plan.clone().with_nodes(1, small).check().is_err());
        let ipv4 = plan.with_nodes(1, small).with_underlay(Families::Ipv4);
        assert!(ipv4.check().is_ok());
    }
}
