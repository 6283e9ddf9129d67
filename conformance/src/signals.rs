//! Teardown that happens whatever ends the process, short of SIGKILL.
//!
//! What a lab makes is entered into one list, together with how to take it away. A [`Teardown`]
//! is the hold on one entry: dropping it, also while a panic unwinds, runs the entry. A signal
//! runs the whole list, newest entry first, and ends the process.

use std::{
    collections::BTreeMap,
    process,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::error::{Error, Result};

/// The exit code of a process that a signal made take down its labs.
pub const EXIT_CODE: i32 = 130;

type Action = Box<dyn FnOnce() -> Result<()> + Send>;

/// Everything to be taken down, by age. Held locked while something is made or taken away, so
/// that a signal never meets half of either.
static LIST: Mutex<Entries> = Mutex::new(Entries {
    next: 0,
    actions: BTreeMap::new(),
});

struct Entries {
    next: u64,
    actions: BTreeMap<u64, Action>,
}

/// Makes SIGINT, SIGTERM and SIGHUP take down everything registered and exit with
/// [`EXIT_CODE`]. For the binaries; calling it again does nothing.
///
/// # Errors
///
/// [`Error::Os`] when the handlers cannot be installed.
pub fn cleanup_on_signal() -> Result<()> {
    static INSTALLED: OnceLock<()> = OnceLock::new();

    if INSTALLED.set(()).is_err() {
        return Ok(());
    }
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])
        .map_err(Error::os("install handlers for", "SIGINT, SIGTERM, SIGHUP"))?;
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            if let Some(signal) = signals.forever().next() {
                tracing::warn!(signal, "taking down the lab");
                // The lock is never given back: nothing new can be made until the process ends.
                let mut list = lock();
                run_all(&mut list);
                process::exit(EXIT_CODE);
            }
        })
        .map_err(Error::os("start the thread", "signals"))?;
    Ok(())
}

/// Registers something to be undone when the [`Teardown`] is dropped or a signal arrives.
///
/// `action` must neither register nor drop a [`Teardown`]: the list is locked while it runs.
pub fn on_teardown(action: impl FnOnce() -> Result<()> + Send + 'static) -> Teardown {
    lock().add(Box::new(action))
}

/// Makes something and registers how to undo it, in one step that no signal can fall into.
///
/// If `make` fails it cleans up after itself.
pub(crate) fn guarded<T>(
    make: impl FnOnce() -> Result<T>,
    undo: impl FnOnce() -> Result<()> + Send + 'static,
) -> Result<(T, Teardown)> {
    let mut list = lock();
    let thing = make()?;
    let teardown = list.add(Box::new(undo));
    Ok((thing, teardown))
}

/// The hold on one entry of the list of what to take down. Dropping it takes it down.
#[derive(Debug)]
#[must_use = "dropping it takes down what it stands for"]
pub struct Teardown(Option<u64>);

impl Teardown {
    /// Takes it down now.
    ///
    /// # Errors
    ///
    /// Whatever the action returns.
    pub fn run(mut self) -> Result<()> {
        self.take()
    }

    /// Takes the entry off the list without running it.
    pub fn forget(mut self) {
        if let Some(id) = self.0.take() {
            lock().actions.remove(&id);
        }
    }

    fn take(&mut self) -> Result<()> {
        let Some(id) = self.0.take() else {
            return Ok(());
        };
        let mut list = lock();
        match list.actions.remove(&id) {
            Some(action) => action(),
            None => Ok(()),
        }
    }
}

impl Drop for Teardown {
    fn drop(&mut self) {
        if let Err(error) = self.take() {
            tracing::error!(error = error.chain(), "teardown");
        }
    }
}

impl Entries {
    fn add(&mut self, action: Action) -> Teardown {
        let id = self.next;
        self.next += 1;
        self.actions.insert(id, action);
        Teardown(Some(id))
    }
}

fn run_all(list: &mut Entries) {
    while let Some((_, action)) = list.actions.pop_last() {
        if let Err(error) = action() {
            tracing::error!(error = error.chain(), "teardown");
        }
    }
}

fn lock() -> MutexGuard<'static, Entries> {
    // A panic inside `make` or an action leaves the list itself whole.
    LIST.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use super::*;

    fn counted() -> (Arc<AtomicU32>, Teardown) {
        let count = Arc::new(AtomicU32::new(0));
        let inner = Arc::clone(&count);
        let teardown = on_teardown(move || {
            inner.fetch_add(1, Ordering::SeqCst);
            Ok(())
        });
        (count, teardown)
    }

    #[test]
    fn runs_once_on_drop() {
        let (count, teardown) = counted();
        drop(teardown);
        assert_eq!(count.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn run_reports_and_drop_does_not_repeat() {
        let (count, teardown) = counted();
        teardown.run().unwrap();
        assert_eq!(count.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn forgotten_is_never_run() {
        let (count, teardown) = counted();
        teardown.forget();
        assert_eq!(count.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_failed_make_registers_nothing() {
        let made = guarded::<()>(
            || {
                Err(Error::LabMissing {
                    lab: "x".to_owned(),
                })
            },
            || panic!("nothing was made"),
        );
        assert!(made.is_err());
    }
}
