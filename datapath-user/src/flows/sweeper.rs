//! Removing flows whose time is up, a slice of CPU time at a time.
//!
//! A *pass* looks at every entry of every flow table once. It is made of *slices*, each of which
//! ends after [`BUDGET`] of the thread's CPU time and leaves the processor, and the lock on the
//! datapath, to others before the next one.
//!
//! How long it is from one pass to the next follows from what the last one found:
//!
//! | what a pass found | the next interval |
//! |---|---|
//! | a table is 90 % full | one second |
//! | 25 % of all entries were due, or a table is 75 % full | half of the last one |
//! | less than 5 % were due | twice the last one |
//! | else | the last one |
//!
//! It is at least a second, at most a minute, and at least twenty times the CPU time that the pass
//! took, so that sweeping never takes more than a twentieth of one processor. Only passes that were
//! due by this rule change the interval: whoever sweeps by hand and finds nothing left does not
//! stretch it. While flows are being moved into a table of another size it is a second. (Cilium's grows by a half whenever little was found, also in runs that were asked for
//! in between, up to twelve hours.)

use std::time::{Duration, Instant};

use datapath_kern::abi::flow::{Flow, FlowKey};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::census::Census;
use super::moving::move_entry;
use super::removal::{Removal, remove_due};
use super::table::{Tables, Which, find, now_s, read};
use crate::batch::{CHUNK, Cursor};
use crate::error::Error;
use crate::quota::Recount;
use crate::tallies::Swept;

/// CPU time after which a slice ends: what it is in the middle of then takes less than the two
/// milliseconds that are left to five.
const BUDGET: Duration = Duration::from_millis(3);
/// CPU time that reading a batch should not exceed.
const BATCH_BUDGET: Duration = Duration::from_millis(1);
/// Entries looked at between two looks at the clock.
const STRIDE: usize = 64;
/// Fewest entries to read at once: a bucket holds about one.
const MIN_CHUNK: u32 = 64;
/// Time between two slices: sweeping takes at most a quarter of a processor while it goes on.
const PAUSE: Duration = Duration::from_millis(10);

/// Shortest time between two passes.
const FLOOR: Duration = Duration::from_secs(1);
/// Longest time between two passes: a port that is free stays taken no longer than that.
const CEILING: Duration = Duration::from_mins(1);
/// The first interval.
const FIRST: Duration = Duration::from_secs(5);
/// An interval is at least this many times the CPU time of a pass.
const SHARE: u32 = 20;

/// What a sweep of all flows did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweepReport {
    /// Entries looked at.
    pub examined: usize,
    /// Entries removed: both halves of flows whose time was up.
    pub removed: usize,
    /// Entries that came to life while they were taken out, and were put back.
    #[serde(default)]
    pub put_back: usize,
    /// Entries that came to life while they were taken out, had a still younger flow in their place
    /// by then, and are gone with their other halves.
    #[serde(default)]
    pub displaced: usize,
}

/// What a slice came to, see [`Datapath::sweep_slice`](crate::Datapath::sweep_slice).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SweepSlice {
    /// When to sweep the next slice.
    pub pause: Duration,
    /// The pass that ended with this slice.
    pub pass: Option<SweepPass>,
}

/// One look at every entry of the flow tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SweepPass {
    /// What it did.
    pub report: SweepReport,
    /// Slices that it was made of.
    pub slices: u32,
    /// CPU time that it took.
    pub cpu: Duration,
    /// Time from its beginning to its end, with the pauses.
    pub elapsed: Duration,
}

/// All sweeping since the datapath was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweepView {
    /// Passes that ended.
    pub passes: u64,
    /// Slices.
    pub slices: u64,
    /// Entries looked at.
    pub examined: u64,
    /// Entries removed.
    pub removed: u64,
    /// Entries put back, as [`SweepReport::put_back`].
    pub put_back: u64,
    /// Entries displaced, as [`SweepReport::displaced`].
    pub displaced: u64,
    /// CPU time of all slices, microseconds.
    pub cpu_us: u64,
    /// CPU time of the longest slice, microseconds.
    pub longest_slice_us: u64,
    /// CPU time of the last pass, microseconds.
    pub last_cpu_us: u64,
    /// From the beginning of the last pass to its end, milliseconds.
    pub last_elapsed_ms: u64,
    /// From the end of the last pass to the next one, milliseconds.
    pub interval_ms: u64,
}

/// Where sweeping is, and how it went.
#[derive(Debug)]
pub(crate) struct Sweeper {
    cursor: Cursor<FlowKey, Flow>,
    /// The table that is being read, as in [`Which::ALL`].
    table: usize,
    /// What was read, and how much of it was looked at.
    read: Vec<(FlowKey, Flow)>,
    looked_at: usize,
    pass: Pass,
    /// Entries removed since somebody took that number.
    swept: Swept,
    /// Of the last pass, until somebody takes it.
    counted: Option<Counted>,
    interval: Duration,
    view: SweepView,
}

/// A pass that goes on.
#[derive(Debug, Default)]
struct Pass {
    began: Option<Instant>,
    examined: usize,
    removal: Removal,
    census: Census,
    /// Of what each endpoint has; none where nobody asked for it.
    recount: Option<Recount>,
    slices: u32,
    cpu: Duration,
}

/// What a pass counted, for others to take.
#[derive(Debug)]
pub(crate) struct Counted {
    pub(crate) census: Census,
    pub(crate) recount: Option<Recount>,
}

impl Default for Sweeper {
    fn default() -> Self {
        Self {
            cursor: Cursor::new(),
            table: 0,
            read: Vec::new(),
            looked_at: 0,
            pass: Pass::default(),
            swept: Swept::default(),
            counted: None,
            interval: FIRST,
            view: SweepView::default(),
        }
    }
}

impl Sweeper {
    /// Sweeps on until the budget is used, or the pass ends.
    ///
    /// # Errors
    ///
    /// [`Error::Map`]; then the next slice begins a new pass.
    pub(crate) fn slice(&mut self, tables: &mut Tables) -> Result<SweepSlice, Error> {
        let clock = CpuClock::start();
        self.pass.began.get_or_insert_with(Instant::now);
        let through = self.go_on(tables, &clock);
        let spent = clock.spent();
        self.pass.slices += 1;
        self.pass.cpu += spent;
        self.view.slices += 1;
        self.view.cpu_us += micros(spent);
        self.view.longest_slice_us = self.view.longest_slice_us.max(micros(spent));
        match through {
            Ok(false) => Ok(SweepSlice {
                pause: PAUSE,
                pass: None,
            }),
            Ok(true) => Ok(self.end(tables)),
            Err(error) => {
                self.restart();
                Err(error)
            }
        }
    }

    /// Forgets the pass that goes on: the tables are others now.
    pub(crate) fn restart(&mut self) {
        self.cursor.rewind();
        self.table = 0;
        self.read.clear();
        self.looked_at = 0;
        self.pass = Pass::default();
    }

    /// Whether the next slice begins a pass.
    pub(crate) const fn is_at_start(&self) -> bool {
        self.pass.began.is_none()
    }

    /// Has the pass that begins count what each endpoint has, too.
    pub(crate) fn count_for(&mut self, recount: Recount) {
        self.pass.recount = Some(recount);
    }

    /// Hands over how many entries were removed since this was asked the last time.
    pub(crate) fn take_swept(&mut self) -> Swept {
        std::mem::take(&mut self.swept)
    }

    /// Hands over what the pass that has just ended counted.
    pub(crate) const fn take_counted(&mut self) -> Option<Counted> {
        self.counted.take()
    }

    /// All sweeping so far.
    pub(crate) const fn view(&self) -> SweepView {
        self.view
    }

    /// Adds the sweeping of another one, which does not change the interval.
    pub(crate) fn add(&mut self, other: &Self) {
        let (own, other) = (&mut self.view, &other.view);
        own.passes += other.passes;
        own.slices += other.slices;
        own.examined += other.examined;
        own.removed += other.removed;
        own.put_back += other.put_back;
        own.displaced += other.displaced;
        own.cpu_us += other.cpu_us;
        own.longest_slice_us = own.longest_slice_us.max(other.longest_slice_us);
        own.last_cpu_us = other.last_cpu_us;
        own.last_elapsed_ms = other.last_elapsed_ms;
    }

    /// Looks at entries until the budget is used; whether that was all.
    fn go_on(&mut self, tables: &mut Tables, clock: &CpuClock) -> Result<bool, Error> {
        let now_s = now_s();
        loop {
            while let Some(&(key, flow)) = self.read.get(self.looked_at) {
                self.look(tables, &key, &flow, now_s)?;
                self.looked_at += 1;
                if self.looked_at.is_multiple_of(STRIDE) && clock.spent() >= BUDGET {
                    return Ok(false);
                }
            }
            self.read.clear();
            self.looked_at = 0;
            let before = clock.spent();
            if before >= BUDGET {
                return Ok(false);
            }
            let Some(&which) = Which::ALL.get(self.table) else {
                return Ok(true);
            };
            let more = match tables.get(which) {
                Some(table) => read(&mut self.cursor, table, which, &mut self.read)?,
                None => false,
            };
            if more {
                self.pace(clock.spent().saturating_sub(before));
            } else {
                self.table += 1;
                self.cursor.rewind();
            }
        }
    }

    /// Reads less at once where that took long: of a table that is nearly empty the kernel goes
    /// through many buckets for few entries.
    fn pace(&mut self, spent: Duration) {
        let chunk = self.cursor.chunk();
        if spent > BATCH_BUDGET {
            self.cursor.set_chunk((chunk / 2).max(MIN_CHUNK));
        } else if spent < BATCH_BUDGET / 4 {
            self.cursor.set_chunk((chunk * 2).min(CHUNK));
        }
    }

    fn look(
        &mut self,
        tables: &mut Tables,
        key: &FlowKey,
        flow: &Flow,
        now_s: u32,
    ) -> Result<(), Error> {
        self.pass.examined += 1;
        let Some(&which) = Which::ALL.get(self.table) else {
            return Ok(());
        };
        if flow.expires_s <= now_s {
            let due = |half: &Flow| half.expires_s <= now_s;
            let removal = remove_due(tables, key, flow, due)?;
            self.pass.removal += removal;
            self.swept.add(which, removal.gone());
            if removal.removed > 0 || find(tables, key, flow.pair).is_none() {
                return Ok(());
            }
        }
        self.pass.census.count(which);
        if which.successor() == Which::Flows
            && let Some(recount) = &mut self.pass.recount
        {
            recount.count(flow);
        }
        if which.successor() != which {
            let displaced = move_entry(tables, which, key, flow)?;
            self.swept.add(which, displaced);
        }
        Ok(())
    }

    /// Ends a pass.
    fn end(&mut self, tables: &Tables) -> SweepSlice {
        let pass = std::mem::take(&mut self.pass);
        self.restart();
        let elapsed = pass.began.map(|began| began.elapsed()).unwrap_or_default();
        let Removal {
            removed,
            put_back,
            displaced,
        } = pass.removal;
        let report = SweepReport {
            examined: pass.examined,
            removed,
            put_back,
            displaced,
        };
        let fullest = pass.census.fullest_percent(tables);
        self.counted = Some(Counted {
            census: pass.census,
            recount: pass.recount,
        });
        self.interval = next_interval(self.interval, &report, fullest, pass.cpu);
        let view = &mut self.view;
        view.passes += 1;
        view.examined += wide(report.examined);
        view.removed += wide(report.removed);
        view.put_back += wide(report.put_back);
        view.displaced += wide(report.displaced);
        view.last_cpu_us = micros(pass.cpu);
        view.last_elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        view.interval_ms = u64::try_from(self.interval.as_millis()).unwrap_or(u64::MAX);
        let pause = if tables.are_filled() {
            // There is more to move, or room may have been made.
            FLOOR
        } else {
            self.interval
        };
        SweepSlice {
            pause,
            pass: Some(SweepPass {
                report,
                slices: pass.slices,
                cpu: pass.cpu,
                elapsed,
            }),
        }
    }
}

/// How long to wait after a pass, as the module says.
fn next_interval(
    last: Duration,
    report: &SweepReport,
    fullest_percent: usize,
    cpu: Duration,
) -> Duration {
    let due_percent = (report.removed * 100)
        .checked_div(report.examined)
        .unwrap_or(0);
    let wanted = if fullest_percent >= 90 {
        FLOOR
    } else if due_percent >= 25 || fullest_percent >= 75 {
        last / 2
    } else if due_percent < 5 {
        last * 2
    } else {
        last
    };
    wanted.clamp(FLOOR, CEILING).max(cpu * SHARE)
}

/// CPU time of the calling thread.
#[derive(Debug)]
struct CpuClock(Duration);

impl CpuClock {
    fn start() -> Self {
        Self(Self::now())
    }

    fn spent(&self) -> Duration {
        Self::now().saturating_sub(self.0)
    }

    fn now() -> Duration {
        clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
            .map(Duration::from)
            .unwrap_or_default()
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn wide(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_follows_what_was_found() {
        let after = |last_s: u64, removed: usize, fullest: usize| {
            let report = SweepReport {
                examined: 1000,
                removed,
                ..SweepReport::default()
            };
            let last = Duration::from_secs(last_s);
            next_interval(last, &report, fullest, Duration::from_millis(10)).as_millis()
        };
        for (last_s, removed, fullest, wanted_ms) in [
            // Much was due, some was, nothing was.
            (8, 250, 0, 4_000),
            (8, 249, 0, 8_000),
            (8, 50, 0, 8_000),
            (8, 49, 0, 16_000),
            (8, 0, 0, 16_000),
            // Never longer than a minute, never shorter than a second.
            (40, 0, 0, 60_000),
            (1, 900, 0, 1_000),
            // It gets tight.
            (8, 0, 75, 4_000),
            (60, 0, 90, 1_000),
        ] {
            assert_eq!(
                after(last_s, removed, fullest),
                wanted_ms,
                "{last_s} s, {removed} of 1000, {fullest} %"
            );
        }
    }

    #[test]
    fn sweeping_never_takes_more_than_its_share() {
        let report = SweepReport {
            examined: 100,
            removed: 100,
            ..SweepReport::default()
        };
        for cpu_ms in [1, 60, 500, 10_000] {
            let cpu = Duration::from_millis(cpu_ms);
            let next = next_interval(FLOOR, &report, 100, cpu);
            assert!(
                next >= cpu * SHARE && next >= FLOOR,
                "{cpu_ms} ms: {next:?}"
            );
        }
        // However long it was once, it comes back.
        let quick = Duration::from_millis(1);
        let long = Duration::from_hours(1);
        assert_eq!(
            next_interval(long, &SweepReport::default(), 0, quick),
            CEILING
        );
    }

    #[test]
    fn an_empty_table_is_no_division() {
        let none = SweepReport::default();
        assert_eq!(next_interval(FIRST, &none, 0, Duration::ZERO), FIRST * 2);
    }
}
