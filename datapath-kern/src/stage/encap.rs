//! Into the tunnel: GENEVE with the sender's identity as VNI (RFC 8926).

use datapath_tunnel::geneve;
use zerocopy::network_endian::{U16, U32};

use crate::abi::Mac;
use crate::abi::endpoint::identity;
use crate::abi::flow::End;
use crate::env::{Env, Table};
use crate::packet::{ETHERNET_LEN, Family, Packet, Wrapped};
use crate::verdict::DropReason;
use crate::wire::checksum;
use crate::wire::ethernet::{self, Ethernet};
use crate::wire::ip::{Ipv4, Ipv6, protocol, v6_bytes};
use crate::wire::transport::{Ports, Udp};
use crate::work::Work;

/// Hop limit of tunnel packets.
const TTL: u8 = 64;

/// Bytes of UDP, GENEVE and inner Ethernet headers.
const UDP_PAYLOAD_BEFORE_L3: u32 = 8 + 8 + 14;

/// Puts the packet into a tunnel packet to the peer of its flow.
///
/// The outer packet must not be fragmented, which lets its identification be zero (RFC 6864) and
/// has the underlay report a smaller MTU. The outer UDP checksum is zero (RFC 6935, RFC 6936 for
/// IPv6). DSCP and ECN of the inner packet stay inside.
///
/// # Errors
///
/// [`DropReason::InvalidIdentity`] for an identity that no VNI can carry, and what the packet
/// says.
#[inline(never)]
pub fn wrap<E: Env, P: Packet>(
    env: &E,
    pkt: &mut P,
    work: &mut Work,
) -> Result<Wrapped, DropReason> {
    let Work {
        hdr,
        flow,
        hop,
        underlay,
        ..
    } = work;
    let end = End::from_raw(flow.to);
    let peer = env.peers().get(&end.slot()).ok_or(DropReason::NoRoute)?;
    let number = match flow.source_identity {
        // "This node" means another one on the other side.
        identity::HOST => identity::REMOTE_NODE,
        other => other,
    };
    let vni = geneve::Vni::new(number).ok_or(DropReason::InvalidIdentity)?;
    let geneve = geneve::Header::new(vni, geneve::ETHERTYPE_TEB);
    let udp_len = hdr.length - u32::from(ETHERNET_LEN) + UDP_PAYLOAD_BEFORE_L3;
    let udp = Udp {
        ports: Ports {
            source: U16::new(flow.entropy),
            destination: U16::new(port(env.tunnel_port())),
        },
        length: U16::new(clamp(udp_len)),
        checksum: U16::ZERO,
    };
    let inner_type = match hdr.family {
        Family::V4 => ethernet::IPV4,
        Family::V6 => ethernet::IPV6,
    };
    if peer.address.is_v4() {
        let outer = &mut underlay.v4;
        fill_link(
            &mut outer.ethernet,
            &hop.destination_mac,
            &hop.source_mac,
            ethernet::IPV4,
        );
        outer.ip = Ipv4 {
            version_ihl: 0x45,
            tos: 0,
            total_len: U16::new(clamp(udp_len + 20)),
            id: U16::ZERO,
            fragment: U16::new(Ipv4::DONT_FRAGMENT),
            ttl: TTL,
            protocol: protocol::UDP,
            checksum: U16::ZERO,
            source: peer.local.v4_word().to_ne_bytes(),
            destination: peer.address.v4_word().to_ne_bytes(),
        };
        let words: [u16; 10] = zerocopy::transmute!(outer.ip);
        outer.ip.checksum = zerocopy::transmute!(checksum::over(&words, 0));
        outer.udp = udp;
        outer.geneve = geneve;
        fill_link(&mut outer.inner, &peer.mac, &env.gateway_mac(), inner_type);
        pkt.encapsulate_v4(outer)
    } else {
        let outer = &mut underlay.v6;
        fill_link(
            &mut outer.ethernet,
            &hop.destination_mac,
            &hop.source_mac,
            ethernet::IPV6,
        );
        outer.ip = Ipv6 {
            version_class_label: U32::new(6 << 28 | u32::from(flow.entropy)),
            payload_len: U16::new(clamp(udp_len)),
            next_header: protocol::UDP,
            hop_limit: TTL,
            source: v6_bytes(&peer.local),
            destination: v6_bytes(&peer.address),
        };
        outer.udp = udp;
        outer.geneve = geneve;
        fill_link(&mut outer.inner, &peer.mac, &env.gateway_mac(), inner_type);
        pkt.encapsulate_v6(outer)
    }
}

/// Fills in an Ethernet header.
#[inline(always)]
fn fill_link(header: &mut Ethernet, destination: &Mac, source: &Mac, ether_type: u16) {
    header.destination = *destination;
    header.source = *source;
    header.ether_type = U16::new(ether_type);
}

/// A length field. One that would not fit belongs to a frame that is segmented further down,
/// where the kernel writes the lengths of the segments.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "clamped")]
const fn clamp(length: u32) -> u16 {
    if length > 0xffff {
        0xffff
    } else {
        length as u16
    }
}

/// A port number out of the settings.
#[inline(always)]
#[allow(
    clippy::cast_possible_truncation,
    reason = "validated when the settings are made"
)]
const fn port(number: u32) -> u16 {
    number as u16
}
