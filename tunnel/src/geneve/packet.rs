//! A GENEVE packet in a buffer, read and written in place.

use core::fmt;

use zerocopy::{FromBytes, IntoBytes};

use super::{
    error::Error,
    header::{HEADER_LEN, Header, Vni},
    options::OptionsIter,
};

/// A GENEVE packet: the payload of a UDP datagram, in any buffer.
///
/// No accessor panics. In a buffer that [`check_len`](Self::check_len) refuses, a field that is
/// not there reads as zero, options and payload that are not there read as empty, and a setter
/// returns an error; [`new_checked`](Self::new_checked) refuses such buffers.
///
/// A receiver may accept a packet once these hold (RFC 8926 sections 3.4 and 3.5):
///
/// ```
/// use datapath_tunnel::geneve::{ETHERTYPE_TEB, Error, Packet};
///
/// /// The inner frame, or `None` for what is not ours to forward.
/// fn receive(datagram: &[u8]) -> Result<Option<&[u8]>, Error> {
///     let packet = Packet::new_checked(datagram)?;
///     let ours = packet.protocol() == ETHERTYPE_TEB
///         && !packet.is_control()
///         && packet.unknown_critical(|_class, _kind| false)?.is_none();
///     Ok(ours.then(|| datagram.get(packet.header_len()..)).flatten())
/// }
/// # assert_eq!(receive(&[0, 0, 0x65, 0x58, 0, 0, 1, 0, 0xff]), Ok(Some(&[0xff][..])));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<T: AsRef<[u8]>> {
    buffer: T,
}

impl<T: AsRef<[u8]>> Packet<T> {
    /// A packet in `buffer`, whatever it holds.
    #[inline]
    #[must_use]
    pub const fn new_unchecked(buffer: T) -> Self {
        Self { buffer }
    }

    /// A packet of version 0 whose options are well formed.
    ///
    /// # Errors
    ///
    /// - [`Error::Truncated`] from [`check_len`](Self::check_len).
    /// - [`Error::Version`] if the version is not 0.
    /// - [`Error::OptionOverrun`] from [`check_options`](Self::check_options).
    #[inline]
    pub fn new_checked(buffer: T) -> Result<Self, Error> {
        let packet = Self::new_unchecked(buffer);
        packet.check_len()?;
        packet.check_options()?;
        Ok(packet)
    }

    /// Whether the buffer holds the header and the options that it announces.
    ///
    /// The version goes first, because another one may count its length otherwise. The length of
    /// the payload is not in a GENEVE header: it ends where the datagram does.
    ///
    /// # Errors
    ///
    /// [`Error::Truncated`] if it does not, [`Error::Version`] if the version is not 0.
    #[inline]
    pub fn check_len(&self) -> Result<(), Error> {
        let got = self.buffer.as_ref().len();
        if got < HEADER_LEN {
            let needed = HEADER_LEN;
            return Err(Error::Truncated { needed, got });
        }
        let header = self.header();
        header.check_version()?;
        let needed = header.len();
        if got < needed {
            return Err(Error::Truncated { needed, got });
        }
        Ok(())
    }

    /// Whether the options add up to their announced length.
    ///
    /// # Errors
    ///
    /// [`Error::OptionOverrun`] if not: a receiver that reads options must drop the packet.
    #[inline]
    pub fn check_options(&self) -> Result<(), Error> {
        self.options().try_for_each(|option| option.map(drop))
    }

    /// Whether the C bit is set where an option is critical.
    ///
    /// Not part of [`new_checked`](Self::new_checked): a sender must set the bit (RFC 8926
    /// section 3.5), but Linux leaves it clear where a BPF program gave the options
    /// (`bpf_skb_set_tunnel_opt` in `net/core/filter.c` marks options, never critical ones), so
    /// a receiver that peers with such senders relies on
    /// [`unknown_critical`](Self::unknown_critical) alone. [`Repr::parse`](super::Repr::parse)
    /// is strict.
    ///
    /// The bit without a critical option is accepted: it costs the receiver a look, no more.
    ///
    /// # Errors
    ///
    /// [`Error::CriticalNotFlagged`] if not, [`Error::OptionOverrun`] if options are malformed.
    pub fn check_critical_flag(&self) -> Result<(), Error> {
        if self.has_critical_options() {
            return Ok(());
        }
        match self.unknown_critical(|_, _| false)? {
            Some((class, kind)) => Err(Error::CriticalNotFlagged { class, kind }),
            None => Ok(()),
        }
    }

    /// The buffer again.
    #[inline]
    pub fn into_inner(self) -> T {
        self.buffer
    }

    /// A copy of the fixed header.
    #[inline]
    #[must_use]
    pub fn header(&self) -> Header {
        Header::read_from_prefix(self.buffer.as_ref()).map_or(ABSENT, |(header, _)| header)
    }

    /// Version of the format, 0..=3.
    #[inline]
    #[must_use]
    pub fn version(&self) -> u8 {
        self.header().version()
    }

    /// Bytes of options that the header announces: a multiple of 4, 0..=252.
    #[inline]
    #[must_use]
    pub fn options_len(&self) -> usize {
        self.header().options_len()
    }

    /// Offset of the payload, 8..=260.
    #[inline]
    #[must_use]
    pub fn header_len(&self) -> usize {
        self.header().len()
    }

    /// The O bit: a control message, which must not be forwarded (RFC 8926 section 3.4).
    #[inline]
    #[must_use]
    pub fn is_control(&self) -> bool {
        self.header().is_control()
    }

    /// The C bit: the sender says that an option is critical.
    #[inline]
    #[must_use]
    pub fn has_critical_options(&self) -> bool {
        self.header().has_critical_options()
    }

    /// Ethertype of the payload, [`ETHERTYPE_TEB`](super::ETHERTYPE_TEB) for an Ethernet frame.
    #[inline]
    #[must_use]
    pub fn protocol(&self) -> u16 {
        self.header().protocol()
    }

    /// Virtual network identifier.
    #[inline]
    #[must_use]
    pub fn vni(&self) -> Vni {
        self.header().vni()
    }

    /// The bytes of all options.
    #[inline]
    #[must_use]
    pub fn options_bytes(&self) -> &[u8] {
        let buffer = self.buffer.as_ref();
        buffer.get(HEADER_LEN..self.header_len()).unwrap_or(&[])
    }

    /// The options, each checked as it is read.
    #[inline]
    #[must_use]
    pub fn options(&self) -> OptionsIter<'_> {
        OptionsIter::new(self.options_bytes())
    }

    /// Class and type of the first critical option that the receiver does not know.
    ///
    /// `known` is asked about critical options only. With `Some`, the whole packet must be
    /// dropped (RFC 8926 section 3.5). Looks at the options, not at the C bit.
    ///
    /// # Errors
    ///
    /// [`Error::OptionOverrun`] if the options are malformed before such an option is found:
    /// never after [`new_checked`](Self::new_checked).
    pub fn unknown_critical(
        &self,
        mut known: impl FnMut(u16, u8) -> bool,
    ) -> Result<Option<(u16, u8)>, Error> {
        for option in self.options() {
            let option = option?;
            if option.is_critical() && !known(option.class(), option.kind()) {
                return Ok(Some((option.class(), option.kind())));
            }
        }
        Ok(None)
    }

    /// What is carried: everything after the options.
    #[inline]
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        self.buffer.as_ref().get(self.header_len()..).unwrap_or(&[])
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Packet<T> {
    /// Writes the fixed header.
    ///
    /// # Errors
    ///
    /// [`Error::Truncated`] if the buffer is shorter than [`HEADER_LEN`].
    #[inline]
    pub fn set_header(&mut self, header: Header) -> Result<(), Error> {
        let buffer = self.buffer.as_mut();
        let (needed, got) = (HEADER_LEN, buffer.len());
        header
            .write_to_prefix(buffer)
            .map_err(|_| Error::Truncated { needed, got })
    }

    /// Writes the network identifier.
    ///
    /// # Errors
    ///
    /// As [`set_header`](Self::set_header).
    #[inline]
    pub fn set_vni(&mut self, vni: Vni) -> Result<(), Error> {
        self.set_header(self.header().with_vni(vni))
    }

    /// Writes the ethertype of the payload.
    ///
    /// # Errors
    ///
    /// As [`set_header`](Self::set_header).
    #[inline]
    pub fn set_protocol(&mut self, protocol: u16) -> Result<(), Error> {
        self.set_header(self.header().with_protocol(protocol))
    }

    /// Sets or clears the O bit.
    ///
    /// # Errors
    ///
    /// As [`set_header`](Self::set_header).
    #[inline]
    pub fn set_control(&mut self, on: bool) -> Result<(), Error> {
        self.set_header(self.header().with_control(on))
    }

    /// Sets or clears the C bit, which a critical option needs.
    ///
    /// # Errors
    ///
    /// As [`set_header`](Self::set_header).
    #[inline]
    pub fn set_critical_options(&mut self, on: bool) -> Result<(), Error> {
        self.set_header(self.header().with_critical_options(on))
    }

    /// Announces `len` bytes of options; the payload begins after them.
    ///
    /// # Errors
    ///
    /// [`Error::OptionsLength`] from [`Header::with_options_len`], else as
    /// [`set_header`](Self::set_header).
    #[inline]
    pub fn set_options_len(&mut self, len: usize) -> Result<(), Error> {
        self.set_header(self.header().with_options_len(len)?)
    }

    /// The bytes of all options, to be written.
    #[inline]
    #[must_use]
    pub fn options_mut(&mut self) -> &mut [u8] {
        let end = self.header_len();
        self.buffer
            .as_mut()
            .get_mut(HEADER_LEN..end)
            .unwrap_or(&mut [])
    }

    /// What is carried, to be written.
    #[inline]
    #[must_use]
    pub fn payload_mut(&mut self) -> &mut [u8] {
        let start = self.header_len();
        self.buffer.as_mut().get_mut(start..).unwrap_or(&mut [])
    }
}

/// `GENEVE vni=77 protocol=0x6558 options=8B critical [0102:80:00000011] payload=60B`.
impl<T: AsRef<[u8]>> fmt::Display for Packet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Err(error) = self.check_len() {
            return error.fmt(f);
        }
        self.header().fmt(f)?;
        for option in self.options() {
            match option {
                Ok(option) => write!(f, " [{option}]")?,
                Err(error) => write!(f, " [{error}]")?,
            }
        }
        write!(f, " payload={}B", self.payload().len())
    }
}

/// What a buffer without a header reads as.
const ABSENT: Header = Header::new(Vni::MIN, 0);

#[cfg(test)]
mod tests {
    use super::*;

    /// C bit, VNI 77, one critical option with a word of data, then a payload of two bytes.
    const BYTES: [u8; 18] = [
        0x02, 0x40, 0x65, 0x58, 0, 0, 77, 0, //
        0x01, 0x02, 0x80, 0x01, 0, 0, 0, 0x11, //
        0xca, 0xfe,
    ];

    #[test]
    fn fields_are_read() {
        let packet = Packet::new_checked(BYTES).unwrap();
        assert_eq!(packet.version(), 0);
        assert_eq!(packet.options_len(), 8);
        assert_eq!(packet.header_len(), 16);
        assert!(!packet.is_control());
        assert!(packet.has_critical_options());
        assert_eq!(packet.protocol(), 0x6558);
        assert_eq!(packet.vni().get(), 77);
        assert_eq!(packet.options_bytes(), &BYTES[8..16]);
        assert_eq!(packet.payload(), [0xca, 0xfe]);
        assert_eq!(
            packet.to_string(),
            "GENEVE vni=77 protocol=0x6558 options=8B critical [0102:80:00000011] payload=2B"
        );
        assert_eq!(packet.into_inner(), BYTES);
    }

    #[test]
    fn fields_are_written_in_place() {
        let mut packet = Packet::new_unchecked([0xff; 18]);
        packet.set_header(ABSENT).unwrap();
        packet.set_options_len(8).unwrap();
        packet.set_critical_options(true).unwrap();
        packet.set_control(true).unwrap();
        packet.set_control(false).unwrap();
        packet.set_protocol(0x6558).unwrap();
        packet.set_vni(Vni::try_from(77).unwrap()).unwrap();
        packet.options_mut().copy_from_slice(&BYTES[8..16]);
        packet.payload_mut().copy_from_slice(&[0xca, 0xfe]);
        assert_eq!(packet.into_inner(), BYTES);
    }

    #[test]
    fn truncated_packet_is_refused() {
        for got in 0..16 {
            let needed = if got < 8 { 8 } else { 16 };
            let error = Error::Truncated { needed, got };
            assert_eq!(Packet::new_checked(&BYTES[..got]), Err(error));
            let message = Packet::new_unchecked(&BYTES[..got]).to_string();
            assert_eq!(message, error.to_string());
        }
        assert!(
            Packet::new_checked(&BYTES[..16])
                .unwrap()
                .payload()
                .is_empty()
        );
    }

    #[test]
    fn short_buffer_reads_as_nothing_and_is_not_written() {
        let mut packet = Packet::new_unchecked([0xff; 7]);
        assert_eq!(packet.header(), ABSENT);
        assert!(packet.options_bytes().is_empty());
        assert!(packet.payload().is_empty());
        assert!(packet.options_mut().is_empty());
        assert!(packet.payload_mut().is_empty());
        let error = Err(Error::Truncated { needed: 8, got: 7 });
        assert_eq!(packet.set_control(true), error);
        assert_eq!(packet.set_vni(Vni::MAX), error);
        assert_eq!(packet.into_inner(), [0xff; 7]);
    }

    #[test]
    fn unknown_version_is_refused_before_its_length() {
        let error = Err(Error::Version(3));
        assert_eq!(Packet::new_checked([0xff; 8]), error);
    }

    #[test]
    fn options_that_do_not_add_up_are_refused() {
        let mut bytes = BYTES;
        bytes[11] = 2;
        let error = Error::OptionOverrun {
            needed: 12,
            left: 8,
        };
        assert_eq!(Packet::new_checked(bytes), Err(error));
        let packet = Packet::new_unchecked(bytes);
        assert_eq!(packet.check_options(), Err(error));
        assert_eq!(packet.unknown_critical(|_, _| false), Err(error));
        assert!(packet.to_string().contains(&error.to_string()));
    }

    #[test]
    fn unknown_critical_option_is_named() {
        let packet = Packet::new_checked(BYTES).unwrap();
        assert_eq!(
            packet.unknown_critical(|_, _| false),
            Ok(Some((0x0102, 0x80)))
        );
        let known = |class, kind| (class, kind) == (0x0102, 0x80);
        assert_eq!(packet.unknown_critical(known), Ok(None));

        let mut harmless = BYTES;
        harmless[10] = 0x00;
        let packet = Packet::new_checked(harmless).unwrap();
        let asked = |_, _| panic!("asked about an option that is not critical");
        assert_eq!(packet.unknown_critical(asked), Ok(None));
    }

    #[test]
    fn critical_option_needs_the_flag() {
        let mut bytes = BYTES;
        bytes[1] = 0;
        let packet = Packet::new_checked(bytes).unwrap();
        let (class, kind) = (0x0102, 0x80);
        assert_eq!(
            packet.check_critical_flag(),
            Err(Error::CriticalNotFlagged { class, kind })
        );
        assert_eq!(
            packet.unknown_critical(|_, _| false),
            Ok(Some((class, kind)))
        );
        let packet = Packet::new_checked(BYTES).unwrap();
        assert_eq!(packet.check_critical_flag(), Ok(()));
    }
}
