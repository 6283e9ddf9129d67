//! What this process may do and what this kernel can.

use std::fs;

use nix::sys::utsname::uname;

use crate::error::Error;

/// `BPF_F_IPV6` of `bpf_l4_csum_replace`: leaves a checksum over the whole packet alone, to which
/// a change of IPv6 addresses and its transport checksum add nothing. In Linux 6.16.
const CHECKSUM_V6: u16 = 1 << 7;

/// The kernel, as far as the datapath cares.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    /// As `uname -r` says.
    pub(crate) release: String,
    version: (u32, u32),
}

impl Kernel {
    /// Looks, and refuses what cannot work.
    ///
    /// # Errors
    ///
    /// [`Error::Capability`], [`Error::Kernel`].
    pub(crate) fn probe() -> Result<Self, Error> {
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
        let kernel = Self {
            version: parse(&release),
            release,
        };
        let refuse = |what| {
            Err(Error::Kernel {
                release: kernel.release.clone(),
                what,
            })
        };
        if kernel.version < (5, 10) {
            return refuse("the datapath needs 5.10 or later");
        }
        if kernel.version < (6, 6) {
            return refuse("has no tcx to attach programs with, which came in 6.6");
        }
        Ok(kernel)
    }

    /// Flags for checksums over IPv6 addresses that this kernel knows.
    pub(crate) fn checksum_v6_flags(&self) -> u16 {
        if self.version >= (6, 16) {
            CHECKSUM_V6
        } else {
            0
        }
    }
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
