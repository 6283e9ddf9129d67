//! The agent's side of flows: listed, counted, followed and flushed.

use std::{io, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{RawQuery, State},
    http::header,
    response::{IntoResponse, Response},
};
use datapath_user::{FlowFilter, FlowFollower, FlowList, FlowOrder};
use futures::stream;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    task::{self, JoinHandle},
    time::{self, Instant},
};

use super::{
    Failure, Kind,
    server::{Body as Received, Shared, answer, call, read},
};

/// How often the tables are looked at for those who follow, unless they say.
const INTERVAL: Duration = Duration::from_secs(1);
/// How often at most.
const MIN_INTERVAL: Duration = Duration::from_millis(50);
/// How often at least.
const MAX_INTERVAL: Duration = Duration::from_hours(1);
/// Between two looks at the tables the agent rests so many times as long as the first took.
const REST: u32 = 4;

/// Lines of JSON, to be had a slice at a time.
pub trait Source: Send {
    /// Adds whole lines to `lines`; false when those were the last. None may come for a while.
    ///
    /// # Errors
    ///
    /// [`Kind::Internal`] when maps cannot be read.
    fn read(&mut self, lines: &mut Vec<u8>) -> Result<bool, Failure>;
}

/// How many flows there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowCount {
    /// Both directions of one are one.
    pub flows: usize,
}

/// How often the tables are looked at for who follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FlowPace {
    /// Milliseconds from one look to the next, 50 to 3600000; once a second without. Large tables
    /// are looked at less often than that: the agent rests four times as long as a look took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<u64>,
}

/// Which flows to remove.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FlushRequest {
    /// Those that fit. The empty filter, which fits all, is refused unless `all` is set.
    pub filter: FlowFilter,
    /// Whether all are meant.
    pub all: bool,
    /// Whether to count them only.
    pub dry_run: bool,
}

impl FlushRequest {
    /// Makes sure that it says whether all flows are meant, or some.
    ///
    /// # Errors
    ///
    /// [`Kind::Invalid`].
    pub fn check(&self) -> Result<(), Failure> {
        let error = match (self.filter.is_empty(), self.all) {
            (true, false) => {
                "this would remove every flow of the node: give a filter that says which, or set \
                 `all` if all are meant"
            }
            (false, true) => {
                "`all` means every flow, and the filter some of them: leave one of the two out"
            }
            _ => return Ok(()),
        };
        Err(Failure::of(Kind::Invalid, error))
    }
}

impl FlowPace {
    fn interval(self) -> Result<Duration, Failure> {
        let interval = self.interval_ms.map_or(INTERVAL, Duration::from_millis);
        if (MIN_INTERVAL..=MAX_INTERVAL).contains(&interval) {
            return Ok(interval);
        }
        let error = format!(
            "interval_ms = {}: must be {} to {}",
            interval.as_millis(),
            MIN_INTERVAL.as_millis(),
            MAX_INTERVAL.as_millis()
        );
        Err(Failure::of(Kind::Invalid, error))
    }
}

impl Source for FlowList {
    fn read(&mut self, lines: &mut Vec<u8>) -> Result<bool, Failure> {
        let mut written = Ok(());
        let more = Self::read(self, &mut |flow| write(lines, flow, &mut written))?;
        written.map(|()| more)
    }
}

impl Source for FlowFollower {
    fn read(&mut self, lines: &mut Vec<u8>) -> Result<bool, Failure> {
        let mut written = Ok(());
        self.look(&mut |change| write(lines, change, &mut written))?;
        written.map(|()| true)
    }
}

fn write(lines: &mut Vec<u8>, value: &impl Serialize, outcome: &mut Result<(), Failure>) {
    if let Err(error) = serde_json::to_writer(&mut *lines, value) {
        *outcome = Err(Failure::new(Kind::Internal, &error));
    }
    lines.push(b'\n');
}

pub(super) async fn list(node: Shared, RawQuery(query): RawQuery) -> Result<Response, Failure> {
    let (filter, order): (FlowFilter, FlowOrder) = split(query, &["sort", "reverse", "limit"])?;
    let source = call(node, move |node| node.list_flows(&filter, order)).await?;
    // One slice is read while the one before is sent. A client that reads slowly keeps no thread.
    let slices = stream::unfold(Some(slice(source)), |reading| async {
        let mut reading = reading?;
        loop {
            let (lines, source) = match outcome(reading.await) {
                Ok((lines, source, more)) => (lines, more.then_some(source)),
                Err(error) => return Some((Err(error), None)),
            };
            let next = source.map(slice);
            match next {
                Some(next) if lines.is_empty() => reading = next,
                next => return Some((Ok(Bytes::from(lines)), next)),
            }
        }
    });
    Ok(lines_of(Body::from_stream(slices)))
}

pub(super) async fn count(node: Shared, RawQuery(query): RawQuery) -> Result<Response, Failure> {
    let (filter, _): (FlowFilter, Nothing) = split(query, &[])?;
    let count = move |node: &dyn super::Node| {
        let flows = node.count_flows(&filter)?;
        Ok(FlowCount { flows })
    };
    answer(node, count).await
}

pub(super) async fn flush(node: Shared, body: Received) -> Result<Response, Failure> {
    let request: FlushRequest = read("flush", body)?;
    request.check()?;
    answer(node, move |node| node.flush_flows(&request)).await
}

pub(super) async fn follow(node: Shared, RawQuery(query): RawQuery) -> Result<Response, Failure> {
    let (filter, pace): (FlowFilter, FlowPace) = split(query, &["interval_ms"])?;
    let interval = pace.interval()?;
    let State(shared) = &node;
    let ended = Box::pin(shared.feed().ended());
    let before = Instant::now();
    let source = call(node, move |node| node.follow_flows(&filter)).await?;
    let looks = stream::unfold(
        Some((source, ended, before.elapsed())),
        move |state| async move {
            let (mut source, mut ended, mut took) = state?;
            loop {
                tokio::select! {
                    () = time::sleep(interval.max(took * REST)) => {}
                    () = &mut ended => return None,
                }
                let before = Instant::now();
                let (lines, next) = match outcome(slice(source).await) {
                    Ok((lines, source, _)) => (lines, source),
                    Err(error) => return Some((Err(error), None)),
                };
                source = next;
                took = before.elapsed();
                if !lines.is_empty() {
                    return Some((Ok(Bytes::from(lines)), Some((source, ended, took))));
                }
            }
        },
    );
    Ok(lines_of(Body::from_stream(looks)))
}

pub(super) async fn halves(node: Shared) -> Result<Response, Failure> {
    answer(node, super::Node::flow_halves).await
}

/// What a slice came to: lines, who has more, and whether there is any.
type Slice = Result<(Vec<u8>, Box<dyn Source>, bool), Failure>;

/// Reads a slice where it may block.
fn slice(mut source: Box<dyn Source>) -> JoinHandle<Slice> {
    task::spawn_blocking(move || {
        let mut lines = Vec::new();
        let more = source.read(&mut lines)?;
        Ok((lines, source, more))
    })
}

/// It is too late to answer with a failure: the connection breaks, and the log says why.
fn outcome(slice: Result<Slice, task::JoinError>) -> io::Result<(Vec<u8>, Box<dyn Source>, bool)> {
    let slice = slice.map_err(io::Error::other)?;
    slice.map_err(|failure| {
        tracing::warn!(%failure, "flows cannot be read any further");
        io::Error::other(failure)
    })
}

fn lines_of(body: Body) -> Response {
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

/// No parameters at all.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// Reads what is behind the `?`: the parameters named are of `B`, all others of `A`.
fn split<A: DeserializeOwned, B: DeserializeOwned>(
    query: Option<String>,
    of_b: &[&str],
) -> Result<(A, B), Failure> {
    let wrong = |error: &(dyn std::error::Error + 'static)| Failure {
        causes: vec![error.to_string()],
        ..Failure::of(Kind::Invalid, "the query cannot be used")
    };
    let query = query.unwrap_or_default();
    let parameters: Vec<(String, String)> =
        serde_urlencoded::from_str(&query).map_err(|error| wrong(&error))?;
    let (of_b, of_a): (Vec<_>, Vec<_>) = parameters
        .into_iter()
        .partition(|(name, _)| of_b.contains(&name.as_str()));
    let encode = |part: &[(String, String)]| {
        serde_urlencoded::to_string(part).map_err(|error| wrong(&error))
    };
    Ok((
        serde_urlencoded::from_str(&encode(&of_a)?).map_err(|error| wrong(&error))?,
        serde_urlencoded::from_str(&encode(&of_b)?).map_err(|error| wrong(&error))?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> Result<(FlowFilter, FlowOrder), Failure> {
        split(Some(query.to_owned()), &["sort", "reverse", "limit"])
    }

    #[test]
    fn a_query_is_a_filter_and_an_order() {
        let (filter, order) =
            read("from=web-0&to=%3A80&nat=true&state=syn%2Cclosed&sort=bytes&reverse=true&limit=3")
                .unwrap();
        assert_eq!(filter.to.unwrap().to_string(), ":80");
        assert_eq!((filter.nat, filter.state.0.len()), (Some(true), 2));
        assert_eq!((order.reverse, order.limit), (true, Some(3)));
        assert_eq!(read("").unwrap(), Default::default());
    }

    #[test]
    fn a_query_that_cannot_be_used_says_why() {
        for (query, why) in [
            ("form=web-0", "unknown field `form`"),
            ("from=10.0.0", "10.0.0.0/8"),
            ("state=open", "must be syn"),
            ("sort=size", "unknown variant `size`"),
            ("limit=many", "invalid digit"),
            ("port=70000", "number too large"),
        ] {
            let failure = read(query).unwrap_err().to_string();
            assert!(failure.contains(why), "{query}: {failure}");
        }
    }

    #[test]
    fn all_flows_are_flushed_only_where_it_is_said() {
        let request = |filter, all| FlushRequest {
            filter,
            all,
            dry_run: false,
        };
        let some = || FlowFilter {
            port: Some(80),
            ..FlowFilter::default()
        };
        assert!(request(some(), false).check().is_ok());
        assert!(request(FlowFilter::default(), true).check().is_ok());
        for refused in [request(FlowFilter::default(), false), request(some(), true)] {
            assert_eq!(refused.check().unwrap_err().kind, Kind::Invalid);
        }
    }

    #[test]
    fn an_interval_has_its_limits() {
        let of = |interval_ms| FlowPace { interval_ms }.interval();
        assert_eq!(of(None).unwrap(), INTERVAL);
        assert_eq!(of(Some(50)).unwrap(), MIN_INTERVAL);
        for refused in [0, 49, 3_600_001] {
            let said = of(Some(refused)).unwrap_err().to_string();
            assert!(said.contains("50 to 3600000"), "{said}");
        }
    }
}
