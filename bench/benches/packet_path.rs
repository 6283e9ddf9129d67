//! Established packets, and first ones, through the packet logic on ordinary collections.
#![allow(missing_docs, reason = "the macros of criterion")]

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use datapath_bench::udp;
use datapath_kern::host::{Buffer, Hook, Host, plan};
use datapath_kern::packet::Family;
use datapath_kern::verdict::Action;

/// A node with two pods and a peer.
fn node() -> Host {
    let host = Host::node(1).expect("the tables are empty");
    for pod in [1, 2] {
        host.add_pod(1, pod).expect("there is room for a pod");
    }
    host.add_peer(1, 2, Family::V4, 1)
        .expect("there is room for a peer");
    host
}

fn packet_path(criterion: &mut Criterion) {
    for (family, name) in [(Family::V4, "ipv4"), (Family::V6, "ipv6")] {
        let from = (plan::pod(1, 1, family), 40_000);
        let macs = (plan::pod_mac(1, 1), plan::gateway_mac(1));
        let paths = [
            ("pod to local pod", plan::pod(1, 2, family)),
            ("pod to remote pod", plan::pod(2, 1, family)),
            ("pod to outside", plan::outside(family)),
        ];
        let mut group = criterion.benchmark_group(name);
        for (path, to) in paths {
            let frame = udp(macs, from, (to, 80)).expect("one family");
            let packet = Buffer::new(plan::pod_interface(1), frame);
            let host = node();
            let send = |mut packet: Buffer| {
                let run = host.run(Hook::FromPod, &mut packet);
                drop(host.take_accesses());
                assert_ne!(run.verdict.action, Action::Drop, "{path}: {:?}", run.reason);
            };
            send(packet.clone());
            group.bench_function(format!("{path}, known flow"), |bench| {
                bench.iter_batched(|| packet.clone(), send, BatchSize::SmallInput);
            });
            let mut port = 0;
            group.bench_function(format!("{path}, new flow"), |bench| {
                bench.iter_batched(
                    || {
                        port = (port % 60_000) + 1;
                        let frame = udp(macs, (from.0, port), (to, 80)).expect("one family");
                        Buffer::new(plan::pod_interface(1), frame)
                    },
                    send,
                    BatchSize::SmallInput,
                );
            });
        }
        group.finish();
    }
}

criterion_group!(benches, packet_path);
criterion_main!(benches);
