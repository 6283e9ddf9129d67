//! What BPF programs cost, by the kernel's own statistics.

use std::{collections::BTreeMap, os::fd::OwnedFd};

use aya::{
    programs::{ProgramError, SchedClassifier, TcAttachType, loaded_programs},
    sys::{Stats, enable_stats},
};
use datapath_conformance::netns::Namespace;

use crate::error::{Error, Result};

/// The programs of some interfaces, and what each had cost when it was looked at first. The kernel
/// counts as long as this is there (`BPF_ENABLE_STATS`, Linux 5.8), for all programs of the machine,
/// which makes each run of one some 20 nanoseconds dearer.
#[derive(Debug)]
pub(crate) struct Times {
    _counting: OwnedFd,
    /// Name and nanoseconds, by the program's number.
    before: BTreeMap<u32, (&'static str, u128)>,
}

/// Programs that are told of, and how.
const KNOWN: [(&str, &str); 5] = [
    ("from_pod", "program from_pod, ns per packet"),
    ("from_uplink", "program from_uplink, ns per packet"),
    ("to_uplink", "program to_uplink, ns per packet"),
    ("to_pod", "program to_pod, ns per packet"),
    ("sink", "program sink, ns per packet"),
];

impl Times {
    /// Begins to count for all programs at tcx of these interfaces, each in its namespace.
    ///
    /// # Errors
    ///
    /// [`Error::Program`] for what the kernel refuses.
    pub(crate) fn start(places: &[(&Namespace, &str)]) -> Result<Self> {
        let counting = enable_stats(Stats::RunTime).map_err(|source| {
            Error::program("count the time of", "tcx", "all interfaces")(ProgramError::from(source))
        })?;
        let mut before = BTreeMap::new();
        for &(namespace, interface) in places {
            for way in [TcAttachType::Ingress, TcAttachType::Egress] {
                let found = namespace.run(|| SchedClassifier::query_tcx(interface, way))?;
                let (_, programs) = found.map_err(Error::program("list the", "tcx", interface))?;
                for program in programs {
                    let name = program.name_as_str().unwrap_or_default();
                    let known = KNOWN.iter().find(|(known, _)| *known == name);
                    if let Some((_, told)) = known {
                        before.insert(program.id(), (*told, program.run_time().as_nanos()));
                    }
                }
            }
        }
        Ok(Self {
            _counting: counting,
            before,
        })
    }

    /// Nanoseconds per unit that each program has cost since, for those that ran.
    #[allow(
        clippy::cast_precision_loss,
        reason = "beyond 2^53 nanoseconds a sample would take months"
    )]
    pub(crate) fn since(&self, units: u32) -> Vec<(&'static str, f64)> {
        let mut costs = BTreeMap::new();
        for program in loaded_programs() {
            let Ok(program) = program else {
                // Another's, which ended meanwhile.
                continue;
            };
            if let Some((told, before)) = self.before.get(&program.id()) {
                let nanos = program.run_time().as_nanos().saturating_sub(*before);
                *costs.entry(*told).or_insert(0) += nanos;
            }
        }
        let units = f64::from(units.max(1));
        let costs = costs.into_iter();
        let costs = costs.map(|(told, nanos)| (told, nanos as f64 / units));
        // Less is what something else has sent meanwhile.
        costs.filter(|(_, nanos)| *nanos >= 1.0).collect()
    }
}
