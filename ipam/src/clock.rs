//! The wall clock and the boot id, which stamp leases and time cool-downs.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::IpamError;

/// Source of the time in whole seconds since 1970, UTC.
///
/// Cool-downs outlive the process and the boot, so they cannot be timed by a monotonic clock. A
/// clock that is set back lengthens a cool-down by at most its own length; one that is set forward
/// shortens it.
pub trait Clock: fmt::Debug + Send + Sync {
    /// Returns the present time in seconds since 1970, UTC.
    fn now_s(&self) -> u64;
}

/// The system's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_s(&self) -> u64 {
        // A clock before 1970 is one that nobody has set yet; zero is as good a time as any.
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs())
    }
}

/// Reads the id that the kernel drew at boot (Documentation/admin-guide/sysctl/kernel.rst,
/// `random`).
pub(crate) fn boot_id() -> Result<String, IpamError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.trim_end().to_owned()),
        Err(source) => Err(IpamError::File {
            operation: "read the boot id from",
            path: path.to_owned(),
            source,
        }),
    }
}
