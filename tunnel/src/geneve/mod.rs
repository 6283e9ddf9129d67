//! GENEVE, Generic Network Virtualization Encapsulation: the codec (RFC 8926).
//!
//! A GENEVE packet is the payload of a UDP datagram to port [`UDP_PORT`]:
//!
//! ```text
//! | fixed header, 8 bytes | options, 0..=252 bytes | payload (for us: an Ethernet frame) |
//! ```
//!
//! - [`Header`] is the fixed part as a plain structure, for code that knows its packet (eBPF).
//! - [`Packet`] reads and writes a packet in a buffer, field by field.
//! - [`Repr`] is a header as a value, with its [`Options`] of [`Opt`]: parsed, compared, emitted.
//!
//! Nothing here allocates, and nothing panics whatever the bytes are.

mod error;
mod header;
mod option;
mod options;
mod packet;
mod repr;

pub use error::Error;
pub use header::{ETHERTYPE_TEB, HEADER_LEN, Header, MAX_OPTIONS_LEN, UDP_PORT, VERSION, Vni};
pub use option::{CRITICAL, MAX_OPTION_DATA_LEN, OPTION_HEADER_LEN, Opt};
pub use options::{Options, OptionsIter};
pub use packet::Packet;
pub use repr::Repr;
