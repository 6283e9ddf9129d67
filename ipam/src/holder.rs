//! Finds out who holds the lock of a file.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::stat::{major, minor};

use crate::error::Holder;

/// Times that the list of locks is read before the holder counts as unknown.
const READS: usize = 10;

/// Returns the process that has locked the file, as far as the kernel tells: the holder may be in
/// another pid namespace, and some file systems show other device numbers to `stat` than in
/// `/proc/locks`.
pub(crate) fn of(path: &Path) -> Option<Holder> {
    let metadata = fs::metadata(path).ok()?;
    let (device, inode) = (metadata.dev(), metadata.ino());
    let file = format!("{:02x}:{:02x}:{inode}", major(device), minor(device));
    // The list is read in pieces: a lock that comes or goes elsewhere meanwhile can hide another.
    let pid = (0..READS).find_map(|_| find(&fs::read_to_string("/proc/locks").ok()?, &file))?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok();
    Some(Holder {
        pid,
        name: name.map(|name| name.trim_end().to_owned()),
    })
}

/// Finds the process with a whole-file lock on `file`, which is `MAJOR:MINOR:INODE`.
///
/// A line is `1: FLOCK  ADVISORY  WRITE 708 00:13:1234 0 EOF` (`lock_get_status` in
/// fs/locks.c). Locks of an open file description, of which the engine takes some too, show no
/// process.
fn find(locks: &str, file: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        match fields.as_slice() {
            [_, "FLOCK", _, _, pid, held, ..] if *held == file => pid.parse().ok(),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_found_among_other_locks() {
        let locks = "\
1: OFDLCK ADVISORY  WRITE -1 fe:00:17 4611686018427387904 EOF
2: POSIX  ADVISORY  WRITE 12 fe:00:17 0 EOF
3: FLOCK  ADVISORY  WRITE 13 fe:00:170 0 EOF
3: -> FLOCK  ADVISORY  WRITE 15 fe:00:17 0 EOF
4: FLOCK  ADVISORY  WRITE 14 fe:00:17 0 EOF
";
        assert_eq!(find(locks, "fe:00:17"), Some(14));
        assert_eq!(find(locks, "fe:00:18"), None);
        assert_eq!(find("garbage", "fe:00:17"), None);
    }
}
