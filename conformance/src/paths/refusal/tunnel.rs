//! Tunnel packets that a node must not take.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use datapath_kern::verdict::DropReason;

use super::{Fate, GENEVE, Guard, HAND, datagram, unused};
use crate::{
    error::Result,
    family::Family,
    frame::forge::{self, Place},
    paths::{
        check::{Complaint, Subject},
        frames::{self, Mac, marked_option, v6},
        site::Cast,
    },
    probe::RawPort,
    report::Check,
};

const SCENARIO: &str = "refused from the tunnel";

/// Ethernet addresses of the frame inside; nobody looks at them.
const INSIDE: (Mac, Mac) = ([0x02, 0, 0, 0, 0, 0x71], [0x02, 0, 0, 0, 0, 0x72]);
/// An option that may be passed over: class 0xffff, type 1, one word (RFC 8926 section 3.5).
const OPTION: [u8; 8] = [0xff, 0xff, 0x01, 0x01, 0xde, 0xad, 0xbe, 0xef];
/// The bit that makes it one that must be understood.
const CRITICAL: u8 = 0x80;

type Make = fn(&Tunnel, &[u8]) -> Result<Vec<Vec<u8>>>;

/// The tunnel from the other node to the node, and a packet inside from a pod to a pod.
struct Tunnel {
    /// Ethernet source and destination on the underlay.
    link: (Mac, Mac),
    /// The other node's end and the node's.
    outer: (IpAddr, IpAddr),
    /// The remote pod and the pod.
    inner: (IpAddr, IpAddr),
    vni: u32,
    /// Inner sources that are not the other node's.
    foreign: Vec<IpAddr>,
    /// Inner destinations that are not the node's own: outside, the other node, its gateway.
    beyond: Vec<IpAddr>,
    /// In the node's pod range, and nobody's.
    vacant: IpAddr,
}

pub(super) fn checks(guard: &mut Guard<'_, '_>, family: Family, tell: &mut dyn FnMut(Check)) {
    let cast = guard.cast;
    let subject = |path: &str| Subject::new(SCENARIO, path).family(family);
    let (tunnel, mut port) = match prepare(cast, family) {
        Ok(Some(ready)) => ready,
        Ok(None) => return,
        Err(complaint) => {
            return tell(subject("prepare packets by hand").check(|| Err(complaint)));
        }
    };
    let pod = cast.pod.host.name.as_str();
    let plain = subject("(honest packet, must arrive)");
    tell(guard.passes(&mut port, plain, pod, |marker| tunnel.packet(&[], marker)));
    let with_option = subject("(option that may be passed over, must arrive)");
    tell(guard.passes(&mut port, with_option, pod, |marker| {
        tunnel.packet(&OPTION, marker)
    }));
    let special = if family == Family::Ipv6 {
        DISCOVERY
    } else {
        &[]
    };
    for &(path, reason, make) in COMMON.iter().chain(special) {
        let fate = Fate {
            node: cast.node_index,
            reason,
        };
        tell(guard.refused(&mut port, subject(path), fate, |marker| {
            make(&tunnel, marker)
        }));
    }
    outside(guard, &tunnel, subject("from the outside host"), tell);
}

const COMMON: &[(&str, DropReason, Make)] = &[
    (
        "from nobody who is a peer",
        DropReason::TunnelUnknownPeer,
        Tunnel::strangers,
    ),
    (
        "inner source not the peer's",
        DropReason::TunnelInvalidSource,
        Tunnel::foreign_sources,
    ),
    (
        "identities nobody, host and world",
        DropReason::InvalidIdentity,
        Tunnel::reserved,
    ),
    ("version 1", DropReason::TunnelMalformed, Tunnel::version),
    (
        "control packet",
        DropReason::TunnelMalformed,
        Tunnel::control,
    ),
    (
        "not Ethernet inside",
        DropReason::TunnelMalformed,
        Tunnel::not_ethernet,
    ),
    (
        "header cut short",
        DropReason::TunnelMalformed,
        Tunnel::truncated,
    ),
    (
        "options beyond their length",
        DropReason::TunnelMalformed,
        Tunnel::long_option,
    ),
    (
        "critical option",
        DropReason::TunnelCriticalOption,
        Tunnel::critical,
    ),
    (
        "VLAN tag or ARP inside",
        DropReason::TunnelMalformed,
        Tunnel::not_ip,
    ),
    (
        "inner packet cut short",
        DropReason::InvalidPacket,
        Tunnel::truncated_inside,
    ),
    (
        "on to the outside or another node",
        DropReason::NoRoute,
        Tunnel::hairpins,
    ),
    (
        "to a pod address that nobody has",
        DropReason::Vacant,
        Tunnel::vacancy,
    ),
];

const DISCOVERY: &[(&str, DropReason, Make)] = &[(
    "router advertisement inside",
    DropReason::IcmpUnrelated,
    Tunnel::advertisement,
)];

/// From the outside host, by its own address and by way of the router.
fn outside(
    guard: &mut Guard<'_, '_>,
    tunnel: &Tunnel,
    subject: Subject,
    tell: &mut dyn FnMut(Check),
) {
    let cast = guard.cast;
    let host = &cast.site.outside;
    let Some(address) = host.addresses.get(Family::of(tunnel.outer.1)) else {
        return;
    };
    let ready = RawPort::open(host.namespace, &host.interface)
        .and_then(|port| Ok((cast.site.fabric.link(&cast.site.outside_port)?.mac, port)));
    let (router, mut port) = match ready {
        Ok(ready) => ready,
        Err(error) => return tell(subject.check(|| Err(error.into()))),
    };
    let fate = Fate {
        node: cast.node_index,
        reason: DropReason::TunnelUnknownPeer,
    };
    let link = (port.mac(), router);
    tell(guard.refused(&mut port, subject, fate, |marker| {
        let payload = forge::geneve(tunnel.vni, &[], &tunnel.inner(marker)?);
        Ok(vec![outer(link, (address, tunnel.outer.1), &payload)?])
    }));
}

/// Finds both ends; nothing where there is no tunnel, or no address of the family.
fn prepare(
    cast: Cast<'_, '_>,
    family: Family,
) -> std::result::Result<Option<(Tunnel, RawPort)>, Complaint> {
    let (Some(peer), Some(end)) = (cast.other_node.tunnel, cast.node.tunnel) else {
        return Ok(None);
    };
    let [remote, pod] = [cast.remote, cast.pod].map(|pod| pod.host.addresses.get(family));
    let (Some(remote), Some(pod), Some(gateway)) = (remote, pod, cast.node.gateways.get(family))
    else {
        return Ok(None);
    };
    let vacant = unused(gateway);
    let outside = cast.site.outside.addresses.get(family);
    let neighbour = cast.neighbour.host.addresses.get(family);
    let own = cast.node.host.addresses.get(family);
    let other = &cast.other_node;
    let foreign = [neighbour, Some(gateway), Some(vacant), own, outside];
    let beyond = [
        outside,
        other.host.addresses.get(family),
        other.gateways.get(family),
    ];
    let port = RawPort::open(cast.site.fabric, &cast.node.fabric_port)?;
    let uplink = cast.node.host.namespace.link(&cast.node.host.interface)?;
    let tunnel = Tunnel {
        link: (port.mac(), uplink.mac),
        outer: (peer, end),
        inner: (remote, pod),
        vni: cast.remote.identity,
        foreign: foreign.into_iter().flatten().collect(),
        beyond: beyond.into_iter().flatten().collect(),
        vacant,
    };
    Ok(Some((tunnel, port)))
}

/// A UDP packet to the tunnel's port.
fn outer(link: (Mac, Mac), ends: (IpAddr, IpAddr), payload: &[u8]) -> Result<Vec<u8>> {
    let from = Place {
        mac: link.0,
        address: SocketAddr::new(ends.0, HAND),
    };
    let to = Place {
        mac: link.1,
        address: SocketAddr::new(ends.1, GENEVE),
    };
    forge::udp(from, to, payload)
}

/// A frame inside.
fn between(from: IpAddr, to: IpAddr, marker: &[u8]) -> Result<Vec<u8>> {
    datagram((INSIDE.0, from), (INSIDE.1, to), marker)
}

impl Tunnel {
    /// The frame inside, as it should be.
    fn inner(&self, marker: &[u8]) -> Result<Vec<u8>> {
        between(self.inner.0, self.inner.1, marker)
    }

    fn carry(&self, payload: &[u8]) -> Result<Vec<u8>> {
        outer(self.link, self.outer, payload)
    }

    /// With the right identity and no options.
    fn wrap(&self, inner: &[u8]) -> Result<Vec<u8>> {
        self.carry(&forge::geneve(self.vni, &[], inner))
    }

    fn packet(&self, options: &[u8], marker: &[u8]) -> Result<Vec<u8>> {
        self.carry(&forge::geneve(self.vni, options, &self.inner(marker)?))
    }

    /// An honest packet with something changed in the GENEVE header and what follows.
    fn changed(
        &self,
        options: &[u8],
        marker: &[u8],
        change: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Vec<u8>> {
        let mut payload = forge::geneve(self.vni, options, &self.inner(marker)?);
        change(&mut payload);
        self.carry(&payload)
    }

    /// From an address of the underlay that is no peer's, and from the node's own. On the flow of
    /// the honest packet, both.
    fn strangers(&self, marker: &[u8]) -> Result<Vec<Vec<u8>>> {
        let payload = forge::geneve(self.vni, &[], &self.inner(marker)?);
        let own = self.outer.1;
        [unused(own), own]
            .map(|source| outer(self.link, (source, own), &payload))
            .into_iter()
            .collect()
    }

    fn foreign_sources(&self, marker: &[u8]) -> Result<Vec<Vec<u8>>> {
        let frames = self
            .foreign
            .iter()
            .map(|&source| self.wrap(&between(source, self.inner.1, marker)?));
        frames.collect()
    }

    fn reserved(&self, marker: &[u8]) -> Result<Vec<Vec<u8>>> {
        let inner = self.inner(marker)?;
        let frames = [0, 1, 2].map(|vni| self.carry(&forge::geneve(vni, &[], &inner)));
        frames.into_iter().collect()
    }

    fn version(&self, marker: &[u8]) -> Result<Vec<Vec<u8>>> {
        let set = |payload: &mut Vec<u8>| set_bits(payload, 0, 0x40);
        Ok(vec![
            self.changed(&[], marker, set)?,
            self.changed(&OPTION, marker, set)?,
        ])
    }

    fn control(&self, marker: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![self.changed(&[], marker, |payload| {
            set_bits(payload, 1, 0x80);
        })?])
    }

    /// The protocol field says IPv4, or IPv6.
    fn not_ethernet(&self, marker: &[u8]) -> Result<Vec<Vec<u8>>> {
        let frames = [[0x08, 0x00], [0x86, 0xdd]].map(|protocol| {
            self.changed(&[], marker, |payload| {
                if let Some(field) = payload.get_mut(2..4) {
                    field.copy_from_slice(&protocol);
                }
            })
        });
        frames.into_iter().collect()
    }

    /// Cut in the header, and in the head of an option.
    fn truncated(&self, marker: &[u8]) -> Result<Vec<Vec<u8>>> {
        let frames = [4, 7, 8 + 2]
            .map(|length| self.changed(&OPTION, marker, |payload| payload.truncate(length)));
        frames.into_iter().collect()
    }

    /// An option that is longer than all options together.
    fn long_option(&self, marker: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![self.changed(&OPTION, marker, |payload| {
            set_bits(payload, 8 + 3, 0x02);
        })?])
    }

    /// Marked in the header, in the option, and in both.
    fn critical(&self, marker: &[u8]) -> Result<Vec<Vec<u8>>> {
        let in_header = |payload: &mut Vec<u8>| set_bits(payload, 1, 0x40);
        let in_option = |payload: &mut Vec<u8>| set_bits(payload, 8 + 2, CRITICAL);
        Ok(vec![
            self.changed(&OPTION, marker, in_header)?,
            self.changed(&OPTION, marker, in_option)?,
            self.changed(&OPTION, marker, |payload| {
                in_header(payload);
                in_option(payload);
            })?,
        ])
    }

    fn not_ip(&self, marker: &[u8]) -> Result<Vec<Vec<u8>>> {
        let tagged = frames::tagged(&self.inner(marker)?, 0x8100);
        let mut frames = vec![self.wrap(&tagged)?];
        if let (IpAddr::V4(from), IpAddr::V4(to)) = self.inner {
            let arp = frames::arp(1, INSIDE.0, (INSIDE.0, from), to, marker);
            frames.push(self.wrap(&arp)?);
        }
        Ok(frames)
    }

    fn truncated_inside(&self, marker: &[u8]) -> Result<Vec<Vec<u8>>> {
        let inner = self.inner(marker)?;
        // In the Ethernet header, in the IP header, in the UDP header, in the data; all of them
        // longer than what a network card would pad.
        let last = inner.len().saturating_sub(1);
        let udp = inner.len().saturating_sub(marker.len() + 4);
        let frames = [12, 14 + 10, udp, last]
            .map(|length| self.wrap(inner.get(..length).unwrap_or_default()));
        frames.into_iter().collect()
    }

    fn hairpins(&self, marker: &[u8]) -> Result<Vec<Vec<u8>>> {
        let frames = self
            .beyond
            .iter()
            .map(|&to| self.wrap(&between(self.inner.0, to, marker)?));
        frames.collect()
    }

    fn vacancy(&self, marker: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![self.wrap(&between(
            self.inner.0,
            self.vacant,
            marker,
        )?)?])
    }

    fn advertisement(&self, marker: &[u8]) -> Result<Vec<Vec<u8>>> {
        let router = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x66);
        let body = [&[64, 0, 0x07, 0x08][..], &[0; 8], &marked_option(marker)].concat();
        let frames = [router, v6(self.inner.0)?].map(|source| {
            let to = v6(self.inner.1)?;
            self.wrap(&frames::neighbour_discovery(
                INSIDE, source, to, 134, &body,
            )?)
        });
        frames.into_iter().collect()
    }
}

fn set_bits(payload: &mut [u8], at: usize, bits: u8) {
    if let Some(byte) = payload.get_mut(at) {
        *byte |= bits;
    }
}
