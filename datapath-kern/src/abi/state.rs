//! What a process leaves for its successor: pinned beside the other maps, read and written by user
//! space only.
//!
//! The `state` map has one [`State`]. It is the first pin that is made and the last that goes, so
//! that whatever lies beside it is ours. The `records` map has one [`Record`] per endpoint and per
//! peer, keyed by the [`End`](super::flow::End) that flows know it by; it holds what the other maps
//! do not.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A pinned datapath as a whole.
///
/// Size and position of the fields up to `netns` are the same in every version of the ABI: with
/// them any version can tell whose pins these are, and remove them.
///
/// ```text
///  0 magic 4 | 4 abi_version 4 | 8 phase 4 | 12 flags 4 | 16 netns 8
/// 24 settings 8 | 32 generation 4 | 36 seed 4 | 40 programs 8 | 48 zero 16
/// ```
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct State {
    /// [`MAGIC`](super::MAGIC).
    pub magic: u32,
    /// [`VERSION`](super::VERSION).
    pub abi_version: u32,
    /// One of [`phase`].
    pub phase: u32,
    /// Bits of [`flags`].
    pub flags: u32,
    /// Inode of the network namespace that it works in.
    pub netns: u64,
    /// Digest of the settings that flows were judged under.
    pub settings: u64,
    /// The last generation that was handed out: none is handed out twice, in whichever process.
    pub generation: u32,
    /// The secret of [`Config::seed`](super::config::Config::seed), the same for all loads.
    pub seed: u32,
    /// Digest of what the pinned programs were made of; zero while they are being replaced.
    pub programs: u64,
    /// Zero.
    pub reserved: [u64; 2],
}
crate::abi!(State, size = 64, align = 8);

/// Values of [`State::phase`] and [`Record::phase`].
pub mod phase {
    /// Half made, or half removed: to be removed.
    pub const PARTIAL: u32 = 0;
    /// All of it is there: to be adopted.
    pub const WHOLE: u32 = 1;
}

/// Bits of [`State::flags`].
pub mod flags {
    /// The directory was made for the pins, and goes with them.
    pub const DIRECTORY_MADE: u32 = 0x01;
}

/// What only user space knows of an endpoint or a peer. Texts end at the first zero byte, or with
/// their field.
///
/// ```text
///  0 phase 4 | 4 interface 16 | 20 name 64 | 84 path 940
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Record {
    /// One of [`phase`].
    pub phase: u32,
    /// An endpoint's interface in its network namespace; a peer's uplink, empty for the first one.
    pub interface: [u8; 16],
    /// The endpoint's id, or the peer's name.
    pub name: [u8; 64],
    /// An endpoint's network namespace; empty for a peer.
    pub path: [u8; MAX_PATH],
}
crate::abi!(Record, size = 1024, align = 4);

/// Longest path of a network namespace, bytes.
pub const MAX_PATH: usize = 940;
