//! How large the flow tables are: as the settings say, or as the memory has it.

use std::fs;
use std::path::Path;

use nix::sys::sysinfo::sysinfo;

use crate::config::Config;
use crate::error::Error;

/// Entries that each flow table has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) max_flows: u32,
    pub(crate) max_pending: u32,
}

/// Memory of an entry: `struct htab_elem` (48), key (40) and value (80), and a bucket (16); the maps
/// allocate all of it at once (`prealloc_init`, kernel/bpf/hashtab.c).
const ENTRY_BYTES: u64 = 184;

/// Where the size is left to the memory, the part of it that the tables take: 0.25 %, as Cilium's.
const PART: u64 = 400;
/// The same of what a control group may use, which is there for little else.
const PART_OF_LIMIT: u64 = 8;
/// Sizes that are chosen so, entries.
const CHOSEN: (u32, u32) = (16_384, 4_194_304);

/// Smallest flow table, entries.
pub(crate) const MIN_ENTRIES: u32 = 1024;
/// Largest flow table, entries.
pub(crate) const MAX_ENTRIES: u32 = 16_777_216;

/// Memory that there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    /// Of the machine.
    pub(crate) total_bytes: u64,
    /// What this process's control group, or one around it, may use: maps are charged to it.
    pub(crate) limit_bytes: Option<u64>,
}

impl Memory {
    /// What this machine has.
    ///
    /// # Errors
    ///
    /// [`Error::File`] where the kernel does not say.
    pub(crate) fn look() -> Result<Self, Error> {
        let info = sysinfo().map_err(|errno| Error::file("ask for", "the memory")(errno.into()))?;
        Ok(Self {
            total_bytes: info.ram_total(),
            limit_bytes: limit_bytes(Path::new("/proc/self/cgroup"), Path::new("/sys/fs/cgroup")),
        })
    }

    /// What the tables may take at most, and of what that is half.
    fn most(self) -> (u64, &'static str) {
        match self.limit_bytes {
            Some(limit) if limit < self.total_bytes => {
                (limit / 2, "what its control group may use")
            }
            _ => (self.total_bytes / 2, "the memory of this machine"),
        }
    }

    /// Entries of established flows where nobody said how many.
    fn chosen(self) -> u32 {
        let limit = self.limit_bytes.unwrap_or(u64::MAX) / PART_OF_LIMIT;
        let bytes = (self.total_bytes / PART).min(limit);
        // With a quarter as many pending ones.
        let entries = u32::try_from(bytes * 4 / 5 / ENTRY_BYTES).unwrap_or(u32::MAX);
        power_of_two_below(entries).clamp(CHOSEN.0, CHOSEN.1)
    }
}

impl Sizes {
    /// The sizes that a configuration asks for.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`] where they do not fit.
    pub(crate) fn of(config: &Config, memory: Memory) -> Result<Self, Error> {
        let max_flows = config.max_flows.unwrap_or_else(|| memory.chosen());
        let of_flows = (max_flows / 4).max(MIN_ENTRIES);
        let max_pending = config.max_pending.unwrap_or(of_flows);
        let (most, of) = memory.most();
        let bytes = |entries: u32| u64::from(entries) * ENTRY_BYTES;
        let sum = bytes(max_flows) + bytes(max_pending);
        if sum > most {
            let (field, value) = if max_flows >= max_pending {
                ("max_flows", max_flows)
            } else {
                ("max_pending", max_pending)
            };
            let rest = most.saturating_sub(sum - bytes(value)) / ENTRY_BYTES;
            return Err(Error::TooLarge {
                field,
                value,
                needed_mib: sum.div_ceil(1 << 20),
                most_mib: most >> 20,
                of,
                fits: power_of_two_below(u32::try_from(rest).unwrap_or(u32::MAX)),
            });
        }
        Ok(Self {
            max_flows,
            max_pending,
        })
    }
}

/// The largest power of two that is not above; zero for zero.
fn power_of_two_below(number: u32) -> u32 {
    number.checked_ilog2().map_or(0, |log| 1 << log)
}

/// The tightest memory limit of the control groups that this process is in (cgroup v2); none where
/// there is none, or none that can be seen.
fn limit_bytes(own: &Path, root: &Path) -> Option<u64> {
    let groups = fs::read_to_string(own).ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let group = root.join(path);
    let around = group
        .ancestors()
        .take_while(|group| group.starts_with(root));
    let limit = |group: &Path| {
        let said = fs::read_to_string(group.join("memory.max")).ok()?;
        said.trim().parse::<u64>().ok()
    };
    around.filter_map(limit).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::{FlowTable, memory_bytes};

    const GIB: u64 = 1 << 30;

    fn memory(gib: u64, limit_mib: Option<u64>) -> Memory {
        Memory {
            total_bytes: gib * GIB,
            limit_bytes: limit_mib.map(|mib| mib << 20),
        }
    }

    fn config(max_flows: Option<u32>, max_pending: Option<u32>) -> Config {
        Config {
            max_flows,
            max_pending,
            ..Config::new("/run/x", ["eth0"])
        }
    }

    #[test]
    fn the_memory_says_how_many_flows_there_may_be() {
        for (gib, limit_mib, wanted) in [
            (1, None, 16_384),
            (4, None, 32_768),
            (16, None, 131_072),
            (64, None, 524_288),
            (1024, None, 4_194_304),
            // A control group with less.
            (64, Some(256), 131_072),
            (64, Some(100_000), 524_288),
        ] {
            let sizes = Sizes::of(&config(None, None), memory(gib, limit_mib)).unwrap();
            let wanted = Sizes {
                max_flows: wanted,
                max_pending: wanted / 4,
            };
            assert_eq!(sizes, wanted, "{gib} GiB, {limit_mib:?} MiB");
        }
    }

    #[test]
    fn one_setting_says_it_all_and_two_say_it_apart() {
        let of = |max_flows, max_pending| {
            let sizes = Sizes::of(&config(max_flows, max_pending), memory(16, None)).unwrap();
            (sizes.max_flows, sizes.max_pending)
        };
        assert_eq!(of(Some(1 << 20), None), (1 << 20, 1 << 18));
        assert_eq!(of(Some(1024), None), (1024, 1024));
        assert_eq!(of(Some(1024), Some(8192)), (1024, 8192));
        assert_eq!(of(None, Some(8192)), (131_072, 8192));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_would() {
        let refused = |flows, pending, memory| {
            Sizes::of(&config(Some(flows), Some(pending)), memory)
                .unwrap_err()
                .to_string()
        };
        let said = refused(1 << 24, 1024, memory(4, None));
        for word in [
            "max_flows = 16777216",
            "2945 MiB",
            "2048 MiB",
            "the memory of this machine",
            "at most 8388608",
        ] {
            assert!(said.contains(word), "no {word} in: {said}");
        }
        let said = refused(1024, 1 << 22, memory(64, Some(256)));
        for word in ["max_pending = 4194304", "control group", "at most 524288"] {
            assert!(said.contains(word), "no {word} in: {said}");
        }
    }

    #[test]
    fn the_tightest_control_group_around_counts() {
        let directory = tempfile::tempdir().unwrap();
        let (own, root) = (directory.path().join("own"), directory.path().join("root"));
        let inner = root.join("system.slice/agent.service");
        fs::create_dir_all(&inner).unwrap();
        fs::write(&own, "1:cpu:/other\n0::/system.slice/agent.service\n").unwrap();
        assert_eq!(limit_bytes(&own, &root), None);
        fs::write(inner.join("memory.max"), "max\n").unwrap();
        fs::write(root.join("system.slice/memory.max"), "268435456\n").unwrap();
        assert_eq!(limit_bytes(&own, &root), Some(1 << 28));
        fs::write(inner.join("memory.max"), "1048576\n").unwrap();
        assert_eq!(limit_bytes(&own, &root), Some(1 << 20));
        assert_eq!(limit_bytes(&directory.path().join("none"), &root), None);
    }

    // As root: the map is the kernel's.
    #[test]
    fn an_entry_takes_what_is_reckoned_with() {
        let entries = 65_536;
        let table = FlowTable::create(entries, 0).unwrap();
        let said = memory_bytes(&table).unwrap();
        let reckoned = u64::from(entries) * ENTRY_BYTES;
        let off = said.abs_diff(reckoned) * 100 / reckoned;
        assert!(off <= 10, "{said} bytes, {reckoned} reckoned");
    }
}
