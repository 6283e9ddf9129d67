//! The packet path of the datapath.
//!
//! A `no_std` library of ordinary Rust, generic over a [`packet::Packet`] and an [`env::Env`]:
//! the kernel runs it over skbs and BPF maps (the `datapath` binary of this package, built for
//! `bpfel-unknown-none`), tests run the same functions over byte vectors and ordinary collections
//! (`host`, behind the feature of that name).
//!
//! Start at [`pipeline`], one short function per hook. Then a [`stage`], say [`stage::flow`].
//! [`mod@abi`] is the layout of the maps, shared with user space.
//!
#![doc = include_str!("netfilter.md")]
#![no_std]
#![deny(unsafe_code)]

#[cfg(any(test, feature = "host"))]
extern crate std;

pub mod abi;
pub mod env;
#[cfg(feature = "host")]
pub mod host;
pub mod packet;
pub mod pipeline;
pub mod stage;
pub mod verdict;
pub mod wire;
pub mod work;
