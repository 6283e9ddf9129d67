//! How busy the machine was with something else while a round was measured.

use std::{
    fs,
    time::{Duration, Instant},
};

use nix::unistd::{SysconfVar, sysconf};

use crate::{
    error::{Error, Result},
    stopwatch::cpu_time,
};

/// The machine's busy time at one moment, to be compared with a later one.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    at: Instant,
    /// CPU time used by anybody, and stolen by a hypervisor.
    busy: Duration,
    /// CPU time of this process, and of the kernel threads that finish its packets.
    own: Duration,
    cpus: u32,
}

impl Load {
    /// Looks at the clocks.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] when `/proc` cannot be read.
    pub fn now() -> Result<Self> {
        let file = "/proc/stat";
        let stat = fs::read_to_string(file).map_err(Error::os("read", file))?;
        let ticks = busy_ticks(&stat);
        Ok(Self {
            at: Instant::now(),
            busy: from_ticks(ticks),
            own: cpu_time()? + from_ticks(softirq_thread_ticks()),
            cpus: u32::try_from(stat.lines().filter(|line| is_cpu(line)).count()).unwrap_or(1),
        })
    }

    /// The part of all CPUs together, from 0 to 1, that somebody else has used since `before`.
    ///
    /// The kernel counts busy time in ticks of about ten milliseconds, each of which is all one
    /// task's or another's: one tick a CPU says nothing, and is not counted.
    #[must_use]
    pub fn foreign_share_since(&self, before: &Self) -> f64 {
        let wall = self.at.duration_since(before.at) * self.cpus.max(1);
        let busy = self.busy.saturating_sub(before.busy);
        let own = self.own.saturating_sub(before.own);
        if wall.is_zero() {
            return 0.0;
        }
        let blur = from_ticks(1) * self.cpus.max(1);
        busy.saturating_sub(own).saturating_sub(blur).as_secs_f64() / wall.as_secs_f64()
    }
}

fn is_cpu(line: &str) -> bool {
    let number = line.strip_prefix("cpu");
    number.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// user, nice, system, irq, softirq and steal of all CPUs together (proc(5)).
fn busy_ticks(stat: &str) -> u64 {
    let all = stat.lines().find_map(|line| line.strip_prefix("cpu "));
    let fields = all.unwrap_or_default().split_whitespace();
    let numbers = fields.take(8).enumerate();
    numbers
        // Fields 3 and 4 are the idle ones.
        .filter(|(index, _)| !matches!(index, 3 | 4))
        .filter_map(|(_, field)| field.parse::<u64>().ok())
        .sum()
}

/// Ticks of the `ksoftirqd` threads, which take over packets where there are many.
fn softirq_thread_ticks() -> u64 {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let stats = processes
        .filter(|entry| {
            entry
                .file_name()
                .as_encoded_bytes()
                .first()
                .is_some_and(u8::is_ascii_digit)
        })
        .filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    stats.filter_map(|stat| thread_ticks(&stat)).sum()
}

/// `utime` and `stime` of a thread that is called `ksoftirqd/...`.
fn thread_ticks(stat: &str) -> Option<u64> {
    let (head, tail) = stat.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    if !name.starts_with("ksoftirqd/") {
        return None;
    }
    // The state is field 3 of proc(5), utime 14 and stime 15.
    let mut fields = tail.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn from_ticks(ticks: u64) -> Duration {
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten();
    let per_second = per_second
        .and_then(|n| u64::try_from(n).ok())
        .unwrap_or(100);
    Duration::from_millis(ticks.saturating_mul(1000) / per_second.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_is_not_busy() {
        let stat =
            "cpu  1 2 4 1000 2000 8 16 32 64 128\ncpu0 1 2 4 1000 2000 8 16 32 0 0\nintr 7\n";
        assert_eq!(busy_ticks(stat), 63);
        assert_eq!(stat.lines().filter(|line| is_cpu(line)).count(), 1);
    }

    #[test]
    fn only_threads_for_packets_are_our_own() {
        let line = |name| format!("17 ({name}) S 2 0 0 0 -1 0 0 0 0 0 5 7 0 0 20 0 1 0 0");
        assert_eq!(thread_ticks(&line("ksoftirqd/1")), Some(12));
        assert_eq!(thread_ticks(&line("a) b (c")), None);
    }

    #[test]
    fn somebody_elses_time_is_told_from_ours() {
        let at = Instant::now();
        let load = |seconds, busy_ms, own_ms| Load {
            at: at + Duration::from_secs(seconds),
            busy: Duration::from_millis(busy_ms),
            own: Duration::from_millis(own_ms),
            cpus: 2,
        };
        let before = load(0, 100, 50);
        let share = load(1, 1620, 1050).foreign_share_since(&before);
        assert!((share - 0.25).abs() < 1e-9, "{share}");
        let alone = load(1, 1120, 1050).foreign_share_since(&before);
        assert!(alone.abs() < f64::EPSILON);
    }
}
