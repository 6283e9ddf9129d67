//! Network cards, joined in pairs.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use datapath_tunnel::netlink::{Link, Netlink, NetlinkError};

use crate::{
    error::{Error, Result},
    offload::Offload,
    patience::scaled,
    program,
    topology::Cable,
};

/// First bytes of the addresses of cards that are joined: the fifth one counts cables, the sixth
/// says which end it is.
const MAC: [u8; 4] = [0x52, 0x54, 0x00, 0xdb];

/// How long cards take to come back from a lab that was taken down: the kernel takes a namespace
/// apart some time after its name is gone.
const RETURN: Duration = Duration::from_secs(5);

/// The cables between cards of this namespace, once there are `count`.
///
/// # Errors
///
/// [`Error::Invalid`] if that does not come about.
pub(super) fn cables(count: usize) -> Result<Vec<Cable>> {
    let netlink = Netlink::open().map_err(refused)?;
    let deadline = Instant::now() + scaled(RETURN);
    loop {
        let cables = joined(&netlink.links().map_err(refused)?);
        if cables.len() == count {
            return Ok(cables);
        }
        if Instant::now() > deadline {
            return Err(Error::Invalid {
                what: "network cards",
                value: format!("{cables:?}"),
                rule: "there must be three pairs, addressed 52:54:00:db:<cable>:<end, 1 or 2>",
            });
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// The driver of a cable's cards, and what they do about checksums and segments.
///
/// # Errors
///
/// What ethtool says.
pub(super) fn describe(cable: &Cable) -> Result<Vec<(String, String)>> {
    let card = cable.far.as_str();
    let driver = Path::new("/sys/class/net").join(card).join("device/driver");
    let driver = fs::read_link(&driver).map_err(Error::os("read", driver.display()))?;
    let driver = driver.file_name().unwrap_or_default().to_string_lossy();
    let mut command = Command::new("ethtool");
    let features = program::output("ethtool", "ethtool", command.args(["-k", card]))?;
    let state = |offload: Offload| {
        let mut lines = features.lines().map(str::trim);
        let state = lines.find_map(|line| line.strip_prefix(offload.name())?.strip_prefix(": "));
        (offload.name().to_owned(), state.unwrap_or("no").to_owned())
    };
    let driver = ("network cards".to_owned(), driver.into_owned());
    Ok([driver]
        .into_iter()
        .chain(Offload::ALL.map(state))
        .collect())
}

/// The pairs among interfaces; a card without another is none.
fn joined(links: &[Link]) -> Vec<Cable> {
    let mut names: BTreeMap<(u8, u8), &str> = BTreeMap::new();
    for link in links {
        let [a, b, c, d, cable, end] = link.mac;
        if [a, b, c, d] == MAC {
            names.insert((cable, end), &link.name);
        }
    }
    let near = names.iter().filter(|((_, end), _)| *end == 1);
    let pairs = near.filter_map(|(&(cable, _), near)| {
        let far = names.get(&(cable, 2))?;
        Some(Cable {
            near: (*near).to_owned(),
            far: (*far).to_owned(),
        })
    });
    pairs.collect()
}

fn refused(source: NetlinkError) -> Error {
    Error::Netlink {
        namespace: "this one".to_owned(),
        source,
    }
}
