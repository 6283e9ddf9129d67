//! The uplinks that an agent would be given.

use datapath_tunnel::mtu::{Family, pod_mtu};
use datapath_tunnel::netlink::{Address, Link, Netlink, NetlinkError, Scope, TX_UDP_SEGMENTATION};

use super::{Finding, chain};

pub(super) fn findings(names: &[String]) -> Vec<Finding> {
    if names.is_empty() {
        return Vec::new();
    }
    let known = Netlink::open().and_then(|netlink| Ok((netlink.clone(), netlink.addresses()?)));
    match known {
        Ok((netlink, addresses)) => {
            let of_one = |name: &String| {
                let link = netlink.link(name);
                let offloads = match &link {
                    Ok(Some(link)) => Some(offloads(&netlink, link)),
                    _ => None,
                };
                std::iter::once(finding(name, link, &addresses)).chain(offloads)
            };
            names.iter().flat_map(of_one).collect()
        }
        Err(error) => vec![Finding::missing("uplinks", chain(&error), "run as root")],
    }
}

/// Features that packets of pods meet, by the names of `ethtool -k`.
const FEATURES: [&str; 8] = [
    "rx-checksum",
    "tx-checksum-ip-generic",
    "tx-checksum-ipv4",
    "tx-checksum-ipv6",
    "tx-tcp-segmentation",
    TX_UDP_SEGMENTATION,
    "tx-udp_tnl-segmentation",
    "rx-gro",
];

/// What an uplink does about checksums and segments; the datapath is right with and without.
fn offloads(netlink: &Netlink, link: &Link) -> Finding {
    let check = format!("offloads {}", link.name);
    let mut on = Vec::new();
    let mut off = Vec::new();
    for name in FEATURES {
        match netlink.feature(link.index, name) {
            Ok(true) => on.push(name),
            Ok(false) => off.push(name),
            Err(error) => return Finding::ok(check, format!("not told: {}", chain(&error))),
        }
    }
    let list = |names: &[&str]| match names {
        [] => "none".to_owned(),
        _ => names.join(", "),
    };
    let (with, without) = (list(&on), list(&off));
    Finding::ok(check, format!("on: {with}; off: {without}"))
}

fn finding(name: &str, link: Result<Option<Link>, NetlinkError>, addresses: &[Address]) -> Finding {
    let check = format!("uplink {name}");
    let link = match link {
        Ok(Some(link)) => link,
        Ok(None) => {
            let found = "there is no interface of this name in this network namespace";
            return Finding::missing(check, found, "name one that `ip link` lists");
        }
        Err(error) => {
            return Finding::missing(check, chain(&error), "name one that `ip link` lists");
        }
    };
    let own = addresses
        .iter()
        .filter(|address| address.index == link.index && address.scope == Scope::Universe);
    let own: Vec<_> = own.map(|address| address.net.addr().to_string()).collect();
    let mtu_bytes = link.mtu_bytes;
    let tunnelled = pod_mtu(mtu_bytes, Family::V6, 0).and_then(|mtu| mtu.for_family(Family::V6));
    let pods = match tunnelled {
        Ok(pods) => format!("{pods} or more for pods behind a tunnel"),
        Err(error) => {
            let found = format!("MTU {mtu_bytes}: {}", chain(&error));
            return Finding::missing(check, found, format!("ip link set {name} mtu 1500"));
        }
    };
    let addresses = own.join(", ");
    let found = format!("MTU {mtu_bytes}, {pods}; addresses: {addresses}");
    if !link.up || !link.running {
        let found = format!("{found}; down, or without a carrier");
        return Finding::warn(check, found, format!("ip link set {name} up"));
    }
    if own.is_empty() {
        let found = format!("MTU {mtu_bytes}, {pods}; no address");
        let remedy = "give it an address, for tunnels and masquerade to start from; where the \
                      node has its own on lo, name that one as `src` of the default route and \
                      as `underlay`";
        return Finding::warn(check, found, remedy);
    }
    Finding::ok(check, found)
}
