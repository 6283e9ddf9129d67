//! Network cards, joined in pairs.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use datapath_tunnel::netlink::{Link, Netlink, NetlinkError};

use crate::{
    error::{Error, Result},
    offload::Offload,
    program,
    topology::Cable,
};

/// First bytes of the addresses of cards that are joined: the fifth one counts cables, the sixth
/// says which end it is.
const MAC: [u8; 4] = [0x52, 0x54, 0x00, 0xdb];

/// The cables between cards of this namespace.
///
/// # Errors
///
/// [`Error::Invalid`] if there is none, or a card without another.
pub(super) fn cables() -> Result<Vec<Cable>> {
    let links = Netlink::open()
        .and_then(|netlink| netlink.links())
        .map_err(refused)?;
    let cables = joined(&links);
    let loose = |cable: &Cable| cable.near.is_empty() || cable.far.is_empty();
    if cables.is_empty() || cables.iter().any(loose) {
        return Err(Error::Invalid {
            what: "network cards",
            value: format!("{cables:?}"),
            rule: "there must be pairs, with the addresses 52:54:00:db:<cable>:<end, 1 or 2>",
        });
    }
    Ok(cables)
}

/// The driver of a cable's cards, and what they do about checksums and segments.
///
/// # Errors
///
/// What ethtool says.
pub(super) fn describe(cable: &Cable) -> Result<String> {
    let card = cable.far.as_str();
    let driver = Path::new("/sys/class/net").join(card).join("device/driver");
    let driver = fs::read_link(&driver).map_err(Error::os("read", driver.display()))?;
    let driver = driver.file_name().unwrap_or_default().to_string_lossy();
    let mut command = Command::new("ethtool");
    let features = program::output("ethtool", "ethtool", command.args(["-k", card]))?;
    let on = |offload: &Offload| {
        let line = features
            .lines()
            .find_map(|line| line.trim().strip_prefix(offload.name()));
        line.is_some_and(|line| line.starts_with(": on"))
    };
    let offloads: Vec<_> = Offload::ALL.iter().filter(|o| on(o)).collect();
    let offloads: Vec<_> = offloads.into_iter().map(|o| o.name()).collect();
    Ok(format!("{driver}: {}", offloads.join(", ")))
}

fn joined(links: &[Link]) -> Vec<Cable> {
    let mut cables: BTreeMap<u8, Cable> = BTreeMap::new();
    for link in links {
        let [a, b, c, d, cable, end] = link.mac;
        if [a, b, c, d] != MAC {
            continue;
        }
        let cable = cables.entry(cable).or_insert_with(|| Cable {
            near: String::new(),
            far: String::new(),
        });
        match end {
            1 => cable.near.clone_from(&link.name),
            _ => cable.far.clone_from(&link.name),
        }
    }
    cables.into_values().collect()
}

fn refused(source: NetlinkError) -> Error {
    Error::Netlink {
        namespace: "this one".to_owned(),
        source,
    }
}
