//! What the tests share: a clock that is set by hand, and short ways to say things.

#![allow(dead_code, reason = "each test file uses its part of this")]

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use datapath_ipam::{Clock, Ipam, Options, Owner, PoolSpec};

/// A clock that stands still until it is set.
#[derive(Debug)]
pub(crate) struct HandClock(AtomicU64);

impl HandClock {
    pub(crate) fn set(&self, now_s: u64) {
        self.0.store(now_s, Ordering::SeqCst);
    }

    pub(crate) fn advance(&self, by_s: u64) {
        self.0.fetch_add(by_s, Ordering::SeqCst);
    }
}

impl Clock for HandClock {
    fn now_s(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// A directory with a store in it, and the clock that the store goes by.
pub(crate) struct Bench {
    directory: tempfile::TempDir,
    pub(crate) clock: Arc<HandClock>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            clock: Arc::new(HandClock(AtomicU64::new(1_000_000))),
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("ipam.redb")
    }

    pub(crate) fn options(&self, pools: &[(&str, &[&str])]) -> Options {
        let spec = |(name, ranges): &(&str, &[&str])| PoolSpec {
            name: (*name).to_owned(),
            ranges: ranges.iter().map(|net| net.parse().unwrap()).collect(),
        };
        let mut options = Options::new(pools.iter().map(spec).collect());
        options.clock = self.clock.clone();
        options.boot_id = Some("boot-1".to_owned());
        options.cooldown = Duration::from_mins(1);
        options
    }

    /// Opens the store with one pool, `p`.
    pub(crate) fn open(&self, ranges: &[&str]) -> Ipam {
        Ipam::open(self.path(), self.options(&[("p", ranges)])).unwrap()
    }
}

pub(crate) fn owner(number: usize) -> Owner {
    Owner::new(format!("c{number}"), "eth0").unwrap()
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}
