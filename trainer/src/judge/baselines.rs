//! What any model must beat: the most popular items, and those that most often follow the last one.

use std::collections::HashMap;

use schemas::history::Role;

use crate::data::Sequences;

/// Scores items by their number of training events.
#[derive(Debug, Clone)]
pub struct Popularity {
    /// By item index, how many different counts are smaller than the item's: equal only for equal counts, and small enough for
    /// 32-bit floats, which are not exact from 2^24 on.
    places: Vec<f32>,
    /// Different counts.
    different: usize,
}

impl Popularity {
    /// From training events by item index.
    pub fn new(counts: &[u32]) -> Self {
        let (places, different) = places(counts);
        Self { places, different }
    }

    /// What orders the items as their counts do, by item index.
    pub fn places(&self) -> &[f32] {
        &self.places
    }

    /// Fills the scores of all items (item `i` at `i − 1`).
    pub fn score(&self, scores: &mut [f32]) {
        scores.copy_from_slice(&self.places[1..]);
    }
}

/// For each value how many different ones are smaller, and how many different ones there are.
fn places<T: Ord + Copy>(values: &[T]) -> (Vec<f32>, usize) {
    let mut different = values.to_vec();
    different.sort_unstable();
    different.dedup();
    let place = |value: &T| different.partition_point(|other| other < value) as f32;
    (values.iter().map(place).collect(), different.len())
}

/// Scores items by how often they came right after the last visible item, over all users' training events;
/// then by popularity.
#[derive(Debug, Clone)]
pub struct CoOccurrence {
    popularity: Popularity,
    /// By item, the items that followed it and how often.
    followers: HashMap<u32, HashMap<u32, u32>>,
}

impl CoOccurrence {
    /// Counts consecutive pairs of training positions.
    pub fn new(sequences: &Sequences, counts: &[u32]) -> Self {
        let mut followers: HashMap<u32, HashMap<u32, u32>> = HashMap::new();
        for row in 0..sequences.rows() {
            let start = sequences.row(row).start;
            for t in sequences.owned(row).filter(|&t| t > start) {
                let consecutive = sequences.places[t - 1] + 1 == sequences.places[t];
                if consecutive && matches!(sequences.roles[t], Role::Pretrain | Role::Sft) {
                    *followers
                        .entry(sequences.items[t - 1])
                        .or_default()
                        .entry(sequences.items[t])
                        .or_default() += 1;
                }
            }
        }
        Self { popularity: Popularity::new(counts), followers }
    }

    /// Fills the scores of all items (item `i` at `i − 1`) after `last`.
    pub fn score(&self, last: Option<u32>, scores: &mut [f32]) {
        let Popularity { places: popularity, different } = &self.popularity;
        self.popularity.score(scores);
        let Some(followers) = last.and_then(|last| self.followers.get(&last)) else { return };
        let of = |(&item, &count): (&u32, &u32)| (count, popularity[item as usize] as u32);
        let counts: Vec<(u32, u32)> = followers.iter().map(of).collect();
        for (item, place) in followers.keys().zip(places(&counts).0) {
            // Behind the places of whatever never followed.
            scores[*item as usize - 1] = *different as f32 + place;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More plays than 32-bit floats tell apart.
    const MANY: u32 = 1 << 24;

    #[test]
    fn popular_items_stay_in_order_beyond_what_floats_tell_apart() {
        let mut scores = [0.0; 4];
        Popularity::new(&[0, MANY + 1, MANY, 0, MANY]).score(&mut scores);
        assert!(scores[0] > scores[1] && scores[1] == scores[3] && scores[3] > scores[2], "{scores:?}");
        assert!((MANY + 1) as f32 == MANY as f32);
    }

    #[test]
    fn followers_come_first_by_how_often_then_by_popularity() {
        // Two users: 1 2, 1 3, 1 2, 1 4; item 5 is the most popular by far.
        let items = vec![1, 2, 1, 3, 1, 2, 1, 4];
        let n = items.len();
        let sequences = Sequences {
            offsets: vec![0, n],
            items,
            roles: vec![Role::Pretrain; n],
            places: (0..n as u32).collect(),
            target_from: vec![0],
            ..Sequences::default()
        };
        let counts = [0, 4, 2, MANY, MANY + 1, u32::MAX];
        let mut scores = [0.0; 5];
        CoOccurrence::new(&sequences, &counts).score(Some(1), &mut scores);
        let mut order: Vec<usize> = (1..=5).collect();
        order.sort_by(|&a, &b| scores[b - 1].total_cmp(&scores[a - 1]));
        assert_eq!(order, [2, 4, 3, 5, 1], "{scores:?}");
    }
}
