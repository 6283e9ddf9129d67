//! ICMP errors: they belong to the flow of the packet that they quote, and are translated with it.
//!
//! An error goes against the packet it is about, so it is treated as one of the flow's packets
//! that go its way: it must arrive as they do, and gets their translation on the outside and the
//! reverse of it within (RFC 5508, section 4). One that quotes no live flow is nobody's.

use zerocopy::network_endian::U16;

use crate::abi::addr::Addr;
use crate::abi::flow::{FlowKey, flags, scope};
use crate::env::Env;
use crate::packet::{ChecksumChange, Family, MAX_L4_OFFSET, Packet};
use crate::stage::{flow, parse};
use crate::verdict::DropReason;
use crate::wire::checksum;
use crate::wire::ip::{Ipv4, Ipv6, protocol, v6_bytes};
use crate::wire::transport::{
    Icmp, Ports, checksum_is_optional, checksum_offset, has_ports, port_offset,
};
use crate::work::Work;

/// The packet that an ICMP error quotes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quoted {
    /// Its tuple.
    pub key: FlowKey,
    /// Its length when it was sent, bytes, from the IP header on.
    pub length: u16,
    /// Offset of its IP header.
    pub l3: u16,
    /// Offset of its transport header.
    pub l4: u16,
}

/// Finds the flow that an ICMP error belongs to, into [`Work::flow`]; the key of [`Work::hdr`]
/// becomes that of the flow's packets, in the scope that it had.
///
/// The flow does not live longer for it. One whose ends have changed since it was judged has no
/// errors until its next packet.
///
/// # Errors
///
/// [`DropReason::IcmpUnrelated`] where there is no such flow, or the error does not come the way
/// that its packets come; [`DropReason::InvalidSourceIp`] where a pod speaks for another.
#[inline(never)]
pub fn flow_of<E: Env, P: Packet>(env: &E, pkt: &P, work: &mut Work) -> Result<(), DropReason> {
    read(pkt, work)?;
    let Work {
        hdr,
        arrival,
        flow,
        quoted,
        reply_key: key,
        ..
    } = work;
    *key = quoted.key.reversed();
    key.set_protocol(quoted.key.protocol, hdr.key.scope);
    let found = flow::peek(env, key, |entry| *flow = *entry).is_some();
    if !found
        || flow.expires_s <= arrival.now_s
        || hdr.key.destination != key.destination
        || !flow::holds(env, flow, arrival)
    {
        return Err(DropReason::IcmpUnrelated);
    }
    // Routers on the way speak for themselves; a pod is the end of it.
    let of_end = arrival.by == flags::ARRIVAL_POD || flow.has(flags::SNAT);
    if of_end && hdr.key.source != key.source {
        return Err(DropReason::InvalidSourceIp);
    }
    hdr.key = *key;
    Ok(())
}

/// Reads what the error in [`Work::hdr`] quotes, into [`Work::quoted`].
///
/// # Errors
///
/// [`DropReason::IcmpUnrelated`] where that is no beginning of a packet that could have a flow.
#[inline(never)]
pub fn read<P: Packet>(pkt: &P, work: &mut Work) -> Result<(), DropReason> {
    let Work { hdr, quoted, .. } = work;
    let unrelated = |_| DropReason::IcmpUnrelated;
    let at = hdr.l4 + Icmp::LEN;
    quoted.l3 = at;
    quoted.key = FlowKey::default();
    match hdr.family {
        Family::V4 => {
            let ip: Ipv4 = pkt.read(at).map_err(unrelated)?;
            // What is not the first fragment has no ports to tell its flow by.
            if ip.version_ihl >> 4 != 4 || ip.header_len() < 20 || ip.fragment_offset() != 0 {
                return Err(DropReason::IcmpUnrelated);
            }
            quoted.length = ip.total_len.get();
            quoted.l4 = at + ip.header_len();
            quoted.key.source = Addr::from_v4_bytes(ip.source);
            quoted.key.destination = Addr::from_v4_bytes(ip.destination);
            quoted.key.set_protocol(ip.protocol, scope::PATH);
        }
        Family::V6 => {
            let ip: Ipv6 = pkt.read(at).map_err(unrelated)?;
            if ip.version() != 6 {
                return Err(DropReason::IcmpUnrelated);
            }
            quoted.length = ip.payload_len.get().saturating_add(40);
            quoted.l4 = at + 40;
            quoted.key.source = Addr::from_words(zerocopy::transmute!(ip.source));
            quoted.key.destination = Addr::from_words(zerocopy::transmute!(ip.destination));
            quoted.key.set_protocol(ip.next_header, scope::PATH);
        }
    }
    if quoted.l4 > MAX_L4_OFFSET {
        return Err(DropReason::IcmpUnrelated);
    }
    match quoted.key.protocol {
        protocol if has_ports(protocol) => {
            let ports: Ports = pkt.read(quoted.l4).map_err(unrelated)?;
            quoted.key.set_ports(ports.source, ports.destination);
        }
        protocol::ICMP | protocol::ICMPV6 => {
            let message: Icmp = pkt.read(quoted.l4).map_err(unrelated)?;
            parse::icmp(&mut quoted.key, hdr.family, &message);
        }
        _ => {}
    }
    Ok(())
}

/// Translates the quotation as [`Work::flow`] says, in reverse, and mends the error's checksum;
/// its IP header has been translated already.
///
/// # Errors
///
/// What the packet says.
#[inline(never)]
pub fn translate<P: Packet>(pkt: &mut P, work: &Work) -> Result<(), DropReason> {
    let Work {
        hdr, flow, quoted, ..
    } = work;
    let protocol = quoted.key.protocol;
    let v6 = hdr.family == Family::V6;
    // The quoted packet went the other way: its source is where this flow's packets go.
    let source = flow.has(flags::DNAT);
    let mut change = 0;
    match hdr.family {
        Family::V4 => {
            let offset = quoted.l3 + if source { 12 } else { 16 };
            pkt.write(offset, &flow.nat_address.v4_word().to_ne_bytes())?;
            // What the address adds to the sum of it all, this takes away.
            mend(pkt, quoted.l3 + 10, flow.address_delta)?;
        }
        Family::V6 => {
            let offset = quoted.l3 + if source { 8 } else { 24 };
            pkt.write(offset, &v6_bytes(&flow.nat_address))?;
            // Once within, and once in the pseudo header of the error.
            change += 2 * u32::from(flow.address_delta);
        }
    }
    let port_delta = if flow.port_delta_matters() {
        let port: U16 = flow.nat_port;
        pkt.write(quoted.l4 + port_offset(protocol, !source), &port)?;
        flow.port_delta
    } else {
        0
    };
    change += u32::from(port_delta);
    if let Some(offset) = checksum_offset(protocol) {
        let mut covered = u32::from(port_delta);
        if protocol != protocol::ICMP {
            covered += u32::from(flow.address_delta);
        }
        let optional = checksum_is_optional(protocol);
        change += mend_quoted(pkt, quoted.l4 + offset, checksum::fold(covered), optional);
    }
    let change = ChecksumChange {
        addresses: 0,
        rest: checksum::fold(change),
        seed: None,
        optional: false,
        v6,
    };
    pkt.fix_checksum(hdr.l4 + 2, change)
}

/// Adds `difference` to what the checksum at `offset` covers.
#[inline(always)]
fn mend<P: Packet>(pkt: &mut P, offset: u16, difference: u16) -> Result<(), DropReason> {
    let old: [u8; 2] = pkt.read(offset)?;
    let new = checksum::adjust(u16::from_ne_bytes(old), difference).to_ne_bytes();
    pkt.write(offset, &new)
}

/// As [`mend`], for a checksum that may lie beyond the end of the quotation, or be none. What the
/// change of the field adds to a sum over it.
#[inline(always)]
fn mend_quoted<P: Packet>(pkt: &mut P, offset: u16, difference: u16, optional: bool) -> u32 {
    // In one piece: put together from bytes, it makes the compiler compute with what is a pointer
    // where there is nothing to read, which the verifier refuses.
    let Ok(old) = pkt.read::<u16>(offset) else {
        return 0;
    };
    if optional && old == 0 {
        return 0;
    }
    let new = checksum::adjust(old, difference);
    if pkt.write(offset, &new.to_ne_bytes()).is_err() {
        return 0;
    }
    u32::from(new) + u32::from(!old)
}
