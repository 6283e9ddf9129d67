//! The gateway pair: `dp_host`, this node's side, with the pods' gateway addresses; `dp_net`, where
//! the datapath takes over what the node sends to pods.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use aya::programs::{SchedClassifier, TcAttachType};
use datapath_kern::abi::Mac;
use datapath_tunnel::netlink::{Link, Netlink, Route, TX_CHECKSUM, VethEnd};
use ipnet::IpNet;

use crate::error::Error;
use crate::naming;
use crate::programs::Programs;
use crate::settle;

/// This node's side.
pub(crate) const HOST: &str = "dp_host";
/// The far side.
pub(crate) const NET: &str = "dp_net";

/// The pair, up.
#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) index: u32,
    /// Index of the far side.
    pub(crate) net_index: u32,
    pub(crate) mac: Mac,
}

/// Ethernet address of the gateway: also of the host's side of every pod's pair, so that what is
/// sent to the gateway counts as sent to the interface it arrives on.
pub(crate) fn mac(gateways: &[IpAddr]) -> Mac {
    naming::mac(
        "gateway",
        &gateways
            .first()
            .map_or_else(String::new, ToString::to_string),
    )
}

/// Finds the pair, both ends of it: the node's side first.
fn find(netlink: &Netlink) -> Result<Option<(Link, Link)>, Error> {
    let end = |name| netlink.link(name).map_err(Error::network(name));
    let (Some(host), Some(net)) = (end(HOST)?, end(NET)?) else {
        return Ok(None);
    };
    let paired = host.peer_index == Some(net.index) && net.peer_index == Some(host.index);
    Ok(paired.then_some((host, net)))
}

/// Removes what there is of a pair, whoever made it; says what it was.
///
/// # Errors
///
/// [`Error::Network`].
pub(crate) fn remove(netlink: &Netlink) -> Result<Vec<String>, Error> {
    let mut removed = Vec::new();
    for name in [HOST, NET] {
        match netlink.link(name).map_err(Error::network(name))? {
            Some(link) if link.kind.as_deref() == Some("veth") => {
                netlink
                    .delete_link(link.index)
                    .map_err(Error::network(name))?;
                removed.push(name.to_owned());
            }
            // Another kind of interface was not made here.
            _ => {}
        }
    }
    Ok(removed)
}

/// Whether someone's programs work on the pair.
///
/// # Errors
///
/// [`Error::Network`] where the kernel does not tell.
pub(crate) fn is_worked(netlink: &Netlink) -> Result<bool, Error> {
    let Some(net) = netlink.link(NET).map_err(Error::network(NET))? else {
        return Ok(false);
    };
    // A kernel without tcx does not know the question.
    let by_tcx = SchedClassifier::query_tcx(NET, TcAttachType::Ingress);
    let by_tcx = by_tcx.is_ok_and(|(_, programs)| !programs.is_empty());
    Ok(by_tcx
        || netlink
            .has_filters(net.index)
            .map_err(Error::network(NET))?)
}

impl Gateway {
    /// Makes the pair, without address resolution between its ends: everything that the node sends
    /// there is taken by the datapath.
    ///
    /// # Errors
    ///
    /// [`Error::Network`], [`Error::File`] for a setting of the interface.
    pub(crate) fn create(
        netlink: &Netlink,
        gateways: &[IpAddr],
        device_mtu_bytes: u32,
    ) -> Result<Self, Error> {
        let mac = mac(gateways);
        let end = |name| VethEnd {
            mac: Some(mac),
            mtu_bytes: Some(device_mtu_bytes),
            ..VethEnd::new(name)
        };
        let host = netlink
            .add_veth(end(HOST), end(NET))
            .map_err(Error::network(HOST))?;
        let net_index = index_of_net(netlink)?;
        let gateway = Self {
            index: host.index,
            net_index,
            mac,
        };
        if let Err(error) = gateway.set_up(netlink, gateways) {
            let undone = gateway.delete(netlink).err();
            return Err(
                Error::collect([Some(error), undone].into_iter().flatten().collect())
                    .err()
                    .unwrap_or(Error::NotFound {
                        what: "interface",
                        name: HOST.into(),
                    }),
            );
        }
        Ok(gateway)
    }

    /// Takes over the pair that an earlier process made, and mends what is not as it was; makes a
    /// new one where it is gone.
    ///
    /// # Errors
    ///
    /// As [`Gateway::create`]; then what there is stays.
    pub(crate) fn adopt(
        netlink: &Netlink,
        gateways: &[IpAddr],
        device_mtu_bytes: u32,
    ) -> Result<Self, Error> {
        let Some((host, net)) = find(netlink)? else {
            remove(netlink)?;
            return Self::create(netlink, gateways, device_mtu_bytes);
        };
        let gateway = Self {
            index: host.index,
            net_index: net.index,
            mac: mac(gateways),
        };
        for link in [host, net] {
            if link.mac != gateway.mac {
                netlink
                    .set_mac(link.index, gateway.mac)
                    .map_err(Error::network(&link.name))?;
            }
        }
        gateway.set_up(netlink, gateways)?;
        Ok(gateway)
    }

    fn set_up(&self, netlink: &Netlink, gateways: &[IpAddr]) -> Result<(), Error> {
        for index in [self.index, self.net_index] {
            netlink
                .set_no_addrgen(index)
                .map_err(Error::network(HOST))?;
            netlink
                .set_arp(index, false)
                .map_err(Error::network(HOST))?;
        }
        // `bpf_fib_lookup` asks as if pods' packets had come in here, and answers only where
        // forwarding is on. That it is on for this one interface changes nothing for others.
        for key in [
            "ipv4/conf/dp_host/forwarding",
            "ipv6/conf/dp_host/forwarding",
        ] {
            let path = format!("/proc/sys/net/{key}");
            if fs::exists(&path).unwrap_or(false) {
                fs::write(&path, "1").map_err(Error::file("set", path))?;
            }
        }
        // What goes round the pair to be cut into fragments must be complete before it is.
        match netlink.set_feature(self.net_index, TX_CHECKSUM, false) {
            Ok(true) => {}
            refused => tracing::warn!(?refused, "datagrams that are cut will have no checksum"),
        }
        for index in [self.net_index, self.index] {
            netlink.set_up(index, true).map_err(Error::network(HOST))?;
        }
        for &gateway in gateways {
            netlink
                .add_address(self.index, IpNet::from(gateway))
                .map_err(Error::network(HOST))?;
        }
        settle::wait(Path::new("/proc/thread-self/ns/net"), HOST, gateways)
    }

    /// Gives both ends another MTU.
    ///
    /// # Errors
    ///
    /// [`Error::Network`].
    pub(crate) fn set_mtu(&self, netlink: &Netlink, mtu_bytes: u32) -> Result<(), Error> {
        for index in [self.net_index, self.index] {
            netlink
                .set_mtu(index, mtu_bytes)
                .map_err(Error::network(HOST))?;
        }
        Ok(())
    }

    /// Attaches the programs of the pair.
    ///
    /// # Errors
    ///
    /// [`Error::Attach`].
    pub(crate) fn attach(programs: &mut Programs) -> Result<(), Error> {
        programs.attach("from_host", NET, TcAttachType::Ingress)?;
        programs.attach("to_host", HOST, TcAttachType::Ingress)
    }

    /// The route of this node to pods, here or on a peer.
    pub(crate) fn route(&self, pods: IpNet, source: Option<IpAddr>, mtu_bytes: u32) -> Route {
        let route = Route::to(pods).dev(self.index).mtu(mtu_bytes);
        match source {
            Some(source) => route.source(source),
            None => route,
        }
    }

    /// Removes the pair, and with it its addresses and routes.
    ///
    /// # Errors
    ///
    /// [`Error::Network`].
    pub(crate) fn delete(&self, netlink: &Netlink) -> Result<(), Error> {
        netlink
            .delete_link(self.index)
            .map(drop)
            .map_err(Error::network(HOST))
    }
}

/// Index of the far side.
fn index_of_net(netlink: &Netlink) -> Result<u32, Error> {
    let net = netlink.link(NET).map_err(Error::network(NET))?;
    let missing = Error::NotFound {
        what: "interface",
        name: NET.into(),
    };
    net.map(|net| net.index).ok_or(missing)
}
