//! What an interface does on behalf of the network stack, switched on and off by ethtool(8).

use std::{fmt, process::Command};

use crate::{
    error::{Error, Result},
    netns::Namespace,
    program,
};

/// Something that an interface, or the kernel at its door, does about checksums and segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Offload {
    /// Completing the checksums of what is sent. Without it every frame leaves with complete
    /// checksums, which also switches off [`Offload::Tso`] and [`Offload::TxUdpSegmentation`].
    TxChecksum,
    /// Trusting the checksums of what is received.
    RxChecksum,
    /// Cutting TCP into segments when sending (TSO).
    Tso,
    /// Cutting frames into segments at the last moment before sending, in software (GSO).
    Gso,
    /// Joining segments on receiving (GRO).
    Gro,
    /// Cutting UDP into datagrams when sending (`UDP_SEGMENT`).
    TxUdpSegmentation,
}

impl Offload {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::TxChecksum,
        Self::RxChecksum,
        Self::Tso,
        Self::Gso,
        Self::Gro,
        Self::TxUdpSegmentation,
    ];

    /// Returns the name that `ethtool -k` lists it under.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TxChecksum => "tx-checksumming",
            Self::RxChecksum => "rx-checksumming",
            Self::Tso => "tcp-segmentation-offload",
            Self::Gso => "generic-segmentation-offload",
            Self::Gro => "generic-receive-offload",
            Self::TxUdpSegmentation => "tx-udp-segmentation",
        }
    }

    /// Returns the name that `ethtool -K` takes.
    const fn short_name(self) -> &'static str {
        match self {
            Self::TxChecksum => "tx",
            Self::RxChecksum => "rx",
            Self::Tso => "tso",
            Self::Gso => "gso",
            Self::Gro => "gro",
            Self::TxUdpSegmentation => "tx-udp-segmentation",
        }
    }
}

impl fmt::Display for Offload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Switches offloads of an interface, and makes sure that each did change.
///
/// # Errors
///
/// [`Error::ProgramMissing`] without ethtool, [`Error::ProgramFailed`] with its own words (no
/// such interface, say), [`Error::OffloadStuck`] when one stays as it was.
pub fn set(namespace: &Namespace, interface: &str, wanted: &[(Offload, bool)]) -> Result<()> {
    let mut command = namespace.command("ethtool");
    command.args(["-K", interface]);
    for &(offload, on) in wanted {
        command.args([offload.short_name(), if on { "on" } else { "off" }]);
    }
    run(&mut command)?;
    let listing = list(namespace, interface)?;
    for &(offload, on) in wanted {
        let state = state(&listing, offload);
        if state != Some(on) {
            return Err(Error::OffloadStuck {
                namespace: namespace.name().to_owned(),
                interface: interface.to_owned(),
                offload: offload.name(),
                state: match state {
                    Some(true) => "on",
                    Some(false) => "off",
                    None => "unknown",
                },
            });
        }
    }
    Ok(())
}

/// Tells whether an offload of an interface is on; `None` where ethtool does not list it.
///
/// # Errors
///
/// [`Error::ProgramMissing`] without ethtool, [`Error::ProgramFailed`] with its own words.
pub fn get(namespace: &Namespace, interface: &str, offload: Offload) -> Result<Option<bool>> {
    Ok(state(&list(namespace, interface)?, offload))
}

fn list(namespace: &Namespace, interface: &str) -> Result<String> {
    run(namespace.command("ethtool").args(["-k", interface]))
}

/// Finds `name: on [fixed]` in ethtool's listing.
fn state(listing: &str, offload: Offload) -> Option<bool> {
    listing.lines().find_map(|line| {
        let state = line
            .trim()
            .strip_prefix(offload.name())?
            .strip_prefix(':')?;
        match state.split_whitespace().next() {
            Some("on") => Some(true),
            Some("off") => Some(false),
            _ => None,
        }
    })
}

fn run(command: &mut Command) -> Result<String> {
    program::output("ethtool", "ethtool", command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_read_by_their_whole_names() {
        let listing = "Features for eth0:\n\
                       rx-checksumming: on\n\
                       tx-checksumming: off\n\
                       \ttx-checksum-ipv4: on [fixed]\n\
                       tcp-segmentation-offload: off\n\
                       \ttx-tcp-segmentation: on [requested off]\n\
                       generic-receive-offload: on [fixed]\n";
        assert_eq!(state(listing, Offload::RxChecksum), Some(true));
        assert_eq!(state(listing, Offload::TxChecksum), Some(false));
        assert_eq!(state(listing, Offload::Tso), Some(false));
        assert_eq!(state(listing, Offload::Gro), Some(true));
        assert_eq!(state(listing, Offload::TxUdpSegmentation), None);
    }
}
