//! A node agent: `node_agent CONFIG.json`, with the datapath's settings, the pods of this node and
//! the other nodes in one file. Runs until end of input, then leaves the node as it found it.
//!
//! ```json
//! { "datapath": { "bpffs": "/run/datapath/bpf", "uplinks": ["eth0"],
//!                 "pod_cidrs": ["10.244.1.0/24"], "gateways": ["10.244.1.1"] },
//!   "endpoints": [{ "id": "web-0", "netns": "/run/netns/web-0", "addresses": ["10.244.1.5"] }],
//!   "peers": [{ "name": "node-2", "address": "192.0.2.2", "pod_cidrs": ["10.244.2.0/24"] }] }
//! ```

use std::{
    error::Error,
    fs,
    io::{self, Read, Write},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use datapath_user::{Config, Datapath, EndpointSpec, PeerSpec};

/// The file.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Node {
    datapath: Config,
    #[serde(default)]
    endpoints: Vec<EndpointSpec>,
    #[serde(default)]
    peers: Vec<PeerSpec>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args()
        .nth(1)
        .ok_or("usage: node_agent CONFIG.json")?;
    let node: Node = serde_json::from_str(&fs::read_to_string(path)?)?;
    let datapath = Datapath::open(node.datapath)?;
    for endpoint in &node.endpoints {
        datapath.add_endpoint(endpoint)?;
    }
    for peer in &node.peers {
        datapath.upsert_peer(peer)?;
    }
    let (end, ended) = mpsc::channel();
    thread::spawn(move || {
        let read = io::stdin().read_to_end(&mut Vec::new());
        end.send(read)
    });
    let mut pause = Duration::ZERO;
    while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(pause) {
        pause = datapath.sweep_slice()?.pause;
    }
    for m in datapath.metrics()? {
        writeln!(io::stdout(), "{} {} {}", m.direction, m.outcome, m.packets)?;
    }
    Ok(datapath.close()?)
}
