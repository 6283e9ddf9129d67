//! The gateway answers for its addresses.

use std::{net::IpAddr, time::Duration};

use super::{
    check::{Complaint, Found, Subject, expect},
    frames::{self, Mac},
    patience,
    site::{Cast, Host},
};
use crate::{
    error::Result,
    family::{Family, Protocol},
    frame::{Direction, Frame},
    probe::{self, Options, RawPort},
    report::Check,
};

/// The gateway answers ARP and neighbour discovery, by whatever address the pod asks.
pub(super) fn checks(cast: &Cast<'_, '_>, mut tell: impl FnMut(Check)) {
    for family in Family::ALL {
        let Some(gateway) = cast.node.gateways.get(family) else {
            continue;
        };
        let what = match family {
            Family::Ipv4 => "the gateway answers ARP",
            Family::Ipv6 => "the gateway answers neighbour discovery",
        };
        let subject = Subject::new("gateway", what).family(family);
        tell(subject.check(|| answers(cast, family, gateway)));
        let subject = Subject::new("gateway", "a pod finds its gateway again")
            .family(family)
            .protocol(Protocol::Icmp);
        tell(subject.check(|| found_again(&cast.pod.host, gateway)));
    }
}

/// Asks for the gateway's Ethernet address with a frame from a pod's interface; none if there is
/// no answer in time.
pub(super) fn ask(
    port: &mut RawPort,
    pod: IpAddr,
    gateway: IpAddr,
    timeout: Duration,
) -> Result<Option<Mac>> {
    let mac = port.mac();
    let incoming = |frame: &Frame| frame.direction == Direction::In;
    match (pod, gateway) {
        (IpAddr::V4(pod), IpAddr::V4(gateway)) => {
            port.send(&frames::arp(1, mac, (mac, pod), gateway, b""))?;
            let answer = port.receive(timeout, |frame| {
                incoming(frame) && frames::arp_answer(frame, gateway).is_some()
            })?;
            Ok(answer.and_then(|frame| frames::arp_answer(&frame, gateway)))
        }
        (IpAddr::V6(pod), IpAddr::V6(gateway)) => {
            port.send(&frames::solicitation((mac, pod), gateway, b"")?)?;
            let answer = port.receive(timeout, |frame| {
                incoming(frame) && frames::advertisement(frame, gateway).is_some()
            })?;
            Ok(answer.and_then(|frame| frames::advertisement(&frame, gateway)))
        }
        _ => Ok(None),
    }
}

fn answers(
    cast: &Cast<'_, '_>,
    family: Family,
    gateway: IpAddr,
) -> std::result::Result<Found, Complaint> {
    let mut told: Vec<Mac> = Vec::new();
    for pod in [cast.pod, cast.neighbour] {
        let Some(address) = pod.host.addresses.get(family) else {
            continue;
        };
        let mut port = RawPort::open(pod.host.namespace, &pod.host.interface)?;
        let Some(mac) = ask(&mut port, address, gateway, patience())? else {
            let name = &pod.host.name;
            return Err(Complaint::new(format!("no answer for {gateway} to {name}")));
        };
        told.push(mac);
    }
    let Some(&first) = told.first() else {
        return Err(Complaint::new(format!("no pod has an {family} address")));
    };
    if let Some(other) = told.iter().find(|&&mac| mac != first) {
        expect("the gateway's Ethernet address", &first, other)?;
    }
    let pods = told.len();
    let text = first.map(|byte| format!("{byte:02x}")).join(":");
    Ok(Found {
        detail: format!("{gateway} is at {text}, as {pods} pods are told"),
        actions: pods as u64,
    })
}

/// Takes the gateway out of a pod's neighbour table and pings it.
fn found_again(pod: &Host<'_>, gateway: IpAddr) -> std::result::Result<Found, Complaint> {
    let netlink = pod.namespace.netlink()?;
    let index = pod.namespace.link(&pod.interface)?.index;
    let known = || -> Result<Option<Mac>> {
        let all = pod.namespace.netlink_result(netlink.neighbours())?;
        let of_gateway = all
            .into_iter()
            .find(|entry| entry.index == index && entry.address == gateway);
        Ok(of_gateway.and_then(|entry| entry.mac))
    };
    let before = known()?;
    pod.namespace
        .netlink_result(netlink.delete_neighbour(index, gateway))?;
    let options = Options::default().with_timeout(patience());
    let report = probe::icmp_echo(pod.namespace, gateway, 1, 56, &options)?;
    let Some(after) = known()? else {
        return Err(Complaint::new(format!(
            "it answered, but {gateway} is no neighbour"
        )));
    };
    let text = after.map(|byte| format!("{byte:02x}")).join(":");
    let forgotten = if before.is_some() {
        "forgotten and "
    } else {
        ""
    };
    Ok(Found {
        detail: format!("{forgotten}found at {text}, rtt {:.0?}", report.rtt),
        actions: 1,
    })
}
