//! What a dead datapath left, and its removal without a configuration.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use datapath_kern::abi;
use datapath_kern::abi::flow::End;
use datapath_tunnel::netlink::{Link, Netlink};
use serde::{Deserialize, Serialize};

use crate::bpffs::Pins;
use crate::clsact;
use crate::error::Error;
use crate::gateway;
use crate::inventory;
use crate::journal::{self, Journal};
use crate::naming;
use crate::pair::Pair;

/// What [`cleanup`] removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// The directory that was looked at.
    pub bpffs: PathBuf,
    /// Version of the ABI of what was pinned there; none where nothing was.
    pub abi_version: Option<u32>,
    /// Pinned links, programs attached to interfaces.
    pub links: usize,
    /// Pinned maps.
    pub maps: usize,
    /// Interfaces: the gateway pair, with the routes that lead there, and the pods' pairs, by the
    /// name of the host's side.
    pub interfaces: Vec<String>,
    /// Whether the BPF file system was unmounted: it was mounted for the pins.
    pub unmounted: bool,
    /// Whether the directory was removed: it was made for the pins.
    pub directory: bool,
}

impl Removed {
    /// Tells whether there was nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self {
            bpffs: _,
            abi_version,
            links,
            maps,
            interfaces,
            unmounted,
            directory,
        } = self;
        let counted = *links + *maps + interfaces.len();
        abi_version.is_none() && counted == 0 && !unmounted && !directory
    }
}

/// Removes what a dead datapath left: links, maps, the gateway pair, pods' interfaces with their
/// routes, and the file system and directory that were made for the pins. A half-built one goes as
/// well, and one of another ABI version.
///
/// Runs in the network namespace that the datapath worked in; where that is gone, in any. Where
/// there is nothing, nothing is done.
///
/// # Errors
///
/// [`Error::InUse`] while a process has the directory, [`Error::Foreign`] and [`Error::Owner`] where
/// it is not a datapath's, [`Error::OtherNamespace`]: then nothing was touched. [`Error::Teardown`]
/// with all that could not be removed; it goes on after an error.
pub fn cleanup(bpffs: &Path) -> Result<Removed, Error> {
    let mut removed = Removed {
        bpffs: bpffs.to_path_buf(),
        ..Removed::default()
    };
    let pins = Pins::find(bpffs)?;
    let netlink = Netlink::open().map_err(Error::network("this namespace"))?;
    let Some(mut pins) = pins else {
        // The pins may have gone with their mount namespace.
        removed.interfaces = unused_interfaces(&netlink)?;
        return Ok(removed);
    };
    let state = inventory::state(&mut pins)?;
    let ours = journal::own_netns()?;
    let mut here = true;
    if let Some(state) = state {
        here = state.netns == ours;
        if !here && netns_exists(state.netns)? {
            return Err(Error::OtherNamespace {
                path: bpffs.to_path_buf(),
                found: state.netns,
                ours,
            });
        }
        removed.abi_version = Some(state.abi_version);
        journal::condemn(&pins.maps(), state)?;
    }
    let mut errors = Vec::new();
    if here {
        let names = recorded(&pins.maps(), removed.abi_version);
        let found = if state.is_some() {
            interfaces(&netlink, &names)
        } else {
            unused_interfaces(&netlink)
        };
        match found {
            Ok(interfaces) => removed.interfaces = interfaces,
            Err(error) => errors.push(error),
        }
    }
    let filters = if here {
        let (count, failures) = detach_filters(&pins);
        errors.extend(failures);
        count
    } else {
        0
    };
    match pins.empty() {
        Ok((links, maps)) => {
            (removed.links, removed.maps) = (filters + links, maps);
            (removed.unmounted, removed.directory) = pins.made();
            errors.extend(pins.release());
        }
        Err(error) => errors.push(error),
    }
    Error::collect(errors).map(|()| removed)
}

/// Removes what a half-made or half-removed datapath left, but for the directory.
///
/// # Errors
///
/// [`Error::File`], [`Error::Network`]; then it can be tried again.
pub(crate) fn clear(pins: &Pins, netlink: &Netlink) -> Result<(), Error> {
    let names = recorded(&pins.maps(), Some(abi::VERSION));
    // The interfaces first: the pins say that they are ours.
    interfaces(netlink, &names)?;
    Error::collect(detach_filters(pins).1)?;
    pins.empty().map(drop)
}

/// Detaches programs that are attached as filters: their pins going would leave them.
fn detach_filters(pins: &Pins) -> (usize, Vec<Error>) {
    let (count, failures) = clsact::detach_all(&pins.links());
    let failures = failures.into_iter().map(|source| Error::Detach {
        path: pins.links(),
        source,
    });
    (count, failures.collect())
}

/// Removes interfaces of a datapath whose pins are gone.
///
/// # Errors
///
/// [`Error::Occupied`] where a datapath uses them: one with another directory.
pub(crate) fn unused_interfaces(netlink: &Netlink) -> Result<Vec<String>, Error> {
    if gateway::is_worked(netlink)? {
        return Err(Error::Occupied {
            interface: gateway::HOST,
        });
    }
    interfaces(netlink, &BTreeSet::new())
}

/// Removes the gateway pair and pods' interfaces: those that say so themselves, and those that are
/// on record.
fn interfaces(netlink: &Netlink, recorded: &BTreeSet<String>) -> Result<Vec<String>, Error> {
    let mut removed = gateway::remove(netlink)?;
    let links = netlink.links().map_err(Error::network("this namespace"))?;
    for link in links {
        if is_of_a_pod(&link) || recorded.contains(&link.name) {
            netlink
                .delete_link(link.index)
                .map_err(Error::network(&link.name))?;
            removed.push(link.name);
        }
    }
    Ok(removed)
}

/// Whether an interface is the host's side of an endpoint's pair: its name follows from its alias.
pub(crate) fn is_of_a_pod(link: &Link) -> bool {
    let named = |id: &String| naming::host_interface(id) == link.name;
    Pair::of_kind(link.kind.as_deref()).is_some() && link.alias.as_ref().is_some_and(named)
}

/// The names of the host's sides of the endpoints on record, as far as they can be read. A pair that
/// was just made may have no alias yet.
fn recorded(maps: &Path, version: Option<u32>) -> BTreeSet<String> {
    if version != Some(abi::VERSION) {
        return BTreeSet::new();
    }
    let records = Journal::open(maps).and_then(|journal| journal.records());
    records
        .unwrap_or_default()
        .iter()
        .filter(|(end, _): &&(End, _)| !end.is_remote())
        .map(|(_, record)| naming::host_interface(&journal::name(record)))
        .collect()
}

/// Whether some process is in a network namespace, or something keeps it mounted.
fn netns_exists(inode: u64) -> Result<bool, Error> {
    const MOUNTS: &str = "/proc/thread-self/mountinfo";
    let name = format!("net:[{inode}]");
    let mounts = fs::read_to_string(MOUNTS).map_err(Error::file("read", MOUNTS))?;
    // Field 4 is the mounted file (proc(5)).
    if mounts
        .lines()
        .any(|line| line.split(' ').nth(3) == Some(name.as_str()))
    {
        return Ok(true);
    }
    let processes = fs::read_dir("/proc").map_err(Error::file("read", "/proc"))?;
    Ok(processes.flatten().any(|process| {
        let netns = fs::read_link(process.path().join("ns/net"));
        netns.is_ok_and(|netns| netns.as_os_str() == name.as_str())
    }))
}
