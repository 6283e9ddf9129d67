//! What this kernel was built with and is set to, as far as eBPF goes.

use std::fs::{self, File};
use std::io::Read;

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{is_map_supported, is_program_supported};
use flate2::read::GzDecoder;
use nix::sys::utsname::uname;

use super::{Finding, chain};
use crate::probe::Kernel;

/// The kernel's own type information.
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// Options that matter, needed or useful.
const OPTIONS: [&str; 14] = [
    "BPF_SYSCALL",
    "BPF_JIT",
    "CGROUP_BPF",
    "DEBUG_INFO_BTF",
    "NET_CLS_ACT",
    "NET_SCH_INGRESS",
    "NET_CLS_BPF",
    "IPV6",
    "VETH",
    "GENEVE",
    "NETKIT",
    "VLAN_8021Q",
    "BONDING",
    "NF_TABLES",
];

/// Kinds of maps that the programs have.
const MAPS: [(MapType, &str); 6] = [
    (MapType::Array, "array"),
    (MapType::PerCpuArray, "per-CPU array"),
    (MapType::Hash, "hash"),
    (MapType::LruHash, "LRU hash"),
    (MapType::LpmTrie, "longest-prefix trie"),
    (MapType::RingBuf, "ring buffer"),
];

pub(super) fn findings() -> Vec<Finding> {
    vec![
        configuration(),
        type_information(),
        helpers(),
        programs(),
        maps(),
        jit(),
        hardening(),
        unprivileged(),
        lockdown(),
        perf(),
        memory(),
    ]
}

fn configuration() -> Finding {
    let check = "kernel configuration";
    let release = uname().map(|names| names.release().to_string_lossy().into_owned());
    let boot = format!("/boot/config-{}", release.unwrap_or_default());
    let mut text = String::new();
    let packed = File::open("/proc/config.gz")
        .and_then(|file| GzDecoder::new(file).read_to_string(&mut text));
    let from = if packed.is_ok() {
        "/proc/config.gz".to_owned()
    } else if let Ok(read) = fs::read_to_string(&boot) {
        text = read;
        boot
    } else {
        let found = "neither /proc/config.gz nor /boot has it: what was tried counts";
        return Finding::ok(check, found);
    };
    let absent = not_set(&text);
    let found = if absent.is_empty() {
        format!("{from} has every option that matters")
    } else {
        format!("{from} has not: CONFIG_{}", absent.join(", CONFIG_"))
    };
    // What follows from it is told where it is tried.
    Finding::ok(check, found)
}

/// The options that a kernel's configuration has neither built in nor as a module.
fn not_set(configuration: &str) -> Vec<&'static str> {
    let set = |option: &&str| {
        let assigned = |line: &str| {
            let rest = line
                .strip_prefix("CONFIG_")
                .and_then(|rest| rest.strip_prefix(*option));
            matches!(rest, Some("=y" | "=m"))
        };
        configuration.lines().any(assigned)
    };
    OPTIONS.into_iter().filter(|option| !set(option)).collect()
}

fn type_information() -> Finding {
    match File::open(BTF) {
        Ok(_) => Finding::ok("BTF", format!("{BTF} is there")),
        Err(error) => Finding::warn(
            "BTF",
            format!("{BTF}: {error}; what helpers know is told by the kernel's version"),
            "use a kernel built with CONFIG_DEBUG_INFO_BTF",
        ),
    }
}

/// Flags of helpers, without which the programs take other ways.
fn helpers() -> Finding {
    let check = "helpers";
    let kernel = match Kernel::probe() {
        Ok(kernel) => kernel,
        // It says what is missing, and what to do.
        Err(error) => return Finding::missing(check, chain(&error), ""),
    };
    let known = |has: bool| if has { "known" } else { "not known" };
    Finding::ok(
        check,
        format!(
            "BPF_F_ADJ_ROOM_DECAP_L3_* is {}, BPF_F_IPV6 is {}; the programs do without",
            known(kernel.decap_flags),
            known(kernel.checksum_v6)
        ),
    )
}

fn programs() -> Finding {
    let check = "bpf system call";
    match is_program_supported(ProgramType::SchedClassifier) {
        Ok(true) => Finding::ok(check, "programs of traffic control can be loaded"),
        Ok(false) => Finding::missing(
            check,
            "this kernel has no programs of traffic control",
            "use a kernel built with CONFIG_BPF_SYSCALL and CONFIG_NET_CLS_ACT",
        ),
        Err(error) => Finding::missing(check, chain(&error), REFUSED),
    }
}

const REFUSED: &str = "run as root, or give the process CAP_BPF; in a container also let its \
                       seccomp profile allow bpf(2)";

fn maps() -> Finding {
    let check = "BPF maps";
    let mut absent = Vec::new();
    for (kind, name) in MAPS {
        match is_map_supported(kind) {
            Ok(true) => {}
            Ok(false) => absent.push(name),
            Err(error) => {
                return Finding::missing(check, format!("{name}: {}", chain(&error)), REFUSED);
            }
        }
    }
    if absent.is_empty() {
        return Finding::ok(check, "every kind that the programs have can be made");
    }
    let found = format!("this kernel has no {}", absent.join(", "));
    Finding::missing(check, found, "use Linux 5.10 or later")
}

fn jit() -> Finding {
    let check = "JIT compiler";
    let turn_on = "sysctl -w net.core.bpf_jit_enable=1";
    match setting("net/core/bpf_jit_enable").as_deref() {
        Some("0") => Finding::warn(check, "off: programs are interpreted, slowly", turn_on),
        Some("2") => Finding::warn(check, "on, and writes what it makes into the log", turn_on),
        Some(_) => Finding::ok(check, "on"),
        // Not there for other network namespaces than the first before Linux 5.14 or so.
        None => Finding::ok(check, "net.core.bpf_jit_enable is not shown here"),
    }
}

fn hardening() -> Finding {
    let check = "JIT hardening";
    match setting("net/core/bpf_jit_harden").as_deref() {
        Some("2") => Finding::warn(
            check,
            "on for root's programs too: their constants are blinded, which costs time",
            "sysctl -w net.core.bpf_jit_harden=1",
        ),
        Some("1") => Finding::ok(check, "on for programs of others than root"),
        Some(_) => Finding::ok(check, "off"),
        None => Finding::ok(check, "net.core.bpf_jit_harden is not shown here"),
    }
}

fn unprivileged() -> Finding {
    let check = "unprivileged BPF";
    match setting("kernel/unprivileged_bpf_disabled").as_deref() {
        Some("0") => Finding::warn(
            check,
            "every user may load programs",
            "sysctl -w kernel.unprivileged_bpf_disabled=2",
        ),
        Some(_) => Finding::ok(check, "off: only who has CAP_BPF loads programs"),
        None => Finding::ok(check, "this kernel does not have it"),
    }
}

fn lockdown() -> Finding {
    let check = "lockdown";
    let text = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    // "none [integrity] confidentiality"
    let mode = text
        .split_once('[')
        .and_then(|(_, rest)| Some(rest.split_once(']')?.0));
    match mode {
        Some("confidentiality") => Finding::warn(
            check,
            "confidentiality: programs may not read the kernel's memory; ours do not",
            "start the kernel with lockdown=integrity if a trial below fails",
        ),
        Some(mode) => Finding::ok(check, mode),
        None => Finding::ok(check, "none"),
    }
}

fn perf() -> Finding {
    let check = "perf events";
    match setting("kernel/perf_event_paranoid") {
        Some(level) => Finding::ok(
            check,
            format!("there, for `perf` beside the datapath; kernel.perf_event_paranoid is {level}"),
        ),
        None => Finding::ok(check, "not in this kernel; the datapath does without"),
    }
}

/// Room that a node with the default tables wants, MiB.
const ROOM_MIB: u64 = 64;

/// The limit that counts for maps: of the control group, or, on kernels that lock maps' memory,
/// of the process. Which kernel does what shows when maps are made; here is what is known before.
fn memory() -> Finding {
    let check = "memory for maps";
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = groups.lines().find_map(|line| line.strip_prefix("0::"));
    let limit = group.and_then(|group| smallest_limit(group.trim()));
    match limit {
        Some((file, mib)) if mib < ROOM_MIB => Finding::warn(
            check,
            format!("{file} allows {mib} MiB, default tables want {ROOM_MIB} MiB"),
            "raise the control group's limit, or lower max_flows and max_pending",
        ),
        Some((file, mib)) => Finding::ok(check, format!("{file} allows {mib} MiB")),
        None => Finding::ok(check, "no control group limits it"),
    }
}

/// The tightest limit among a control group and those that it is in, and its file.
fn smallest_limit(group: &str) -> Option<(String, u64)> {
    let mut path = format!("/sys/fs/cgroup{}", group.trim_end_matches('/'));
    let mut tightest: Option<(String, u64)> = None;
    while path.starts_with("/sys/fs/cgroup") {
        let file = format!("{path}/memory.max");
        // "max", or a number of bytes.
        let limit = fs::read_to_string(&file)
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok());
        if let Some(bytes) = limit
            && tightest.as_ref().is_none_or(|(_, mib)| bytes >> 20 < *mib)
        {
            tightest = Some((file, bytes >> 20));
        }
        match path.rsplit_once('/') {
            Some((parent, _)) => path = parent.to_owned(),
            None => break,
        }
    }
    tightest
}

/// A setting of `/proc/sys`; none if it is not there or not for us to read.
pub(super) fn setting(key: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/sys/{key}")).ok()?;
    Some(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_are_not_set_are_told() {
        let all = OPTIONS
            .map(|option| format!("CONFIG_{option}=y\n"))
            .concat();
        assert!(not_set(&all).is_empty());
        let some = all
            .replace("CONFIG_GENEVE=y", "# CONFIG_GENEVE is not set")
            .replace("CONFIG_VETH=y", "CONFIG_VETH=m");
        assert_eq!(not_set(&some), ["GENEVE"]);
    }
}
