//! Runs a long command and shows that it lives.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Lines of a failed command that are shown.
const TAIL: usize = 20;
/// Between two signs of life where there is no terminal to redraw.
const QUIET_PERIOD: Duration = Duration::from_secs(5);
/// Columns of a line of progress.
const COLUMNS: usize = 72;

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) status: ExitStatus,
    pub(crate) elapsed: Duration,
    /// Its last lines.
    pub(crate) tail: Vec<String>,
}

/// Runs `command` without input. Of its output only the latest line is shown: redrawn on a
/// terminal, elsewhere every few seconds.
///
/// # Errors
///
/// If it cannot be started.
pub(crate) fn run(mut command: Command) -> io::Result<Outcome> {
    let (reader, writer) = io::pipe()?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    let mut child = command.spawn()?;
    // It holds the write ends; while they are open the reader sees no end.
    drop(command);

    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n') {
            let Ok(line) = line else { break };
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(text).is_err() {
                break;
            }
        }
    });

    let mut ticker = Ticker::start();
    let mut tail = VecDeque::new();
    let status = loop {
        match lines.recv_timeout(Duration::from_millis(200)) {
            Ok(line) if line.is_empty() => {}
            Ok(line) => {
                ticker.tick(&line);
                if tail.len() == TAIL {
                    tail.pop_front();
                }
                tail.push_back(line);
            }
            Err(RecvTimeoutError::Disconnected) => break child.wait()?,
            Err(RecvTimeoutError::Timeout) => {
                // A daemon that it left behind may hold the pipe open for ever.
                if let Some(status) = child.try_wait()? {
                    break status;
                }
                ticker.tick(tail.back().map_or("", String::as_str));
            }
        }
    };
    Ok(Outcome {
        status,
        elapsed: ticker.finish(),
        tail: tail.into(),
    })
}

/// Shows the latest line of something that takes a while.
#[derive(Debug)]
pub(crate) struct Ticker {
    started: Instant,
    shown: Instant,
    terminal: bool,
}

impl Ticker {
    /// Starts the clock.
    pub(crate) fn start() -> Self {
        let now = Instant::now();
        Self {
            started: now,
            shown: now,
            terminal: io::stderr().is_terminal(),
        }
    }

    /// Shows `line`, if it is time to.
    pub(crate) fn tick(&mut self, line: &str) {
        let period = if self.terminal {
            Duration::from_millis(100)
        } else {
            QUIET_PERIOD
        };
        if self.shown.elapsed() < period {
            return;
        }
        self.shown = Instant::now();
        let seconds = self.started.elapsed().as_secs();
        let line: String = line.trim().chars().take(COLUMNS).collect();
        let mut stderr = io::stderr().lock();
        // Progress that cannot be shown is no reason to fail.
        let _ = if self.terminal {
            write!(stderr, "\r\x1b[K  {seconds:>4} s  {line}")
        } else {
            writeln!(stderr, "  {seconds:>4} s  {line}")
        };
        let _ = stderr.flush();
    }

    /// Wipes the line and returns the time since the start.
    pub(crate) fn finish(self) -> Duration {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
        self.started.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Outcome {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        run(command).unwrap()
    }

    #[test]
    fn both_outputs_are_kept_in_order() {
        let outcome = shell("echo out; echo err >&2; exit 4");
        assert_eq!(outcome.tail, ["out", "err"]);
        assert_eq!(outcome.status.code(), Some(4));
    }

    #[test]
    fn only_the_end_is_kept() {
        let outcome = shell("seq 100");
        assert_eq!(outcome.tail.len(), TAIL);
        assert_eq!(outcome.tail.last().unwrap(), "100");
    }

    #[test]
    fn a_child_left_behind_does_not_hold_it_up() {
        let outcome = shell("sleep 3 & echo done");
        assert!(outcome.elapsed < Duration::from_secs(2));
        assert_eq!(outcome.tail, ["done"]);
    }
}
