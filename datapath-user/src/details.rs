//! What endpoints and peers were asked for with, in full: the pinned `details`, beside the records
//! of the [`Journal`](crate::journal::Journal), which have room for names only.
//!
//! A text lies in pieces. It is written beside the one that it replaces, its first piece last, and
//! only then the other one goes: whenever this ends, one of them is whole.

use std::collections::BTreeMap;
use std::path::Path;

use aya::maps::{HashMap, MapData};
use datapath_kern::abi::flow::End;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;
use crate::maps::{gone, pinned};
use crate::naming::digest;

/// Pin of the pieces.
pub(crate) const DETAILS: &str = "details";

/// Bytes of a piece: with `struct htab_elem` and the key 1024.
const PIECE_BYTES: usize = 960;
/// Room for pieces, 60 MiB of text.
const MAX_PIECES: u32 = 65_536;
/// `BPF_F_NO_PREALLOC` (`include/uapi/linux/bpf.h`): there are mostly few.
const NO_PREALLOC: u32 = 1;
/// Bytes of the [`Header`] in front of a text.
const HEADER_BYTES: usize = 16;

type Piece = [u8; PIECE_BYTES];

/// The details of a pinned datapath.
///
/// The key of a piece:
///
/// ```text
/// 63..48 zero | 47..32 end | 31 which of two texts | 30..0 number of the piece
/// ```
pub(crate) struct Details {
    map: HashMap<MapData, u64, Piece>,
    /// The texts that are there.
    written: BTreeMap<u16, Written>,
}

/// Where a text is.
#[derive(Clone, Copy, Debug)]
struct Written {
    second: bool,
    pieces: u32,
    header: Header,
}

/// In front of the first piece's part of the text.
///
/// ```text
/// 0 length 4 | 4 sequence 4 | 8 digest 8; in the order of the machine
/// ```
#[derive(Clone, Copy, Debug)]
struct Header {
    /// Bytes of the text.
    length: u32,
    /// Of two whole texts the later one counts.
    sequence: u32,
    /// Of the text.
    digest: u64,
}

impl Details {
    /// Makes and pins the map, empty.
    ///
    /// # Errors
    ///
    /// [`Error::Map`], [`Error::File`].
    pub(crate) fn create(directory: &Path) -> Result<Self, Error> {
        let map = HashMap::<MapData, u64, Piece>::create(MAX_PIECES, NO_PREALLOC)
            .map_err(Error::map("create", DETAILS))?;
        let path = directory.join(DETAILS);
        map.pin(&path)
            .map_err(|error| Error::file("pin map at", path)(std::io::Error::other(error)))?;
        Self::open(directory).map(|(details, _)| details)
    }

    /// Opens that of an earlier process: also returns its texts. Pieces of others are removed.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub(crate) fn open(directory: &Path) -> Result<(Self, BTreeMap<u16, Vec<u8>>), Error> {
        let map: HashMap<MapData, u64, Piece> = pinned(directory, DETAILS)?;
        let mut found: BTreeMap<(u16, bool), BTreeMap<u32, Piece>> = BTreeMap::new();
        for entry in &map {
            let (key, piece) = entry.map_err(Error::map("read", DETAILS))?;
            let (end, second, number) = parts(key);
            found
                .entry((end, second))
                .or_default()
                .insert(number, piece);
        }
        let mut details = Self {
            map,
            written: BTreeMap::new(),
        };
        let mut texts = BTreeMap::new();
        let mut strays = Vec::new();
        for ((end, second), pieces) in found {
            let numbers: Vec<u32> = pieces.keys().copied().collect();
            let stray = |second, number| key(end, second, number);
            let Some((header, text)) = whole(&pieces) else {
                strays.extend(numbers.into_iter().map(|number| stray(second, number)));
                continue;
            };
            let count = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
            let this = Written {
                second,
                pieces: count,
                header,
            };
            let later = |other: &Written| {
                header.sequence.wrapping_sub(other.header.sequence) < u32::MAX / 2
            };
            match details.written.get(&end).copied() {
                Some(other) if !later(&other) => {
                    strays.extend((0..count).map(|number| stray(second, number)));
                }
                other => {
                    let other = other.into_iter();
                    strays.extend(other.flat_map(|other| {
                        (0..other.pieces).map(move |number| stray(other.second, number))
                    }));
                    details.written.insert(end, this);
                    texts.insert(end, text);
                }
            }
        }
        for key in strays {
            details.remove_piece(key)?;
        }
        Ok((details, texts))
    }

    /// Writes what is to be known of an end, in the place of what was.
    ///
    /// # Errors
    ///
    /// [`Error::Map`], [`Error::Full`]; then what was known is.
    pub(crate) fn put(&mut self, end: End, of: &impl Serialize) -> Result<(), Error> {
        let text = serde_json::to_vec(of).map_err(|error| Error::Invalid {
            what: "specification",
            value: error.to_string(),
            rule: "must be one that can be written down",
        })?;
        let raw = end.raw();
        let before = self.written.get(&raw).copied();
        let digest = digest(&text);
        if before.is_some_and(|before| before.header.digest == digest) {
            return Ok(());
        }
        let second = before.is_some_and(|before| !before.second);
        let header = Header {
            length: u32::try_from(text.len()).unwrap_or(u32::MAX),
            sequence: before.map_or(0, |before| before.header.sequence.wrapping_add(1)),
            digest,
        };
        let pieces = cut(header, &text);
        let count = u32::try_from(pieces.len()).unwrap_or(u32::MAX);
        // The first one last: without it the others are nothing.
        for (number, piece) in (0..count).zip(&pieces).rev() {
            let inserted = self.map.insert(key(raw, second, number), piece, 0);
            if let Err(error) = inserted {
                let failed = Error::map("insert into", DETAILS)(error);
                for number in number..count {
                    self.remove_piece(key(raw, second, number))?;
                }
                return Err(failed);
            }
        }
        let this = Written {
            second,
            pieces: count,
            header,
        };
        self.written.insert(raw, this);
        before.map_or(Ok(()), |before| self.remove_text(raw, before))
    }

    /// Forgets an end.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub(crate) fn remove(&mut self, end: End) -> Result<(), Error> {
        match self.written.remove(&end.raw()) {
            Some(written) => self.remove_text(end.raw(), written),
            None => Ok(()),
        }
    }

    /// The first piece goes first: without it the others are nothing.
    fn remove_text(&mut self, end: u16, written: Written) -> Result<(), Error> {
        (0..written.pieces)
            .try_for_each(|number| self.remove_piece(key(end, written.second, number)))
    }

    fn remove_piece(&mut self, key: u64) -> Result<(), Error> {
        gone(self.map.remove(&key)).map_err(Error::map("remove from", DETAILS))
    }
}

/// Reads what [`Details::put`] wrote; none where another version wrote something else.
pub(crate) fn read<T: DeserializeOwned>(text: &[u8]) -> Option<T> {
    serde_json::from_slice(text)
        .inspect_err(
            |error| tracing::warn!(%error, "details of an earlier process are not understood"),
        )
        .ok()
}

fn key(end: u16, second: bool, number: u32) -> u64 {
    u64::from(end) << 32 | u64::from(second) << 31 | u64::from(number)
}

#[allow(clippy::cast_possible_truncation, reason = "parts of a number")]
const fn parts(key: u64) -> (u16, bool, u32) {
    (
        (key >> 32) as u16,
        key >> 31 & 1 != 0,
        key as u32 & 0x7fff_ffff,
    )
}

/// A text in pieces, behind its header.
fn cut(header: Header, text: &[u8]) -> Vec<Piece> {
    let mut all = Vec::with_capacity(HEADER_BYTES + text.len());
    all.extend_from_slice(&header.length.to_ne_bytes());
    all.extend_from_slice(&header.sequence.to_ne_bytes());
    all.extend_from_slice(&header.digest.to_ne_bytes());
    all.extend_from_slice(text);
    let padded = |part: &[u8]| {
        let mut piece = [0; PIECE_BYTES];
        for (to, from) in piece.iter_mut().zip(part) {
            *to = *from;
        }
        piece
    };
    all.chunks(PIECE_BYTES).map(padded).collect()
}

/// The text in these pieces, if it is whole.
fn whole(pieces: &BTreeMap<u32, Piece>) -> Option<(Header, Vec<u8>)> {
    let all: Vec<u8> = (0..)
        .map_while(|number: u32| pieces.get(&number))
        .flatten()
        .copied()
        .collect();
    let (length, rest) = all.split_first_chunk::<4>()?;
    let (sequence, rest) = rest.split_first_chunk::<4>()?;
    let (its_digest, rest) = rest.split_first_chunk::<8>()?;
    let header = Header {
        length: u32::from_ne_bytes(*length),
        sequence: u32::from_ne_bytes(*sequence),
        digest: u64::from_ne_bytes(*its_digest),
    };
    let text = rest.get(..header.length as usize)?;
    (digest(text) == header.digest).then(|| (header, text.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(text: &[u8]) -> Header {
        Header {
            length: u32::try_from(text.len()).unwrap(),
            sequence: 7,
            digest: digest(text),
        }
    }

    #[test]
    fn a_text_is_whole_or_nothing() {
        for length in [0, 1, 943, 944, 945, 5000] {
            let text: Vec<u8> = (0..251).cycle().take(length).collect();
            let pieces: BTreeMap<u32, Piece> = (0..).zip(cut(header(&text), &text)).collect();
            let (found, back) = whole(&pieces).unwrap();
            assert_eq!((found.sequence, back), (7, text));
            for number in pieces.keys() {
                let mut torn = pieces.clone();
                torn.remove(number);
                assert!(whole(&torn).is_none(), "{length} without {number}");
            }
            let mut mixed = pieces.clone();
            let last = mixed.values_mut().last().unwrap();
            last[(HEADER_BYTES + length.max(1) - 1) % PIECE_BYTES] ^= 1;
            assert!(length == 0 || whole(&mixed).is_none(), "{length}");
        }
    }

    #[test]
    fn a_key_says_whose_piece_it_is() {
        for all in [(0, false, 0), (5, true, 1), (0x8007, false, 0x7fff_ffff)] {
            let (end, second, number) = all;
            assert_eq!(parts(key(end, second, number)), all);
        }
    }
}
