//! How likely an item is among the targets of a batch.

use crate::data::ItemIndex;

/// How often each item is drawn into the batches of an epoch. A batch is a random choice of units (rows of `sequences`, or
/// histories of examples) without replacement, so an item is in it when one of the units that predict the item is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draws {
    /// Units of an epoch.
    units: usize,
    /// By item index, the units with the item among their targets.
    with_item: Vec<u32>,
}

impl Draws {
    /// For a catalogue of `items` items and the items that each unit of an epoch predicts, in any branch.
    pub fn new(items: usize, predicted: impl IntoIterator<Item: IntoIterator<Item = ItemIndex>>) -> Self {
        let (mut units, mut with_item) = (0, vec![0; items + 1]);
        // The last unit that predicted each item, from 1.
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

    /// Items of the catalogue.
    pub fn items(&self) -> usize {
        self.with_item.len() - 1
    }

    /// The logarithm of the chance that `item` is no target in a batch of `batch` units, one of which is known not to predict it.
    ///
    /// The other `b = batch − 1` are drawn from the other `M − 1` units, of which `m` predict the item: the chance is
    /// `C(M−1−m, b) / C(M−1, b)`.
    pub fn ln_missed(&self, item: ItemIndex, batch: usize) -> f64 {
        let others = self.units.saturating_sub(1);
        let m = (self.with_item[item.index()] as usize).min(others);
        let b = batch.saturating_sub(1).min(others);
        if m + b > others {
            return f64::NEG_INFINITY;
        }
        // The same with `m` and `b` exchanged: the shorter product.
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
