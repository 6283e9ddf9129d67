//! What can be wrong with a GENEVE packet.

use core::fmt;

use super::header::{MAX_OPTIONS_LEN, Vni};

/// Why bytes are not a GENEVE packet, or values cannot be written as one.
///
/// Lengths are bytes. Small and `Copy`, because an eBPF program returns it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Error {
    /// The buffer ends before the header or its options do.
    Truncated {
        /// Length that the packet claims, or that is to be written.
        needed: usize,
        /// Length of the buffer.
        got: usize,
    },
    /// A version other than 0: the receiver must drop the packet (RFC 8926 section 3.4).
    Version(u8),
    /// A network identifier that needs more than 24 bits.
    VniTooLarge(u32),
    /// Options of this length cannot be written: not a multiple of 4, or above 252.
    OptionsLength(usize),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Truncated { needed, got } => {
                write!(
                    f,
                    "GENEVE packet needs {needed} bytes, the buffer has {got}"
                )
            }
            Self::Version(version) => {
                write!(
                    f,
                    "GENEVE version {version} is unknown, only version 0 is defined"
                )
            }
            Self::VniTooLarge(vni) => write!(
                f,
                "VNI {vni} does not fit in 24 bits, the largest is {}",
                Vni::MAX
            ),
            Self::OptionsLength(len) => write!(
                f,
                "GENEVE options of {len} bytes cannot be written, \
                 give a multiple of 4 up to {MAX_OPTIONS_LEN}"
            ),
        }
    }
}

impl core::error::Error for Error {}
