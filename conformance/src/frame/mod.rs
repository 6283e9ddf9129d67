//! Ethernet frames as they cross an interface: receiving, checking and making them.

mod checksum;
pub mod forge;
mod socket;

use std::time::Duration;

pub use self::{
    checksum::{ChecksumError, Layer, Transport, verify_checksums},
    socket::FrameSocket,
};

/// An Ethernet frame, and what the kernel knew of it when it passed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Frame {
    /// The frame from the destination address on, without preamble and FCS. A VLAN tag that the
    /// kernel keeps beside the frame is not in it.
    pub bytes: Vec<u8>,
    /// Number of the interface that it crossed; 0 for one that crossed none.
    pub interface: u32,
    /// Which way it went, seen from the network stack of the namespace.
    pub direction: Direction,
    /// When it passed, as time since 1970-01-01 00:00 UTC.
    pub timestamp: Duration,
    /// What is still to be done about the innermost transport checksum.
    pub checksum: Checksum,
    /// For a frame that stands for several segments (GSO, GRO): payload bytes of each.
    pub segment_bytes: Option<u16>,
    /// Its length in bytes when it passed; more than `bytes` holds if it was cut.
    pub original_len: usize,
}

/// Which way a frame went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Into the network stack.
    In,
    /// Out of it.
    Out,
}

/// The state of a frame's innermost transport checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// The field holds the checksum, right or wrong.
    Complete,
    /// The field holds the sum of the pseudo-header only. The interface, or whoever
    /// needs it, sums up the rest (`CHECKSUM_PARTIAL`, include/linux/skbuff.h).
    Partial {
        /// Where the sum starts, in bytes from the start of the frame.
        start: usize,
        /// Where the field is, in bytes from `start`.
        offset: usize,
    },
}

impl Frame {
    /// Makes a frame that crossed no interface, with complete checksums.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self {
            original_len: bytes.len(),
            bytes,
            interface: 0,
            direction: Direction::Out,
            timestamp: Duration::ZERO,
            checksum: Checksum::Complete,
            segment_bytes: None,
        }
    }
}
