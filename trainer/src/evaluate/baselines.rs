//! What any model must beat: the most popular items, and those that most often follow the last one.

use std::collections::HashMap;

use schemas::history::Role;

use crate::data::Sequences;

/// Scores items by their number of training events.
#[derive(Debug, Clone)]
pub struct Popularity {
    counts: Vec<u32>,
}

impl Popularity {
    /// From training events by item index.
    pub fn new(counts: &[u32]) -> Self {
        Self { counts: counts.to_vec() }
    }

    /// Fills the scores of all items (item `i` at `i − 1`).
    pub fn score(&self, scores: &mut [f32]) {
        for (score, &count) in scores.iter_mut().zip(&self.counts[1..]) {
            *score = count as f32;
        }
    }
}

/// Scores items by how often they came right after the last visible item, over all users' training events;
/// then by popularity.
#[derive(Debug, Clone)]
pub struct CoOccurrence {
    popularity: Popularity,
    /// By item, the items that followed it and how often.
    followers: HashMap<u32, HashMap<u32, u32>>,
    /// One more than the largest popularity: a follower ranks before everything that never followed.
    step: f32,
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
        let step = counts.iter().max().map_or(1.0, |&n| n as f32 + 1.0);
        Self { popularity: Popularity::new(counts), followers, step }
    }

    /// Fills the scores of all items (item `i` at `i − 1`) after `last`.
    pub fn score(&self, last: Option<u32>, scores: &mut [f32]) {
        self.popularity.score(scores);
        for (&item, &count) in last.and_then(|last| self.followers.get(&last)).into_iter().flatten() {
            scores[item as usize - 1] += count as f32 * self.step;
        }
    }
}
