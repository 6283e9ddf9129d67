//! What lies in the directory of the pins, and whether it may be adopted.

use std::collections::BTreeSet;
use std::path::Path;

use aya::maps::MapInfo;
use aya::programs::links::{LinkType, PinnedLink};
use aya_obj::Object;
use datapath_kern::abi;
use datapath_kern::abi::state::{State, flags, phase};

use crate::bpffs::{Pins, names};
use crate::clsact;
use crate::config::Config;
use crate::details::DETAILS;
use crate::error::Error;
use crate::flows::Which;
use crate::journal::{self, Journal, RECORDS, STATE};
use crate::maps::PINNED;
use crate::node::resize;
use crate::object::PROGRAMS;

/// What an earlier process left.
pub(crate) enum Found {
    /// Nothing, or next to nothing.
    Nothing,
    /// A datapath that was half made or half removed: nothing runs on it yet, or any more.
    Partial,
    /// A datapath that can be adopted.
    Whole(Box<Journal>),
}

/// Looks at what an earlier process left, and refuses what it may not touch, or what this object
/// cannot go on with.
///
/// # Errors
///
/// [`Error::Foreign`], [`Error::AbiVersion`], [`Error::OtherNamespace`]; for a whole one also
/// [`Error::MapShape`] and [`Error::Damaged`].
pub(crate) fn look(pins: &mut Pins, config: &Config, object: &[u8]) -> Result<Found, Error> {
    let Some(state) = state(pins)? else {
        return Ok(Found::Nothing);
    };
    if state.abi_version != abi::VERSION {
        return Err(Error::AbiVersion {
            path: pins.root().to_path_buf(),
            found: state.abi_version,
            ours: abi::VERSION,
        });
    }
    let ours = journal::own_netns()?;
    if state.netns != ours {
        return Err(Error::OtherNamespace {
            path: pins.root().to_path_buf(),
            found: state.netns,
            ours,
        });
    }
    if state.phase != phase::WHOLE {
        return Ok(Found::Partial);
    }
    resize::undo_unbegun(pins)?;
    check_maps(&pins.maps(), config, object)?;
    check_links(&pins.links())?;
    let journal = Journal::open(&pins.maps())?;
    Ok(Found::Whole(Box::new(journal)))
}

/// The state of what lies in the directory, of whatever version; `None` where nothing does.
///
/// # Errors
///
/// [`Error::Foreign`] for anything that is not a datapath's.
pub(crate) fn state(pins: &mut Pins) -> Result<Option<State>, Error> {
    if let Some(path) = pins.strangers()?.into_iter().next() {
        return Err(Error::Foreign { path });
    }
    let (maps, links) = (names(&pins.maps())?, names(&pins.links())?);
    if maps.contains(STATE) {
        let path = pins.maps().join(STATE);
        let state = journal::peek(&pins.maps()).ok_or(Error::Foreign { path })?;
        if state.flags & flags::DIRECTORY_MADE != 0 {
            pins.set_made();
        }
        return Ok(Some(state));
    }
    // The state is pinned first and removed last: beside it nothing is ours.
    let strange = (maps.iter().map(|name| pins.maps().join(name)))
        .chain(links.iter().map(|name| pins.links().join(name)))
        .chain(
            names(&pins.programs())?
                .iter()
                .map(|name| pins.programs().join(name)),
        )
        .next();
    match strange {
        Some(path) => Err(Error::Foreign { path }),
        None => Ok(None),
    }
}

/// Whether the pinned maps are what this object would make.
fn check_maps(directory: &Path, config: &Config, object: &[u8]) -> Result<(), Error> {
    let found = names(directory)?;
    let wanted: BTreeSet<String> = PINNED
        .into_iter()
        .chain([STATE, RECORDS, DETAILS])
        .map(ToOwned::to_owned)
        .collect();
    let former = [Which::FormerFlows, Which::FormerPending].map(Which::map);
    let strange = |name: &&String| !former.contains(&name.as_str());
    if let Some(name) = found.difference(&wanted).find(strange) {
        let path = directory.join(name);
        return Err(Error::Foreign { path });
    }
    if let Some(name) = wanted.difference(&found).next() {
        let path = directory.join(name);
        return Err(Error::Damaged { path });
    }
    let object = Object::parse(object)
        .map_err(|error| Error::Load(Box::new(aya::EbpfError::from(error))))?;
    let former = former.into_iter().filter(|name| found.contains(*name));
    for name in PINNED.into_iter().chain(former) {
        let path = directory.join(name);
        let wanted = object.maps.get(name).ok_or_else(|| Error::Object {
            what: format!("map {name}"),
        })?;
        let found = MapInfo::from_pin(&path).map_err(Error::map("look at the pinned", name))?;
        let kind = found
            .map_type()
            .map_err(Error::map("look at the pinned", name))?;
        let entries = match name {
            "events" => config.event_ring_bytes,
            "fragments" | "fragment_ids" => config.max_fragments,
            // Of whatever size: it is changed, and flows are kept.
            "flows" | "pending" | "flows_before" | "pending_before" => found.max_entries(),
            _ => wanted.max_entries(),
        };
        for (what, found, wanted) in [
            ("type", kind as u32, wanted.map_type()),
            ("key_size", found.key_size(), wanted.key_size()),
            ("value_size", found.value_size(), wanted.value_size()),
            ("max_entries", found.max_entries(), entries),
            ("flags", found.map_flags(), wanted.map_flags()),
        ] {
            if found != wanted {
                return Err(Error::MapShape {
                    path,
                    what,
                    found,
                    wanted,
                });
            }
        }
    }
    Ok(())
}

/// Whether the pinned links are tcx or netkit links, or programs attached as filters, under names
/// that we give.
fn check_links(directory: &Path) -> Result<(), Error> {
    for name in names(directory)? {
        let path = directory.join(&name);
        if clsact::is_pin(&path) {
            continue;
        }
        let named = name.rsplit_once('-').is_some_and(|(program, index)| {
            PROGRAMS.contains(&program) && index.parse::<u32>().is_ok()
        });
        let kind = PinnedLink::from_pin(&path)
            .map(aya::programs::links::FdLink::from)
            .and_then(|link| link.info()?.link_type());
        if !named || !matches!(kind, Ok(LinkType::Tcx | LinkType::Netkit)) {
            return Err(Error::Foreign { path });
        }
    }
    Ok(())
}
