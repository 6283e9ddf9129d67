//! Pairs of interfaces between the node and its pods: which kind, and why.

use crate::config::PodDevice;
use crate::error::Error;
use crate::probe::Kernel;

/// A kind of pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pair {
    /// `from_pod` sees what comes in at the host's end.
    Veth,
    /// `from_pod` sees what the pod's end sends, in the pod's own time, without the detour by a
    /// queue of the host's. Without a program the pod's end drops everything.
    ///
    /// `to_pod` is at tcx egress of the host's end all the same: the pair clears the mark before
    /// its own programs run (`netkit_prep_forward`, drivers/net/netkit.c), and with it what says
    /// that a packet was judged.
    Netkit,
}

impl Pair {
    const ALL: [Self; 2] = [Self::Veth, Self::Netkit];

    /// Its name in the kernel, and in every output.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Veth => "veth",
            Self::Netkit => "netkit",
        }
    }

    /// The kind of pair that an interface of this kind is an end of.
    pub(crate) fn of_kind(kind: Option<&str>) -> Option<Self> {
        Self::ALL.into_iter().find(|pair| Some(pair.name()) == kind)
    }
}

/// The kind of pair that new pods get.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Choice {
    pub(crate) pair: Pair,
    /// Why that one.
    pub(crate) why: &'static str,
}

impl Choice {
    /// By the setting, and by what the kernel has.
    ///
    /// # Errors
    ///
    /// [`Error::Kernel`] where it lacks what was asked for.
    pub(crate) fn of(setting: PodDevice, kernel: &Kernel) -> Result<Self, Error> {
        let (pair, why) = match setting {
            PodDevice::Veth => (Pair::Veth, "as configured"),
            PodDevice::Netkit if kernel.netkit => (Pair::Netkit, "as configured"),
            PodDevice::Netkit => {
                return Err(Error::Kernel {
                    release: kernel.release.clone(),
                    what: "has no netkit with Ethernet addresses (CONFIG_NETKIT, 6.10), or no type \
                           information to tell by: set pod_device to auto or veth",
                });
            }
            PodDevice::Auto if !kernel.netkit => (
                Pair::Veth,
                "this kernel has no netkit with Ethernet addresses",
            ),
            PodDevice::Auto if !kernel.tcx => (
                Pair::Veth,
                "programs are attached by filters, not by tcx links",
            ),
            PodDevice::Auto => (Pair::Netkit, "this kernel has it"),
        };
        Ok(Self { pair, why })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(setting: PodDevice, netkit: bool, tcx: bool) -> Option<Pair> {
        let kernel = Kernel {
            release: "6.12".into(),
            tcx,
            decap_flags: true,
            checksum_v6: true,
            netkit,
        };
        Choice::of(setting, &kernel).ok().map(|choice| choice.pair)
    }

    #[test]
    fn netkit_where_the_kernel_has_all_of_it() {
        use PodDevice::{Auto, Netkit, Veth};
        assert_eq!(chosen(Auto, true, true), Some(Pair::Netkit));
        assert_eq!(chosen(Auto, false, true), Some(Pair::Veth));
        assert_eq!(chosen(Auto, true, false), Some(Pair::Veth));
        assert_eq!(chosen(Veth, true, true), Some(Pair::Veth));
        assert_eq!(chosen(Netkit, true, false), Some(Pair::Netkit));
        assert_eq!(chosen(Netkit, false, true), None);
    }

    #[test]
    fn a_pair_is_known_by_the_kind_of_its_ends() {
        for pair in Pair::ALL {
            assert_eq!(Pair::of_kind(Some(pair.name())), Some(pair));
        }
        assert_eq!(Pair::of_kind(Some("bridge")), None);
        assert_eq!(Pair::of_kind(None), None);
    }
}
