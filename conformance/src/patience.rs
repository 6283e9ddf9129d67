//! How long to wait on this machine.

use std::{sync::OnceLock, time::Duration};

/// The environment variable that says how many times longer than usual everything may take, a whole
/// number: 10 for an emulated machine. Without it, or where it is no number from 1 to 100, 1.
pub const VARIABLE: &str = "DATAPATH_PATIENCE";

/// A wait that is long enough on a usual machine, made long enough for this one.
#[must_use]
pub fn scaled(wait: Duration) -> Duration {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    wait * *FACTOR.get_or_init(|| factor(std::env::var(VARIABLE).ok().as_deref()))
}

fn factor(value: Option<&str>) -> u32 {
    value
        .and_then(|value| value.parse().ok())
        .filter(|factor| (1..=100).contains(factor))
        .unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sensible_factors_count() {
        assert_eq!(factor(Some("10")), 10);
        for value in [
            None,
            Some(""),
            Some("0"),
            Some("101"),
            Some("-1"),
            Some("x"),
        ] {
            assert_eq!(factor(value), 1);
        }
    }
}
