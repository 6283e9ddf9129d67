//! Hash maps read many entries at a time, maps written and emptied many at a time, and entries seen
//! as they are taken out: commands of bpf(2) that aya does not have.

#![expect(
    unsafe_code,
    reason = "bpf(2) is called here for commands that aya does not have"
)]

use std::ffi::c_void;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use aya::Pod;
use aya::maps::{HashMap, IterableMap, MapData, MapError};
use aya::sys::SyscallError;
use aya_obj::generated::bpf_cmd;
use nix::errno::Errno;
use nix::libc;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Entries read at once to begin with.
pub(crate) const CHUNK: u32 = 4096;
/// Entries read at once at most: a bucket is never that long.
const MAX_CHUNK: u32 = 1 << 20;

/// `ENOTSUPP` (include/linux/errno.h), which is not for user space and reaches it all the same.
const NOT_SUPPORTED: i32 = 524;

/// Entries written or removed at once.
const WRITE_CHUNK: usize = 4096;

/// What can be written to a map from memory as it is.
pub(crate) trait Raw: IntoBytes + Immutable {}
impl<T: IntoBytes + Immutable> Raw for T {}

/// What is in a map: read into and written from memory as it is.
pub(crate) trait Plain: Pod + FromBytes + IntoBytes + Immutable {}
impl<T: Pod + FromBytes + IntoBytes + Immutable> Plain for T {}

/// A pass over a hash map or an LRU hash map, a batch at a time.
///
/// Batches are of whole buckets: an entry that is there all the time is read exactly once, whatever
/// is entered and removed meanwhile.
#[derive(Debug)]
pub(crate) struct Cursor<K, V> {
    /// The bucket to go on at.
    place: Place,
    keys: Vec<K>,
    values: Vec<V>,
    /// Entries to ask for at once.
    chunk: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Start,
    Bucket(u32),
    End,
}

impl<K: Plain, V: Plain> Cursor<K, V> {
    /// At the beginning of a map.
    pub(crate) const fn new() -> Self {
        Self {
            place: Place::Start,
            keys: Vec::new(),
            values: Vec::new(),
            chunk: CHUNK,
        }
    }

    /// Goes back to the beginning; of the same map, or of another one.
    pub(crate) const fn rewind(&mut self) {
        self.place = Place::Start;
    }

    /// How many entries are read at once.
    pub(crate) const fn chunk(&self) -> u32 {
        self.chunk
    }

    /// Sets how many entries are read at once; a batch may be smaller, and larger where a bucket
    /// needs it.
    pub(crate) fn set_chunk(&mut self, entries: u32) {
        self.chunk = entries.clamp(1, MAX_CHUNK);
    }

    /// Reads on, and adds what was read to `entries`; false when there is no more to read.
    ///
    /// # Errors
    ///
    /// [`MapError::SyscallError`].
    pub(crate) fn read(
        &mut self,
        map: &HashMap<MapData, K, V>,
        entries: &mut Vec<(K, V)>,
    ) -> Result<bool, MapError> {
        let place = match self.place {
            Place::End => return Ok(false),
            Place::Start => None,
            Place::Bucket(bucket) => Some(bucket),
        };
        let result = self.read_batch(map.map(), place);
        let (count, next) = match result {
            Ok(found) => found,
            Err(error) if place.is_none() && lacks_command(&error) => {
                return self.read_singly(map, entries);
            }
            Err(error) => return Err(failed("bpf_map_lookup_batch", error)),
        };
        self.place = next.map_or(Place::End, Place::Bucket);
        let read = self.keys.iter().copied().zip(self.values.iter().copied());
        entries.extend(read.take(count));
        Ok(self.place != Place::End || count != 0)
    }

    /// Reads a batch into `keys` and `values`: how many there were, and the bucket to go on at.
    fn read_batch(
        &mut self,
        map: &MapData,
        place: Option<u32>,
    ) -> io::Result<(usize, Option<u32>)> {
        loop {
            self.keys.resize(self.chunk as usize, K::new_zeroed());
            self.values.resize(self.chunk as usize, V::new_zeroed());
            let mut next = 0_u32;
            let attributes = Several {
                in_batch: place.as_ref().map_or(0, address),
                out_batch: address_mut(&mut next),
                keys: self.keys.as_mut_ptr() as u64,
                values: self.values.as_mut_ptr() as u64,
                count: self.chunk,
                map_fd: map.fd().as_fd().as_raw_fd(),
                elem_flags: 0,
                flags: 0,
            };
            // SAFETY: `in_batch` and `out_batch` point to a bucket's number, which for hash maps is
            // four bytes whatever the key (`__htab_map_lookup_and_delete_batch`,
            // kernel/bpf/hashtab.c); `keys` and `values` have room for `count` of them, each as
            // large as the map has them: aya made sure when it took the map for one of `K` and `V`.
            // Any bytes are a `K` and a `V`. All of it lives as long as the call.
            let (result, attributes) = unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, attributes) };
            let Err(error) = result else {
                return Ok((attributes.count as usize, Some(next)));
            };
            match error.raw_os_error() {
                // Through.
                Some(libc::ENOENT) => return Ok((attributes.count as usize, None)),
                // The next bucket has more entries than were asked for.
                Some(libc::ENOSPC) if self.chunk < MAX_CHUNK => {
                    self.chunk = self.chunk.saturating_mul(2).min(MAX_CHUNK);
                }
                _ => return Err(error),
            }
        }
    }

    /// Reads all of the map, entry by entry: for kernels without batches.
    fn read_singly(
        &mut self,
        map: &HashMap<MapData, K, V>,
        entries: &mut Vec<(K, V)>,
    ) -> Result<bool, MapError> {
        self.place = Place::End;
        let before = entries.len();
        for entry in map {
            match entry {
                Ok(entry) => entries.push(entry),
                // It went while it was read.
                Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(entries.len() != before)
    }
}

/// What [`take`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken<V> {
    /// The entry was removed, and was this at that moment.
    Entry(V),
    /// There was none.
    Missing,
    /// This kernel cannot (before Linux 5.14); nothing was removed.
    Unsupported,
}

/// Takes an entry out and tells what it was, with nothing between: `BPF_MAP_LOOKUP_AND_DELETE_ELEM`.
///
/// # Errors
///
/// [`MapError::SyscallError`].
pub(crate) fn take<K: Plain, V: Plain>(
    map: &mut HashMap<MapData, K, V>,
    key: &K,
) -> Result<Taken<V>, MapError> {
    let map: &HashMap<MapData, K, V> = map;
    let mut value = V::new_zeroed();
    let attributes = element(map.map(), address(key), address_mut(&mut value));
    // SAFETY: `key` and `value` are as large as the map has them, see `Cursor::read_batch`; any
    // bytes are a `V`. Both live as long as the call.
    let (result, _) = unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_AND_DELETE_ELEM, attributes) };
    match result {
        Ok(()) => Ok(Taken::Entry(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Taken::Missing),
        Err(error) if lacks_command(&error) => Ok(Taken::Unsupported),
        Err(error) => Err(failed("bpf_map_lookup_and_delete_elem", error)),
    }
}

/// Writes entries, those that are there anew, in the order given. The map's keys and values are as
/// large as these.
///
/// # Errors
///
/// How many were written before the one that failed, and why that failed.
pub(crate) fn write<K: Raw, V: Raw>(
    map: &MapData,
    keys: &[K],
    values: &[V],
) -> Result<(), (usize, MapError)> {
    check(map, size_of::<K>(), Some(size_of::<V>())).map_err(|error| (0, error))?;
    let mut written = 0;
    for (keys, values) in keys.chunks(WRITE_CHUNK).zip(values.chunks(WRITE_CHUNK)) {
        let count = keys.len().min(values.len());
        let attributes = several(map, keys.as_ptr() as u64, values.as_ptr() as u64, count);
        // SAFETY: there are `count` keys and values, each as large as the map has them, which was
        // checked; they live as long as the call, which does not write to them.
        let (result, after) = unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_BATCH, attributes) };
        match result {
            Ok(()) => written += count,
            Err(error) if lacks_command(&error) => {
                for (key, value) in keys.iter().zip(values) {
                    write_one(map, key, value)
                        .map_err(|error| (written, failed("bpf_map_update_elem", error)))?;
                    written += 1;
                }
            }
            Err(error) => {
                // The kernel tells how far it came, but not before it began.
                let done = (after.count as usize).min(count.saturating_sub(1));
                return Err((written + done, failed("bpf_map_update_batch", error)));
            }
        }
    }
    Ok(())
}

/// Removes entries; those that are not there are fine.
///
/// # Errors
///
/// [`MapError::SyscallError`].
pub(crate) fn remove<K: Raw>(map: &MapData, keys: &[K]) -> Result<(), MapError> {
    check(map, size_of::<K>(), None)?;
    let mut rest = keys;
    while !rest.is_empty() {
        let chunk = rest.get(..WRITE_CHUNK).unwrap_or(rest);
        let attributes = several(map, chunk.as_ptr() as u64, 0, chunk.len());
        // SAFETY: as for `write`.
        let (result, after) = unsafe { bpf(bpf_cmd::BPF_MAP_DELETE_BATCH, attributes) };
        let done = match result {
            Ok(()) => chunk.len(),
            // As many were removed before one that was not there.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => after.count as usize + 1,
            Err(error) if lacks_command(&error) => {
                for key in chunk {
                    remove_one(map, key).map_err(|error| failed("bpf_map_delete_elem", error))?;
                }
                chunk.len()
            }
            Err(error) => return Err(failed("bpf_map_delete_batch", error)),
        };
        rest = rest.get(done..).unwrap_or_default();
    }
    Ok(())
}

/// Whether keys and values are as large as the map's.
fn check(map: &MapData, key: usize, value: Option<usize>) -> Result<(), MapError> {
    let info = map.info()?;
    let (expected_key, expected_value) = (info.key_size() as usize, info.value_size() as usize);
    if expected_key != key {
        return Err(MapError::InvalidKeySize {
            size: key,
            expected: expected_key,
        });
    }
    match value.filter(|&value| value != expected_value) {
        Some(size) => Err(MapError::InvalidValueSize {
            size,
            expected: expected_value,
        }),
        None => Ok(()),
    }
}

fn several(map: &MapData, keys: u64, values: u64, count: usize) -> Several {
    Several {
        in_batch: 0,
        out_batch: 0,
        keys,
        values,
        count: u32::try_from(count).unwrap_or(u32::MAX),
        map_fd: map.fd().as_fd().as_raw_fd(),
        elem_flags: 0,
        flags: 0,
    }
}

fn write_one<K: Raw, V: Raw>(map: &MapData, key: &K, value: &V) -> io::Result<()> {
    let attributes = element(map, address(key), address(value));
    // SAFETY: both are as large as the map has them, which `write` checked, and live as long as the
    // call.
    unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, attributes) }.0
}

fn remove_one<K: Raw>(map: &MapData, key: &K) -> io::Result<()> {
    let attributes = element(map, address(key), 0);
    // SAFETY: the key is as large as the map has it, which `remove` checked.
    let (result, _) = unsafe { bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, attributes) };
    match result {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

fn element(map: &MapData, key: u64, value: u64) -> Element {
    Element {
        map_fd: map.fd().as_fd().as_raw_fd(),
        reserved: 0,
        key,
        value,
        flags: 0,
    }
}

// Of each command the first fields of its part of `union bpf_attr` (include/uapi/linux/bpf.h); the
// kernel takes those behind as zero.

/// `batch`.
#[repr(C)]
struct Several {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: RawFd,
    elem_flags: u64,
    flags: u64,
}

/// What commands for one element take.
#[repr(C)]
struct Element {
    map_fd: RawFd,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// bpf(2): also returns the attributes as the kernel left them.
///
/// # Safety
///
/// `T` is laid out as the command's attributes; addresses in it are of memory that is as large as
/// the kernel takes it to be, may be written to where the command writes, and lives as long as the
/// call.
unsafe fn bpf<T>(command: bpf_cmd, mut attributes: T) -> (io::Result<()>, T) {
    let command = command as libc::c_long;
    let at = std::ptr::from_mut(&mut attributes);
    // SAFETY: as the caller promises; the kernel reads and writes as many bytes of the attributes
    // as it is told that there are.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, at, size_of::<T>()) };
    let result = Errno::result(result)
        .map(drop)
        .map_err(|_| io::Error::last_os_error());
    (result, attributes)
}

fn address<T>(of: &T) -> u64 {
    std::ptr::from_ref(of).cast::<c_void>() as u64
}

fn address_mut<T>(of: &mut T) -> u64 {
    std::ptr::from_mut(of).cast::<c_void>() as u64
}

/// Whether this is how a kernel says that it does not have a command, or not for hash maps.
fn lacks_command(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EOPNOTSUPP | NOT_SUPPORTED)
    )
}

fn failed(call: &'static str, io_error: io::Error) -> MapError {
    MapError::SyscallError(SyscallError { call, io_error })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::mem::offset_of;

    use proptest::prelude::*;

    use super::*;

    type Table = HashMap<MapData, u32, u64>;

    fn read_all(cursor: &mut Cursor<u32, u64>, table: &Table) -> Vec<(u32, u64)> {
        let mut entries = Vec::new();
        while cursor.read(table, &mut entries).unwrap() {}
        entries
    }

    #[test]
    fn attributes_are_laid_out_as_the_kernel_reads_them() {
        use aya_obj::generated::bpf_attr__bindgen_ty_2 as TheirElement;
        use aya_obj::generated::bpf_attr__bindgen_ty_3 as Theirs;
        assert_eq!(size_of::<Several>(), size_of::<Theirs>());
        assert_eq!(offset_of!(Several, keys), offset_of!(Theirs, keys));
        assert_eq!(offset_of!(Several, count), offset_of!(Theirs, count));
        assert_eq!(offset_of!(Several, map_fd), offset_of!(Theirs, map_fd));
        assert_eq!(size_of::<Element>(), size_of::<TheirElement>());
        assert_eq!(offset_of!(Element, key), offset_of!(TheirElement, key));
        assert_eq!(offset_of!(Element, flags), offset_of!(TheirElement, flags));
    }

    // As root: the map is the kernel's.
    #[test]
    fn every_entry_is_read_once_whatever_the_chunk() {
        let mut table = Table::create(4096, 0).unwrap();
        assert_eq!(read_all(&mut Cursor::new(), &table), []);
        let wanted: BTreeMap<u32, u64> = (0..4000).map(|key| (key, u64::from(key) << 20)).collect();
        for (key, value) in &wanted {
            table.insert(key, value, 0).unwrap();
        }
        // Of one and two buckets are too long for a batch: it grows.
        for chunk in [1, 2, 7, 256, CHUNK, 100_000] {
            let mut cursor = Cursor::new();
            cursor.set_chunk(chunk);
            let entries = read_all(&mut cursor, &table);
            assert_eq!(entries.len(), wanted.len(), "chunk {chunk}");
            assert_eq!(entries.into_iter().collect::<BTreeMap<_, _>>(), wanted);
            let mut more = Vec::new();
            assert!(!cursor.read(&table, &mut more).unwrap(), "it is through");
        }
        let mut singly = Vec::new();
        assert!(Cursor::new().read_singly(&table, &mut singly).unwrap());
        assert_eq!(singly.into_iter().collect::<BTreeMap<_, _>>(), wanted);
    }

    #[test]
    fn what_is_taken_is_told_and_gone() {
        let mut table = Table::create(64, 0).unwrap();
        table.insert(7, 70, 0).unwrap();
        assert_eq!(take(&mut table, &7).unwrap(), Taken::Entry(70));
        assert_eq!(take(&mut table, &7).unwrap(), Taken::Missing);
        assert!(table.get(&7, 0).is_err());
    }

    #[test]
    fn many_are_written_and_removed_at_once() {
        let table = Table::create(10_000, 0).unwrap();
        let keys: Vec<u32> = (0..9000).collect();
        let values: Vec<u64> = keys.iter().map(|&key| u64::from(key) * 3).collect();
        write(table.map(), &keys, &values).unwrap();
        let mut entries = read_all(&mut Cursor::new(), &table);
        entries.sort_unstable();
        assert!(entries.iter().copied().eq(keys.iter().copied().zip(values)));
        // Some are not there, at the beginning, in between and at the end.
        let some: Vec<u32> = (8000..20_000).chain(0..10).chain([3, 10]).collect();
        remove(table.map(), &some).unwrap();
        let left = read_all(&mut Cursor::new(), &table);
        assert_eq!(left.len(), 8000 - 11);
        assert!(
            write(table.map(), &[1_u8], &[1_u64]).is_err(),
            "another size"
        );
        assert!(remove(table.map(), &[1_u64]).is_err(), "another size");
    }

    #[test]
    fn a_full_map_tells_how_far_it_came() {
        let table = Table::create(100, 0).unwrap();
        let keys: Vec<u32> = (0..200).collect();
        let values = vec![1_u64; 200];
        let (written, _) = write(table.map(), &keys, &values).unwrap_err();
        let entries = read_all(&mut Cursor::new(), &table);
        assert_eq!(entries.len(), written);
    }

    #[test]
    fn what_a_kernel_says_that_cannot_is_understood() {
        for errno in [libc::EINVAL, libc::EOPNOTSUPP, NOT_SUPPORTED] {
            assert!(lacks_command(&io::Error::from_raw_os_error(errno)));
        }
        for errno in [libc::ENOENT, libc::EPERM, libc::ENOSPC] {
            assert!(!lacks_command(&io::Error::from_raw_os_error(errno)));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// What stays is read exactly once, while others come and go between the batches.
        #[test]
        fn what_stays_is_read_while_others_come_and_go(
            stay in proptest::collection::btree_set(0_u32..2000, 1..300),
            churn in proptest::collection::vec((2000_u32..4000, any::<bool>()), 0..200),
            chunk in 16_u32..200,
        ) {
            let mut table = Table::create(4096, 0).unwrap();
            for key in &stay {
                table.insert(key, 1, 0).unwrap();
            }
            let mut cursor = Cursor::new();
            cursor.set_chunk(chunk);
            let mut entries = Vec::new();
            let mut churn = churn.into_iter();
            while cursor.read(&table, &mut entries).unwrap() {
                for (key, enters) in churn.by_ref().take(40) {
                    if enters {
                        table.insert(key, 2, 0).unwrap();
                    } else {
                        let _missing = table.remove(&key);
                    }
                }
            }
            let mut read: Vec<_> = entries.iter().filter(|(_, value)| *value == 1).collect();
            read.sort_unstable();
            let read: Vec<_> = read.into_iter().map(|(key, _)| *key).collect();
            prop_assert_eq!(read, stay.into_iter().collect::<Vec<_>>());
        }
    }
}
