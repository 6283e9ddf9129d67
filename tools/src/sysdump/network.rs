//! Interfaces, addresses, routes and neighbours of a network namespace.

use std::path::Path;

use datapath_tunnel::netlink::{Address, Link, Mac, Neighbour, Netlink, Route};
use serde_json::{Value, json};

use super::archive::Archive;

pub(super) fn collect(archive: &mut Archive, netns: Option<&Path>) -> anyhow::Result<()> {
    let netlink = match netns.map_or_else(Netlink::open, Netlink::open_in) {
        Ok(netlink) => netlink,
        Err(error) => {
            archive.failed("network/", &error.into());
            return Ok(());
        }
    };
    archive.json("network/links.json", all(netlink.links(), link))?;
    archive.json("network/addresses.json", all(netlink.addresses(), address))?;
    archive.json("network/routes.json", all(netlink.routes(), route))?;
    let neighbours = all(netlink.neighbours(), neighbour);
    archive.json("network/neighbours.json", neighbours)
}

fn all<T, E: Into<anyhow::Error>>(
    listed: Result<Vec<T>, E>,
    show: fn(&T) -> Value,
) -> anyhow::Result<Vec<Value>> {
    let listed = listed.map_err(Into::into)?;
    Ok(listed.iter().map(show).collect())
}

fn link(link: &Link) -> Value {
    json!({
        "index": link.index,
        "name": link.name,
        "kind": link.kind,
        "mac": hexadecimal(link.mac),
        "mtu_bytes": link.mtu_bytes,
        "up": link.up,
        "running": link.running,
        "no_arp": link.no_arp,
        "master": link.master,
        "peer_index": link.peer_index,
        "alias": link.alias,
    })
}

fn address(address: &Address) -> Value {
    json!({
        "index": address.index,
        "net": address.net,
        "scope": format!("{:?}", address.scope).to_lowercase(),
        "permanent": address.permanent,
        "tentative": address.tentative,
    })
}

fn route(route: &Route) -> Value {
    json!({
        "route": route.to_string(),
        "destination": route.destination,
        "gateway": route.gateway,
        "index": route.index,
        "source": route.source,
        "mtu_bytes": route.mtu_bytes,
        "metric": route.metric,
        "table": route.table,
        "protocol": route.protocol,
        "kind": format!("{:?}", route.kind).to_lowercase(),
    })
}

fn neighbour(neighbour: &Neighbour) -> Value {
    json!({
        "index": neighbour.index,
        "address": neighbour.address,
        "mac": neighbour.mac.map(hexadecimal),
        "permanent": neighbour.permanent,
        "valid": neighbour.valid,
    })
}

fn hexadecimal(mac: Mac) -> String {
    let [a, b, c, d, e, f] = mac;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}
