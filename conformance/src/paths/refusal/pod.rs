//! Frames that a pod must not send.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use datapath_kern::verdict::DropReason;

use super::{Fate, GENEVE, Guard, HAND, datagram, unused};
use crate::{
    error::Result,
    family::Family,
    frame::forge::{self, Place},
    paths::{
        check::{Complaint, Subject},
        frames::{self, BROADCAST, Mac, marked_option, v4, v6},
        gateway, patience,
        site::{Cast, Host},
    },
    probe::RawPort,
    report::Check,
};

const SCENARIO: &str = "refused from a pod";

/// `EtherType` of a VLAN tag (IEEE 802.1Q).
const TAG: u16 = 0x8100;
/// `EtherType` of a provider's VLAN tag (IEEE 802.1ad).
const PROVIDER_TAG: u16 = 0x88a8;
/// Other `EtherType`s: LLDP, and `PPPoE`.
const OTHERS: [u16; 2] = [0x88cc, 0x8864];
/// A locally administered address that nobody has.
const NOBODY: Mac = [0x02, 0xf0, 0, 0, 0, 0x0d];

/// Makes the frames of a check, each with the marker in it.
type Make = fn(&Pod, &[u8]) -> Result<Vec<Vec<u8>>>;

/// A pod that sends what it must not, and whom it sends it to.
struct Pod {
    family: Family,
    identity: u32,
    mac: Mac,
    address: IpAddr,
    gateway_mac: Mac,
    gateway: IpAddr,
    neighbour: IpAddr,
    remote: IpAddr,
    /// Underlay addresses of its node and of another.
    nodes: Vec<IpAddr>,
    outside: Option<IpAddr>,
}

pub(super) fn checks(guard: &mut Guard<'_, '_>, family: Family, tell: &mut dyn FnMut(Check)) {
    let cast = guard.cast;
    let subject = |path: &str| Subject::new(SCENARIO, path).family(family);
    let (pod, mut port, mut neighbour_port) = match prepare(cast, family) {
        Ok(Some(ready)) => ready,
        Ok(None) => return,
        Err(complaint) => {
            return tell(subject("prepare frames by hand").check(|| Err(complaint)));
        }
    };
    let [neighbour, remote] = [cast.neighbour, cast.remote].map(|pod| pod.host.name.as_str());
    let to_neighbour = subject("(honest frame, same node, must arrive)");
    tell(guard.passes(&mut port, to_neighbour, neighbour, |marker| {
        pod.to(pod.neighbour, marker)
    }));
    let to_remote = subject("(honest frame, other node, must arrive)");
    tell(guard.passes(&mut port, to_remote, remote, |marker| {
        pod.to(pod.remote, marker)
    }));
    // From here on there is a flow that a forger may want to slip into.
    let of_neighbour = subject("(honest frame of its neighbour, must arrive)");
    let neighbour_mac = neighbour_port.mac();
    tell(
        guard.passes(&mut neighbour_port, of_neighbour, remote, |marker| {
            let from = (neighbour_mac, pod.neighbour);
            datagram(from, (pod.gateway_mac, pod.remote), marker)
        }),
    );
    let special = match family {
        Family::Ipv4 => ARP,
        Family::Ipv6 => DISCOVERY,
    };
    for &(path, reason, make) in COMMON.iter().chain(special) {
        let fate = Fate {
            node: cast.node_index,
            reason,
        };
        tell(guard.refused(&mut port, subject(path), fate, |marker| make(&pod, marker)));
    }
}

const COMMON: &[(&str, DropReason, Make)] = &[
    (
        "forged source address",
        DropReason::InvalidSourceIp,
        Pod::foreign_addresses,
    ),
    (
        "forged Ethernet source",
        DropReason::InvalidSourceMac,
        Pod::foreign_mac,
    ),
    (
        "GENEVE to a node",
        DropReason::EncapsulationProhibited,
        Pod::tunnel_packets,
    ),
    ("VLAN tags", DropReason::UnsupportedL2, Pod::tags),
    (
        "unknown EtherType",
        DropReason::UnsupportedL2,
        Pod::other_ether_types,
    ),
    ("multicast", DropReason::Multicast, Pod::multicasts),
    (
        "to a loopback or unusable address",
        DropReason::Martian,
        Pod::martians,
    ),
    (
        "a pod address that nobody has",
        DropReason::Vacant,
        Pod::vacancy,
    ),
    (
        "lengths beyond the frame",
        DropReason::InvalidPacket,
        Pod::truncated,
    ),
];

const ARP: &[(&str, DropReason, Make)] = &[
    (
        "ARP in another's name",
        DropReason::InvalidSourceIp,
        Pod::arp_names,
    ),
    (
        "ARP with a foreign Ethernet address",
        DropReason::InvalidSourceMac,
        Pod::arp_macs,
    ),
    (
        "ARP for a neighbour",
        DropReason::NeighbourNotGateway,
        Pod::arp_targets,
    ),
];

const DISCOVERY: &[(&str, DropReason, Make)] = &[
    (
        "router advertisement, redirect",
        DropReason::ForbiddenIcmpV6,
        Pod::router_messages,
    ),
    (
        "solicitation in another's name",
        DropReason::InvalidSourceIp,
        Pod::solicitation_names,
    ),
    (
        "discovery of a neighbour",
        DropReason::NeighbourNotGateway,
        Pod::discovery_targets,
    ),
];

/// Opens both pods' interfaces and asks for the gateway; nothing if a party has no address of
/// the family.
fn prepare(
    cast: Cast<'_, '_>,
    family: Family,
) -> std::result::Result<Option<(Pod, RawPort, RawPort)>, Complaint> {
    let [address, neighbour, remote] =
        [cast.pod, cast.neighbour, cast.remote].map(|pod| pod.host.addresses.get(family));
    let gateway = cast.node.gateways.get(family);
    let (Some(address), Some(neighbour), Some(remote), Some(gateway)) =
        (address, neighbour, remote, gateway)
    else {
        return Ok(None);
    };
    let open = |host: &Host<'_>| RawPort::open(host.namespace, &host.interface);
    let (mut port, neighbour_port) = (open(&cast.pod.host)?, open(&cast.neighbour.host)?);
    let gateway_mac = gateway::ask(&mut port, address, gateway, patience())?
        .ok_or_else(|| Complaint::new(format!("the gateway {gateway} does not answer")))?;
    let nodes = [cast.node, cast.other_node].map(|node| node.host.addresses.get(family));
    let pod = Pod {
        family,
        identity: cast.pod.identity,
        mac: port.mac(),
        address,
        gateway_mac,
        gateway,
        neighbour,
        remote,
        nodes: nodes.into_iter().flatten().collect(),
        outside: cast.site.outside.addresses.get(family),
    };
    Ok(Some((pod, port, neighbour_port)))
}

impl Pod {
    /// An honest datagram.
    fn to(&self, destination: IpAddr, marker: &[u8]) -> Result<Vec<u8>> {
        datagram(
            (self.mac, self.address),
            (self.gateway_mac, destination),
            marker,
        )
    }

    fn from(&self, source: IpAddr, marker: &[u8]) -> Result<Vec<u8>> {
        datagram((self.mac, source), (self.gateway_mac, self.remote), marker)
    }

    /// The neighbour's address, in whose name there is a flow of the very same tuple; addresses
    /// of the gateway, of the nodes, of the outside host; and one that nobody has.
    fn foreign_addresses(&self, marker: &[u8]) -> Result<Vec<Vec<u8>>> {
        [self.neighbour, self.gateway, unused(self.gateway)]
            .into_iter()
            .chain(self.nodes.iter().copied())
            .chain(self.outside)
            .map(|source| self.from(source, marker))
            .collect()
    }

    /// Once on a flow that there is, once on a new one.
    fn foreign_mac(&self, marker: &[u8]) -> Result<Vec<Vec<u8>>> {
        let from = (NOBODY, self.address);
        [self.remote, self.neighbour, self.gateway]
            .map(|to| datagram(from, (self.gateway_mac, to), marker))
            .into_iter()
            .collect()
    }

    fn tunnel_packets(&self, marker: &[u8]) -> Result<Vec<Vec<u8>>> {
        let inner = datagram((NOBODY, self.remote), (NOBODY, self.neighbour), marker)?;
        let payload = forge::geneve(self.identity, &[], &inner);
        let from = Place {
            mac: self.mac,
            address: SocketAddr::new(self.address, HAND),
        };
        let nodes = [self.gateway].into_iter().chain(self.nodes.iter().copied());
        let packets = nodes.map(|node| {
            let to = Place {
                mac: self.gateway_mac,
                address: SocketAddr::new(node, GENEVE),
            };
            forge::udp(from, to, &payload)
        });
        packets.collect()
    }

    fn tags(&self, marker: &[u8]) -> Result<Vec<Vec<u8>>> {
        let honest = self.to(self.neighbour, marker)?;
        Ok([TAG, PROVIDER_TAG]
            .map(|tag| frames::tagged(&honest, tag))
            .to_vec())
    }

    fn other_ether_types(&self, marker: &[u8]) -> Result<Vec<Vec<u8>>> {
        let frames = OTHERS.map(|ether_type| {
            let mut frame = self.to(self.neighbour, marker)?;
            if let Some(field) = frame.get_mut(12..14) {
                field.copy_from_slice(&ether_type.to_be_bytes());
            }
            Ok(frame)
        });
        frames.into_iter().collect()
    }

    fn multicasts(&self, marker: &[u8]) -> Result<Vec<Vec<u8>>> {
        const FRAMES: usize = 8;
        let groups: [IpAddr; 2] = match self.family {
            Family::Ipv4 => [
                Ipv4Addr::new(224, 0, 0, 251).into(),
                Ipv4Addr::BROADCAST.into(),
            ],
            Family::Ipv6 => [
                Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb).into(),
                Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 1, 3).into(),
            ],
        };
        let all = groups.into_iter().cycle().take(FRAMES);
        all.map(|group| datagram((self.mac, self.address), (BROADCAST, group), marker))
            .collect()
    }

    fn martians(&self, marker: &[u8]) -> Result<Vec<Vec<u8>>> {
        let destinations: [IpAddr; 2] = match self.family {
            Family::Ipv4 => [Ipv4Addr::LOCALHOST.into(), Ipv4Addr::UNSPECIFIED.into()],
            Family::Ipv6 => [
                Ipv6Addr::LOCALHOST.into(),
                Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).into(),
            ],
        };
        destinations
            .into_iter()
            .map(|to| self.to(to, marker))
            .collect()
    }

    fn vacancy(&self, marker: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![self.to(unused(self.gateway), marker)?])
    }

    /// A packet that says it is longer than its frame, and one cut in its IP header.
    fn truncated(&self, marker: &[u8]) -> Result<Vec<Vec<u8>>> {
        let honest = self.to(self.neighbour, marker)?;
        let mut longer = honest.clone();
        let length_at = match self.family {
            Family::Ipv4 => 14 + 2,
            Family::Ipv6 => 14 + 4,
        };
        if let Some(high) = longer.get_mut(length_at) {
            *high = 1;
        }
        let cut = honest.get(..14 + 12).unwrap_or_default().to_vec();
        Ok(vec![longer, cut])
    }

    /// Gratuitous ARP for the gateway, and a question in a neighbour's name.
    fn arp_names(&self, marker: &[u8]) -> Result<Vec<Vec<u8>>> {
        let (gateway, neighbour) = (v4(self.gateway)?, v4(self.neighbour)?);
        let arp = |operation, sender, target| {
            frames::arp(operation, self.mac, (self.mac, sender), target, marker)
        };
        Ok(vec![
            arp(2, gateway, gateway),
            arp(1, gateway, gateway),
            arp(1, neighbour, gateway),
        ])
    }

    fn arp_macs(&self, marker: &[u8]) -> Result<Vec<Vec<u8>>> {
        let (own, gateway) = (v4(self.address)?, v4(self.gateway)?);
        let arp = |frame, sender| frames::arp(1, frame, (sender, own), gateway, marker);
        Ok(vec![arp(NOBODY, self.mac), arp(self.mac, NOBODY)])
    }

    /// A question for a neighbour, and an answer that nobody asked for.
    fn arp_targets(&self, marker: &[u8]) -> Result<Vec<Vec<u8>>> {
        let (own, gateway, neighbour) = (v4(self.address)?, v4(self.gateway)?, v4(self.neighbour)?);
        let arp =
            |operation, target| frames::arp(operation, self.mac, (self.mac, own), target, marker);
        Ok(vec![arp(1, neighbour), arp(2, gateway)])
    }

    fn router_messages(&self, marker: &[u8]) -> Result<Vec<Vec<u8>>> {
        // What pods' stacks believe routers by (RFC 4861 section 6.1.2).
        let router = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x66);
        let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        let link = (self.mac, [0x33, 0x33, 0, 0, 0, 1]);
        // Hop limit 64, no flags, router for half an hour, no timers.
        let advertisement = [&[64, 0, 0x07, 0x08][..], &[0; 8], &marked_option(marker)].concat();
        let (own, gateway) = (v6(self.address)?, v6(self.gateway)?);
        let neighbour = v6(self.neighbour)?;
        // "To reach the neighbour, send to me."
        let better_way = [
            &[0; 4][..],
            &own.octets(),
            &neighbour.octets(),
            &marked_option(marker),
        ]
        .concat();
        Ok(vec![
            frames::neighbour_discovery(link, router, all_nodes, 134, &advertisement)?,
            frames::neighbour_discovery(
                (self.mac, self.gateway_mac),
                gateway,
                neighbour,
                137,
                &better_way,
            )?,
        ])
    }

    fn solicitation_names(&self, marker: &[u8]) -> Result<Vec<Vec<u8>>> {
        let (gateway, neighbour) = (v6(self.gateway)?, v6(self.neighbour)?);
        let option = marked_option(marker);
        Ok(vec![
            frames::solicitation((self.mac, neighbour), gateway, &option)?,
            frames::solicitation((self.mac, gateway), gateway, &option)?,
        ])
    }

    /// A question for a neighbour, and the claim to be the gateway.
    fn discovery_targets(&self, marker: &[u8]) -> Result<Vec<Vec<u8>>> {
        let (own, gateway, neighbour) = (v6(self.address)?, v6(self.gateway)?, v6(self.neighbour)?);
        let option = marked_option(marker);
        let claim = [
            &[0x20, 0, 0, 0][..],
            &gateway.octets(),
            &[2, 1],
            &self.mac,
            &option,
        ]
        .concat();
        let link = (self.mac, self.gateway_mac);
        Ok(vec![
            frames::solicitation((self.mac, own), neighbour, &option)?,
            frames::neighbour_discovery(link, own, neighbour, 136, &claim)?,
        ])
    }
}
