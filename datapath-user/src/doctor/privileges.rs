//! Who the process is and what it may do.

use std::fs;

use nix::unistd::geteuid;

use super::Finding;

/// A capability, and what the datapath wants it for.
struct Capability {
    name: &'static str,
    /// Its number (`include/uapi/linux/capability.h`).
    bit: u32,
    /// One that includes it.
    included_in: Option<(&'static str, u32)>,
    needed: bool,
    purpose: &'static str,
}

const SYS_ADMIN: (&str, u32) = ("CAP_SYS_ADMIN", 21);

const CAPABILITIES: [Capability; 5] = [
    Capability {
        name: "CAP_NET_ADMIN",
        bit: 12,
        included_in: None,
        needed: true,
        purpose: "make interfaces, addresses and routes, and attach programs",
    },
    Capability {
        name: "CAP_BPF",
        bit: 39,
        included_in: Some(SYS_ADMIN),
        needed: true,
        purpose: "load programs and make maps",
    },
    Capability {
        name: "CAP_SYS_ADMIN",
        bit: 21,
        included_in: None,
        needed: true,
        purpose: "mount a BPF file system and enter pods' namespaces",
    },
    Capability {
        name: "CAP_PERFMON",
        bit: 38,
        included_in: Some(SYS_ADMIN),
        needed: false,
        purpose: "have programs verified without guards against speculation",
    },
    Capability {
        name: "CAP_SYS_RESOURCE",
        bit: 24,
        included_in: None,
        needed: false,
        purpose: "lift the limit of locked memory, which counts for maps before Linux 5.11",
    },
];

pub(super) fn findings() -> Vec<Finding> {
    let user = geteuid();
    let root = if user.is_root() {
        Finding::ok("root", "runs as root")
    } else {
        Finding::warn(
            "root",
            format!("runs as user {user}: directories and sockets of an agent are root's"),
            "run as root",
        )
    };
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let held = effective(&status);
    let capabilities = CAPABILITIES.iter().map(|one| one.finding(held));
    std::iter::once(root).chain(capabilities).collect()
}

impl Capability {
    fn finding(&self, held: u64) -> Finding {
        let Self { name, purpose, .. } = *self;
        let has = |bit: u32| held & (1 << bit) != 0;
        if has(self.bit) {
            return Finding::ok(name, format!("there, to {purpose}"));
        }
        if let Some((larger, bit)) = self.included_in
            && has(bit)
        {
            return Finding::ok(name, format!("{larger} stands for it, to {purpose}"));
        }
        let found = format!("not there, to {purpose}");
        let remedy = format!("run as root, or give the process {name}");
        if self.needed {
            Finding::missing(name, found, remedy)
        } else if self.bit == 24 {
            // Whether that matters here shows where maps are tried.
            Finding::ok(name, found)
        } else {
            Finding::warn(name, found, remedy)
        }
    }
}

/// The capabilities in effect, a bit for each, out of `/proc/self/status`.
fn effective(status: &str) -> u64 {
    let mut lines = status.lines();
    lines
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    fn levels(status: &str) -> Vec<Level> {
        let held = effective(status);
        let found = CAPABILITIES.iter().map(|one| one.finding(held).level);
        found.collect()
    }

    #[test]
    fn a_larger_capability_stands_for_a_smaller_one() {
        use Level::{Missing, Ok, Warn};
        assert_eq!(levels("CapEff:\t000001ffffffffff"), [Ok; 5]);
        assert_eq!(levels("CapEff:\t0000000000201000"), [Ok; 5]);
        let none = levels("CapEff:\t0000000000000000");
        assert_eq!(none, [Missing, Missing, Missing, Warn, Ok]);
        assert_eq!(levels(""), none);
    }
}
