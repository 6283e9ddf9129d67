//! Counters of forwarded and dropped packets, and of what policy said.

use datapath_kern::abi::metric::{Direction, index};
use datapath_kern::verdict::{DropReason, Forward, Ruling};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::maps::Maps;

/// One counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricView {
    /// `ingress` or `egress`, seen from the pods.
    pub direction: String,
    /// The reason of a drop, or the way of a forward.
    pub outcome: String,
    /// Whether it counts drops.
    pub dropped: bool,
    /// Frames.
    pub packets: u64,
    /// Bytes of those.
    pub bytes: u64,
}

/// How many flows policy judged in a direction, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyCount {
    /// `ingress`: what begins to an endpoint; `egress`: what it begins.
    pub direction: String,
    /// `allowed`, `denied`, or `audited`: let through although it would be denied.
    pub verdict: String,
    /// Flows, each counted when it begins and when it is judged again.
    pub flows: u64,
}

/// Reads how many flows policy has judged, all cells, also those that are zero.
///
/// # Errors
///
/// [`Error::Map`].
pub(crate) fn judged(maps: &Maps) -> Result<Vec<PolicyCount>, Error> {
    let mut found = Vec::new();
    for ruling in Ruling::ALL {
        let verdict = match ruling {
            Ruling::Allowed => "allowed",
            Ruling::Denied => "denied",
            Ruling::Audited => "audited",
        };
        for direction in Direction::ALL {
            let cells = maps
                .metrics
                .get(&index(direction, ruling.code()), 0)
                .map_err(Error::map("read", "metrics"))?;
            found.push(PolicyCount {
                direction: direction.name().to_owned(),
                verdict: verdict.to_owned(),
                flows: cells.iter().map(|cell| cell.packets).sum(),
            });
        }
    }
    Ok(found)
}

/// Reads all counters that are not zero, drops first.
///
/// # Errors
///
/// [`Error::Map`].
pub(crate) fn read(maps: &Maps) -> Result<Vec<MetricView>, Error> {
    let drops = DropReason::ALL
        .iter()
        .map(|reason| (reason.code(), reason.label(), true));
    let forwards = Forward::ALL
        .iter()
        .map(|way| (way.code(), way.label(), false));
    let mut found = Vec::new();
    for (code, label, dropped) in drops.chain(forwards) {
        for direction in Direction::ALL {
            let cells = maps
                .metrics
                .get(&index(direction, code), 0)
                .map_err(Error::map("read", "metrics"))?;
            let packets = cells.iter().map(|cell| cell.packets).sum();
            let bytes = cells.iter().map(|cell| cell.bytes).sum();
            if packets != 0 {
                found.push(MetricView {
                    direction: direction.name().to_owned(),
                    outcome: label.to_owned(),
                    dropped,
                    packets,
                    bytes,
                });
            }
        }
    }
    Ok(found)
}
