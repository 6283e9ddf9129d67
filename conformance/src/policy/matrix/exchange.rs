//! Sends a case's cells and watches what becomes of them.
//!
//! One thread looks after all sockets: sockets belong to the namespace that they were made in,
//! whoever uses them. Many cells are under way at the same time, and are told apart by a number in
//! each and a source port that no other one has.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use datapath_kern::verdict::DropReason;
use datapath_user::{EventVerdict, EventView, Events};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::{
    attempt::{Answer, Attempt, is_one_way},
    message::Nonce,
    result::Verdict,
    server::{Seen, Servers},
};
use crate::{
    error::{Error, Result},
    family::Family,
    netns::Namespace,
    patience::scaled,
    policy::case::{CellId, ProbeProtocol},
};

/// When a cell is tried again while nothing is known of it, after its first try.
const RETRIES: [Duration; 4] = [
    Duration::from_millis(150),
    Duration::from_millis(500),
    Duration::from_millis(1500),
    Duration::from_secs(3),
];
/// How long a cell may stay silent: nothing arrived, and nothing was told to be dropped.
const SILENCE: Duration = Duration::from_secs(5);
/// How long what was told to be dropped is still watched for.
const LINGER: Duration = Duration::from_millis(100);
/// How many cells are under way at the same time.
const AT_ONCE: usize = 96;
/// Source ports, and ICMP identifiers: off the ports that masquerade keeps for itself, and off what
/// servers mostly have.
const PORTS: std::ops::RangeInclusive<u16> = 34_000..=60_999;

/// A cell, and between which sockets it runs.
#[derive(Debug)]
pub(super) struct Job<'a> {
    pub(super) cell: CellId,
    pub(super) source: &'a Namespace,
    /// The address to send from; the kernel's choice if there is none.
    pub(super) from: Option<IpAddr>,
    pub(super) to: IpAddr,
}

/// What became of a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) verdict: Verdict,
    pub(super) detail: String,
    /// Nothing arrived, and no drop by policy was told either.
    pub(super) doubtful: bool,
}

/// Source ports and numbers of attempts, over several cases.
#[derive(Debug)]
pub(super) struct Numbers {
    nonce: u64,
    port: u16,
}

impl Default for Numbers {
    fn default() -> Self {
        let began = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let began = began.unwrap_or_default().as_nanos();
        Self {
            // Unlike anything else that a packet may hold.
            nonce: u64::try_from(began & u128::from(u64::MAX)).unwrap_or_default() | 1 << 63,
            port: *PORTS.start(),
        }
    }
}

impl Numbers {
    fn next(&mut self) -> (Nonce, u16) {
        self.nonce = self.nonce.wrapping_add(1);
        self.port = if self.port == *PORTS.end() {
            *PORTS.start()
        } else {
            self.port + 1
        };
        (Nonce(self.nonce), self.port)
    }
}

/// Sends all cells; the outcomes are in their order.
///
/// # Errors
///
/// [`Error::Os`] where sockets cannot be made or waited for.
pub(super) fn run(
    jobs: &[Job<'_>],
    servers: &mut Servers,
    events: &mut [(String, Events)],
    numbers: &mut Numbers,
) -> Result<Vec<Outcome>> {
    let mut exchange = Exchange {
        cells: jobs.iter().map(Cell::new).collect(),
        servers,
        events,
        numbers,
        seen: Seen::new(),
        sent: BTreeMap::new(),
    };
    // What was told of an earlier case is not of this one.
    exchange.read_events();
    loop {
        exchange.start()?;
        if exchange.cells.iter().all(Cell::is_over) {
            break;
        }
        exchange.wait(Duration::from_millis(20))?;
        exchange.decide();
    }
    let end = Instant::now() + scaled(LINGER);
    while Instant::now() < end {
        exchange.wait(Duration::from_millis(20))?;
    }
    Ok(exchange.outcomes())
}

struct Exchange<'e, 'j> {
    cells: Vec<Cell<'j>>,
    servers: &'e mut Servers,
    events: &'e mut [(String, Events)],
    numbers: &'e mut Numbers,
    seen: Seen,
    /// What was sent: its ICMP type, where it is ICMP.
    sent: BTreeMap<Nonce, Option<u8>>,
}

/// A cell under way.
struct Cell<'j> {
    job: &'j Job<'j>,
    began: Option<Instant>,
    attempts: Vec<Attempt>,
    /// What was sent, also by attempts that are over.
    nonces: Vec<Nonce>,
    /// Drops that were told: reason and place.
    dropped: BTreeSet<(String, String)>,
    /// Drops of answers.
    reply_dropped: BTreeSet<(String, String)>,
    answer: Option<Answer>,
    outcome: Option<Outcome>,
}

impl Exchange<'_, '_> {
    /// Begins cells as far as there is room, and tries those again that are due.
    fn start(&mut self) -> Result<()> {
        let mut room =
            AT_ONCE.saturating_sub(self.cells.iter().filter(|it| it.is_running()).count());
        let now = Instant::now();
        for cell in &mut self.cells {
            if cell.is_over() {
                continue;
            }
            if cell.began.is_none() {
                if room == 0 {
                    continue;
                }
                room -= 1;
                cell.began = Some(now);
            } else if !cell.is_due(now) {
                continue;
            }
            cell.send(self.numbers, &mut self.sent)?;
        }
        Ok(())
    }

    /// Waits until something arrives, and takes it.
    fn wait(&mut self, most: Duration) -> Result<()> {
        let mut polled: Vec<PollFd<'_>> = self
            .servers
            .descriptors()
            .map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN))
            .collect();
        let of_servers = polled.len();
        for (_, events) in self.events.iter() {
            polled.push(PollFd::new(events.as_fd(), PollFlags::POLLIN));
        }
        let attempts = self.cells.iter().flat_map(|cell| &cell.attempts);
        let interests = attempts.filter_map(Attempt::interest);
        polled.extend(interests.map(|(descriptor, flags)| PollFd::new(descriptor, flags)));
        let timeout = PollTimeout::try_from(most).unwrap_or(PollTimeout::MAX);
        match poll(&mut polled, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::os("wait for", "probes")(errno)),
        }
        let ready: Vec<bool> = polled
            .iter()
            .take(of_servers)
            .map(|one| one.any().unwrap_or(false))
            .collect();
        drop(polled);
        self.servers.serve(&ready, &mut self.seen, |nonce| {
            self.sent.get(&nonce).copied()
        });
        for cell in &mut self.cells {
            for attempt in &mut cell.attempts {
                cell.answer = cell.answer.take().or_else(|| attempt.go_on());
            }
        }
        self.read_events();
        Ok(())
    }

    /// Takes what the datapaths tell.
    fn read_events(&mut self) {
        for (node, events) in self.events.iter_mut() {
            loop {
                let told = events.read(256);
                if told.is_empty() {
                    break;
                }
                for event in &told {
                    if event.verdict == EventVerdict::Dropped {
                        for cell in &mut self.cells {
                            cell.note(event, node);
                        }
                    }
                }
            }
        }
    }

    fn decide(&mut self) {
        let now = Instant::now();
        for cell in &mut self.cells {
            cell.decide(&self.seen, now);
        }
    }

    fn outcomes(self) -> Vec<Outcome> {
        let seen = &self.seen;
        let finished = self.cells.into_iter().map(|cell| {
            let arrived = cell.arrived(seen);
            match cell.outcome {
                Some(outcome) if outcome.verdict == Verdict::Deny && arrived.is_some() => {
                    error(format!("{}, and yet it arrived", outcome.detail))
                }
                Some(outcome) => outcome,
                None => error("it was not sent".to_owned()),
            }
        });
        finished.collect()
    }
}

impl<'j> Cell<'j> {
    fn new(job: &'j Job<'j>) -> Self {
        Self {
            job,
            began: None,
            attempts: Vec::new(),
            nonces: Vec::new(),
            dropped: BTreeSet::new(),
            reply_dropped: BTreeSet::new(),
            answer: None,
            outcome: None,
        }
    }

    fn is_over(&self) -> bool {
        self.outcome.is_some()
    }

    fn is_running(&self) -> bool {
        self.began.is_some() && !self.is_over()
    }

    /// Whether nothing is known of it, and it is time for another try.
    fn is_due(&self, now: Instant) -> bool {
        let Some(began) = self.began else {
            return true;
        };
        let tries = self.nonces.len().saturating_sub(1);
        let due = RETRIES.get(tries).map(|&after| began + scaled(after));
        due.is_some_and(|due| now >= due)
    }

    fn send(
        &mut self,
        numbers: &mut Numbers,
        sent: &mut BTreeMap<Nonce, Option<u8>>,
    ) -> Result<()> {
        let job = self.job;
        let cell = &job.cell;
        let unspecified = match cell.family {
            Family::Ipv4 => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            Family::Ipv6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        let kind = match cell.protocol {
            ProbeProtocol::Icmp | ProbeProtocol::Icmpv6 => u8::try_from(cell.port).ok(),
            _ => None,
        };
        loop {
            let (nonce, port) = numbers.next();
            let from = SocketAddr::new(job.from.unwrap_or(unspecified), port);
            sent.insert(nonce, kind);
            self.nonces.push(nonce);
            match job
                .source
                .run(|| Attempt::start(cell, from, job.to, nonce))?
            {
                Ok(attempt) => self.attempts.push(attempt),
                // A server has that port.
                Err(error) if error.kind() == ErrorKind::AddrInUse => {
                    self.nonces.pop();
                    continue;
                }
                Err(error) => self.answer = Some(Answer::Error(error.to_string())),
            }
            return Ok(());
        }
    }

    /// Notes a drop that is one of this cell's packets.
    fn note(&mut self, event: &EventView, node: &str) {
        let cell = &self.job.cell;
        let same_protocol = event.protocol.eq_ignore_ascii_case(match cell.protocol {
            ProbeProtocol::Tcp => "tcp",
            ProbeProtocol::Udp => "udp",
            ProbeProtocol::Sctp => "sctp",
            ProbeProtocol::Icmp => "icmp",
            ProbeProtocol::Icmpv6 => "icmpv6",
        });
        if !same_protocol {
            return;
        }
        let (source, destination) = (event.source.port, event.destination.port);
        for attempt in &self.attempts {
            let (near, far) = (Some(attempt.port), Some(cell.port));
            let told = (
                event.reason.clone(),
                format!("{} of {node}, {}", event.hook, event.direction),
            );
            if source.is_some() && (source, destination) == (far, near) {
                self.reply_dropped.insert(told);
            } else if (source.is_some() && (source, destination) == (near, far))
                || (attempt.nonce.is_in(&event.frame)
                    && event.destination.address == Some(self.job.to))
            {
                self.dropped.insert(told);
            } else if attempt.nonce.is_in(&event.frame) {
                self.reply_dropped.insert(told);
            }
        }
    }

    /// At whom one of its attempts has arrived.
    fn arrived(&self, seen: &Seen) -> Option<IpAddr> {
        self.nonces
            .iter()
            .find_map(|nonce| seen.get(nonce).copied())
    }

    fn decide(&mut self, seen: &Seen, now: Instant) {
        if !self.is_running() {
            return;
        }
        self.outcome = self.outcome_now(seen, now);
        if self.is_over() {
            self.attempts.clear();
        }
    }

    fn outcome_now(&self, seen: &Seen, now: Instant) -> Option<Outcome> {
        let arrived = self.arrived(seen);
        if let Some(at) = arrived.filter(|&at| at != self.job.to) {
            return Some(error(format!("it arrived at {at} instead")));
        }
        match (&self.answer, arrived) {
            (Some(Answer::Right), Some(_)) => return Some(allow("answered")),
            (Some(Answer::Right), None) => {
                return Some(error("an answer came from somebody else".to_owned()));
            }
            (Some(Answer::Forbidden), _) => return Some(deny("answered with 403".to_owned())),
            (Some(Answer::Error(text)), _) => return Some(error(text.clone())),
            (None, Some(_)) if is_one_way(&self.job.cell) => {
                return Some(allow("arrived; nobody answers this type"));
            }
            (None, _) => {}
        }
        let by_policy = [DropReason::PolicyDenied, DropReason::PolicyDeniedByRule];
        let mut dropped = self.dropped.iter();
        let denied = dropped.find(|(told, _)| by_policy.iter().any(|it| it.label() == told));
        if let (None, Some((reason, place))) = (arrived, denied) {
            return Some(deny(format!("{reason} ({place})")));
        }
        let patience = scaled(SILENCE);
        if self.began.is_none_or(|began| now < began + patience) {
            return None;
        }
        let list = |drops: &BTreeSet<(String, String)>| {
            let texts = drops
                .iter()
                .map(|(reason, place)| format!("{reason} ({place})"));
            texts.collect::<Vec<_>>().join(", ")
        };
        Some(if arrived.is_some() {
            let why = list(&self.reply_dropped);
            error(format!("it arrived, and no answer came back: {why}"))
        } else {
            let why = if self.dropped.is_empty() {
                "no drop was told".to_owned()
            } else {
                format!("dropped, but not by policy: {}", list(&self.dropped))
            };
            Outcome {
                // Types that begin nothing are dropped whatever policies say.
                doubtful: !is_one_way(&self.job.cell),
                ..deny(format!("nothing arrived in {patience:.0?}; {why}"))
            }
        })
    }
}

fn allow(detail: &str) -> Outcome {
    Outcome {
        verdict: Verdict::Allow,
        detail: detail.to_owned(),
        doubtful: false,
    }
}

fn deny(detail: String) -> Outcome {
    Outcome {
        verdict: Verdict::Deny,
        detail,
        doubtful: false,
    }
}

fn error(detail: String) -> Outcome {
    Outcome {
        verdict: Verdict::Error,
        detail,
        doubtful: false,
    }
}
