//! The eBPF object that belongs to this version of the library.

use aya::include_bytes_aligned;

/// Built from `datapath-kern` by the build script, and embedded: nothing is compiled at run time.
pub static OBJECT: &[u8] = include_bytes_aligned!(env!("DATAPATH_OBJECT_PATH"));

/// The programs in it, and where each one goes.
pub const PROGRAMS: [&str; 6] = [
    "from_pod",
    "to_pod",
    "from_uplink",
    "to_uplink",
    "from_host",
    "to_host",
];
