//! What the kernel says: the datapath's maps and programs by their pins, its version and settings.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::Context as _;
use datapath_user::{doctor, objects};

use super::{archive::Archive, inside};

/// Settings that change what becomes of packets or programs.
const SYSCTLS: [&str; 20] = [
    "kernel.bpf_stats_enabled",
    "kernel.unprivileged_bpf_disabled",
    "net.core.bpf_jit_enable",
    "net.core.bpf_jit_harden",
    "net.core.bpf_jit_limit",
    "net.core.netdev_max_backlog",
    "net.ipv4.conf.all.arp_ignore",
    "net.ipv4.conf.all.forwarding",
    "net.ipv4.conf.all.rp_filter",
    "net.ipv4.conf.all.send_redirects",
    "net.ipv4.conf.default.rp_filter",
    "net.ipv4.conf.dp_host.forwarding",
    "net.ipv4.conf.dp_host.rp_filter",
    "net.ipv4.ip_forward",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv6.conf.all.disable_ipv6",
    "net.ipv6.conf.all.forwarding",
    "net.ipv6.conf.dp_host.forwarding",
    "net.netfilter.nf_conntrack_max",
];

pub(super) fn collect(
    archive: &mut Archive,
    netns: Option<&Path>,
    bpffs: &Path,
    uplinks: &[String],
) -> anyhow::Result<()> {
    archive.json("kernel/maps.json", objects::maps(bpffs).map_err(Into::into))?;
    let programs = objects::programs(bpffs).map_err(Into::into);
    archive.json("kernel/programs.json", programs)?;
    archive.json(
        "kernel/links.json",
        objects::links(bpffs).map_err(Into::into),
    )?;
    archive.text("kernel/version.txt", version())?;
    let sysctls = inside(netns, || Ok(sysctls()));
    archive.json("kernel/sysctls.json", sysctls)?;
    let diagnosis = inside(netns, || Ok(doctor::diagnose(uplinks)));
    archive.json("doctor.json", diagnosis)
}

fn version() -> anyhow::Result<String> {
    let mut text = String::new();
    for path in ["/proc/version", "/proc/cmdline", "/proc/uptime"] {
        let read = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
        text.push_str(&read);
    }
    Ok(text)
}

/// Settings as they are in the calling thread's namespace; those that are not there are left out.
fn sysctls() -> BTreeMap<&'static str, String> {
    let read = |key: &'static str| {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        let text = fs::read_to_string(path).ok()?;
        Some((key, text.trim().to_owned()))
    };
    SYSCTLS.into_iter().filter_map(read).collect()
}
