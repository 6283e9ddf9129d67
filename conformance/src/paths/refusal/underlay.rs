//! Packets from the underlay, without a tunnel, in the name of those who are not there.

use datapath_kern::verdict::DropReason;

use super::{Fate, Guard, datagram, unused};
use crate::{
    family::Family,
    paths::{check::Subject, site::Cast},
    probe::RawPort,
    report::Check,
};

const SCENARIO: &str = "refused from the underlay";

/// To a pod: in the name of another pod of its node, of a pod of a peer (whose packets come by
/// the tunnel; there is a flow of this very tuple), of the node, of nobody.
pub(super) fn checks(guard: &mut Guard<'_, '_>, family: Family, tell: &mut dyn FnMut(Check)) {
    let cast = guard.cast;
    let Cast {
        site,
        node,
        pod,
        neighbour,
        remote,
        ..
    } = cast;
    let own = node.host.addresses.get(family);
    let (Some(pod), Some(gateway)) = (pod.host.addresses.get(family), node.gateways.get(family))
    else {
        return;
    };
    // Without a tunnel this is how pods of other nodes come.
    let remote = node.tunnel.and_then(|_| remote.host.addresses.get(family));
    let known = [neighbour.host.addresses.get(family), remote, own];
    let sources: Vec<_> = known
        .into_iter()
        .flatten()
        .chain([gateway, unused(gateway)])
        .collect();
    let subject = Subject::new(SCENARIO, "a pod's or the node's own source, native").family(family);
    let ready = RawPort::open(site.fabric, &node.fabric_port)
        .and_then(|port| Ok((node.host.namespace.link(&node.host.interface)?.mac, port)));
    let (mac, mut port) = match ready {
        Ok(ready) => ready,
        Err(error) => return tell(subject.check(|| Err(error.into()))),
    };
    let fate = Fate {
        node: cast.node_index,
        reason: DropReason::InvalidSourceIp,
    };
    let from = port.mac();
    tell(guard.refused(&mut port, subject, fate, |marker| {
        let frames = sources
            .iter()
            .map(|&source| datagram((from, source), (mac, pod), marker));
        frames.collect()
    }));
}
