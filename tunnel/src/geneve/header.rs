//! The fixed 8 bytes in front of every GENEVE packet (RFC 8926 section 3.4).

use core::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::error::Error;

/// UDP destination port of GENEVE, assigned by IANA.
pub const UDP_PORT: u16 = 6081;

/// Protocol type of a payload that is an Ethernet frame: transparent Ethernet bridging.
pub const ETHERTYPE_TEB: u16 = 0x6558;

/// Bytes of the fixed header, without options.
pub const HEADER_LEN: usize = 8;

/// Most bytes of options one packet can carry: 63 words of 4 bytes.
pub const MAX_OPTIONS_LEN: usize = 252;

/// The one version that exists.
pub const VERSION: u8 = 0;

/// O: the payload is a control message.
const FLAG_CONTROL: u8 = 0x80;
/// C: at least one option is critical.
const FLAG_CRITICAL: u8 = 0x40;
/// Low bits of the first byte: length of the options in words of 4 bytes.
const LENGTH_MASK: u8 = 0x3f;

/// The fixed GENEVE header, as it is on the wire.
///
/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |Ver|  Opt Len  |O|C|    Rsvd.  |          Protocol Type        |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |        Virtual Network Identifier (VNI)       |    Reserved   |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// ```
///
/// Any 8 bytes are a `Header`; [`check_version`](Self::check_version) tells whether they mean
/// something. Reserved bits are zero in what [`new`](Self::new) builds and are ignored when read.
///
/// ```
/// use datapath_tunnel::geneve::{ETHERTYPE_TEB, Header, Vni};
/// use zerocopy::IntoBytes;
///
/// let header = Header::new(Vni::try_from(77)?, ETHERTYPE_TEB);
/// assert_eq!(header.as_bytes(), [0, 0, 0x65, 0x58, 0, 0, 77, 0]);
/// # Ok::<(), datapath_tunnel::geneve::Error>(())
/// ```
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Header {
    version_and_length: u8,
    flags: u8,
    protocol: [u8; 2],
    vni: [u8; 3],
    reserved: u8,
}

const _: () = assert!(size_of::<Header>() == HEADER_LEN);

impl Header {
    /// A header of version 0 without options or flags.
    ///
    /// `protocol` is the ethertype of the payload, [`ETHERTYPE_TEB`] for an Ethernet frame.
    #[inline]
    #[must_use]
    pub const fn new(vni: Vni, protocol: u16) -> Self {
        Self {
            version_and_length: VERSION << 6,
            flags: 0,
            protocol: protocol.to_be_bytes(),
            vni: vni.to_be_bytes(),
            reserved: 0,
        }
    }

    /// The same header, announcing `len` bytes of options.
    ///
    /// # Errors
    ///
    /// [`Error::OptionsLength`] if `len` is no multiple of 4 or above [`MAX_OPTIONS_LEN`].
    #[inline]
    pub const fn with_options_len(self, len: usize) -> Result<Self, Error> {
        if len > MAX_OPTIONS_LEN || !len.is_multiple_of(4) {
            return Err(Error::OptionsLength(len));
        }
        #[expect(clippy::cast_possible_truncation, reason = "at most 63, checked above")]
        Ok(self.with_options_words((len / 4) as u8))
    }

    /// The same header, announcing options of `words` words of 4 bytes, 0..=63.
    #[inline]
    pub(super) const fn with_options_words(mut self, words: u8) -> Self {
        self.version_and_length &= !LENGTH_MASK;
        self.version_and_length |= words & LENGTH_MASK;
        self
    }

    /// The same header with the O bit set or cleared: the payload is a control message.
    #[inline]
    #[must_use]
    pub const fn with_control(mut self, on: bool) -> Self {
        self.flags = set(self.flags, FLAG_CONTROL, on);
        self
    }

    /// The same header with the C bit set or cleared: at least one option is critical.
    #[inline]
    #[must_use]
    pub const fn with_critical_options(mut self, on: bool) -> Self {
        self.flags = set(self.flags, FLAG_CRITICAL, on);
        self
    }

    /// The same header with another network identifier.
    #[inline]
    #[must_use]
    pub const fn with_vni(mut self, vni: Vni) -> Self {
        self.vni = vni.to_be_bytes();
        self
    }

    /// The same header with another protocol type.
    #[inline]
    #[must_use]
    pub const fn with_protocol(mut self, protocol: u16) -> Self {
        self.protocol = protocol.to_be_bytes();
        self
    }

    /// Version of the format, 0..=3; only [`VERSION`] is defined.
    #[inline]
    #[must_use]
    pub const fn version(&self) -> u8 {
        self.version_and_length >> 6
    }

    /// Bytes of options after this header: a multiple of 4, 0..=[`MAX_OPTIONS_LEN`].
    #[inline]
    #[must_use]
    pub const fn options_len(&self) -> usize {
        (self.version_and_length & LENGTH_MASK) as usize * 4
    }

    /// Bytes of this header and its options, 8..=260: where the payload begins.
    #[expect(clippy::len_without_is_empty, reason = "a header is never empty")]
    #[inline]
    #[must_use]
    pub const fn len(&self) -> usize {
        HEADER_LEN + self.options_len()
    }

    /// The O bit: the payload is a control message, which is not to be forwarded.
    #[inline]
    #[must_use]
    pub const fn is_control(&self) -> bool {
        self.flags & FLAG_CONTROL != 0
    }

    /// The C bit: at least one option is critical, so that who cannot read options drops the
    /// packet.
    #[inline]
    #[must_use]
    pub const fn has_critical_options(&self) -> bool {
        self.flags & FLAG_CRITICAL != 0
    }

    /// Ethertype of the payload, host byte order.
    #[inline]
    #[must_use]
    pub const fn protocol(&self) -> u16 {
        u16::from_be_bytes(self.protocol)
    }

    /// Virtual network identifier.
    #[inline]
    #[must_use]
    pub const fn vni(&self) -> Vni {
        let [high, middle, low] = self.vni;
        Vni(u32::from_be_bytes([0, high, middle, low]))
    }

    /// Whether the version is the one that exists.
    ///
    /// # Errors
    ///
    /// [`Error::Version`] otherwise: the receiver must drop the packet.
    #[inline]
    pub const fn check_version(&self) -> Result<(), Error> {
        match self.version() {
            VERSION => Ok(()),
            other => Err(Error::Version(other)),
        }
    }
}

impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "GENEVE vni={} protocol={:#06x} options={}B",
            self.vni(),
            self.protocol(),
            self.options_len()
        )?;
        if self.is_control() {
            f.write_str(" control")?;
        }
        if self.has_critical_options() {
            f.write_str(" critical")?;
        }
        if self.version() != VERSION {
            write!(f, " version={}", self.version())?;
        }
        Ok(())
    }
}

const fn set(flags: u8, bit: u8, on: bool) -> u8 {
    if on { flags | bit } else { flags & !bit }
}

/// A virtual network identifier: 24 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vni(u32);

impl Vni {
    /// The smallest identifier, 0.
    pub const MIN: Self = Self(0);

    /// The largest identifier, 16777215.
    pub const MAX: Self = Self(0xff_ffff);

    /// An identifier, or `None` where `value` needs more than 24 bits.
    #[inline]
    #[must_use]
    pub const fn new(value: u32) -> Option<Self> {
        if value <= Self::MAX.0 {
            Some(Self(value))
        } else {
            None
        }
    }

    /// The identifier as a number, 0..=16777215.
    #[inline]
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The three bytes of the identifier in network order.
    #[inline]
    #[must_use]
    pub const fn to_be_bytes(self) -> [u8; 3] {
        let [_, high, middle, low] = self.0.to_be_bytes();
        [high, middle, low]
    }
}

impl TryFrom<u32> for Vni {
    type Error = Error;

    #[inline]
    fn try_from(value: u32) -> Result<Self, Error> {
        Self::new(value).ok_or(Error::VniTooLarge(value))
    }
}

impl From<Vni> for u32 {
    #[inline]
    fn from(vni: Vni) -> Self {
        vni.get()
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: [u8; 8] = [0x02, 0xc0, 0x65, 0x58, 0x12, 0x34, 0x56, 0x00];

    #[test]
    fn bytes_are_read_as_the_rfc_draws_them() {
        let header = Header::read_from_bytes(&BYTES).unwrap();
        assert_eq!(header.version(), 0);
        assert_eq!(header.options_len(), 8);
        assert_eq!(header.len(), 16);
        assert!(header.is_control());
        assert!(header.has_critical_options());
        assert_eq!(header.protocol(), ETHERTYPE_TEB);
        assert_eq!(header.vni().get(), 0x12_3456);
        assert_eq!(header.check_version(), Ok(()));
        assert_eq!(
            header.to_string(),
            "GENEVE vni=1193046 protocol=0x6558 options=8B control critical"
        );
    }

    #[test]
    fn built_header_has_the_same_bytes() {
        let header = Header::new(Vni::try_from(0x12_3456).unwrap(), ETHERTYPE_TEB)
            .with_options_len(8)
            .unwrap()
            .with_control(true)
            .with_critical_options(true);
        assert_eq!(header.as_bytes(), BYTES);
        let plain = header
            .with_control(false)
            .with_critical_options(false)
            .with_options_len(0)
            .unwrap();
        assert_eq!(plain.as_bytes(), [0, 0, 0x65, 0x58, 0x12, 0x34, 0x56, 0]);
    }

    #[test]
    fn options_length_is_a_multiple_of_four_up_to_252() {
        let header = Header::new(Vni::MAX, ETHERTYPE_TEB);
        for len in 0..=1024 {
            let result = header.with_options_len(len);
            if len % 4 == 0 && len <= 252 {
                assert_eq!(result.unwrap().options_len(), len);
            } else {
                assert_eq!(result, Err(Error::OptionsLength(len)));
            }
        }
        assert_eq!(
            header.with_options_len(usize::MAX),
            Err(Error::OptionsLength(usize::MAX))
        );
    }

    #[test]
    fn reserved_bits_change_nothing() {
        let mut noisy = BYTES;
        noisy[1] |= 0x3f;
        noisy[7] = 0xff;
        let noisy = Header::read_from_bytes(&noisy).unwrap();
        let clean = Header::read_from_bytes(&BYTES).unwrap();
        assert_eq!(noisy.to_string(), clean.to_string());
        assert_eq!(noisy.check_version(), Ok(()));
    }

    #[test]
    fn other_versions_are_refused() {
        for version in 1..=3u8 {
            let mut bytes = BYTES;
            bytes[0] |= version << 6;
            let header = Header::read_from_bytes(&bytes).unwrap();
            assert_eq!(header.check_version(), Err(Error::Version(version)));
            assert_eq!(header.options_len(), 8);
        }
    }

    #[test]
    fn vni_has_24_bits() {
        assert_eq!(Vni::new(0xff_ffff), Some(Vni::MAX));
        assert_eq!(Vni::new(0x100_0000), None);
        assert_eq!(Vni::try_from(u32::MAX), Err(Error::VniTooLarge(u32::MAX)));
        assert_eq!(u32::from(Vni::MAX), 16_777_215);
        assert_eq!(Vni::MAX.to_be_bytes(), [0xff; 3]);
        assert_eq!(Vni::MAX.to_string(), "16777215");
    }
}
