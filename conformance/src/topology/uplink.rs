//! What a node's way to the fabric is made of.

use datapath_tunnel::netlink::{Link, Netlink};
use serde::{Deserialize, Serialize};

use super::plan::UPLINK;
use crate::{error::Result, netns::Namespace};

/// Number of the VLAN of [`UplinkKind::Vlan`].
const VLAN: u16 = 100;
/// Name of a node's second cable to the fabric.
const SECOND: &str = "eth1";

/// What a node's uplink is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UplinkKind {
    /// `eth0`, a veth pair.
    #[default]
    Plain,
    /// `br0`, a bridge with `eth0` as its port.
    Bridge,
    /// `eth0.100`, a VLAN on `eth0`.
    Vlan,
    /// `bond0`, of which `eth0` and `eth1` are ports: one carries packets, the other stands by.
    Bond,
    /// `eth0` as ever, and `eth1` to a network of the nodes' own, which the tunnels go through.
    Two,
}

impl UplinkKind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Plain, Self::Bridge, Self::Vlan, Self::Bond, Self::Two];

    /// Returns the interfaces that lead off the node: what a datapath attaches to.
    #[must_use]
    pub const fn interfaces(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &[UPLINK],
            Self::Bridge => &["br0"],
            Self::Vlan => &["eth0.100"],
            Self::Bond => &["bond0"],
            Self::Two => &[UPLINK, SECOND],
        }
    }

    /// Returns the interface that tunnels go through.
    #[must_use]
    pub const fn tunnel_interface(self) -> &'static str {
        match self {
            Self::Plain => UPLINK,
            Self::Bridge => "br0",
            Self::Vlan => "eth0.100",
            Self::Bond => "bond0",
            Self::Two => SECOND,
        }
    }

    /// Returns the fabric's interface that a node's tunnel packets come by.
    #[must_use]
    pub fn fabric_port(self, node: u8) -> String {
        match self {
            Self::Vlan => format!("n{node}.{VLAN}"),
            Self::Two => second_port(node),
            Self::Plain | Self::Bridge | Self::Bond => first_port(node),
        }
    }

    /// Returns the cables from the fabric to a node: the interface at either end.
    pub(super) fn cables(self, node: u8) -> Vec<(String, &'static str)> {
        let mut cables = vec![(first_port(node), UPLINK)];
        if matches!(self, Self::Bond | Self::Two) {
            cables.push((second_port(node), SECOND));
        }
        cables
    }

    /// Makes, at the fabric's end of a cable, what frames of the node's come out of.
    ///
    /// # Errors
    ///
    /// What the kernel refuses; it may have no VLANs.
    pub(super) fn dress_port(
        self,
        fabric: &Namespace,
        netlink: &Netlink,
        port: Link,
    ) -> Result<Link> {
        if self != Self::Vlan {
            return Ok(port);
        }
        let name = format!("{}.{VLAN}", port.name);
        let made = netlink
            .set_up(port.index, true)
            .and_then(|()| netlink.add_vlan(&name, port.index, VLAN));
        fabric.netlink_result(made)
    }

    /// Makes the node's interface on top of its ends of the cables.
    ///
    /// # Errors
    ///
    /// What the kernel refuses; it may have no VLANs or bonds.
    pub(super) fn dress_node(self, node: &Namespace, netlink: &Netlink) -> Result<()> {
        let first = node.link_of(netlink, UPLINK)?;
        let made = match self {
            Self::Plain | Self::Two => Ok(()),
            Self::Vlan => netlink
                .set_up(first.index, true)
                .and_then(|()| netlink.add_vlan(self.tunnel_interface(), first.index, VLAN))
                .map(drop),
            Self::Bridge => netlink
                .add_bridge(self.tunnel_interface())
                .and_then(|bridge| {
                    // It takes its port's address, which the fabric knows the node by.
                    netlink.set_mac(bridge.index, first.mac)?;
                    netlink.set_master(first.index, Some(bridge.index))?;
                    netlink.set_up(first.index, true)
                }),
            Self::Bond => {
                let second = node.link_of(netlink, SECOND)?;
                netlink.add_bond(self.tunnel_interface()).and_then(|bond| {
                    // Ports join while they are off, and the bond switches them on.
                    netlink.set_master(first.index, Some(bond.index))?;
                    netlink.set_master(second.index, Some(bond.index))
                })
            }
        };
        node.netlink_result(made)
    }
}

fn first_port(node: u8) -> String {
    format!("n{node}")
}

fn second_port(node: u8) -> String {
    format!("n{node}b")
}
