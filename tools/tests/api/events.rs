//! The stream of events: from the node's feed to a client, and to `dpctl watch`.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
};

use datapath_tools::{
    api::{EventFilter, EventQuery, EventView, Item, Node, Untold, Why},
    error::Error,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;

use super::{DPCTL, memory::Server, refusal, request, say};

/// A drop of a segment to this port.
fn event(port: u16) -> EventView {
    let end = |name: &str, identity: u32, address: &str, port: u16, kind: &str| {
        json!({"kind": kind, "name": name, "identity": identity, "address": address,
               "port": port, "mac": "02:00:00:00:00:01", "claimed": false})
    };
    // An EtherType for experiments (IEEE 802.1), and nothing that tshark could find fault with.
    let frame = format!("0200000000010200000000{:02x}88b5{}", 2, "00".repeat(64));
    let event = json!({
        "time": "2026-11-21T06:30:00.123456789Z",
        "kind": "drop", "verdict": "DROPPED", "reason": "Policy denied",
        "direction": "egress", "hook": "from_pod", "interface": "dp0", "interface_index": 7,
        "endpoint": "web-0",
        "source": end("web-0", 1001, "10.244.1.2", 40_000, "endpoint"),
        "destination": end("world", 2, "198.51.100.10", port, "world"),
        "protocol": "tcp", "tcp_flags": "SYN", "summary": "TCP Flags: SYN",
        "tagged": false, "tunnel": null, "length_bytes": 1514, "frame": frame,
    });
    serde_json::from_value(event).unwrap()
}

fn item(port: u16) -> Item {
    Item::Event(Box::new(event(port)))
}

/// Ports of the events among items.
fn ports(items: &[Item]) -> Vec<u16> {
    let port = |item: &Item| match item {
        Item::Event(event) => event.destination.port,
        Item::Untold(_) => None,
    };
    items.iter().filter_map(port).collect()
}

fn following(last: usize) -> EventQuery {
    EventQuery {
        last,
        follow: true,
        ..EventQuery::default()
    }
}

#[test]
fn a_client_gets_what_it_asked_for_as_it_comes() {
    let mut server = Server::start();
    let client = server.client();
    server.node.feed().publish((1..=10).map(item));
    let past = client.events(&EventQuery {
        follow: false,
        ..following(3)
    });
    let items: Vec<_> = past.unwrap().map(Result::unwrap).collect();
    assert_eq!(ports(&items), [8, 9, 10]);
    assert_eq!(items[0], item(8), "nothing is lost on the way");

    let mut all = client.events(&following(0)).unwrap();
    let mut one = client
        .events(&EventQuery {
            filter: EventFilter::default().and("to-port", "12").unwrap(),
            ..following(0)
        })
        .unwrap();
    server.node.feed().publish([item(11), item(12)]);
    assert_eq!(all.next().unwrap().unwrap(), item(11));
    assert_eq!(all.next().unwrap().unwrap(), item(12));
    assert_eq!(one.next().unwrap().unwrap(), item(12));
    // The server's end is the stream's.
    server.stop();
    assert!(all.next().is_none() && one.next().is_none());
    match client.events(&following(0)) {
        Err(Error::Unreachable { .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_slow_client_holds_nobody_up_and_is_told_what_it_missed() {
    const EVENTS: u16 = 5000;

    let mut server = Server::start();
    let slow = server.client().events(&following(0)).unwrap();
    server.node.feed().publish((1..=EVENTS).map(item));
    server.client().health().unwrap();
    // Whatever is still queued goes out before the stream ends.
    let reader = std::thread::spawn(move || slow.map(Result::unwrap).collect::<Vec<_>>());
    server.stop();
    let items = reader.join().unwrap();
    let missed = |item: &Item| match item {
        Item::Untold(Untold {
            why: Why::SlowClient,
            events,
            ..
        }) => *events,
        _ => 0,
    };
    let missed: u64 = items.iter().map(missed).sum();
    let seen = ports(&items);
    assert!(missed > 0, "{} seen", seen.len());
    assert_eq!(missed + seen.len() as u64, u64::from(EVENTS));
    assert!(seen.is_sorted() && seen.last() == Some(&EVENTS));
}

#[test]
fn nonsense_in_a_question_is_named() {
    let server = Server::start();
    for (query, why) in [("port=http", "port"), ("prot=tcp", "unknown field `prot`")] {
        let path = format!("/v1/events?{query}");
        let (line, answer) = say(&server, &request("GET", &path, ""));
        assert_eq!(line, "HTTP/1.1 400 Bad Request", "{query}: {answer}");
        assert!(answer.contains(why), "{query}: {answer}");
    }
    let query = EventQuery::default();
    assert!(server.client().events(&query).unwrap().next().is_none());
    let (kind, _) = refusal(server.client().remove_peer("n9"));
    assert_eq!(kind, datapath_tools::api::Kind::Missing);
}

/// A running `dpctl watch`.
struct Watch {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Watch {
    fn start(server: &Server, arguments: &[&str]) -> Self {
        let mut child = dpctl(server, arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Exit code, and what it complained of.
    fn end(mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        let mut err = self.child.stderr.take().unwrap();
        std::io::Read::read_to_string(&mut err, &mut said).unwrap();
        (self.child.wait().unwrap().code(), said)
    }
}

fn dpctl(server: &Server, arguments: &[&str]) -> Command {
    let mut command = Command::new(DPCTL);
    command
        .env("TZ", "UTC")
        .arg("--socket")
        .arg(server.socket());
    command.args(arguments);
    command
}

const LINE: &str = "Nov 21 06:30:00.123: web-0:40000 (ID:1001) <> 198.51.100.10:7 (world) \
                    Policy denied DROPPED (TCP Flags: SYN)\n";

#[test]
fn watch_prints_lines_until_it_is_asked_to_end() {
    let server = Server::start();
    server.node.feed().publish([item(7)]);
    for (verb, signal) in [
        (["watch", "--last=9", "--follow"].as_slice(), Signal::SIGINT),
        (&["watch", "--last=9", "--follow"], Signal::SIGTERM),
        (
            &["--output=json", "watch", "--last=9", "--follow"],
            Signal::SIGINT,
        ),
    ] {
        let mut watch = Watch::start(&server, verb);
        let first = watch.line();
        if verb[0] == "watch" {
            assert_eq!(first, LINE);
        } else {
            let flow: serde_json::Value = serde_json::from_str(&first).unwrap();
            let said = [
                &flow["verdict"],
                &flow["drop_reason_desc"],
                &flow["Summary"],
            ];
            assert_eq!(said, ["DROPPED", "POLICY_DENIED", "TCP Flags: SYN"]);
            assert_eq!(flow["l4"]["TCP"]["destination_port"], 7);
        }
        watch.signal(signal);
        assert_eq!(watch.end(), (Some(0), String::new()));
    }
}

/// A verdict of policy on a segment to this port, between two pods of the namespace shop.
fn verdict(port: u16, verdict: &str) -> Item {
    let mut event = serde_json::to_value(event(port)).unwrap();
    let end = |pod: &str, identity: u32, address: &str, port: u16| {
        json!({"kind": "endpoint", "name": pod, "namespace": "shop", "pod": pod,
               "identity": identity, "labels": [format!("k8s:app={pod}")], "address": address,
               "port": port, "mac": "02:00:00:00:00:01", "claimed": false})
    };
    let document = json!({"kind": "NetworkPolicy", "namespace": "shop", "name": "web"});
    let rule =
        json!({"document": document, "path": "spec.ingress[0]", "file": "web.yaml", "line": 9});
    let allowed = verdict == "FORWARDED";
    for (name, value) in [
        ("kind", json!("policy-verdict")),
        ("verdict", json!(verdict)),
        ("reason", json!(if allowed { "" } else { "Policy denied" })),
        ("reply", json!(false)),
        ("node", json!("n1")),
        ("direction", json!("ingress")),
        ("source", end("client", 1234, "10.244.1.2", 43_210)),
        ("destination", end("web", 5678, "10.244.1.3", port)),
        (
            "policy",
            json!({"matched": if allowed { "L3-L4" } else { "none" }, "rule_id": 7,
                          "rule": allowed.then_some(rule)}),
        ),
    ] {
        event[name] = value;
    }
    Item::Event(Box::new(serde_json::from_value(event).unwrap()))
}

/// Standard output of `dpctl watch` with these arguments, in lines.
pub(crate) fn watched(server: &Server, arguments: &[&str]) -> Vec<String> {
    let output = dpctl(server, &[&["watch"], arguments].concat()).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn verdicts_read_and_filter_as_hubbles() {
    let server = Server::start();
    let items = [verdict(80, "FORWARDED"), verdict(81, "DROPPED"), item(81)];
    server.node.feed().publish(items);
    let ends = "shop/client:43210 (ID:1234) -> shop/web:80 (ID:5678)";
    let allowed = format!(
        "Nov 21 06:30:00.123: {ends} policy-verdict:L3-L4 INGRESS ALLOWED (TCP Flags: SYN)"
    );
    let denied = "Nov 21 06:30:00.123: shop/client:43210 (ID:1234) <> shop/web:81 (ID:5678) \
                  policy-verdict:none INGRESS DENIED (TCP Flags: SYN)";
    assert_eq!(watched(&server, &["--all"])[..2], [&allowed, denied]);
    for (arguments, wanted) in [
        (["--verdict=forwarded"].as_slice(), &[allowed.as_str()][..]),
        (
            &[
                "--from-label=app=client",
                "--type=policy-verdict",
                "--not",
                "--to-port=80",
            ],
            &[denied],
        ),
        (&["--to-pod=shop/web", "--policy=shop/web"], &[&allowed]),
        (
            &[
                "--to-identity=5678",
                "--from-namespace=shop",
                "--port=80",
                "--port=81",
            ],
            &[&allowed, denied],
        ),
        (&["--from-pod=other/"], &[]),
    ] {
        let seen = watched(&server, &[&["--last=9"], arguments].concat());
        assert_eq!(seen, wanted, "{arguments:?}");
    }
    let json = watched(&server, &["--last=9", "--output=json", "--policy=web"]);
    let flow: serde_json::Value = serde_json::from_str(&json[0]).unwrap();
    assert_eq!(flow["ingress_allowed_by"][0]["name"], "web");
    assert_eq!(flow["destination"]["pod_name"], "web");
    assert_eq!(flow["source"]["labels"], json!(["k8s:app=client"]));
    let named = watched(
        &server,
        &[
            "--last=9",
            "--policy=web",
            "--print-policy-names",
            "--print-node-name",
        ],
    );
    assert!(
        named[0].starts_with("Nov 21 06:30:00.123 [n1]: "),
        "{named:?}"
    );
    assert!(
        named[0].contains(" ALLOWED BY web (NetworkPolicy) ("),
        "{named:?}"
    );
}

#[test]
fn how_full_the_ring_is_can_be_seen() {
    let server = Server::start();
    server.node.feed().publish((1..=819).map(item));
    let said = watched(&server, &["status"]);
    let socket = server.socket();
    assert_eq!(
        said[0],
        format!("Healthcheck (via {}): Ok", socket.display())
    );
    assert_eq!(said[1], "Current/Max Flows: 819/4,095 (20.00%)");
    assert!(said[2].starts_with("Flows/s: "), "{said:?}");
    let status = server.client().feed_status().unwrap();
    assert_eq!((status.kept, status.seen, status.untold), (819, 819, 0));
}

#[test]
fn drops_are_followed_too() {
    let mut server = Server::start();
    let mut watch = Watch::start(&server, &["drops", "--follow", "--reason=policy"]);
    // Until it listens, there is nobody to hear.
    let node = std::sync::Arc::clone(&server.node);
    let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stop = std::sync::Arc::clone(&done);
    let publisher = std::thread::spawn(move || {
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            node.feed().publish([item(7)]);
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    });
    assert_eq!(watch.line(), LINE);
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    publisher.join().unwrap();
    server.stop();
    let (code, said) = watch.end();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("has stopped"), "{said}");
}

#[test]
fn drops_say_what_was_not_told() {
    let server = Server::start();
    let output = dpctl(&server, &["drops"]).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    for words in ["EVENTS NOT TOLD", "SUPPRESSED", "Multicast"] {
        assert!(said.contains(words), "{said}");
    }
    let (_, text) = say(&server, &request("GET", "/metrics", ""));
    for wanted in [
        "datapath_events_suppressed_total{reason=\"Multicast\"} 12",
        "datapath_events_lost_total{reason=\"Multicast\"} 3",
    ] {
        assert!(text.lines().any(|line| line == wanted), "{text}");
    }
}

#[test]
fn a_wrong_filter_is_a_usage_error_that_names_the_right_ones() {
    let server = Server::start();
    for (arguments, why) in [
        (["watch", "--reason=polite"], "Policy denied"),
        (["watch", "--protocol=tpc"], "icmpv6"),
        (["watch", "--ip=10.0.0"], "10.244.0.0/16"),
        (["watch", "--verdict=lost"], "forwarded, dropped, audit"),
        (["watch", "--last=5000"], "4095"),
        (["watch", "--not"], "--not --port 53"),
        (["drops", "--output=compact"], "`dpctl watch`"),
    ] {
        let output = dpctl(&server, &arguments).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(why), "{said}");
    }
}

/// What tshark reads of the frames of a file.
fn tshark(file: &Path) -> Vec<String> {
    let mut command = Command::new("tshark");
    command.arg("-r").arg(file).args(["-T", "fields"]);
    for field in [
        "frame.time_epoch",
        "frame.interface_name",
        "frame.len",
        "frame.cap_len",
        "eth.type",
        "frame.comment",
    ] {
        command.args(["-e", field]);
    }
    let output = command.output().expect("tshark is not installed");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_pcapng_file_has_every_drop_with_its_reason() {
    let server = Server::start();
    server.node.feed().publish((1..=3).map(item));
    let file = server.directory.path().join("drops.pcapng");
    let path = file.to_str().unwrap();
    let output = dpctl(&server, &["watch", "--last=9", "--pcap", path]).output();
    let output = output.unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said, format!("3 packets written to {path}\n"));
    let frame = "1795242600.123456789\tdp0\t1514\t78\t0x88b5\tPolicy denied";
    assert_eq!(tshark(&file), [frame; 3]);
    // The same on standard output, and whole when it is interrupted.
    let to_stdout = dpctl(&server, &["watch", "--last=9", "--pcap=-"]).output();
    assert_eq!(to_stdout.unwrap().stdout, std::fs::read(&file).unwrap());
    let watch = Watch::start(&server, &["watch", "--last=9", "--follow", "--pcap", path]);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let whole = std::fs::metadata(&file).unwrap().len();
    // It begins by overwriting the file.
    server.node.feed().publish([item(4)]);
    while std::fs::metadata(&file).unwrap().len() <= whole && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    watch.signal(Signal::SIGINT);
    assert_eq!(watch.end().0, Some(0));
    assert_eq!(tshark(&file), [frame; 4]);
}
