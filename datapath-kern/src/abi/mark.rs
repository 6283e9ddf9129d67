//! Bits of the packet mark that the datapath uses inside one node.
//!
//! Three bits, named here once. Everything outside [`MASK`] belongs to others and survives.
//! The kernel clears the mark when a packet changes network namespace, so no pod can set it.

/// The bits that are ours.
pub const MASK: u32 = 0x0000_0e00;

/// Judged and forwarded by us: the egress hooks, of uplinks and of pods, leave the packet alone.
pub const FORWARDED: u32 = 0x0000_0200;

/// Handed to this node's stack by us.
pub const TO_HOST: u32 = 0x0000_0400;

/// A copy of a packet, on its way round the gateway pair to become a piece of it.
pub const PIECE: u32 = 0x0000_0600;

/// A fragment that came ahead of its first one, from an uplink, and what belongs with it: the stack
/// puts them in order, and the hooks that it meets then judge it as what came by the uplink.
pub const REORDERED: u32 = 0x0000_0800;

/// `mark` with our bits replaced by `bits`.
#[inline(always)]
#[must_use]
pub const fn with(mark: u32, bits: u32) -> u32 {
    (mark & !MASK) | (bits & MASK)
}

/// Whether `mark` carries exactly `bits` of ours.
#[inline(always)]
#[must_use]
pub const fn is(mark: u32, bits: u32) -> bool {
    mark & MASK == bits
}
