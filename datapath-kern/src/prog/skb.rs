//! [`Packet`] over an skb.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::{
    __sk_buff, BPF_F_ADJ_ROOM_DECAP_L3_IPV4, BPF_F_ADJ_ROOM_DECAP_L3_IPV6,
    BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
    BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR,
    bpf_adj_room_mode,
};
use aya_ebpf::helpers::generated::{
    bpf_clone_redirect, bpf_csum_diff, bpf_csum_update, bpf_l4_csum_replace, bpf_set_hash,
    bpf_skb_adjust_room, bpf_skb_change_head, bpf_skb_change_proto, bpf_skb_change_tail,
    bpf_skb_load_bytes, bpf_skb_pull_data, bpf_skb_store_bytes,
};
use datapath_kern::abi::config::Settings;
use datapath_kern::packet::{
    ChecksumChange, ETHERNET_LEN, Family, MAX_L4_OFFSET, MAX_OFFSET, MAX_SUM_LEN, Packet, Wrapped,
};
use datapath_kern::verdict::DropReason;
use datapath_kern::wire::underlay::{OVERHEAD_V4, OVERHEAD_V6, UnderlayV4, UnderlayV6};
use datapath_kern::wire::{checksum, ethernet};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::arguments;
use super::env::Kernel;

/// Bytes that are made linear before a frame is parsed: all headers of all but the strangest.
const LINEAR: u32 = 192;

/// Most that `bpf_skb_adjust_room` removes at once, bytes; a multiple of eight.
const MAX_SHRINK: u32 = 0xff8;

/// `-ENOTSUPP`: what a helper says that will not have an encapsulated skb (`__bpf_skb_change_tail`,
/// `net/core/filter.c`).
const NOT_SUPPORTED: i64 = -524;

/// Removals that make a quotation of the longest frame there is but for segmentation offload.
const MAX_CUTS: usize = 3;

/// More than lies before any transport checksum, bytes.
const FORGOTTEN: u32 = MAX_L4_OFFSET as u32 + 32;

/// Longest headers that must stay for the kernel to remove what is behind, bytes.
const LEAST: u32 = 54;

/// `BPF_F_ADJ_ROOM_ENCAP_L2(14)`: length of the inner Ethernet header, in the top byte.
const ENCAP_L2_LEN: u64 = (ETHERNET_LEN as u64) << 56;

/// Bounds every offset, which the verifier wants to see and `parse` sees to already.
///
/// Loaded each time: the compiler would leave out a mask that it knows to change nothing, and check
/// a copy of the number where the verifier looks at another. The verifier knows what is in here.
static OFFSET_MASK: u16 = MAX_OFFSET;

/// Bounds the length of what is read, less one: a verifier before Linux 6.8 does not learn from a
/// comparison that a number is not zero. Loaded each time, as above.
static LENGTH_MASK: u32 = 0xffff;

/// A frame in the kernel.
pub(super) struct Skb {
    pub(super) ctx: *mut __sk_buff,
}

impl Skb {
    /// The frame that a program was entered with.
    #[inline(always)]
    pub(super) const fn new(ctx: *mut __sk_buff) -> Self {
        Self { ctx }
    }

    /// Makes the frame's headers linear.
    #[inline(always)]
    pub(super) fn make_linear(&mut self) {
        let (data, end) = self.bounds();
        let wanted = if self.len() < LINEAR {
            self.len()
        } else {
            LINEAR
        };
        if data + wanted as usize > end {
            // SAFETY: a helper on the program's own context. A failure leaves the frame as it is,
            // and the reads say what is missing.
            unsafe { bpf_skb_pull_data(self.ctx, wanted) };
        }
    }

    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        // SAFETY: fields of the context, which the verifier rewrites to loads from the skb.
        unsafe { ((*self.ctx).data as usize, (*self.ctx).data_end as usize) }
    }

    /// Pointer to `size` bytes at `offset`, if the frame has them.
    #[inline(always)]
    fn at(&self, offset: u16, size: usize) -> Result<usize, DropReason> {
        let (data, end) = self.bounds();
        // SAFETY: a static that nobody writes.
        let mask = unsafe { core::ptr::read_volatile(&raw const OFFSET_MASK) };
        let start = data + usize::from(offset & mask);
        // The verifier requires that every pointer be checked against the end.
        if start + size > end {
            return Err(DropReason::InvalidPacket);
        }
        Ok(start)
    }

    /// Cuts a frame off that came out of a tunnel, which the kernel has no helper for: what is kept
    /// is put aside, as much removed in front as is too much, and the rest overwritten.
    ///
    /// So the kernel would look for a checksum that is left to hardware at a wrong place. It gives
    /// that up when it removes something with the place gone already (`skb_postpull_rcsum`,
    /// `include/linux/skbuff.h`): more is removed than is too much, at twice, and put back.
    #[inline(never)]
    fn cut(&mut self, length: u32) -> Result<(), DropReason> {
        let Some(arguments) = arguments::mine() else {
            return Err(DropReason::RewriteFailed);
        };
        // SAFETY: a variable of our own. The compiler knows the length not to be zero and would not
        // compare it, the verifier does not.
        let length = unsafe { core::ptr::read_volatile(&raw const length) };
        let within = length > FORGOTTEN + LEAST && length <= u32::from(MAX_SUM_LEN);
        if !within || self.segment_bytes() != 0 {
            return Err(DropReason::RewriteFailed);
        }
        let kept = arguments.scratch.as_mut_ptr();
        // SAFETY: a helper on the program's own context; `scratch` has more than `MAX_SUM_LEN`
        // bytes.
        done(unsafe { bpf_skb_load_bytes(self.ctx.cast(), 0, kept.cast(), length) })?;
        for _ in 0..MAX_CUTS {
            let excess = self.len().saturating_sub(length);
            if excess == 0 {
                break;
            }
            let bytes = if excess < MAX_SHRINK {
                excess
            } else {
                MAX_SHRINK
            };
            done(self.adjust((bytes as i32).wrapping_neg()))?;
        }
        done(self.adjust(-(FORGOTTEN as i32) + 8))?;
        done(self.adjust(-8))?;
        done(self.adjust(FORGOTTEN as i32))?;
        // SAFETY: a helper on the program's own context; as many bytes as were put aside.
        done(unsafe { bpf_skb_store_bytes(self.ctx, 0, kept.cast(), length, 0) })
    }

    /// Makes room behind the Ethernet header, or removes what is there: the helper's code.
    #[inline(always)]
    fn adjust(&mut self, bytes: i32) -> i64 {
        let mode = bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
        // SAFETY: a helper on the program's own context.
        unsafe { bpf_skb_adjust_room(self.ctx, bytes, mode, 0) }
    }

    /// Tells the kernel that an IPv4 packet's transport checksum follows a difference of the addresses:
    /// where hardware has summed up the packet, the sum is another one now. What the IPv4 header itself
    /// adds to that is nothing, and an IPv6 header adds what the checksum takes away.
    #[inline(always)]
    fn update_sum(&mut self, addresses: u16) {
        // SAFETY: a helper on the program's own context. It says whether there was such a sum.
        unsafe { bpf_csum_update(self.ctx, !u32::from(addresses)) };
    }

    /// Has the kernel add `difference` to what the transport checksum at `offset` covers.
    #[inline(always)]
    fn replace_checksum(
        &mut self,
        offset: u16,
        difference: u16,
        flags: u64,
    ) -> Result<(), DropReason> {
        // SAFETY: a helper on the program's own context.
        done(unsafe {
            bpf_l4_csum_replace(self.ctx, u32::from(offset), 0, u64::from(difference), flags)
        })
    }

    /// Makes room behind the Ethernet header and stores the new headers over it.
    ///
    /// Where the kernel refuses, since it takes the frame for a tunnel packet still (what comes out
    /// of one keeps `skb->encapsulation`, and gets `-EALREADY`; Linux 6.18), the headers go in front
    /// of the frame, behind the kernel's back. It could not cut such a frame into segments, so that
    /// one of several goes only where no uplink cuts.
    #[inline(always)]
    fn encapsulate<T: IntoBytes + Immutable>(
        &mut self,
        outer: &T,
        room: u16,
        family: u32,
    ) -> Result<Wrapped, DropReason> {
        let flags = u64::from(
            BPF_F_ADJ_ROOM_FIXED_GSO
                | BPF_F_ADJ_ROOM_ENCAP_L4_UDP
                | BPF_F_ADJ_ROOM_ENCAP_L2_ETH
                | family,
        ) | ENCAP_L2_LEN;
        // SAFETY: a helper on the program's own context.
        let refused = unsafe {
            bpf_skb_adjust_room(
                self.ctx,
                i32::from(room),
                bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
                flags,
            )
        } != 0;
        if refused {
            if self.segment_bytes() != 0 && Kernel::new(self.ctx).uplinks_pass_gso() == 0 {
                return Err(DropReason::RewriteFailed);
            }
            // SAFETY: a helper on the program's own context.
            done(unsafe { bpf_skb_change_head(self.ctx, u32::from(room), 0) })?;
        }
        // SAFETY: a helper on the program's own context; the stored value is as long as said.
        done(unsafe {
            bpf_skb_store_bytes(
                self.ctx,
                0,
                core::ptr::from_ref(outer).cast(),
                size_of::<T>() as u32,
                0,
            )
        })?;
        Ok(if refused {
            Wrapped::InFront
        } else {
            Wrapped::Known
        })
    }
}

impl Skb {
    /// Has the kernel take the frame for one of `family`, and returns how many bytes less there are
    /// behind its Ethernet header.
    ///
    /// Before Linux 6.3 it goes on taking what comes out of a tunnel packet for one of the tunnel's
    /// family, and no stack would accept it. `bpf_skb_change_proto` is the only helper that changes
    /// this (`bpf_skb_proto_xlat`, `net/core/filter.c`); it adds or removes what the two IP headers
    /// differ by, at the same place, which removing the outer headers makes up for.
    #[inline(always)]
    fn change_family(&mut self, family: Family) -> Result<i32, DropReason> {
        const DIFFERENCE: i32 = 20;
        let (protocol, fewer) = match family {
            Family::V4 => (ethernet::IPV4, DIFFERENCE),
            Family::V6 => (ethernet::IPV6, -DIFFERENCE),
        };
        let protocol = protocol.to_be();
        // SAFETY: a field of the context.
        if unsafe { (*self.ctx).protocol } == u32::from(protocol) {
            return Ok(0);
        }
        // SAFETY: a helper on the program's own context.
        done(unsafe { bpf_skb_change_proto(self.ctx, protocol, 0) })?;
        Ok(fewer)
    }
}

impl Packet for Skb {
    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: a field of the context.
        unsafe { (*self.ctx).len }
    }

    #[inline(always)]
    fn segment_bytes(&self) -> u32 {
        // SAFETY: a field of the context.
        unsafe { (*self.ctx).gso_size }
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        // SAFETY: a field of the context.
        unsafe { (*self.ctx).ifindex }
    }

    #[inline(always)]
    fn is_tagged(&self) -> bool {
        // SAFETY: a field of the context.
        unsafe { (*self.ctx).vlan_present != 0 }
    }

    #[inline(always)]
    fn is_priority_tagged(&self) -> bool {
        const VLAN: u32 = 0xfff;

        // SAFETY: a field of the context.
        self.is_tagged() && unsafe { (*self.ctx).vlan_tci & VLAN == 0 }
    }

    #[inline(always)]
    fn mark(&self) -> u32 {
        // SAFETY: a field of the context.
        unsafe { (*self.ctx).mark }
    }

    #[inline(always)]
    fn set_mark(&mut self, mark: u32) {
        // SAFETY: a field of the context that programs may write.
        unsafe { (*self.ctx).mark = mark }
    }

    #[inline(always)]
    fn read<T: FromBytes + Immutable + Copy>(&self, offset: u16) -> Result<T, DropReason> {
        let start = self.at(offset, size_of::<T>())?;
        let mut value = Words::<T>::uninit();
        // SAFETY: `at` checked the bounds, and any bytes are a valid `T`.
        Ok(unsafe {
            copy_words::<T>(start as *const u8, value.as_mut_ptr().cast());
            value.assume_init().0
        })
    }

    #[inline(always)]
    fn write<T: IntoBytes + Immutable>(
        &mut self,
        offset: u16,
        value: &T,
    ) -> Result<(), DropReason> {
        let start = self.at(offset, size_of::<T>())?;
        let mut words = Words::<T>::uninit();
        // SAFETY: `at` checked the bounds; the value is copied as the bytes that it is.
        unsafe {
            core::ptr::copy_nonoverlapping(value, words.as_mut_ptr().cast(), 1);
            copy_words::<T>(words.as_ptr().cast(), start as *mut u8);
        }
        Ok(())
    }

    #[inline(always)]
    fn fix_checksum(&mut self, offset: u16, change: ChecksumChange) -> Result<(), DropReason> {
        let ChecksumChange {
            addresses,
            rest,
            seed,
            optional,
            v6,
        } = change;
        let before = self.read::<u16>(offset);
        // What hardware completes is right only where the field holds the seed: with anything else in
        // it, this is a checksum.
        if let (Ok(before), Some(seed)) = (before, seed) {
            if optional && before == 0 {
                return Ok(());
            }
            // Of segments it is the sum for what they will be cut from, whose length may be told
            // elsewhere.
            if !checksum::are_same(before, seed) && self.segment_bytes() == 0 {
                let new = checksum::changed(before, addresses, rest);
                let new = if optional {
                    checksum::mangled(new)
                } else {
                    new
                };
                self.write(offset, &new)?;
                if !v6 && !checksum::is_nothing(addresses) {
                    self.update_sum(addresses);
                }
                return Ok(());
            }
        }
        let mangled = if optional {
            u64::from(BPF_F_MARK_MANGLED_0)
        } else {
            0
        };
        if !checksum::is_nothing(addresses) {
            let mut flags = u64::from(BPF_F_PSEUDO_HDR) | mangled;
            if v6 {
                flags |= u64::from(Kernel::new(self.ctx).checksum_v6_flags());
            }
            self.replace_checksum(offset, addresses, flags)?;
        }
        if checksum::is_nothing(rest) {
            return Ok(());
        }
        // Or it was one all the same: that shows in what the kernel made of it.
        if let (Ok(before), Ok(after)) = (before, self.read::<u16>(offset))
            && !checksum::is_nothing(addresses)
            && checksum::is_seed(before, after, addresses)
        {
            return Ok(());
        }
        self.replace_checksum(offset, rest, mangled)
    }

    #[inline(always)]
    fn encapsulate_v4(&mut self, outer: &UnderlayV4) -> Result<Wrapped, DropReason> {
        self.encapsulate(outer, OVERHEAD_V4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4)
    }

    #[inline(always)]
    fn encapsulate_v6(&mut self, outer: &UnderlayV6) -> Result<Wrapped, DropReason> {
        self.encapsulate(outer, OVERHEAD_V6, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6)
    }

    #[inline(always)]
    fn decapsulate(&mut self, bytes: u16, family: Family) -> Result<(), DropReason> {
        let mut room = -i32::from(bytes);
        let mut flags = u64::from(BPF_F_ADJ_ROOM_FIXED_GSO);
        if Kernel::new(self.ctx).decap_flags() == 0 {
            room += self.change_family(family)?;
        } else {
            flags |= u64::from(match family {
                Family::V4 => BPF_F_ADJ_ROOM_DECAP_L3_IPV4,
                Family::V6 => BPF_F_ADJ_ROOM_DECAP_L3_IPV6,
            });
        }
        // SAFETY: a helper on the program's own context.
        done(unsafe {
            bpf_skb_adjust_room(self.ctx, room, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, flags)
        })
    }

    #[inline(always)]
    fn truncate(&mut self, length: u32) -> Result<bool, DropReason> {
        if self.len() == length && self.segment_bytes() == 0 {
            return Ok(true);
        }
        // SAFETY: a helper on the program's own context.
        let code = unsafe { bpf_skb_change_tail(self.ctx, length, 0) };
        if code == NOT_SUPPORTED {
            self.cut(length).map(|()| false)
        } else {
            done(code).map(|()| true)
        }
    }

    #[inline(always)]
    fn make_room(&mut self, bytes: u16) -> Result<(), DropReason> {
        done(self.adjust(i32::from(bytes)))
    }

    #[inline(always)]
    fn remove_payload(&mut self, bytes: u16) -> Result<(), DropReason> {
        let mut left = u32::from(bytes);
        // Sixteen steps remove more than an IPv4 packet has.
        for _ in 0..16 {
            if left == 0 {
                break;
            }
            let step = if left < MAX_SHRINK { left } else { MAX_SHRINK };
            // SAFETY: a helper on the program's own context.
            done(unsafe {
                bpf_skb_adjust_room(
                    self.ctx,
                    (step as i32).wrapping_neg(),
                    bpf_adj_room_mode::BPF_ADJ_ROOM_NET,
                    0,
                )
            })?;
            left -= step;
        }
        Ok(())
    }

    #[inline(always)]
    fn send_copy(&mut self, interface: u32, ticket: u32) -> Result<(), DropReason> {
        // SAFETY: helpers on the program's own context. Of the fields that survive the way through
        // a veth pair, the hash is the one that nobody else has a use for there.
        unsafe {
            bpf_set_hash(self.ctx, ticket);
            done(bpf_clone_redirect(self.ctx, interface, 0))
        }
    }

    #[inline(always)]
    fn ticket(&self) -> u32 {
        // SAFETY: a field of the context.
        unsafe { (*self.ctx).hash }
    }

    #[inline(never)]
    fn sum(&mut self, offset: u16, length: u16) -> Result<u16, DropReason> {
        let Some(arguments) = arguments::mine() else {
            return Err(DropReason::RewriteFailed);
        };
        let scratch = arguments.scratch.as_mut_ptr();
        // SAFETY: a static that nobody writes.
        let mask = unsafe { core::ptr::read_volatile(&raw const LENGTH_MASK) };
        let length = (u32::from(length).wrapping_sub(1) & mask) + 1;
        if length > u32::from(MAX_SUM_LEN) {
            return Err(DropReason::InvalidPacket);
        }
        // SAFETY: `scratch` has a word more than `MAX_SUM_LEN` bytes. The last word is cleared
        // before it is filled in part.
        let failed = unsafe {
            *scratch.add((length / 4) as usize) = 0;
            bpf_skb_load_bytes(self.ctx.cast(), u32::from(offset), scratch.cast(), length)
        };
        if failed != 0 {
            return Err(DropReason::InvalidPacket);
        }
        let end = (length + 3) & !3;
        // SAFETY: the parts lie within `scratch`, one behind the other.
        let sum = unsafe {
            let sum = sum_part(scratch, end, 512, 0);
            let sum = sum_part(scratch.add(128), end.saturating_sub(512), 512, sum);
            sum_part(scratch.add(256), end.saturating_sub(1024), 256, sum)
        };
        Ok(checksum::fold(sum))
    }
}

/// Adds up to `most` of the `length` bytes at `from` to a sum; on older kernels `bpf_csum_diff`
/// takes no more than 512 at once.
///
/// # Safety
///
/// There are `most` bytes at `from`.
#[inline(always)]
unsafe fn sum_part(from: *mut u32, length: u32, most: u32, sum: u32) -> u32 {
    let size = if length < most { length } else { most };
    if size == 0 {
        return sum;
    }
    // SAFETY: as the caller said.
    (unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, from, size, sum) }) as u32
}

/// What a helper's code for failure means.
#[inline(always)]
fn done(code: i64) -> Result<(), DropReason> {
    if code == 0 {
        Ok(())
    } else {
        Err(DropReason::RewriteFailed)
    }
}

/// A header on the stack, aligned so that it can be copied by words.
#[repr(C, align(8))]
struct Words<T>(T);

impl<T> Words<T> {
    #[inline(always)]
    const fn uninit() -> MaybeUninit<Self> {
        MaybeUninit::uninit()
    }
}

/// Copies a `T` by words.
///
/// Headers have no alignment, and the compiler would copy them a byte at a time. The machines that
/// BPF runs on load and store words at any address, and the verifier knows which do.
///
/// # Safety
///
/// Both places have room for a `T`, and do not overlap.
#[inline(always)]
#[allow(clippy::cast_ptr_alignment, reason = "that is what it is for")]
unsafe fn copy_words<T>(from: *const u8, to: *mut u8) {
    let size = size_of::<T>();
    let mut at = 0;
    // SAFETY: `at` never gets beyond `size`.
    unsafe {
        while at + 4 <= size {
            *to.add(at).cast::<u32>() = *from.add(at).cast::<u32>();
            at += 4;
        }
        while at + 2 <= size {
            *to.add(at).cast::<u16>() = *from.add(at).cast::<u16>();
            at += 2;
        }
        if at < size {
            *to.add(at) = *from.add(at);
        }
    }
}
