//! Which parts of a packet were there already.

use crate::abi::fragment::{Fragment, Range, state};
use crate::packet::{Headers, Part};

/// Where a fragment stands to what was there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Placed {
    /// Nowhere: what was there is another packet's.
    Over = 0,
    /// Beside it.
    Beside = 1,
    /// Beside it, and now all is there.
    Last = 2,
    /// Over it.
    Overlapping = 3,
    /// Beside it, with a gap more than are kept.
    Scattered = 4,
    /// The stack has the packet.
    OfStack = 5,
}

/// Enters the fragment in `hdr` into what is known of its packet.
#[inline(always)]
pub(super) fn place(known: &mut Fragment, hdr: &Headers) -> Placed {
    match known.state {
        state::OPEN => {}
        state::OF_STACK => return Placed::OfStack,
        // Another one of the same identification.
        state::COMPLETE if hdr.part == Part::First => return Placed::Over,
        _ => return Placed::Overlapping,
    }
    let start = hdr.piece_at;
    let end = start + units(hdr.piece_len);
    if contradicts(known, hdr, end) {
        known.state = state::CONDEMNED;
        return Placed::Overlapping;
    }
    for range in &known.ranges {
        if start < range.end && range.start < end {
            if start < range.start || range.end < end {
                known.state = state::CONDEMNED;
            }
            return Placed::Overlapping;
        }
    }
    let Some(joined) = join(known, Range { start, end }) else {
        return Placed::Scattered;
    };
    if !hdr.more {
        known.length_bytes = start * 8 + hdr.piece_len;
    }
    if joined.start == 0 && known.length_bytes != 0 && joined.end == units(known.length_bytes) {
        known.state = state::COMPLETE;
        return Placed::Last;
    }
    Placed::Beside
}

/// Units of eight bytes that so many bytes take.
#[inline(always)]
const fn units(bytes: u16) -> u16 {
    (bytes >> 3) + (bytes & 7 != 0) as u16
}

/// Whether the fragment, which ends before the unit `end`, and what was there disagree on where the
/// packet ends.
#[inline(always)]
fn contradicts(known: &Fragment, hdr: &Headers, end: u16) -> bool {
    if hdr.more {
        return known.length_bytes != 0 && end > units(known.length_bytes);
    }
    if known.length_bytes != 0 {
        return known.length_bytes != hdr.piece_at * 8 + hdr.piece_len;
    }
    let mut beyond = false;
    for range in &known.ranges {
        beyond |= range.end > end;
    }
    beyond
}

/// Adds a range that overlaps none, one with those that it touches. What it became; none where
/// there is no room for it.
#[inline(always)]
fn join(known: &mut Fragment, mut new: Range) -> Option<Range> {
    let mut room = false;
    for range in &mut known.ranges {
        if range.end == 0 {
            room = true;
        } else if range.end == new.start {
            new.start = range.start;
            *range = Range::default();
            room = true;
        } else if range.start == new.end {
            new.end = range.end;
            *range = Range::default();
            room = true;
        }
    }
    if !room {
        return None;
    }
    for range in &mut known.ranges {
        if range.end == 0 {
            *range = new;
            return Some(new);
        }
    }
    None
}
