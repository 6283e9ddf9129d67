//! A network card as the uplink of a lab's node.

use std::{
    fs::File,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use datapath_conformance::{
    Error as LabError,
    family::Family,
    netns::Namespace,
    patience::scaled,
    signals::{self, Teardown},
    topology::{
        Fabric,
        plan::{self, UPLINK},
    },
};
use datapath_tunnel::netlink::{Link, Netlink, NetlinkError, Route};
use ipnet::IpNet;

use crate::{
    error::{Error, Result},
    uplink::Uplink,
};

/// How long a card may take to find its carrier: some agree on a speed for seconds.
const CARRIER: Duration = Duration::from_secs(15);

/// A card in the namespace of the lab's first node. Dropping it gives it back, and so does a signal.
#[derive(Debug)]
pub(super) struct Installed {
    _back: Teardown,
}

impl Installed {
    /// Puts a card in the place of the first node's uplink: with the name, the addresses and the
    /// default routes that the lab's own wire had, which is no more. The next hop is a neighbour
    /// that is set.
    ///
    /// # Errors
    ///
    /// As [`Uplink::check`]; [`Error::NoCarrier`]; what the kernel says.
    pub(super) fn install(uplink: &Uplink, fabric: &Fabric) -> Result<Self> {
        let node = fabric.node(1)?.namespace();
        let link = uplink.check()?;
        let inside = node.netlink()?;
        let failed = uplink.failed("move");
        // Before there is an entry to give the card back: that would take it for the card.
        inside
            .delete_link(node.link(UPLINK)?.index)
            .map_err(uplink.failed("make room for"))?;
        let this = Self {
            _back: give_back(uplink, &link, node)?,
        };
        let here = Netlink::open().map_err(uplink.failed("move"))?;
        here.set_up(link.index, false)
            .and_then(|()| here.move_to(link.index, node.path(), UPLINK))
            .map_err(failed)?;
        let card = node.link(UPLINK)?;
        address(&inside, card.index, uplink).map_err(uplink.failed("set up"))?;
        await_carrier(node, uplink)?;
        Ok(this)
    }
}

/// Registers how the card comes back: to this thread's namespace, under its name, and on if it was.
fn give_back(uplink: &Uplink, link: &Link, node: &Namespace) -> Result<Teardown> {
    let own = "/proc/thread-self/ns/net";
    let home = File::open(own).map_err(Error::os("open", own))?;
    let (node, name, up) = (node.path().to_owned(), uplink.interface.clone(), link.up);
    Ok(signals::on_teardown(move || {
        let path = PathBuf::from(format!("/proc/self/fd/{}", home.as_raw_fd()));
        bring_home(&node, &path, &name, up).map_err(|source| LabError::Netlink {
            namespace: node.display().to_string(),
            source,
        })
    }))
}

fn bring_home(node: &Path, home: &Path, name: &str, up: bool) -> Result<(), NetlinkError> {
    let inside = Netlink::open_in(node)?;
    let Some(card) = inside.link(UPLINK)? else {
        // It never came, or somebody else has taken it.
        return Ok(());
    };
    inside.set_up(card.index, false)?;
    inside.move_to(card.index, home, name)?;
    let outside = Netlink::open_in(home)?;
    match outside.link(name)? {
        Some(card) if up => outside.set_up(card.index, true),
        _ => Ok(()),
    }
}

fn address(inside: &Netlink, index: u32, uplink: &Uplink) -> Result<(), NetlinkError> {
    inside.set_up(index, true)?;
    for family in Family::ALL {
        let length = plan::underlay(family).prefix_len();
        let own = plan::node_address(1, family);
        let own = IpNet::new(own, length).unwrap_or_else(|_| own.into());
        inside.add_address(index, own)?;
        let gateway = plan::fabric_address(family);
        inside.add_neighbour(index, gateway, uplink.next_hop)?;
        let everywhere = match family {
            Family::Ipv4 => IpNet::V4(ipnet::Ipv4Net::default()),
            Family::Ipv6 => IpNet::V6(ipnet::Ipv6Net::default()),
        };
        inside.add_route(&Route::to(everywhere).via(gateway).dev(index))?;
    }
    Ok(())
}

fn await_carrier(node: &Namespace, uplink: &Uplink) -> Result<()> {
    let deadline = Instant::now() + scaled(CARRIER);
    while !node.link(UPLINK)?.running {
        if Instant::now() > deadline {
            return Err(Error::NoCarrier {
                interface: uplink.interface.clone(),
            });
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
