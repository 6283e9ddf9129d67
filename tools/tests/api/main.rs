//! Client and server of the agent's API, over a real socket, with a node that is only memory.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "what fails here fails a test"
)]

mod events;
mod flows;
mod memory;
mod policy;
mod verdicts;

use std::{
    collections::BTreeMap,
    fs,
    io::{ErrorKind, Read, Write},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
        process::CommandExt,
    },
    process::Command,
    time::{Duration, Instant},
};

use datapath_tools::{
    api::{Client, EndpointSpec, Kind, PeerSpec},
    error::Error,
};

use self::memory::Server;

const DPCTL: &str = env!("CARGO_BIN_EXE_dpctl");

fn endpoint(id: &str) -> EndpointSpec {
    EndpointSpec {
        id: id.to_owned(),
        netns: "/run/netns/web".into(),
        interface: "eth0".to_owned(),
        addresses: Vec::new(),
        identity: Some(1001),
        ..EndpointSpec::default()
    }
}

fn refusal<T: std::fmt::Debug>(outcome: Result<T, Error>) -> (Kind, String) {
    match outcome {
        Err(Error::Refused(failure)) => (failure.kind, failure.to_string()),
        other => panic!("{other:?}"),
    }
}

/// Says something to a socket by hand; returns the status line and the body.
fn say(server: &Server, request: &str) -> (String, String) {
    let mut stream = UnixStream::connect(server.socket()).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

fn request(method: &str, path: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

#[test]
fn endpoints_come_and_go_with_their_addresses() {
    let server = Server::start();
    let client = server.client();
    client.health().unwrap();
    let added = client.add_endpoint(&endpoint("web-0")).unwrap();
    assert_eq!(
        added.addresses,
        ["10.244.1.1".parse::<std::net::IpAddr>().unwrap()]
    );
    assert_eq!(client.endpoints().unwrap(), [added]);
    assert_eq!(client.status().unwrap().datapath.endpoints, 1);
    let addresses = client.addresses().unwrap();
    assert_eq!((addresses.leases.len(), addresses.usage[0].used), (1, 1));

    let (kind, said) = refusal(client.add_endpoint(&endpoint("web-0")));
    assert_eq!(kind, Kind::Conflict);
    assert!(said.contains("\"web-0\""), "{said}");
    let (kind, said) = refusal(client.add_endpoint(&endpoint("../web")));
    assert_eq!(kind, Kind::Invalid);
    assert!(said.contains("../web"), "{said}");

    client.remove_endpoint("web-0").unwrap();
    assert!(client.addresses().unwrap().leases.is_empty());
    assert_eq!(refusal(client.remove_endpoint("web-0")).0, Kind::Missing);
}

#[test]
fn peers_are_replaced_by_name() {
    let server = Server::start();
    let client = server.client();
    let peer = PeerSpec {
        name: "n2".to_owned(),
        address: "192.0.2.12".parse().unwrap(),
        node_addresses: Vec::new(),
        pod_cidrs: vec!["10.244.2.0/24".parse().unwrap()],
        pods: Vec::new(),
        uplink: None,
        labels: BTreeMap::new(),
    };
    assert_eq!(client.put_peer(&peer).unwrap().generation, 1);
    assert_eq!(client.put_peer(&peer).unwrap().generation, 2);
    assert_eq!(client.peers().unwrap().len(), 1);
    client.remove_peer("n2").unwrap();
    assert!(client.peers().unwrap().is_empty());
}

#[test]
fn a_name_survives_the_path_whatever_is_in_it() {
    let server = Server::start();
    for name in ["a b", "a/b", "..", "ü?#%41"] {
        let (kind, said) = refusal(server.client().remove_peer(name));
        assert_eq!((kind, said), (Kind::Missing, format!("no peer {name:?}")));
    }
}

#[test]
fn nonsense_is_answered_in_json() {
    let server = Server::start();
    let cases = [
        (
            "GET",
            "/v1/nothing",
            "",
            "404 Not Found",
            "there is nothing at /v1/nothing",
        ),
        (
            "DELETE",
            "/v1/flows",
            "",
            "405 Method Not Allowed",
            "/v1/flows does not take DELETE",
        ),
        (
            "POST",
            "/v1/endpoints",
            "{\"id\":",
            "400 Bad Request",
            "EOF while parsing",
        ),
        (
            "POST",
            "/v1/endpoints",
            "{\"id\":\"a\"}",
            "400 Bad Request",
            "missing field `netns`",
        ),
        (
            "PUT",
            "/v1/peers",
            "{\"nam\":1}",
            "400 Bad Request",
            "unknown field `nam`",
        ),
    ];
    for (method, path, body, status, why) in cases {
        let (line, answer) = say(&server, &request(method, path, body));
        assert_eq!(line, format!("HTTP/1.1 {status}"), "{method} {path}");
        let json: serde_json::Value = serde_json::from_str(&answer).unwrap();
        let said = format!("{} {}", json["error"], json["causes"]);
        assert!(said.contains(why), "{method} {path}: {said}");
    }
}

#[test]
fn a_body_that_is_too_long_is_refused() {
    let server = Server::start();
    let mut stream = UnixStream::connect(server.socket()).unwrap();
    let request = request("POST", "/v1/endpoints", &"x".repeat(17 << 20));
    // The server answers and hangs up before it has read everything.
    assert!(stream.write_all(request.as_bytes()).is_err());
    let mut answer = [0; 4096];
    let length = stream.read(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer[..length]);
    assert!(
        answer.starts_with("HTTP/1.1 413 Payload Too Large"),
        "{answer}"
    );
    server.client().health().unwrap();
}

#[test]
fn a_panic_is_an_answer_and_not_the_end() {
    let server = Server::start();
    let (kind, said) = refusal(server.client().add_endpoint(&endpoint("poison")));
    assert_eq!(kind, Kind::Internal);
    assert!(said.contains("panic"), "{said}");
    server.client().health().unwrap();
}

#[test]
fn metrics_are_openmetrics() {
    let server = Server::start();
    let (line, text) = say(&server, &request("GET", "/metrics", ""));
    assert_eq!(line, "HTTP/1.1 200 OK");
    for wanted in [
        "datapath_drop_packets_total{direction=\"ingress\",reason=\"Policy \\\"denied\\\"\"} 3",
        "datapath_drop_bytes_total{direction=\"ingress\",reason=\"Policy \\\"denied\\\"\"} 180",
        "datapath_forward_packets_total{direction=\"ingress\",path=\"to-endpoint\"} 3",
        "datapath_flows{table=\"established\"} 2",
        "datapath_flows_max{table=\"pending\"} 4",
        "datapath_flow_entries_made_total{table=\"pending\"} 40",
        "datapath_flow_entries_gone_total{table=\"pending\",how=\"evicted\"} 10",
        "datapath_flow_entries_gone_total{table=\"pending\",how=\"removed\"} 20",
        "datapath_flow_entries_gone_total{table=\"pending\",how=\"swept\"} 8",
        "datapath_flow_entries_refused_total{table=\"established\",why=\"full\"} 7",
        "datapath_flow_entries_refused_total{table=\"pending\",why=\"no-memory\"} 3",
        "datapath_flow_turns_total{what=\"quota-pending\"} 5",
        "datapath_flow_turns_total{what=\"quota-promotion\"} 6",
        "datapath_flow_turns_total{what=\"reset-revoked\"} 1",
        "datapath_addresses{pool=\"default\",range=\"10.244.1.0/24\",state=\"free\"} 254",
        "datapath_policy_verdicts_total{direction=\"egress\",verdict=\"denied\"} 17",
        "datapath_policy_documents 3",
        "datapath_policy_documents_refused 1",
        "datapath_policy_updates_total 7",
        "datapath_policy_update_last_us 850",
        "datapath_policy_update_max_us 2400",
        "datapath_map_entries{map=\"ipcache\"} 128",
        "datapath_map_entries_max{map=\"ipcache\"} 512",
        "datapath_map_pressure{map=\"ipcache\"} 0.25",
        "datapath_events_told_total 0",
        "datapath_events_kept 0",
        "# TYPE datapath_drop_packets counter",
        "# EOF",
    ] {
        assert!(
            text.lines().any(|line| line == wanted),
            "no {wanted} in\n{text}"
        );
    }
}

#[test]
fn what_metrics_are_made_of_can_be_asked_for() {
    let server = Server::start();
    let client = server.client();
    let counts = client.policy_counts().unwrap();
    assert_eq!(
        (counts[0].verdict.as_str(), counts[0].flows),
        ("denied", 17)
    );
    let maps = client.map_usage().unwrap();
    assert_eq!(
        (maps[0].map.as_str(), maps[0].used, maps[0].max),
        ("ipcache", 128, 512)
    );
}

#[test]
fn who_is_not_there_cannot_be_reached() {
    let mut server = Server::start();
    let client = server.client();
    server.stop();
    assert!(!server.socket().exists(), "the socket goes with the server");
    match client.health() {
        Err(Error::Unreachable { source, .. }) => assert_eq!(source.kind(), ErrorKind::NotFound),
        other => panic!("{other:?}"),
    }
}

#[test]
fn who_does_not_answer_is_not_waited_for_for_ever() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    let start = Instant::now();
    let client = Client::new(&path).with_patience(Duration::from_millis(100));
    match client.status() {
        Err(Error::Silent { request, .. }) => assert_eq!(request, "GET /v1/status"),
        other => panic!("{other:?}"),
    }
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn an_idle_connection_does_not_keep_the_server() {
    let mut server = Server::start();
    let _idle = UnixStream::connect(server.socket()).unwrap();
    server.client().health().unwrap();
    let start = Instant::now();
    server.stop();
    assert!(
        start.elapsed() < Duration::from_secs(8),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn only_root_and_the_agents_own_user_are_answered() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "takes on another user's id, which needs root"
    );
    let server = Server::start();
    let everyone = |path: &std::path::Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    everyone(server.directory.path(), 0o755);
    let dpctl = server.directory.path().join("dpctl");
    fs::copy(DPCTL, &dpctl).unwrap();
    let ask = || {
        let socket = server.socket();
        let mut command = Command::new(&dpctl);
        let output = command
            .arg("--socket")
            .arg(socket)
            .arg("status")
            .uid(65_534)
            .output();
        let output = output.unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (code, said) = ask();
    assert_eq!(code, Some(3), "{said}");
    assert!(
        said.contains("Permission denied") && said.contains("sudo"),
        "{said}"
    );

    // However wide the socket is open, credentials are looked at.
    everyone(&server.socket(), 0o666);
    let (code, said) = ask();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("user 65534 may not ask this agent"), "{said}");
    assert_eq!(
        Command::new(&dpctl)
            .arg("--socket")
            .arg(server.socket())
            .arg("status")
            .output()
            .unwrap()
            .status
            .code(),
        Some(0)
    );
}
