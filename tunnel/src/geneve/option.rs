//! One option of a GENEVE packet (RFC 8926 section 3.5).

use core::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::error::Error;

/// Bytes of an option without its data.
pub const OPTION_HEADER_LEN: usize = 4;

/// Most bytes of data one option can carry: 31 words of 4 bytes.
pub const MAX_OPTION_DATA_LEN: usize = 124;

/// High bit of an option's type: whoever does not know the option must drop the packet.
pub const CRITICAL: u8 = 0x80;

/// One option: a class, a type and 0..=124 bytes of data in whole words of 4.
///
/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |          Option Class         |      Type     |R|R|R| Length  |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                  Variable-Length Option Data                  |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// ```
///
/// The R bits are written as zero and ignored when read. `Display` is the notation that `tc`
/// takes as `geneve_opts`: class, type and data in hexadecimal.
///
/// ```
/// use datapath_tunnel::geneve::Opt;
///
/// let option = Opt::new(0x0102, 0x80, &[0, 0, 0, 0x11])?;
/// assert!(option.is_critical());
/// assert_eq!(option.to_string(), "0102:80:00000011");
/// # Ok::<(), datapath_tunnel::geneve::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Opt<'a> {
    class: u16,
    kind: u8,
    data: &'a [u8],
}

impl<'a> Opt<'a> {
    /// An option to write. [`CRITICAL`] is a bit of `kind`.
    ///
    /// # Errors
    ///
    /// [`Error::OptionLength`] if `data` is no multiple of 4 bytes or longer than
    /// [`MAX_OPTION_DATA_LEN`].
    #[inline]
    pub const fn new(class: u16, kind: u8, data: &'a [u8]) -> Result<Self, Error> {
        if data.len() > MAX_OPTION_DATA_LEN || !data.len().is_multiple_of(4) {
            return Err(Error::OptionLength(data.len()));
        }
        Ok(Self { class, kind, data })
    }

    /// The option at the start of `bytes`, and the bytes after it.
    ///
    /// # Errors
    ///
    /// [`Error::OptionOverrun`] if `bytes` ends before the option does.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), Error> {
        let overrun = |needed| Error::OptionOverrun {
            needed,
            left: bytes.len(),
        };
        let (head, rest) =
            OptHeader::ref_from_prefix(bytes).map_err(|_| overrun(OPTION_HEADER_LEN))?;
        let (data, rest) = rest
            .split_at_checked(head.data_len())
            .ok_or(overrun(OPTION_HEADER_LEN + head.data_len()))?;
        let option = Self {
            class: u16::from_be_bytes(head.class),
            kind: head.kind,
            data,
        };
        Ok((option, rest))
    }

    /// The organisation that defines the type; assigned by IANA.
    #[inline]
    #[must_use]
    pub const fn class(&self) -> u16 {
        self.class
    }

    /// The option's type within its class, with the [`CRITICAL`] bit.
    #[inline]
    #[must_use]
    pub const fn kind(&self) -> u8 {
        self.kind
    }

    /// Whether a receiver that does not know this option must drop the packet.
    #[inline]
    #[must_use]
    pub const fn is_critical(&self) -> bool {
        self.kind & CRITICAL != 0
    }

    /// The data, 0..=124 bytes, a multiple of 4.
    #[inline]
    #[must_use]
    pub const fn data(&self) -> &'a [u8] {
        self.data
    }

    /// Bytes of the option on the wire, 4..=128.
    #[inline]
    #[must_use]
    pub const fn buffer_len(&self) -> usize {
        OPTION_HEADER_LEN + self.data.len()
    }

    /// Writes the option to the start of `buffer` and returns what is left of it.
    ///
    /// # Errors
    ///
    /// [`Error::Truncated`] if `buffer` is shorter than [`buffer_len`](Self::buffer_len);
    /// nothing is written then.
    #[inline]
    pub fn emit<'b>(&self, buffer: &'b mut [u8]) -> Result<&'b mut [u8], Error> {
        let truncated = Error::Truncated {
            needed: self.buffer_len(),
            got: buffer.len(),
        };
        let (option, rest) = buffer
            .split_at_mut_checked(self.buffer_len())
            .ok_or(truncated)?;
        let (head, data) = OptHeader::mut_from_prefix(option).map_err(|_| truncated)?;
        *head = OptHeader {
            class: self.class.to_be_bytes(),
            kind: self.kind,
            length: self.words(),
        };
        self.data.write_to(data).map_err(|_| truncated)?;
        Ok(rest)
    }

    /// Length of the data in words of 4 bytes, 0..=31.
    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "no option holds more than 31 words: `new` and the 5 bits of the length see to it"
    )]
    const fn words(&self) -> u8 {
        (self.data.len() / 4) as u8
    }
}

impl fmt::Display for Opt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:", self.class, self.kind)?;
        self.data
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The four bytes in front of an option's data.
#[derive(FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct OptHeader {
    class: [u8; 2],
    kind: u8,
    length: u8,
}

const _: () = assert!(size_of::<OptHeader>() == OPTION_HEADER_LEN);

impl OptHeader {
    /// Low bits of `length`: words of 4 bytes of data.
    const LENGTH_MASK: u8 = 0x1f;

    #[inline]
    const fn data_len(&self) -> usize {
        (self.length & Self::LENGTH_MASK) as usize * 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn option_reads_back_and_leaves_the_rest() {
        let option = Opt::new(0x0102, 0x80, &[0, 0, 0, 0x11]).unwrap();
        let mut buffer = [0xaa; 10];
        assert_eq!(option.emit(&mut buffer).unwrap(), [0xaa, 0xaa]);
        assert_eq!(buffer, [1, 2, 0x80, 1, 0, 0, 0, 0x11, 0xaa, 0xaa]);
        assert_eq!(Opt::parse(&buffer), Ok((option, &[0xaa, 0xaa][..])));
    }

    #[test]
    fn data_is_whole_words_up_to_124_bytes() {
        let data = [0; 256];
        for len in 0..=data.len() {
            let result = Opt::new(1, 1, &data[..len]);
            if len % 4 == 0 && len <= 124 {
                assert_eq!(result.unwrap().buffer_len(), len + 4);
            } else {
                assert_eq!(result, Err(Error::OptionLength(len)));
            }
        }
    }
}
