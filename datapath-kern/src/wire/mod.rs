//! Wire formats: plain structs without alignment, read and written by
//! [`Packet`](crate::packet::Packet).

pub mod arp;
pub mod checksum;
pub mod ethernet;
pub mod ip;
pub mod transport;
pub mod underlay;
