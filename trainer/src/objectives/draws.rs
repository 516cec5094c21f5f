//! Chances that a batch contains an item among its targets, for the sampling correction. Memory: 4 bytes an item.

use crate::data::ItemIndex;

/// How many units of an epoch predict each item. A batch draws units (rows of `sequences`, or histories of examples) at random
/// without replacement, and contains an item if one of its units predicts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draws {
    /// Number of units in an epoch.
    units: usize,
    /// Number of units that predict each item, by item index.
    with_item: Vec<u32>,
}

impl Draws {
    /// Counts, for a catalogue of `items` items, the units that predict each item in any branch; `predicted` yields each unit's
    /// items.
    pub fn new(items: usize, predicted: impl IntoIterator<Item: IntoIterator<Item = ItemIndex>>) -> Self {
        let (mut units, mut with_item) = (0, vec![0; items + 1]);
        // Last unit that predicted each item, from 1.
        let mut last = vec![0u32; items + 1];
        for (unit, of_unit) in (1..).zip(predicted) {
            units += 1;
            for item in of_unit {
                if std::mem::replace(&mut last[item.index()], unit) != unit {
                    with_item[item.index()] += 1;
                }
            }
        }
        Self { units, with_item }
    }

    /// Returns the number of items in the catalogue.
    pub fn items(&self) -> usize {
        self.with_item.len() - 1
    }

    /// Returns the logarithm of the chance that a batch of `batch` units does not contain `item`, given one unit that does not
    /// predict it.
    ///
    /// The other `b = batch − 1` units are drawn from the remaining `M − 1`, `m` of which predict the item: the chance is
    /// `C(M−1−m, b) / C(M−1, b)`.
    pub fn ln_missed(&self, item: ItemIndex, batch: usize) -> f64 {
        let others = self.units.saturating_sub(1);
        let m = (self.with_item[item.index()] as usize).min(others);
        let b = batch.saturating_sub(1).min(others);
        if m + b > others {
            return f64::NEG_INFINITY;
        }
        // The chance is symmetric in `m` and `b`: take the shorter product.
        let (few, many) = (m.min(b), m.max(b));
        (0..few).map(|j| (-(many as f64) / (others - j) as f64).ln_1p()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::ids;

    fn choose(n: u64, k: u64) -> f64 {
        if k > n { 0.0 } else { (0..k).map(|i| (n - i) as f64 / (k - i) as f64).product() }
    }

    #[test]
    fn a_unit_counts_an_item_once() {
        let draws = Draws::new(4, [&[1, 2, 1][..], &[2, 2], &[], &[4, 1, 4]].map(ids));
        assert_eq!(draws, Draws { units: 4, with_item: vec![0, 2, 2, 0, 1] });
    }

    #[test]
    fn the_chance_is_that_of_drawing_without_replacement() {
        for units in 1..12u32 {
            for m in 0..units {
                let draws = Draws { units: units as usize, with_item: vec![0, m] };
                for batch in 1..=units {
                    let (others, b) = (u64::from(units) - 1, u64::from(batch) - 1);
                    let expected = choose(others - u64::from(m), b) / choose(others, b);
                    let found = draws.ln_missed(1.into(), batch as usize).exp();
                    assert!((found - expected).abs() < 1e-12, "{units} {m} {batch}: {found} {expected}");
                }
            }
        }
    }
}
