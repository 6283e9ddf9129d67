//! What a datapath has in the kernel, by its pins: also that of a process that is gone.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use aya::maps::{HashMap, LpmTrie, Map, MapData, MapInfo};
use aya::programs::links::{FdLink, LinkInfo, PinnedLink};
use aya::programs::{ProgramInfo, loaded_programs};
use datapath_kern::abi::addr::Addr;
use datapath_kern::abi::flow::{Flow, FlowKey};
use datapath_kern::abi::ipcache::IpEntry;
use datapath_kern::abi::tunnel::Uplink;
use serde::{Deserialize, Serialize};

use crate::clsact;
use crate::error::Error;

/// A pinned map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapView {
    /// Name of its pin.
    pub name: String,
    /// Its number in the kernel.
    pub id: u32,
    /// Its kind, as aya names it.
    pub kind: String,
    /// Size of a key.
    pub key_bytes: u32,
    /// Size of a value.
    pub value_bytes: u32,
    /// Room for entries.
    pub max_entries: u32,
    /// Entries that there are; none for arrays, whose entries are always there, and for maps that
    /// this version does not know.
    pub used: Option<usize>,
}

/// A loaded program that uses pinned maps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramView {
    /// Its name in the kernel, at most 15 bytes.
    pub name: String,
    /// Its number in the kernel.
    pub id: u32,
    /// Digest of its instructions, 16 hexadecimal digits.
    pub tag: String,
    /// Size of the compiled code.
    pub jitted_bytes: u32,
    /// Size of the instructions as verified and patched; none where the kernel does not tell.
    pub translated_bytes: Option<u32>,
    /// Instructions that the verifier looked at; none before Linux 5.16.
    pub verified_instructions: Option<u32>,
    /// How often it ran while `kernel.bpf_stats_enabled` was set.
    pub runs: u64,
    /// How long it ran meanwhile, nanoseconds.
    pub run_time_ns: u64,
    /// The maps that it uses.
    pub map_ids: Vec<u32>,
}

/// A pinned link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkView {
    /// Name of its pin: the program, and the interface.
    pub name: String,
    /// Its number in the kernel; none where the program is attached by a filter.
    pub id: Option<u32>,
    /// The program that it attaches; none for what is neither a link nor a program.
    pub program_id: Option<u32>,
}

/// Lists the maps that are pinned in the `bpffs` directory of a datapath, by name.
///
/// # Errors
///
/// [`Error::File`] when the directory cannot be read, [`Error::Pin`] for what cannot be looked at.
pub fn maps(bpffs: &Path) -> Result<Vec<MapView>, Error> {
    let directory = bpffs.join("maps");
    let entries = fs::read_dir(&directory).map_err(Error::file("read", &directory))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::file("read", &directory))?.path();
        found.push(view(&path)?);
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Lists the programs that use the maps pinned in the `bpffs` directory of a datapath, by name.
///
/// # Errors
///
/// As [`maps`]; [`Error::Programs`] when programs cannot be listed.
pub fn programs(bpffs: &Path) -> Result<Vec<ProgramView>, Error> {
    let own: BTreeSet<u32> = maps(bpffs)?.into_iter().map(|map| map.id).collect();
    let mut found = Vec::new();
    // One that goes while they are listed is none of ours to tell of.
    for info in loaded_programs().flatten() {
        let map_ids = info
            .map_ids()
            .map_err(|source| Error::Programs(Box::new(source)))?
            .unwrap_or_default();
        if map_ids.iter().any(|id| own.contains(id)) {
            found.push(program(&info, map_ids));
        }
    }
    found.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
    Ok(found)
}

/// Lists what is pinned as links in the `bpffs` directory of a datapath, by name.
///
/// # Errors
///
/// [`Error::File`] when the directory cannot be read.
pub fn links(bpffs: &Path) -> Result<Vec<LinkView>, Error> {
    let directory = bpffs.join("links");
    let entries = fs::read_dir(&directory).map_err(Error::file("read", &directory))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::file("read", &directory))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let (id, program_id) = numbers(&path);
        found.push(LinkView {
            name: name.into_owned(),
            id,
            program_id,
        });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// The numbers of a pinned link and of its program; where programs are attached by filters, it is
/// the program that is pinned.
fn numbers(path: &Path) -> (Option<u32>, Option<u32>) {
    if clsact::is_pin(path) {
        return (None, ProgramInfo::from_pin(path).ok().map(|info| info.id()));
    }
    let link = PinnedLink::from_pin(path).map(FdLink::from);
    let info = link.and_then(|link| link.info()).ok();
    (
        info.as_ref().map(LinkInfo::id),
        info.as_ref().map(LinkInfo::program_id),
    )
}

fn program(info: &ProgramInfo, map_ids: Vec<u32>) -> ProgramView {
    ProgramView {
        name: info.name_as_str().unwrap_or_default().to_owned(),
        id: info.id(),
        tag: format!("{:016x}", info.tag()),
        jitted_bytes: info.size_jitted(),
        translated_bytes: info.size_translated(),
        verified_instructions: info.verified_instruction_count(),
        runs: info.run_count(),
        run_time_ns: u64::try_from(info.run_time().as_nanos()).unwrap_or(u64::MAX),
        map_ids,
    }
}

fn view(path: &Path) -> Result<MapView, Error> {
    let failed = |source| Error::Pin {
        path: path.to_path_buf(),
        source: Box::new(source),
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let info = MapInfo::from_pin(path).map_err(failed)?;
    let kind = info.map_type().map_err(failed)?;
    let data = MapData::from_pin(path).map_err(failed)?;
    Ok(MapView {
        id: info.id(),
        kind: format!("{kind:?}"),
        key_bytes: info.key_size(),
        value_bytes: info.value_size(),
        max_entries: info.max_entries(),
        used: Map::from_map_data(data)
            .ok()
            .and_then(|map| used(&name, map)),
        name: name.into_owned(),
    })
}

/// Counts the entries of a map whose layout is known.
fn used(name: &str, map: Map) -> Option<usize> {
    match name {
        "flows" | "pending" | "flows_before" | "pending_before" => keys::<FlowKey, Flow>(map),
        "endpoint_slots" => keys::<u32, u32>(map),
        "peer_indices" => keys::<Addr, u32>(map),
        "uplinks" => keys::<u32, Uplink>(map),
        "ipcache" => {
            let trie = LpmTrie::<_, Addr, IpEntry>::try_from(map).ok()?;
            Some(trie.keys().flatten().count())
        }
        _ => None,
    }
}

fn keys<K: aya::Pod, V: aya::Pod>(map: Map) -> Option<usize> {
    let table = HashMap::<_, K, V>::try_from(map).ok()?;
    Some(table.keys().flatten().count())
}
