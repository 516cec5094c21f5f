//! Merging the lists of several instructions into one list of distinct items (§3.4).

use clap::ValueEnum;

use super::list::{List, Origin};
use super::top_k::Scored;
use crate::data::ConditionRow;

/// Rule that merges a user's lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Merge {
    /// Lists take turns, in the order of the instructions; each contributes its best item not yet taken.
    RoundRobin,
    /// Takes the items with the highest scores, each from the list that scores it highest. Scores are first divided by the
    /// learned factor of their condition (where scores are cosines), which does not depend on the item.
    Score,
    /// Like round-robin, but each list contributes in proportion to the weight of its instruction (`weights` of table
    /// `instructions`; equal where there are none).
    Weighted,
}

/// An item of a merged list.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Merged {
    /// Condition of the list that the item comes from.
    pub condition: Option<ConditionRow>,
    /// Origin of that list.
    pub origin: Origin,
    /// The item and its score in that list.
    pub scored: Scored,
}

/// Merges `lists` by `rule` into at most `k` distinct items. Ties keep the order of the lists.
pub fn merge(lists: &[List], rule: Merge, k: usize) -> Vec<Merged> {
    match rule {
        Merge::Score => by_score(lists, k),
        // The next item comes from the list with the largest claim (Sainte-Laguë); with equal weights, lists take turns.
        Merge::RoundRobin => in_turn(lists, k, |_| 1.0),
        Merge::Weighted => in_turn(lists, k, |list| f64::from(list.weight)),
    }
}

fn taken(list: &List, scored: Scored) -> Merged {
    Merged { condition: list.condition, origin: list.origin, scored }
}

impl List {
    /// Returns this list alone, in the form of a merged one.
    pub fn apart(&self) -> Vec<Merged> {
        self.items.iter().map(|&scored| taken(self, scored)).collect()
    }
}

fn by_score(lists: &[List], k: usize) -> Vec<Merged> {
    let mut all: Vec<(&List, Scored)> =
        lists.iter().flat_map(|list| list.items.iter().map(move |&scored| (list, scored))).collect();
    let comparable = |(list, scored): &(&List, Scored)| scored.score / list.sharpness;
    all.sort_by(|a, b| comparable(b).total_cmp(&comparable(a)));
    let mut seen = std::collections::HashSet::new();
    all.retain(|(_, scored)| seen.insert(scored.item));
    all.truncate(k);
    all.into_iter().map(|(list, scored)| taken(list, scored)).collect()
}

fn in_turn(lists: &[List], k: usize, weight: impl Fn(&List) -> f64) -> Vec<Merged> {
    let mut merged: Vec<Merged> = Vec::with_capacity(k);
    let mut seen = std::collections::HashSet::new();
    let mut rest: Vec<_> = lists.iter().map(|list| list.items.iter()).collect();
    let mut given = vec![0u32; lists.len()];
    while merged.len() < k {
        let claim = |l: usize| weight(&lists[l]) / f64::from(2 * given[l] + 1);
        let open = (0..lists.len()).filter(|&l| !rest[l].as_slice().is_empty());
        // `min_by` returns the first of equal lists.
        let Some(next) = open.min_by(|&a, &b| claim(b).total_cmp(&claim(a))) else { break };
        if let Some(&scored) = rest[next].find(|scored| seen.insert(scored.item)) {
            merged.push(taken(&lists[next], scored));
            given[next] += 1;
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::data::ItemIndex;

    fn list(condition: u32, weight: f32, items: &[(u32, f32)]) -> List {
        let items = items.iter().map(|&(item, score)| Scored { item: item.into(), score }).collect();
        List { condition: Some(condition.into()), weight, sharpness: 1.0, origin: Origin::Model, items }
    }

    #[test]
    fn a_conditions_factor_takes_no_places() {
        let mut lists = [list(0, 1.0, &[(1, 0.9), (2, 0.5)]), list(1, 1.0, &[(3, 0.8), (1, 0.7), (4, 0.1)])];
        let expected = items(&merge(&lists, Merge::Score, 3));
        assert_eq!(expected, [(1, 0), (3, 1), (2, 0)]);
        lists[1].sharpness = 20.0;
        lists[1].items.iter_mut().for_each(|scored| scored.score *= 20.0);
        assert_eq!(items(&merge(&lists, Merge::Score, 3)), expected);
    }

    fn items(merged: &[Merged]) -> Vec<(u32, u32)> {
        merged.iter().map(|m| (m.scored.item.get(), m.condition.unwrap().get())).collect()
    }

    #[test]
    fn the_rules() {
        let lists = [
            list(0, 3.0, &[(1, 0.9), (2, 0.8), (3, 0.3), (4, 0.2)]),
            list(1, 1.0, &[(2, 0.95), (1, 0.5), (5, 0.4), (6, 0.1)]),
        ];
        assert_eq!(items(&merge(&lists, Merge::RoundRobin, 4)), [(1, 0), (2, 1), (3, 0), (5, 1)]);
        assert_eq!(items(&merge(&lists, Merge::Score, 4)), [(2, 1), (1, 0), (5, 1), (3, 0)]);
        // Claims 3, 1; 1, 1; 0.6, 1; 0.6, 0.33: lists 0, 0, 1, 0.
        assert_eq!(items(&merge(&lists, Merge::Weighted, 4)), [(1, 0), (2, 0), (5, 1), (3, 0)]);
    }

    proptest! {
        /// Every rule returns all distinct items, up to `k`, each from a list that contains it.
        #[test]
        fn merged_lists_have_k_distinct_items(
            lists in prop::collection::vec((prop::collection::vec((0u32..30, 0u8..9), 0..12), 0u8..3), 0..5),
            k in 0usize..20,
            rule in prop::sample::select(Merge::value_variants().to_vec()),
        ) {
            let lists: Vec<List> = (0..).zip(lists).map(|(condition, (mut items, weight))| {
                items.sort_by_key(|&(item, score)| (std::cmp::Reverse(score), item));
                let mut seen = std::collections::HashSet::new();
                items.retain(|&(item, _)| seen.insert(item));
                let items: Vec<(u32, f32)> =
                    items.into_iter().map(|(item, score)| (item, f32::from(score))).collect();
                list(condition, f32::from(weight), &items)
            }).collect();
            let merged = merge(&lists, rule, k);
            let all: std::collections::HashSet<ItemIndex> =
                lists.iter().flat_map(|list| list.items.iter().map(|s| s.item)).collect();
            let distinct: std::collections::HashSet<ItemIndex> = merged.iter().map(|m| m.scored.item).collect();
            prop_assert_eq!(merged.len(), k.min(all.len()));
            prop_assert_eq!(distinct.len(), merged.len());
            for m in &merged {
                prop_assert!(lists[m.condition.unwrap().index()].items.contains(&m.scored));
            }
        }
    }
}
