//! `dpctl status`

use clap::Args;
use datapath_user::{
    Adoption, ListedBy, NonMasqueradeView, PolicyStatus, SweepView, TableTally, Tallies,
    UplinkState, UplinkView, policy::PolicyMode,
};

use super::{Context, Outcome};
use crate::{
    api::{self, Followed, PolicySources},
    table::{self, list},
};

const EXAMPLES: &str = "\
Examples:
  dpctl status
  dpctl --node n1 status
  dpctl --output json status | jq .datapath.flows";

/// Show what the agent runs: kernel, tunnel, uplinks, pods, tables
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Status {}

impl Status {
    pub(super) fn run(&self, context: &Context<'_>) -> anyhow::Result<Outcome> {
        let Self {} = self;
        let client = context.client()?;
        context.show(&client.status()?, |status| {
            let socket = client.socket().display().to_string();
            table::pairs(&rows(status, socket))
        })
    }
}

fn rows(status: &api::Status, socket: String) -> Vec<(&'static str, String)> {
    let api::Status { agent, datapath } = status;
    let up = table::duration(agent.uptime_s);
    let mut rows = vec![
        (
            "agent",
            format!("{} (process {}), up for {up}", agent.version, agent.pid),
        ),
        ("socket", socket),
        ("kernel", datapath.kernel.clone()),
        (
            "tunnel",
            format!("{}: {}", datapath.tunnel, datapath.tunnel_why),
        ),
    ];
    for uplink in &datapath.uplinks {
        let (name, mtu) = (&uplink.name, uplink.mtu_bytes);
        let mut text = name.clone();
        if uplink.interface != *name {
            text.push_str(", now called ");
            text.push_str(&uplink.interface);
        }
        if uplink.state != UplinkState::Up {
            text.push_str(", ");
            text.push_str(&uplink.state.to_string());
        }
        text = format!("{text}, MTU {mtu}: {}", list(&uplink.addresses));
        rows.push(("uplink", text));
        rows.push(("leaving", leaving(uplink)));
    }
    let kept = &datapath.non_masquerade;
    if !kept.prefixes.is_empty() || kept.file.is_some() {
        rows.push(("unless to", unmasqueraded(kept)));
    }
    let segmentation = (&datapath.udp_segmentation, &datapath.udp_segmentation_why);
    let gateways = list(&datapath.gateways);
    rows.extend([
        (
            "pods",
            format!(
                "{}, MTU {}",
                list(&datapath.pod_cidrs),
                datapath.pod_mtu_bytes
            ),
        ),
        (
            "pods by",
            format!("{}: {}", datapath.pod_device, datapath.pod_device_why),
        ),
        (
            "UDP GSO",
            format!("by the {}: {}", segmentation.0, segmentation.1),
        ),
        (
            "network",
            format!(
                "looked at again {} times, changes found: {}",
                datapath.refreshes, datapath.changes
            ),
        ),
        ("gateway", format!("{gateways} at {}", datapath.gateway_mac)),
        ("flows", occupancy(datapath.flows)),
        ("pending", occupancy(datapath.pending)),
        ("entries", entries(&datapath.tallies)),
        ("sweeping", sweeping(&datapath.sweeping)),
        ("policy", policy(&datapath.policy)),
        ("enforced", enforced(&agent.policy)),
        (
            "policy.d",
            agent
                .policy
                .directory
                .as_ref()
                .map(followed)
                .unwrap_or_default(),
        ),
        (
            "cluster",
            agent
                .policy
                .cluster
                .as_ref()
                .map(followed)
                .unwrap_or_default(),
        ),
        ("endpoints", datapath.endpoints.to_string()),
        ("peers", datapath.peers.to_string()),
        (
            "pins",
            format!(
                "{}, ABI version {}",
                datapath.bpffs.display(),
                datapath.abi_version
            ),
        ),
        ("leases", agent.state.display().to_string()),
    ]);
    if let Some(adopted) = &datapath.adopted {
        rows.push(("adopted", taken_over(adopted)));
    }
    rows
}

/// Behind which address pods leave by an uplink, and why that one.
fn leaving(uplink: &UplinkView) -> String {
    let ways = [("IPv4", true), ("IPv6", false)].map(|(family, v4)| {
        let mut chosen = uplink.masquerade.iter().zip(&uplink.masquerade_rules);
        let off = |word: &String| word.eq_ignore_ascii_case(family);
        match chosen.find(|(address, _)| address.is_ipv4() == v4) {
            Some((address, rule)) => format!("behind {address} ({rule})"),
            None if uplink.unmasqueraded.iter().any(off) => {
                format!("in {family} under their own addresses")
            }
            None => format!("in {family} not at all (no address)"),
        }
    });
    format!("by {}: {}", uplink.name, ways.join(", "))
}

/// Where pods keep their own addresses, and who says so.
fn unmasqueraded(kept: &NonMasqueradeView) -> String {
    let mut parts = Vec::new();
    for by in [
        ListedBy::Config,
        ListedBy::File,
        ListedBy::Default,
        ListedBy::Earlier,
    ] {
        let prefixes = kept.prefixes.iter().filter(|listed| listed.by == by);
        let prefixes: Vec<_> = prefixes.map(|listed| listed.prefix).collect();
        if !prefixes.is_empty() {
            parts.push(format!("{} ({by})", list(&prefixes)));
        }
    }
    if let Some(file) = &kept.file {
        parts.push(format!("file {}", file.display()));
    }
    if let Some(problem) = &kept.problem {
        parts.push(format!("NOT UNDERSTOOD, so as before: {problem}"));
    }
    parts.join("; ")
}

/// What an earlier agent left, and what had to be put right.
fn taken_over(adopted: &Adoption) -> String {
    let mut parts = vec![format!(
        "{} endpoints, {} peers, {} flow entries",
        adopted.endpoints_kept, adopted.peers_kept, adopted.flows_kept
    )];
    for (what, names) in [
        ("endpoints", &adopted.endpoints_removed),
        ("peers", &adopted.peers_removed),
        ("interfaces", &adopted.interfaces_removed),
    ] {
        if !names.is_empty() {
            parts.push(format!("{what} gone: {}", list(names)));
        }
    }
    parts.join("; ")
}

fn occupancy(table: api::TableUse) -> String {
    let api::TableUse {
        used,
        max,
        high_water,
        memory_bytes,
        moving,
    } = table;
    let part = |entries: u32| {
        let tenths = (u64::from(entries) * 1000)
            .checked_div(max.into())
            .unwrap_or(0);
        format!("{}.{}%", tenths / 10, tenths % 10)
    };
    let mut text = format!("{used} of {max} entries ({})", part(used));
    if high_water > 0 {
        text = format!("{text}, at most {high_water} ({})", part(high_water));
    }
    if memory_bytes > 0 {
        text = format!("{text}, in {} MiB", memory_bytes.div_ceil(1 << 20));
    }
    if moving > 0 {
        text = format!("{text}; {moving} still in the table of the former size");
    }
    text
}

/// How flows are removed whose time is up.
/// What the tables let go of or refused, and which flows were not begun for it.
fn entries(tallies: &Tallies) -> String {
    let refused = |of: &TableTally| {
        let reasons = of.refused().into_iter().filter(|(_, count)| *count > 0);
        let reasons: Vec<_> = reasons
            .map(|(word, count)| format!("{count} ({word})"))
            .collect();
        if reasons.is_empty() {
            "0".to_owned()
        } else {
            reasons.join(", ")
        }
    };
    let table =
        |name, of: &TableTally| format!("{name}: {} evicted, refused {}", of.evicted, refused(of));
    let by_share = tallies.quota_established + tallies.quota_pending;
    format!(
        "{}; {}; flows refused by an endpoint's share: {by_share}",
        table("flows", &tallies.established),
        table("pending", &tallies.pending),
    )
}

/// What is enforced, and how long it took to get there.
fn policy(of: &PolicyStatus) -> String {
    let refused = match of.refused {
        0 => String::new(),
        refused => format!(", {refused} refused"),
    };
    let known = if of.known {
        String::new()
    } else {
        "an earlier process's, until the documents are set; ".to_owned()
    };
    format!(
        "{known}{} documents{refused}; {} rule sets and {} classes, in {} entries of peers and {} of \
         ports; {} updates, the last took {}, the longest {}",
        of.documents,
        of.rule_sets,
        of.classes,
        of.peer_entries,
        of.port_entries,
        of.updates,
        millis(of.last_update_us),
        millis(of.max_update_us),
    )
}

/// How policy is enforced, and when it last changed.
fn enforced(of: &PolicySources) -> String {
    let mode = match of.mode {
        PolicyMode::Default => "default mode: pods that a document selects need rules",
        PolicyMode::Always => "always mode: every pod needs rules",
        PolicyMode::Never => "never mode: no pod needs rules",
    };
    let applied = table::counted(of.applied, "document", "documents");
    let mut text = format!("{mode}; {applied} by the API");
    if of.audit {
        text.push_str("; AUDIT: what would be denied is let through");
    }
    if let Some(changed) = of.changed {
        let changed = changed.strftime("%Y-%m-%d %H:%M:%S");
        text = format!("{text}; last changed {changed} UTC");
    }
    text
}

/// What a file or directory says, and what is wrong with it.
fn followed(of: &Followed) -> String {
    let text = format!("{}: {}", of.path.display(), of.says);
    match &of.problem {
        Some(problem) => format!("{text}; NOT UNDERSTOOD, so as before: {problem}"),
        None => text,
    }
}

fn millis(us: u64) -> String {
    format!("{}.{} ms", us / 1000, us % 1000 / 100)
}

fn sweeping(view: &SweepView) -> String {
    format!(
        "{} passes, {} of {} entries removed, {} put back; the last took {} of a processor, the \
         longest slice {}; one every {} s",
        view.passes,
        view.removed,
        view.examined,
        view.put_back,
        millis(view.last_cpu_us),
        millis(view.longest_slice_us),
        view.interval_ms / 1000,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_reads_well() {
        let status = api::sample::status();
        let text = table::pairs(&rows(&status, "/run/datapath/agent.sock".to_owned()));
        insta::assert_snapshot!(text, @"
        agent      0.1.0 (process 4711), up for 2m13s
        socket     /run/datapath/agent.sock
        kernel     6.12.48
        tunnel     direct: as configured
        uplink     eth0, MTU 1500: 192.0.2.11, 2001:db8:0:1::11
        leaving    by eth0: behind 192.0.2.11 (source of the default route), in IPv6 under their own addresses
        unless to  172.16.0.0/12 (config); 10.0.0.0/8 (file); file /etc/datapath/masq.yaml
        pods       10.244.1.0/24, fd00:10:244:1::/64, MTU 1450
        pods by    netkit: this kernel has it
        UDP GSO    by the stack: the tunnel cannot carry frames of several datagrams
        network    looked at again 3 times, changes found: 1
        gateway    10.244.1.1, fd00:10:244:1::1 at 02:00:00:00:00:01
        flows      1500 of 131072 entries (1.1%), at most 60211 (45.9%), in 24 MiB
        pending    0 of 32768 entries (0.0%), at most 412 (1.2%), in 6 MiB
        entries    flows: 0 evicted, refused 0; pending: 12 evicted, refused 3 (full), 1 (busy); flows refused by an endpoint's share: 5
        sweeping   14 passes, 2650 of 21400 entries removed, 1 put back; the last took 1.6 ms of a processor, the longest slice 3.0 ms; one every 10 s
        policy     12 documents, 1 refused; 5 rule sets and 17 classes, in 230 entries of peers and 96 of ports; 4 updates, the last took 2.1 ms, the longest 8.4 ms
        enforced   default mode: pods that a document selects need rules; 2 documents by the API; last changed 2026-03-04 05:06:07 UTC
        policy.d   /etc/datapath/policy.d: 10 documents, 1 refused
        cluster    /etc/datapath/cluster.toml: 3 other nodes, 40 addresses of pods; NOT UNDERSTOOD, so as before: /etc/datapath/cluster.toml:7: there are two nodes
        endpoints  2
        peers      1
        pins       /run/datapath/bpffs, ABI version 1
        leases     /var/lib/datapath/ipam.redb
        adopted    2 endpoints, 1 peers, 1498 flow entries; endpoints gone: web-7
        ");
    }
}
