//! Counters of forwarded and dropped packets.

use datapath_kern::abi::metric::{Direction, index};
use datapath_kern::verdict::{DropReason, Forward};
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
