//! GENEVE, Generic Network Virtualization Encapsulation: the codec (RFC 8926).
//!
//! A GENEVE packet is the payload of a UDP datagram to port [`UDP_PORT`]:
//!
//! ```text
//! | fixed header, 8 bytes | options, 0..=252 bytes | payload (for us: an Ethernet frame) |
//! ```
//!
//! - [`Header`] is the fixed part as a plain structure, for code that knows its packet (eBPF).

mod error;
mod header;

pub use error::Error;
pub use header::{ETHERTYPE_TEB, HEADER_LEN, Header, MAX_OPTIONS_LEN, UDP_PORT, VERSION, Vni};
