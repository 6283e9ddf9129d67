//! Payloads in which no two parts are alike.

/// Makes `length` bytes that depend on `seed` and on where they are, so that whatever is lost,
/// repeated, moved or taken from another exchange is noticed.
pub(super) fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length.next_multiple_of(8));
    let mut state = seed.wrapping_mul(0x2545_f491_4f6c_dd1d);
    while bytes.len() < length {
        bytes.extend_from_slice(&split_mix(&mut state).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// One step of `SplitMix64` (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators).
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_patterns_start_like_short_ones_and_seeds_differ() {
        let long = pattern(1, 1000);
        assert_eq!(pattern(1, 13), long[..13]);
        assert!(pattern(1, 0).is_empty());
        assert_ne!(pattern(2, 1000), long);
    }

    #[test]
    fn no_shift_by_a_segment_looks_right() {
        let bytes = pattern(3, 100_000);
        for shift in [1, 8, 536, 1220, 1440, 1448, 1460, 4096, 65_536] {
            assert_ne!(bytes[shift..shift + 64], bytes[..64], "{shift}");
        }
    }
}
