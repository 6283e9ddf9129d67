//! A GENEVE header as a value: what it means, apart from its bytes.

use core::fmt;

use super::{
    error::Error,
    header::{HEADER_LEN, Header, Vni},
    options::Options,
    packet::Packet,
};

/// Everything that a GENEVE header of version 0 says.
///
/// Length and C bit follow from the options; reserved bits are zero.
///
/// ```
/// use datapath_tunnel::geneve::{ETHERTYPE_TEB, Opt, Options, Packet, Repr, Vni};
///
/// let options = [Opt::new(0x0102, 0x80, &[0, 0, 0, 0x11])?];
/// let repr = Repr {
///     vni: Vni::try_from(77)?,
///     protocol: ETHERTYPE_TEB,
///     control: false,
///     options: Options::new(&options)?,
/// };
/// let mut datagram = [0; 64];
/// let frame = repr.emit(&mut datagram)?;
/// assert_eq!(frame.len(), 64 - 16);
/// assert_eq!(Repr::parse(&Packet::new_checked(&datagram[..])?)?, repr);
/// # Ok::<(), datapath_tunnel::geneve::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr<'a> {
    /// Virtual network identifier.
    pub vni: Vni,
    /// Ethertype of the payload, [`ETHERTYPE_TEB`](super::ETHERTYPE_TEB) for an Ethernet frame.
    pub protocol: u16,
    /// The payload is a control message (O bit).
    pub control: bool,
    /// The options, in their order.
    pub options: Options<'a>,
}

impl<'a> Repr<'a> {
    /// Reads the header of a packet.
    ///
    /// # Errors
    ///
    /// What [`Packet::new_checked`] and [`Packet::check_critical_flag`] find.
    pub fn parse<T: AsRef<[u8]>>(packet: &'a Packet<T>) -> Result<Self, Error> {
        packet.check_len()?;
        let options = Options::parse(packet.options_bytes())?;
        packet.check_critical_flag()?;
        Ok(Self {
            vni: packet.vni(),
            protocol: packet.protocol(),
            control: packet.is_control(),
            options,
        })
    }

    /// The fixed header to write.
    #[must_use]
    pub fn header(&self) -> Header {
        Header::new(self.vni, self.protocol)
            .with_options_words(self.options.words())
            .with_control(self.control)
            .with_critical_options(self.options.critical().is_some())
    }

    /// Bytes of the header with its options, 8..=260.
    #[must_use]
    pub fn buffer_len(&self) -> usize {
        HEADER_LEN + self.options.buffer_len()
    }

    /// Writes header and options to the start of `buffer` and returns the rest of it, where the
    /// payload goes.
    ///
    /// # Errors
    ///
    /// [`Error::Truncated`] if `buffer` is shorter than [`buffer_len`](Self::buffer_len);
    /// nothing is written then.
    pub fn emit<'b>(&self, buffer: &'b mut [u8]) -> Result<&'b mut [u8], Error> {
        let needed = self.buffer_len();
        let got = buffer.len();
        if got < needed {
            return Err(Error::Truncated { needed, got });
        }
        let (header, rest) = buffer
            .split_at_mut_checked(HEADER_LEN)
            .ok_or(Error::Truncated { needed, got })?;
        Packet::new_unchecked(header).set_header(self.header())?;
        self.options.emit(rest)
    }
}

impl fmt::Display for Repr<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.header().fmt(f)?;
        if self.options.is_empty() {
            return Ok(());
        }
        write!(f, " [{}]", self.options)
    }
}
