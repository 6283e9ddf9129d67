//! What outlives the process beside the maps of the datapath: the pinned `state`, `records` and
//! `details`.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::maps::{Array, HashMap, MapData};
use aya::pin::PinError;
use datapath_kern::abi;
use datapath_kern::abi::endpoint::MAX_ENDPOINTS;
use datapath_kern::abi::flow::End;
use datapath_kern::abi::state::{Record, State, phase};
use datapath_kern::abi::tunnel::MAX_PEERS;

use crate::details::Details;
use crate::error::Error;
use crate::maps::{gone, pinned};

/// Pin of the one [`State`].
pub(crate) const STATE: &str = "state";
/// Pin of the [`Record`]s.
pub(crate) const RECORDS: &str = "records";

/// `BPF_F_NO_PREALLOC` (`include/uapi/linux/bpf.h`): there is room for thousands of records, and
/// there are mostly few.
const NO_PREALLOC: u32 = 1;
/// Room for records.
const MAX_RECORDS: u32 = MAX_ENDPOINTS + MAX_PEERS;

/// The calling thread's network namespace.
const OWN_NETNS: &str = "/proc/thread-self/ns/net";

/// State and records of a pinned datapath.
pub(crate) struct Journal {
    map: Array<MapData, State>,
    records: HashMap<MapData, u32, Record>,
    /// What ends were asked for with.
    pub(crate) details: Details,
    /// That of an earlier process, by [`End::raw`].
    pub(crate) recovered: BTreeMap<u16, Vec<u8>>,
    /// As the map has it.
    state: State,
}

impl Journal {
    /// Makes and pins them, the state first: what is in the directory with it is ours.
    ///
    /// # Errors
    ///
    /// [`Error::Map`], [`Error::File`].
    pub(crate) fn create(directory: &Path, flags: u32, seed: u32) -> Result<Self, Error> {
        let state = State {
            magic: abi::MAGIC,
            abi_version: abi::VERSION,
            phase: phase::PARTIAL,
            flags,
            netns: own_netns()?,
            seed,
            ..State::default()
        };
        let mut map = Array::create(1, 0).map_err(Error::map("create", STATE))?;
        map.set(0, state, 0)
            .map_err(Error::map("write to", STATE))?;
        pin(directory, STATE, |path| map.pin(path))?;
        let records = HashMap::<MapData, u32, Record>::create(MAX_RECORDS, NO_PREALLOC)
            .map_err(Error::map("create", RECORDS))?;
        pin(directory, RECORDS, |path| records.pin(path))?;
        Details::create(directory)?;
        Self::open(directory)
    }

    /// Opens those of an earlier process.
    ///
    /// # Errors
    ///
    /// [`Error::Map`] where they are not what they should be.
    pub(crate) fn open(directory: &Path) -> Result<Self, Error> {
        let map = pinned(directory, STATE)?;
        let (details, recovered) = Details::open(directory)?;
        Ok(Self {
            state: read(&map)?,
            records: pinned(directory, RECORDS)?,
            details,
            recovered,
            map,
        })
    }

    /// The state, as it is.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// Changes the state.
    ///
    /// # Errors
    ///
    /// [`Error::Map`]; then nothing is changed.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut State)) -> Result<(), Error> {
        let mut state = self.state;
        change(&mut state);
        self.map
            .set(0, state, 0)
            .map_err(Error::map("write to", STATE))?;
        self.state = state;
        Ok(())
    }

    /// Hands out a generation; the map knows before anyone else.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub(crate) fn next_generation(&mut self) -> Result<u32, Error> {
        self.change(|state| state.generation = state.generation.wrapping_add(1))?;
        Ok(self.state.generation)
    }

    /// Writes a record, or replaces it.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub(crate) fn put(&mut self, end: End, record: &Record) -> Result<(), Error> {
        self.records
            .insert(u32::from(end.raw()), record, 0)
            .map_err(Error::map("insert into", RECORDS))
    }

    /// Says of a record that its thing is half made or half removed, or whole; one that is not
    /// there stays away.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub(crate) fn set_phase(&mut self, end: End, phase: u32) -> Result<(), Error> {
        match self.records.get(&u32::from(end.raw()), 0) {
            Ok(record) => self.put(end, &Record { phase, ..record }),
            Err(error) => gone(Err(error)).map_err(Error::map("read", RECORDS)),
        }
    }

    /// Removes a record, and the details with it; one that is not there is fine.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub(crate) fn remove(&mut self, end: End) -> Result<(), Error> {
        self.details.remove(end)?;
        gone(self.records.remove(&u32::from(end.raw()))).map_err(Error::map("remove from", RECORDS))
    }

    /// All records.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub(crate) fn records(&self) -> Result<Vec<(End, Record)>, Error> {
        let mut found = Vec::new();
        for entry in &self.records {
            let (key, record) = entry.map_err(Error::map("read", RECORDS))?;
            let raw = u16::try_from(key).unwrap_or_default();
            found.push((End::from_raw(raw), record));
        }
        found.sort_by_key(|(end, _)| end.raw());
        Ok(found)
    }
}

/// The state in a directory, of whatever version; `None` where its map is not of that kind.
pub(crate) fn peek(directory: &Path) -> Option<State> {
    let map = pinned::<Array<MapData, State>>(directory, STATE).ok()?;
    read(&map).ok().filter(|state| state.magic == abi::MAGIC)
}

/// Marks what is in a directory as half removed, of whatever version it is.
///
/// # Errors
///
/// [`Error::Map`].
pub(crate) fn condemn(directory: &Path, state: State) -> Result<(), Error> {
    let mut map = pinned::<Array<MapData, State>>(directory, STATE)?;
    let state = State {
        phase: phase::PARTIAL,
        ..state
    };
    map.set(0, state, 0).map_err(Error::map("write to", STATE))
}

/// Inode of the calling thread's network namespace.
///
/// # Errors
///
/// [`Error::File`].
pub(crate) fn own_netns() -> Result<u64, Error> {
    let found = fs::metadata(OWN_NETNS).map_err(Error::file("look at", OWN_NETNS))?;
    Ok(found.ino())
}

/// A record, its texts cut to their fields.
pub(crate) fn record(phase: u32, name: &str, interface: &str, path: &Path) -> Record {
    Record {
        phase,
        interface: field(interface.as_bytes()),
        name: field(name.as_bytes()),
        path: field(path.as_os_str().as_bytes()),
    }
}

/// The name in a record.
pub(crate) fn name(record: &Record) -> String {
    text(&record.name)
}

/// The interface in a record.
pub(crate) fn interface(record: &Record) -> String {
    text(&record.interface)
}

/// The path in a record.
pub(crate) fn path(record: &Record) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(until_zero(&record.path)))
}

fn read(map: &Array<MapData, State>) -> Result<State, Error> {
    map.get(&0, 0).map_err(Error::map("read", STATE))
}

fn pin(
    directory: &Path,
    name: &str,
    pin: impl FnOnce(&Path) -> Result<(), PinError>,
) -> Result<(), Error> {
    let path = directory.join(name);
    pin(&path).map_err(|error| Error::file("pin map at", path)(std::io::Error::other(error)))
}

fn field<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut field = [0; N];
    for (to, from) in field.iter_mut().zip(bytes) {
        *to = *from;
    }
    field
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(until_zero(field)).into_owned()
}

fn until_zero(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_says_what_it_was_told() {
        let long = "x".repeat(63);
        let netns = Path::new("/run/netns/web-0");
        let written = record(phase::WHOLE, &long, "fifteen-bytes-x", netns);
        assert_eq!(name(&written), long);
        assert_eq!(interface(&written), "fifteen-bytes-x");
        assert_eq!(path(&written), netns);
        let peer = record(phase::PARTIAL, "n2", "", Path::new(""));
        assert_eq!(
            (name(&peer).as_str(), interface(&peer).as_str()),
            ("n2", "")
        );
        assert_eq!(path(&peer), Path::new(""));
    }
}
