//! The stream of events: kept a while, and handed to everyone who listens.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use datapath_user::EventView;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::{
    broadcast::{self, error::RecvError},
    watch,
};

use super::EventQuery;

/// How many items are kept for those who ask later: as many as Hubble keeps of a node.
pub const KEPT: usize = 4095;
/// Over how long the rate of events is taken, seconds.
const RATE_OVER_S: i64 = 60;
/// How many items may wait for a client that reads slowly.
pub const QUEUE: usize = 1024;

/// What the stream consists of, a line of JSON each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "item", rename_all = "lowercase")]
pub enum Item {
    /// What became of a packet.
    Event(Box<EventView>),
    /// Events that are not in the stream.
    Untold(Untold),
}

/// How many events are missing, since this was said last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Untold {
    /// Why.
    pub why: Why,
    /// The drop reason of those events, if they have one in common; `policy-verdict` of verdicts.
    pub reason: Option<String>,
    /// How many.
    pub events: u64,
}

/// Why events are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// There were more than `events_per_s` of one reason, or `verdicts_per_s`, in a second.
    RateLimit,
    /// The kernel's ring buffer was full.
    RingFull,
    /// This client reads too slowly.
    SlowClient,
}

/// How full a [`Feed`] is, and how fast it fills.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FeedStatus {
    /// Items kept.
    pub kept: usize,
    /// Items that are kept at most.
    pub max: usize,
    /// Events since the agent started.
    pub seen: u64,
    /// Events that were not told since then: suppressed, or lost.
    pub untold: u64,
    /// Events a second, over the last minute or since the agent started.
    pub events_per_s: f64,
    /// How long the agent runs, seconds.
    pub uptime_s: u64,
}

/// Hands items to everyone who listens, and keeps the last [`KEPT`].
///
/// Nobody waits for a slow client: it loses the oldest of [`QUEUE`] items, and is told how many.
#[derive(Debug)]
pub struct Feed(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    kept: VecDeque<Arc<Item>>,
    begun: Instant,
    /// Since then.
    seen: u64,
    untold: u64,
    /// None once it is closed.
    live: Option<broadcast::Sender<Arc<Item>>>,
    /// Goes with `live`.
    open: Option<watch::Sender<()>>,
}

impl Default for Feed {
    fn default() -> Self {
        Self(Mutex::new(Inner {
            kept: VecDeque::with_capacity(KEPT),
            begun: Instant::now(),
            seen: 0,
            untold: 0,
            live: Some(broadcast::Sender::new(QUEUE)),
            open: Some(watch::Sender::new(())),
        }))
    }
}

impl Feed {
    /// Hands out items.
    pub fn publish(&self, items: impl IntoIterator<Item = Item>) {
        let mut inner = self.lock();
        for item in items {
            match &item {
                Item::Event(_) => inner.seen += 1,
                Item::Untold(untold) => inner.untold += untold.events,
            }
            let item = Arc::new(item);
            if inner.kept.len() == KEPT {
                inner.kept.pop_front();
            }
            inner.kept.push_back(Arc::clone(&item));
            if let Some(live) = &inner.live {
                // That nobody listens is no failure.
                let _nobody = live.send(item);
            }
        }
    }

    /// Ends every stream once it has been read to its end.
    pub fn close(&self) {
        let mut inner = self.lock();
        inner.live = None;
        inner.open = None;
    }

    /// Waits until it is closed.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let open = self.lock().open.as_ref().map(watch::Sender::subscribe);
        async move {
            if let Some(mut open) = open {
                while open.changed().await.is_ok() {}
            }
        }
    }

    /// Begins a stream.
    #[must_use]
    pub fn subscribe(&self, query: EventQuery) -> Subscription {
        let inner = self.lock();
        let wanted = inner.kept.iter().rev().filter(|item| query.takes(item));
        let mut kept: Vec<_> = wanted.take(query.last).map(Arc::clone).collect();
        kept.reverse();
        let live = inner.live.as_ref().filter(|_| query.follow);
        Subscription {
            kept: kept.into(),
            live: live.map(broadcast::Sender::subscribe),
            query,
        }
    }

    /// Returns how full it is, and how fast it fills.
    #[must_use]
    pub fn status(&self) -> FeedStatus {
        let inner = self.lock();
        let (now, uptime) = (Timestamp::now(), inner.begun.elapsed());
        let window = SignedDuration::from_secs(RATE_OVER_S);
        let mut oldest = None;
        let mut recent = 0_u32;
        for item in inner.kept.iter().rev() {
            let Item::Event(event) = &**item else {
                continue;
            };
            if now.duration_since(event.time) > window {
                oldest = None;
                break;
            }
            oldest = Some(event.time);
            recent += 1;
        }
        let full = inner.kept.len() == KEPT;
        // What came before the oldest that is kept is not known.
        let over_s = match oldest.filter(|_| full) {
            Some(oldest) => now.duration_since(oldest).as_secs_f64(),
            None => window.as_secs_f64().min(uptime.as_secs_f64()),
        };
        FeedStatus {
            kept: inner.kept.len(),
            max: KEPT,
            seen: inner.seen,
            untold: inner.untold,
            events_per_s: f64::from(recent) / over_s.max(1.0),
            uptime_s: uptime.as_secs(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One client's stream.
#[derive(Debug)]
pub struct Subscription {
    kept: VecDeque<Arc<Item>>,
    live: Option<broadcast::Receiver<Arc<Item>>>,
    query: EventQuery,
}

impl Subscription {
    /// Waits for the next item; `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<Arc<Item>> {
        if let Some(item) = self.kept.pop_front() {
            return Some(item);
        }
        let live = self.live.as_mut()?;
        loop {
            match live.recv().await {
                Ok(item) if self.query.takes(&item) => return Some(item),
                Ok(_) => {}
                Err(RecvError::Closed) => return None,
                Err(RecvError::Lagged(events)) => {
                    return Some(Arc::new(Item::Untold(Untold {
                        why: Why::SlowClient,
                        reason: None,
                        events,
                    })));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::runtime;

    use super::*;
    use crate::api::sample;

    fn item(port: u16) -> Item {
        let mut event = sample::event();
        event.destination.port = Some(port);
        Item::Event(Box::new(event))
    }

    fn port(item: &Item) -> u16 {
        match item {
            Item::Event(event) => event.destination.port.unwrap(),
            Item::Untold(_) => panic!("{item:?}"),
        }
    }

    fn following(last: usize) -> EventQuery {
        EventQuery {
            last,
            follow: true,
            ..EventQuery::default()
        }
    }

    /// All that is in a stream whose feed is closed.
    fn read(mut stream: Subscription) -> Vec<Arc<Item>> {
        let runtime = runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut items = Vec::new();
            while let Some(item) = stream.next().await {
                items.push(item);
            }
            items
        })
    }

    #[test]
    fn the_kept_and_those_that_come_are_told_once_each() {
        let feed = Feed::default();
        feed.publish((0..5000).map(item));
        let all = feed.subscribe(following(usize::MAX));
        let few = feed.subscribe(following(3));
        let past = feed.subscribe(EventQuery {
            follow: false,
            ..following(2)
        });
        feed.publish([item(5000), item(5001)]);
        feed.close();
        let ports = |stream| -> Vec<_> { read(stream).iter().map(|item| port(item)).collect() };
        let kept = u16::try_from(KEPT).unwrap();
        assert_eq!(ports(all), (5000 - kept..=5001).collect::<Vec<_>>());
        assert_eq!(ports(few), [4997, 4998, 4999, 5000, 5001]);
        assert_eq!(ports(past), [4998, 4999]);
        assert_eq!(read(feed.subscribe(following(0))), []);
    }

    #[test]
    fn a_slow_client_is_told_what_it_missed() {
        let feed = Feed::default();
        let slow = feed.subscribe(following(0));
        feed.publish((0..2000).map(item));
        feed.close();
        let items = read(slow);
        let queued = u64::try_from(QUEUE).unwrap();
        let Item::Untold(missed) = &*items[0] else {
            panic!("{:?}", items[0])
        };
        assert_eq!(
            (missed.why, missed.events),
            (Why::SlowClient, 2000 - queued)
        );
        assert_eq!(items.len(), 1 + QUEUE);
        assert_eq!(port(&items[QUEUE]), 1999);
    }

    #[test]
    fn the_rate_is_that_of_the_last_minute() {
        let feed = Feed::default();
        let at = |ago_s: i64| {
            let mut event = sample::event();
            event.time = Timestamp::now() - SignedDuration::from_secs(ago_s);
            Item::Event(Box::new(event))
        };
        feed.publish([at(300), at(200)]);
        let status = feed.status();
        assert_eq!((status.kept, status.max, status.seen), (2, 4095, 2));
        assert!(status.events_per_s.abs() < f64::EPSILON, "{status:?}");
        // A full ring of the last ten seconds tells nothing of the time before.
        feed.publish((0..5000).map(|_| at(10)));
        let status = feed.status();
        assert_eq!((status.kept, status.seen), (KEPT, 5002));
        assert!((100.0..=410.0).contains(&status.events_per_s), "{status:?}");
    }
}
