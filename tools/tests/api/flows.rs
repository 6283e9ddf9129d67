//! Flows from a node to a client, and to `dpctl flows`.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use datapath_tools::{
    api::{
        Client, Failure, FlowFilter, FlowOrder, FlowPair, FlushReport, FlushRequest, Kind, Source,
    },
    error::Error,
};
use datapath_user::{FlowChange, FlowSort, FlowTurn};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use super::{DPCTL, memory::Server, refusal, request, say};

/// The flows of a [`Memory`](super::memory::Memory).
#[derive(Debug, Default)]
pub(crate) struct Flows {
    flows: Arc<Mutex<Vec<FlowPair<'static>>>>,
    /// The order that was asked for last.
    asked: Mutex<Option<FlowOrder>>,
}

impl Flows {
    fn set(&self, flows: impl IntoIterator<Item = FlowPair<'static>>) {
        *self.lock() = flows.into_iter().collect();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<FlowPair<'static>>> {
        self.flows.lock().unwrap()
    }

    pub(crate) fn fitting(&self, filter: &FlowFilter) -> Vec<FlowPair<'static>> {
        let flows = self.lock();
        let fitting = flows.iter().filter(|flow| filter.takes(flow));
        fitting.cloned().collect()
    }

    pub(crate) fn list(
        &self,
        filter: &FlowFilter,
        order: FlowOrder,
    ) -> Result<Box<dyn Source>, Failure> {
        if filter.pod.as_deref() == Some("nobody") {
            return Err(Failure::of(Kind::Missing, "no endpoint \"nobody\""));
        }
        *self.asked.lock().unwrap() = Some(order);
        Ok(Box::new(Listing(self.fitting(filter))))
    }

    pub(crate) fn follow(&self, filter: &FlowFilter) -> Box<dyn Source> {
        Box::new(Following {
            flows: Arc::clone(&self.flows),
            filter: filter.clone(),
            known: self.fitting(filter),
        })
    }

    pub(crate) fn flush(&self, request: &FlushRequest) -> FlushReport {
        let fitting = self.fitting(&request.filter).len();
        let mut flows = self.lock();
        let examined = 2 * flows.len();
        if !request.dry_run {
            flows.retain(|flow| !request.filter.takes(flow));
        }
        FlushReport {
            examined,
            flows: fitting,
            removed: if request.dry_run { 0 } else { 2 * fitting },
        }
    }
}

/// Seven flows at a time, with nothing now and then, and the last lines apart from the end.
struct Listing(Vec<FlowPair<'static>>);

impl Source for Listing {
    fn read(&mut self, lines: &mut Vec<u8>) -> Result<bool, Failure> {
        let slice = self.0.len() % 8;
        if slice == 0 {
            return Ok(self.0.pop().is_some_and(|flow| {
                serde_json::to_writer(&mut *lines, &flow).unwrap();
                lines.push(b'\n');
                true
            }));
        }
        for flow in self.0.drain(self.0.len() - slice..) {
            serde_json::to_writer(&mut *lines, &flow).unwrap();
            lines.push(b'\n');
        }
        Ok(true)
    }
}

/// New flows and those that end.
struct Following {
    flows: Arc<Mutex<Vec<FlowPair<'static>>>>,
    filter: FlowFilter,
    known: Vec<FlowPair<'static>>,
}

impl Source for Following {
    fn read(&mut self, lines: &mut Vec<u8>) -> Result<bool, Failure> {
        let now: Vec<_> = self.flows.lock().unwrap().clone();
        let now: Vec<_> = now
            .into_iter()
            .filter(|flow| self.filter.takes(flow))
            .collect();
        let new = now.iter().filter(|flow| !self.known.contains(flow));
        let ended = self.known.iter().filter(|flow| !now.contains(flow));
        let turns = new
            .map(|flow| (FlowTurn::New, flow))
            .chain(ended.map(|flow| (FlowTurn::End, flow)));
        for (turn, flow) in turns {
            let time = "2026-11-21T06:30:00Z".parse().unwrap();
            let flow = flow.clone();
            serde_json::to_writer(&mut *lines, &FlowChange { turn, time, flow }).unwrap();
            lines.push(b'\n');
        }
        self.known = now;
        Ok(true)
    }
}

/// A masqueraded connection from this port.
fn flow(port: u16) -> FlowPair<'static> {
    let end = |kind: &str, name: &str, identity: u32, address: &str, port: u16| json!({"kind": kind, "name": name, "identity": identity, "address": address, "port": port});
    let flow = json!({
        "format": "flow/1", "protocol": "tcp",
        "source": end("endpoint", "web-0", 1001, "10.244.1.2", port),
        "destination": end("world", "world", 2, "198.51.100.10", 80),
        "nat": {"kind": "snat", "address": "192.0.2.11", "port": port},
        "state": "established", "verdict": "allow", "table": "established",
        "arrival": "pod", "target": "uplink", "via_stack": false,
        "packets": 12, "bytes": 3456, "reply_packets": 10, "reply_bytes": 123_456,
        "expires_in_s": 7980, "rule_id": 0, "pair": u32::from(port) + 1, "missing": null,
    });
    let text = flow.to_string();
    serde_json::from_str::<FlowPair<'_>>(&text)
        .unwrap()
        .into_owned()
}

fn filter(json: Value) -> FlowFilter {
    serde_json::from_value(json).unwrap()
}

fn listed(client: &Client, filter: &FlowFilter) -> Vec<u16> {
    let mut stream = client.flows(filter, FlowOrder::default()).unwrap();
    let mut ports = Vec::new();
    while let Some(flow) = stream.next_flow() {
        ports.push(flow.unwrap().source.port);
    }
    ports.sort_unstable();
    ports
}

fn dpctl(server: &Server, arguments: &[&str]) -> Output {
    let mut command = Command::new(DPCTL);
    command.arg("--socket").arg(server.socket()).args(arguments);
    command.output().unwrap()
}

fn good(server: &Server, arguments: &[&str]) -> String {
    let output = dpctl(server, arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn bad(server: &Server, arguments: &[&str], code: i32) -> String {
    let output = dpctl(server, arguments);
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn all_that_fit_come_whatever_the_slices() {
    let server = Server::start();
    let client = server.client();
    assert_eq!(listed(&client, &FlowFilter::default()), [0; 0]);
    server.node.flows.set((0..20_000).map(flow));
    let all: Vec<_> = (0..20_000).collect();
    assert_eq!(listed(&client, &FlowFilter::default()), all);
    assert_eq!(
        listed(&client, &filter(json!({"from": "web-0:1234"}))),
        [1234]
    );
    assert_eq!(listed(&client, &filter(json!({"nat": false}))), [0; 0]);
    assert_eq!(
        client
            .count_flows(&filter(json!({"port": 80})))
            .unwrap()
            .flows,
        20_000
    );
    let order = FlowOrder {
        sort: Some(FlowSort::Bytes),
        reverse: true,
        limit: Some(3),
    };
    client.flows(&FlowFilter::default(), order).unwrap();
    assert_eq!(*server.node.flows.asked.lock().unwrap(), Some(order));
    let nobody = filter(json!({"pod": "nobody"}));
    let (kind, said) = refusal(client.flows(&nobody, FlowOrder::default()));
    assert_eq!(
        (kind, said.as_str()),
        (Kind::Missing, "no endpoint \"nobody\"")
    );
}

#[test]
fn nonsense_is_refused_with_what_would_do() {
    let server = Server::start();
    for (method, path, body, why) in [
        ("GET", "/v1/flows?from=10.0.0", "", "10.0.0.0/8"),
        ("GET", "/v1/flows?colour=red", "", "unknown field `colour`"),
        (
            "GET",
            "/v1/flows/count?limit=3",
            "",
            "unknown field `limit`",
        ),
        (
            "GET",
            "/v1/flows/changes?interval_ms=1",
            "",
            "50 to 3600000",
        ),
        ("POST", "/v1/flows/flush", "{}", "every flow"),
        (
            "POST",
            "/v1/flows/flush",
            "{\"all\":true,\"filter\":{\"port\":1}}",
            "one of the two",
        ),
        (
            "POST",
            "/v1/flows/flush",
            "{\"filter\":{\"state\":\"open\"}}",
            "must be syn",
        ),
    ] {
        let (line, answer) = say(&server, &request(method, path, body));
        assert_eq!(line, "HTTP/1.1 400 Bad Request", "{method} {path}");
        assert!(answer.contains(why), "{method} {path}: {answer}");
    }
}

#[test]
fn dpctl_prints_what_the_node_lists() {
    let server = Server::start();
    assert_eq!(good(&server, &["flows"]), "no flow is tracked\n");
    server.node.flows.set((0..12_345).map(flow));
    assert_eq!(
        good(&server, &["flows", "--state", "closed"]),
        "no flow fits\n"
    );
    let table = good(&server, &["flows"]);
    assert_eq!(table.lines().count(), 12_346);
    let few = good(&server, &["flows", "--from", ":1000"]);
    assert_eq!(few.lines().count(), 2);
    assert!(
        few.contains("TCP    10.244.1.2:1000 (web-0)  ->  198.51.100.10:80 (world)"),
        "{few}"
    );
    assert!(
        few.contains("snat 192.0.2.11:1000  established    12/10  3456/123456"),
        "{few}"
    );
    assert_eq!(good(&server, &["flows", "--count", "--nat"]), "12345\n");
    assert_eq!(good(&server, &["flows", "--count", "-6"]), "0\n");

    // The same lines as on the wire.
    let json = good(&server, &["--output", "json", "flows", "--port", "1000"]);
    let found: FlowPair<'_> = serde_json::from_str(json.trim_end()).unwrap();
    assert_eq!(found, flow(1000));
    let count = good(&server, &["--output", "json", "flows", "--count"]);
    assert_eq!(
        serde_json::from_str::<Value>(&count).unwrap(),
        json!({"flows": 12_345})
    );

    // Who goes away in the middle does not make it fail.
    let mut head = Command::new(DPCTL);
    head.arg("--socket").arg(server.socket()).arg("flows");
    let mut head = head.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(head.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert!(line.starts_with("PROTO"), "{line}");
    assert!(head.wait().unwrap().success());
}

#[test]
fn dpctl_refuses_what_cannot_be_meant() {
    let server = Server::start();
    server.node.flows.set((0..3).map(flow));
    for (arguments, why) in [
        (&["flows", "--from", "10.0.0"][..], "10.0.0.0/8"),
        (&["flows", "--state", "open"], "closing, closed or reset"),
        (&["flows", "--protocol", "tpc"], "icmpv6"),
        (&["flows", "--sort", "size"], "packets, bytes, expires"),
        (&["flows", "--reverse"], "--sort"),
        (&["flows", "-4", "-6"], "cannot be used with"),
        (
            &["flows", "--follow", "--limit", "3"],
            "cannot be used with",
        ),
        (&["flows", "flush"], "--all-flows"),
        (
            &["flows", "flush", "--all-flows", "--port", "80"],
            "leave out one",
        ),
    ] {
        let said = bad(&server, arguments, 2);
        assert!(said.contains(why), "{arguments:?}: {said}");
    }
    let said = bad(&server, &["flows", "--pod", "nobody"], 1);
    assert_eq!(said, "dpctl: no endpoint \"nobody\"\n");
    assert_eq!(server.node.flows.lock().len(), 3, "nothing was flushed");
}

#[test]
fn dpctl_flushes_what_fits() {
    let server = Server::start();
    server.node.flows.set((0..100).map(flow));
    let some = ["flows", "flush", "--from", "web-0:7", "--protocol", "tcp"];
    let said = good(&server, &[&some[..], &["--dry-run"]].concat());
    assert_eq!(said, "1 flow would be removed\n");
    assert_eq!(server.node.flows.lock().len(), 100);
    assert_eq!(good(&server, &some), "1 flow removed (2 entries)\n");
    assert_eq!(good(&server, &some), "no flow fits: nothing to remove\n");
    let json = good(
        &server,
        &["--output", "json", "flows", "flush", "--all-flows"],
    );
    let report: FlushReport = serde_json::from_str(&json).unwrap();
    assert_eq!((report.flows, report.removed), (99, 198));
    assert!(server.node.flows.lock().is_empty());
}

#[test]
fn changes_come_until_the_agent_stops() {
    let mut server = Server::start();
    server.node.flows.set([flow(1)]);
    let client = server.client();
    let mut changes = client
        .follow_flows(&filter(json!({"port": 80})), Some(50))
        .unwrap();
    let mut next = |turn, port| {
        let change = changes.next_change().unwrap().unwrap();
        assert_eq!((change.turn, change.flow.source.port), (turn, port));
    };
    server.node.flows.set([flow(1), flow(2)]);
    next(FlowTurn::New, 2);
    server.node.flows.set([flow(2)]);
    next(FlowTurn::End, 1);
    server.stop();
    assert!(changes.next_change().is_none() && !changes.is_interrupted());
}

#[test]
fn dpctl_follows_until_it_is_told_to_stop() {
    let mut server = Server::start();
    let follow = |server: &Server| {
        let mut command = Command::new(DPCTL);
        command.arg("--socket").arg(server.socket());
        command.args(["flows", "--follow", "--interval", "50", "--protocol", "tcp"]);
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let mut following = follow(&server);
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    // When it begins to look cannot be seen from here, so flows come until one is told.
    let node = Arc::clone(&server.node);
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let coming = std::thread::spawn(move || {
        for port in 1..u16::MAX {
            node.flows.set([flow(port)]);
            let waited = stopped.recv_timeout(Duration::from_millis(100));
            if waited != Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                break;
            }
        }
    });
    let line = lines.next().unwrap().unwrap();
    drop(stop);
    coming.join().unwrap();
    for word in [
        "NEW    TCP 10.244.1.2:",
        " (web-0) -> 198.51.100.10:80 (world) snat 192.0.2.11:",
    ] {
        assert!(line.contains(word), "{line}");
    }
    server.node.flows.set([]);
    let ended = lines
        .map(Result::unwrap)
        .find(|line| line.contains("END    TCP"));
    assert!(ended.is_some());
    kill(
        Pid::from_raw(following.id().try_into().unwrap()),
        Signal::SIGINT,
    )
    .unwrap();
    assert!(following.wait().unwrap().success());

    // An agent that stops is an end that is told.
    let following = follow(&server);
    let client = server.client();
    client.health().unwrap();
    server.stop();
    let output = following.wait_with_output().unwrap();
    assert!(!output.status.success(), "{output:?}");
    match client.health() {
        Err(Error::Unreachable { .. }) => {}
        other => panic!("{other:?}"),
    }
}
