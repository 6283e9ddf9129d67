//! Which CPUs there are, and threads that stay on one.

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

use crate::error::{Error, Result};

/// The calling thread.
const SELF: Pid = Pid::from_raw(0);

/// Numbers of the CPUs that the calling thread may use, counted from 0, in order.
///
/// # Errors
///
/// [`Error::Os`] where the kernel does not tell.
pub(crate) fn usable() -> Result<Vec<usize>> {
    let set = sched_getaffinity(SELF).map_err(Error::os("ask for the CPUs of", "this thread"))?;
    let all = 0..CpuSet::count();
    Ok(all.filter(|&cpu| set.is_set(cpu) == Ok(true)).collect())
}

/// The last CPU that the calling thread may use: the first one has most of the interrupts.
///
/// # Errors
///
/// As [`usable`].
pub(crate) fn last() -> Result<usize> {
    Ok(usable()?.last().copied().unwrap_or_default())
}

/// Pins the calling thread to a CPU, counted from 0.
///
/// # Errors
///
/// [`Error::Os`] where there is no such CPU, or this thread may not use it.
pub(crate) fn pin_to(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)
        .and_then(|()| sched_setaffinity(SELF, &set))
        .map_err(Error::os("pin a thread to CPU", cpu))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_has_one_cpu() {
        let thread = std::thread::spawn(|| {
            let cpu = last()?;
            pin_to(cpu)?;
            Ok::<_, Error>((cpu, usable()?))
        });
        let (cpu, left) = thread.join().unwrap().unwrap();
        assert_eq!(left, [cpu]);
    }
}
