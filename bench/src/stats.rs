//! Medians and quartiles.

use serde::Serialize;

/// Least, middle and greatest of some values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The least.
    pub min: f64,
    /// The middle.
    pub median: f64,
    /// The greatest.
    pub max: f64,
}

/// Middle of some values, and of the halves below and above it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Quartiles {
    /// The middle.
    pub median: f64,
    /// A quarter of the values lies below.
    pub q1: f64,
    /// A quarter of the values lies above.
    pub q3: f64,
}

impl Spread {
    /// Of any values, in any order; `None` where there is none.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let sorted = sorted(values);
        Some(Self {
            min: *sorted.first()?,
            median: quantile(&sorted, 0.5)?,
            max: *sorted.last()?,
        })
    }
}

impl Quartiles {
    /// Of any values, in any order; `None` where there is none.
    ///
    /// Between two values it is interpolated (Hyndman and Fan's definition 7, which R and numpy
    /// use).
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let sorted = sorted(values);
        Some(Self {
            median: quantile(&sorted, 0.5)?,
            q1: quantile(&sorted, 0.25)?,
            q3: quantile(&sorted, 0.75)?,
        })
    }

    /// The same of the values' inverses: a factor of speed as one of cost.
    #[must_use]
    pub fn inverse(self) -> Self {
        Self {
            median: 1.0 / self.median,
            q1: 1.0 / self.q3,
            q3: 1.0 / self.q1,
        }
    }
}

fn sorted(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<_> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The value that `part` (0 to 1) of the sorted values lie below.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the number of rounds is small, and a position in it is neither negative nor beyond"
)]
fn quantile(sorted: &[f64], part: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let position = part * last as f64;
    let below = *sorted.get(position.floor() as usize)?;
    let above = *sorted.get(position.ceil() as usize)?;
    Some(below + (above - below) * position.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_few_values_is_right() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Quartiles::of([]), None);
        let (min, median, max) = (1.0, 2.5, 4.0);
        let four = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(Spread::of(four), Some(Spread { min, median, max }));
        let (q1, q3) = (1.75, 3.25);
        assert_eq!(Quartiles::of(four), Some(Quartiles { median, q1, q3 }));
        let one = Quartiles::of([7.0]).unwrap();
        assert_eq!((one.q1, one.median, one.q3), (7.0, 7.0, 7.0));
    }

    #[test]
    fn one_wild_value_moves_no_quartile() {
        let calm: Vec<f64> = (0..20).map(|n| 1.0 + f64::from(n) / 100.0).collect();
        let mut wild = calm.clone();
        wild[19] = 1000.0;
        assert_eq!(Quartiles::of(calm), Quartiles::of(wild));
    }

    #[test]
    fn the_inverse_keeps_the_order_of_quartiles() {
        let speed = Quartiles::of([0.5, 1.0, 2.0]).unwrap();
        let cost = speed.inverse();
        assert!(cost.q1 < cost.median && cost.median < cost.q3);
        assert_eq!((cost.q1, cost.q3), (1.0 / speed.q3, 1.0 / speed.q1));
    }
}
