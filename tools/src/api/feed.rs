//! The stream of events: kept a while, and handed to everyone who listens.

use std::{
    collections::VecDeque,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use datapath_user::{EventEnd, EventView};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tokio::sync::{
    broadcast::{self, error::RecvError},
    watch,
};

/// How many items are kept for those who ask later.
pub const KEPT: usize = 1024;
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
    /// The drop reason of those events, if they have one in common.
    pub reason: Option<String>,
    /// How many.
    pub events: u64,
}

/// Why events are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// There were more than `events_per_s` of one reason in a second.
    RateLimit,
    /// The kernel's ring buffer was full.
    RingFull,
    /// This client reads too slowly.
    SlowClient,
}

/// Which events a client wants: those that fit everything given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EventQuery {
    /// So many of those that are kept, at most.
    pub last: usize,
    /// Whether to go on with those that come.
    pub follow: bool,
    /// Words of the drop reason, in any case.
    pub reason: Option<String>,
    /// The verdict, in any case.
    pub verdict: Option<String>,
    /// The protocol, as events have it.
    pub protocol: Option<String>,
    /// Either port.
    pub port: Option<u16>,
    /// A prefix of either address.
    pub ip: Option<IpNet>,
    /// The interface.
    pub interface: Option<String>,
    /// An endpoint: at the interface, or either end.
    pub endpoint: Option<String>,
}

impl EventQuery {
    /// Whether an item is wanted. What says that events are missing is, unless they are of another
    /// reason.
    #[must_use]
    pub fn takes(&self, item: &Item) -> bool {
        match item {
            Item::Event(event) => self.takes_event(event),
            Item::Untold(untold) => {
                let reason = untold.reason.as_deref();
                reason.is_none_or(|reason| self.takes_reason(reason))
            }
        }
    }

    fn takes_event(&self, event: &EventView) -> bool {
        let ends = [&event.source, &event.destination];
        let either = |wanted: &dyn Fn(&EventEnd) -> bool| ends.into_iter().any(wanted);
        let in_prefix = |net: &IpNet, ip: Option<IpAddr>| ip.is_some_and(|ip| net.contains(&ip));
        self.takes_reason(&event.reason)
            && fits(self.verdict.as_ref(), |verdict| {
                verdict.eq_ignore_ascii_case(&event.verdict)
            })
            && fits(self.protocol.as_ref(), |protocol| {
                protocol.eq_ignore_ascii_case(&event.protocol)
            })
            && fits(self.port.as_ref(), |port| {
                either(&|end| end.port == Some(*port))
            })
            && fits(self.ip.as_ref(), |net| {
                either(&|end| in_prefix(net, end.address))
            })
            && fits(self.interface.as_ref(), |name| *name == event.interface)
            && fits(self.endpoint.as_ref(), |id| {
                event.endpoint.as_ref() == Some(id) || either(&|end| end.name.as_ref() == Some(id))
            })
    }

    fn takes_reason(&self, reason: &str) -> bool {
        fits(self.reason.as_ref(), |words| {
            reason.to_lowercase().contains(&words.to_lowercase())
        })
    }
}

fn fits<T>(wanted: Option<&T>, fit: impl FnOnce(&T) -> bool) -> bool {
    wanted.is_none_or(fit)
}

/// Hands items to everyone who listens, and keeps the last [`KEPT`].
///
/// Nobody waits for a slow client: it loses the oldest of [`QUEUE`] items, and is told how many.
#[derive(Debug)]
pub struct Feed(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    kept: VecDeque<Arc<Item>>,
    /// None once it is closed.
    live: Option<broadcast::Sender<Arc<Item>>>,
    /// Goes with `live`.
    open: Option<watch::Sender<()>>,
}

impl Default for Feed {
    fn default() -> Self {
        Self(Mutex::new(Inner {
            kept: VecDeque::with_capacity(KEPT),
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
        feed.publish((0..2000).map(item));
        let all = feed.subscribe(following(usize::MAX));
        let few = feed.subscribe(following(3));
        let past = feed.subscribe(EventQuery {
            follow: false,
            ..following(2)
        });
        feed.publish([item(2000), item(2001)]);
        feed.close();
        let ports = |stream| -> Vec<_> { read(stream).iter().map(|item| port(item)).collect() };
        let kept = u16::try_from(KEPT).unwrap();
        assert_eq!(ports(all), (2000 - kept..=2001).collect::<Vec<_>>());
        assert_eq!(ports(few), [1997, 1998, 1999, 2000, 2001]);
        assert_eq!(ports(past), [1998, 1999]);
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
    fn filters_take_what_fits_everything() {
        let event = Item::Event(Box::new(sample::event()));
        let untold = |reason: &str| {
            Item::Untold(Untold {
                why: Why::RateLimit,
                reason: Some(reason.to_owned()),
                events: 1,
            })
        };
        let text = |text: &str| Some(text.to_owned());
        let any = EventQuery::default;
        let net = |net: &str| Some(net.parse().unwrap());
        let taken = [
            any(),
            EventQuery {
                reason: text("policy"),
                ..any()
            },
            EventQuery {
                verdict: text("dropped"),
                ..any()
            },
            EventQuery {
                protocol: text("TCP"),
                ..any()
            },
            EventQuery {
                port: Some(80),
                ..any()
            },
            EventQuery {
                port: Some(40_000),
                ..any()
            },
            EventQuery {
                ip: net("10.244.1.2/32"),
                ..any()
            },
            EventQuery {
                ip: net("198.51.100.0/24"),
                ..any()
            },
            EventQuery {
                interface: text("dp0123456789a"),
                ..any()
            },
            EventQuery {
                endpoint: text("web-0"),
                ..any()
            },
        ];
        for query in taken {
            assert!(query.takes(&event), "{query:?}");
        }
        let others = [
            EventQuery {
                reason: text("policies"),
                ..any()
            },
            EventQuery {
                verdict: text("forwarded"),
                ..any()
            },
            EventQuery {
                protocol: text("udp"),
                ..any()
            },
            EventQuery {
                port: Some(81),
                ..any()
            },
            EventQuery {
                ip: net("fd00::/8"),
                ..any()
            },
            EventQuery {
                interface: text("eth0"),
                ..any()
            },
            EventQuery {
                endpoint: text("web"),
                ..any()
            },
            EventQuery {
                port: Some(80),
                protocol: text("udp"),
                ..any()
            },
        ];
        for query in others {
            assert!(!query.takes(&event), "{query:?}");
        }
        let policy = EventQuery {
            reason: text("policy"),
            ..any()
        };
        assert!(policy.takes(&untold("Policy denied")));
        assert!(!policy.takes(&untold("Multicast")));
    }
}
