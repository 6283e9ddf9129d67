//! The path MTU to a peer, learned from the routers between (RFC 1191, RFC 8201).
//!
//! Tunnel packets are nobody's socket's, so the kernel learns nothing from an error about one.
//! What is learned is kept with the peer's next hop: the next packet that does not fit is answered
//! to its sender.

use zerocopy::network_endian::U32;

use crate::abi::nexthop::PEERS_BASE;
use crate::env::{Env, Table};
use crate::packet::{Family, Packet};
use crate::stage::quoted;
use crate::verdict::DropReason;
use crate::wire::ip::protocol;
use crate::wire::transport::{icmp, icmpv6};
use crate::work::Work;

/// How long a path MTU is believed, seconds (RFC 1191, section 6.3).
pub const LIFETIME_S: u32 = 600;

/// Least that an IPv4 path is believed to take: what every host must be able to receive
/// (RFC 1122, section 3.3.2).
pub const FLOOR_V4: u32 = 576;
/// Least that an IPv6 path takes (RFC 8200, section 5).
pub const FLOOR_V6: u32 = 1280;

/// First of the source ports that tunnel packets have.
const FIRST_ENTROPY: u16 = 0xc000;

/// First eight bytes of an error about a packet that was too big.
#[derive(Clone, Copy, zerocopy::FromBytes, zerocopy::Immutable)]
#[repr(C)]
struct TooBig {
    kind: u8,
    code: u8,
    _checksum: [u8; 2],
    /// IPv6: the MTU; IPv4: in the lower half, zero from routers before RFC 1191.
    mtu: U32,
}

/// Learns from an ICMP error, where it is one about a tunnel packet that was too big.
///
/// Believed only if the quoted packet is one that this node could have sent: to a peer, from our
/// end towards it, with a source port of ours, and longer than what the router says it takes. Of
/// several claims the smallest holds, until it is forgotten.
///
/// # Errors
///
/// [`DropReason::IcmpUnrelated`] where it is nothing of the kind.
#[inline(never)]
pub fn learn<E: Env, P: Packet>(env: &E, pkt: &P, work: &mut Work) -> Result<(), DropReason> {
    quoted::read(pkt, work)?;
    let Work {
        hdr,
        arrival,
        quoted,
        ..
    } = work;
    let unrelated = DropReason::IcmpUnrelated;
    let error: TooBig = pkt.read(hdr.l4).map_err(|_| unrelated)?;
    let (said, floor) = match (hdr.family, error.kind, error.code) {
        (Family::V4, icmp::UNREACHABLE, icmp::FRAGMENTATION_NEEDED) => {
            (error.mtu.get() & 0xffff, FLOOR_V4)
        }
        (Family::V6, icmpv6::TOO_BIG, _) => (error.mtu.get(), FLOOR_V6),
        _ => return Err(unrelated),
    };
    let key = &quoted.key;
    if key.protocol != protocol::UDP
        || u32::from(key.destination_port.get()) != env.tunnel_port()
        || key.source_port.get() < FIRST_ENTROPY
        || key.source != hdr.key.destination
        || said >= u32::from(quoted.length)
    {
        return Err(unrelated);
    }
    let index = env.peer_indices().get(&key.destination).ok_or(unrelated)?;
    let peer = env.peers().get(&index).ok_or(unrelated)?;
    if peer.local != key.source || peer.interface != arrival.interface {
        return Err(unrelated);
    }
    let mtu_bytes = if said < floor { floor } else { said };
    #[allow(clippy::cast_possible_truncation, reason = "below the quoted length")]
    let mtu_bytes = mtu_bytes as u16;
    env.next_hops().update(&(PEERS_BASE + index), |hop| {
        // A larger one is about a packet that was on the way already (RFC 8201, section 4).
        if hop.path_mtu_until_s <= arrival.now_s || mtu_bytes <= hop.path_mtu_bytes {
            hop.path_mtu_bytes = mtu_bytes;
            hop.path_mtu_until_s = arrival.now_s.wrapping_add(LIFETIME_S);
        }
    });
    Ok(())
}
