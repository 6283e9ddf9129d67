//! [`Packet`] over bytes, changed as the kernel's helpers change an skb.

use core::cell::Cell;
use core::ops::Range;
use std::vec::Vec;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::packet::{ChecksumChange, ETHERNET_LEN, Family, MAX_OFFSET, Packet, Wrapped};
use crate::verdict::DropReason;
use crate::wire::checksum::{changed, fold, is_nothing, mangled};
use crate::wire::ethernet;
use crate::wire::ip::Ipv4;
use crate::wire::underlay::{OVERHEAD_V4, OVERHEAD_V6, UnderlayV4, UnderlayV6};

/// A frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Buffer {
    /// Its bytes, Ethernet header first.
    pub bytes: Vec<u8>,
    /// Interface of the hook.
    pub interface: u32,
    /// The packet mark.
    pub mark: u32,
    /// Whether the transport checksum is left to the hardware, `CHECKSUM_PARTIAL`: the field holds
    /// the folded sum of the pseudo header, not inverted.
    pub partial: bool,
    /// Payload of a segment, bytes, where the frame is yet to be cut; zero where it is not.
    pub segment_bytes: u32,
    /// The number that it was sent with, where it is a copy.
    pub ticket: u32,
    /// Copies that were sent, with the interfaces that they left by.
    pub copies: Vec<(u32, Self)>,
    /// The VLAN of a tag that it came with, which is not among its bytes; zero for a tag that says a
    /// priority alone.
    pub vlan: Option<u16>,
    /// Whether something was asked for beyond [`MAX_OFFSET`]. Refused here, it would be found at
    /// another place in the kernel, which masks offsets: the packet path must never ask.
    pub strayed: Cell<bool>,
}

impl Buffer {
    /// A frame at a hook of `interface`, its checksums complete.
    #[must_use]
    pub fn new(interface: u32, bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            interface,
            mark: 0,
            partial: false,
            segment_bytes: 0,
            ticket: 0,
            copies: Vec::new(),
            vlan: None,
            strayed: Cell::new(false),
        }
    }

    /// Bytes that a `T` at `offset` takes.
    fn range<T>(&self, offset: u16) -> Result<Range<usize>, DropReason> {
        if offset > MAX_OFFSET {
            self.strayed.set(true);
            return Err(DropReason::InvalidPacket);
        }
        let start = usize::from(offset);
        Ok(start..start + size_of::<T>())
    }

    /// `bpf_skb_adjust_room` in MAC mode: what is wrong, if it would refuse.
    ///
    /// `net/core/filter.c`: only for IP, and only while a network header remains.
    fn check_room(&self, shrink: u16, family: Family) -> Result<(), DropReason> {
        let refused = DropReason::RewriteFailed;
        let ether_type = self.bytes.get(12..14).ok_or(refused)?;
        let is_ip = ether_type == ethernet::IPV4.to_be_bytes()
            || ether_type == ethernet::IPV6.to_be_bytes();
        let least = match family {
            Family::V4 => 20,
            Family::V6 => 40,
        };
        let left = self
            .bytes
            .len()
            .checked_sub(usize::from(ETHERNET_LEN + shrink));
        if is_ip && shrink <= 0xfff && (shrink == 0 || left >= Some(least)) {
            Ok(())
        } else {
            Err(refused)
        }
    }

    /// `bpf_skb_adjust_room` and `bpf_skb_store_bytes` as `prog::skb` calls them.
    fn encapsulate<T: IntoBytes + Immutable>(
        &mut self,
        outer: &T,
        room: u16,
    ) -> Result<Wrapped, DropReason> {
        self.make_room(room)?;
        self.write(0, outer)?;
        Ok(Wrapped::Known)
    }
}

impl Packet for Buffer {
    fn len(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)
    }

    fn segment_bytes(&self) -> u32 {
        self.segment_bytes
    }

    fn interface(&self) -> u32 {
        self.interface
    }

    fn is_tagged(&self) -> bool {
        self.vlan.is_some()
    }

    fn is_priority_tagged(&self) -> bool {
        self.vlan == Some(0)
    }

    fn mark(&self) -> u32 {
        self.mark
    }

    fn set_mark(&mut self, mark: u32) {
        self.mark = mark;
    }

    fn read<T: FromBytes + Immutable + Copy>(&self, offset: u16) -> Result<T, DropReason> {
        let bytes = self
            .bytes
            .get(self.range::<T>(offset)?)
            .ok_or(DropReason::InvalidPacket)?;
        T::read_from_bytes(bytes).map_err(|_| DropReason::InvalidPacket)
    }

    fn write<T: IntoBytes + Immutable>(
        &mut self,
        offset: u16,
        value: &T,
    ) -> Result<(), DropReason> {
        let range = self.range::<T>(offset)?;
        let bytes = self.bytes.get_mut(range).ok_or(DropReason::InvalidPacket)?;
        value.write_to(bytes).map_err(|_| DropReason::InvalidPacket)
    }

    /// `bpf_l4_csum_replace` and `inet_proto_csum_replace_by_diff`.
    fn fix_checksum(&mut self, offset: u16, change: ChecksumChange) -> Result<(), DropReason> {
        if !offset.is_multiple_of(2) {
            return Err(DropReason::RewriteFailed);
        }
        let old: u16 = self.read(offset).map_err(|_| DropReason::RewriteFailed)?;
        if change.optional && old == 0 {
            return Ok(());
        }
        let ChecksumChange {
            addresses,
            rest,
            optional,
            ..
        } = change;
        let new = if !self.partial {
            changed(old, addresses, rest)
        } else if is_nothing(addresses) {
            old
        } else {
            fold(u32::from(old) + u32::from(addresses))
        };
        let new = if optional { mangled(new) } else { new };
        self.write(offset, &new)
            .map_err(|_| DropReason::RewriteFailed)
    }

    fn encapsulate_v4(&mut self, outer: &UnderlayV4) -> Result<Wrapped, DropReason> {
        self.encapsulate(outer, OVERHEAD_V4)
    }

    fn encapsulate_v6(&mut self, outer: &UnderlayV6) -> Result<Wrapped, DropReason> {
        self.encapsulate(outer, OVERHEAD_V6)
    }

    fn decapsulate(&mut self, bytes: u16, family: Family) -> Result<(), DropReason> {
        self.check_room(bytes, family)?;
        let start = usize::from(ETHERNET_LEN);
        self.bytes.drain(start..start + usize::from(bytes));
        Ok(())
    }

    fn truncate(&mut self, length: u32) -> Result<bool, DropReason> {
        if length > self.len() {
            return Err(DropReason::RewriteFailed);
        }
        self.bytes.truncate(length as usize);
        self.segment_bytes = 0;
        Ok(true)
    }

    fn make_room(&mut self, bytes: u16) -> Result<(), DropReason> {
        self.check_room(0, Family::V4)?;
        let at = usize::from(ETHERNET_LEN);
        self.bytes
            .splice(at..at, core::iter::repeat_n(0, bytes.into()));
        Ok(())
    }

    fn remove_payload(&mut self, bytes: u16) -> Result<(), DropReason> {
        let start = usize::from(ETHERNET_LEN) + size_of::<Ipv4>();
        let end = start + usize::from(bytes);
        if end > self.bytes.len() {
            return Err(DropReason::RewriteFailed);
        }
        self.bytes.drain(start..end);
        Ok(())
    }

    fn send_copy(&mut self, interface: u32, ticket: u32) -> Result<(), DropReason> {
        let copy = Self {
            ticket,
            copies: Vec::new(),
            ..self.clone()
        };
        self.copies.push((interface, copy));
        Ok(())
    }

    fn ticket(&self) -> u32 {
        self.ticket
    }

    fn sum(&mut self, offset: u16, length: u16) -> Result<u16, DropReason> {
        let start = usize::from(offset);
        let bytes = self.bytes.get(start..start + usize::from(length));
        let bytes = bytes.ok_or(DropReason::InvalidPacket)?;
        let words = bytes.chunks(2).map(|pair| match *pair {
            [a, b] => u32::from(u16::from_ne_bytes([a, b])),
            [a] => u32::from(u16::from_ne_bytes([a, 0])),
            _ => 0,
        });
        Ok(fold(words.sum()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: ChecksumChange = ChecksumChange {
        addresses: 0,
        rest: 0,
        seed: None,
        optional: false,
        v6: false,
    };
    const REST: ChecksumChange = ChecksumChange { rest: 1, ..NOTHING };
    const BOTH: ChecksumChange = ChecksumChange {
        addresses: 2,
        ..REST
    };

    fn with_checksum(value: u16) -> Buffer {
        Buffer::new(1, value.to_ne_bytes().to_vec())
    }

    fn after(packet: &Buffer) -> u16 {
        u16::from_ne_bytes([packet.bytes[0], packet.bytes[1]])
    }

    #[test]
    fn a_complete_checksum_follows_every_difference() {
        let mut packet = with_checksum(0x1234);
        packet.fix_checksum(0, BOTH).unwrap();
        assert_eq!(after(&packet), 0x1231);
    }

    #[test]
    fn a_seed_follows_addresses_alone() {
        let mut packet = Buffer {
            partial: true,
            ..with_checksum(0xffff)
        };
        packet.fix_checksum(0, REST).unwrap();
        assert_eq!(after(&packet), 0xffff);
        packet.fix_checksum(0, BOTH).unwrap();
        assert_eq!(after(&packet), 0x0002);
    }

    #[test]
    fn none_stays_none_and_is_never_made() {
        let optional = ChecksumChange {
            optional: true,
            ..REST
        };
        let mut packet = with_checksum(0);
        packet.fix_checksum(0, optional).unwrap();
        assert_eq!(after(&packet), 0);
        let mut packet = with_checksum(1);
        packet.fix_checksum(0, optional).unwrap();
        assert_eq!(after(&packet), 0xffff);
    }

    #[test]
    fn what_changes_no_sum_changes_no_field() {
        for addresses in [0, 0xffff] {
            let mut packet = with_checksum(0xffff);
            let change = ChecksumChange {
                addresses,
                ..NOTHING
            };
            packet.fix_checksum(0, change).unwrap();
            assert_eq!(after(&packet), 0xffff);
        }
    }

    #[test]
    fn offsets_have_an_end() {
        let mut packet = Buffer::new(1, std::vec![0; 1024]);
        assert_eq!(packet.read::<u32>(MAX_OFFSET), Ok(0));
        assert!(!packet.strayed.get());
        assert_eq!(
            packet.read::<u32>(MAX_OFFSET + 1),
            Err(DropReason::InvalidPacket)
        );
        assert_eq!(
            packet.write(MAX_OFFSET + 1, &0_u32),
            Err(DropReason::InvalidPacket)
        );
        assert!(packet.strayed.get());
        let odd = packet.fix_checksum(17, REST);
        assert_eq!(odd, Err(DropReason::RewriteFailed));
    }

    #[test]
    fn room_is_made_and_taken_behind_the_ethernet_header() {
        let mut frame: Vec<u8> = (0..74).collect();
        frame[12..14].copy_from_slice(&[0x08, 0]);
        let mut packet = Buffer::new(1, frame.clone());
        let wrapped = packet.encapsulate_v4(&UnderlayV4::default());
        assert_eq!(wrapped, Ok(Wrapped::Known));
        assert_eq!(packet.bytes.len(), 74 + 50);
        assert_eq!(
            (&packet.bytes[..64], &packet.bytes[64..]),
            (&[0; 64][..], &frame[14..])
        );
        let refused = Err(DropReason::RewriteFailed);
        assert_eq!(
            packet.decapsulate(50, Family::V4),
            refused,
            "EtherType zero"
        );
        packet.bytes[12..14].copy_from_slice(&[0x86, 0xdd]);
        packet.decapsulate(50, Family::V4).unwrap();
        assert_eq!(packet.bytes[14..], frame[14..]);
        assert_eq!(packet.decapsulate(41, Family::V4), refused);
        assert_eq!(packet.decapsulate(21, Family::V6), refused);
        assert_eq!(packet.decapsulate(20, Family::V6), Ok(()));
        assert_eq!(packet.bytes.len(), 54);
    }
}
