//! How long it takes until a node judges by other documents: all of them from cold, and one that
//! was changed, through the library and into the kernel's maps. Needs root.
//!
//! 1,000 documents with different selectors over 500 identities, 100 of which have endpoints on the
//! node: [`Mix`]. Before the measurements it prints how much there is in the maps and how much
//! memory it takes, and behind them the longest of all changes.
#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "the macros of criterion; what was measured is printed"
)]

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, AsRawFd},
    process,
    time::{Duration, Instant},
};

use aya::maps::MapData;
use criterion::{Criterion, criterion_group, criterion_main};
use datapath_conformance::{
    family::Family,
    paths::InProcess,
    policy::mix::Mix,
    topology::{Fabric, NodePlan, Plan, plan},
};
use datapath_user::{
    Datapath, EndpointSpec, PeerSpec, RemotePod,
    policy::{Document, Labels, PolicyReport},
};

/// Endpoints of the node.
const ENDPOINTS: u8 = 100;

criterion_group!(benches, policy);
criterion_main!(benches);

fn policy(criterion: &mut Criterion) {
    let mix = Mix::new(1, 1_000, 500, ENDPOINTS.into());
    let node = Node::with(&mix);
    let before = resident_kib();
    let (report, first) = node.set(&mix.documents);
    let memory = resident_kib() - before;
    println!("from cold: {first:.1?}, {} documents", report.documents);
    println!(
        "{:?}",
        node.inside(|datapath| Ok(datapath.status()?.policy))
    );
    println!("{memory} KiB of memory of the process");
    for map in node.inside(Datapath::map_usage) {
        if map.map.starts_with("policy") || map.map == "ipcache" {
            let memory = node.inside(|datapath| Ok(map_kib(datapath, &map.map)));
            println!(
                "{}: {} entries, {memory} KiB in the kernel",
                map.map, map.used
            );
        }
    }

    let mut group = criterion.benchmark_group("policy");
    group.sample_size(10);
    group.bench_function("all documents", |bencher| {
        bencher.iter_custom(|rounds| {
            let one = |_| {
                node.set(&[]);
                node.set(&mix.documents).1
            };
            (0..rounds).map(one).sum()
        });
    });
    let mut longest = Duration::ZERO;
    let mut round = 0;
    let mut documents = mix.documents.iter().cycle();
    group.sample_size(100);
    group.bench_function("one document", |bencher| {
        bencher.iter_custom(|rounds| {
            let one = |_| {
                round += 1;
                let document = documents.next().expect("there are documents");
                let took = node.upsert(Mix::edited(document, round));
                longest = longest.max(took);
                took
            };
            (0..rounds).map(one).sum()
        });
    });
    group.finish();
    println!("longest of {round} changes of one document: {longest:.1?}");
    node.datapaths.stop().expect("the datapath goes");
}

/// A node with endpoints, and what it knows of the others.
struct Node {
    datapaths: InProcess,
    _fabric: Fabric,
}

impl Node {
    fn with(mix: &Mix) -> Self {
        let plan = Plan::new(format!("bpu-{}", process::id()).parse().expect("a name"));
        let pods = NodePlan {
            pods: ENDPOINTS,
            ..NodePlan::default()
        };
        let fabric = Fabric::build(plan.with_nodes(1, pods)).expect("a lab");
        let datapaths = InProcess::start(&fabric, Family::Ipv4).expect("a datapath");
        let node = Self {
            datapaths,
            _fabric: fabric,
        };
        let (local, remote) = mix.identities.split_at(mix.endpoints.len());
        for (pod, (number, labels)) in (1..).zip(local) {
            let spec = Pod::of(labels).endpoint(*number);
            node.inside(|datapath| datapath.set_endpoint_labels(&format!("n1p{pod}"), &spec));
        }
        let remote = (0..).zip(remote).map(|(at, (number, labels))| {
            let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 244, 2, 2)) + at);
            Pod::of(labels).remote(address.into(), *number)
        });
        let peer = PeerSpec {
            name: "n2".to_owned(),
            address: plan::node_address(2, Family::Ipv4),
            node_addresses: Vec::new(),
            pod_cidrs: vec!["10.244.2.0/23".parse().expect("a prefix")],
            pods: remote.collect(),
            uplink: None,
            labels: [].into(),
        };
        node.inside(|datapath| datapath.upsert_peer(&peer));
        node
    }

    /// Puts these documents in the place of all, and tells how long it took.
    fn set(&self, documents: &[Document]) -> (PolicyReport, Duration) {
        let documents = documents.to_vec();
        self.inside(|datapath| {
            let start = Instant::now();
            let report = datapath.set_policies(documents, Vec::new())?;
            Ok((report, start.elapsed()))
        })
    }

    fn upsert(&self, document: Document) -> Duration {
        self.inside(|datapath| {
            let start = Instant::now();
            datapath.upsert_policies(vec![document])?;
            Ok(start.elapsed())
        })
    }

    fn inside<R: Send>(
        &self,
        work: impl FnOnce(&Datapath) -> Result<R, datapath_user::Error> + Send,
    ) -> R {
        let done = self.datapaths.inside(0, work);
        done.unwrap_or_else(|error| panic!("{error}"))
    }
}

/// A pod as an agent knows it.
#[derive(Default)]
struct Pod {
    namespace: Option<String>,
    labels: Vec<(String, String)>,
    namespace_labels: Vec<(String, String)>,
}

impl Pod {
    /// The one that has these labels.
    fn of(labels: &Labels) -> Self {
        let mut pod = Self::default();
        for label in labels.iter() {
            if label.key == Labels::NAMESPACE {
                pod.namespace = Some(label.value);
            } else if let Some(key) = label.key.strip_prefix(Labels::NAMESPACE_LABELS) {
                pod.namespace_labels.push((key.to_owned(), label.value));
            } else {
                pod.labels.push((label.key, label.value));
            }
        }
        pod
    }

    fn endpoint(self, identity: u32) -> EndpointSpec {
        EndpointSpec {
            identity: Some(identity),
            namespace: self.namespace,
            labels: self.labels.into_iter().collect(),
            namespace_labels: self.namespace_labels.into_iter().collect(),
            ..EndpointSpec::default()
        }
    }

    fn remote(self, address: IpAddr, identity: u32) -> RemotePod {
        RemotePod {
            namespace: self.namespace,
            labels: self.labels.into_iter().collect(),
            namespace_labels: self.namespace_labels.into_iter().collect(),
            ..RemotePod::new(address, Some(identity))
        }
    }
}

/// Memory of a map, in KiB, as the kernel counts it (`bpf_map_show_fdinfo` in
/// `kernel/bpf/syscall.c`): of what is allocated entry by entry, what there is.
fn map_kib(datapath: &Datapath, map: &str) -> u64 {
    let pin = datapath.config().bpffs.join("maps").join(map);
    let data = MapData::from_pin(pin).expect("the map is pinned");
    let file = format!("/proc/self/fdinfo/{}", data.fd().as_fd().as_raw_fd());
    let text = fs::read_to_string(file).expect("/proc is mounted");
    let bytes = text.lines().find_map(|line| line.strip_prefix("memlock:"));
    let bytes: u64 = bytes
        .and_then(|bytes| bytes.trim().parse().ok())
        .expect("maps have their memory there");
    bytes / 1024
}

/// Memory of this process, in KiB: `/proc/self/statm` counts in pages.
fn resident_kib() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").expect("/proc is mounted");
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    let pages: u64 = pages.expect("the second number is that of resident pages");
    pages * 4
}
