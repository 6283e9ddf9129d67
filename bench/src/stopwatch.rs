//! Time on the wall, and time on CPUs.

use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

use crate::error::{Error, Result};

/// Both clocks, since it was started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stopwatch {
    start: Instant,
    cpu: Duration,
}

impl Stopwatch {
    /// Starts it.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] where the kernel does not tell.
    pub(crate) fn start() -> Result<Self> {
        Ok(Self {
            cpu: cpu_time()?,
            start: Instant::now(),
        })
    }

    /// Time that has passed, and time that this process has used of all CPUs.
    ///
    /// # Errors
    ///
    /// As [`Stopwatch::start`].
    pub(crate) fn read(&self) -> Result<(Duration, Duration)> {
        let wall = self.start.elapsed();
        Ok((wall, cpu_time()?.saturating_sub(self.cpu)))
    }
}

/// Time that this process has used of all CPUs so far, the packets handled in its place included.
///
/// # Errors
///
/// [`Error::Os`] where the kernel does not tell.
pub(crate) fn cpu_time() -> Result<Duration> {
    let time = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID);
    let time = time.map_err(Error::os("read the clock of", "this process"))?;
    Ok(time.into())
}
