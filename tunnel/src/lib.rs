//! GENEVE (RFC 8926) and what a node needs around it.
//!
//! - [`geneve`]: the codec. `no_std`, no allocation, no panic; its [`geneve::Header`] is a plain
//!   8-byte structure, so that the eBPF programs build headers with the same code as user space.
//! - [`mtu`]: how large pods' packets may be.
//! - `netlink` (feature `std`): links, addresses, routes and neighbours of a namespace.
#![cfg_attr(not(any(feature = "std", test)), no_std)]
#![forbid(unsafe_code)]

#[cfg(feature = "std")]
mod error;
pub mod geneve;
pub mod mtu;
#[cfg(feature = "std")]
pub mod netlink;

#[cfg(feature = "std")]
pub use error::{KernelError, NetlinkError};
