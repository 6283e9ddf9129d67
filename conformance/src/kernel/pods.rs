//! What pods' interfaces are, and that their programs give way to those of another process.

use datapath_user::{Adoption, Kernel};

use crate::{
    error::Result,
    paths::InProcess,
    topology::{Fabric, Node, plan::UPLINK},
};

/// The kind of interface that pods are to have on this kernel.
pub(super) fn device(kernel: &Kernel) -> &'static str {
    if kernel.netkit && kernel.tcx {
        "netkit"
    } else {
        "veth"
    }
}

/// Looks at every pod's interface; tells what is wrong with the first one that is not of the kind.
///
/// # Errors
///
/// What kept it from looking.
pub(super) fn are_by(device: &str, fabric: &Fabric) -> Result<Option<String>> {
    for pod in fabric.nodes().iter().flat_map(Node::pods) {
        let kind = pod.link(UPLINK)?.kind.unwrap_or_default();
        if kind != device {
            let name = pod.name();
            return Ok(Some(format!(
                "{UPLINK} in {name} is {kind:?}, not {device}"
            )));
        }
    }
    Ok(None)
}

/// Has all datapaths taken over, and tells what is wrong where not every program took the place of
/// its forerunner.
///
/// # Errors
///
/// What a datapath says.
pub(super) fn change_hands(datapaths: &mut InProcess) -> Result<Option<String>> {
    let clean = |adoption: &Adoption| {
        adoption.links_replaced > 0
            && adoption.links_attached == 0
            && adoption.links_removed == 0
            && adoption.endpoints_kept > 0
            && adoption.endpoints_removed.is_empty()
    };
    // Programs that are the same are kept.
    let adoptions = datapaths.take_over(|config| config.events_per_s += 1)?;
    let wrong = adoptions.into_iter().find(|adoption| !clean(adoption));
    Ok(wrong.map(|adoption| format!("taken over with losses: {adoption:?}")))
}
