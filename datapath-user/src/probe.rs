//! What this process may do and what this kernel can.

use std::fs;

use aya::programs::{SchedClassifier, TcAttachType};
use nix::sys::utsname::uname;
use serde::{Deserialize, Serialize};

use crate::config::Attach;
use crate::error::Error;

/// `BPF_F_IPV6` of `bpf_l4_csum_replace`: leaves a checksum over the whole packet alone, to which
/// a change of IPv6 addresses and its transport checksum add nothing.
const CHECKSUM_V6: u16 = 1 << 7;

/// The kernel's own type information.
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// What the running kernel gives, as far as the datapath cares.
///
/// Helpers look at their flags when a packet comes: a program with one that the kernel does not
/// know loads, and drops. So flags are looked up by name in the kernel's type information, which
/// names all that it knows. The version alone does not tell: `BPF_F_IPV6` came in 6.16, as a fix,
/// and was carried back to releases as old as 6.1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are independent abilities of a kernel"
)]
pub struct Kernel {
    /// As `uname -r` says.
    pub release: String,
    /// Programs are attached by tcx links (Linux 6.6); else as filters of a `clsact`.
    pub tcx: bool,
    /// `bpf_skb_adjust_room` is told the family of what comes out of a tunnel packet, by
    /// `BPF_F_ADJ_ROOM_DECAP_L3_IPV4` and its IPv6 twin (Linux 6.3); else `bpf_skb_change_proto`
    /// has to help.
    pub decap_flags: bool,
    /// `bpf_l4_csum_replace` knows `BPF_F_IPV6` (Linux 6.16); else a device that sums up whole
    /// packets (`CHECKSUM_COMPLETE`) disagrees with an IPv6 packet whose address was changed, and
    /// the kernel has to sum it up again.
    pub checksum_v6: bool,
    /// There are netkit pairs that take Ethernet addresses (`CONFIG_NETKIT`, Linux 6.10).
    pub netkit: bool,
}

impl Kernel {
    /// Looks, and refuses what cannot work.
    ///
    /// # Errors
    ///
    /// [`Error::Capability`], [`Error::Kernel`].
    pub fn probe() -> Result<Self, Error> {
        let status = fs::read_to_string("/proc/self/status")
            .map_err(Error::file("read", "/proc/self/status"))?;
        let missing = missing_capabilities(&status);
        if !missing.is_empty() {
            return Err(Error::Capability {
                missing: missing.join(", "),
            });
        }
        let release = uname()
            .map_err(|errno| Error::file("ask", "uname")(errno.into()))?
            .release()
            .to_string_lossy()
            .into_owned();
        let version = parse(&release);
        if version < (5, 10) {
            return Err(Error::Kernel {
                release,
                what: "the datapath needs 5.10 or later",
            });
        }
        let (decap_flags, checksum_v6, netkit) = match fs::read(BTF) {
            Ok(btf) => named_in(strings(&btf)),
            // Built without CONFIG_DEBUG_INFO_BTF.
            Err(_) => (version >= (6, 3), version >= (6, 16), false),
        };
        Ok(Self {
            // Every namespace has this interface. A kernel without tcx does not know the question.
            tcx: SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok(),
            decap_flags,
            checksum_v6,
            netkit,
            release,
        })
    }

    /// With programs attached as a setting says.
    pub(crate) fn attaching(mut self, how: Attach) -> Result<Self, Error> {
        match how {
            Attach::Auto => {}
            Attach::Clsact => self.tcx = false,
            Attach::Tcx if self.tcx => {}
            Attach::Tcx => {
                return Err(Error::Kernel {
                    release: self.release,
                    what: "has no tcx, which came in 6.6: set attach to auto or clsact",
                });
            }
        }
        Ok(self)
    }

    /// Flags for checksums over IPv6 addresses that this kernel knows.
    #[must_use]
    pub fn checksum_v6_flags(&self) -> u16 {
        if self.checksum_v6 { CHECKSUM_V6 } else { 0 }
    }
}

/// Whether there are decap flags, `BPF_F_IPV6` and netkit; `names` end in zero bytes.
///
/// netkit is never a module. What sets its Ethernet address came in 6.10, and in 6.9 it refuses one.
fn named_in(names: &str) -> (bool, bool, bool) {
    let has = |name: &str| names.contains(&format!("\0{name}\0"));
    (
        has("BPF_F_ADJ_ROOM_DECAP_L3_IPV4"),
        has("BPF_F_IPV6"),
        has("netkit_set_macaddr"),
    )
}

/// The names in type information: a header of `magic: u16, version: u8, flags: u8, hdr_len,
/// type_off, type_len, str_off, str_len: u32` in the machine's byte order, then sections, at offsets
/// counted from the header's end (`Documentation/bpf/btf.rst`).
fn strings(btf: &[u8]) -> &str {
    let field = |at: usize| -> Option<usize> {
        let bytes = btf.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_ne_bytes(bytes)).ok()
    };
    let section = || {
        let start = field(4)?.checked_add(field(16)?)?;
        btf.get(start..start.checked_add(field(20)?)?)
    };
    section()
        .and_then(|section| std::str::from_utf8(section).ok())
        .unwrap_or_default()
}

/// Major and minor version.
fn parse(release: &str) -> (u32, u32) {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// The capabilities that are needed and not there. `CAP_SYS_ADMIN` stands for `CAP_BPF`.
fn missing_capabilities(status: &str) -> Vec<&'static str> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .unwrap_or(0);
    let has = |bit: u32| effective & (1 << bit) != 0;
    let mut missing = Vec::new();
    if !has(12) {
        missing.push("CAP_NET_ADMIN");
    }
    if !has(39) && !has(21) {
        missing.push("CAP_BPF");
    }
    if !has(21) {
        missing.push("CAP_SYS_ADMIN");
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(parse("6.18.44-fc-v509"), (6, 18));
        assert_eq!(parse("5.10.0-35-amd64"), (5, 10));
        assert_eq!(parse("6.1"), (6, 1));
        assert_eq!(parse("none"), (0, 0));
    }

    #[test]
    fn flags_are_found_by_their_whole_name() {
        let names = b"\0BPF_F_IPV6\0BPF_F_ADJ_ROOM_DECAP_L3_IPV4_X\0netkit_set_macaddr\0";
        let fields = [24, 0, 4, 4, u32::try_from(names.len()).unwrap()];
        let header = fields.map(u32::to_ne_bytes).concat();
        let btf = [&[0x9f, 0xeb, 1, 0], &header[..], b"type", &names[..]].concat();
        assert_eq!(named_in(strings(&btf)), (false, true, true));
        for length in 0..btf.len() {
            assert_eq!(strings(&btf[..length]), "");
        }
    }

    #[test]
    fn this_kernel_names_its_flags() {
        let btf = fs::read(BTF).unwrap();
        assert!(strings(&btf).contains("\0BPF_F_ADJ_ROOM_FIXED_GSO\0"));
    }

    #[test]
    fn what_is_missing_is_named() {
        assert!(missing_capabilities("CapEff:\t000001ffffffffff").is_empty());
        let none = missing_capabilities("CapEff:\t0000000000000000");
        assert_eq!(none, ["CAP_NET_ADMIN", "CAP_BPF", "CAP_SYS_ADMIN"]);
        assert_eq!(
            missing_capabilities("CapEff:\t0000000000201000"),
            Vec::<&str>::new()
        );
    }
}
