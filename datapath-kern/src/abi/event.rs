//! Events: what the datapath tells of single packets, through a ring buffer.
//!
//! A record is an [`Event`]: a fixed [`Head`], then the first bytes of the frame. [`Head::kind`]
//! says what happened, and so how the rest of the head is to be read; a reader passes over kinds
//! that it does not know. Drops ([`kind::DROP`]) and verdicts of policy
//! ([`kind::VERDICT`]) are told.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a frame that an event carries at most.
pub const FRAME_BYTES: usize = 128;

/// Size of the ring buffer where user space does not set another, bytes.
pub const RING_BYTES: u32 = 1 << 20;

/// Number of [`Window`]s on each CPU: one for each drop reason, and [`VERDICTS`].
pub const WINDOWS: u32 = super::metric::FORWARDS;

/// The [`Window`] of verdicts; no drop reason has this code.
pub const VERDICTS: u32 = 0;

/// What happened to a packet, without the packet.
///
/// ```text
///  0 time 8 | 8 kind 2 | 10 outcome 1 | 11 hook 1 | 12 direction 1 | 13 flags 1 | 14 l3 2
/// 16 interface 4 | 20 length 4 | 24 source identity 4 | 28 destination identity 4
/// 32 source 2 | 34 destination 2 | 36 captured 2 | 38 matched 1 | 39 zero 1
/// 40 rule 4 | 44 zero 4
/// ```
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Head {
    /// When; nanoseconds on `CLOCK_MONOTONIC`.
    pub time_ns: u64,
    /// What happened: one of [`kind`].
    pub kind: u16,
    /// Code of the `DropReason`; of a verdict, one of [`verdict`](super::flow::verdict).
    pub outcome: u8,
    /// Where: a [`Hook`].
    pub hook: u8,
    /// Which way the packet went: a [`Direction`](super::metric::Direction). Of a verdict, which
    /// of its endpoint's directions was judged: the one that began the flow sends it by its
    /// egress, the other has it by its ingress.
    pub direction: u8,
    /// Bits of [`flags`]: what is known.
    pub flags: u8,
    /// Offset in the frame of the IP header that was judged: of the inner packet where the frame
    /// is a tunnel packet. Zero: no IP header was reached.
    pub l3: u16,
    /// Interface of the hook.
    pub interface: u32,
    /// Length of the whole frame, bytes.
    pub length: u32,
    /// Identity of the sender; zero where it is not known.
    pub source_identity: u32,
    /// Identity of the receiver, likewise.
    pub destination_identity: u32,
    /// The sender as an [`End`](super::flow::End), where [`flags::SOURCE`] is set.
    pub source: u16,
    /// The receiver likewise, where [`flags::DESTINATION`] is set.
    pub destination: u16,
    /// How many bytes of the frame follow.
    pub captured: u16,
    /// How a rule was found: one of [`matched`](super::policy::matched).
    pub matched: u8,
    /// Zero.
    pub reserved: u8,
    /// The policy rule that decided; zero where none did.
    pub rule_id: u32,
    /// Zero.
    pub padding: [u8; 4],
}
crate::abi!(Head, size = 48, align = 8);

/// A record of the ring buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Event {
    /// What happened.
    pub head: Head,
    /// The first [`Head::captured`] bytes of the frame as it was then, Ethernet header first;
    /// zero behind those.
    pub frame: [u8; FRAME_BYTES],
}
crate::abi!(Event, size = 176, align = 8);

/// Values of [`Head::kind`].
pub mod kind {
    /// A packet was dropped.
    pub const DROP: u16 = 1;
    /// Policy judged the first packet of a flow, or a flow again with another result.
    pub const VERDICT: u16 = 2;
}

/// Bits of [`Head::flags`].
pub mod flags {
    /// The sender was established: `source` is proven, and not only what the packet says.
    pub const SOURCE: u8 = 0x01;
    /// The way was found: `destination` is who it leads to.
    pub const DESTINATION: u8 = 0x02;
    /// The frame came with a VLAN tag, which is not among its bytes.
    pub const TAGGED: u8 = 0x04;
    /// Of a verdict: the packet goes against the direction in which its flow began, which is the
    /// one that was judged.
    pub const REPLY: u8 = 0x08;
}

/// How many events of one kind one CPU has told this second, and how many it has not told at all.
///
/// ```text
/// 0 second 4 | 4 told 4 | 8 suppressed 8 | 16 lost 8
/// ```
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Window {
    /// The second that `told` is about; seconds on `CLOCK_MONOTONIC`.
    pub second: u32,
    /// Events told in that second.
    pub told: u32,
    /// Events not told because there were too many in a second, ever.
    pub suppressed: u64,
    /// Events not told because the ring buffer was full, ever.
    pub lost: u64,
}
crate::abi!(Window, size = 24, align = 8);

impl Event {
    /// Reads a record; none where it is too short for one.
    #[must_use]
    pub fn from_bytes(record: &[u8]) -> Option<Self> {
        Self::read_from_prefix(record).ok().map(|(event, _)| event)
    }
}

impl Window {
    /// Whether another event may be told in the second `now_s` of at most `limit`; counts it as
    /// told or as suppressed.
    #[inline(always)]
    pub fn admit(&mut self, now_s: u32, limit: u32) -> bool {
        if self.second != now_s {
            self.second = now_s;
            self.told = 0;
        }
        if self.told >= limit {
            self.suppressed = self.suppressed.wrapping_add(1);
            return false;
        }
        self.told += 1;
        true
    }
}

macro_rules! hooks {
    ($($(#[$doc:meta])* $hook:ident = $number:literal, $name:literal;)*) => {
        /// The hooks: where a program sees packets.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Hook {
            $($(#[$doc])* $hook = $number,)*
        }

        impl Hook {
            /// All of them, in order of their numbers.
            pub const ALL: [Self; [$($number,)*].len()] = [$(Self::$hook,)*];

            /// Name of the program.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$hook => $name,)* }
            }

            /// The one with this number.
            #[must_use]
            pub const fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$hook),)* _ => None }
            }
        }
    };
}

hooks! {
    /// tcx ingress of the host's side of a pod's veth, or the pod's end of its netkit pair.
    #[default]
    FromPod = 1, "from_pod";
    /// tcx egress of the host's side of a pod's pair.
    ToPod = 2, "to_pod";
    /// tcx ingress of an uplink.
    FromUplink = 3, "from_uplink";
    /// tcx egress of an uplink.
    ToUplink = 4, "to_uplink";
    /// tcx ingress of the far side of the gateway pair.
    FromHost = 5, "from_host";
    /// tcx ingress of the node's side of the gateway pair.
    ToHost = 6, "to_host";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_admits_so_many_a_second_and_counts_the_others() {
        let mut window = Window::default();
        let told = |window: &mut Window, now_s| (0..5).filter(|_| window.admit(now_s, 3)).count();
        assert_eq!((told(&mut window, 7), window.suppressed), (3, 2));
        assert_eq!((told(&mut window, 8), window.suppressed), (3, 4));
        assert!(!window.admit(8, 0));
    }

    #[test]
    fn hooks_are_found_by_their_numbers() {
        for hook in Hook::ALL {
            assert_eq!(Hook::from_number(hook as u8), Some(hook));
        }
        assert_eq!(Hook::from_number(0), None);
    }
}
