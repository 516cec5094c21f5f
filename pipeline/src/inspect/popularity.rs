//! The distribution of the events over the items.

use serde::Serialize;

/// Shares of the items for which the share of the events is reported.
const TOP: [f64; 4] = [0.001, 0.01, 0.1, 0.5];
/// Points of the curve for each factor of ten in rank.
const POINTS_A_DECADE: i32 = 12;

/// The inequality of the items' shares of the events.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Popularity {
    /// Items with at least one event.
    pub items: u64,
    /// The shares of the most popular items.
    pub top: Vec<TopShare>,
    /// Events of the items at some ranks, evenly spaced on a logarithmic scale, from the first to the last.
    pub curve: Vec<Rank>,
}

/// The most popular items together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TopShare {
    /// Share of the items, 0 to 1.
    pub of_items: f64,
    /// Number of these items, at least one.
    pub items: u64,
    /// Their events.
    pub events: u64,
    /// Share of all events, 0 to 1.
    pub of_events: f64,
}

/// One item by popularity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Rank {
    /// 1 is the most popular.
    pub rank: u64,
    /// The item's events.
    pub events: u64,
}

/// Computes the popularity from (events an item, number of such items), the largest first.
pub(super) fn popularity(counts: &[(u64, u64)]) -> Popularity {
    let items: u64 = counts.iter().map(|(_, items)| items).sum();
    let events: u64 = counts.iter().map(|(events, items)| events * items).sum();
    if items == 0 {
        return Popularity::default();
    }
    let first = |n: u64| {
        let mut left = n;
        let mut taken = 0;
        for &(events, items) in counts {
            taken += events * items.min(left);
            left -= items.min(left);
        }
        taken
    };
    let top = TOP.map(|of_items| {
        let n = ((of_items * items as f64).ceil() as u64).clamp(1, items);
        TopShare { of_items, items: n, events: first(n), of_events: first(n) as f64 / events as f64 }
    });
    let mut ranks: Vec<u64> = (0..)
        .map(|i| 10f64.powf(f64::from(i) / f64::from(POINTS_A_DECADE)).round() as u64)
        .take_while(|&rank| rank < items)
        .collect();
    ranks.push(items);
    ranks.dedup();
    let mut curve = Vec::with_capacity(ranks.len());
    let (mut at, mut before) = (0, 0);
    for rank in ranks {
        while before + counts[at].1 < rank {
            before += counts[at].1;
            at += 1;
        }
        curve.push(Rank { rank, events: counts[at].0 });
    }
    Popularity { items, top: top.to_vec(), curve }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_top_takes_its_share() {
        // One item with 90 events, ten with one each.
        let found = popularity(&[(90, 1), (1, 10)]);
        assert_eq!(found.items, 11);
        let top: Vec<_> = found.top.iter().map(|top| (top.items, top.events)).collect();
        assert_eq!(top, [(1, 90), (1, 90), (2, 91), (6, 95)]);
        assert_eq!(found.top[0].of_events, 0.9);
        assert_eq!(found.curve.first(), Some(&Rank { rank: 1, events: 90 }));
        assert_eq!(found.curve.last(), Some(&Rank { rank: 11, events: 1 }));
        assert!(found.curve.is_sorted_by(|a, b| a.rank < b.rank && a.events >= b.events));
        assert_eq!(popularity(&[]), Popularity::default());
    }
}
