//! Identifications of masqueraded packets in fragments.
//!
//! Two pods behind one address may choose one identification for packets to one destination, which
//! would mix them (RFC 4787, section 11; RFC 6864, section 5.3). A packet keeps its own where that
//! is free, and gets another one where it is not; its fragments all have the same. The node's own
//! packets are entered beside the pods'.
//!
//! An identification is taken for [`LIFETIME_S`], as long as a receiver may wait for fragments, or
//! until the table lets go of it for newer ones. What comes back needs nothing of the kind: to one
//! address from one source, it is the source that chooses them.
//!
//! A packet that leaves whole keeps what it has, also where a router may cut it later on: which
//! would, cannot be known, and one identification more for every packet would be a lookup more for
//! every packet. Linux does not change them in either case.

use crate::abi::flow::flags;
use crate::abi::fragment::FragmentKey;
use crate::env::{Env, InsertError, Table};
use crate::packet::{Family, Packet, Part};
use crate::stage::flow;
use crate::stage::fragment::{LIFETIME_S, protocol};
use crate::verdict::DropReason;
use crate::wire::checksum;
use crate::work::Work;

/// Identifications tried before a packet is refused.
const PROBES: u32 = 8;

/// Takes an identification for the packet whose first fragment this is, where [`Work::flow`]
/// masquerades it.
///
/// # Errors
///
/// [`DropReason::TooManyFragments`] where none of those tried was free.
#[inline(always)]
pub fn choose<E: Env>(env: &E, work: &mut Work) -> Result<(), DropReason> {
    if work.hdr.part != Part::First || !work.flow.has(flags::SNAT) {
        return Ok(());
    }
    search(env, work)
}

#[inline(never)]
fn search<E: Env>(env: &E, work: &mut Work) -> Result<(), DropReason> {
    let Work {
        hdr,
        arrival,
        flow,
        fragment_key,
        fragment,
        identification: key,
        ..
    } = work;
    *key = FragmentKey {
        source: flow.nat_address,
        destination: hdr.key.destination,
        id: hdr.fragment_id,
        protocol: protocol(hdr),
        ..FragmentKey::default()
    };
    let own = u32::from_ne_bytes(hdr.fragment_id);
    let seed = flow::scramble(flow::hash(&hdr.key, env.seed()) ^ own);
    for probe in 0..PROBES {
        if probe != 0 {
            key.id = candidate(hdr.family, flow::scramble(seed.wrapping_add(probe)));
        }
        if take(env, key, arrival.now_s) {
            fragment.id = key.id;
            let id = key.id;
            env.fragments().update(fragment_key, |known| known.id = id);
            return Ok(());
        }
    }
    Err(DropReason::TooManyFragments)
}

/// An identification of the family, out of a number.
#[inline(always)]
const fn candidate(family: Family, number: u32) -> [u8; 4] {
    let [a, b, c, d] = number.to_ne_bytes();
    match family {
        Family::V4 => [a, b, 0, 0],
        Family::V6 => [a, b, c, d],
    }
}

/// Takes an identification. Whether it was free.
#[inline(always)]
fn take<E: Env>(env: &E, key: &FragmentKey, now_s: u32) -> bool {
    let until_s = now_s.wrapping_add(LIFETIME_S);
    match env.fragment_ids().insert(key, &until_s) {
        Err(InsertError::Exists) => {
            let taken = env.fragment_ids().update(key, |taken_s| {
                let free = *taken_s <= now_s;
                if free {
                    *taken_s = until_s;
                }
                free
            });
            taken == Some(true)
        }
        // Where there is no room, it is not known to be in use, which is the best that can be said.
        Ok(()) | Err(_) => true,
    }
}

/// Stores the identification that was chosen. What that adds to the sum of an IPv4 header.
///
/// # Errors
///
/// What the packet says.
#[inline(never)]
pub fn write<P: Packet>(pkt: &mut P, work: &Work) -> Result<u16, DropReason> {
    let Work { hdr, fragment, .. } = work;
    match hdr.family {
        Family::V4 => {
            let [a, b, _, _] = hdr.fragment_id;
            let [c, d, _, _] = fragment.id;
            pkt.write(hdr.l3 + 4, &[c, d])?;
            let (old, new) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            Ok(checksum::port_delta(old, new))
        }
        Family::V6 => {
            pkt.write(hdr.fragment_at + 4, &fragment.id)?;
            Ok(0)
        }
    }
}
