//! A process that outlives who started it, told from another one that has got its number.

use std::{
    fs,
    io::{self, ErrorKind},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How often a process that is to end is looked at.
const GLANCE: Duration = Duration::from_millis(5);

/// A process: its number, and when it started, so that its successor under the same number is not
/// taken for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since boot (proc(5), field 22 of `/proc/pid/stat`).
    pub start_ticks: u64,
}

impl Process {
    /// Looks at a process that is there.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] when it is not.
    pub fn of(pid: u32) -> Result<Self> {
        let gone = || Error::os("look at process", pid)(ErrorKind::NotFound.into());
        let stat = stat(pid).ok_or_else(gone)?;
        Ok(Self {
            pid,
            start_ticks: stat.start_ticks,
        })
    }

    /// Reads what [`Process::write`] wrote; `None` if there is no such file.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] when the file cannot be read, or does not read as it should.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let refused = || Error::os("read", path.display());
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(refused()(error)),
        };
        let read = serde_json::from_str(&text).map_err(io::Error::other);
        read.map(Some).map_err(refused())
    }

    /// Writes it down for a later process.
    ///
    /// # Errors
    ///
    /// [`Error::Os`].
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string(self).map_err(io::Error::other);
        let written = text.and_then(|text| fs::write(path, text));
        written.map_err(Error::os("write", path.display()))
    }

    /// Tells whether it runs. One that has ended and is not waited for yet does not.
    #[must_use]
    pub fn runs(&self) -> bool {
        stat(self.pid).is_some_and(|stat| stat.start_ticks == self.start_ticks && stat.lives())
    }

    /// Asks it to end (SIGTERM). One that has ended is left alone.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] when it may not be asked.
    pub fn terminate(&self) -> Result<()> {
        if !self.runs() {
            return Ok(());
        }
        let pid = Pid::from_raw(i32::try_from(self.pid).unwrap_or(i32::MAX));
        match kill(pid, Signal::SIGTERM) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(Error::os("end process", self.pid)(errno.into())),
        }
    }

    /// Waits until it has ended; tells whether it has.
    #[must_use]
    pub fn wait_until(&self, deadline: Instant) -> bool {
        while self.runs() {
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(GLANCE);
        }
        true
    }
}

struct Stat {
    state: char,
    threads: u64,
    start_ticks: u64,
}

impl Stat {
    /// Whether any of its threads is alive: the first one ends by itself, and what the process has
    /// open is closed by the last one.
    fn lives(&self) -> bool {
        !matches!(self.state, 'Z' | 'X') || self.threads > 1
    }
}

fn stat(pid: u32) -> Option<Stat> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Reads `PID (NAME) STATE ...`; the name may have spaces and brackets in it.
fn parse(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(") ")?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    // Fields 20 and 22, and the state was field 3.
    let threads = fields.nth(16)?.parse().ok()?;
    let start_ticks = fields.nth(1)?.parse().ok()?;
    Some(Stat {
        state,
        threads,
        start_ticks,
    })
}

#[cfg(test)]
mod tests {
    use std::process::{Command, id};

    use super::*;

    #[test]
    fn stat_lines_are_read_whatever_the_name() {
        let line = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1000 2 3";
        let stat = parse(line).unwrap();
        assert_eq!(
            (stat.state, stat.threads, stat.start_ticks),
            ('S', 1, 98_765)
        );
        assert!(parse("7 (a) S 1").is_none());
    }

    #[test]
    fn a_successor_is_not_taken_for_it() {
        let own = Process::of(id()).unwrap();
        assert!(own.runs());
        let former = Process {
            start_ticks: own.start_ticks - 1,
            ..own
        };
        assert!(!former.runs());
        // Would end the test if it were sent.
        former.terminate().unwrap();
    }

    #[test]
    fn it_is_asked_to_end_and_waited_for() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(child.id()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("process.json");
        assert_eq!(Process::read(&path).unwrap(), None);
        process.write(&path).unwrap();
        assert_eq!(Process::read(&path).unwrap(), Some(process));
        assert!(!process.wait_until(Instant::now()));
        process.terminate().unwrap();
        assert!(process.wait_until(Instant::now() + Duration::from_secs(5)));
        child.wait().unwrap();
    }
}
