//! The layout that kernel and user space share: map keys, map values, load-time settings.
//!
//! One module, compiled into both sides. Every type has its size asserted and no padding; enums
//! cross as integers. [`VERSION`] changes with any layout or meaning here, and user space
//! refuses pinned maps of another version.

pub mod addr;
pub mod budget;
pub mod config;
pub mod endpoint;
pub mod event;
pub mod flow;
pub mod fragment;
pub mod ipcache;
pub mod mac;
pub mod mark;
pub mod metric;
pub mod nexthop;
#[doc(hidden)]
pub mod pod;
pub mod policy;
pub mod quota;
pub mod search;
pub mod state;
pub mod tally;
pub mod tunnel;

pub use mac::Mac;

/// Version of everything in this module. Part of the load-time settings and of the pinned state.
pub const VERSION: u32 = 4;

/// Marks a pinned directory as ours: `"DPTH"` as a number.
pub const MAGIC: u32 = 0x4450_5448;
