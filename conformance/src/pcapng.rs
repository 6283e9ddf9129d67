//! pcapng files (draft-ietf-opsawg-pcapng) of Ethernet frames, to be read with `tshark -r`,
//! `tcpdump -r` or Wireshark.

use std::{borrow::Cow, io::Write, time::Duration};

use pcap_file::{
    DataLink, Endianness,
    pcapng::{
        PcapNgWriter,
        blocks::{
            enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption},
            interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption},
            section_header::{SectionHeaderBlock, SectionHeaderOption},
        },
    },
};

pub use pcap_file::PcapError;

use crate::frame::Direction;

/// A pcapng file being written.
pub struct PcapNg<W: Write> {
    writer: PcapNgWriter<W>,
    interfaces: u32,
}

impl<W: Write> std::fmt::Debug for PcapNg<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PcapNg")
            .field("interfaces", &self.interfaces)
            .finish_non_exhaustive()
    }
}

/// A frame for a file.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// Number of its interface in the file, from [`PcapNg::describe`].
    pub interface: u32,
    /// When it passed, as time since 1970-01-01 00:00 UTC.
    pub time: Duration,
    /// The frame, or its first bytes.
    pub bytes: &'a [u8],
    /// Length of the whole frame, bytes.
    pub original_len: usize,
    /// Which way it went.
    pub direction: Option<Direction>,
    /// What to say of it.
    pub comment: Option<&'a str>,
}

impl<W: Write> PcapNg<W> {
    /// Begins a file with its head, which has `comment` in it.
    ///
    /// # Errors
    ///
    /// [`PcapError::IoError`] when it cannot be written.
    pub fn new(out: W, comment: &str) -> Result<Self, PcapError> {
        let application = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"));
        let section = SectionHeaderBlock {
            endianness: Endianness::native(),
            options: vec![
                SectionHeaderOption::Comment(Cow::Owned(comment.to_owned())),
                SectionHeaderOption::UserApplication(Cow::Borrowed(application)),
            ],
            ..SectionHeaderBlock::default()
        };
        Ok(Self {
            writer: PcapNgWriter::with_section_header(out, section)?,
            interfaces: 0,
        })
    }

    /// Adds an interface; returns its number in the file.
    ///
    /// # Errors
    ///
    /// As [`PcapNg::new`].
    pub fn describe(&mut self, name: &str, description: &str) -> Result<u32, PcapError> {
        /// Timestamps are multiples of 10^-9 seconds.
        const NANOSECONDS: u8 = 9;
        self.writer.write_pcapng_block(InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: 0,
            options: vec![
                InterfaceDescriptionOption::IfName(Cow::Borrowed(name)),
                InterfaceDescriptionOption::IfDescription(Cow::Borrowed(description)),
                InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
            ],
        })?;
        self.interfaces += 1;
        Ok(self.interfaces - 1)
    }

    /// Adds a frame.
    ///
    /// # Errors
    ///
    /// As [`PcapNg::new`].
    pub fn add(&mut self, packet: &Packet<'_>) -> Result<(), PcapError> {
        // Bits 0 and 1 of the flags are the direction.
        let flags = packet.direction.map(|direction| match direction {
            Direction::In => 1,
            Direction::Out => 2,
        });
        let comment = packet.comment.map(Cow::Borrowed);
        let options = [
            flags.map(EnhancedPacketOption::Flags),
            comment.map(EnhancedPacketOption::Comment),
        ];
        self.writer.write_pcapng_block(EnhancedPacketBlock {
            interface_id: packet.interface,
            timestamp: packet.time,
            original_len: u32::try_from(packet.original_len).unwrap_or(u32::MAX),
            data: Cow::Borrowed(packet.bytes),
            options: options.into_iter().flatten().collect(),
        })?;
        Ok(())
    }

    /// Writes out what is in buffers.
    ///
    /// # Errors
    ///
    /// As [`PcapNg::new`].
    pub fn flush(&mut self) -> Result<(), PcapError> {
        self.writer.get_mut().flush().map_err(PcapError::IoError)
    }
}
