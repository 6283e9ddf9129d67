//! The two maps that policy is in.

use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{HashMap, IterableMap, MapData, MapError};
use datapath_kern::abi::policy::{
    MAX_PEER_CLASSES, MAX_PORT_VERDICTS, PeerKey, PortKey, PortVerdict,
};
use zerocopy::{Immutable, IntoBytes};

use crate::batch::{self, Cursor};
use crate::error::Error;
use crate::maps::Maps;
use crate::policy::Class;

const PEERS: &str = "policy_peers";
const PORTS: &str = "policy_ports";

/// `policy_peers` and `policy_ports`.
pub(super) struct Store<'a> {
    pub(super) peers: &'a mut HashMap<MapData, PeerKey, u32>,
    pub(super) ports: &'a mut LpmTrie<MapData, PortKey, PortVerdict>,
    /// Room of each.
    pub(super) room: Room,
}

/// How many entries there may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) peers: u32,
    pub(super) ports: u32,
}

/// One entry of `policy_ports`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PortEntry {
    key: PrefixKey,
    verdict: PortVerdict,
}

/// A key of the longest-prefix map as bpf(2) takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Immutable, IntoBytes)]
#[repr(C)]
struct PrefixKey {
    bits: u32,
    port: PortKey,
}

impl PortEntry {
    /// The entries of a class under a number.
    pub(super) fn of(number: u32, class: &Class) -> impl Iterator<Item = Self> {
        class.entries.iter().map(move |entry| Self {
            key: PrefixKey {
                bits: entry.prefix_bits,
                port: PortKey {
                    class: number,
                    reserved: 0,
                    protocol: entry.protocol,
                    port: entry.port.into(),
                },
            },
            verdict: entry.verdict,
        })
    }

    /// The class that it is of.
    pub(super) const fn class(&self) -> u32 {
        self.key.port.class
    }
}

impl<'a> Store<'a> {
    pub(super) fn of(maps: &'a mut Maps) -> Self {
        Self {
            peers: &mut maps.policy_peers,
            ports: &mut maps.policy_ports,
            room: Room {
                peers: MAX_PEER_CLASSES,
                ports: MAX_PORT_VERDICTS,
            },
        }
    }

    pub(super) fn write_peers(&mut self, entries: &[(PeerKey, u32)]) -> Result<(), Error> {
        let (keys, classes): (Vec<PeerKey>, Vec<u32>) = entries.iter().copied().unzip();
        let written = batch::write(self.peers.map(), &keys, &classes);
        written.map_err(|(done, error)| failed(PEERS, keys.len(), done, self.room.peers, error))
    }

    pub(super) fn write_ports(&mut self, entries: &[PortEntry]) -> Result<(), Error> {
        let (keys, verdicts): (Vec<PrefixKey>, Vec<PortVerdict>) = entries
            .iter()
            .map(|entry| (entry.key, entry.verdict))
            .unzip();
        let written = batch::write(self.ports.map(), &keys, &verdicts);
        written.map_err(|(done, error)| failed(PORTS, keys.len(), done, self.room.ports, error))
    }

    pub(super) fn remove_peers(&mut self, keys: &[PeerKey]) -> Result<(), Error> {
        batch::remove(self.peers.map(), keys).map_err(Error::map("remove from", PEERS))
    }

    pub(super) fn remove_ports(&mut self, entries: &[PortEntry]) -> Result<(), Error> {
        let keys: Vec<PrefixKey> = entries.iter().map(|entry| entry.key).collect();
        batch::remove(self.ports.map(), &keys).map_err(Error::map("remove from", PORTS))
    }

    pub(super) fn peers(&mut self) -> Result<Vec<(PeerKey, u32)>, Error> {
        let (mut cursor, mut entries) = (Cursor::new(), Vec::new());
        loop {
            let read = cursor.read(self.peers, &mut entries);
            if !read.map_err(Error::map("read", PEERS))? {
                return Ok(entries);
            }
        }
    }

    pub(super) fn ports(&mut self) -> Result<Vec<PortEntry>, Error> {
        let entries = self.ports.iter().map(|found| {
            let (key, verdict) = found?;
            let key = PrefixKey {
                bits: key.prefix_len(),
                port: key.data(),
            };
            Ok(PortEntry { key, verdict })
        });
        entries
            .collect::<Result<_, MapError>>()
            .map_err(Error::map("read", PORTS))
    }
}

/// Why entries could not be written, `done` of them written: a full map is told as one.
fn failed(map: &'static str, needed: usize, done: usize, max: u32, error: MapError) -> Error {
    use nix::libc::{E2BIG, ENOSPC};
    let number = match &error {
        MapError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    };
    match number {
        Some(E2BIG | ENOSPC) => Error::PolicyFull {
            map,
            needed,
            used: (max as usize).saturating_sub(done),
            max,
        },
        _ => Error::map("write to", map)(error),
    }
}
