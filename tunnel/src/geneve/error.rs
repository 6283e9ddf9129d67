//! What can be wrong with a GENEVE packet.

use core::fmt;

use super::{
    header::{MAX_OPTIONS_LEN, Vni},
    option::MAX_OPTION_DATA_LEN,
};

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
    /// Options that together have this length cannot be: not a multiple of 4, or above 252.
    OptionsLength(usize),
    /// An option with data of this length cannot be: not a multiple of 4, or above 124.
    OptionLength(usize),
    /// An option ends after the options do: the receiver must drop the packet (RFC 8926
    /// section 3.5).
    OptionOverrun {
        /// Length of the option.
        needed: usize,
        /// What remains of the options.
        left: usize,
    },
    /// An option is critical, and the C bit of the header does not say so.
    CriticalNotFlagged {
        /// Class of the option.
        class: u16,
        /// Type of the option.
        kind: u8,
    },
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
                "GENEVE options cannot have {len} bytes, only a multiple of 4 up to \
                 {MAX_OPTIONS_LEN}"
            ),
            Self::OptionLength(len) => write!(
                f,
                "data of a GENEVE option cannot have {len} bytes, only a multiple of 4 up to \
                 {MAX_OPTION_DATA_LEN}"
            ),
            Self::OptionOverrun { needed, left } => write!(
                f,
                "GENEVE option needs {needed} bytes, {left} remain of the options"
            ),
            Self::CriticalNotFlagged { class, kind } => write!(
                f,
                "GENEVE option {class:04x}:{kind:02x} is critical, the sender must set the C bit"
            ),
        }
    }
}

impl core::error::Error for Error {}
