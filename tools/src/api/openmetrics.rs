//! What `GET /metrics` shows, in the form that Prometheus reads.

use std::{fmt, sync::atomic::AtomicU64};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use datapath_user::{PolicyStatus, SweepView};

use super::{Failure, Kind, Node};

/// Media type of the text (`OpenMetrics` 1.0).
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Forward {
    direction: String,
    path: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Drop {
    direction: String,
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Judged {
    direction: String,
    verdict: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Map {
    map: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Untold {
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Table {
    table: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Gone {
    table: &'static str,
    how: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    table: &'static str,
    why: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Turn {
    what: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Addresses {
    pool: String,
    range: String,
    state: &'static str,
}

/// Reads the node's figures and writes them.
///
/// The counts are the kernel's: they are taken over at every scrape, and nothing is kept here.
pub(super) fn render(node: &dyn Node) -> Result<String, Failure> {
    let mut registry = Registry::with_prefix("datapath");
    packets(&mut registry, node)?;
    policy(&mut registry, node)?;
    events(&mut registry, node)?;
    maps(&mut registry, node)?;
    tables(&mut registry, node)?;
    tallies(&mut registry, node)?;
    addresses(&mut registry, node)?;
    let mut text = String::new();
    let written: fmt::Result = text::encode(&mut text, &registry);
    written.map_err(|error| Failure::new(Kind::Internal, &error))?;
    Ok(text)
}

fn packets(registry: &mut Registry, node: &dyn Node) -> Result<(), Failure> {
    let forward_packets = Family::<Forward, Counter>::default();
    let forward_bytes = Family::<Forward, Counter>::default();
    let drop_packets = Family::<Drop, Counter>::default();
    let drop_bytes = Family::<Drop, Counter>::default();
    for metric in node.metrics()? {
        let direction = metric.direction;
        if metric.dropped {
            let drop = Drop {
                direction,
                reason: metric.outcome,
            };
            drop_packets.get_or_create(&drop).inc_by(metric.packets);
            drop_bytes.get_or_create(&drop).inc_by(metric.bytes);
        } else {
            let forward = Forward {
                direction,
                path: metric.outcome,
            };
            forward_packets
                .get_or_create(&forward)
                .inc_by(metric.packets);
            forward_bytes.get_or_create(&forward).inc_by(metric.bytes);
        }
    }
    registry.register(
        "forward_packets",
        "Frames that went on, by where to",
        forward_packets,
    );
    registry.register(
        "forward_bytes",
        "Bytes that went on, by where to",
        forward_bytes,
    );
    registry.register(
        "drop_packets",
        "Frames that were dropped, by why",
        drop_packets,
    );
    registry.register("drop_bytes", "Bytes that were dropped, by why", drop_bytes);
    Ok(())
}

fn policy(registry: &mut Registry, node: &dyn Node) -> Result<(), Failure> {
    let verdicts = Family::<Judged, Counter>::default();
    for count in node.policy_counts()? {
        let labels = Judged {
            direction: count.direction,
            verdict: count.verdict,
        };
        verdicts.get_or_create(&labels).inc_by(count.flows);
    }
    registry.register(
        "policy_verdicts",
        "Flows that policy judged, when they began or again, by direction of the endpoint and \
         verdict: allowed, denied, or audited (let through, though it would be denied)",
        verdicts,
    );
    documents(registry, &node.status()?.datapath.policy);
    Ok(())
}

fn documents(registry: &mut Registry, status: &PolicyStatus) {
    let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    for (name, help, value) in [
        (
            "policy_documents",
            "Policy documents in force",
            count(status.documents),
        ),
        (
            "policy_documents_refused",
            "Policy documents that cannot be used",
            count(status.refused),
        ),
        (
            "policy_rule_sets",
            "Rule sets in the kernel; endpoints of equal rules share one",
            count(status.rule_sets),
        ),
        (
            "policy_classes",
            "Classes of peers in the kernel: different lists of ports",
            count(status.classes),
        ),
        (
            "policy_update_last_us",
            "Time from the last change of documents until every endpoint was judged by it, \
             microseconds",
            status.last_update_us,
        ),
        (
            "policy_update_max_us",
            "The longest such time since the agent started, microseconds",
            status.max_update_us,
        ),
    ] {
        let gauge = Gauge::<u64, AtomicU64>::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    }
    let updates = Counter::<u64>::default();
    updates.inc_by(status.updates);
    registry.register("policy_updates", "Changes of policy documents", updates);
}

fn maps(registry: &mut Registry, node: &dyn Node) -> Result<(), Failure> {
    let used = Family::<Map, Gauge<u64, AtomicU64>>::default();
    let max = Family::<Map, Gauge<u64, AtomicU64>>::default();
    let pressure = Family::<Map, Gauge<f64, AtomicU64>>::default();
    for map in node.map_usage()? {
        let labels = Map {
            map: map.map.clone(),
        };
        used.get_or_create(&labels).set(map.used);
        max.get_or_create(&labels).set(map.max);
        pressure.get_or_create(&labels).set(map.pressure());
    }
    registry.register("map_entries", "Entries of the kernel's maps in use", used);
    registry.register(
        "map_entries_max",
        "Entries that the kernel's maps have room for",
        max,
    );
    registry.register(
        "map_pressure",
        "How full the kernel's maps are, from 0 to 1",
        pressure,
    );
    Ok(())
}

fn events(registry: &mut Registry, node: &dyn Node) -> Result<(), Failure> {
    let suppressed = Family::<Untold, Counter>::default();
    let lost = Family::<Untold, Counter>::default();
    for untold in node.untold_events()? {
        let labels = Untold {
            reason: untold.reason,
        };
        suppressed.get_or_create(&labels).inc_by(untold.suppressed);
        lost.get_or_create(&labels).inc_by(untold.lost);
    }
    registry.register(
        "events_suppressed",
        "Drops, by reason, and policy-verdicts not told as events, for there were too many in a \
         second",
        suppressed,
    );
    registry.register(
        "events_lost",
        "Drops, by reason, and policy-verdicts not told as events, for the ring buffer was full",
        lost,
    );
    let status = node.feed().status();
    let told = Counter::<u64>::default();
    told.inc_by(status.seen);
    registry.register("events_told", "Events since the agent started", told);
    let kept = Gauge::<u64, AtomicU64>::default();
    kept.set(u64::try_from(status.kept).unwrap_or(u64::MAX));
    registry.register("events_kept", "Events kept for those who ask later", kept);
    Ok(())
}

fn tables(registry: &mut Registry, node: &dyn Node) -> Result<(), Failure> {
    let status = node.status()?.datapath;
    let used = Family::<Table, Gauge<u64, AtomicU64>>::default();
    let max = Family::<Table, Gauge<u64, AtomicU64>>::default();
    for (table, figures) in [("established", status.flows), ("pending", status.pending)] {
        used.get_or_create(&Table { table })
            .set(figures.used.into());
        max.get_or_create(&Table { table }).set(figures.max.into());
    }
    registry.register(
        "flows",
        "Entries of the flow tables in use, two per flow",
        used,
    );
    registry.register(
        "flows_max",
        "Entries that the flow tables have room for",
        max,
    );
    let high_water = Family::<Table, Gauge<u64, AtomicU64>>::default();
    let memory = Family::<Table, Gauge<u64, AtomicU64>>::default();
    let moving = Family::<Table, Gauge<u64, AtomicU64>>::default();
    for (table, figures) in [("established", status.flows), ("pending", status.pending)] {
        let labels = Table { table };
        let entries = u64::from(figures.high_water);
        high_water.get_or_create(&labels).set(entries);
        memory.get_or_create(&labels).set(figures.memory_bytes);
        moving.get_or_create(&labels).set(figures.moving.into());
    }
    registry.register(
        "flows_high_water",
        "Most entries of the flow tables that were seen in use at once",
        high_water,
    );
    registry.register(
        "flows_memory_bytes",
        "Memory that the flow tables take",
        memory,
    );
    registry.register(
        "flows_moving",
        "Entries that are still in a flow table of the former size",
        moving,
    );
    sweeping(registry, &status.sweeping);
    for (name, help, count) in [
        ("endpoints", "Connected pods", status.endpoints),
        ("peers", "Known nodes", status.peers),
    ] {
        let gauge = Gauge::<u64, AtomicU64>::default();
        gauge.set(u64::try_from(count).unwrap_or(u64::MAX));
        registry.register(name, help, gauge);
    }
    Ok(())
}

fn tallies(registry: &mut Registry, node: &dyn Node) -> Result<(), Failure> {
    let tallies = node.tallies()?;
    let made = Family::<Table, Counter>::default();
    let gone = Family::<Gone, Counter>::default();
    let refused = Family::<Refused, Counter>::default();
    let turns = Family::<Turn, Counter>::default();
    for (table, of) in [
        ("established", tallies.established),
        ("pending", tallies.pending),
    ] {
        made.get_or_create(&Table { table }).inc_by(of.inserted);
        for (how, count) in [
            ("removed", of.removed),
            ("swept", of.swept),
            ("evicted", of.evicted),
        ] {
            gone.get_or_create(&Gone { table, how }).inc_by(count);
        }
        for (why, count) in of.refused() {
            refused.get_or_create(&Refused { table, why }).inc_by(count);
        }
    }
    for (what, count) in [
        ("quota-established", tallies.quota_established),
        ("quota-pending", tallies.quota_pending),
        ("quota-promotion", tallies.quota_promotion),
        ("lone-half", tallies.lone_halves),
        ("closed", tallies.closed),
        ("reset", tallies.reset),
        ("reset-revoked", tallies.reset_revoked),
        ("port-reused", tallies.port_reused),
        ("picked-up", tallies.picked_up),
    ] {
        turns.get_or_create(&Turn { what }).inc_by(count);
    }
    registry.register(
        "flow_entries_made",
        "Entries made in the flow tables, two per flow",
        made,
    );
    registry.register(
        "flow_entries_gone",
        "Entries gone from the flow tables: removed by packets, swept by the agent, evicted by the \
         kernel (worked out, and about right)",
        gone,
    );
    registry.register(
        "flow_entries_refused",
        "Entries that the flow tables refused, by what the kernel said",
        refused,
    );
    registry.register(
        "flow_turns",
        "What happened to flows: not begun or not promoted for a pod's quota, halves that had lost \
         their partner, ended early, alive again after a forged reset, ports used again, picked up \
         in the middle",
        turns,
    );
    Ok(())
}

fn sweeping(registry: &mut Registry, view: &SweepView) {
    for (name, help, count) in [
        ("sweep_passes", "Passes over all flows", view.passes),
        ("sweep_slices", "Slices of those passes", view.slices),
        ("sweep_examined", "Entries looked at", view.examined),
        (
            "sweep_removed",
            "Entries removed for their time was up",
            view.removed,
        ),
        (
            "sweep_put_back",
            "Entries that came to life while they were taken out, and were put back",
            view.put_back,
        ),
        (
            "sweep_displaced",
            "Entries that came to life while they were taken out, and lost their place",
            view.displaced,
        ),
        (
            "sweep_cpu_us",
            "CPU time of sweeping, microseconds",
            view.cpu_us,
        ),
    ] {
        let counter = Counter::<u64>::default();
        counter.inc_by(count);
        registry.register(name, help, counter);
    }
    for (name, help, value) in [
        (
            "sweep_longest_slice_us",
            "CPU time of the longest slice, microseconds",
            view.longest_slice_us,
        ),
        (
            "sweep_last_cpu_us",
            "CPU time of the last pass, microseconds",
            view.last_cpu_us,
        ),
        (
            "sweep_last_elapsed_ms",
            "Time from the beginning of the last pass to its end, milliseconds",
            view.last_elapsed_ms,
        ),
        (
            "sweep_interval_ms",
            "Time from the last pass to the next one, milliseconds",
            view.interval_ms,
        ),
    ] {
        let gauge = Gauge::<u64, AtomicU64>::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    }
}

fn addresses(registry: &mut Registry, node: &dyn Node) -> Result<(), Failure> {
    let addresses = Family::<Addresses, Gauge<u64, AtomicU64>>::default();
    for usage in node.addresses()?.usage {
        // There are ranges with more addresses than fit: that many are as good as any number.
        let free = u64::try_from(usage.free).unwrap_or(u64::MAX);
        let states = [
            ("used", usage.used),
            ("reserved", usage.reserved),
            ("cooling", usage.cooling),
            ("free", free),
        ];
        for (state, count) in states {
            let labels = Addresses {
                pool: usage.pool.clone(),
                range: usage.range.to_string(),
                state,
            };
            addresses.get_or_create(&labels).set(count);
        }
    }
    registry.register(
        "addresses",
        "Addresses of the node's prefixes, by what they are",
        addresses,
    );
    Ok(())
}
