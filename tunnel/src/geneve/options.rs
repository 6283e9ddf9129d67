//! The options of a GENEVE packet, between the fixed header and the payload (RFC 8926
//! section 3.5).

use core::fmt;

use super::{error::Error, header::MAX_OPTIONS_LEN, option::Opt};

/// Reads options one after another from bytes that nobody has checked yet.
///
/// Ends after the first error: what follows an option of wrong length cannot be found.
#[derive(Clone, Debug)]
pub struct OptionsIter<'a> {
    rest: &'a [u8],
}

impl<'a> OptionsIter<'a> {
    /// The options in `bytes`, which begin and end where the options do.
    #[inline]
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }
}

impl<'a> Iterator for OptionsIter<'a> {
    type Item = Result<Opt<'a>, Error>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let parsed = Opt::parse(self.rest);
        self.rest = parsed.map_or(&[], |(_, rest)| rest);
        Some(parsed.map(|(option, _)| option))
    }
}

impl core::iter::FusedIterator for OptionsIter<'_> {}

/// The options of one packet, known to be well formed and to fit in one.
///
/// Comes from bytes ([`parse`](Self::parse)) or from a list ([`new`](Self::new)); two are equal
/// if they hold the same options in the same order.
#[derive(Clone, Copy, Default)]
pub struct Options<'a> {
    // At most one of the two holds something.
    bytes: &'a [u8],
    list: &'a [Opt<'a>],
}

impl<'a> Options<'a> {
    /// Options to write, in this order.
    ///
    /// # Errors
    ///
    /// [`Error::OptionsLength`] if together they need more than [`MAX_OPTIONS_LEN`] bytes.
    pub fn new(list: &'a [Opt<'a>]) -> Result<Self, Error> {
        let options = Self { bytes: &[], list };
        match options.buffer_len() {
            len if len > MAX_OPTIONS_LEN => Err(Error::OptionsLength(len)),
            _ => Ok(options),
        }
    }

    /// The options that fill `bytes` exactly.
    ///
    /// # Errors
    ///
    /// - [`Error::OptionsLength`] if `bytes` is longer than the options of a packet can be.
    /// - [`Error::OptionOverrun`] if an option is longer than what remains: RFC 8926 section 3.5
    ///   has the receiver drop a packet whose options do not add up to their announced length.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        if bytes.len() > MAX_OPTIONS_LEN {
            return Err(Error::OptionsLength(bytes.len()));
        }
        OptionsIter::new(bytes).try_for_each(|option| option.map(drop))?;
        Ok(Self { bytes, list: &[] })
    }

    /// The options in their order.
    pub fn iter(&self) -> impl Iterator<Item = Opt<'a>> + use<'a> {
        OptionsIter::new(self.bytes)
            .map_while(Result::ok)
            .chain(self.list.iter().copied())
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.list.is_empty()
    }

    /// The first critical option.
    ///
    /// With one, the C bit of the header must be set.
    #[must_use]
    pub fn critical(&self) -> Option<Opt<'a>> {
        self.iter().find(Opt::is_critical)
    }

    /// Bytes of all options on the wire: a multiple of 4, 0..=[`MAX_OPTIONS_LEN`].
    #[must_use]
    pub fn buffer_len(&self) -> usize {
        self.iter().map(|option| option.buffer_len()).sum()
    }

    /// Length of all options in words of 4 bytes, 0..=63.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "no packet holds more than 63 words: `new` and `parse` see to it"
    )]
    pub(super) fn words(&self) -> u8 {
        (self.buffer_len() / 4) as u8
    }

    /// Writes the options to the start of `buffer` and returns what is left of it.
    ///
    /// # Errors
    ///
    /// [`Error::Truncated`] if `buffer` is shorter than [`buffer_len`](Self::buffer_len);
    /// nothing is written then.
    pub fn emit<'b>(&self, buffer: &'b mut [u8]) -> Result<&'b mut [u8], Error> {
        let needed = self.buffer_len();
        if buffer.len() < needed {
            let got = buffer.len();
            return Err(Error::Truncated { needed, got });
        }
        self.iter()
            .try_fold(buffer, |buffer, option| option.emit(buffer))
    }
}

impl PartialEq for Options<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Options<'_> {}

impl fmt::Debug for Options<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// As `tc` takes several: a comma between them.
impl fmt::Display for Options<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        self.iter().try_for_each(|option| {
            write!(f, "{separator}{option}")?;
            separator = ",";
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two options: OVN's critical one with a word of data, and one without data.
    const BYTES: [u8; 12] = [
        0x01, 0x02, 0x80, 0x01, 0, 0, 0, 0x11, //
        0xff, 0xff, 0x7f, 0x00,
    ];

    fn both() -> [Opt<'static>; 2] {
        [
            Opt::new(0x0102, 0x80, &[0, 0, 0, 0x11]).unwrap(),
            Opt::new(0xffff, 0x7f, &[]).unwrap(),
        ]
    }

    #[test]
    fn bytes_are_read_as_the_rfc_draws_them() {
        let options = Options::parse(&BYTES).unwrap();
        assert!(options.iter().eq(both()));
        assert_eq!(options, Options::new(&both()).unwrap());
        assert_eq!(options.critical(), Some(both()[0]));
        assert_eq!(options.to_string(), "0102:80:00000011,ffff:7f:");
    }

    #[test]
    fn list_is_written_as_bytes() {
        let mut buffer = [0xaa; 14];
        let rest = Options::new(&both()).unwrap().emit(&mut buffer).unwrap();
        assert_eq!(rest, [0xaa, 0xaa]);
        assert_eq!(buffer[..12], BYTES);
    }

    #[test]
    fn short_buffer_is_left_alone() {
        let list = both();
        let options = Options::new(&list).unwrap();
        let mut buffer = [0xaa; 11];
        let error = Error::Truncated {
            needed: 12,
            got: 11,
        };
        assert_eq!(options.emit(&mut buffer), Err(error));
        assert_eq!(buffer, [0xaa; 11]);
    }

    #[test]
    fn reserved_bits_are_ignored_and_not_repeated() {
        let mut noisy = BYTES;
        noisy[3] |= 0xe0;
        noisy[11] |= 0x20;
        let options = Options::parse(&noisy).unwrap();
        assert_eq!(options, Options::parse(&BYTES).unwrap());
        let mut buffer = [0; 12];
        options.emit(&mut buffer).unwrap();
        assert_eq!(buffer, BYTES);
    }

    #[test]
    fn option_past_the_end_is_an_error_once() {
        for (end, needed, left) in [(11, 4, 3), (9, 4, 1), (7, 8, 7), (4, 8, 4), (3, 4, 3)] {
            let error = Error::OptionOverrun { needed, left };
            assert_eq!(Options::parse(&BYTES[..end]), Err(error), "{end} bytes");
            let mut options = OptionsIter::new(&BYTES[..end]).skip_while(Result::is_ok);
            assert_eq!(options.next(), Some(Err(error)));
            assert_eq!(options.next(), None);
        }
    }

    #[test]
    fn options_of_a_packet_are_at_most_252_bytes() {
        let data = [0; 124];
        let long = Opt::new(1, 1, &data).unwrap();
        let list = [long, Opt::new(1, 1, &data[4..]).unwrap()];
        assert_eq!(Options::new(&list).unwrap().buffer_len(), 252);
        let list = [long, long];
        assert_eq!(Options::new(&list), Err(Error::OptionsLength(256)));
        assert_eq!(Options::parse(&[0; 256]), Err(Error::OptionsLength(256)));
        // 63 options without data is the most there can be.
        assert_eq!(Options::parse(&[0; 252]).unwrap().iter().count(), 63);
    }
}
